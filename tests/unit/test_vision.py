"""Image models: packed against peft's padded one, against transformers alone, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fedquilt import tree
from fedquilt.adapters.lora import lora
from fedquilt.adapters.whole import full, head
from fedquilt.data.transform import Transform
from fedquilt.errors import ModelError
from fedquilt.models import vision
from fedquilt.models.half import HALF, HalfLinear
from fedquilt.models.loading import Base, ModelConfig, load
from fedquilt.models.network import batches_adapters, network, packed_form
from fedquilt.models.packed_vit import PackedVit
from fedquilt.models.roles import ROLES, resolve
from fedquilt.types import Batch
from tests.unit.test_models import FAMILIES, outcome, stack_of

KINDS = ("vit", "dinov2")


def base_of(kind: str, dropout: float = 0.0, **more: Any) -> Base:
    config = {"name": f"tiny:{kind}", "precision": "float64", "dropout": dropout, **more}
    return load(ModelConfig.model_validate(config), classes=3, seed=0)


def batch_of(rows: int, adapters: int, heads: int = 1, size: int = 12) -> Batch:
    stream = torch.Generator().manual_seed(rows)

    def draw(high: int, *shape: int, low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=stream)

    empty = torch.empty(0, dtype=torch.long)
    lengths = torch.full((rows,), (size // 4) ** 2 + 1)
    owner = torch.arange(rows) % adapters
    return Batch(empty, empty, lengths, draw(2, rows).double(), draw(4, rows, low=1), owner, draw(heads, rows),
                 draw(2**60, rows), draw(256, rows, 3, size, size).to(torch.uint8))  # fmt: skip


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [12, 8])
def test_packed_equals_padded(kind: str, family: str, dropout: float, size: int) -> None:
    """Losses, gradients of every leaf and logits; at the model's own size and with interpolated positions."""
    base = base_of(kind, dropout, image_size=size)
    adapter = FAMILIES[family](base, dropout)
    adapters = 1 if family == "full" else 3
    stack, batch = stack_of(adapter, adapters), batch_of(11, adapters, adapter.heads, size)
    net = network(base, adapter, packed=True)
    assert isinstance(net, PackedVit)
    fast = outcome(net, stack, batch)
    slow = outcome(network(base, adapter, packed=False), stack, batch)
    assert tree.max_difference(fast, slow) < 1e-11
    assert float(fast["losses"].min()) > 0.01
    assert all(float(fast[key].abs().max()) > 0 for key in stack if "mask_token" not in key)
    if dropout:
        dry = outcome(network(base_of(kind, image_size=size), FAMILIES[family](base, 0.0), packed=True), stack, batch)
        assert tree.max_difference({"x": dry["losses"]}, {"x": fast["losses"]}) > 1e-3, "dropout does something"
        assert torch.allclose(dry["logits"], fast["logits"], atol=1e-12), "but not in evaluation"


@pytest.mark.parametrize("kind", KINDS)
def test_every_dropout_of_the_model_is_seeded(kind: str) -> None:
    """Attention, embeddings and (ViT) both branches: each alone changes the loss, and both forms agree on it."""
    base = base_of(kind, 0.0)
    names = [name for name, module in base.model.named_modules() if isinstance(module, torch.nn.Dropout)]
    assert len(names) == {"vit": 1 + 2 * 2, "dinov2": 1 + 2}[kind]
    adapter = lora(base, seed=0, rank=2)
    stack, batch = stack_of(adapter, 2), batch_of(6, 2)
    dry = network(base, adapter, packed=True).losses(stack, batch)
    for name in names:
        base.model.get_submodule(name).p = 0.5
        fast, slow = (network(base, adapter, packed=packed).losses(stack, batch) for packed in (True, False))
        base.model.get_submodule(name).p = 0.0
        assert float((fast - dry).abs().min()) > 1e-6, name
        assert torch.allclose(fast, slow, atol=1e-12), name


