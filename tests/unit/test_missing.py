"""Checkpoints that lack layers: what is drawn for them, that everybody draws the same, and that exports bring it along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from door import fedquilt, write_config
from exported import by_card, theirs
from test_models import batch_of, stack_of

from fedquilt import tree
from fedquilt.adapters.export import write
from fedquilt.errors import ConfigError, ModelError
from fedquilt.models.loading import Base, ModelConfig, load
from fedquilt.models.network import network
from fedquilt.runs import registry
from fedquilt.runs.build import check_targets
from fedquilt.runs.config import load_config
from fedquilt.runs.reopen import reopen

# peft asks transformers for something by its old name, in the user's own code too.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

LACKS = {"bert": "bert.pooler.dense", "deberta": "pooler.dense", "deberta-v2": "pooler.dense"}
FAMILIES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "ia3": {},
    "prompt": {"tokens": 3},
    "bottleneck": {"bottleneck": 4},
    "tt": {"rank": 2, "bottleneck": 8},
    "bitfit": {},
    "head": {},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of masked-language modelling, none with a pooler."""
    root = tmp_path_factory.mktemp("checkpoints")
    for kind in LACKS:
        base = load(ModelConfig(name=f"tiny:{kind}"), classes=3, seed=5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            transformers.AutoModelForMaskedLM.from_config(base.model.config).save_pretrained(root / kind)
        base.tokenizer.save_pretrained(root / kind)
    return root


def opened(folder: Path, seed: int = 0, precision: Any = "float64", **more: Any) -> Base:
    return load(ModelConfig(name=str(folder), precision=precision, dropout=0.0, **more), classes=3, seed=seed)


def differing(one: Base, other: Base) -> set[str]:
    theirs = other.model.state_dict()
    return {name for name, x in one.model.state_dict().items() if not torch.equal(x, theirs[name])}


@pytest.mark.parametrize("kind", list(LACKS))
def test_what_is_missing_depends_on_the_seed_alone(kind: str, folders: Path) -> None:
    one = opened(folders / kind)
    torch.randn(7)  # whatever was drawn before
    again, other = opened(folders / kind), opened(folders / kind, seed=1)
    assert one.drawn == (LACKS[kind],)
    assert not differing(one, again)
    assert one.fingerprint == again.fingerprint
    assert differing(one, other) == {f"{LACKS[kind]}.weight", "classifier.weight"}, "biases are zero, the rest is loaded"


def test_other_heads_and_other_gaps_change_no_draw(folders: Path, tmp_path: Path) -> None:
    one = opened(folders / "bert").model
    more = load(ModelConfig(name=str(folders / "bert"), precision="float64"), classes=7, seed=0).model
    lacking = transformers.AutoModelForMaskedLM.from_pretrained(folders / "bert")
    left = {key: x for key, x in lacking.state_dict().items() if "token_type" not in key}
    lacking.save_pretrained(tmp_path, state_dict=left)
    transformers.AutoTokenizer.from_pretrained(folders / "bert").save_pretrained(tmp_path)
    base = opened(tmp_path)
    assert base.drawn == ("bert.embeddings.token_type_embeddings", "bert.pooler.dense")
    for other in (more, base.model):
        assert torch.equal(one.bert.pooler.dense.weight, other.bert.pooler.dense.weight)


def test_it_is_drawn_as_the_architecture_begins(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=100, initializer_range=0.3, **sizes)
    transformers.AutoModel.from_config(config, add_pooling_layer=False).save_pretrained(tmp_path)
    load(ModelConfig(name="tiny:bert"), classes=2, seed=0).tokenizer.save_pretrained(tmp_path)
    dense = opened(tmp_path).model.bert.pooler.dense
    assert abs(float(dense.weight.std()) - 0.3) < 0.01
    assert abs(float(dense.weight.mean())) < 0.02
    assert not dense.bias.any()


def test_what_is_there_stays_in_a_module_that_lacks_something(folders: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_config(opened(folders / "bert").model.config)
    model.bert.pooler.dense.bias.data.fill_(0.5)
    left = {key: x for key, x in model.state_dict().items() if key != "bert.pooler.dense.weight"}
    model.save_pretrained(tmp_path, state_dict=left)
    transformers.AutoTokenizer.from_pretrained(folders / "bert").save_pretrained(tmp_path)
    base = opened(tmp_path)
    assert base.drawn == ("bert.pooler.dense",)
    assert base.model.bert.pooler.dense.bias.unique().tolist() == [0.5]


def test_a_complete_checkpoint_lacks_nothing(folders: Path, tmp_path: Path) -> None:
    base = opened(folders / "bert")
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    again = opened(tmp_path)
    assert (again.drawn, again.notes) == ((), ())
    assert load(ModelConfig(name="tiny:bert"), classes=3, seed=0).drawn == ()


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("kind", list(LACKS))
def test_an_export_brings_it_along(kind: str, family: str, folders: Path, tmp_path: Path) -> None:
    """On a base that the user has loaded from the same checkpoint, where the layer is another one."""
    base = opened(folders / kind)
    adapter = registry.load("fedquilt.adapters", family)(base, seed=0, **FAMILIES[family])
    object.__setattr__(adapter, "options", FAMILIES[family])
    stack, batch = stack_of(adapter, 1), batch_of(5, 1)
    folder = write(base, adapter, tree.row(stack, 0), tmp_path / "adapter", "title")
    expected = network(base, adapter, packed=False).logits(stack, batch)
    torch.testing.assert_close(network(base, adapter, packed=True).logits(stack, batch), expected, rtol=0, atol=1e-12)
    found = theirs(by_card(folder, folders / kind), batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # some of it goes through float32 there


def test_a_run_says_so_and_is_opened_again_as_it_was(folders: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, "fedit", model={"name": str(folders / "deberta")})
    note = f"note: not in the weights of {folders / 'deberta'}: pooler.dense; drawn from the seed"
    said = [fedquilt("run", config, "--dry-run"), *(fedquilt("run", config, "--dir", tmp_path / name) for name in "ab")]
    assert [answer.code for answer in said] == [0, 0, 0]
    assert all(note in " ".join((answer.out + answer.err).split()) for answer in said)
    one, other = ((tmp_path / name / "adapters" / "row-00" / "adapter_model.safetensors").read_bytes() for name in "ab")
    assert one == other
    assert not differing(reopen(tmp_path / "a")[0].base, reopen(tmp_path / "b")[0].base)
    assert load_config(tmp_path / "a" / "config.toml").model.name == str(folders / "deberta")
    env = tmp_path / "a" / "env.json"
    env.write_text(json.dumps({key: value for key, value in json.loads(env.read_text()).items() if key != "drawn"}))
    for words in (("resume", tmp_path / "a"), ("export", tmp_path / "a")):
        assert "the run has another base model" in fedquilt(*words).complaint(5), "before, every process drew its own"


@pytest.mark.parametrize(("family", "more"), [("lora", {"targets": ("dense",)}), ("ia3", {"targets": ("q", "pooler.dense")})])
def test_peft_adapts_nothing_that_it_saves(family: str, more: dict[str, Any], folders: Path) -> None:
    base = opened(folders / "bert")
    adapter = registry.load("fedquilt.adapters", family)(base, seed=0, **more)
    with pytest.raises(ConfigError, match=r"'bert\.pooler\.dense' cannot be adapted"):
        check_targets(base, adapter)
    check_targets(base, registry.load("fedquilt.adapters", family)(base, seed=0))
    whole = load(ModelConfig(name="tiny:bert"), classes=3, seed=0)
    check_targets(whole, registry.load("fedquilt.adapters", family)(whole, seed=0, **more))


def test_a_checkpoint_without_a_block_is_refused(folders: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForMaskedLM.from_pretrained(folders / "bert")
    left = {key: x for key, x in model.state_dict().items() if "layer.1.attention" not in key}
    model.save_pretrained(tmp_path, state_dict=left)
    transformers.AutoTokenizer.from_pretrained(folders / "bert").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lack 'bert\.encoder\.layer\.1\.attention\.[a-zA-Z.]*' and 9 more tensors"):
        opened(tmp_path)


@pytest.mark.parametrize("part", ["word_embeddings", "position_embeddings", "embeddings.LayerNorm"])
def test_a_checkpoint_without_embeddings_is_refused(part: str, folders: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForMaskedLM.from_pretrained(folders / "bert")
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path, state_dict={key: x for key, x in model.state_dict().items() if part not in key})
    transformers.AutoTokenizer.from_pretrained(folders / "bert").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"lack 'bert\.embeddings\..*{part.rpartition('.')[2]}"):
        opened(tmp_path)


def test_a_config_of_another_size_is_refused(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "bert", tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 4}))
    with pytest.raises(ModelError, match=r"lack 'bert\.embeddings\.word_embeddings\.weight'"):
        opened(tmp_path / "bert")


def test_a_language_model_without_its_output_map_is_refused(tmp_path: Path) -> None:
    base = load(ModelConfig(name="tiny:llama"), classes=0, seed=0)
    base.model.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lack 'lm_head\.weight'\n"):
        load(ModelConfig(name=str(tmp_path)), classes=0, seed=0)
    gpt2 = load(ModelConfig(name="tiny:gpt2"), classes=0, seed=0)  # its output map is its embedding
    gpt2.model.transformer.save_pretrained(tmp_path / "gpt2")
    gpt2.tokenizer.save_pretrained(tmp_path / "gpt2")
    again = load(ModelConfig(name=str(tmp_path / "gpt2")), classes=0, seed=0)
    assert torch.equal(again.model.lm_head.weight, gpt2.model.lm_head.weight)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_what_is_missing_cannot_be_quantised(bits: str, folders: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the quant extra")
    with pytest.raises(ModelError, match=r"lack bert\.pooler\.dense"):
        opened(folders / "bert", precision="float32", quantization=bits)
