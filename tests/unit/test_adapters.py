"""Adapter families: their sizes, and what they compute, against definitions written out here and against peft."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from peft import IA3Config, get_peft_model
from test_models import base_of, batch_of, outcome, stack_of
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedquilt import load_adapter, tree
from fedquilt.adapters.base import Adapter
from fedquilt.adapters.bottleneck import bottleneck
from fedquilt.adapters.export import write
from fedquilt.adapters.lora import lora
from fedquilt.adapters.prompts import p_tuning, prefix, prompt
from fedquilt.adapters.tt import family
from fedquilt.adapters.tt.family import tt
from fedquilt.adapters.tt.maps import dense
from fedquilt.adapters.vectors import bitfit, ia3, layer_norms, ssf
from fedquilt.adapters.whole import head, last_layers
from fedquilt.assign.features import standardised
from fedquilt.engine.batches import Draw
from fedquilt.errors import ConfigError, ModelError, StateError
from fedquilt.models.loading import Base, ModelConfig, load
from fedquilt.models.loss import cut
from fedquilt.models.meta import Use, find_shape, meta_base
from fedquilt.models.network import batches_adapters, network
from fedquilt.models.padded import Padded, additive_mask, pad
from fedquilt.models.prompts import Prompt
from fedquilt.runs import registry
from fedquilt.testing import build_tiny, run_tiny, tiny_config
from fedquilt.types import Batch, Leaf, Spec

# peft asks transformers for something by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

ROBERTA, LARGE, DEBERTA = "FacebookAI/roberta-base", "FacebookAI/roberta-large", "microsoft/deberta-base"
VIT, LLAMA = "google/vit-base-patch16-224-in21k", "meta-llama/Llama-2-7b-hf"


def spec_of(family: str, model: str, use: Use = "text", classes: int = 2, **options: Any) -> Spec:
    config = ModelConfig(name=model)
    base = meta_base(find_shape(config), config, use, classes)
    adapter: Adapter = registry.load("fedquilt.adapters", family)(base, seed=0, **options)
    return adapter.spec


# ---- sizes: what the papers and other libraries count ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Deberta", "DebertaV2", "Electra", "DistilBert", "Ernie"])
def test_every_heads_hidden_map_is_found(kind: str) -> None:
    """The square map that the head's last map reads from: nothing else may be replaced by the tensor train."""
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(getattr(transformers, f"{kind}Config")())
    base = Base(model, None, kind, model.config.model_type, ("classifier",), torch.float32, "")
    name = family._hidden(base)
    found = model.get_submodule(name)
    assert (found.in_features, found.out_features) == (model.config.hidden_size,) * 2
    assert any(part in name for part in ("pooler", "classifier"))


@pytest.mark.parametrize(
    ("rank", "cores", "biases", "classifier", "total"),
    [(2, 6_912, 19_968, 176, 29_362), (5, 37_440, 19_968, 920, 60_634), (8, 92_160, 19_968, 2_240, 116_674)],
)
def test_fedtt_on_a_base_model(rank: int, cores: int, biases: int, classifier: int, total: int) -> None:
    spec = spec_of("tt", ROBERTA, rank=rank)
    assert (spec.size("core"), spec.size("bias"), spec.size()) == (cores, biases, total)
    assert sum(leaf.size for leaf in spec.leaves if leaf.role == "head" and leaf.core) == classifier
    assert spec.size("head") == classifier + 768 + (768 * 2 + 2)


def test_fedtt_on_large_models() -> None:
    large = spec_of("tt", LARGE)
    assert (large.size("core"), large.size("bias"), large.size()) == (80_640, 52_224, 137_178)
    llama = spec_of("tt", LLAMA, "generation", 0)
    assert (llama.size("core"), llama.size("bias"), llama.size()) == (140_800, 266_240, 407_040)
    lora = spec_of("lora", LLAMA, "generation", 0, rank=8)
    assert lora.size() == 4_194_304
    assert round(lora.size() / llama.size(), 1) == 10.3  # the paper's "up to 10x"
    assert spec_of("tt", LLAMA, "generation", 0, bias=False).size() == 140_800


