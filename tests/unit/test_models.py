"""The packed model against peft's padded one, and what both owe to the algebra of LoRA."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, vmap

from fedquilt import tree
from fedquilt.adapters.base import Adapter
from fedquilt.adapters.lora import lora
from fedquilt.adapters.whole import full, head
from fedquilt.errors import ConfigError, ModelError
from fedquilt.models.loading import Base, ModelConfig, load
from fedquilt.models.loss import fill, row_losses, slot_means
from fedquilt.models.network import batches_adapters, network
from fedquilt.models.packed_bert import PackedBert
from fedquilt.models.padded import Padded, additive_mask, pad
from fedquilt.models.roles import resolve
from fedquilt.types import Batch


def base_of(kind: str, dropout: float = 0.0) -> Base:
    return load(ModelConfig(name=f"tiny:{kind}", precision="float64", dropout=dropout), classes=3, seed=0)


def batch_of(rows: int, adapters: int, heads: int = 1) -> Batch:
    stream = torch.Generator().manual_seed(rows)

    def draw(low: int, high: int, n: int) -> torch.Tensor:
        return torch.randint(low, high, (n,), generator=stream)

    lengths = draw(3, 20, rows)
    total = int(lengths.sum())
    owner = torch.arange(rows) % adapters
    return Batch(draw(5, 100, total), draw(0, 2, total), lengths, draw(0, 2, rows).double(), draw(1, 4, rows), owner,
                 draw(0, heads, rows), draw(0, 2**60, rows))  # fmt: skip


def stack_of(adapter: Adapter, adapters: int) -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(3)
    noisy = [
        {k: x + 0.1 * torch.randn(x.shape, generator=stream, dtype=x.dtype) for k, x in adapter.init.items()}
        for _ in range(adapters)
    ]
    return tree.stack(noisy)


def outcome(net: Any, stack: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
    leaves = {key: x.clone().requires_grad_() for key, x in stack.items()}
    losses = net.losses(leaves, batch)
    grads = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {"losses": losses.detach(), "logits": net.logits(stack, batch), **dict(zip(leaves, grads, strict=True))}


def half_is_close(run: Callable[[str, bool], dict[str, torch.Tensor]], *, to_float: float, to_each_other: float) -> None:
    """``run(precision, packed)``: bfloat16 against float32, and its two ways of running, relative to the largest entry."""
    exact, padded, packed = run("float32", False), run("bfloat16", False), run("bfloat16", True)
    assert not torch.equal(exact["losses"], padded["losses"]), "nothing was rounded"
    for key, x in exact.items():
        for found, expected, rest in ((padded[key], x, to_float), (packed[key], padded[key], to_each_other)):
            atol = rest * float(x.abs().max()) + 1e-3
            torch.testing.assert_close(found, expected, rtol=0, atol=atol, msg=lambda m, key=key: f"{key}: {m}")


FAMILIES = {
    "lora": lambda base, p: lora(base, seed=0, rank=2, dropout=p),
    "every target": lambda base, p: lora(base, seed=0, rank=1, dropout=p, targets=("q", "k", "v", "o", "up", "down")),
    "per-task heads": lambda base, p: lora(base, seed=0, heads=3, rank=2, dropout=p, head="per-task"),
    "head": lambda base, p: head(base, seed=0),
    "full": lambda base, p: full(base, seed=0),
}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_packed_equals_padded(kind: str, family: str, dropout: float) -> None:
    """Losses, gradients of every leaf and logits; cross-entropy over 2 and 3 classes and regression in one batch."""
    base = base_of(kind, dropout)
    adapter = FAMILIES[family](base, dropout)
    adapters = 1 if family == "full" else 3
    stack, batch = stack_of(adapter, adapters), batch_of(11, adapters, adapter.heads)
    fast = outcome(network(base, adapter, packed=True), stack, batch)
    slow = outcome(network(base, adapter, packed=False), stack, batch)
    assert tree.max_difference(fast, slow) < 1e-12
    assert float(fast["losses"].min()) > 0.01
    if dropout:
        dry = outcome(network(base_of(kind), FAMILIES[family](base_of(kind), 0.0), packed=True), stack, batch)
        assert tree.max_difference({"x": dry["losses"]}, {"x": fast["losses"]}) > 1e-3, "dropout does something"
        assert torch.allclose(dry["logits"], fast["logits"], atol=1e-12), "but not in evaluation"


@pytest.mark.parametrize("kind", ["deberta", "deberta-v2"])
def test_other_encoders_run_padded_one_adapter_at_a_time(kind: str) -> None:
    base = base_of(kind, 0.2)
    adapter = lora(base, seed=0, rank=2, dropout=0.2)
    assert isinstance(network(base, adapter, packed=True), Padded)
    assert not batches_adapters(base, adapter)
    stack, batch = stack_of(adapter, 2), batch_of(6, 2)
    net = network(base, adapter, packed=True)
    out = outcome(net, stack, batch)
    assert all(float(out[name].abs().max()) > 0 for name in adapter.spec.names("lora_A", "lora_B"))
    for row in range(len(batch)):  # padding changes nothing: every row alone, unpadded
        alone = net.logits(stack, batch.pick(torch.tensor([row])))
        assert torch.allclose(alone[0], out["logits"][row], atol=1e-12)


def test_packing_rows_of_others_changes_nothing() -> None:
    base = base_of("bert", 0.2)
    adapter = lora(base, seed=0, rank=2, dropout=0.2)
    stack, batch = stack_of(adapter, 3), batch_of(12, 3)
    together = PackedBert(base, adapter).losses(stack, batch)
    for g in range(3):
        own = batch.pick(torch.nonzero(batch.owner == g).squeeze(1))
        alone = Batch(**{**vars(own), "owner": torch.zeros_like(own.owner)})
        one = PackedBert(base, adapter).losses(tree.rows(stack, [g]), alone)
        assert torch.allclose(one[0], together[g], atol=1e-13)


def test_the_base_is_shared_not_copied_and_stays_frozen() -> None:
    base = base_of("bert")
    packed = PackedBert(base, lora(base, seed=0))
    theirs = {p.data_ptr() for p in packed.model.parameters()}
    assert {p.data_ptr() for p in base.model.parameters()} == theirs
    assert not any(p.requires_grad for p in base.model.parameters())


def test_gradient_of_a_is_exactly_zero_at_the_start() -> None:
    base = base_of("bert")
    adapter = lora(base, seed=0, rank=2)
    out = outcome(PackedBert(base, adapter), tree.stack([adapter.init]), batch_of(6, 1))
    assert all(float(out[name].abs().max()) == 0 for name in adapter.spec.names("lora_A"))
    assert all(float(out[name].abs().max()) > 0 for name in adapter.spec.names("lora_B"))


def test_all_clients_start_from_the_same_a_which_has_peft_s_distribution() -> None:
    base = base_of("bert")
    one, again, other = lora(base, seed=0, rank=64), lora(base, seed=0, rank=64), lora(base, seed=1, rank=64)
    assert tree.equal(one.init, again.init)
    key = one.spec.names("lora_A")[0]
    assert not torch.equal(one.init[key], other.init[key])
    linear = nn.Linear(16, 64)
    nn.init.kaiming_uniform_(linear.weight, a=5**0.5)
    bound = 1 / 16**0.5
    assert float(linear.weight.detach().abs().max()) <= bound  # peft's rule
    assert float(one.init[key].abs().max()) <= bound
    assert abs(float(one.init[key].var()) - bound**2 / 3) < 0.1 * bound**2


def test_alpha_over_r_is_applied_once_as_peft_merges_it() -> None:
    """The adapted model equals the base with W + (alpha / r) B A added by hand."""
    base = base_of("bert")
    adapter = lora(base, seed=0, rank=4, alpha=6.0)
    assert adapter.spec.scale == 1.5
    stack, batch = stack_of(adapter, 1), batch_of(5, 1)
    merged = base_of("bert")
    for name in adapter.modules:
        product = stack[f"{name}/lora_B"][0] @ stack[f"{name}/lora_A"][0]
        merged.model.get_submodule(name).weight.add_(1.5 * product)
    only_head = head(merged, seed=0)
    plain = PackedBert(merged, only_head).logits({key: stack[key] for key in only_head.init}, batch)
    assert torch.allclose(PackedBert(base, adapter).logits(stack, batch), plain, atol=1e-12)


def test_the_four_dimensional_mask_is_what_transformers_makes_of_the_flat_one() -> None:
    base = base_of("bert")
    ids, types, present = pad(batch_of(6, 1), 0)
    assert ids.shape == types.shape == present.shape
    flat = base.model(input_ids=ids, token_type_ids=types, attention_mask=present.long()).logits
    ours = base.model(input_ids=ids, token_type_ids=types, attention_mask=additive_mask(present, torch.float64)).logits
    assert torch.allclose(flat, ours, atol=1e-12)


def test_peft_merges_to_the_same_model() -> None:
    base = base_of("bert")
    adapter = lora(base, seed=0, rank=4, alpha=6.0)
    stack, batch = stack_of(adapter, 1), batch_of(5, 1)
    reference = Padded(base, adapter)
    model: Any = reference.model
    model.load_state_dict({reference.names[key]: x[0] for key, x in stack.items()}, strict=False)
    plain = model.merge_and_unload()
    assert not [name for name in plain.state_dict() if "lora" in name]
    ids, types, present = pad(batch, 0)
    merged = plain(input_ids=ids, token_type_ids=types, attention_mask=additive_mask(present, torch.float64)).logits
    assert torch.allclose(PackedBert(base, adapter).logits(stack, batch), merged, atol=1e-12)


def test_many_adapters_under_vmap_equal_one_after_the_other() -> None:
    """Trap 15: with the mask built here no control flow depends on data, so adapters can be a batch axis."""
    base = base_of("bert")
    adapter = lora(base, seed=0, rank=2)
    stack, net = stack_of(adapter, 3), Padded(base, adapter)
    batch = batch_of(4, 1)
    ids, types, present = pad(batch, 0)
    inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": additive_mask(present, torch.float64)}

    def run(state: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = functional_call(net.model, {net.names[key]: x for key, x in state.items()}, (), inputs).logits
        return logits

    together = vmap(run)(stack)
    for g in range(3):
        assert torch.allclose(together[g], net.logits(tree.rows(stack, [g]), batch), atol=1e-12)


class Named(nn.Module):
    """A module tree made of names alone."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            node: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in node._modules:
                    node.add_module(part, nn.Module())
                node = node.get_submodule(part)
            node.add_module(last, nn.Linear(2, 2))


