"""Which examples a slot sees in which step: a function of (seed, slot, round, step) alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from fedquilt.data.encode import Examples, Task
from fedquilt.data.view import SlotData
from fedquilt.local import Local
from fedquilt.rng import derive, numpy_generator
from fedquilt.types import Batch, Job


class Sampler:
    """Batches of slots. Examples are shuffled anew in every pass; the last batch of a pass is short rather than dropped."""

    def __init__(self, tasks: Mapping[str, Task], local: Local, seed: int) -> None:
        self.tasks, self.local, self.seed = tasks, local, seed

    def batches(self, job: Job, data: SlotData, steps: int, heads: Mapping[str, int]) -> Iterator[Batch]:
        """``steps`` batches of this slot in this round; owner is 0, the caller renumbers."""
        names = list(data.tasks)
        task_of = np.concatenate([np.full(len(index), i) for i, (_, index) in enumerate(data.parts)])
        example = np.concatenate([index for _, index in data.parts])
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


def assemble(rows: Sequence[tuple[Task, int, int]], key: int, *, split: str = "train") -> Batch:
    """(task, head, example) rows as one batch; dropout keys are ``key`` plus the row's place."""
    tokens, types, lengths, labels = [], [], [], []
    for task, _, index in rows:
        examples: Examples = getattr(task, split)
        begin, end = int(examples.offsets[index]), int(examples.offsets[index + 1])
        tokens.append(examples.tokens[begin:end])
        types.append(examples.types[begin:end])
        lengths.append(end - begin)
        labels.append(float(examples.labels[index]))
    n = len(rows)
    return Batch(
        tokens=torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        types=torch.from_numpy(np.concatenate(types).astype(np.int64)),
        lengths=torch.tensor(lengths),
        labels=torch.tensor(labels, dtype=torch.float64),
        classes=torch.tensor([task.classes for task, _, _ in rows]),
        owner=torch.zeros(n, dtype=torch.long),
        head=torch.tensor([head for _, head, _ in rows]),
        keys=_row_keys(key, n),
    )


def _row_keys(key: int, n: int) -> torch.Tensor:
    from fedquilt.models.dropout import mix

    return mix(torch.tensor(key) + torch.arange(n))
