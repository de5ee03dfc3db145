"""What a slot's data looks like before anything has been learnt from it: one vector, sent once, that tells data apart.

Every client computes it with the same frozen base (and the same fresh adapter), and data of one kind gives nearly the same vector
everywhere, so it tells tasks on different data apart where adapters after a few noisy steps do not. It also tells the server what
the data is about (docs/threat-model.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from fedquilt.models import vision
from fedquilt.models.loading import Base
from fedquilt.models.network import Network
from fedquilt.models.padded import pad
from fedquilt.types import Batch, Spec, State

TINY = 1e-12  # relative; below it a squared gradient counts as zero


def numbers(kind: str, base: Base, spec: Spec) -> int:
    """How many numbers a fingerprint of this :data:`fedquilt.assign.base.Fingerprints` has, without data or a network."""
    if kind == "fisher":
        return sum(leaf.size for leaf in spec.only(seen_by_fisher(spec)))
    return Fingerprint(base).size if kind else 0


def seen_by_fisher(spec: Spec) -> tuple[str, ...]:
    """LoRA's B; without factors everything but the head."""
    head = spec.names("head")
    return spec.names("lora_B") or tuple(name for name in spec.names() if name not in head)


class Look(Protocol):
    """A way of looking at data.

    Attributes:
        examples: at most so many of a slot, in batches of training.
        as_trained: no more examples than the slot trains on in the same round: looking costs no more than training does.
    """

    examples: int
    as_trained: bool

    @property
    def size(self) -> int:
        """Numbers in one fingerprint."""
        ...

    def of(self, batches: Iterable[Batch], start: State) -> Tensor:
        """``[size]`` float32 of some examples; ``start``: all leaves of the adapter that newcomers start from."""
        ...


class Fingerprint:
    """Mean last hidden state, by the unmodified base model: the same in kind as a sentence embedding."""

    examples, as_trained = 64, False

    def __init__(self, base: Base) -> None:
        self.base = base
        self.pad = int(getattr(base.model.config, "pad_token_id", None) or 0)

    @property
    def size(self) -> int:
        """Numbers in one fingerprint."""
        return int(self.base.model.config.hidden_size)

    def of(self, batches: Iterable[Batch], start: State) -> Tensor:
        """Mean over the examples."""
        return torch.cat([self(batch) for batch in batches]).double().mean(0).float()

    def __call__(self, batch: Batch) -> Tensor:
        """Of each row: ``[n, d]`` float32, whatever the precision of the base."""
        with torch.no_grad():
            hidden, present = self._images(batch) if batch.pixels is not None else self._texts(batch)
            return ((hidden * present[..., None]).sum(1) / present.sum(1, keepdim=True)).float()

    def _images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        base = self.base
        pixels = vision.pixels(batch, base.transform, base.dtype)
        hidden = base.model.base_model(pixel_values=pixels, **vision.options(base.model)).last_hidden_state
        return hidden, torch.ones(hidden.shape[:2], dtype=torch.bool)

    def _texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not self.base.head:  # of a language model's rows the prompts: an answer is not there yet when one is to be routed
            batch = batch.prompts()
        ids, types, present = pad(batch, self.pad)
        inputs = {"input_ids": ids, "attention_mask": present.long()}
        if self.base.head:
            most = int(getattr(self.base.model.config, "type_vocab_size", 1))
            inputs["token_type_ids"] = types.clamp(max=max(most, 1) - 1)
        return self.base.model.base_model(**inputs).last_hidden_state, present


class Fisher:
    """Logarithm of the mean squared batch gradient of every number in LoRA's B (without factors: of every weight but the head's),
    at the common start. Gradients are those of training: of its batches, dropout included.

    The diagonal of an empirical Fisher matrix as a description of a task: task2vec (Achille et al. 2019, arXiv 1902.03545), which
    takes it in a trained probe and per filter. ``start`` is never trained here, gradients are those of batches, and their level
    (the mean of the logarithms) is taken away: it says how hard the data is, not what it is. Batches and not single examples: the
    square of an example's gradient hardly knows its label, and tasks may be other labels on the same inputs.
    """

    examples, as_trained = 256, True

    def __init__(self, network: Network, spec: Spec) -> None:
        self.network, self.spec = network, spec
        self.names = seen_by_fisher(spec)

    @property
    def size(self) -> int:
        """Numbers in the factors."""
        return sum(leaf.size for leaf in self.spec.only(self.names))

    def of(self, batches: Iterable[Batch], start: State) -> Tensor:
        """``[size]``, leaves in the order of their names; zeros where there is no gradient at all."""
        squares, count = torch.zeros(self.size, dtype=torch.float64), 0
        for batch in batches:
            squares += self._gradient(start, batch).square()
            count += 1
        return self.seen(squares, count)

    def seen(self, squares: Tensor, count: int) -> Tensor:
        """The fingerprint ``[size]`` from the sum of ``count`` squared gradients."""
        largest = squares.max()
        live = squares > TINY * largest  # below it rounding decides: some gradients are zero in theory and 1e-17 in fact
        if not largest > 0:
            return squares.float()
        logs = (squares / count + TINY * largest / count).log()
        # A number without any gradient (all of a bottleneck before its last map, which starts at zero) says nothing: it must not
        # get the floor, which depends on the slot and would stand there as often as there are such numbers.
        return torch.where(live, logs - logs[live].mean(), 0.0).float()

    def _gradient(self, start: State, batch: Batch) -> Tensor:
        leaves = {key: start[key][None].detach().requires_grad_() for key in self.names}
        loss = self.network.losses({**{key: x[None] for key, x in start.items()}, **leaves}, batch)
        grads = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        return torch.cat([grad.flatten() for grad in grads]).double()