def test_roles_find_both_generations_of_vit() -> None:
    old = [
        f"vit.encoder.layer.0.{x}" for x in ("attention.attention.query", "attention.attention.key", "attention.attention.value")
    ]
    old += [
        "vit.encoder.layer.0.attention.output.dense",
        "vit.encoder.layer.0.intermediate.dense",
        "vit.encoder.layer.0.output.dense",
    ]
    new = [f"vit.layers.0.{x}" for x in ("attention.q_proj", "attention.k_proj", "attention.v_proj")]
    new += ["vit.layers.0.attention.o_proj", "vit.layers.0.mlp.fc1", "vit.layers.0.mlp.fc2"]
    for names in (old, new):
        model = Named(names)
        assert [resolve(model, "vit", [role]) for role in ("q", "k", "v", "o", "up", "down")] == [(name,) for name in names]


def test_roles_of_bert_are_in_model_order_and_disjoint() -> None:
    base = base_of("bert")
    found = resolve(base.model, "bert", ["down", "o", "q"])
    order = [name for name, _ in base.model.named_modules()]
    assert list(found) == sorted(found, key=order.index)
    assert len(found) == 6
    assert resolve(base.model, "unheard-of", ["query"]) == tuple(name for name in order if name.endswith("query"))


def test_a_role_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="'quary'") as caught:
        resolve(base_of("bert").model, "bert", ["quary"])
    assert "adapter.targets" in str(caught.value)


