"""Bases in 8 and 4 bits: what is quantised, that both ways of running agree, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedquilt.adapters.lora import lora
from fedquilt.adapters.whole import full
from fedquilt.errors import ModelError
from fedquilt.models import quantised
from fedquilt.models.loading import Base, ModelConfig, load
from fedquilt.models.network import network
from tests.unit import test_models, test_models_causal
from tests.unit.test_models import stack_of

pytest.importorskip("bitsandbytes", reason="needs the quant extra")

MORE = {"vit": {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}}
CLASSES = {"bert": 3, "roberta": 3, "vit": 3, "llama": 0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Saved tiny models: what has no file cannot be quantised."""
    found = {}
    for kind, classes in CLASSES.items():
        base, folder = load(ModelConfig(name=f"tiny:{kind}"), classes=classes, seed=0), tmp_path_factory.mktemp(kind)
        base.model.save_pretrained(folder)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(folder)
        found[kind] = str(folder)
    return found


def loaded(folders: dict[str, str], kind: str, bits: Any, **more: Any) -> Base:
    config = ModelConfig.model_validate({"name": folders[kind], "quantization": bits, "dropout": 0.0, **more, **MORE.get(kind, {})})
    return load(config, classes=CLASSES[kind], seed=0)


def linears(base: Base) -> dict[str, nn.Linear]:
    return {name: module for name, module in base.model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
@pytest.mark.parametrize(("bits", "dtype"), [("8bit", torch.int8), ("4bit", torch.uint8)])
def test_maps_are_quantised_but_for_heads_and_the_output(folders: dict[str, str], kind: str, bits: str, dtype: torch.dtype) -> None:
    base = loaded(folders, kind, bits)
    kept = {name for name, module in linears(base).items() if module.weight.dtype == torch.float32}
    assert kept == {name for name in linears(base) if name.split(".")[0] in ("classifier", "lm_head")}
    assert {module.weight.dtype for name, module in linears(base).items() if name not in kept} == {dtype}
    assert not [name for name, x in base.model.named_parameters() if x.requires_grad]
    assert lora(base, seed=0).spec.counts() == lora(loaded(folders, kind, None), seed=0).spec.counts()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_four_bits_are_a_model_with_those_weights_on_both_ways(folders: dict[str, str], kind: str, precision: str) -> None:
    """Against plain linear maps that hold the weights which the four bits stand for."""
    from bitsandbytes.functional import dequantize_4bit

    tests: Any = test_models if kind == "bert" else test_models_causal
    found = {}
    for plain, packed in ((False, False), (False, True), (True, True)):
        base = loaded(folders, kind, "4bit", precision=precision)
        for name, module in linears(base).items() if plain else ():
            if module.weight.dtype == torch.uint8:
                parent, _, child = name.rpartition(".")
                own = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
                own.weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
                if own.bias is not None:
                    own.bias.data = module.bias.data.float()
                setattr(base.model.get_submodule(parent), child, own.requires_grad_(False))
        adapter = lora(base, seed=0, rank=2)
        found[plain, packed] = tests.outcome(network(base, adapter, packed=packed), stack_of(adapter, 2), tests.batch_of(6, 2))
    padded, packed_, oracle = found.values()
    for key, x in oracle.items():
        close = (2e-5 if precision == "float32" else 6e-2) * float(x.abs().max()) + (1e-6 if precision == "float32" else 2e-3)
        torch.testing.assert_close(packed_[key], x, rtol=0, atol=close, check_dtype=False)
        torch.testing.assert_close(packed_[key], padded[key], rtol=0, atol=close, check_dtype=False)


@pytest.mark.parametrize("kind", list(CLASSES))
def test_eight_bits_are_close_to_the_model(folders: dict[str, str], kind: str) -> None:
    """Of the base's own output: the last hidden states, within a few per cent of their size."""
    hidden = []
    for bits in (None, "8bit"):
        base = loaded(folders, kind, bits)
        pixels = {"pixel_values": torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))}
        inputs = pixels if kind == "vit" else {"input_ids": torch.arange(5, 25).view(2, 10)}
        with torch.no_grad():
            hidden.append(base.model.base_model(**inputs).last_hidden_state)
    error = float((hidden[1] - hidden[0]).norm() / hidden[0].norm())
    assert 0 < error < 0.05


def test_eight_bits_train_on_both_ways(folders: dict[str, str]) -> None:
    """Activations are rounded too, and which columns are treated apart depends on the rows of a pass."""
    base = loaded(folders, "bert", "8bit")
    adapter = lora(base, seed=0, rank=2)
    fast, slow = (
        test_models.outcome(network(base, adapter, packed=packed), stack_of(adapter, 2), test_models.batch_of(6, 2))
        for packed in (True, False)
    )
    for key, x in slow.items():
        torch.testing.assert_close(fast[key], x, rtol=0, atol=0.05 * float(x.abs().max()) + 1e-3)
    assert all(float(slow[name].abs().max()) > 0 for name in adapter.spec.names("lora_A", "lora_B"))


def test_the_weights_of_the_base_cannot_train(folders: dict[str, str]) -> None:
    for bits in ("8bit", "4bit"):
        with pytest.raises(ModelError, match="cannot be trained"):
            full(loaded(folders, "bert", bits), seed=0)


def test_the_fingerprint_tells_them_apart(folders: dict[str, str]) -> None:
    assert len({loaded(folders, "bert", bits).fingerprint for bits in (None, "8bit", "4bit")}) == 3
    assert loaded(folders, "bert", "4bit").fingerprint == loaded(folders, "bert", "4bit").fingerprint


def test_what_cannot_be_quantised_is_refused(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, classes in CLASSES.items():
        with pytest.raises(ModelError, match="made up"):
            load(ModelConfig(name=f"tiny:{kind}", quantization="4bit"), classes=classes, seed=0)
    with pytest.raises(ModelError, match="exclude"):
        loaded(folders, "bert", "8bit", precision="float64")
    with monkeypatch.context() as patch:
        real = importlib.util.find_spec
        patch.setattr(quantised, "find_spec", lambda name: None if name == "bitsandbytes" else real(name))
        with pytest.raises(ModelError, match=r"fedquilt\[quant\]"):
            loaded(folders, "llama", "4bit")
    assert Path(folders["llama"]).is_dir()
