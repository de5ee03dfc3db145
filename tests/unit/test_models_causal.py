"""Causal language models: packed against padded, both against transformers' own loss, generation and LoRA's algebra."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from fedquilt import tree
from fedquilt.adapters.lora import lora
from fedquilt.adapters.whole import full, head
from fedquilt.errors import ConfigError, ModelError
from fedquilt.models import entropy
from fedquilt.models.half import HALF, HalfEmbedding, HalfLinear
from fedquilt.models.loading import Base, ModelConfig, load
from fedquilt.models.network import batches_adapters, network
from fedquilt.models.packed_causal import PackedCausal, responses
from fedquilt.models.padded import pad
from fedquilt.models.padded_causal import PaddedCausal
from fedquilt.models.roles import resolve
from fedquilt.types import Batch
from tests.unit import test_models
from tests.unit.test_models import stack_of

KINDS = ("llama", "gpt2")
EVERY = ("q", "k", "v", "o", "up", "down")


def base_of(kind: str, dropout: float = 0.0, precision: Any = "float64") -> Base:
    return load(ModelConfig(name=f"tiny:{kind}", precision=precision, dropout=dropout), classes=0, seed=0)


def batch_of(rows: int, adapters: int) -> Batch:
    """Rows of equal and unequal lengths; the last one to nine tokens of each are its response."""
    stream = torch.Generator().manual_seed(rows)

    def draw(low: int, high: int, n: int) -> torch.Tensor:
        return torch.randint(low, high, (n,), generator=stream)

    lengths = draw(10, 20, rows)
    response = draw(1, 10, rows)
    types = torch.cat([(torch.arange(length) >= length - part).long() for length, part in zip(lengths, response, strict=True)])
    zeros = torch.zeros(rows, dtype=torch.long)
    return Batch(draw(5, 100, int(lengths.sum())), types, lengths, zeros.double(), zeros, torch.arange(rows) % adapters, zeros,
                 draw(0, 2**60, rows))  # fmt: skip


def outcome(net: Any, stack: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
    sums, counts = net.token_losses(stack, batch)
    return {**test_models.outcome(net, stack, batch), "sums": sums, "counts": counts.double()}


FAMILIES = {
    "lora": lambda base, p: lora(base, seed=0, rank=2, dropout=p),
    "every target": lambda base, p: lora(base, seed=0, rank=1, dropout=p, targets=EVERY),
    "output map too": lambda base, p: lora(base, seed=0, rank=1, dropout=p, targets=("q", "lm_head")),
    "full": lambda base, p: full(base, seed=0),
}


# peft warns of an adapter on an output map that shares its weight, as GPT-2's does.
PAIRS = [(kind, family) for kind in KINDS for family in FAMILIES if (kind, family) != ("gpt2", "output map too")]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("kind", "family"), PAIRS)
def test_packed_equals_padded(kind: str, family: str, dropout: float) -> None:
    """Losses, gradients of every leaf, logits and token counts."""
    base = base_of(kind, dropout)
    adapter = FAMILIES[family](base, dropout)
    adapters = 1 if family == "full" else 3
    stack, batch = stack_of(adapter, adapters), batch_of(11, adapters)
    fast = outcome(network(base, adapter, packed=True), stack, batch)
    slow = outcome(network(base, adapter, packed=False), stack, batch)
    assert tree.max_difference(fast, slow) < 1e-11
    assert all(float(fast[name].abs().max()) > 0 for name in adapter.init if "wpe" not in name)
    if dropout:
        dry = outcome(network(base_of(kind), FAMILIES[family](base_of(kind), 0.0), packed=True), stack, batch)
        assert tree.max_difference({"x": dry["losses"]}, {"x": fast["losses"]}) > 1e-4, "dropout does something"
        assert torch.allclose(dry["sums"], fast["sums"], atol=1e-11), "but not in evaluation"


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_row_is_transformers_own(kind: str) -> None:
    """Labels are the tokens, with -100 in the prompt; an adapter's loss is the mean of its rows'."""
    base = base_of(kind)
    adapter = lora(base, seed=0, rank=2, targets=EVERY)
    stack, batch = stack_of(adapter, 1), batch_of(5, 1)
    model: Any = PaddedCausal(base, adapter)
    values = {model.names[key]: x[0] for key, x in stack.items()}
    model.model.base_model.model.set_attn_implementation("eager")
    own = []
    for i in range(len(batch)):
        row = batch.pick(torch.tensor([i]))
        labels = row.tokens.masked_fill(row.types == 0, -100)[None]
        inputs = {"input_ids": row.tokens[None], "labels": labels}
        own.append(functional_call(model.model.base_model.model, _inner(values), (), inputs).loss)
    for net in (network(base, adapter, packed=True), network(base, adapter, packed=False)):
        sums, counts = net.token_losses(stack, batch)
        # transformers computes cross-entropies in float32
        assert torch.allclose((sums / counts).float(), torch.stack(own).float(), atol=1e-5)
        assert torch.allclose(net.losses(stack, batch), (sums / counts).mean(), atol=1e-12)


def _inner(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("base_model.model."): x for name, x in values.items()}


def test_the_count_of_responses() -> None:
    batch = batch_of(7, 1)
    assert responses(batch).tolist() == [int(types.sum()) for types in batch.types.split(batch.lengths.tolist())]


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_sees_nothing_behind_it(kind: str) -> None:
    """Changing the last token changes no logits: they predict up to it."""
    base = base_of(kind)
    adapter = lora(base, seed=0, rank=2)
    stack, batch = stack_of(adapter, 1), batch_of(1, 1)
    other = Batch(**{**vars(batch), "tokens": torch.cat([batch.tokens[:-1], batch.tokens[-1:] * 0 + 7])})
    net = network(base, adapter, packed=True)
    assert torch.equal(net.logits(stack, batch), net.logits(stack, other))
    first = Batch(**{**vars(batch), "tokens": torch.cat([batch.tokens[:1] * 0 + 7, batch.tokens[1:]])})
    assert not torch.allclose(net.logits(stack, batch), net.logits(stack, first), atol=1e-3)


def test_packing_rows_of_others_changes_nothing() -> None:
    base = base_of("llama", 0.2)
    adapter = lora(base, seed=0, rank=2, dropout=0.2)
    assert batches_adapters(base, adapter)
    stack, batch = stack_of(adapter, 3), batch_of(12, 3)
    net = network(base, adapter, packed=True)
    together = net.losses(stack, batch)
    for g in range(3):
        own = batch.pick(torch.nonzero(batch.owner == g).squeeze(1))
        alone = Batch(**{**vars(own), "owner": torch.zeros_like(own.owner)})
        assert torch.allclose(net.losses(tree.rows(stack, [g]), alone)[0], together[g], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_over_r_is_applied_once(kind: str) -> None:
    """Against weights to which (alpha / r) B A was added by hand; GPT-2 keeps its weights transposed."""
    base, merged = base_of(kind), base_of(kind)
    adapter = lora(base, seed=0, rank=4, alpha=6.0, targets=EVERY)
    stack, batch = stack_of(adapter, 1), batch_of(5, 1)
    for name in adapter.modules:
        product = 1.5 * stack[f"{name}/lora_B"][0] @ stack[f"{name}/lora_A"][0]
        merged.model.get_submodule(name).weight.add_(product.t() if kind == "gpt2" else product)
    whole = full(merged, seed=0)
    plain = network(merged, whole, packed=True).logits(tree.stack([whole.init]), batch)
    assert torch.allclose(network(base, adapter, packed=True).logits(stack, batch), plain, atol=1e-10)


def test_roles_of_gpt2_share_the_fused_map() -> None:
    base = base_of("gpt2")
    assert resolve(base.model, "gpt2", ["q", "v"]) == tuple(f"transformer.h.{i}.attn.c_attn" for i in (0, 1))
    leaves = {leaf.name: leaf.shape for leaf in lora(base, seed=0, rank=2, targets=("v", "up")).spec.leaves}
    assert leaves["transformer.h.0.attn.c_attn/lora_B"] == (48, 2)
    assert leaves["transformer.h.0.mlp.c_fc/lora_A"] == (2, 16)
    assert leaves["transformer.h.0.mlp.c_fc/lora_B"] == (64, 2)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_is_transformers_greedy_search(kind: str, packed: bool) -> None:
    """Prompts of unequal lengths together, against ``generate`` of the peft model on each prompt alone."""
    base = base_of(kind)
    adapter = lora(base, seed=0, rank=2)
    stack, batch = stack_of(adapter, 1), batch_of(6, 1)
    reference = PaddedCausal(base, adapter)
    model: Any = reference.model
    model.load_state_dict({reference.names[key]: x[0] for key, x in stack.items()}, strict=False)
    model.base_model.model.set_attn_implementation("eager")
    found = network(base, adapter, packed=packed).generate(stack, batch, 12)  # type: ignore[attr-defined]
    lengths = set()
    for i in range(len(batch)):
        row = batch.pick(torch.tensor([i]))
        prompt = row.tokens[row.types == 0][None]
        out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12,
                             pad_token_id=0)[0, prompt.shape[1] :].tolist()  # fmt: skip
        expected = out[: out.index(reference.end)] if reference.end in out else out
        assert found[i] == expected
        lengths.add(len(expected))
    assert len(lengths) > 1 or kind == "gpt2"


def test_generation_stops_at_the_end_token() -> None:
    base = base_of("llama")
    adapter = lora(base, seed=0, rank=2)
    stack, batch = stack_of(adapter, 1), batch_of(4, 1)
    net: Any = network(base, adapter, packed=True)
    free = net.generate(stack, batch, 8)
    net.end = free[0][2]
    stopped = net.generate(stack, batch, 8)
    assert stopped[0] == free[0][: free[0].index(net.end)]
    assert all(net.end not in row for row in stopped)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_chunked_entropies_are_cross_entropies(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "CHUNK", size)
    stream = torch.Generator().manual_seed(0)
    output = torch.nn.Linear(4, 9, bias=False, dtype=torch.float64).requires_grad_(False)
    hidden = torch.randn(7, 4, generator=stream, dtype=torch.float64, requires_grad=True)
    targets, weight = torch.randint(0, 9, (7,), generator=stream), torch.rand(7, generator=stream, dtype=torch.float64)
    found, expected = entropy.entropies(output, hidden, targets), F.cross_entropy(output(hidden), targets, reduction="none")
    assert torch.allclose(found, expected, atol=1e-14)
    grads = [torch.autograd.grad((losses * weight).sum(), hidden)[0] for losses in (found, expected)]
    assert torch.allclose(*grads, atol=1e-14)
    assert entropy.entropies(output, hidden[:0], targets[:0]).shape == (0,)


def test_a_tied_output_map_that_trains_gets_its_gradient() -> None:
    base = base_of("gpt2")
    adapter = full(base, seed=0)
    assert not [name for name in adapter.init if "lm_head" in name], "one leaf for the shared weight"
    out = outcome(network(base, adapter, packed=True), tree.stack([adapter.init]), batch_of(4, 1))
    assert float(out["transformer.wte/weight"].abs().min(dim=-1).values.max()) > 0, "words that do not occur get it from the output"


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_to_float32_on_both_ways(kind: str) -> None:
    def run(precision: str, packed: bool) -> dict[str, torch.Tensor]:
        base = base_of(kind, precision=precision)
        adapter = lora(base, seed=0, rank=2)
        return outcome(network(base, adapter, packed=packed), stack_of(adapter, 1), batch_of(6, 1))

    test_models.half_is_close(run, to_float=0.08, to_each_other=0.05)


def test_the_embedding_of_a_tied_output_map_is_halved_with_it() -> None:
    model = base_of("gpt2", precision="bfloat16").model
    assert isinstance(model.transformer.wte, HalfEmbedding)
    assert isinstance(model.lm_head, HalfLinear)
    assert model.transformer.wte.weight is model.lm_head.weight
    assert model.lm_head.weight.dtype == HALF
    assert model.transformer.wte(torch.tensor([3])).dtype == torch.float32
    assert base_of("llama", precision="bfloat16").model.model.embed_tokens.weight.dtype == torch.float32


def test_what_needs_a_head_is_refused() -> None:
    base = base_of("llama")
    assert base.head == ()
    assert not lora(base, seed=0).spec.names("head")
    with pytest.raises(ModelError, match="no classification head to train"):
        head(base, seed=0)
    for policy in ("per-task", "private", "frozen"):
        with pytest.raises(ConfigError, match=r"leave adapter\.head out"):
            lora(base, seed=0, head=policy)  # type: ignore[arg-type]


def test_names_and_lengths_that_cannot_be() -> None:
    with pytest.raises(ModelError, match="did you mean 'llama'"):
        load(ModelConfig(name="tiny:lama"), classes=0, seed=0)
    with pytest.raises(ModelError, match="has 300 positions"):
        load(ModelConfig(name="tiny:gpt2", max_length=301), classes=0, seed=0)


def test_padding_is_on_the_right() -> None:
    """What the causal mask relies on."""
    _, _, present = pad(batch_of(3, 1), 0)
    assert all(row == sorted(row, reverse=True) for row in present.tolist())


def test_the_packed_form_shares_the_base() -> None:
    base = base_of("llama")
    packed = network(base, lora(base, seed=0), packed=True)
    assert isinstance(packed, PackedCausal)
    assert {p.data_ptr() for p in packed.model.parameters()} == {p.data_ptr() for p in base.model.parameters()}