@pytest.mark.parametrize("name", ["tiny:brt", "./nowhere", "no/such-model-anywhere"])
def test_models_that_are_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import; else 45 s of retries
    with pytest.raises(ModelError):
        load(ModelConfig(name=name), classes=2, seed=0)


def test_head_policy_must_exist() -> None:
    with pytest.raises(ConfigError, match="fedrated"):
        lora(base_of("bert"), seed=0, head="fedrated")  # type: ignore[arg-type]


def test_losses_of_rows() -> None:
    logits = torch.tensor([[1.0, 2.0, 50.0], [0.5, 0.0, 0.0]], dtype=torch.float64)
    out = row_losses(logits, torch.tensor([1.0, 2.5], dtype=torch.float64), torch.tensor([2, 1]))
    entropy = torch.log(torch.exp(torch.tensor(-1.0, dtype=torch.float64)) + 1)
    assert torch.allclose(out, torch.stack([entropy, torch.tensor(4.0, dtype=torch.float64)]))
    assert slot_means(out, torch.tensor([1, 1]), 3).tolist() == [0.0, float(out.mean()), 0.0]


@given(st.lists(st.integers(1, 50)), st.integers(1, 120))
def test_as_many_neighbours_as_fit_go_together(lengths: list[int], budget: int) -> None:
    parts = [lengths[some] for some in fill(lengths, budget)]
    assert [length for part in parts for length in part] == lengths
    assert all(part and (sum(part) <= budget or len(part) == 1) for part in parts)
    assert all(sum(one) + other[0] > budget for one, other in pairwise(parts))
