"""FedIT: FedAvg of one LoRA adapter that every client trains on all its data.

Source: J. Zhang et al. Towards Building the Federated GPT: Federated Instruction Tuning (Shepherd), arXiv 2305.05644, section 3;
averaging by sample counts as in FedAvg (McMahan et al. 2017).

Where we differ: batches mix a client's tasks, and a client with m tasks makes m times the steps (``per="task"``), so that a
comparison with one adapter per task is at equal compute; ``per="slot"`` gives every client the same number of steps.
"""

from __future__ import annotations

from typing_extensions import Unpack

from fedquilt import reduce, sample
from fedquilt.local import Per, Training, optimiser
from fedquilt.method import Family, Method
from fedquilt.reduce.mean import Weighting


def fedit(
    *,
    per: Per = "task",
    weighting: Weighting = "samples",
    participation: sample.Participation = 1.0,
    adapter: Family = "lora",
    **training: Unpack[Training],
) -> Method:
    """One adapter for everybody, averaged every round."""
    return Method(
        "fedit",
        optimiser(training, per=per),
        adapter=adapter,
        slots="client",
        reduce=reduce.mean(weighting),
        sample=sample.share(participation),
    )
