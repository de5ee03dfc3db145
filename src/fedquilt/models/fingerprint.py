"""What data looks like to the frozen base model: the mean of its last hidden states, without any adapter.

Every client can compute it before it has learnt anything, and data of one kind gives nearly the same vector everywhere, so it
tells tasks on different data apart where adapters after a few noisy steps do not. It also tells the server what the data is
about: a vector of hidden size per slot, the same in kind as a sentence embedding (docs/threat-model.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedquilt.models import vision
from fedquilt.models.loading import Base
from fedquilt.models.padded import pad
from fedquilt.types import Batch


class Fingerprint:
    """Mean last hidden state of each row, by the unmodified base model."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.pad = int(getattr(base.model.config, "pad_token_id", None) or 0)

    @property
    def size(self) -> int:
        """Numbers in one fingerprint."""
        return int(self.base.model.config.hidden_size)

    def __call__(self, batch: Batch) -> Tensor:
        """``[n, d]`` float32, whatever the precision of the base."""
        with torch.no_grad():
            hidden, present = self._images(batch) if batch.pixels is not None else self._texts(batch)
            return ((hidden * present[..., None]).sum(1) / present.sum(1, keepdim=True)).float()

    def _images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        base = self.base
        pixels = vision.pixels(batch, base.transform, base.dtype)
        hidden = base.model.base_model(pixel_values=pixels, **vision.options(base.model)).last_hidden_state
        return hidden, torch.ones(hidden.shape[:2], dtype=torch.bool)

    def _texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        ids, types, present = pad(batch, self.pad)
        inputs = {"input_ids": ids, "attention_mask": present.long()}
        if self.base.head:  # the types of a language model's tokens say which are the response: not for the model
            most = int(getattr(self.base.model.config, "type_vocab_size", 1))
            inputs["token_type_ids"] = types.clamp(max=max(most, 1) - 1)
        return self.base.model.base_model(**inputs).last_hidden_state, present