class Forgetful(PackedVit):
    """Takes the second norm of a layer for the first: a fault that only a comparison of numbers finds."""

    def _norm(self, layer: Any, number: int) -> Any:
        return super()._norm(layer, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_fault_shows(kind: str) -> None:
    base = base_of(kind)
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if "norm1.weight" in name or "layernorm_before.weight" in name:
                parameter.mul_(1 + 1e-6)
    adapter = lora(base, seed=0)
    stack, batch = stack_of(adapter, 1), batch_of(4, 1)
    slow = outcome(network(base, adapter, packed=False), stack, batch)
    assert tree.max_difference(outcome(Forgetful(base, adapter), stack, batch), slow) > 1e-10
    assert tree.max_difference(outcome(PackedVit(base, adapter), stack, batch), slow) < 1e-12


@pytest.mark.parametrize("size", [12, 8, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers_on_its_own_preprocessing(kind: str, size: int) -> None:
    """The plain model fed with pixels that torch normalises by hand."""
    base = base_of(kind, image_size=size)
    adapter = head(base, seed=0)
    batch = batch_of(5, 1, size=size)
    assert batch.pixels is not None
    channels = [(batch.pixels[:, c].double() / 255 - m) / s for c, (m, s) in enumerate([(0.4, 0.2), (0.5, 0.25), (0.6, 0.3)])]
    more = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    theirs = base.model(pixel_values=torch.stack(channels, 1), **more).logits
    ours = network(base, adapter, packed=True).logits(tree.stack([adapter.init]), batch)
    assert torch.allclose(theirs, ours, atol=1e-12)
    floats = Batch(**{**vars(batch), "pixels": batch.pixels.double() / 255})
    assert torch.allclose(network(base, adapter, packed=True).logits(tree.stack([adapter.init]), floats), ours, atol=1e-12)


def test_many_adapters_in_one_pass_change_nothing_of_one_another() -> None:
    base = base_of("vit", 0.2)
    adapter = lora(base, seed=0, rank=2, dropout=0.2)
    stack, batch = stack_of(adapter, 3), batch_of(9, 3)
    together = PackedVit(base, adapter).losses(stack, batch)
    assert batches_adapters(base, adapter)
    for g in range(3):
        own = batch.pick(torch.nonzero(batch.owner == g).squeeze(1))
        alone = Batch(**{**vars(own), "owner": torch.zeros_like(own.owner)})
        assert torch.allclose(PackedVit(base, adapter).losses(tree.rows(stack, [g]), alone)[0], together[g], atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_every_role_is_found_once_per_layer(kind: str) -> None:
    base = base_of(kind)
    found = [resolve(base.model, base.model_type, [role]) for role in ROLES]
    assert [len(names) for names in found] == [2] * 6
    assert len({name for names in found for name in names}) == 12


@pytest.mark.parametrize("family", ["lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_close_and_the_same_on_both_ways(kind: str, family: str) -> None:
    found = []
    for precision, packed in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        base = base_of(kind, precision=precision)
        if precision == "bfloat16":
            halved = [name for name, module in base.model.named_modules() if isinstance(module, HalfLinear)]
            assert len(halved) == 12
            assert all(base.model.get_submodule(name).weight.dtype == HALF for name in halved)
        adapter = lora(base, seed=0, rank=2) if family == "lora" else full(base, seed=0)
        found.append(outcome(network(base, adapter, packed=packed), stack_of(adapter, 1), batch_of(6, 1)))
    exact, padded, packed_ = found
    assert not torch.equal(exact["losses"], padded["losses"]), "nothing was rounded"
    for key, value in exact.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(padded[key], value, rtol=0, atol=0.06 * scale + 1e-3, msg=lambda m, key=key: f"{key}: {m}")
        torch.testing.assert_close(
            packed_[key], padded[key], rtol=0, atol=0.03 * scale + 1e-3, msg=lambda m, key=key: f"{key}: {m}"
        )


# ---- what a model is asked to see ------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    base_of("dinov2").model.float().save_pretrained(tmp_path)
    return tmp_path


def preprocessor(folder: Path, **content: Any) -> None:
    content = {"image_processor_type": "BitImageProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]} | content
    (folder / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ({"crop_size": {"height": 8, "width": 8}, "size": {"shortest_edge": 16}}, 8),
        ({"crop_size": {"height": 8, "width": 8}, "size": {"shortest_edge": 16}, "do_center_crop": False}, 16),
        ({"size": {"height": 20, "width": 20}}, 20),
        ({"size": 4}, 4),
        ({}, 12),
    ],
)
def test_the_preprocessor_says_size_mean_and_std(saved: Path, content: dict[str, Any], size: int) -> None:
    preprocessor(saved, **content)
    base = load(ModelConfig(name=str(saved)), classes=5, seed=0)
    assert base.transform == Transform(size, 4, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert base.tokenizer is None
    assert base.model.classifier.weight.shape == (5, 32)
    given = ModelConfig(name=str(saved), image_size=24, mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    assert load(given, classes=5, seed=0).transform == Transform(24, 4, (0.5, 0.5, 0.5), (1, 1, 1))


def test_what_cannot_be_seen_is_refused_with_a_way_out(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"how to normalise[\s\S]*give model.mean"):
        load(ModelConfig(name=str(saved)), classes=2, seed=0)
    preprocessor(saved)
    with pytest.raises(ModelError, match=r"14 pixels[\s\S]*patches of 4[\s\S]*choose 12 or 16"):
        load(ModelConfig(name=str(saved), image_size=14), classes=2, seed=0)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"drop_path_rate": 0.1}))
    with pytest.raises(ModelError, match="stochastic depth"):
        load(ModelConfig(name=str(saved)), classes=2, seed=0)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model("resnet", depths=[1], hidden_sizes=[8], embedding_size=8).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="image models of type 'resnet' cannot be used"):
        load(ModelConfig(name=str(tmp_path)), classes=2, seed=0)
    with pytest.raises(ModelError, match="did you mean 'vit'"):
        load(ModelConfig(name="tiny:vti"), classes=2, seed=0)


def test_texts_and_images_are_told_apart_by_the_architecture() -> None:
    assert [vision.sees_images(kind) for kind in ("vit", "dinov2", "swin", "bert", "roberta", "deberta-v2")] == [True] * 3 + [
        False
    ] * 3
    assert packed_form(base_of("vit")) is PackedVit
    texts = Batch(**{**vars(batch_of(2, 1)), "pixels": None})
    with pytest.raises(ValueError, match="texts for an image model"):
        vision.pixels(texts, base_of("vit").transform, torch.float64)


def test_the_transform_agrees_with_transformers_own_processor() -> None:
    """Resize the shorter side, crop the centre, rescale, normalise: the pillow processor of the DINOv2 family."""
    processing = pytest.importorskip("transformers.models.bit.image_processing_pil_bit")
    image = Image.effect_noise((40, 30), 80).convert("RGB")
    means = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    sizes = {"size": {"shortest_edge": 12}, "crop_size": {"height": 12, "width": 12}}
    theirs = processing.BitImageProcessorPil(resample=3, **sizes, **means)(image, return_tensors="pt")["pixel_values"]
    how = base_of("dinov2").transform
    assert how is not None
    data = io.BytesIO()
    image.save(data, "PNG")
    pixels = torch.from_numpy(how(data.getvalue()).copy()).permute(2, 0, 1)[None]
    ours = vision.pixels(Batch(**{**vars(batch_of(1, 1)), "pixels": pixels}), how, torch.float32)
    assert float((theirs - ours).abs().max()) < 1e-5
