"""What servers and clients say to each other, kind by kind.

There is no field in which a task name, a label or a raw example could travel: what a client says is numbers and words of a fixed
list, each with a bound.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedquilt.data.kinds import Metric

MOST_ROUNDS = 10**9
MOST_CLIENTS = 10**6
SLOTS = 1000  # of one client, at most
MOST_EFFORT = 1000.0
MOST = 1e9  # of a loss or a metric
MOST_SAMPLES = 10**9
MOST_FINGERPRINT = 10**7  # numbers
PARTS = 100  # tasks in one slot
RUN = r"^[0-9a-f]{32}$"


class Strict(BaseModel):
    """No unknown fields, no values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Pins(Strict):
    """Digests of what both sides must have the same of.

    Attributes:
        config: of the resolved configuration without what only one machine knows.
        base: of the base model's weights, its own configuration, and its tokenizer or image transform.
        layout: of the adapter's leaves.
    """

    config: str
    base: str
    layout: str

    @property
    def all(self) -> str:
        """All of them in one, for the messages after the first."""
        return hashlib.sha256(" ".join((self.config, self.base, self.layout)).encode()).hexdigest()

    def other(self, theirs: Pins) -> Literal["another configuration", "another base model", "another adapter layout"] | None:
        """What the other side has another one of."""
        if theirs.config != self.config:
            return "another configuration"
        if theirs.base != self.base:
            return "another base model"
        return None if theirs.layout == self.layout else "another adapter layout"


class Hello(Strict):
    """Server to client, first: what it runs."""

    pins: Pins


class Present(Strict):
    """The answer: who is there. ``slots``: (round from which on, number of slots); ``samples``: training examples of each."""

    client: int = Field(ge=0, lt=1 << 31)
    slots: list[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=0, le=SLOTS)]]] = Field(max_length=SLOTS)
    samples: list[Annotated[int, Field(ge=0, le=MOST_SAMPLES)]] = Field(max_length=SLOTS)


class Ask(Strict):
    """One slot's job. ``leaves``: which of the adapter's, in the order of their names; None: all.

    ``new``: whether the slot is a newcomer, of which some methods want a look at its data.
    """

    slot: int = Field(ge=0)
    leaves: list[int] | None
    since: int = Field(ge=0)
    effort: float = Field(gt=0, le=MOST_EFFORT, allow_inf_nan=False)
    new: bool


class Train(Strict):
    """Server to client, every round: a block per ask, empty where nothing has changed.

    ``run``: drawn when a run begins; a client keeps the state of every run apart. ``clients``: how many are asked in this round,
    where they add up among themselves. Where they choose rows, too, the blocks are all rows and the centres.
    """

    run: str = Field(pattern=RUN)
    pins: str
    round: int = Field(ge=1, le=MOST_ROUNDS)
    asks: list[Ask]
    clients: int = Field(0, ge=0, le=MOST_CLIENTS)


class Done(Strict):
    """One slot's reply: a block for its change, one for its fingerprint if it has one. ``loss``: None if it is no number."""

    slot: int = Field(ge=0)
    weight: float
    loss: Annotated[float, Field(ge=-MOST, le=MOST)] | None
    fingerprint: int = Field(ge=0, le=MOST_FINGERPRINT)


class Undone(Strict):
    """Why there is none."""

    slot: int = Field(ge=0)
    code: Literal["behind", "refused"]


class Trained(Strict):
    """Client to server."""

    run: str = Field(pattern=RUN)
    round: int = Field(ge=1, le=MOST_ROUNDS)
    done: list[Done] = Field(max_length=SLOTS)
    undone: list[Undone] = Field(max_length=SLOTS)


class Place(Strict):
    """Server to client, before a round in which somebody is new: a block with centres, or an empty one; see
    :class:`fedquilt.assign.chosen.Question`. ``step``: which question of the round; ``clients``: how many are asked."""

    run: str = Field(pattern=RUN)
    pins: str
    round: int = Field(ge=1, le=MOST_ROUNDS)
    step: int = Field(ge=1, le=MOST_ROUNDS)
    clients: int = Field(ge=1, le=MOST_CLIENTS)


class Phase(Strict):
    """What all messages of a sum say: which one it is. ``step``: 0 for the changes of a round, else a question of it; ``clients``:
    whose blocks these are, or who is meant; see :mod:`fedquilt.deploy.summing`."""

    run: str = Field(pattern=RUN)
    round: int = Field(ge=1, le=MOST_ROUNDS)
    step: int = Field(0, ge=0, le=MOST_ROUNDS)
    clients: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)


class Ready(Phase):
    """Client to server, instead of its changes or an answer: it has one; its public keys."""

    undone: list[Undone] = Field(default_factory=list, max_length=SLOTS)


class Share(Phase):
    """Server to client: everybody's public keys."""


class Shared(Phase):
    """Client to server: for everybody else the shares of its secrets, encrypted."""


class Mask(Phase):
    """Server to client: the shares that everybody else made for it."""


class Masked(Phase):
    """Client to server: its vector behind masks."""


class Open(Phase):
    """Server to client: whose vectors have arrived."""


class Opened(Phase):
    """Client to server: its shares of what is behind their own masks, and behind the pair masks of the others."""


class Judge(Strict):
    """Server to client, where nobody else has data to evaluate on: a block per slot, the adapter after round ``round``; or, if
    rows are ``chosen``, all of them and the centres."""

    run: str = Field(pattern=RUN)
    pins: str
    round: int = Field(ge=0, le=MOST_ROUNDS)
    slots: list[Annotated[int, Field(ge=0)]]
    chosen: bool = False


class Score(Strict):
    """A slot's adapter on one of its tasks: the name of a metric -> its value, None if it is no number. ``part``: which task, in an
    order that only the client knows."""

    slot: int = Field(ge=0)
    part: int = Field(ge=0, lt=PARTS)
    metrics: dict[Metric, Annotated[float, Field(ge=-MOST, le=MOST)] | None] = Field(min_length=1)
    samples: int = Field(ge=0, le=MOST_SAMPLES)


class Judged(Strict):
    """Client to server."""

    run: str = Field(pattern=RUN)
    round: int = Field(ge=0, le=MOST_ROUNDS)
    scores: list[Score] = Field(max_length=2 * SLOTS)


class Refused(Strict):
    """A client that does nothing, and why: a word of a list, for free text could tell of its data. Its own log says more."""

    why: Literal[
        "another configuration",
        "another base model",
        "another adapter layout",
        "other data than before",
        "too few clients to hide among",
        "nothing to add",
        "in another sum already",
        "an unreadable message",
        "an error of its own",
    ]
