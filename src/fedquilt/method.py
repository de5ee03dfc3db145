"""A method is a value: parts that are composed into a program of pure functions, checked before any training.

    updates -wire.receive-> updates -assign-> group[n] -(rebase moved rows)-> delta -reduce-> [K,...] -wire.finish-> -apply-> bank'
    sums ------------------------------- of clients that add up among themselves ------> [K,...] -wire.finish-> -apply-> bank'

Engines and clocks know only the :class:`Program`, so a method that does not fit the frame can write one by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fedquilt import apply as apply_
from fedquilt import assign as assign_
from fedquilt import pick, sample, tree
from fedquilt import reduce as reduce_
from fedquilt import wire as wire_
from fedquilt.assign.chosen import SOURCE
from fedquilt.data.view import SlotKind
from fedquilt.errors import CompositionError
from fedquilt.local import Local
from fedquilt.privacy.sums import Layout, Total
from fedquilt.types import Hub, Job, Metrics, Round, Slot, Spec, State, Updates
from fedquilt.wire import message

Family = Annotated[str, Field(description="adapter family that trains")]


@dataclass(frozen=True)
class Method:
    """A federated method as parts. Prints as it is written.

    Attributes:
        adapter: family that trains: lora, head, full, or one of a plug-in.
        slots: where adapters live: one per local task, one per client, or pooled (centralised).
        train: leaves that train; share: leaves that travel. Trained leaves that do not travel stay private on the client.
        first_effort: factor on a slot's local steps until the server has something of it: its first clustering may decide the rest.
    """

    name: str
    local: Local
    adapter: str = "lora"
    slots: SlotKind = "client"
    train: pick.Pick = field(default_factory=pick.everything)
    share: pick.Pick = field(default_factory=pick.everything)
    wire: wire_.chain = field(default_factory=wire_.chain)
    assign: assign_.Assign = field(default_factory=assign_.one)
    reduce: reduce_.Reduce = field(default_factory=reduce_.mean)
    apply: apply_.Apply = field(default_factory=apply_.add)
    sample: sample.Sample = field(default_factory=sample.everyone)
    first_effort: float = 1.0


class ClientPlan(NamedTuple):
    """The client's half of a program."""

    train: Callable[[Round], tuple[str, ...]]  # leaves that train in a round
    share: Callable[[Round], tuple[str, ...]]  # leaves that travel in a round
    local: Local
    wire: wire_.chain
    fingerprint: assign_.Fingerprints = ""  # what newcomers (slots in row 0) send
    uniform: bool = False  # whether every slot counts the same where clients add up among themselves
    choose: assign_.chosen | None = None  # how clients find the rows of their slots, if they do
    first_effort: float = 1.0  # of newcomers

    @property
    def summed(self) -> bool:
        """Whether clients add up among themselves, and the server sees the sum."""
        return self.wire.summed

    def layout(self, spec: Spec, now: Round) -> Layout:
        """What a client adds in a round."""
        rows, first = (self.choose.rows, 1) if self.choose else (1, 0)  # newcomers' row 0 is nobody's
        return Layout(spec.only(self.share(now)), rows, self.uniform, first)

    def common(self, spec: Spec, now: Round) -> list[str]:
        """Leaves that a server sends: what trains and does not travel is the client's own."""
        own = set(self.train(now)) - set(self.share(now))
        return [name for name in spec.names() if name not in own]

    def offer(self, spec: Spec, now: Round, numbers: int) -> int:
        """Bytes of what a client is sent to choose from, which knows so many ``numbers`` of a slot: every row, and the centres."""
        if not self.choose:
            return 0
        return self.choose.k * message.size(spec.only(self.common(spec, now))) + self.choose.largest(numbers)


class Program(NamedTuple):
    """What engines and the drive loop run."""

    init: Callable[[State], Hub]
    plan: Callable[[Hub, Mapping[int, int], Round], list[Job]]
    client: ClientPlan
    step: Callable[[Hub, Updates, Round], tuple[Hub, Metrics]]
    fold: Callable[[Hub, Total], tuple[Hub, Metrics]]  # the same of a round of which only sums are known


