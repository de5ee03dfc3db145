"""Choose how a base model with an adapter family is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from fedquilt.models.loading import Base
from fedquilt.types import Batch, Stack

if TYPE_CHECKING:
    from fedquilt.adapters.base import Adapter


class Network(Protocol):
    """The only thing that knows the model: losses for training, logits for evaluation."""

    def losses(self, stack: Stack, batch: Batch) -> Tensor:
        """Mean training loss of each adapter's rows ``[G]``."""
        ...

    def logits(self, stack: Stack, batch: Batch) -> Tensor:
        """``[n, C]``, no dropout, no gradient."""
        ...


def network(base: Base, adapter: Adapter, *, packed: bool) -> Network:
    """The packed form if asked for and the architecture has one, else the padded reference."""
    from fedquilt.models.packed import Packed, supports
    from fedquilt.models.padded import Padded

    if packed and supports(base):
        return Packed(base, adapter)
    return Padded(base, adapter)


def batches_adapters(base: Base, adapter: Adapter) -> bool:
    """Whether many adapters share one pass of the packed form (full fine-tuning and DeBERTa run one at a time)."""
    from fedquilt.models.packed import supports

    return supports(base) and adapter.spec.family != "full"
