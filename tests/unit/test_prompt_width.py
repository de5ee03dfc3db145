"""Virtual tokens of a model whose embeddings are narrower than its hidden states, as ELECTRA-small's are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedquilt import tree
from fedquilt.adapters.base import Adapter
from fedquilt.adapters.export import write
from fedquilt.adapters.prompts import p_tuning, prefix, prompt
from fedquilt.models.loading import ModelConfig, load
from fedquilt.models.network import network
from tests.unit.test_models import batch_of, stack_of

# peft asks transformers for something by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

FAMILIES: dict[str, Callable[..., Adapter]] = {"prompt": prompt, "p_tuning": p_tuning, "prefix": prefix}


@pytest.fixture(scope="module")
def electra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ElectraConfig, ElectraForSequenceClassification

    folder = tmp_path_factory.mktemp("electra")
    shape = load(ModelConfig(name="tiny:bert"), classes=3, seed=0)
    config = ElectraConfig.from_dict({**shape.model.config.to_dict(), "model_type": "electra", "embedding_size": 8})
    torch.manual_seed(0)
    ElectraForSequenceClassification(config).save_pretrained(folder)
    shape.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", list(FAMILIES))
def test_peft_opens_the_export_with_equal_logits(family: str, electra: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import ElectraForSequenceClassification

    base = load(ModelConfig(name=str(electra), dropout=0.0), classes=3, seed=0)
    adapter = FAMILIES[family](base, seed=0, tokens=3)
    stack, batch = stack_of(adapter, 1), batch_of(5, 1)
    write(base, adapter, tree.row(stack, 0), tmp_path, "test")
    plain: Any = PeftModel.from_pretrained(ElectraForSequenceClassification.from_pretrained(electra, num_labels=3), tmp_path).eval()
    rows = zip(*(x.split(batch.lengths.tolist()) for x in (batch.tokens, batch.types)), strict=True)
    with torch.no_grad():
        theirs = torch.cat(
            [
                plain(input_ids=ids[None], token_type_ids=types[None], attention_mask=torch.ones_like(ids[None])).logits
                for ids, types in rows
            ]
        )
    for packed in (True, False):
        ours = network(base, adapter, packed=packed).logits(stack, batch)
        assert float((theirs - ours).abs().max()) < 1e-5
    untrained = network(base, adapter, packed=True).logits(tree.stack([adapter.init]), batch)
    assert float((untrained - theirs).abs().max()) > 1e-3
