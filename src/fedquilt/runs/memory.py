"""How much memory a run will need, from what is loaded and what is about to be computed. An estimate: benchmarks/memory.py
holds it against what runs took."""

from __future__ import annotations

import numpy as np

from fedquilt.engine.base import InProcess
from fedquilt.engine.process import ProcessEngine
from fedquilt.evaluate import EVALUATION_TOKENS
from fedquilt.models.heap import SLACK, held, trimmer
from fedquilt.models.room import ALLOCATOR, model_bytes, pass_bytes, token_bytes
from fedquilt.runs.build import Built
from fedquilt.types import Round, Slot


def peak(built: Built) -> int:
    """Bytes at most: what the process holds with model and data loaded, and the larger of a training and an evaluation pass, with
    what the allocator keeps of earlier ones.

    Workers hold as much and train; their parent evaluates."""
    own, engine = held() or model_bytes(built.base), built.engine
    evaluation = grown(EVALUATION_TOKENS * pass_bytes(built.base))
    if isinstance(engine, ProcessEngine):
        return own + evaluation + engine.count * (own + grown(training(built, engine.inner, engine.count))) + slots(built)
    return own + max(grown(training(built, engine)), evaluation) + slots(built)


def grown(once: int) -> int:
    """What passes of up to ``once`` bytes come to."""
    kept = int((ALLOCATOR - 1) * once)
    return once + (min(kept, SLACK) if trimmer() else kept)


def training(built: Built, engine: InProcess, workers: int = 1) -> int:
    """Activations of the largest pass of one of ``workers``, on the host."""
    return tokens(engine, built, workers) * token_bytes(built.base) if built.network.device.type == "cpu" else 0


def tokens(engine: InProcess, built: Built, workers: int = 1) -> int:
    """Tokens of the largest pass: those of the largest batches side by side, as far as the engine takes them together."""
    if getattr(engine, "one_by_one", False):  # never cut
        return max(batch_tokens(built, slot) for slot in built.view.slots)
    sizes = sorted((batch_tokens(built, slot) for slot in built.view.slots), reverse=True)
    together = min(getattr(engine, "together", 1), built.config.cohort - workers + 1)
    budget = getattr(engine, "token_budget", sizes[0])
    return min(sum(sizes[:together]), max(budget, 1))


def batch_tokens(built: Built, slot: Slot) -> int:
    """Tokens of a slot's batch, if its rows are of average length."""
    data = built.view.data(slot, built.config.rounds)
    lengths = np.concatenate([built.tasks[name].train.lengths[index] for name, index in data.parts])
    return int(min(built.method.local.batch, len(lengths)) * (lengths.mean() + built.adapter.virtual))


def slots(built: Built) -> int:
    """Parameter, gradient, change and two moments of every slot that trains at the same time, and all that come back."""
    names = built.program.client.train(Round(1, built.config.seed))
    trained = sum(leaf.size * leaf.dtype.itemsize for leaf in built.adapter.spec.only(names))
    return trained * (5 * min(len(built.view.slots), built.config.cohort) + len(built.view.slots))
