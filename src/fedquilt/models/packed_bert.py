"""The packed walk through encoders of BERT's and RoBERTa's shape.

The last layer computes only what the head reads: the first token's query, attention output and feed-forward (exact).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedquilt.models.loading import Base
from fedquilt.models.packed import Packed, at
from fedquilt.types import Batch, State

if TYPE_CHECKING:
    from fedquilt.adapters.base import Adapter

ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "camembert")


class PackedBert(Packed):
    """BERT (pooler inside the backbone) and RoBERTa types (pooler inside the head)."""

    def __init__(self, base: Base, adapter: Adapter) -> None:
        super().__init__(base, adapter)
        config = base.model.config
        self.roberta = base.model_type != "bert"
        self.types = int(config.type_vocab_size)
        self.first_position = int(config.pad_token_id) + 1 if self.roberta else 0

    def _encode(self, batch: Batch, place: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        """Features of every row's first token ``[n, d]``, after the pooler where the architecture has one outside its head."""
        backbone = self.model.roberta if self.roberta else self.model.bert
        ids = {"input_ids": batch.tokens[None].long(), "token_type_ids": batch.types[None].long().clamp(max=self.types - 1)}
        # Dropout inside the embeddings sees [1, T, d]: its keys carry that leading axis only there.
        tokens = self.masks.tokens
        with self.masks.active(self.masks.rows, None if tokens is None else tokens[None]):
            h = backbone.embeddings(**ids, position_ids=place[None] + self.first_position)[0]
        layers = backbone.encoder.layer
        for layer in layers[:-1]:
            h = self._layer(layer, h, groups)
        first = torch.cumsum(batch.lengths, 0) - batch.lengths
        h = self._last(layers[-1], h, first, groups)
        if self.roberta:
            return h
        pooled: Tensor = backbone.pooler(h[:, None])
        dropped: Tensor = self.model.dropout(pooled)
        return dropped

    def _layer(self, layer: Any, h: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        attention = layer.attention.self
        context = self._attend(attention, attention.query(h), attention.key(h), attention.value(h), groups, first_only=False)
        h = layer.attention.output(context, h)
        out: Tensor = layer.output(layer.intermediate(h), h)
        return out

    def _last(self, layer: Any, h: Tensor, first: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        """The last layer for first tokens only: keys and values of all tokens, everything else ``[n, d]``."""
        attention = layer.attention.self
        key, value = attention.key(h), attention.value(h)
        self._narrow(first)
        h = h.index_select(0, first)
        with self.masks.active(self.masks.rows, at(self.masks.tokens, first)):
            query = attention.query(h)
            context = self._attend(attention, query, key, value, groups, first_only=True)
            h = layer.attention.output(context, h)
            out: Tensor = layer.output(layer.intermediate(h), h)
        return out

    def _head(self, state: State, features: Tensor) -> Tensor:
        # RoBERTa's head takes the hidden states of whole rows and reads the first token itself.
        return super()._head(state, features[:, None] if self.roberta else features)
