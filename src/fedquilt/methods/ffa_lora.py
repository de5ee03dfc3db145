"""FFA-LoRA: LoRA whose A stays as it was drawn; only B trains and travels, so the mean of the products is the product of the means.

Source: Y. Sun, Z. Li, Y. Li, B. Ding. Improving LoRA in Privacy-Preserving Federated Learning. ICLR 2024, arXiv 2403.12313.

Where we differ: averages are weighted by sample counts (``weighting="uniform"``); A is peft's uniform draw.
"""

from __future__ import annotations

from typing_extensions import Unpack

from fedquilt import pick, reduce, sample
from fedquilt.local import Per, Training, optimiser
from fedquilt.method import Method
from fedquilt.reduce.mean import Weighting


def ffa_lora(
    *,
    per: Per = "task",
    weighting: Weighting = "samples",
    participation: sample.Participation = 1.0,
    **training: Unpack[Training],
) -> Method:
    """FedAvg of B and the head."""
    moving = pick.roles(("lora_B", "head"))
    return Method(
        "ffa_lora",
        optimiser(training, per=per),
        train=moving,
        share=moving,
        reduce=reduce.mean(weighting),
        sample=sample.share(participation),
    )
