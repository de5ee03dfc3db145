"""Targets whose ending is found in the head too: the head gets no adapter, whatever it is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedquilt import tree
from fedquilt.adapters.base import Adapter
from fedquilt.adapters.bottleneck import bottleneck
from fedquilt.adapters.export import write
from fedquilt.adapters.lora import lora
from fedquilt.adapters.tt.family import tt
from fedquilt.adapters.vectors import ia3
from fedquilt.errors import ModelError
from fedquilt.models.loading import ModelConfig, load
from fedquilt.models.network import network
from fedquilt.testing import run_tiny, tiny_config
from tests.unit.test_models import base_of, batch_of, outcome, stack_of

# peft asks transformers for something by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

FAMILIES: dict[str, Callable[..., Adapter]] = {"lora": lora, "ia3": ia3, "bottleneck": bottleneck, "tt": tt}
HEADS = [("bert", "classifier"), ("roberta", "out_proj"), ("vit", "classifier"), ("deberta-v2", "classifier")]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_an_ending_that_the_head_has_too_means_the_others(family: str) -> None:
    """RoBERTa's head has a map called dense, as every block does."""
    base = base_of("roberta")
    adapter = FAMILIES[family](base, seed=0, targets=("dense",))
    wanted = {name for name, module in base.model.named_modules() if isinstance(module, nn.Linear) and name.endswith(".dense")}
    adapted = {leaf.name.partition("/")[0] for leaf in adapter.spec.leaves if leaf.role != "head"}
    assert adapted == wanted - {"classifier.dense"}
    stack, batch = stack_of(adapter, 3), batch_of(11, 3)
    fast, slow = (outcome(network(base, adapter, packed=packed), stack, batch) for packed in (True, False))
    assert tree.max_difference(fast, slow) < 1e-11
    assert all(float(fast[name].abs().max()) > 0 for name in adapter.spec.names()), "every leaf has a gradient"


@pytest.mark.parametrize("engine", ["vectorised", "sequential"])
def test_the_heads_maps_train_beside_it(engine: str) -> None:
    model, adapter = {"name": "tiny:roberta", "precision": "float64"}, {"rank": 2, "targets": ["dense"]}
    found = run_tiny(tiny_config("fedit", method={"lr": 0.01, "steps": 2}, adapter=adapter, model=model, engine=engine))
    moved = {key: float((x - found.built.adapter.init[key]).abs().max()) for key, x in found.hub.bank.items()}
    assert {key for key in moved if key.startswith("classifier.dense")} == {
        "classifier.dense/head.weight",
        "classifier.dense/head.bias",
    }
    assert all(value > 1e-3 for value in moved.values())


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize(("kind", "target"), HEADS)
def test_an_ending_that_the_head_alone_has_is_refused(kind: str, target: str, family: str) -> None:
    with pytest.raises(ModelError, match=f"'{target}' is in the head alone") as caught:
        FAMILIES[family](base_of(kind), seed=0, targets=("q", target))
    assert "adapter.head" in str(caught.value)
    assert "adapter.targets" in str(caught.value)


@pytest.mark.parametrize("family", ["lora", "ia3"])
def test_peft_adapts_the_same_maps_of_a_deep_model(family: str, tmp_path: Path) -> None:
    """Of twenty targets on it looks for shorter endings, which must not fit the head."""
    from peft import PeftModel
    from transformers import RobertaConfig, RobertaForSequenceClassification

    shape = load(ModelConfig(name="tiny:roberta"), classes=3, seed=0)
    config = RobertaConfig.from_dict({**shape.model.config.to_dict(), "num_hidden_layers": 8})
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "base")
    shape.tokenizer.save_pretrained(tmp_path / "base")
    base = load(ModelConfig(name=str(tmp_path / "base")), classes=3, seed=0)
    adapter = FAMILIES[family](base, seed=0, targets=("dense",))
    stack, batch = stack_of(adapter, 1), batch_of(5, 1)
    write(base, adapter, tree.row(stack, 0), tmp_path / "out", "test")
    plain: Any = PeftModel.from_pretrained(
        RobertaForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3), tmp_path / "out"
    )
    ours = network(base, adapter, packed=True).logits(stack, batch)
    with torch.no_grad():
        theirs = torch.cat([plain.eval()(input_ids=ids[None]).logits for ids in batch.tokens.split(batch.lengths.tolist())])
    assert float((theirs - ours).abs().max()) < 1e-5
    assert len(adapter.spec.names("scale", "lora_A")) == 24
