"""What a run would cost, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedquilt.meter import fingerprint_size
from fedquilt.method import ClientPlan
from fedquilt.runs.build import build
from fedquilt.runs.config import RunConfig
from fedquilt.types import Round, Spec
from fedquilt.wire import message


@dataclass(frozen=True)
class Plan:
    """Clients, parameters, bytes, memory.

    Attributes:
        rows: one per client: ``{"client", "slots", "<task>": samples...}``.
        parameters: of one adapter: adapter, head, total; all rows of the bank: bank.
        up, down: bytes per client and round, ``{client: bytes}``, if the client takes part; with all tasks that ever arrive.
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
    built = build(config)
    spec, client, now = built.adapter.spec, built.program.client, Round(1, config.seed)
    size = message_size(spec, client, now)
    roster = built.view.roster(config.rounds)
    counts = built.partition.counts()
    rows = tuple(
        {"client": c, "slots": roster.get(c, 0), **{name: counts[name][c] for name in sorted(counts)}}
        for c in range(built.partition.clients)
    )
    notes = [f"{name}: {note}" for name, task in built.tasks.items() for note in task.notes]
    notes += [f"client {row['client']} has no data and takes no part" for row in rows if not row["slots"]]
    if client.fingerprint:
        more = fingerprint_size(built.fingerprint)
        notes.append(f"every slot sends a fingerprint of its data once: {more:,} bytes more in its first upload")
    sizes = {message_size(spec, client, Round(number, config.seed)) for number in range(1, config.rounds + 1)}
    if len(sizes) > 1:
        notes.append(f"what travels changes from round to round: {min(sizes):,} to {max(sizes):,} bytes a slot; shown is round 1")
    trained = [leaf for leaf in spec.leaves if leaf.name in client.train(now)]
    return Plan(
        method=repr(built.method),
        clients=built.partition.clients,
        slots=len(built.view.slots),
        rows=rows,
        parameters={**spec.counts(), "bank": spec.size() * built.method.assign.rows},
        up={c: n * size for c, n in roster.items()},
        down={c: n * size for c, n in roster.items()},
        steps=built.count_steps(),
        memory=_memory(built, sum(leaf.size for leaf in trained)),
        notes=tuple(notes),
    )


def message_size(spec: Spec, client: ClientPlan, now: Round) -> int:
    """Bytes of one slot's message in a round, either way; 0 when nothing travels."""
    shared = set(client.share(now))
    return message.size([leaf for leaf in spec.leaves if leaf.name in shared]) if shared else 0


def _memory(built: Any, trained: int) -> int:
    """Base weights + activations of one micro-batch + parameter, gradient and two moments of every slot in a cohort.

    Activations: 13 numbers of hidden size per token and layer, measured on a 6 x 384 BERT; an estimate elsewhere.
    """
    model, size = built.base.model, built.base.dtype.itemsize
    base = sum(p.numel() * p.element_size() for p in model.parameters())
    longest = built.base.transform.tokens if built.base.transform else built.config.model.max_length
    tokens = getattr(built.engine, "token_budget", 0) or built.method.local.batch * longest
    activations = tokens * 13 * int(model.config.hidden_size) * int(model.config.num_hidden_layers) * size
    slots = min(len(built.view.slots), built.config.cohort)
    return int(base + activations + 4 * slots * trained * size)
