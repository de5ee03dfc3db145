"""Image classifiers of transformers: which can be used, what they see, and how they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedquilt import tree
from fedquilt.data.transform import Transform
from fedquilt.errors import ModelError
from fedquilt.types import Batch

if TYPE_CHECKING:
    from fedquilt.models.loading import ModelConfig

ARCHITECTURES = ("vit", "dinov2")
TINY = ARCHITECTURES
Processor = dict[str, Any] | None


def sees_images(model_type: str) -> bool:
    """Whether it is an image model: one that transformers classifies images with, and not texts."""
    from transformers.models.auto import modeling_auto as auto

    images, texts = auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    return model_type in images and model_type not in texts


def processor(where: str, revision: str | None) -> Processor:
    """What the model's preprocessor_config.json says; None where there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(where, revision=revision)[0]
    except OSError:
        return None
    return found


def transform(config: ModelConfig, model: Any, given: Processor) -> Transform:
    """``[model]`` image_size, mean and std; what is not set there is the preprocessor's, the size also the model's own.

    Raises:
        ModelError: the size is no multiple of the patch size, or nobody says how to normalise.
    """
    patch = int(model.config.patch_size)
    size = config.image_size or _size(given or {}) or int(model.config.image_size)
    if size % patch:
        below = max(1, size // patch) * patch
        raise ModelError(
            f"images of {size} pixels cannot be cut into patches of {patch}",
            where="model.image_size",
            fix=f"choose {below} or {below + patch}",
        )
    values = {}
    for name in ("mean", "std"):
        value = getattr(config, name) or (given or {}).get(f"image_{name}")
        if value is None:
            raise ModelError(
                f"how to normalise images for '{config.name}' is not known",
                where=f"model.{name}",
                why="it has no preprocessor_config.json with an image_mean and an image_std",
                fix="give model.mean and model.std, three numbers each",
            )
        values[name] = (float(value[0]), float(value[1]), float(value[2]))
    return Transform(size, patch, **values)


def _size(given: dict[str, Any]) -> int | None:
    """The side of the square that the preprocessor ends with."""
    for name in ("crop_size", "size"):
        value = given.get(name)
        if name == "crop_size" and given.get("do_center_crop") is False:
            continue
        if isinstance(value, int):
            return value
        if isinstance(value, dict) and (side := value.get("height") or value.get("shortest_edge")):
            return int(side)
    return None


def check(config: Any, name: str) -> None:
    """Whether both ways of running a model can run this one.

    Raises:
        ModelError: another architecture, or stochastic depth.
    """
    kind = str(config.model_type)
    if kind not in ARCHITECTURES:
        fix = f"choose a model of the types {', '.join(ARCHITECTURES)}, such as 'asset:vit-s14'"
        raise ModelError(f"image models of type '{kind}' cannot be used", where="model.name", why=f"'{name}' is one", fix=fix)
    if float(getattr(config, "drop_path_rate", 0.0)) > 0:
        why = f"its drop_path_rate is {config.drop_path_rate}: whole layers are dropped at random, by no seed of ours"
        raise ModelError(f"'{name}' trains with stochastic depth", where="model.name", why=why, fix="set drop_path_rate to 0")


def with_attention_dropout(model: Any) -> Any:
    """Give every attention a dropout module: transformers keeps the probability as a number; as a module it is found, set by
    ``model.dropout`` and seeded like all others."""
    for module in model.modules():
        if hasattr(module, "attention_dropout") and not hasattr(module, "dropout"):
            module.add_module("dropout", nn.Dropout(float(module.attention_dropout)))
    return model


def pixels(batch: Batch, how: Transform | None, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """What the model sees of a batch, ``[n, 3, H, W]``: ``(x / 255 - mean) / std`` of uint8, ``(x - mean) / std`` of numbers in
    [0, 1]. ``device``: where it is computed; None: where they are."""
    if batch.pixels is None or how is None:
        raise ValueError("a batch of texts for an image model, or the other way round")
    x = tree.there(batch.pixels, device).to(dtype)  # bytes travel, not numbers
    if batch.pixels.dtype == torch.uint8:
        x = x / 255
    mean, std = (tree.there(torch.tensor(values, dtype=dtype)[:, None, None], x.device) for values in (how.mean, how.std))
    return (x - mean) / std


def options(model: Any) -> dict[str, Any]:
    """Arguments of the model's forward, or its embeddings', so that positions are interpolated to the images' size.

    DINOv2 does it unasked. Where the size is the model's own, nothing is interpolated.
    """
    return {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}


def pretrained(config: ModelConfig, where: str, shape: Any, how: Mapping[str, Any]) -> tuple[Any, Transform, Mapping[str, Any]]:
    """The image classifier in a folder or of a hub id, how it sees images, and what ``from_pretrained`` says of its weights.

    Args:
        shape: its transformers configuration.
        how: arguments for ``from_pretrained``, ``output_loading_info`` among them.
    """
    from transformers import AutoModelForImageClassification

    check(shape, config.name)
    model, info = AutoModelForImageClassification.from_pretrained(where, **how)
    return with_attention_dropout(model), transform(config, model, processor(where, config.revision)), info


def tiny(config: ModelConfig, kind: str, classes: int) -> tuple[Any, Transform]:
    """A random ViT of a few thousand parameters: 12 x 12 pixels in nine patches."""
    from transformers import AutoConfig, AutoModelForImageClassification

    sizes = {"image_size": 12, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"intermediate_size": 32} if kind == "vit" else {"mlp_ratio": 2, "layerscale_value": 0.5}
    # At the usual 0.02 so small a model barely reacts to its input.
    shape = AutoConfig.for_model(kind, **sizes, **more, num_labels=classes, initializer_range=0.2)
    model = with_attention_dropout(AutoModelForImageClassification.from_config(shape, attn_implementation="eager"))
    return model, transform(config, model, {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]})
