"""Centralised training on the pooled data: the ceiling. One client owns the union; its optimiser lives through all rounds.

FL-TAC's "centralised LoRA" is one adapter *per task* (its parameter count is five times one adapter's), which is the default
here; ``mixed=True`` trains one adapter on all tasks together.
"""

from __future__ import annotations

from typing_extensions import Unpack

from fedquilt import pick
from fedquilt.local import Training, optimiser
from fedquilt.method import Family, Method


def centralised_lora(*, mixed: bool = False, adapter: Family = "lora", **training: Unpack[Training]) -> Method:
    """LoRA on the pooled data, one adapter per task or one for all.

    Args:
        mixed: one adapter for all tasks together.
    """
    return _pooled("centralised_lora", adapter, mixed, training)


def centralised_full(*, mixed: bool = False, **training: Unpack[Training]) -> Method:
    """Full fine-tuning on the pooled data, one model per task or one for all.

    Args:
        mixed: one model for all tasks together.
    """
    return _pooled("centralised_full", "full", mixed, training)


def _pooled(name: str, adapter: str, mixed: bool, training: Training) -> Method:
    local = optimiser(training, per="task", memory="persist")
    # Nothing is shared: the adapters of different tasks must not be averaged with one another.
    return Method(name, local, adapter=adapter, slots="pooled" if mixed else "pooled-task", share=pick.nothing())
