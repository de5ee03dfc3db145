"""Whole models exported from bases in fewer bits: plain transformers reads the trained numbers, and the base keeps its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedquilt import tree
from fedquilt.adapters.base import Adapter, head_key
from fedquilt.adapters.export import write
from fedquilt.adapters.whole import full, head, last_layers, weight_key
from fedquilt.errors import StateError
from fedquilt.models.loading import Base, ModelConfig, load
from fedquilt.models.network import network
from fedquilt.models.quantised import settle
from fedquilt.types import Batch, State
from tests.unit.test_models import batch_of, stack_of


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved tiny model: what has no file cannot be quantised."""
    base, folder = load(ModelConfig(name="tiny:bert"), classes=3, seed=0), tmp_path_factory.mktemp("bert")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Language models whose output map is their embedding, and one whose is not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tied")
    base = load(ModelConfig(name="tiny:llama"), classes=0, seed=0)
    config = LlamaConfig.from_dict({**base.model.config.to_dict(), "tie_word_embeddings": True})
    LlamaForCausalLM(config).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return {"tied llama": str(folder), "gpt2": "tiny:gpt2", "llama": "tiny:llama"}


def of(folder: str, **more: Any) -> Base:
    return load(ModelConfig.model_validate({"name": folder, "dropout": 0.0, **more}), classes=3, seed=0)


def trained(adapter: Adapter) -> State:
    """Numbers that are not the base's."""
    return tree.row(stack_of(adapter, 1), 0)


def opened(folder: Path) -> Any:
    """The way the exported README says."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def plain(model: Any, batch: Batch) -> Tensor:
    """Logits by transformers, every row alone."""
    rows = zip(*(x.split(batch.lengths.tolist()) for x in (batch.tokens, batch.types)), strict=True)
    with torch.no_grad():
        return torch.cat([model(input_ids=ids[None], token_type_ids=types[None]).logits for ids, types in rows])


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_the_export_of_a_quantised_base_has_the_trained_head(bits: str, bert: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the quant extra")
    base = of(bert, quantization=bits)
    adapter = head(base, seed=0)
    state, batch, before = trained(adapter), batch_of(5, 1), base.fingerprint
    model = opened(write(base, adapter, state, tmp_path / "out", "test"))
    for key, tensor in state.items():
        assert torch.equal(model.get_parameter(head_key(key)), tensor)
    settle(model)  # as fedquilt multiplies: in a pass without gradients bitsandbytes rounds more on some processors
    ours = network(base, adapter, packed=True).logits(tree.stack([state]), batch)
    assert float((plain(model, batch) - ours).abs().max()) < 1e-5
    untrained = network(base, adapter, packed=True).logits(tree.stack([adapter.init]), batch)
    assert float((untrained - ours).abs().max()) > 0.1
    assert of(bert, quantization=bits).fingerprint == before
    base._fingerprint = ""
    assert base.fingerprint == before


@pytest.mark.parametrize("family", [full, last_layers])
@pytest.mark.parametrize("kind", ["tied llama", "gpt2", "llama", "tiny:bert"])
def test_the_export_of_a_base_in_bfloat16_has_the_trained_numbers(
    kind: str, family: Callable[..., Adapter], tied: dict[str, str], tmp_path: Path
) -> None:
    """Updates of a size that bfloat16 cannot hold beside the weights."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = ModelConfig(name=tied.get(kind, kind), precision="bfloat16")
    base = load(config, classes=0 if kind in tied else 3, seed=0)
    adapter = family(base, seed=0)
    state = {key: x + 1e-4 for key, x in adapter.init.items()}
    before = base.fingerprint
    write(base, adapter, state, tmp_path, "test")
    auto = AutoModelForCausalLM if kind in tied else AutoModelForSequenceClassification
    model = auto.from_pretrained(tmp_path)
    values = {weight_key(head_key(key)): tensor for key, tensor in state.items()}
    for name, own in base.model.named_parameters():
        assert torch.equal(model.get_parameter(name), values.get(name, own.float())), name
    base._fingerprint = ""
    assert base.fingerprint == before


def test_a_base_has_its_own_numbers_after_an_export_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load(ModelConfig(name="tiny:bert"), classes=3, seed=0)
    adapter = head(base, seed=0)
    state = trained(adapter)
    seen = []

    def fails(folder: Path) -> None:
        seen.append(base.model.classifier.weight.detach().clone())
        raise SafetensorError("no space")

    monkeypatch.setattr(base.model, "save_pretrained", fails)
    with pytest.raises(StateError, match="cannot write a model"):
        write(base, adapter, state, tmp_path, "test")
    assert torch.equal(seen[0], state["classifier/head.weight"])
    assert torch.equal(base.model.classifier.weight, adapter.init["classifier/head.weight"])
