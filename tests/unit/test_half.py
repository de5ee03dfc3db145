"""Frozen maps in bfloat16 against the same model in float32, and the two ways of running it against each other."""

from __future__ import annotations

import pytest
import torch

from fedquilt.adapters.lora import lora
from fedquilt.adapters.whole import full
from fedquilt.models.half import HALF, HalfLinear
from fedquilt.models.loading import Base, ModelConfig, load
from fedquilt.models.network import network
from fedquilt.testing import run_tiny, tiny_config
from tests.unit.test_models import batch_of, half_is_close, outcome, stack_of


def loaded(kind: str, precision: str) -> Base:
    return load(ModelConfig.model_validate({"name": f"tiny:{kind}", "precision": precision, "dropout": 0.0}), classes=3, seed=0)


def test_a_half_linear_rounds_input_weight_and_output_only() -> None:
    plain = torch.nn.Linear(7, 5)
    x = torch.randn(3, 7)
    exact = (x.to(HALF).double() @ plain.weight.to(HALF).double().t() + plain.bias.to(HALF).double()).to(HALF).float()
    plain.__class__ = HalfLinear
    found = plain(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=2**-7, atol=1e-6)  # one unit in the last of bfloat16's 8 bits
    assert torch.equal(found, plain.to(HALF)(x)), "a weight that was rounded already gives the same product"


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2"])
def test_only_frozen_maps_outside_the_head_are_halved(kind: str) -> None:
    base = loaded(kind, "bfloat16")
    linears = {name: module for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear)}
    inside = {name for name in linears if name.split(".")[0] in base.head}
    assert inside, "no head found"
    assert {name for name, module in linears.items() if isinstance(module, HalfLinear)} == set(linears) - inside
    assert all(module.weight.dtype == (torch.float32 if name in inside else HALF) for name, module in linears.items())
    assert base.dtype == torch.float32


def test_the_fingerprint_tells_the_precisions_apart() -> None:
    assert loaded("bert", "bfloat16").fingerprint != loaded("bert", "float32").fingerprint
    assert loaded("bert", "bfloat16").fingerprint == loaded("bert", "bfloat16").fingerprint


@pytest.mark.parametrize("family", ["lora", "full"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_losses_and_gradients_are_close_to_float32_and_the_same_on_both_ways(kind: str, family: str) -> None:
    def run(precision: str, packed: bool) -> dict[str, torch.Tensor]:
        base = loaded(kind, precision)
        adapter = lora(base, seed=0, rank=2) if family == "lora" else full(base, seed=0)
        return outcome(network(base, adapter, packed=packed), stack_of(adapter, 1), batch_of(6, 1))

    half_is_close(run, to_float=0.06, to_each_other=0.03)


@pytest.mark.parametrize("family", ["lora", "full"])
def test_what_travels_is_float32(family: str) -> None:
    model = {"name": "tiny:bert", "precision": "bfloat16"}
    found = run_tiny(tiny_config("fedit", model=model, method={"lr": 1e-2, "steps": 1, "adapter": family}))
    assert [line["rejected"] for line in found.rounds] == [[], []]
    assert {leaf.dtype for leaf in found.built.adapter.spec.leaves} == {torch.float32}
    assert {tensor.dtype for tensor in found.hub.bank.values()} == {torch.float32}
