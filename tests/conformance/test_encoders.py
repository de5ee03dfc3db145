"""Every encoder that is let in, against transformers' own forward; and those that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from exported import by_card, theirs
from torch import Tensor

from fedquilt import tree
from fedquilt.adapters.base import Adapter
from fedquilt.adapters.export import write
from fedquilt.errors import ModelError
from fedquilt.models.loading import ENCODERS, Base, ModelConfig, load, tiny_tokenizer, tiny_vocabulary
from fedquilt.models.network import network
from fedquilt.models.room import learnt_positions
from fedquilt.runs import registry
from fedquilt.types import Batch

# peft asks transformers for something by its old name, in the user's own code too.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "embedding_size": 16,
         "max_position_embeddings": 140, "type_vocab_size": 2, "initializer_range": 0.2, "pooler_hidden_size": 16,
         "relative_attention": True, "intra_bottleneck_size": 16, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
         "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}  # fmt: skip
REFUSED = ("squeezebert", "albert", "modernbert", "convbert", "fnet", "nystromformer", "gpt2", "llama")
FAMILIES: dict[str, dict[str, Any]] = {"lora": {"rank": 2}, "ia3": {}, "prompt": {"tokens": 3}, "tt": {"rank": 2, "bottleneck": 8},
                                       "bottleneck": {"bottleneck": 4}, "bitfit": {}, "ssf": {}}  # fmt: skip


def saved(kind: str, folder: Path) -> Path:
    """A random model of few numbers, with its tokenizer."""
    config = transformers.AutoConfig.for_model(kind)
    sizes = {key: value for key, value in SIZES.items() if hasattr(config, key)}
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(tiny_vocabulary()), num_labels=3, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def opened(folder: Path, **more: Any) -> Base:
    return load(ModelConfig(name=str(folder), precision="float64", **more), classes=3, seed=0)


def batch_of(rows: int) -> Batch:
    stream = torch.Generator().manual_seed(rows)
    lengths = torch.randint(3, 20, (rows,), generator=stream)
    total = int(lengths.sum())
    tokens, types = torch.randint(5, 60, (total,), generator=stream), torch.randint(0, 2, (total,), generator=stream)
    nothing = torch.zeros(rows, dtype=torch.long)
    keys = torch.randint(0, 2**60, (rows,), generator=stream)
    return Batch(tokens, types, lengths, nothing.double(), nothing + 3, nothing, nothing, keys)


def adapter_of(base: Base, family: str, **options: Any) -> tuple[Adapter, dict[str, Tensor]]:
    """An adapter that is not at its start."""
    adapter = registry.load("fedquilt.adapters", family)(base, seed=0, **options)
    object.__setattr__(adapter, "options", options)
    stream = torch.Generator().manual_seed(2)
    return adapter, {key: x + 0.2 * torch.randn(x.shape, generator=stream, dtype=x.dtype) for key, x in adapter.init.items()}


@pytest.mark.parametrize("kind", ENCODERS)
def test_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """Logits, and losses under dropout, of padded rows against those of every row alone."""
    base = opened(saved(kind, tmp_path), dropout=0.3)
    adapter, state = adapter_of(base, "head")
    batch, stack = batch_of(5), tree.stack([state])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3).double().eval()
    for key, x in state.items():
        model.get_parameter(key.replace("/head.", ".")).data.copy_(x)
    expected = theirs(model, batch)
    assert float(expected.std(0).min()) > 1e-3, "rows differ"
    for packed in (True, False):
        net = network(base, adapter, packed=packed)
        torch.testing.assert_close(net.logits(stack, batch), expected, rtol=0, atol=1e-6)
        together = net.losses(stack, batch)
        alone = torch.cat([net.losses(stack, batch.pick(torch.tensor([row]))) for row in range(len(batch))])
        torch.testing.assert_close(alone.mean(0, keepdim=True), together, rtol=0, atol=1e-12)  # masks are each row's own
        dry = network(opened(tmp_path, dropout=0.0), adapter, packed=packed).losses(stack, batch)
        assert float((dry - together).abs()) > 1e-3, "there is dropout"


@pytest.mark.parametrize("kind", ENCODERS)
def test_learnt_positions_are_as_many_as_the_model_can_read(kind: str, tmp_path: Path) -> None:
    model = opened(saved(kind, tmp_path)).model

    def reads(length: int) -> bool:
        ids = torch.full((1, length), 5)
        try:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        except (IndexError, RuntimeError):
            return False
        return True

    most = learnt_positions(model)
    assert most == max(length for length in range(130, 150) if reads(length))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_distilbert_with_both_maps_of_its_head(family: str, tmp_path: Path) -> None:
    base = opened(saved("distilbert", tmp_path / "base"))
    assert base.head == ("pre_classifier", "classifier")
    adapter, state = adapter_of(base, family, **FAMILIES[family])
    assert any(name.startswith("pre_classifier/") for name in state)
    batch, stack = batch_of(5), tree.stack([state])
    expected = network(base, adapter, packed=False).logits(stack, batch)
    torch.testing.assert_close(network(base, adapter, packed=True).logits(stack, batch), expected, rtol=0, atol=1e-12)
    folder = write(base, adapter, state, tmp_path / "adapter", "title")
    torch.testing.assert_close(theirs(by_card(folder, tmp_path / "base"), batch), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", REFUSED)
def test_other_architectures_are_refused_when_they_are_loaded(kind: str, tmp_path: Path) -> None:
    transformers.AutoConfig.for_model(kind).save_pretrained(tmp_path)  # no weights: it is not tried
    with pytest.raises(ModelError, match=f"models of type '{kind}' cannot be used to classify texts"):
        opened(tmp_path)
