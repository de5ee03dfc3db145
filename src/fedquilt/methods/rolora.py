"""RoLoRA: one LoRA factor per round, the other is common and frozen, so every round averages exactly and both factors are learnt.

Source: S. Chen, Y. Guo, Y. Ju, H. Dalal, Z. Zhu, A. Khisti. Robust Federated Finetuning of LLMs via Alternating Optimization of
LoRA. NeurIPS 2025, arXiv 2502.01755.

Where we differ: averages are weighted by sample counts (the paper's: ``weighting="uniform"``). B begins: at B = 0 the gradient of A
is exactly zero. The head trains in every round.
"""

from __future__ import annotations

from typing_extensions import Unpack

from fedquilt import pick, reduce, sample
from fedquilt.local import Per, Training, optimiser
from fedquilt.method import Method
from fedquilt.reduce.mean import Weighting


def rolora(
    *,
    per: Per = "task",
    weighting: Weighting = "samples",
    participation: sample.Participation = 1.0,
    **training: Unpack[Training],
) -> Method:
    """FedAvg of B and the head in odd rounds, of A and the head in even ones."""
    return Method(
        "rolora",
        optimiser(training, per=per),
        train=pick.alternate(),
        share=pick.alternate(),
        reduce=reduce.mean(weighting),
        sample=sample.share(participation),
    )
