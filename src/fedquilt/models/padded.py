"""The reference way to run a model: one adapter at a time, padded rows, the unmodified transformers forward, LoRA by peft."""

from __future__ import annotations

import copy
import warnings
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedquilt import tree
from fedquilt.models import vision
from fedquilt.models.dropout import Masks, positions, seed_dropout
from fedquilt.models.inserts import Owners, hook
from fedquilt.models.loading import CPU, Base
from fedquilt.models.loss import row_losses, slot_means
from fedquilt.models.prompts import PROMPT, Prefix, Prompt, key_heads, place_prompt
from fedquilt.models.roles import transposed
from fedquilt.types import Batch, Stack, State

if TYPE_CHECKING:
    from fedquilt.adapters.base import Adapter

ATTENTION, PREFIX = "fedquilt_seeded", "fedquilt_prefix"
ROBERTA = ("roberta", "xlm-roberta", "camembert")  # they count positions from behind their padding's number


class Padded:
    """Losses and logits of stacked adapters, computed one adapter after the other.

    This is the debug reference that the packed model is tested against, and the fallback for architectures and families
    without a packed form.
    """

    def __init__(self, base: Base, adapter: Adapter, device: torch.device = CPU) -> None:
        self.device = device
        self.masks = Masks()
        self.heads = adapter.heads
        self.width = int(base.model.config.num_labels)
        self.types = int(getattr(base.model.config, "type_vocab_size", 1))
        self.own_mask = not base.model_type.startswith("deberta")
        self.pad = int(getattr(base.model.config, "pad_token_id", None) or 0)
        self.dtype, self.transform, self.options = base.dtype, base.transform, vision.options(base.model)
        model = copy.deepcopy(base.model).to(device)
        self.owners = Owners()
        for name, insert in adapter.inserts.items():
            hook(model.get_submodule(name), name, insert, self.owners)
        self.prompt = adapter.prompt
        self.vocabulary = 0 if self.prompt is None else model.get_input_embeddings().num_embeddings
        prefix = None if self.prompt is None else place_prompt(model, self.prompt, self.owners)
        self.first_position = self.pad + 1 if base.model_type in ROBERTA else 0
        self.model: nn.Module = with_lora(model, base, adapter).requires_grad_(False) if adapter.modules else model
        own = [leaf for leaf in adapter.spec.leaves if leaf.name not in adapter.inserted and not leaf.name.startswith(PROMPT)]
        self.names = {leaf.name: parameter_name(leaf.name, leaf.role, base, bool(adapter.modules)) for leaf in own}
        seed_dropout(self.model, self.masks, base.head)
        if self.own_mask:
            seed_attention(self.model, prefix)
        self.model.eval()

    def losses(self, stack: Stack, batch: Batch) -> Tensor:
        """Mean training loss of each adapter's rows ``[G]``; dropout active."""
        rows = row_losses(self._all(stack, batch, train=True), batch.labels, batch.classes)
        return slot_means(rows, batch.owner, tree.length(stack))

    def logits(self, stack: Stack, batch: Batch) -> Tensor:
        """``[n, C]`` without dropout and without gradients."""
        with torch.no_grad():
            return self._all(stack, batch, train=False).cpu()

    def _all(self, stack: Stack, batch: Batch, *, train: bool) -> Tensor:
        """Logits of all rows in their order; one forward per (adapter, head) that occurs."""
        stack = tree.map_leaves(self.there, stack)
        out = []
        where = []
        for owner, head in torch.unique(torch.stack([batch.owner, batch.head]), dim=1).T.tolist():
            index = torch.nonzero((batch.owner == owner) & (batch.head == head)).squeeze(1)
            where.append(index)
            out.append(self._forward(tree.row(stack, owner), head, batch.pick(index), train=train))
        return torch.cat(out)[self.there(torch.argsort(torch.cat(where)))]

    def there(self, x: Tensor) -> Tensor:
        """On the model's device."""
        return x.to(self.device)

    def _forward(self, state: State, head: int, batch: Batch, *, train: bool) -> Tensor:
        batch = self._begun(batch)
        inputs = self._texts(batch) if batch.pixels is None else self._images(batch)
        place = torch.arange(int(batch.lengths.max()))
        values = self._values(state, head)
        with self.masked(batch, place, train=train):
            logits: Tensor = functional_call(self.model, values, (), inputs).logits
        return logits

    def masked(self, batch: Batch, place: Tensor, *, train: bool) -> AbstractContextManager[None]:
        """The dropout masks of these rows; none in evaluation. ``place``: positions of their tokens."""
        if not train:
            return self.masks.active(None, None)
        return self.masks.active(self.there(batch.keys), self.there(positions(batch.keys[:, None], place[None])))

    def _values(self, state: State, head: int) -> dict[str, Tensor]:
        """Tensors that take the place of the model's parameters; inserts find theirs in ``owners``."""
        stack = {key: tensor[None] for key, tensor in state.items()}
        self.owners.set(stack)
        if self.prompt is not None:
            self.owners.prompt = self.prompt.table(stack)
        own = {key: tensor for key, tensor in state.items() if key in self.names}
        return {self.names[key]: tensor[head] if self.heads > 1 and "/head." in key else tensor for key, tensor in own.items()}

    def _texts(self, batch: Batch) -> dict[str, Tensor]:
        ids, types, present = pad(batch, self.pad)
        mask = present.long() if not self.own_mask else additive_mask(present, self.dtype)
        inputs = {"input_ids": ids, "token_type_ids": types.clamp(max=self.types - 1), "attention_mask": mask}
        if self.prompt is not None and self.prompt.shift:
            places = torch.arange(ids.shape[1]) + self.first_position + self.prompt.shift
            inputs["position_ids"] = places.expand_as(ids)
        return {name: self.there(x) for name, x in inputs.items()}

    def _begun(self, batch: Batch) -> Batch:
        """The rows as the model reads them: with their virtual tokens."""
        return batch if self.prompt is None else self.prompt.before(batch, self.vocabulary)

    def _images(self, batch: Batch) -> dict[str, Any]:
        return {"pixel_values": vision.pixels(batch, self.transform, self.dtype, self.device), **self.options}