@pytest.mark.parametrize(
    ("family", "options", "size"),
    [
        ("bitfit", {}, 102_144),
        ("bottleneck", {"bottleneck": 16}, 608_640),
        ("bottleneck", {"bottleneck": 64}, 2_379_264),
        ("ia3", {}, 55_296),  # the paper's targets; peft's defaults: 64,512
        ("layer_norms", {}, 12 * 4 * 768 + 2 * 768),
        ("lora", {"rank": 1}, 36_864),
        ("lora", {"rank": 8}, 294_912),
        ("tt", {}, 37_440 + 19_968),
        ("prompt", {"tokens": 10}, 7_680),
        ("prompt", {"tokens": 20}, 15_360),
        ("prompt", {"tokens": 100}, 76_800),
        ("p_tuning", {"tokens": 20}, 229_376),
        ("p_tuning", {"tokens": 20, "hidden": 768}, 1_787_136),
        ("prefix", {"tokens": 8}, 147_456),
        ("prefix", {"tokens": 16}, 294_912),
        ("prefix", {"tokens": 64}, 1_179_648),
    ],
)
def test_families_on_roberta(family: str, options: Mapping[str, Any], size: int) -> None:
    assert spec_of(family, ROBERTA, **options).counts()["adapter"] == size


@pytest.mark.parametrize(("layers", "size"), [(1, 8_192), (3, 24_576), (6, 49_152), (12, 98_304), (24, 196_608), (None, 196_608)])
def test_lora_on_the_last_layers(layers: int | None, size: int) -> None:
    """The baseline of FedTT's comparison with RoLoRA: rank 2 on the last blocks of RoBERTa-large."""
    spec = spec_of("lora", LARGE, rank=2, layers=layers)
    assert spec.counts()["adapter"] == size
    blocks = {int(leaf.name.split(".")[3]) for leaf in spec.leaves if leaf.role != "head"}
    assert blocks == set(range(24 - (layers or 24), 24))


@pytest.mark.parametrize("family", ["lora", "tt", "bottleneck", "ia3"])
def test_families_on_the_last_layers(family: str) -> None:
    whole, part = (spec_of(family, ROBERTA, layers=layers).counts()["adapter"] for layers in (12, 3))
    assert whole == 4 * part
    with pytest.raises(ModelError, match="has 12 blocks, not 13"):
        spec_of(family, ROBERTA, layers=13)


def test_families_on_other_models() -> None:
    assert spec_of("ssf", VIT, "image", 10).counts()["adapter"] == 205_824
    assert spec_of("bitfit", DEBERTA).counts()["adapter"] == 102_914 - 2  # the classifier's bias is the head's
    assert spec_of("full", ROBERTA).size() == 124_647_170
    per_block = 12 * 768**2 + 13 * 768  # q, k, v, o, two feed-forward maps, two norms
    assert spec_of("last_layers", ROBERTA, layers=3).counts()["adapter"] == 3 * per_block


# ---- what they compute -----------------------------------------------------------------------------------------------------

Reference = Callable[[nn.Module, dict[str, Tensor]], None]


def hooked(model: nn.Module, state: dict[str, Tensor], change: Callable[[dict[str, Tensor], Tensor], Tensor]) -> None:
    """``change(tensors, output)`` behind every module that has tensors in ``state``."""
    for name in sorted({key.partition("/")[0] for key in state if "/head." not in key}):
        own = {key.partition("/")[2]: x for key, x in state.items() if key.startswith(f"{name}/")}
        model.get_submodule(name).register_forward_hook(lambda _, args, y, own=own: change(own, y))


def houlsby(model: nn.Module, state: dict[str, Tensor]) -> None:
    def change(own: dict[str, Tensor], y: Tensor) -> Tensor:
        hidden = F.gelu(y @ own["down.weight"].T + own["down.bias"])
        return y + hidden @ own["up.weight"].T + own["up.bias"]

    hooked(model, state, change)


