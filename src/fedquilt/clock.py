"""The drive loop, one for all engines: plan -> submit -> poll -> gate -> step -> evaluate -> commit.

Rounds are synchronous with whoever the method samples. A round in which nothing usable comes back leaves the state as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fedquilt.delivery import Delivery
from fedquilt.engine.base import Engine
from fedquilt.errors import FedquiltError, QuorumError
from fedquilt.gate import Gate, Rejection
from fedquilt.meter import Meter
from fedquilt.method import Program, collect, remembering
from fedquilt.privacy.sums import Sums, Total
from fedquilt.types import Failure, Hub, Job, Metrics, Reply, Round, Shipment, Slot, Spec, Updates

PATIENCE = 3  # abandoned rounds in a row before giving up
EXACT = 1e-9  # 0.56 of 25 is 14, in whatever floating point says
ABANDONED = "clock/abandoned"  # in Hub.memory: how many there have been


Books = Mapping[str, Mapping[str, Any]]  # what the meter and the delivery remember, as JSON
Shipments = Mapping[Slot, Shipment]
_Step = tuple[Hub, Metrics, dict[str, list[dict[str, Any]]]]  # the state after a step, its figures, and further records


class _Came(NamedTuple):
    """What a round's jobs came to: usable replies, who has none and why, their mean loss, and the step that they make."""

    usable: int
    rejected: Sequence[Rejection]
    loss: float | None
    step: Callable[[Hub], _Step]
    memory: Mapping[str, Tensor] = {}  # what was learnt before the changes were added, and is not asked again


class Journal(Protocol):
    """Where a round becomes durable. Everything of a round is committed at once or not at all."""

    def commit(self, hub: Hub, records: Mapping[str, Sequence[Mapping[str, Any]]], books: Books) -> None:
        """Store the state after a round and append the records to their files."""
        ...


