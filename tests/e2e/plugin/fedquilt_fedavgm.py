"""FedAvgM (Hsu et al. 2019, arXiv 1909.06335) on one LoRA adapter: FedIT whose server has momentum."""

from typing import Unpack

from fedquilt import apply, reduce
from fedquilt.local import Training, optimiser
from fedquilt.method import Method


def fedavgm(*, beta: float = 0.9, server_lr: float = 1.0, **training: Unpack[Training]) -> Method:
    """One adapter for everybody; the server adds a decaying sum of all averages.

    Args:
        beta: what is left of the sum after a round; 0 is FedAvg.
        server_lr: factor on the server's step.
    """
    return Method(
        "fedavgm",
        local=optimiser(training, per="task"),
        slots="client",
        reduce=reduce.mean("samples"),
        apply=apply.momentum(beta, server_lr),
    )
