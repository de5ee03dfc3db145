"""Which examples a slot sees in which step: a function of (seed, slot, round, step) alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedquilt.data.encode import Examples, Task
from fedquilt.data.images import ImageExamples, gather
from fedquilt.data.view import SlotData
from fedquilt.local import Local
from fedquilt.rng import derive, numpy_generator
from fedquilt.types import Batch, Job, Slot


class Sampler:
    """Batches of slots. Examples are shuffled anew in every pass; the last batch of a pass is short rather than dropped."""

    def __init__(self, tasks: Mapping[str, Task], local: Local, seed: int) -> None:
        self.tasks, self.local, self.seed = tasks, local, seed

    def batches(self, job: Job, data: SlotData, steps: int, heads: Mapping[str, int]) -> Iterator[Batch]:
        """``steps`` batches of this slot in this round; owner is 0, the caller renumbers."""
        names, task_of, example = _flat(data)
        place = (job.slot.client, job.slot.number, job.round.number)
        done = 0
        while done < steps:
            order = numpy_generator(self.seed, "shuffle", *place, done).permutation(len(example))
            for begin in range(0, len(order), self.local.batch):
                if done == steps:
                    return
                rows = order[begin : begin + self.local.batch]
                key = derive(self.seed, "dropout", *place, done)
                chosen = [
                    (self.tasks[names[t]], heads.get(names[t], 0), e) for t, e in zip(task_of[rows], example[rows], strict=True)
                ]
                yield assemble(chosen, key)
                done += 1

    def some(self, slot: Slot, data: SlotData, most: int) -> Iterator[Batch]:
        """At most ``most`` of the slot's training examples, drawn from the seed; batches of the local batch size."""
        names, task_of, example = _flat(data)
        rows = numpy_generator(self.seed, "some", slot.client, slot.number).permutation(len(example))[:most]
        key = derive(self.seed, "some", slot.client, slot.number)
        for begin in range(0, len(rows), self.local.batch):
            part = rows[begin : begin + self.local.batch]
            yield assemble([(self.tasks[names[t]], 0, e) for t, e in zip(task_of[part], example[part], strict=True)], key + begin)


def _flat(data: SlotData) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Names of the tasks, and of every example its task's number and its own."""
    task_of = np.concatenate([np.full(len(index), i) for i, (_, index) in enumerate(data.parts)])
    return list(data.tasks), task_of, np.concatenate([index for _, index in data.parts])


def assemble(rows: Sequence[tuple[Task, int, int]], key: int, *, split: str = "train") -> Batch:
    """(task, head, example) rows as one batch; dropout keys are ``key`` plus the row's place."""
    n = len(rows)
    examples = [(getattr(task, split), index) for task, _, index in rows]
    content = gather(examples) if isinstance(examples[0][0], ImageExamples) else _texts(examples)
    return Batch(
        **content,
        labels=torch.tensor([float(of.labels[index]) for of, index in examples], dtype=torch.float64),
        classes=torch.tensor([task.classes for task, _, _ in rows]),
        owner=torch.zeros(n, dtype=torch.long),
        head=torch.tensor([head for _, head, _ in rows]),
        keys=_row_keys(key, n),
    )


def _texts(rows: Sequence[tuple[Examples, int]]) -> dict[str, torch.Tensor]:
    """Tokens of some examples one after the other, and their lengths: the content of a batch."""
    spans = [(of, int(of.offsets[index]), int(of.offsets[index + 1])) for of, index in rows]
    return {
        "tokens": torch.from_numpy(np.concatenate([of.tokens[begin:end] for of, begin, end in spans]).astype(np.int64)),
        "types": torch.from_numpy(np.concatenate([of.types[begin:end] for of, begin, end in spans]).astype(np.int64)),
        "lengths": torch.tensor([end - begin for _, begin, end in spans]),
    }


def _row_keys(key: int, n: int) -> torch.Tensor:
    from fedquilt.models.dropout import mix

    return mix(torch.tensor(key) + torch.arange(n))