@dataclass
class Drive:
    """Runs rounds of a program on an engine.

    Args:
        observe: extra deterministic records of a round, from (updates, hub after it): ``file -> lines``; no updates where clients
            add up among themselves.
        evaluate: the record of an evaluation, or None to skip; called with the hub after round ``number`` (0: at the start).
        notice: told about every finished round.
        fingerprint: numbers in the fingerprint of a newcomer's data, for methods that ask for it.
        quorum: share of a round's jobs whose replies must be usable; with fewer the round leaves the state as it was.
    """

    program: Program
    engine: Engine
    spec: Spec
    journal: Journal
    meter: Meter
    seed: int
    rounds: int
    observe: Callable[[int, Updates | None, Hub], dict[str, list[dict[str, Any]]]]
    evaluate: Callable[[Hub, int], dict[str, Any] | None]
    notice: Callable[[int, Mapping[str, Any], Mapping[str, Any] | None], None]
    fingerprint: int = 0
    quorum: float = 0.0

    def __post_init__(self) -> None:
        self.delivery = Delivery(self.spec, self.program.client)

    def run(self, hub: Hub, books: Books | None = None) -> Hub:
        """From the round after ``hub.step`` to the last; returns the final state. ``books``: of a run that is resumed.

        Raises:
            QuorumError: no usable replies, or fewer than the quorum, in several rounds in a row.
        """
        gate = Gate(self.spec, fingerprint=self.fingerprint)
        if books is None:
            self._commit_start(hub)
        else:
            self.meter.restore(books["bytes"])
            self.delivery.restore(books["delivery"])
        for number in range(hub.step + 1, self.rounds + 1):
            hub = self._round(hub, Round(number, self.seed), gate)
        return hub

    def _commit_start(self, hub: Hub) -> None:
        record = self.evaluate(hub, 0)
        self.journal.commit(hub, {"evals.jsonl": [{"round": 0, **record}] if record else []}, self._books())
        self.notice(0, {}, record)

    def _round(self, hub: Hub, now: Round, gate: Gate) -> Hub:
        jobs = self.program.plan(hub, self.engine.roster(now.number), now)
        self.meter.start_round()
        shipments = {} if self.program.client.choose else self.delivery.send(jobs, now)  # who chooses is sent all rows
        self.meter.down(shipments)
        came = (self._added if self.program.client.summed else self._replied)(hub, jobs, shipments, now, gate)
        after, records = self._step(hub, came, len(jobs), now)
        summary = self._summary(now, jobs, came, records.pop("step")[0])
        records["rounds.jsonl"] = [summary]
        evaluation = self.evaluate(after, now.number)
        if evaluation is not None:
            records["evals.jsonl"] = [{"round": now.number, **evaluation}]
        if not self.program.client.choose:
            self.delivery.stepped(hub.bank, after.bank, now.number)
        self.journal.commit(after, records, self._books())
        self.notice(now.number, summary, evaluation)
        return after

    def _replied(self, hub: Hub, jobs: Sequence[Job], shipments: Shipments, now: Round, gate: Gate) -> _Came:
        """A round of replies, each of which passes the gate."""
        replies = self.engine.poll(self.engine.submit(jobs, hub.bank, shipments))
        self.meter.up([reply for reply in replies if isinstance(reply, Reply)])
        self.delivery.forget([reply.slot for reply in replies if isinstance(reply, Failure)])
        accepted, rejected = gate(replies, jobs, self.program.client.share(now))
        ordered = sorted((reply for reply in accepted if "loss" in reply.extra), key=lambda reply: reply.slot)
        weight = sum(reply.weight for reply in ordered)
        loss = sum(reply.weight * reply.extra["loss"] for reply in ordered) / weight if weight else None

        def step(before: Hub) -> _Step:
            updates = collect([(reply.slot, reply.delta, reply.weight) for reply in accepted], jobs, before, self.spec.rank)
            updates = replace(updates, extra=self._extra(updates, accepted))
            after, metrics = self.program.step(before, updates, now)
            return after, metrics, self.observe(now.number, updates, after)

        return _Came(len(accepted), rejected, loss, step)

    def _added(self, hub: Hub, jobs: Sequence[Job], shipments: Shipments, now: Round, gate: Gate) -> _Came:
        """A round of clients that add up among themselves: there is nothing that a gate could look at."""
        total = self.engine.total(jobs, hub, shipments) if jobs else Total(None, (), (), {}, {})
        self.meter.beside(total.sent, total.came)
        self.delivery.forget([failure.slot for failure in total.failures])
        rejected = [Rejection(failure.slot, failure.code, failure.detail) for failure in total.failures]
        uniform = self.program.client.uniform
        if total.sums is not None and (wrong := total.sums.wrong(len(total.slots), gate.most, uniform=uniform)):
            rejected += [Rejection(slot, "schema", wrong) for slot in total.slots]
        elif total.sums is not None:
            return self._of_sums(total, total.sums, rejected, now)
        return _Came(0, rejected, None, lambda before: (before, {}, {}), total.memory)

    def _of_sums(self, total: Total, sums: Sums, rejected: Sequence[Rejection], now: Round) -> _Came:
        weight = float(sums.weights.sum())

        def step(before: Hub) -> _Step:
            after, metrics = self.program.fold(before, total)
            return after, metrics, self.observe(now.number, None, after)

        return _Came(int(sums.counts.sum()), rejected, sums.loss / weight if weight else None, step, total.memory)

    def _books(self) -> Books:
        return {"bytes": self.meter.state(), "delivery": self.delivery.state()}

    def _step(self, hub: Hub, came: _Came, asked: int, now: Round) -> tuple[Hub, dict[str, list[dict[str, Any]]]]:
        """The server step, or the same state when nothing usable came back, or too little."""
        if not came.usable or came.usable < math.ceil(self.quorum * asked - EXACT):
            abandoned = hub.memory.get(ABANDONED, torch.zeros(())) + 1  # in the state: a resume must count on
            if int(abandoned) >= PATIENCE:
                raise QuorumError(
                    f"{'too few' if came.usable else 'no'} usable replies in {PATIENCE} rounds in a row",
                    where=f"round {now.number}",
                    why=f"{came.usable} of {asked} in the last one; rounds.jsonl has the codes of the others",
                    fix="lower method.lr if the code is 'nonfinite'; a longer deadline or a smaller quorum if it is 'lost'",
                )
            hub = remembering(hub, came.memory)
            return replace(hub, step=hub.step + 1, memory={**hub.memory, ABANDONED: abandoned}), {"step": [{"abandoned": 1.0}]}
        hub = replace(hub, memory={key: tensor for key, tensor in hub.memory.items() if key != ABANDONED})
        after, metrics, records = came.step(hub)
        for key, tensor in after.bank.items():
            if not bool(torch.isfinite(tensor).all()):
                raise FedquiltError(f"the aggregate of '{key}' overflowed", where=f"round {now.number}", fix="lower method.lr")
        return after, {"step": [dict(metrics)], **records}

    def _extra(self, updates: Updates, accepted: Sequence[Reply]) -> dict[str, Tensor]:
        """Fingerprints ``[n, d]`` if any came; NaN in the rows of those that sent theirs before."""
        came = {reply.slot: reply.fingerprint for reply in accepted if reply.fingerprint is not None}
        none = torch.full((self.fingerprint,), float("nan"))
        return {"fingerprint": torch.stack([came.get(slot, none) for slot in updates.origin])} if came else {}

    def _summary(self, now: Round, jobs: Sequence[Job], came: _Came, step: Mapping[str, Any]) -> dict[str, Any]:
        """One line of rounds.jsonl: deterministic, no wall clock."""
        sums = self.meter.round_bytes()
        return {
            "round": now.number,
            "cohort": sorted({job.slot.client for job in jobs}),
            "jobs": len(jobs),
            "accepted": came.usable,
            "rejected": [{"slot": list(r.slot), "code": r.code, "detail": r.detail} for r in came.rejected],
            "loss": came.loss,
            "bytes_up": sums["up"],
            "bytes_down": sums["down"],
            "total_up": self.meter.total_up,
            "total_down": self.meter.total_down,
            "client_bytes": {str(client): dict(counts) for client, counts in sorted(self.meter.clients.items())},
            "step": dict(step),
        }
