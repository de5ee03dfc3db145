"""Which examples a slot sees in which step: a function of (seed, slot, round, step) alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedquilt.data.encode import Examples, Task
from fedquilt.data.images import ImageExamples, gather
from fedquilt.data.view import SlotData
from fedquilt.local import Local
from fedquilt.rng import derive, numpy_generator
from fedquilt.types import Batch, Job, Slot


@dataclass(frozen=True)
class Draw:
    """A batch whose content is not read yet: many slots' are read together.

    Attributes:
        rows: (task, head, number of a training example).
        key: seed of the dropout masks; a row's is that of the key plus the row's place.
    """

    rows: Sequence[tuple[Task, int, int]]
    key: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row."""
        return [task.train.length(index) for task, _, index in self.rows]

    def batch(self) -> Batch:
        """With its content."""
        return join([self])


class Sampler:
    """Draws of slots. Examples are shuffled anew in every pass; the last batch of a pass is short rather than dropped."""

    def __init__(self, tasks: Mapping[str, Task], local: Local, seed: int) -> None:
        self.tasks, self.local, self.seed = tasks, local, seed

    def draws(self, job: Job, data: SlotData, steps: int, heads: Mapping[str, int]) -> Iterator[Draw]:
        """``steps`` batches of this slot in this round."""
        tasks, (task_of, example) = [(self.tasks[name], heads.get(name, 0)) for name in data.tasks], _flat(data)
        place = (job.slot.client, job.slot.number, job.round.number)
        done = 0
        while done < steps:
            order = numpy_generator(self.seed, "shuffle", *place, done).permutation(len(example))
            for begin in range(0, len(order), self.local.batch):
                if done == steps:
                    return
                rows = order[begin : begin + self.local.batch]
                key = derive(self.seed, "dropout", *place, done)
                yield Draw([(*tasks[t], e) for t, e in zip(task_of[rows].tolist(), example[rows].tolist(), strict=True)], key)
                done += 1

    def some(self, slot: Slot, data: SlotData, most: int) -> Iterator[Draw]:
        """At most ``most`` of the slot's training examples, drawn from the seed; batches of the local batch size."""
        tasks, (task_of, example) = [self.tasks[name] for name in data.tasks], _flat(data)
        rows = numpy_generator(self.seed, "some", slot.client, slot.number).permutation(len(example))[:most]
        key = derive(self.seed, "some", slot.client, slot.number)
        for begin in range(0, len(rows), self.local.batch):
            part = rows[begin : begin + self.local.batch]
            yield Draw([(tasks[t], 0, e) for t, e in zip(task_of[part].tolist(), example[part].tolist(), strict=True)], key + begin)


def _flat(data: SlotData) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of every example its task's place among the slot's, and its number."""
    parts = [index for _, index in data.parts]
    return np.repeat(np.arange(len(parts)), [len(index) for index in parts]), np.concatenate(parts)


def assemble(rows: Sequence[tuple[Task, int, int]], key: int, *, split: str = "train") -> Batch:
    """(task, head, example) rows as one batch; dropout keys are ``key`` plus the row's place."""
    return join([Draw(rows, key)], split)


def join(draws: Sequence[Draw], split: str = "train") -> Batch:
    """The rows of some draws, one draw after the other; their owners are 0, 1, ..."""
    rows = [row for draw in draws for row in draw.rows]
    count = torch.tensor([len(draw) for draw in draws])
    owner = torch.repeat_interleave(count)
    place = torch.arange(len(rows)) - (count.cumsum(0) - count)[owner]
    examples = [(getattr(task, split), index) for task, _, index in rows]
    content = gather(examples) if isinstance(examples[0][0], ImageExamples) else _texts(examples)
    return Batch(
        **content,
        labels=torch.tensor([float(of.labels[index]) for of, index in examples], dtype=torch.float64),
        classes=torch.tensor([task.classes for task, _, _ in rows]),
        owner=owner,
        head=torch.tensor([head for _, head, _ in rows]),
        keys=_row_keys(torch.tensor([draw.key for draw in draws])[owner] + place),
    )


def _texts(rows: Sequence[tuple[Examples, int]]) -> dict[str, torch.Tensor]:
    """Tokens of some examples one after the other, and their lengths: the content of a batch."""
    spans = [(of, int(of.offsets[index]), int(of.offsets[index + 1])) for of, index in rows]
    return {
        "tokens": torch.from_numpy(np.concatenate([of.tokens[begin:end] for of, begin, end in spans]).astype(np.int64)),
        "types": torch.from_numpy(np.concatenate([of.types[begin:end] for of, begin, end in spans]).astype(np.int64)),
        "lengths": torch.tensor([end - begin for _, begin, end in spans]),
    }


def _row_keys(counters: torch.Tensor) -> torch.Tensor:
    from fedquilt.models.dropout import mix

    return mix(counters)
