"""Choose how a base model with an adapter family is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from fedquilt.models.loading import CPU, Base
from fedquilt.types import Batch, Stack

if TYPE_CHECKING:
    from fedquilt.adapters.base import Adapter
    from fedquilt.models.packed import Packed


class Network(Protocol):
    """The only thing that knows the model: losses for training, logits for evaluation."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def losses(self, stack: Stack, batch: Batch) -> Tensor:
        """Mean training loss of each adapter's rows ``[G]``."""
        ...

    def logits(self, stack: Stack, batch: Batch) -> Tensor:
        """``[n, C]`` (of a language model ``[n, R, V]``), no dropout, no gradient."""
        ...


class TextNetwork(Network, Protocol):
    """A causal language model."""

    def token_losses(self, stack: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss and number of response tokens of each row ``[n]``, no dropout, no gradient."""
        ...

    def generate(self, stack: Stack, batch: Batch, max_new: int) -> list[list[int]]:
        """Greedy continuations of the rows' prompts by one adapter, without the end token."""
        ...


def network(base: Base, adapter: Adapter, *, packed: bool, device: torch.device = CPU) -> Network:
    """The packed form if asked for and the architecture has one, else the padded reference.

    ``device``: where the model runs. Batches come from the host; losses are on the device, everything else returns to the host.
    """
    from fedquilt.models.padded import Padded
    from fedquilt.models.padded_causal import PaddedCausal

    form = packed_form(base) if packed else None
    return (form or (Padded if base.head else PaddedCausal))(base, adapter, device)


def packed_form(base: Base) -> type[Packed] | None:
    """How the architecture runs packed; None if it has no packed form."""
    from fedquilt.models import packed_bert, packed_causal, packed_vit, vision

    if not base.head:
        return packed_causal.FORMS.get(base.model_type)
    if base.model_type in packed_bert.ARCHITECTURES and base.head == ("classifier",):
        return packed_bert.PackedBert
    return packed_vit.PackedVit if base.model_type in vision.ARCHITECTURES else None


def batches_adapters(base: Base, adapter: Adapter) -> bool:
    """Whether many adapters share one pass of the packed form (families of weights and DeBERTa run one at a time)."""
    return packed_form(base) is not None and not adapter.weights
