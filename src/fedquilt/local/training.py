"""The settings of local training that every method's builder takes: one schema for all."""

from __future__ import annotations

from typing import Literal, Required, TypedDict

from fedquilt.errors import ConfigError
from fedquilt.local.optimiser import Local, adamw, sgd


class Training(TypedDict, total=False):
    """Keyword arguments of :func:`optimiser`; see :class:`~fedquilt.local.optimiser.Local`."""

    lr: Required[float]
    steps: int
    epochs: int
    batch: int
    optimiser: Literal["adamw", "sgd"]
    weight_decay: float
    momentum: float
    schedule: Literal["constant", "linear", "cosine"]
    max_norm: float


def optimiser(training: Training, *, per: Literal["slot", "task"] = "slot", memory: Literal["reset", "persist"] = "reset") -> Local:
    """The client-side optimiser of these settings.

    Raises:
        ConfigError: both or neither of steps and epochs, a number out of range, or momentum without SGD.
    """
    options = {key: value for key, value in training.items() if key not in ("optimiser", "momentum")}
    if training.get("optimiser", "adamw") == "sgd":
        return sgd(**options, per=per, memory=memory, momentum=training.get("momentum", 0.0))  # type: ignore[arg-type]
    if "momentum" in training:
        raise ConfigError("momentum is a setting of SGD", where="method.momentum", fix="method.optimiser = 'sgd', or leave it out")
    return adamw(**options, per=per, memory=memory)  # type: ignore[arg-type]
