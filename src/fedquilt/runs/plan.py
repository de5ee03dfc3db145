"""What a run would cost, before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedquilt.data.partition import refuse_own, without_data
from fedquilt.delivery import Delivery
from fedquilt.meter import Meter, fingerprint_size
from fedquilt.method import ClientPlan
from fedquilt.privacy.sums import traffic as traffic_of_a_sum
from fedquilt.runs.build import build
from fedquilt.runs.config import RunConfig
from fedquilt.runs.memory import peak
from fedquilt.types import Job, Round, Slot, Spec


@dataclass(frozen=True)
class Plan:
    """Clients, parameters, bytes, memory.

    Attributes:
        rows: one per client: ``{"client", "slots", "<task>": samples...}``.
        parameters: of one adapter: adapter, head, total; all rows of the bank: bank.
        up, down: bytes per client and round, ``{client: bytes}``, if the client takes part in every round; means over the rounds,
            with all tasks that ever arrive.
        steps: local steps of the whole run (all slots, all rounds, full participation).
        memory: estimated peak bytes.
    """

    method: str
    clients: int
    slots: int
    rows: tuple[Mapping[str, Any], ...]
    parameters: Mapping[str, int]
    up: Mapping[int, int]
    down: Mapping[int, int]
    steps: int
    memory: int
    notes: tuple[str, ...]


def plan(config: RunConfig) -> Plan:
    """Load data and model, partition, compose (so every configuration error shows), train nothing."""
    refuse_own(config.partition)
    built = build(config)
    spec, client = built.adapter.spec, built.program.client
    sizes = traffic(spec, client, config.rounds, config.seed)
    ups, downs = zip(*sizes, strict=True)
    roster = built.view.roster(config.rounds)
    counts = built.partition.counts()
    rows = tuple(
        {"client": c, "slots": roster.get(c, 0), **{name: counts[name][c] for name in sorted(counts)}}
        for c in range(built.partition.clients)
    )
    notes = [*built.base.notes]
    notes += [f"{name}: {note}" for name, task in built.tasks.items() for note in task.notes]
    idle = [c for c in range(built.partition.clients) if not roster.get(c, 0)]
    notes += [without_data(idle, built.partition.clients)] if idle else []
    if client.fingerprint and not client.summed:
        more = fingerprint_size(built.fingerprint)
        notes.append(f"every slot sends a fingerprint of its data once: {more:,} bytes more in its first upload")
    up = {c: mean([n * size for size in ups]) for c, n in roster.items()}
    down = {c: mean([n * size for size in downs]) for c, n in roster.items()}
    if client.summed:
        vector, more, said = summed(config, spec, client, len(up), built.fingerprint)
        up, down = dict.fromkeys(up, vector), {c: more + (0 if client.choose else size) for c, size in down.items()}
        notes += said
    for way, found in (("up", ups), ("down", downs)):
        if len(set(found)) > 1 and not client.summed:
            what = f"{min(found):,} to {max(found):,} bytes a slot {way}"
            notes.append(f"what travels changes from round to round: {what}; shown is the mean")
    return Plan(
        method=repr(built.method),
        clients=built.partition.clients,
        slots=len(built.view.slots),
        rows=rows,
        parameters={**spec.counts(), "bank": spec.size() * built.method.assign.rows},
        up=up,
        down=down,
        steps=built.count_steps(),
        memory=peak(built),
        notes=tuple(notes),
    )


def traffic(spec: Spec, client: ClientPlan, rounds: int, seed: int) -> list[tuple[int, int]]:
    """Bytes (up, down) of every round for a slot that is always there, if all that is sent up changes its row."""
    meter, delivery = Meter(spec), Delivery(spec, client)
    slot, sizes = Slot(0, 0), []
    for number in range(1, rounds + 1):
        now = Round(number, seed)
        shared = client.share(now)
        sent = delivery.send([Job(slot, 0, now)], now)[slot].leaves
        sizes.append((meter.size(shared), meter.size(sent)))
        delivery.changes.update({name: [number] for name in shared})
    return sizes


def summed(config: RunConfig, spec: Spec, client: ClientPlan, clients: int, look: int) -> tuple[int, int, list[str]]:
    """Bytes up, and bytes down beside what is sent to every slot, where so many clients add up among themselves: vectors instead of
    changes, and what the protocol takes. ``look``: numbers of a fingerprint."""
    numbers = [client.layout(spec, Round(number, config.seed)).size for number in range(1, config.rounds + 1)]
    more_down, up = traffic_of_a_sum(clients, mean(numbers))
    if not client.choose:
        return up, more_down, []
    note = (
        "clients find clusters before the first round and whenever somebody new comes: several sums more, about as much as a round"
    )
    return up, more_down + client.offer(spec, Round(1, config.seed), look), [note]


def mean(values: Sequence[int]) -> int:
    """To the nearest whole number."""
    return round(sum(values) / len(values))