def compose(method: Method, spec: Spec) -> Program:
    """Check a method against an adapter and turn it into functions.

    Raises:
        CompositionError: an impossible mix, in one sentence.
    """
    check(method, spec)
    method = _undiluted(method, spec)
    frozen = spec.names("head") if spec.head == "frozen" else ()
    private = spec.names("head") if spec.head == "private" else ()

    @lru_cache(maxsize=8)  # asked once per reply
    def train(now: Round) -> tuple[str, ...]:
        return tuple(name for name in method.train(spec, now) if name not in frozen)

    @lru_cache(maxsize=8)
    def share(now: Round) -> tuple[str, ...]:
        travelling = set(train(now)) - set(private)
        return tuple(name for name in method.share(spec, now) if name in travelling)

    def init(start: State) -> Hub:
        return Hub(bank={key: torch.stack([x] * method.assign.rows) for key, x in start.items()})

    def plan(hub: Hub, roster: Mapping[int, int], now: Round) -> list[Job]:
        slots = [Slot(client, number) for client in method.sample(list(roster), now) for number in range(roster[client])]
        return [Job(slot, hub.row_of(slot), now, 1.0 if slot in hub.table else method.first_effort) for slot in sorted(slots)]

    def step(hub: Hub, updates: Updates, now: Round) -> tuple[Hub, Metrics]:
        return server_step(method, spec, hub, updates, now)

    def fold(hub: Hub, total: Total) -> tuple[Hub, Metrics]:
        return summed_step(method, spec, hub, total)

    choose = method.assign if isinstance(method.assign, assign_.chosen) else None
    alone = method.local.on(spec), method.wire, method.assign.fingerprint, method.reduce.unweighted, choose, method.first_effort
    return Program(init, plan, ClientPlan(train, share, *alone), step, fold)


def _undiluted(method: Method, spec: Spec) -> Method:
    """Per-task heads are averaged over the clients that have the task; the zeros of all others would dilute them."""
    if spec.head != "per-task" or not isinstance(method.reduce, reduce_.mean):
        return method
    return replace(method, reduce=replace(method.reduce, trained_only=spec.names("head")))


def server_step(method: Method, spec: Spec, hub: Hub, updates: Updates, now: Round) -> tuple[Hub, Metrics]:
    """One round of server mathematics; see the drawing in the module docstring."""
    updates = method.wire.receive(updates)
    assignment = method.assign(updates, hub, spec, now)
    group = assignment.group
    if assignment.source is not None:
        hub = going_on(hub, assignment.source)
    updates = updates.with_delta(rebase(updates, hub, group))
    delta, touched = method.reduce(updates, group, method.assign.rows)
    counts = torch.bincount(group, minlength=method.assign.rows)
    delta = method.wire.finish(delta, touched, counts)
    bank, memory = method.apply(hub.bank, delta, touched, hub.memory)
    table = {**hub.table, **assignment.table} | dict(zip(updates.origin, group.tolist(), strict=True))
    after = Hub(bank, dict(sorted(table.items())), hub.patch, {**memory, **assignment.memory}, hub.step + 1)
    return after, assignment.metrics


def summed_step(method: Method, spec: Spec, hub: Hub, total: Total) -> tuple[Hub, Metrics]:
    """The same where clients have chosen rows and added up: the table says who was there, and not where."""
    if total.sums is None:
        raise ValueError("a step without sums")
    hub, touched = remembering(hub, total.memory), total.sums.counts > 0
    delta = method.wire.finish(total.sums.means(spec.leaves), touched, total.sums.counts)
    bank, memory = method.apply(hub.bank, delta, touched, hub.memory)
    table = {**hub.table, **dict.fromkeys(total.slots, 0)}
    return Hub(bank, dict(sorted(table.items())), hub.patch, memory, hub.step + 1), {}


def remembering(hub: Hub, found: Mapping[str, Tensor]) -> Hub:
    """With what was found of the places that clients choose from; rows go on with what their clusters had."""
    if SOURCE in found:
        hub = going_on(hub, found[SOURCE])
    return replace(hub, memory={**hub.memory, **{key: x for key, x in found.items() if key != SOURCE}})


def going_on(hub: Hub, source: Tensor) -> Hub:
    """Every row with the adapter, the patch and the moments of row ``source [K]``, mostly its own: then nothing is copied."""
    if torch.equal(source, torch.arange(len(source))):
        return hub
    moments = {key: x[source] for key, x in hub.memory.items() if key.startswith(apply_.MOMENTUM)}
    bank, patch = (tree.rows(stack, source) for stack in (hub.bank, hub.patch))
    return replace(hub, bank=bank, patch=patch, memory={**hub.memory, **moments})


def rebase(updates: Updates, hub: Hub, group: Tensor) -> dict[str, Tensor]:
    """Express every delta from its (new) row: ``delta + start - bank[row]``; exactly ``delta`` where the row did not change."""

    def from_row(delta: Tensor, start: Tensor, bank: Tensor) -> Tensor:
        there = bank[group]
        moved = tree.as_matrix(start.ne(there)).any(1)
        if not bool(moved.any()):  # mostly: only the moved rows are worth a copy in float64
            return delta
        shift = start[moved].double() - there[moved].double()
        return delta.index_put((moved,), (delta[moved].double() + shift).to(delta.dtype))

    return tree.map_leaves(from_row, updates.delta, updates.start, tree.select(hub.bank, updates.delta))


def check(method: Method, spec: Spec) -> None:
    """Refuse impossible mixes before anything runs."""
    for rule in (_hidden, _noise, _heads, _effort):
        rule(method, spec)
    method.assign.check(spec)