def trains(model: nn.Module, state: dict[str, Tensor]) -> None:
    def built(own: dict[str, Tensor], name: str, inside: int) -> Tensor:
        cores = sorted((key for key in own if key.startswith(f"{name}.core.")), key=lambda key: int(key.rpartition(".")[2]))
        return dense([own[key] for key in cores], inside)

    def change(own: dict[str, Tensor], y: Tensor) -> Tensor:
        hidden = torch.tanh(y @ built(own, "down", y.shape[-1]) + own["down.bias"])
        return y + hidden @ built(own, "up", hidden.shape[-1]) + own["up.bias"]

    hooked(model, {key: x for key, x in state.items() if "/head.core" not in key}, change)
    hidden = next(key for key in state if "/head.core" in key).partition("/")[0]
    linear: Any = model.get_submodule(hidden)
    own = {key.partition("/")[2]: x for key, x in state.items() if key.startswith(f"{hidden}/")}
    linear.weight.data = built(own, "head", linear.in_features).T.clone()
    linear.bias.data = own["head.bias"].clone()


def replaced(model: nn.Module, state: dict[str, Tensor]) -> None:
    for key, x in state.items():
        if "/head." not in key:
            model.get_parameter(key.replace("/", ".")).data = x.clone()


def merged(model: nn.Module, state: dict[str, Tensor]) -> None:
    """SSF leaves no trace: W' = diag(gamma) W, b' = gamma b + beta (paper, equation 4)."""
    for name in sorted({key.partition("/")[0] for key in state if "/head." not in key}):
        module: Any = model.get_submodule(name)
        gamma, beta = state[f"{name}/gamma"], state[f"{name}/beta"]
        shape = (-1, *[1] * (module.weight.dim() - 1))
        module.weight.data = module.weight * gamma.view(shape)
        module.bias = nn.Parameter(beta if module.bias is None else module.bias * gamma + beta)


def by_peft(model: nn.Module, state: dict[str, Tensor]) -> None:
    keys = [key for key in state if key.endswith("/ia3")]
    modules = [key.partition("/")[0] for key in keys]
    config = IA3Config(target_modules=modules, feedforward_modules=[name for name in modules if ".output.dense" in name])
    wrapped: Any = get_peft_model(copy.copy(model), config)
    for key in keys:
        vector = wrapped.get_submodule(f"base_model.model.{key.partition('/')[0]}").ia3_l["default"]
        vector.data = state[key].reshape(vector.shape).clone()


FAMILIES: dict[str, tuple[Callable[[Base], Adapter], Reference]] = {
    "bottleneck": (lambda base: bottleneck(base, seed=0, bottleneck=5), houlsby),
    "tt": (lambda base: tt(base, seed=0, rank=3, bottleneck=8), trains),
    "bitfit": (lambda base: bitfit(base, seed=0), replaced),
    "layer_norms": (lambda base: layer_norms(base, seed=0), replaced),
    "ssf": (lambda base: ssf(base, seed=0), merged),
    "ia3": (lambda base: ia3(base, seed=0), by_peft),
    "last_layers": (lambda base: last_layers(base, seed=0), replaced),
}
ENCODERS = ["bert", "roberta", "deberta", "deberta-v2"]