def pad(batch: Batch, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ragged rows -> ids ``[n, L]``, segment ids ``[n, L]``, presence ``[n, L]`` (bool), padded on the right."""
    n, longest = len(batch), int(batch.lengths.max())
    present = torch.arange(longest)[None] < batch.lengths[:, None]
    ids = torch.full((n, longest), pad_id, dtype=torch.long)
    types = torch.zeros((n, longest), dtype=torch.long)
    ids[present] = batch.tokens
    types[present] = batch.types
    return ids, types, present


def additive_mask(present: Tensor, dtype: torch.dtype) -> Tensor:
    """``[n, 1, L, L]`` with 0 on real keys and the dtype's minimum on padding.

    transformers builds this itself from a 2-D mask, but by data-dependent control flow, which breaks vmap and compile.
    """
    n, longest = present.shape
    empty = torch.zeros((n, 1, 1, longest), dtype=dtype)
    return empty.masked_fill(~present[:, None, None], torch.finfo(dtype).min).expand(n, 1, longest, longest)


def _peft_task(base: Base) -> str | None:
    """peft has no type for images: there it is a plain PeftModel."""
    if base.transform is not None:
        return None
    return "SEQ_CLS" if base.head else "CAUSAL_LM"


def saved_whole(base: Base) -> list[str] | None:
    """Modules that an adapter of peft brings along: the head, and what the checkpoint lacks."""
    return [*base.head, *base.drawn] or None


def peft_config(base: Base, adapter: Adapter) -> Any:
    """LoRA, IA3 or a prompt as peft describes it: of the reference model (LoRA), and of exported folders."""
    from peft import IA3Config, LoraConfig

    if adapter.prompt:
        return _prompt_config(base, adapter.prompt)
    if not adapter.modules:
        return IA3Config(
            target_modules=list(adapter.inserts),
            feedforward_modules=[name for name, insert in adapter.inserts.items() if insert.reads],
            modules_to_save=saved_whole(base),
            task_type=_peft_task(base),
            fan_in_fan_out=any(transposed(base.model.get_submodule(name)) for name in adapter.inserts),
        )
    return LoraConfig(
        r=adapter.spec.rank,
        lora_alpha=int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=list(adapter.modules),
        modules_to_save=saved_whole(base),
        task_type=_peft_task(base),
        fan_in_fan_out=any(transposed(base.model.get_submodule(name)) for name in adapter.modules),
    )


def _prompt_config(base: Base, prompt: Prompt) -> Any:
    """Of an encoder peft keeps what it made, so its hidden size says nothing.

    A prompt is as wide as the words that it stands before (ELECTRA widens both behind its embeddings), a prefix as the keys.
    """
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    config = base.model.config
    heads = key_heads(config) if prompt.kind == "prefix" else int(config.num_attention_heads)
    keys = int(config.hidden_size) // int(config.num_attention_heads) * heads
    kind = PrefixTuningConfig if prompt.kind == "prefix" else PromptEncoderConfig if prompt.encoder else PromptTuningConfig
    return kind(
        task_type=_peft_task(base),
        num_virtual_tokens=prompt.tokens,
        token_dim=keys if prompt.kind == "prefix" else int(base.model.get_input_embeddings().weight.shape[1]),
        num_transformer_submodules=1,
        num_attention_heads=heads,
        num_layers=int(config.num_hidden_layers),
        modules_to_save=saved_whole(base),
    )


def with_lora(model: nn.Module, base: Base, adapter: Adapter) -> nn.Module:
    """The model wrapped by peft; its factors and heads train."""
    from peft import get_peft_model

    config = peft_config(base, adapter)
    with warnings.catch_warnings():  # peft asks transformers for something by its old name
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        wrapped: nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
    return wrapped.to(base.dtype)


def parameter_name(leaf: str, role: str, base: Base, wrapped: bool) -> str:
    """The leaf's parameter name in the (peft-wrapped) model."""
    path, _, last = leaf.rpartition("/")
    if role in ("lora_A", "lora_B"):
        return f"base_model.model.{path}.{last}.default.weight"
    parameter = last.removeprefix("head.")
    if not wrapped:
        return f"{path}.{parameter}"
    top = next(name for name in base.head if path == name or path.startswith(f"{name}."))
    return f"base_model.model.{top}.modules_to_save.default{path[len(top) :]}.{parameter}"


def seed_attention(model: nn.Module, prefix: Prefix | None = None) -> None:
    """Attention behind a prefix, probabilities through the module's own (seeded) dropout; otherwise transformers' eager one."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, seeded_attention)
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = ATTENTION
        if prefix is not None and hasattr(module, "layer_idx"):
            setattr(module, PREFIX, prefix)


def seeded_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T * scaling + mask) v on ``[n, heads, L, d]``, returned as ``[n, L, heads, d]``; k and v may have fewer heads."""
    if (prefix := getattr(module, PREFIX, None)) is not None:
        words = key.shape[2]
        key, value = prefix.before(module.layer_idx, (key, value))
        attention_mask = None if attention_mask is None else F.pad(attention_mask, (key.shape[2] - words, 0))
    if key.shape[1] < query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * kwargs["scaling"]
    if attention_mask is not None:
        scores = scores + attention_mask
    dropout = module.attn_dropout if hasattr(module, "attn_dropout") else module.dropout
    weights = dropout(torch.softmax(scores, dim=-1))
    return (weights @ value).transpose(1, 2).contiguous(), weights