def _hidden(method: Method, spec: Spec) -> None:
    hiding = [hides for part in method.wire.parts if (hides := getattr(part, "hides", ""))]
    if not hiding and isinstance(method.assign, assign_.chosen):
        why = "the server is told the sum of every row, and of no slot in which row it is"
        raise CompositionError(
            "clients choose rows, and do not add up", where="method.assign", why=why, fix="secure_aggregation = true"
        )
    if not hiding:
        return
    looking: dict[str, object] = {"assign": method.assign, "reduce": method.reduce} | {f"wire.{p}": p for p in method.wire.parts}
    for name, part in looking.items():
        sees = getattr(part, "sees", "content")
        if sees != "sum":
            raise CompositionError(
                f"{type(part).__name__} must see {sees} of the updates, but {hiding[0]} shows only sums",
                where=f"method.{name}",
                fix="drop one of the two" + ("; fltac: method.choice = 'clients'" if isinstance(part, assign_.kmeans) else ""),
            )
    if not isinstance(method.reduce, reduce_.mean):
        what = f"{type(method.reduce).__name__} is no weighted mean, and clients that add up among themselves give nothing else"
        raise CompositionError(what, where="method.reduce", fix="reduce = mean()")
    if spec.head == "per-task":
        raise CompositionError(
            f"with per-task heads the server looks at who changed which head, but {hiding[0]} shows only sums",
            where="adapter.head",
            fix="use head = 'federated', 'private' or 'frozen'",
        )


def _noise(method: Method, spec: Spec) -> None:
    for index, part in enumerate(method.wire.parts):
        if not isinstance(part, wire_.central_noise):
            continue
        clips = [p.to for p in method.wire.parts[:index] if isinstance(p, wire_.clip)]
        if clips[-1:] != [part.clip]:
            raise CompositionError(
                f"central noise for updates clipped to {part.clip} needs a clip to {part.clip} before it",
                where="method.wire",
                why="the noise is calibrated for that sensitivity",
                fix=f"wire = chain((clip({part.clip}), {part}))",
            )
        if method.assign.sees == "content" or isinstance(method.assign, assign_.chosen):
            raise CompositionError(
                f"central noise does not protect what {type(method.assign).__name__} reads",
                where="method.wire",
                why="rows are chosen by the updates or the data themselves, and an update that changes rows is no longer clipped",
                fix="drop the noise, or assign = one()",
            )
        if method.slots in ("task", "pooled-task"):
            raise CompositionError(
                "central noise needs one update per client",
                where="method.slots",
                why="slots are clipped one by one, and a client with several moves the mean by more than clip / n",
                fix="slots = 'client'",
            )
        if spec.head == "per-task":
            raise CompositionError(
                "central noise is too small for per-task heads",
                where="adapter.head",
                why="a head is averaged over those who changed it, fewer than the noise is calibrated for",
                fix="use head = 'federated', 'private' or 'frozen'",
            )
        if not method.reduce.unweighted:
            raise CompositionError(
                "central noise needs an unweighted mean",
                where="method.reduce",
                why="with sample weights one client can move the mean by more than clip / n",
                fix="reduce = mean(weighting='uniform')",
            )


def _heads(method: Method, spec: Spec) -> None:
    if spec.head == "per-task" and method.assign.sees == "content":
        raise CompositionError(
            "per-task heads tell the server the task of every upload: which head changed is its label",
            where="adapter.head",
            why="clustering by content would be cheating",
            fix="use head = 'federated', 'private' or 'frozen'",
        )


def _effort(method: Method, spec: Spec) -> None:
    if not method.first_effort > 0:
        raise CompositionError(f"first_effort must be positive, got {method.first_effort}", where="method.first_effort")


def collect(replies: Sequence[tuple[Slot, State, float]], jobs: Sequence[Job], hub: Hub, rank: int) -> Updates:
    """Accepted replies -> sorted stacked updates. ``start`` is what the jobs were sent with."""
    rows = {job.slot: job.row for job in jobs}
    ordered = sorted(replies, key=lambda reply: reply[0])
    origin = tuple(slot for slot, _, _ in ordered)
    delta = tree.stack([state for _, state, _ in ordered])
    begun, bank = [rows[slot] for slot in origin], tree.select(hub.bank, delta)
    if len(set(begun)) == 1:  # one row for all is nothing to copy
        start = tree.map_leaves(lambda x: x[begun[:1]].expand(len(begun), *x.shape[1:]), bank)
    else:
        start = tree.rows(bank, begun)
    n = len(origin)
    return Updates(
        delta=delta,
        start=start,
        weight=torch.tensor([weight for _, _, weight in ordered], dtype=torch.float64),
        origin=origin,
        staleness=torch.zeros(n),
        rank=torch.full((n,), rank),
    )