def reference(base: Base, adapter: Adapter, stack: Mapping[str, Tensor], batch: Batch, change: Reference) -> Tensor:
    """Logits ``[n, C]`` of unmodified transformers models whose modules were changed by hand, one adapter after the other."""
    out = torch.zeros(len(batch), 3, dtype=torch.float64)
    for g in range(tree.length(stack)):
        model, state = copy.deepcopy(base.model), tree.row(stack, g)
        heads = {key.replace("/head.", "."): x for key, x in state.items() if "/head." in key and key not in adapter.inserted}
        for name, x in heads.items():
            model.get_parameter(name).data = x.clone()
        change(model, dict(state))
        index = torch.nonzero(batch.owner == g).squeeze(1)
        ids, types, present = pad(batch.pick(index), 0)
        types = types.clamp(max=max(base.model.config.type_vocab_size, 1) - 1)
        mask = present.long() if base.model_type.startswith("deberta") else additive_mask(present, torch.float64)
        if base.model_type == "roberta":  # it numbers positions by what is not padding, and 0 is not its padding
            ids = ids.masked_fill(~present, base.model.config.pad_token_id)
        with torch.no_grad():
            out[index] = model(input_ids=ids, token_type_ids=types, attention_mask=mask).logits
    return out


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_families_compute_their_definition(family: str, kind: str) -> None:
    base = base_of(kind)
    make, change = FAMILIES[family]
    adapter = make(base)
    adapters = 1 if adapter.weights else 3
    stack, batch = stack_of(adapter, adapters), batch_of(9, adapters)
    expected = reference(base, adapter, stack, batch, change)
    for packed in (True, False):
        found = network(base, adapter, packed=packed).logits(stack, batch)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    plain = network(base, adapter, packed=True).logits(tree.stack([adapter.init] * adapters), batch)
    assert float((plain - expected).abs().max()) > 1e-3, "the tensors do something"


@pytest.mark.parametrize("kind", [*ENCODERS, "vit", "dinov2"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "tt"])
def test_the_adapted_model_equals_the_base_at_the_start(family: str, kind: str) -> None:
    base = base_of(kind)
    adapter = FAMILIES[family][0](base)
    assert_unchanged(base, adapter, kind)


@pytest.mark.parametrize("kind", [*ENCODERS, "vit", "dinov2"])
def test_tensor_trains_equal_the_base_at_the_start_unless_asked_for_the_papers(kind: str) -> None:
    base = base_of(kind)
    assert_unchanged(base, tt(base, seed=0, rank=2, bottleneck=8, classifier="dense"), kind)
    with pytest.raises(AssertionError):
        assert_unchanged(base, tt(base, seed=0, rank=2, bottleneck=8, classifier="dense", start="paper"), kind)


