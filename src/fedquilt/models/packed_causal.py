"""The packed walk through causal language models of Llama's and GPT-2's shape.

Rows stand one after the other without padding; attention is causal inside groups of rows of equal length. The output map, which
with a vocabulary of 49,152 is a fifth of a small model, is multiplied only where a response token is predicted.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.models.attention import Rows
from fedquilt.models.entropy import entropies, row_sums
from fedquilt.models.greedy import greedy, prompts_of
from fedquilt.models.loading import CPU, Base
from fedquilt.models.loss import slot_means
from fedquilt.models.packed import Packed, at
from fedquilt.models.padded import seed_attention
from fedquilt.types import Batch, Stack

if TYPE_CHECKING:
    from fedquilt.adapters.base import Adapter


class PackedCausal(Packed):
    """Losses and generation of G stacked adapters; see :class:`~fedquilt.models.padded_causal.PaddedCausal` for what they mean."""

    def __init__(self, base: Base, adapter: Adapter, device: torch.device = CPU) -> None:
        super().__init__(base, adapter, device)
        self.end, self.dtype = int(base.tokenizer.eos_token_id), base.dtype
        if self.prefix is not None:  # generation is transformers' own forward
            seed_attention(self.model, self.prefix)

    def losses(self, stack: Stack, batch: Batch) -> Tensor:
        """Mean over each adapter's rows of the row's mean response-token loss ``[G]``; dropout active."""
        sums = self._run(stack, batch, train=True)
        return slot_means(sums / self.there(responses(batch)), batch.owner, tree.length(stack))

    def token_losses(self, stack: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss and number of response tokens of each row ``[n]``, without dropout and gradients."""
        with torch.no_grad():
            return self._run(stack, batch, train=False).cpu(), responses(batch)

    def logits(self, stack: Stack, batch: Batch) -> Tensor:
        """Logits that predict each row's response tokens ``[n, R, V]``, zeros behind the last; no dropout, no gradients."""
        with torch.no_grad():
            return self._run(stack, batch, train=False, logits=True).cpu()

    def generate(self, stack: Stack, batch: Batch, max_new: int) -> list[list[int]]:
        """Greedy continuations of the rows' prompts by one adapter, without the end token."""
        stack = tree.map_leaves(self.there, stack)
        self._bind(stack, torch.zeros(0, dtype=torch.long))

        def call(**inputs: object) -> object:
            inputs = {key: self.there(x) if isinstance(x, Tensor) else x for key, x in inputs.items()}
            if not self.adapter.weights:
                return self.model(**inputs)
            values = {key.replace("/", "."): tensor[0] for key, tensor in stack.items()}
            return torch.func.functional_call(self.model, values, (), inputs)

        prompts, shift = prompts_of(self._begun(batch)), self.prompt.shift if self.prompt else 0
        return greedy(call, prompts, max_new=max_new, end=self.end, dtype=self.dtype, shift=shift)

    def _classify(self, stack: Stack, features: Tensor, batch: Batch, *, logits: bool = False) -> Tensor:
        """Summed response losses ``[n]``, or logits ``[n, R, V]``."""
        chosen = torch.nonzero(batch.types).squeeze(1)
        before = self._narrow(chosen - 1)  # a row never begins with a response token
        hidden, output = self._final(features.index_select(0, before)), self.model.lm_head
        with self.masks.active(self.masks.rows, at(self.masks.tokens, before)):
            if logits:
                parts = output(hidden).split(responses(batch).tolist())
                return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
            losses = entropies(output, hidden, self.there(batch.tokens[chosen]))
        row = torch.repeat_interleave(torch.arange(len(batch)), batch.lengths)[chosen]
        return row_sums(losses, self.there(row), len(batch))

    @abstractmethod
    def _final(self, hidden: Tensor) -> Tensor:
        """What the output map reads ``[R, d]``, from the last layer's output."""


def responses(batch: Batch) -> Tensor:
    """Response tokens of each row ``[n]``."""
    ends = torch.cumsum(batch.lengths, 0)
    total = torch.cat([torch.zeros(1, dtype=torch.long), torch.cumsum(batch.types, 0)])
    return total[ends] - total[ends - batch.lengths]


class PackedLlama(PackedCausal):
    """Llama: rotary positions, RMS norms, fewer key than query heads."""

    def _encode(self, batch: Batch, place: Tensor, rows: Rows) -> Tensor:
        backbone = self.model.model
        h: Tensor = backbone.embed_tokens(self.there(batch.tokens))
        cos, sin = (x[0] for x in backbone.rotary_emb(h[None], position_ids=place[None]))
        for layer in backbone.layers:
            h = h + self._attention(layer.self_attn, layer.input_layernorm(h), cos, sin, rows)
            h = h + layer.mlp(layer.post_attention_layernorm(h))
        return h

    def _attention(self, attention: Any, x: Tensor, cos: Tensor, sin: Tensor, rows: Rows) -> Tensor:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        shape = (len(x), -1, attention.head_dim)
        q, k, v = (project(x).view(shape) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        out: Tensor = attention.o_proj(self._attend(attention, q, k, v, rows, causal=True))
        return out

    def _final(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.model.model.norm(hidden)
        return normed


class PackedGpt2(PackedCausal):
    """GPT-2: learnt positions, one fused map for queries, keys and values, dropout after every block."""

    def _encode(self, batch: Batch, place: Tensor, rows: Rows) -> Tensor:
        backbone = self.model.transformer
        h: Tensor = backbone.drop(backbone.wte(self.there(batch.tokens)) + backbone.wpe(place))
        for block in backbone.h:
            attention = block.attn
            parts = attention.c_attn(block.ln_1(h)).split(attention.split_size, dim=1)
            q, k, v = (x.view(len(x), -1, attention.head_dim) for x in parts)
            context = self._attend(attention, q, k, v, rows, dropout=attention.attn_dropout, causal=True)
            h = h + attention.resid_dropout(attention.c_proj(context))
            h = h + block.mlp(block.ln_2(h))
        return h

    def _final(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.model.transformer.ln_f(hidden)
        return normed


FORMS: dict[str, type[PackedCausal]] = {"llama": PackedLlama, "gpt2": PackedGpt2}
