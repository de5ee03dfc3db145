"""FedTT and FedTT+: FedAvg of tensor-train adapters, and the variant that trains a few cores of every train per round.

Source: S. Ghiasvand, Y. Yang, Z. Xue, M. Alizadeh, Z. Zhang, R. Pedarsani. Communication-Efficient and Tensorized Federated
Fine-Tuning of Large Language Models. Findings of ACL 2025, arXiv 2410.13097, section 4, algorithms 1 and 2.

Where we differ: averages are weighted by sample counts (the paper's: ``weighting="uniform"``); batches mix a client's tasks, as in
``fedit``. The paper does not say which middle core of FedTT+ trains when: they take turns here. Its three cores are not averaged
exactly, for their product is not linear in them; ``trainable="single"`` is (:class:`fedquilt.pick.cores`).
"""

from __future__ import annotations

from typing import Literal

from typing_extensions import Unpack

from fedquilt import pick, reduce, sample
from fedquilt.local import Per, Training, optimiser
from fedquilt.method import Method
from fedquilt.reduce.mean import Weighting


def fedtt(
    *,
    per: Per = "task",
    weighting: Weighting = "samples",
    participation: sample.Participation = 1.0,
    **training: Unpack[Training],
) -> Method:
    """FedAvg of all cores, biases and the head (algorithm 1)."""
    return Method(
        "fedtt",
        optimiser(training, per=per),
        adapter="tt",
        reduce=reduce.mean(weighting),
        sample=sample.share(participation),
    )


def fedtt_plus(
    *,
    trainable: Literal["paper", "single"] = "paper",
    order: Literal["cyclic", "random", "fixed"] = "cyclic",
    biases: bool = True,
    per: Per = "task",
    weighting: Weighting = "samples",
    participation: sample.Participation = 1.0,
    **training: Unpack[Training],
) -> Method:
    """In every round only some cores of every train move and travel (algorithm 2); see :class:`fedquilt.pick.cores`.

    Args:
        trainable: ``paper``: the first core, the last and one between them; ``single``: one of all, averaged exactly.
        order: of the cores between (``single``: of all): they take turns, are drawn for each round, or it is always the same.
        biases: whether biases and the head's dense map train (the paper says nothing of them).
    """
    moving = pick.cores(trainable, order, others=biases)
    return Method(
        "fedtt_plus",
        optimiser(training, per=per),
        adapter="tt",
        train=moving,
        share=moving,
        reduce=reduce.mean(weighting),
        sample=sample.share(participation),
    )
