"""The reference way to run a causal language model: padded rows, the unmodified transformers forward, LoRA by peft.

The loss of a row is the mean over its response tokens (transformers' own loss of that row alone, with -100 in the prompt's
labels), and an adapter's loss the mean over its rows: a short answer counts as much as a long one, and a batch may be cut into
passes anywhere. Held-out losses are means over tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from fedquilt import tree
from fedquilt.models.greedy import greedy, prompts_of
from fedquilt.models.loading import CPU, Base
from fedquilt.models.loss import slot_means
from fedquilt.models.padded import Padded, pad
from fedquilt.types import Batch, Stack, State

if TYPE_CHECKING:
    from fedquilt.adapters.base import Adapter

ROWS = 8  # in one forward: all logits [ROWS, L, V] are there at once


class PaddedCausal(Padded):
    """Losses, logits and generation of stacked adapters, one adapter after the other."""

    def __init__(self, base: Base, adapter: Adapter, device: torch.device = CPU) -> None:
        super().__init__(base, adapter, device)
        self.end = int(base.tokenizer.eos_token_id)

    def losses(self, stack: Stack, batch: Batch) -> Tensor:
        """Mean over each adapter's rows of the row's mean response-token loss ``[G]``; dropout active."""
        sums, counts = self._sums(stack, batch, train=True)
        return slot_means(sums / self.there(counts), batch.owner, tree.length(stack))

    def token_losses(self, stack: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss and number of response tokens of each row ``[n]``, without dropout and gradients."""
        with torch.no_grad():
            sums, counts = self._sums(stack, batch, train=False)
        return sums.cpu(), counts

    def logits(self, stack: Stack, batch: Batch) -> Tensor:
        """Logits that predict each row's response tokens ``[n, R, V]``, zeros behind the last; no dropout, no gradients."""
        with torch.no_grad():
            parts = [logits for logits, _ in self._responses(stack, batch, train=False)]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).cpu()

    def generate(self, stack: Stack, batch: Batch, max_new: int) -> list[list[int]]:
        """Greedy continuations of the rows' prompts by one adapter, without the end token."""
        state = tree.map_leaves(self.there, tree.row(stack, 0))
        values = self._values(state, 0)

        def call(**inputs: object) -> object:
            inputs = {key: self.there(x) if isinstance(x, Tensor) else x for key, x in inputs.items()}
            with self.masks.active(None, None):
                return functional_call(self.model, values, (), inputs)

        prompts, shift = prompts_of(self._begun(batch)), self.prompt.shift if self.prompt else 0
        return greedy(call, prompts, max_new=max_new, end=self.end, dtype=self.dtype, shift=shift)

    def _sums(self, stack: Stack, batch: Batch, *, train: bool) -> tuple[Tensor, Tensor]:
        found = self._responses(stack, batch, train=train)
        sums = [F.cross_entropy(logits, targets, reduction="sum") for logits, targets in found]
        return torch.stack(sums), torch.tensor([len(targets) for _, targets in found])

    def _responses(self, stack: Stack, batch: Batch, *, train: bool) -> list[tuple[Tensor, Tensor]]:
        """(logits ``[R, V]``, response tokens ``[R]``) of every row, in the batch's order."""
        stack = tree.map_leaves(self.there, stack)
        out: dict[int, tuple[Tensor, Tensor]] = {}
        for owner in torch.unique(batch.owner).tolist():
            for index in torch.nonzero(batch.owner == owner).squeeze(1).split(ROWS):
                part = self._begun(batch.pick(index))
                ids, types, present = pad(part, self.pad)
                logits = self._forward(tree.row(stack, owner), 0, part, train=train)
                learnt, ids = self.there((types == 1) & present), self.there(ids)
                for i, row in enumerate(index.tolist()):
                    out[row] = logits[i, :-1][learnt[i, 1:]], ids[i, 1:][learnt[i, 1:]]
        return [out[row] for row in range(len(batch))]

    def _forward(self, state: State, head: int, batch: Batch, *, train: bool) -> Tensor:
        ids, _, present = pad(batch, self.pad)
        place = torch.arange(ids.shape[1])
        values = self._values(state, 0)
        positioned = place + (self.prompt.shift if self.prompt else 0)
        mask = causal_mask(present, self.dtype)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positioned.expand_as(ids)}
        given = {**{name: self.there(x) for name, x in inputs.items()}, "use_cache": False}
        with self.masked(batch, place, train=train):
            logits: Tensor = functional_call(self.model, values, (), given).logits
        return logits


def causal_mask(present: Tensor, dtype: torch.dtype) -> Tensor:
    """``[n, 1, L, L]``: 0 on real keys up to the query, else the dtype's minimum."""
    longest = present.shape[1]
    allowed = torch.ones(longest, longest, dtype=torch.bool).tril() & present[:, None, None]
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
