"""The settings of local training that every method's builder takes: one schema for all."""

from __future__ import annotations

from typing import Annotated, Literal, Required, TypedDict

from pydantic import Field

from fedquilt.errors import ConfigError
from fedquilt.local.optimiser import Local, adamw, sgd

ADAMW = "adamw"
Per = Annotated[
    Literal["slot", "task"],
    Field(description="task: a client with m tasks makes m times the steps, in mixed batches; slot: as many as every other"),
]


class Training(TypedDict, total=False):
    """Keyword arguments of :func:`optimiser`; see :class:`~fedquilt.local.optimiser.Local`."""

    lr: Required[Annotated[float, Field(description="learning rate at the start of the run")]]
    steps: Annotated[int, Field(description="local steps per round; either these or epochs")]
    epochs: Annotated[int, Field(description="passes over the slot's data per round; either these or steps")]
    batch: Annotated[int, Field(default=Local.batch, description="examples per step; a slot with fewer has smaller steps")]
    optimiser: Annotated[Literal["adamw", "sgd"], Field(default=ADAMW, description="of the clients")]
    weight_decay: Annotated[
        float,
        Field(
            default=Local.weight_decay, description="decoupled with adamw, added to the gradient with sgd; not of scales and biases"
        ),
    ]
    momentum: Annotated[float, Field(default=sgd.momentum, description="of sgd; an error with adamw")]
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Field(default=Local.schedule, description="of the learning rate, over the rounds of the run and not inside one"),
    ]
    max_norm: Annotated[float, Field(description="clip each slot's gradient to this L2 norm; without it nothing is clipped")]


def optimiser(training: Training, *, per: Per = "slot", memory: Literal["reset", "persist"] = "reset") -> Local:
    """The client-side optimiser of these settings.

    Raises:
        ConfigError: both or neither of steps and epochs, a number out of range, or momentum without SGD.
    """
    options = {key: value for key, value in training.items() if key not in ("optimiser", "momentum")}
    if training.get("optimiser", ADAMW) == "sgd":
        return sgd(**options, per=per, memory=memory, momentum=training.get("momentum", sgd.momentum))  # type: ignore[arg-type]
    if "momentum" in training:
        raise ConfigError("momentum is a setting of SGD", where="method.momentum", fix="method.optimiser = 'sgd', or leave it out")
    return adamw(**options, per=per, memory=memory)  # type: ignore[arg-type]
