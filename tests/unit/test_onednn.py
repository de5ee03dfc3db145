"""Frozen maps multiplied by oneDNN against the same maps as torch multiplies them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fedquilt.adapters.lora import lora
from fedquilt.adapters.vectors import bitfit
from fedquilt.adapters.whole import full
from fedquilt.errors import ConfigError
from fedquilt.models import onednn
from fedquilt.models.loading import Base, ModelConfig, load
from fedquilt.models.network import network
from fedquilt.runs.env import write_env
from fedquilt.testing import tiny_config
from tests.unit.test_models import batch_of, outcome, stack_of

FAMILIES = {"lora": lora, "full": full, "bitfit": bitfit}


def turned(inside: int, outside: int, *, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """The same frozen map twice: as oneDNN multiplies it, in float64."""
    layer, exact = nn.Linear(inside, outside, bias=bias), nn.Linear(inside, outside, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    onednn.turn(nn.ModuleList([layer.requires_grad_(False)]), keep=())
    return layer, exact.requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 7), (33, 7), (2, 5, 7), (0, 7)])
def test_products_and_their_gradients(shape: tuple[int, ...], bias: bool) -> None:
    layer, exact = turned(7, 5, bias=bias)
    assert isinstance(layer, onednn.OneDnnLinear)
    x = torch.randn(shape).requires_grad_()
    twin = x.detach().double().requires_grad_()
    for out, where, dtype in ((layer(x), x, torch.float32), (exact(twin), twin, torch.float64)):
        assert out.dtype == dtype
        out.backward(torch.ones_like(out).cumsum(-1))
        assert where.grad is not None
    torch.testing.assert_close(layer(x).double(), exact(twin), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), twin.grad, rtol=1e-5, atol=1e-6)


def test_gradients_that_do_not_lie_in_one_piece() -> None:
    layer, exact = turned(7, 5)
    for grad in (torch.randn(5, 6).t(), torch.randn(6, 1).expand(6, 5), torch.randn(12, 10)[::2, ::2]):
        x = torch.randn(6, 7).requires_grad_()
        layer(x).backward(grad)
        torch.testing.assert_close(x.grad, (grad.double() @ exact.weight).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trained", ["weight", "bias", "another weight"])
def test_with_other_weights_it_is_an_ordinary_map(trained: str) -> None:
    """The transposed copy is of the loaded weight: it must not be used with another one, trained or not."""
    layer, exact = turned(4, 3)
    values = {name: tensor + 1 for name, tensor in layer.state_dict().items() if trained.endswith(name)}
    values = {name: tensor.requires_grad_(trained != "another weight") for name, tensor in values.items()}
    x = torch.randn(5, 4).requires_grad_()
    functional_call(layer, values, (x,)).square().sum().backward()
    twins = {name: tensor.detach().double().requires_grad_() for name, tensor in values.items()}
    y = x.detach().double().requires_grad_()
    functional_call(exact, twins, (y,)).square().sum().backward()
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-5)
    for name, tensor in values.items():
        if trained != "another weight":
            torch.testing.assert_close(tensor.grad.double(), twins[name].grad, rtol=1e-5, atol=1e-5)


def test_a_weight_that_changes_in_place() -> None:
    layer, exact = turned(4, 3)
    for factor in (1.0, 2.0):
        with torch.no_grad():
            layer.weight.mul_(factor)
            exact.weight.mul_(factor)
        x = torch.randn(5, 4).requires_grad_()
        layer(x).sum().backward()
        torch.testing.assert_close(x.grad, exact.weight.sum(0).float().expand(5, 4), rtol=1e-5, atol=1e-6)


def test_without_gradients_there_is_no_second_copy() -> None:
    layer, _ = turned(4, 3)
    with torch.no_grad():
        layer(torch.randn(5, 4))
    assert layer.other is None
    assert not layer(torch.randn(5, 4).requires_grad_())._is_view(), "adapters add in place"


def loaded(monkeypatch: pytest.MonkeyPatch, kind: str, *, by_onednn: bool) -> Base:
    monkeypatch.setattr(onednn, "pays", lambda: by_onednn)
    return load(ModelConfig.model_validate({"name": f"tiny:{kind}"}), classes=3, seed=0)


@pytest.mark.parametrize("kind", ["bert", "vit", "deberta-v2"])
def test_frozen_maps_outside_the_head_and_nothing_that_is_saved_or_compared(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    base, plain = (loaded(monkeypatch, kind, by_onednn=which) for which in (True, False))
    maps = {name for name, module in base.model.named_modules() if isinstance(module, nn.Linear)}
    inside = {name for name in maps if name.split(".")[0] in base.head}
    assert inside, "no head found"
    assert {name for name, module in base.model.named_modules() if isinstance(module, onednn.OneDnnLinear)} == maps - inside
    assert not any(isinstance(module, onednn.OneDnnLinear) for module in plain.model.modules())
    assert [name for name, _ in base.model.named_parameters()] == [name for name, _ in plain.model.named_parameters()]
    assert base.fingerprint == plain.fingerprint


def test_it_can_be_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    base = loaded(monkeypatch, "bert", by_onednn=True)
    onednn.turn_back(base.model)
    assert not any(isinstance(module, onednn.OneDnnLinear) for module in base.model.modules())


def test_a_model_without_room_for_a_second_copy_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "ROOM", 1)
    base = loaded(monkeypatch, "bert", by_onednn=True)
    assert not any(isinstance(module, onednn.OneDnnLinear) for module in base.model.modules())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_losses_and_gradients_are_those_of_the_other_library(monkeypatch: pytest.MonkeyPatch, family: str, packed: bool) -> None:
    def found(by_onednn: bool) -> dict[str, torch.Tensor]:
        base = loaded(monkeypatch, "bert", by_onednn=by_onednn)
        adapter = FAMILIES[family](base, seed=0)
        return outcome(network(base, adapter, packed=packed), stack_of(adapter, 1), batch_of(6, 1))

    for own, other in zip(found(True).values(), found(False).values(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("avx512", "maker", "wanted", "expected"),
    [
        (True, "AuthenticAMD", "", True),
        (True, "GenuineIntel", "", False),
        (False, "AuthenticAMD", "", False),
        (True, "", "", False),
        (False, "GenuineIntel", "onednn", True),
        (True, "AuthenticAMD", "mkl", False),
    ],
)
def test_where_it_pays(monkeypatch: pytest.MonkeyPatch, avx512: bool, maker: str, wanted: str, expected: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(onednn, "maker", lambda: maker)
    monkeypatch.setenv(onednn.VARIABLE, wanted)
    assert onednn.pays.__wrapped__() is expected


def test_an_unknown_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(onednn.VARIABLE, "onednm")
    with pytest.raises(ConfigError, match="did you mean 'onednn'"):
        onednn.pays.__wrapped__()
    monkeypatch.setenv(onednn.VARIABLE, "onednn")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="does not have"):
        onednn.pays.__wrapped__()


@pytest.mark.parametrize(
    ("pays", "precision", "name"),
    [(True, "float32", "oneDNN"), (False, "float32", "torch"), (True, "bfloat16", "torch"), (True, "float64", "torch")],
)
def test_a_run_says_which_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pays: bool, precision: str, name: str) -> None:
    monkeypatch.setattr(onednn, "pays", lambda: pays)
    config = tiny_config("fedit", model={"name": "tiny:bert", "precision": precision})
    write_env(SimpleNamespace(config=config, base=SimpleNamespace(drawn=())), tmp_path)  # type: ignore[arg-type]
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["products"] == name
    assert env["chosen"] == json.loads(config.chosen())  # what comparisons of runs go by
