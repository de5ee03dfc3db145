"""The packed walk through vision transformers: ViT (arXiv 2010.11929) and DINOv2 (arXiv 2304.07193).

All images of a run have one size, so every row has the same number of tokens and nothing is padded. Both are pre-norm: a layer is
``h += scale1(attend(norm1(h)))``, ``h += scale2(mlp(norm2(h)))``; ViT has dropout in the place of DINOv2's scales (one module for
both branches, which therefore share a mask, as transformers 5 has it). ViT's head reads the class token alone, so its last layer
computes only that; DINOv2's reads the class token and the mean of the patches, which takes the whole last layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedquilt.models import vision
from fedquilt.models.attention import Rows
from fedquilt.models.loading import CPU, Base
from fedquilt.models.packed import Packed, at
from fedquilt.types import Batch

if TYPE_CHECKING:
    from fedquilt.adapters.base import Adapter


class PackedVit(Packed):
    """ViTForImageClassification and Dinov2ForImageClassification."""

    def __init__(self, base: Base, adapter: Adapter, device: torch.device = CPU) -> None:
        super().__init__(base, adapter, device)
        self.dtype, self.transform = base.dtype, base.transform
        self.dino = base.model_type == "dinov2"

    def _encode(self, batch: Batch, place: Tensor, rows: Rows) -> Tensor:
        """Class token ``[n, d]`` (ViT), or class token and mean of the patches ``[n, 2 d]`` (DINOv2), after the last norm."""
        backbone = self.model.dinov2 if self.dino else self.model.vit
        n = len(batch)
        h = self._embed(backbone, batch).flatten(0, 1)
        layers = backbone.encoder.layer if self.dino else backbone.layers
        for layer in layers[:-1]:
            h = self._layer(layer, h, rows)
        if self.dino:
            h = backbone.layernorm(self._layer(layers[-1], h, rows)).view(n, -1, h.shape[1])
            return torch.cat([h[:, 0], h[:, 1:].mean(dim=1)], dim=1)
        out: Tensor = backbone.layernorm(self._last(layers[-1], h, rows))
        return out

    def _embed(self, backbone: Any, batch: Batch) -> Tensor:
        """``[n, 1 + patches, d]``."""
        pixels = vision.pixels(batch, self.transform, self.dtype, self.device)
        tokens = self.masks.tokens
        # Dropout inside the embeddings sees [n, L, d]: its keys have that shape only there.
        with self.masks.active(self.masks.rows, None if tokens is None else tokens.view(len(batch), -1)):
            out: Tensor = backbone.embeddings(pixels, **vision.options(self.model))
        return out

    def _layer(self, layer: Any, h: Tensor, rows: Rows) -> Tensor:
        attention = layer.attention
        x = self._norm(layer, 1)(h)
        q, k, v = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
        h = h + self._branch(layer, 1)(attention.o_proj(self._attend(attention, q, k, v, rows)))
        return self._feed(layer, h)

    def _last(self, layer: Any, h: Tensor, rows: Rows) -> Tensor:
        """The last layer for class tokens only: keys and values of all tokens, everything else ``[n, d]``."""
        attention = layer.attention
        x = self._norm(layer, 1)(h)
        k, v = attention.k_proj(x), attention.v_proj(x)
        first = self._narrow(rows.first)
        h, x = h.index_select(0, first), x.index_select(0, first)
        with self.masks.active(self.masks.rows, at(self.masks.tokens, first)):
            context = self._attend(attention, attention.q_proj(x), k, v, rows, first_only=True)
            h = h + self._branch(layer, 1)(attention.o_proj(context))
            return self._feed(layer, h)

    def _feed(self, layer: Any, h: Tensor) -> Tensor:
        out: Tensor = h + self._branch(layer, 2)(layer.mlp(self._norm(layer, 2)(h)))
        return out

    def _norm(self, layer: Any, number: int) -> Any:
        if self.dino:
            return layer.norm1 if number == 1 else layer.norm2
        return layer.layernorm_before if number == 1 else layer.layernorm_after

    def _branch(self, layer: Any, number: int) -> Any:
        """What a branch goes through before it is added."""
        if not self.dino:
            return layer.dropout
        return layer.layer_scale1 if number == 1 else layer.layer_scale2
