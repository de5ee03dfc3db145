"""Models without weights, on torch's meta device: names and shapes of every tensor, no memory, no download of weights.

Enough to build an adapter's :class:`~fedquilt.types.Spec` and to let peft count. Only a ``config.json`` is needed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from fedquilt.errors import ModelError
from fedquilt.models.half import halve
from fedquilt.models.loading import HEADS, Base, ModelConfig, load
from fedquilt.models.roles import resolve
from fedquilt.models.shapes import SHAPES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Use = Literal["text", "image", "generation"]  # what the base model is for: classes of texts, classes of images, a next token


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and where they were read."""

    config: PreTrainedConfig
    name: str
    source: str

    @property
    def about(self) -> str:
        """Architecture and size for people: ``bert, 12 layers of 768``."""
        layers, width = (getattr(self.config, name, "?") for name in ("num_hidden_layers", "hidden_size"))
        return f"{self.config.model_type}, {layers} layers of {width}"


def find_shape(model: ModelConfig) -> Shape:
    """The sizes of a model: a folder or the hub's cache, else :data:`~fedquilt.models.shapes.SHAPES`, else the hub.

    Raises:
        ModelError: there is no configuration under the name.
    """
    kind, _, rest = model.name.partition(":")
    if kind == "tiny":
        made = load(model, classes=2, seed=0).model.config
        return Shape(made, model.name, "made up; random weights")
    if kind != "asset" and (cached := _read(model.name, model.revision, offline=True)) is not None:
        return Shape(cached, model.name, "config.json of the folder or of the hub's cache")
    if model.name in SHAPES and model.revision is None:
        return Shape(_shipped(model.name), model.name, "the table of sizes shipped with fedquilt; no file was read")
    if kind == "asset":
        from fedquilt.data.assets import model_folder

        return Shape(_must_read(model, str(model_folder(rest))), model.name, "config.json of the asset")
    return Shape(_must_read(model, model.name), model.name, "config.json from the hub")


def meta_model(shape: Shape, use: Use, classes: int) -> Any:
    """The architecture with the head of its use, every tensor on the meta device; ``classes`` outputs, none for generation.

    Raises:
        ModelError: the architecture has no such form.
    """
    import transformers

    form: Any = {
        "text": transformers.AutoModelForSequenceClassification,
        "image": transformers.AutoModelForImageClassification,
        "generation": transformers.AutoModelForCausalLM,
    }[use]
    config = type(shape.config).from_dict(shape.config.to_dict())  # a copy: building a model writes into its configuration
    config.num_labels = classes
    try:
        with torch.device("meta"):
            return form.from_config(config, attn_implementation="eager")
    except ValueError as error:
        raise ModelError(
            f"'{shape.name}' has no {use} form",
            where="model.name",
            why=f"transformers knows none for the model type '{config.model_type}'",
            fix="choose another model, or tasks of another kind",
        ) from error


def meta_base(shape: Shape, model: ModelConfig, use: Use, classes: int) -> Base:
    """What :func:`fedquilt.models.loading.load` returns, without weights and without a tokenizer: adapters can be built on it."""
    dtype = torch.float64 if model.precision == "float64" else torch.float32
    module = meta_model(shape, use, classes).to(dtype).eval().requires_grad_(False)
    head = tuple(name for name in HEADS if isinstance(getattr(module, name, None), nn.Module))
    if model.precision == "bfloat16":
        halve(module, keep=head)
    return Base(module, None, shape.name, str(module.config.model_type), head, dtype, shape.source)


def peft_count(model: Any, roles: tuple[str, ...], rank: int, *, head: bool) -> tuple[int, int]:
    """(trainable, all) parameters as peft prints them for LoRA of this rank. The model is changed: pass a fresh one.

    Args:
        head: as peft's SEQ_CLS: the head trains too, in a copy, and "all" counts the copy and the original.
    """
    from peft import LoraConfig, get_peft_model

    modules = list(resolve(model, str(model.config.model_type), roles))
    config = LoraConfig(r=rank, target_modules=modules, task_type="SEQ_CLS" if head else None)
    with warnings.catch_warnings():  # peft asks transformers for something by its old name
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        trainable, every = get_peft_model(model, config).get_nb_trainable_parameters()
    return int(trainable), int(every)


def parameter_count(model: nn.Module) -> int:
    """All parameters; tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _shipped(name: str) -> PreTrainedConfig:
    from transformers import AutoConfig

    sizes = dict(SHAPES[name])
    return AutoConfig.for_model(sizes.pop("model_type"), **sizes)


def _read(where: str, revision: str | None, *, offline: bool) -> PreTrainedConfig | None:
    from transformers import AutoConfig

    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(where, revision=revision, local_files_only=offline)
    except OSError:
        return None
    except ValueError as error:
        raise ModelError(
            f"the configuration of '{where}' cannot be read",
            where="model.name",
            why=str(error).splitlines()[0],
            fix="check the model_type in its config.json, or update transformers",
        ) from error
    return found


def _must_read(model: ModelConfig, where: str) -> PreTrainedConfig:
    found = _read(where, model.revision, offline=False)
    if found is None:
        raise ModelError(
            f"no configuration of '{model.name}'",
            where="model.name",
            why="there is no such folder, and the hub was not reached or has no such model",
            fix="give a folder with a config.json, or one of: " + ", ".join(SHAPES),
        )
    return found
