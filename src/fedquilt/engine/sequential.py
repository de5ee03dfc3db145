"""The debug reference: one slot after the other through the padded peft model. Slow, short, and the oracle of the fast engines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.engine.base import InProcess, Trained, Work
from fedquilt.types import Stack


class SequentialEngine(InProcess):
    """Every slot's bits depend on the slot alone: not on the order of slots, nor on how many are trained together."""

    packed = False

    def train(self, works: Sequence[Work]) -> list[Trained]:
        """One work after the other."""
        return [self._one(work) for work in works]

    def _one(self, work: Work) -> Trained:
        local, now = self.client.local, work.job.round
        names = self.client.train(now)
        x: Stack = self.there(tree.stack([tree.select(work.start, names)]))
        begun = x
        frozen = self.there({key: tensor[None] for key, tensor in work.start.items() if key not in x})
        moments = local.init(x) if work.moments is None else self.there(tree.stack([work.moments]))
        active = torch.ones(1, dtype=torch.bool, device=self.network.device)
        losses = []
        for draw in self.sampler.draws(work.job, work.data, work.steps, self.heads):
            leaves = {key: tensor.detach().requires_grad_() for key, tensor in x.items()}
            loss = self.network.losses({**frozen, **leaves}, draw.batch())
            grads = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
            x, moments = local.step(x, dict(zip(leaves, grads, strict=True)), moments, local.rate(now), active)
            losses.append(loss.item())
            self.heap.settle()
            self.tick(1)
        state, delta, after = (tree.row(tree.map_leaves(Tensor.cpu, stack), 0) for stack in (x, tree.sub(x, begun), moments))
        return Trained(state, delta, after, sum(losses) / len(losses))
