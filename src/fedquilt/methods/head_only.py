"""FedAvg of the classification head over a frozen encoder (linear probing): what the base model gives for free."""

from __future__ import annotations

from typing_extensions import Unpack

from fedquilt.local import Per, Training, optimiser
from fedquilt.method import Method


def head_only(*, per: Per = "task", **training: Unpack[Training]) -> Method:
    """One head for everybody, averaged every round."""
    return Method("head_only", optimiser(training, per=per), adapter="head", slots="client")
