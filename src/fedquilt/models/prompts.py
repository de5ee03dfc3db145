"""Virtual tokens: vectors of an adapter before the words of every row (prompts), or keys and values in every layer (prefixes).

A prompt is made of token numbers behind the vocabulary: they are put before every row like words, so lengths, masks, positions and
dropout need no special case, and the embedding looks them up in the row's adapter. A prefix stands before the keys and values that
attention sees; positions of words begin behind it. Both are peft's conventions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedquilt import tree
from fedquilt.models.inserts import Owners
from fedquilt.types import Batch, Stack

PROMPT = "prompt/"  # before the names of all leaves of a prompt
EMBEDDING = f"{PROMPT}embedding"
ENCODER = tuple((f"{PROMPT}encoder.{layer}.weight", f"{PROMPT}encoder.{layer}.bias") for layer in range(3))


@dataclass(frozen=True)
class Prompt:
    """How many virtual tokens, and how their vectors come from the leaves.

    Attributes:
        kind: ``input``: ``[nv, d]`` before the words; ``prefix``: ``[nv, 2 layers heads d_head]``, keys and values in turn.
        encoder: three linear maps with ReLU between them make the vectors (P-tuning).
    """

    kind: Literal["input", "prefix"]
    tokens: int
    encoder: bool = False

    def table(self, stack: Stack) -> Tensor:
        """Vectors of all adapters ``[G, nv, ...]``."""
        x = stack[EMBEDDING]
        if self.encoder:
            for layer, (weight, bias) in enumerate(ENCODER):
                x = torch.baddbmm(stack[bias][:, None], F.relu(x) if layer else x, stack[weight].transpose(1, 2))
        return x

    def before(self, batch: Batch, vocabulary: int) -> Batch:
        """The rows with their virtual tokens."""
        if self.kind == "prefix":
            return batch
        longer = batch.lengths + self.tokens
        ends = torch.cumsum(longer, 0)
        new = (torch.arange(self.tokens) + (ends - longer)[:, None]).flatten()
        words = torch.ones(int(ends[-1]), dtype=torch.bool).index_fill_(0, new, False)
        tokens = torch.empty(len(words), dtype=batch.tokens.dtype)
        tokens[words], tokens[new] = batch.tokens, torch.arange(vocabulary, vocabulary + self.tokens).repeat(len(batch))
        types = torch.zeros(len(words), dtype=batch.types.dtype)
        types[words] = batch.types
        return replace(batch, tokens=tokens, types=types, lengths=longer)

    @property
    def shift(self) -> int:
        """The position of a row's first word."""
        return self.tokens if self.kind == "prefix" else 0


class PromptEmbedding(nn.Module):
    """The word embedding, for token numbers behind the vocabulary the vectors of the token's adapter."""

    def __init__(self, inner: nn.Embedding, owners: Owners) -> None:
        super().__init__()
        self.inner, self.owners, self.vocabulary = inner, owners, inner.num_embeddings

    def forward(self, ids: Tensor) -> Tensor:
        virtual, table, owners = ids >= self.vocabulary, self.owners.prompt, self.owners
        y: Tensor = self.inner(ids.masked_fill(virtual, 0))
        owner = owners.only if owners.only is not None else tree.there(owners.of("token"), ids.device)
        # One vector for every token, wanted or not: only the host knows which are, and a GPU is not asked.
        place = owner * table.shape[1] + (ids - self.vocabulary).clamp(min=0)
        vectors = table.flatten(0, 1).index_select(0, place.flatten()).view(y.shape)
        return torch.where(virtual[..., None], vectors.to(y.dtype), y)


@dataclass(frozen=True)
class Prefix:
    """What attention looks up of the pass being computed."""

    owners: Owners
    layers: int
    heads: int

    def before(self, layer: int, words: Sequence[Tensor], rows: slice = slice(None)) -> list[Tensor]:
        """Keys and values of one layer ``[n, heads, L, d_head]`` behind the prefix: ``[n, heads, nv + L, d_head]``."""
        prefix = self.of(layer, rows)
        return [torch.cat([a.expand(len(b), *a.shape[1:]), b], dim=2) for a, b in zip(prefix, words, strict=True)]

    def of(self, layer: int, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer for some rows of the pass: ``[rows, heads, nv, d_head]`` (of one adapter: 1 row)."""
        table = self.owners.prompt
        vectors = table.view(*table.shape[:2], self.layers, 2, self.heads, -1)[:, :, layer]  # [G, nv, 2, heads, d]
        owner = torch.tensor([self.owners.only]) if self.owners.only is not None else self.owners.of("row")[rows]
        owner = tree.there(owner, table.device)
        both = vectors.index_select(0, owner).permute(2, 0, 3, 1, 4)
        return both[0], both[1]


def place_prompt(model: Any, prompt: Prompt, owners: Owners) -> Prefix | None:
    """Make a model read prompts; of a prefix what its attention has to be given."""
    if prompt.kind == "prefix":
        return Prefix(owners, int(model.config.num_hidden_layers), key_heads(model.config))
    inner = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is inner)
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = PromptEmbedding(inner, owners)
    return None


def key_heads(config: Any) -> int:
    """Heads of keys and values."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
