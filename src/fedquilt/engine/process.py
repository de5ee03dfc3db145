"""Several processes that train side by side on one machine; each holds a base model and an engine of its own.

What travels is :class:`Work`: a job with all tensors its training begins from. A worker keeps nothing between two errands, so one
that dies is replaced and its errand given again, and no result depends on which worker did what (up to rounding where slots share
a pass; not at all with the sequential engine).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from subprocess import Popen, TimeoutExpired
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from fedquilt import tree
from fedquilt.engine.base import InProcess, Trained, Work
from fedquilt.errors import FedquiltError
from fedquilt.models.fingerprint import Look
from fedquilt.types import Job, State

TRIES = 3  # of one errand, before the machine is taken to be the reason
GRACE = 10.0  # seconds that a worker has to end by itself
PATIENCE = 0.5  # seconds between two looks at whether somebody wants to stop
READY, TICK, DONE, ERROR = "ready", "tick", "done", "error"
GONE = (EOFError, ConnectionError)


@dataclass
class Worker:
    """A process and the pipe to it; ready once it has said so."""

    process: Popen[bytes]
    pipe: Connection
    ready: bool = False

    def end(self) -> int:
        """Its exit code: it ends when its pipe is closed, and what does not is killed."""
        self.pipe.close()
        with suppress(TimeoutExpired):
            return self.process.wait(GRACE)
        self.process.kill()
        return self.process.wait()


Hire = Callable[[int], Worker]  # starts worker number i
Asked = tuple[str, tuple[Job, ...], bytes, tuple[bool, ...], bytes]  # what to do, jobs, starts, who has moments, moments


@dataclass
class Errand:
    """Works for one worker, and how far it has come.

    Attributes:
        told: steps that were told to whoever waits; a worker that begins again tells nothing until it is further.
        done: steps of this try.
        lost: workers that were killed over it.
    """

    message: Asked
    told: int = 0
    done: int = 0
    lost: int = 0
    result: list[Any] | None = None


class ProcessEngine(InProcess):
    """Gives what an engine of this process would train to workers.

    Args:
        inner: what each worker has, too; here it is asked about passes, never to train.
        hire: starts a worker. Workers start with the first training and end with :meth:`close`.
        warn: told when a worker had to be replaced.
    """

    def __init__(self, inner: InProcess, count: int, hire: Hire, warn: Callable[[str], None] = lambda _: None) -> None:
        shared = (inner.view, inner.spec, inner.client, inner.network, inner.sampler.seed)
        super().__init__(*shared, inner.cohort, inner.tick, inner.fingerprint)
        self.inner, self.count, self.hire, self.warn = inner, count, hire, warn
        self.workers: dict[int, Worker] = {}

    def train(self, works: Sequence[Work]) -> list[Trained]:
        """All works, each worker a part of about as many steps."""
        return self._everywhere("train", works)

    def look(self, how: Look, works: Sequence[Work]) -> list[Tensor]:
        """Fingerprints, by the workers."""
        return self._everywhere("look", works)

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers.values():
            worker.pipe.close()  # all at once
        for worker in self.workers.values():
            worker.end()
        self.workers = {}

    def _everywhere(self, what: str, works: Sequence[Work]) -> list[Any]:
        """One result per work, in their order."""
        parts = shares([work.steps for work in works], self.count)
        errands = {i: Errand(_asked(what, [works[g] for g in part])) for i, part in enumerate(parts)}
        try:
            for i, errand in errands.items():
                self._give(i, errand)
            while waiting := {self.workers[i].pipe: i for i, errand in errands.items() if errand.result is None}:
                self.tick(0)  # whoever wants to stop need not wait for a worker
                for pipe in wait(list(waiting), PATIENCE):
                    i = waiting[pipe]  # type: ignore[index]  # typeshed: wait may return sockets
                    self._hear(i, errands[i])
        except BaseException:  # interrupted, too: what is under way must not answer a later question
            self.close()
            raise
        found = {g: x for i, part in enumerate(parts) for g, x in zip(part, errands[i].result or [], strict=True)}
        return [found[g] for g in range(len(works))]

    def _give(self, i: int, errand: Errand) -> None:
        """To worker ``i``: now, or when it is ready."""
        if i not in self.workers:
            self.workers[i] = self.hire(i)
        if not self.workers[i].ready:
            return
        try:
            self.workers[i].pipe.send(errand.message)
        except GONE:
            self._lost(i, errand)

    def _hear(self, i: int, errand: Errand) -> None:
        """The next thing that worker ``i`` says."""
        try:
            said, content = self.workers[i].pipe.recv()
        except GONE:
            self._lost(i, errand)
            return
        if said == READY:
            self.workers[i].ready = True
            self._give(i, errand)
        elif said == TICK:
            errand.done += content
            fresh = max(0, errand.done - errand.told)
            errand.told += fresh
            self.tick(fresh)
        elif said == DONE:
            errand.result = _unpacked(content)
        else:
            kind, fields = content
            raise kind(fields.pop("what"), **fields)

    def _lost(self, i: int, errand: Errand) -> None:
        """Replace a worker that died.

        Raises:
            FedquiltError: it ended by itself, or others died of the same errand before.
        """
        code = self.workers.pop(i).end()
        errand.lost, errand.done = errand.lost + 1, 0
        if code >= 0:
            raise FedquiltError(
                f"worker process {i} ended with exit code {code}",
                where="workers",
                why="an error that is shown above",
                fix="set workers = 1 to see it in this process",
            )
        if errand.lost == TRIES:
            raise FedquiltError(
                f"worker process {i} was killed {TRIES} times over the same work",
                where="workers",
                why=f"the last time by signal {-code}; 9 is what a system that is out of memory sends",
                fix="use fewer workers, or a smaller cohort",
            )
        self.warn(f"warning: worker process {i} was killed (signal {-code}); its work is given to a new one")
        self._give(i, errand)


def serve(pipe: Connection, engine: InProcess) -> None:
    """A worker's life: answers what comes through the pipe until that closes."""
    engine.tick = lambda count: pipe.send((TICK, count))
    with suppress(*GONE):
        pipe.send((READY, None))
        while True:
            message = pipe.recv()
            try:
                pipe.send((DONE, _answer(engine, message)))
            except FedquiltError as error:
                pipe.send((ERROR, (type(error), {name: getattr(error, name) for name in ("what", "where", "why", "fix")})))


