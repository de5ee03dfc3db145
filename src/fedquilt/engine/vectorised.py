"""Many slots at once: their adapters are stacked ``[G, ...]``, their rows share one pass over the frozen base.

Each step takes one batch of every active slot, cuts them into micro-batches of whole slots that fit a token budget, and
accumulates gradients; the optimiser then moves all active slots in one elementwise update. Slots with fewer steps rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.engine.base import InProcess, Trained, Work, starts
from fedquilt.engine.batches import Draw, join
from fedquilt.models.fingerprint import Fisher, Look
from fedquilt.models.loss import cut
from fedquilt.models.room import COLUMN_BUDGET, TOKEN_BUDGET
from fedquilt.ticks import Tick
from fedquilt.types import Batch, Stack, State

LANES = 64  # adapters in one pass, where no columns are counted


@dataclass(frozen=True)
class Piece:
    """Rows of some slots that go through the model together; ``share [g]`` is the part of each slot's batch they are."""

    slots: Tensor
    batch: Batch
    share: Tensor


class VectorisedEngine(InProcess):
    """Same results as the sequential engine up to rounding; bit for bit the same from run to run."""

    packed = True

    def __init__(
        self,
        *args: Any,
        one_by_one: bool = False,
        token_budget: int = TOKEN_BUDGET,
        column_budget: int = COLUMN_BUDGET,
        virtual: int = 0,
        **kwargs: Any,
    ) -> None:
        """``virtual``: tokens that the model puts before every row."""
        super().__init__(*args, **kwargs)
        self.one_by_one, self.token_budget, self.virtual = one_by_one, token_budget, virtual
        lanes = max(1, column_budget // self.spec.rank) if self.spec.pairs() else LANES
        self.together = 1 if one_by_one else lanes  # adapters in one pass

    def train(self, works: Sequence[Work]) -> list[Trained]:
        """All works side by side; one after the other if one of them diverges: in the products that all share, what is no number in
        one adapter is none in any."""
        done, finite = self._side_by_side(works, self.tick)
        if finite or len(works) == 1:
            return done
        return [self._side_by_side([work], lambda _: self.tick(0))[0][0] for work in works]

    def _side_by_side(self, works: Sequence[Work], tick: Tick) -> tuple[list[Trained], bool]:
        """Works after their steps, and whether all of it is numbers."""
        local, now = self.client.local, works[0].job.round
        names = self.client.train(now)
        x, frozen = map(self.there, starts(works, names))
        begun = x
        fresh = local.init(x)  # of some, where others have trained before and keep their optimiser
        before = [work.moments for work in works]
        if any(before):
            fresh = tree.stack([tree.row(fresh, g) if own is None else self.there(own) for g, own in enumerate(before)])
        moments: Stack = fresh
        streams = [self.sampler.draws(work.job, work.data, work.steps, self.heads) for work in works]
        steps = torch.tensor([work.steps for work in works])
        total = torch.zeros(len(works), dtype=torch.float64, device=self.network.device)
        for step in range(int(steps.max())):
            active = steps > step
            draws = {g: next(streams[g]) for g in torch.nonzero(active).flatten().tolist()}
            grads, losses = self._gradients(x, frozen, draws)
            x, moments = local.step(x, grads, moments, local.rate(now), tree.there(active, total.device))
            total += losses
            tick(len(draws))
        means = (total.cpu() / steps).tolist()
        x, delta, moments = (tree.map_leaves(Tensor.cpu, stack) for stack in (x, tree.sub(x, begun), moments))
        kept: Sequence[State] = tree.unstack(moments) if moments and local.memory == "persist" else [{}] * len(works)
        finite = all(map(math.isfinite, means)) and tree.finite(x)
        return [Trained(*own) for own in zip(tree.unstack(x), tree.unstack(delta), kept, means, strict=True)], finite

    def look(self, how: Look, works: Sequence[Work]) -> list[Tensor]:
        """Squared gradients of many batches of all works side by side; other ways of looking slot by slot."""
        if not isinstance(how, Fisher):
            return super().look(how, works)
        x, frozen = map(self.there, starts(works, how.names))
        squares = torch.zeros(len(works), how.size, dtype=torch.float64)
        count: Counter[int] = Counter()
        seen = ((g, draw) for g, work in enumerate(works) for draw in self.seen(how, work))
        while some := list(islice(seen, self.together)):  # not all at once: images are large
            owner = torch.tensor([g for g, _ in some])
            own, still = (tree.rows(stack, owner) for stack in (x, frozen))  # every batch has its adapter
            grads, _ = self._gradients(own, still, {lane: draw for lane, (_, draw) in enumerate(some)})
            squares.index_add_(0, owner, torch.cat([grads[key].flatten(1) for key in how.names], 1).cpu().double().square())
            count.update(owner.tolist())
        return [how.seen(squares[g], count[g]) for g in range(len(works))]

    def _gradients(self, x: Stack, frozen: Stack, draws: dict[int, Draw]) -> tuple[dict[str, Tensor], Tensor]:
        """Gradient of every slot's own mean loss ``[G, ...]`` and the losses ``[G]``."""
        grads = {key: torch.zeros_like(tensor) for key, tensor in x.items()}
        device = self.network.device
        losses = torch.zeros(tree.length(x) if x else 0, dtype=torch.float64, device=device)
        for piece in self._pieces(draws):
            near = tree.neighbours(piece.slots.tolist())
            slots = tree.there(piece.slots, device) if near is None else near
            leaves = {key: tensor[slots].requires_grad_() for key, tensor in x.items()}
            still = {key: tensor[slots] for key, tensor in frozen.items()}
            loss = self.network.losses({**still, **leaves}, piece.batch) * tree.there(piece.share, device)
            got = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
            for key, grad in zip(leaves, got, strict=True):
                grads[key][slots] += grad
            losses[slots] += loss.detach().double()
            self.heap.settle()
        return grads, losses

    def _pieces(self, draws: dict[int, Draw]) -> list[Piece]:
        """Whole slots until the token budget is full; a slot above it is cut by rows."""
        pieces: list[Piece] = []
        bundle: list[tuple[int, Draw]] = []
        tokens = rows = longest = 0
        for slot, draw in draws.items():
            lengths = draw.lengths
            own, most = sum(lengths), max(lengths)
            size = self._size(tokens + own, rows + len(draw), max(longest, most))
            if bundle and (size > self.token_budget or len(bundle) == self.together):
                pieces += self._bundle(bundle)
                bundle, tokens, rows, longest = [], 0, 0, 0
            bundle.append((slot, draw))
            tokens, rows, longest = tokens + own, rows + len(draw), max(longest, most)
        return pieces + self._bundle(bundle)

    def _size(self, tokens: int, rows: int, longest: int) -> int:
        """Tokens of a pass; on a GPU, where attention may be padded, every row counts as the longest."""
        return tokens + self.virtual * rows if self.network.device.type == "cpu" else rows * (longest + self.virtual)

    def _bundle(self, bundle: list[tuple[int, Draw]]) -> list[Piece]:
        slots = torch.tensor([slot for slot, _ in bundle])
        whole = join([draw for _, draw in bundle])
        # A model that runs one adapter at a time may have masks shared by a batch (DeBERTa): never cut it.
        if self.one_by_one or len(bundle) > 1:
            return [Piece(slots, whole, torch.ones(len(bundle)))]
        return [
            Piece(slots, piece, torch.tensor([len(piece) / len(whole)]))
            for piece in cut(whole, self.token_budget, self.virtual, padded=self.network.device.type != "cpu")
        ]