def assert_unchanged(base: Base, adapter: Adapter, kind: str) -> None:
    if kind in ("vit", "dinov2"):
        size = base.model.config.image_size
        x = torch.randn((2, 3, size, size), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        nets: list[Any] = [Padded(base, each) for each in (adapter, head(base, seed=0))]
        found, expected = (functional_call(net.model, net._values(own.init, 0), (), {"pixel_values": x}).logits
                           for net, own in zip(nets, (adapter, head(base, seed=0)), strict=True))  # fmt: skip
    else:
        batch = batch_of(5, 1)
        found = network(base, adapter, packed=True).logits(tree.stack([adapter.init]), batch)
        expected = reference(base, adapter, tree.stack([adapter.init]), batch, lambda model, state: None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_gradients_are_the_same_packed_and_padded(family: str, kind: str, dropout: float) -> None:
    base = base_of(kind, dropout)
    adapter = FAMILIES[family][0](base)
    adapters = 1 if adapter.weights else 3
    stack, batch = stack_of(adapter, adapters), batch_of(11, adapters)
    fast, slow = (outcome(network(base, adapter, packed=packed), stack, batch) for packed in (True, False))
    assert tree.max_difference(fast, slow) < 1e-11
    still = [name for name in adapter.spec.names() if float(fast[name].abs().max()) == 0]
    assert not still, "every leaf has a gradient"


PROMPTS: dict[str, Callable[[Base], Adapter]] = {
    "prompt": lambda base: prompt(base, seed=0, tokens=3),
    "p_tuning": lambda base: p_tuning(base, seed=0, tokens=3, hidden=5),
    "prefix": lambda base: prefix(base, seed=0, tokens=3),
}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("family", list(PROMPTS))
def test_prompts_are_the_same_packed_and_padded(family: str, kind: str, dropout: float) -> None:
    base = base_of(kind, dropout)
    adapter = PROMPTS[family](base)
    stack, batch = stack_of(adapter, 3), batch_of(11, 3)
    fast, slow = (outcome(network(base, adapter, packed=packed), stack, batch) for packed in (True, False))
    assert tree.max_difference(fast, slow) < 1e-11
    assert all(float(fast[name].abs().max()) > 0 for name in adapter.spec.names()), "every leaf has a gradient"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("family", [*PROMPTS, "tt", "bottleneck", "ia3", "ssf", "last_layers"])
def test_what_is_generated_is_the_same_packed_and_padded_and_depends_on_the_adapter(family: str, kind: str) -> None:
    base = load(ModelConfig(name=f"tiny:{kind}", precision="float64"), classes=0, seed=0)
    adapter = (PROMPTS.get(family) or FAMILIES[family][0])(base)
    batch = batch_of(6, 1)
    stack = {key: x * (1 + 20 * (family in PROMPTS)) for key, x in stack_of(adapter, 1).items()}
    fast, slow = (network(base, adapter, packed=packed).generate(stack, batch, 6) for packed in (True, False))
    assert fast == slow
    plain = network(base, lora(base, seed=0), packed=True)
    assert fast != plain.generate(tree.stack([lora(base, seed=0).init]), batch, 6)


def test_virtual_tokens_stand_before_every_row() -> None:
    batch = batch_of(4, 1)
    longer = Prompt("input", 2).before(batch, 1000)
    rows, words = (x.tokens.split(x.lengths.tolist()) for x in (longer, batch))
    assert all(a.tolist() == [1000, 1001, *b.tolist()] for a, b in zip(rows, words, strict=True))
    kinds, own = (x.types.split(x.lengths.tolist()) for x in (longer, batch))
    assert all(a.tolist() == [0, 0, *b.tolist()] for a, b in zip(kinds, own, strict=True))
    assert Prompt("prefix", 2).before(batch, 1000) is batch


def test_virtual_tokens_count_in_passes() -> None:
    """A pass of a prompt of 30 holds as many rows as one of texts that are 30 tokens longer."""
    batch = batch_of(12, 1)
    pieces = cut(batch, 100, 30)
    assert all(int((piece.lengths + 30).sum()) <= 100 for piece in pieces)
    assert len(pieces) > len(cut(batch, 100)) + 2
    assert sorted(torch.cat([piece.keys for piece in pieces]).tolist()) == sorted(batch.keys.tolist())
    for kind, options, virtual in (("prompt", {"tokens": 7}, 7), ("prefix", {"tokens": 7}, 0), ("lora", {}, 0)):
        built = build_tiny(tiny_config("fedit", method={"lr": 0.1, "steps": 1}, adapter={"family": kind, **options}))
        engine: Any = built.engine
        assert (engine.virtual, built.evaluator.virtual) == (virtual, virtual)
        draw = Draw([(built.tasks["colour"], 0, row) for row in range(4)], 1)
        engine.token_budget = 2 * sum(draw.lengths)  # two slots a pass; with seven tokens more in every row one
        seen = engine._pieces(dict.fromkeys(range(3), draw))
        assert [len(piece.slots) for piece in seen] == {0: [2, 1], 7: [1, 1, 1]}[virtual]


def test_a_model_takes_one_loaded_adapter(tmp_path: Path) -> None:
    base = base_of("bert")
    adapter = bitfit(base, seed=0)
    write(base, adapter, adapter.init, tmp_path, "test")
    model = load_adapter(tmp_path, copy.deepcopy(base.model))
    with pytest.raises(StateError, match="already has the adapter"):
        load_adapter(tmp_path, model)


@pytest.mark.parametrize("family", ["tt", "bottleneck"])
def test_numbers_without_a_gradient_say_nothing_to_the_clustering(family: str) -> None:
    """What stands before a map of zeros has no gradient at the start: in no slot, so nothing is left of it."""
    options = {"rank": 2, "bottleneck": 8} if family == "tt" else {"bottleneck": 4}
    found = run_tiny(tiny_config("fltac", method={"lr": 1e-2, "steps": 3}, adapter={"family": family, **options}), rounds=1)
    sent = found.hub.memory["history/fingerprint"]
    dead = (sent == 0).all(0)
    assert 0.3 < float(dead.float().mean()) < 0.9
    assert bool((standardised(sent, torch.ones(len(sent)).double())[:, dead] == 0).all())
    assert bool((sent[:, ~dead].std(0) > 0).all())


def test_prompts_need_words_and_prefixes_an_attention_that_takes_them() -> None:
    for make in PROMPTS.values():
        with pytest.raises(ModelError, match="model of images"):
            make(base_of("vit"))
    with pytest.raises(ModelError, match="no prefix tuning for 'deberta'"):
        prefix(base_of("deberta"), seed=0)


def test_families_of_weights_run_alone_and_others_together() -> None:
    base = base_of("bert")
    assert not batches_adapters(base, last_layers(base, seed=0))
    assert all(batches_adapters(base, make(base)) for name, (make, _) in FAMILIES.items() if name != "last_layers")
    assert bitfit(base_of("deberta"), seed=0).weights, "DeBERTa's biases of q and v are no map's"


def test_ia3_in_peft_scales_more_than_the_paper() -> None:
    """peft's default targets match BERT's ``attention.output.dense`` as well."""
    wrapped = get_peft_model(copy.deepcopy(base_of("bert").model), IA3Config(task_type="SEQ_CLS"))
    theirs = {name for name, _ in wrapped.named_parameters() if "ia3_l" in name}
    ours = ia3(base_of("bert"), seed=0).spec.names("scale")
    assert len(theirs) == len(ours) + base_of("bert").model.config.num_hidden_layers


# ---- refusals ----------------------------------------------------------------------------------------------------------------


def test_what_a_family_cannot_do_is_refused() -> None:
    llama = load(ModelConfig(name="tiny:llama", precision="float64"), classes=0, seed=0)
    with pytest.raises(ModelError, match="no biases"):
        bitfit(llama, seed=0)
    base = base_of("bert")
    with pytest.raises(ModelError, match="has 2 blocks, not 3"):
        last_layers(base, seed=0, layers=3)
    with pytest.raises(ConfigError, match="cannot be one per task"):
        tt(base, seed=0, heads=3, head="per-task")
    assert tt(base, seed=0, heads=3, head="per-task", classifier="dense").spec.size("head") == 3 * (3 * 16 + 3)
    config = ModelConfig(name=LARGE)
    with pytest.raises(ConfigError, match="no split"):
        tt(meta_base(find_shape(config), config, "text", 2), seed=0, way="contract")


@pytest.mark.parametrize("way", ["contract", "halves"])
def test_a_bottleneck_of_one_number_goes_the_dense_way_alone(way: Any) -> None:
    base = base_of("bert")
    with pytest.raises(ConfigError, match="have no split") as caught:
        tt(base, seed=0, bottleneck=1, way=way)
    assert "automatic" not in str(caught.value)
    adapter = tt(base, seed=0, rank=2, bottleneck=1)
    assert network(base, adapter, packed=True).logits(tree.stack([adapter.init]), batch_of(3, 1)).shape == (3, 3)


@pytest.mark.parametrize("kind", [*ENCODERS, "vit", "dinov2"])
def test_every_norm_is_found(kind: str) -> None:
    """Two parameters of length d, one of them called bias, at a module that has no other."""
    base = base_of(kind)
    wanted = {name for name, module in base.model.named_modules() if {p for p, _ in module.named_parameters(recurse=False)} ==
              {"weight", "bias"} and cast(Tensor, module.weight).dim() == 1}  # fmt: skip
    assert {leaf.name.partition("/")[0] for leaf in layer_norms(base, seed=0).spec.leaves if leaf.role == "norm"} == wanted
    assert wanted <= {leaf.name.partition("/")[0] for leaf in ssf(base, seed=0).spec.leaves}


def test_cores_know_their_place() -> None:
    leaves = [leaf for leaf in spec_of("tt", ROBERTA).leaves if leaf.core]
    assert all(leaf.core == (int(leaf.name.rpartition(".")[2]), 6 if leaf.role == "head" else 5) for leaf in leaves)
    assert {leaf.role for leaf in leaves} == {"core", "head"}
    assert Leaf("a/b", (1,), "bias", 0).core is None