def shares(steps: Sequence[int], count: int) -> list[list[int]]:
    """Works for each worker, most steps first to whoever has least; in order within a share. No share is empty.

    >>> shares([5, 1, 1, 4, 1], 2)
    [[0, 2], [1, 3, 4]]
    """
    parts: list[list[int]] = [[] for _ in range(min(count, len(steps)))]
    load = [0] * len(parts)
    for g in sorted(range(len(steps)), key=lambda g: (-steps[g], g)):
        least = load.index(min(load))
        parts[least].append(g)
        load[least] += steps[g]
    return [sorted(part) for part in parts]


def _asked(what: str, works: Sequence[Work]) -> Asked:
    moments = [work.moments for work in works if work.moments is not None]
    has = tuple(work.moments is not None for work in works)
    return what, tuple(work.job for work in works), _packed([work.start for work in works]), has, _packed(moments)


def _answer(engine: InProcess, asked: Asked) -> tuple[Any, ...]:
    what, jobs, begun, has, kept = asked
    starts, moments = _states(begun, len(jobs)), iter(_states(kept, sum(has)))
    works = [
        Work(job, engine.view.data(job.slot, job.round.number), start, next(moments) if own else None, engine.steps(job), {})
        for job, start, own in zip(jobs, starts, has, strict=True)
    ]
    if what == "look" and engine.fingerprint is not None:
        return len(works), _packed([{"": x} for x in engine.look(engine.fingerprint, works)])
    done = engine.train(works)
    packed = (_packed([getattr(one, name) for one in done]) for name in ("state", "delta", "moments"))
    return len(works), *packed, [one.loss for one in done]


def _unpacked(content: tuple[Any, ...]) -> list[Any]:
    """The inverse of what :func:`_answer` gives."""
    count, *packed = content
    if len(packed) == 1:
        return [state[""] for state in _states(packed[0], count)]
    *states, losses = packed
    return [Trained(*one) for one in zip(*(_states(part, count) for part in states), losses, strict=True)]


def _packed(states: Sequence[State]) -> bytes:
    """States of equal leaves as one stack."""
    return save(tree.stack(states)) if states else b""


def _states(data: bytes, count: int) -> Sequence[State]:
    """The inverse of :func:`_packed`."""
    stack = load(data) if data else {}
    return tree.unstack(stack) if stack else [{} for _ in range(count)]
