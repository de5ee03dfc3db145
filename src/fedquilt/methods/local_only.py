"""Local-only training: every slot keeps its adapter, nothing is sent. The floor that a federation has to beat."""

from __future__ import annotations

from typing import Literal

from typing_extensions import Unpack

from fedquilt import pick
from fedquilt.local import Training, optimiser
from fedquilt.method import Family, Method


def local_only(*, slots: Literal["task", "client"] = "task", adapter: Family = "lora", **training: Unpack[Training]) -> Method:
    """One private adapter per local task (or per client); zero bytes.

    Args:
        slots: one adapter per local task, or one per client.
    """
    return Method("local_only", optimiser(training, per="task"), adapter=adapter, slots=slots, share=pick.nothing())
