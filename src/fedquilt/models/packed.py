"""The fast way to run a model: rows of many adapters packed without padding into one pass over the shared frozen base.

An architecture adds how its layers are walked (:mod:`fedquilt.models.packed_bert`); everything else is here.

All tokens of a batch stand one after the other as ``[T, d]``, rows sorted by length, so every linear map and layer norm sees
real tokens only and attention runs on groups of equal length without a mask. Each adapted map computes the frozen product once
for all tokens and adds every adapter's low-rank term with two matrix products over the concatenated factors, masked so that a
token only meets its own adapter:

    u = (x [A_1; ...; A_G]^T) * member,   y += u [B_1 ... B_G]^T            u: [T, G r], member: [T, G r] in {0, scale}

Batches stay on the host, which finds out from them what is computed where; the device gets indices that are ready, so that a GPU
never has to be waited for.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedquilt import tree
from fedquilt.models.attention import Attention, Rows, way
from fedquilt.models.dropout import Masks, SeededDropout, positions, seed_dropout
from fedquilt.models.half import is_half
from fedquilt.models.inserts import Lane, Owners
from fedquilt.models.loading import CPU, Base
from fedquilt.models.loss import row_losses, slot_means
from fedquilt.models.prompts import place_prompt
from fedquilt.types import Batch, Stack, State

if TYPE_CHECKING:
    from fedquilt.adapters.base import Adapter


@dataclass
class Pass:
    """What the adapted maps need to know of the pass being computed; None/empty outside of one."""

    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # module -> A [G r, in], B [out, G r]
    member: Tensor | None = None  # [T, G r]: scale where the token's adapter owns the column, else 0; None for G = 1
    scale: float = 1.0


class BankLinear(nn.Module):
    """A frozen linear map with the stacked LoRA factors of the current pass."""

    def __init__(self, inner: nn.Module, name: str, current: Pass, dropout: nn.Module) -> None:
        super().__init__()
        self.inner, self.name, self.current, self.dropout = inner, name, current, dropout

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        a, b = self.current.factors[self.name]
        member = self.current.member
        u = F.linear(self.dropout(x), a) * (self.current.scale if member is None else member)
        if x.dim() != 2:  # [n, L, d] in generation
            return y + u @ b.t()
        # In place, but for a view (GPT-2's maps): what autograd keeps of that costs more on the way back than a copy.
        return torch.addmm(y, u, b.t()) if y._is_view() else y.addmm_(u, b.t())


class Packed(nn.Module, ABC):
    """Losses and logits of G stacked adapters in one pass."""

    def __init__(self, base: Base, adapter: Adapter, device: torch.device = CPU) -> None:
        super().__init__()
        self.device, self.halved = device, is_half(base.model)
        self.masks, self.current, self.owners = Masks(), Pass(scale=adapter.spec.scale), Owners()
        self.adapter, self.inserted = adapter, adapter.inserted
        there = next(base.model.parameters()).device == device
        model: Any = _shallow(base.model) if there else copy.deepcopy(base.model).to(device)
        self.model = model
        config = model.config
        self.heads = int(config.num_attention_heads)
        for name in adapter.modules:
            dropout = SeededDropout(adapter.dropout, f"{name}.lora_dropout", self.masks, "token")
            _replace(model, name, BankLinear(model.get_submodule(name), name, self.current, dropout))
        for name, insert in adapter.inserts.items():
            _replace(model, name, Lane(model.get_submodule(name), name, insert, self.owners))
        prompt = self.prompt = adapter.prompt
        self.vocabulary = 0 if prompt is None else model.get_input_embeddings().num_embeddings
        self.prefix = None if prompt is None else place_prompt(model, prompt, self.owners)
        seed_dropout(model, self.masks, base.head)
        self.eval()

    # -- what engines and the evaluator call ---------------------------------------------------------------------------

    def losses(self, stack: Stack, batch: Batch) -> Tensor:
        """Mean training loss of each adapter's rows ``[G]``; dropout active."""
        logits = self._run(stack, batch, train=True)
        return slot_means(row_losses(logits, batch.labels, batch.classes), batch.owner, tree.length(stack))

    def logits(self, stack: Stack, batch: Batch) -> Tensor:
        """``[n, C]`` without dropout and without gradients."""
        with torch.no_grad():
            return self._run(stack, batch, train=False).cpu()

    # -- one pass ------------------------------------------------------------------------------------------------------

    def there(self, x: Tensor) -> Tensor:
        """On the model's device."""
        return tree.there(x, self.device)

    def _run(self, stack: Stack, batch: Batch, *, train: bool, **options: Any) -> Tensor:
        stack = tree.map_leaves(self.there, stack)
        if not self.adapter.weights:
            return self.forward(stack, batch, train, **options)
        if tree.length(stack) != 1:
            raise ValueError("an adapter of weights has a pass of its own")
        values = {f"model.{k.replace('/', '.')}": v[0] for k, v in stack.items() if "/head." not in k}
        logits: Tensor = functional_call(self, values, (stack, batch, train), options)
        return logits

    def forward(self, stack: Stack, batch: Batch, train: bool, **options: Any) -> Tensor:
        """Logits ``[n, C]``, or what else ``_classify`` makes of every row, in the batch's order."""
        order = torch.sort(batch.lengths, stable=True).indices
        batch = self._begun(batch.pick(order))
        rows = Rows(batch.lengths, self.device)
        keys = self.there(batch.keys) if train else None
        token_keys = self.there(positions(torch.repeat_interleave(batch.keys, batch.lengths), rows.place)) if train else None
        with self.masks.active(keys, token_keys):
            self._bind(stack, torch.repeat_interleave(batch.owner, batch.lengths), batch.owner)
            features = self._encode(batch, self.there(rows.place + (self.prompt.shift if self.prompt else 0)), rows)
            logits = self._classify(stack, features, batch, **options)
        return logits[self.there(torch.argsort(order))]

    def _bind(self, stack: Stack, owner: Tensor, rows: Tensor | None = None) -> None:
        """Concatenate the factors of all adapters and mark which columns each token owns."""
        self.owners.set(stack, owner, rows)
        if self.prompt is not None:
            self.owners.prompt = self.prompt.table(stack)
        if not self.adapter.modules:
            return
        g, r = tree.length(stack), self.adapter.spec.rank
        self.current.factors = {
            name: (stack[f"{name}/lora_A"].flatten(0, 1), stack[f"{name}/lora_B"].transpose(0, 1).flatten(1))
            for name in self.adapter.modules
        }
        if g == 1:
            self.current.member = None
            return
        columns = torch.arange(g, device=self.device).repeat_interleave(r, output_size=g * r)
        dtype = next(iter(stack.values())).dtype
        self.current.member = (self.there(owner)[:, None] == columns).to(dtype) * self.current.scale

    def _begun(self, batch: Batch) -> Batch:
        """The rows as the model reads them: with their virtual tokens."""
        return batch if self.prompt is None else self.prompt.before(batch, self.vocabulary)

    def _narrow(self, index: Tensor) -> Tensor:
        """From here on only the tokens ``index`` are computed, a tensor of the host; returned is the device's."""
        there = self.there(index)
        self.current.member = at(self.current.member, there)
        self.owners.narrow(index)
        return there

    @abstractmethod
    def _encode(self, batch: Batch, place: Tensor, rows: Rows) -> Tensor:
        """What the head reads of every row ``[n, d]``, for a batch sorted by length.

        Args:
            place: ``[T]`` each token's position in its row, behind a prefix.
            rows: where they stand.
        """

    def _attend(
        self, layer: Any, q: Tensor, k: Tensor, v: Tensor, rows: Rows, *, dropout: Any = None, causal: bool = False,
        first_only: bool = False,
    ) -> Tensor:  # fmt: skip
        """Attention of a layer ``[T, heads d]`` for ``q [T, heads, d]``, ``k, v [T, key heads, d]``, or all of ``[T, heads d]``.

        Args:
            dropout: of the probabilities; None: ``layer.dropout``.
            first_only: of every row's first token alone; ``q`` and what is returned are ``[n, ...]``.
        """
        heads = [x if x.dim() == 3 else x.view(len(x), self.heads, -1) for x in (q, k, v)]
        dropout = layer.dropout if dropout is None else dropout
        keys = None if dropout.p == 0 else self.masks.rows
        attention = Attention(layer.scaling, causal, dropout, keys, self.prefix, layer.layer_idx if self.prefix else 0)
        return way(attention, rows, half=self.halved)(*heads, rows, first_only=first_only)

    def _classify(self, stack: Stack, features: Tensor, batch: Batch) -> Tensor:
        """Each row through the head of its adapter (and task): one small call per head that occurs."""
        names = [key for key in stack if "/head." in key and key not in self.inserted]
        where, out = [], []
        for owner, head in torch.unique(torch.stack([batch.owner, batch.head]), dim=1).T.tolist():
            index = self.there(torch.nonzero((batch.owner == owner) & (batch.head == head)).squeeze(1))
            state = {key.replace("/head.", ".").removeprefix("classifier."): stack[key][owner] for key in names}
            if self.adapter.heads > 1:
                state = {key: tensor[head] for key, tensor in state.items()}
            x = features[index]
            with self.masks.active(at(self.masks.rows, index), None), self.owners.single(owner):
                out.append(self._head(state, x))
            where.append(index)
        return torch.cat(out)[torch.argsort(torch.cat(where))]

    def _head(self, state: State, features: Tensor) -> Tensor:
        """Logits ``[n, C]`` of one head for features ``[n, d]``."""
        logits: Tensor = functional_call(self.model.classifier, dict(state), (features,))
        return logits


def _replace(model: nn.Module, name: str, by: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = by


def at(tensor: Tensor | None, index: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.index_select(0, index)


def _shallow(model: nn.Module) -> nn.Module:
    """The same modules and the same (shared) tensors under new containers, so that maps can be replaced without a copy."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo=dict(shared))
