"""The packed walk through encoders of BERT's and RoBERTa's shape.

The last layer computes only what the head reads: the first token's query, attention output and feed-forward (exact).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedquilt.models.attention import Rows
from fedquilt.models.loading import CPU, Base
from fedquilt.models.packed import Packed, at
from fedquilt.types import Batch, State

if TYPE_CHECKING:
    from fedquilt.adapters.base import Adapter

ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "camembert")


class PackedBert(Packed):
    """BERT (pooler inside the backbone) and RoBERTa types (pooler inside the head)."""

    def __init__(self, base: Base, adapter: Adapter, device: torch.device = CPU) -> None:
        super().__init__(base, adapter, device)
        config = base.model.config
        self.roberta = base.model_type != "bert"
        self.types = int(config.type_vocab_size)
        self.first_position = int(config.pad_token_id) + 1 if self.roberta else 0

    def _encode(self, batch: Batch, place: Tensor, rows: Rows) -> Tensor:
        """Features of every row's first token ``[n, d]``, after the pooler where the architecture has one outside its head."""
        backbone = self.model.roberta if self.roberta else self.model.bert
        tokens, types = self.there(batch.tokens.long()), self.there(batch.types.long().clamp(max=self.types - 1))
        ids = {"input_ids": tokens[None], "token_type_ids": types[None]}
        # Dropout inside the embeddings sees [1, T, d]: its keys carry that leading axis only there.
        keys = self.masks.tokens
        with self.masks.active(self.masks.rows, None if keys is None else keys[None]):
            h = backbone.embeddings(**ids, position_ids=place[None] + self.first_position)[0]
        layers = backbone.encoder.layer
        for layer in layers[:-1]:
            h = self._layer(layer, h, rows)
        h = self._last(layers[-1], h, rows)
        if self.roberta:
            return h
        pooled: Tensor = backbone.pooler(h[:, None])
        dropped: Tensor = self.model.dropout(pooled)
        return dropped

    def _layer(self, layer: Any, h: Tensor, rows: Rows) -> Tensor:
        attention = layer.attention.self
        context = self._attend(attention, attention.query(h), attention.key(h), attention.value(h), rows)
        h = layer.attention.output(context, h)
        out: Tensor = layer.output(layer.intermediate(h), h)
        return out

    def _last(self, layer: Any, h: Tensor, rows: Rows) -> Tensor:
        """The last layer for first tokens only: keys and values of all tokens, everything else ``[n, d]``."""
        attention = layer.attention.self
        key, value = attention.key(h), attention.value(h)
        first = self._narrow(rows.first)
        h = h.index_select(0, first)
        with self.masks.active(self.masks.rows, at(self.masks.tokens, first)):
            query = attention.query(h)
            context = self._attend(attention, query, key, value, rows, first_only=True)
            h = layer.attention.output(context, h)
            out: Tensor = layer.output(layer.intermediate(h), h)
        return out

    def _head(self, state: State, features: Tensor) -> Tensor:
        # RoBERTa's head takes the hidden states of whole rows and reads the first token itself.
        return super()._head(state, features[:, None] if self.roberta else features)
