"""Adapters on disk: peft's format for what it knows (LoRA, IA3, prompts), a transformers model folder for families of weights, our
own for the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fedquilt.adapters.base import Adapter, head_key
from fedquilt.adapters.whole import weight_key
from fedquilt.data.files import replacing
from fedquilt.data.transform import Transform
from fedquilt.errors import StateError
from fedquilt.models import vision
from fedquilt.models.loading import Base
from fedquilt.models.padded import peft_config
from fedquilt.types import State

FORMAT = 1
OWN_CONFIG, OWN_TENSORS = "fedquilt_adapter.json", "fedquilt_adapter.safetensors"


def write(base: Base, adapter: Adapter, state: State, folder: Path, title: str) -> Path:
    """Write one adapter (with one head) so that plain peft or plain transformers opens it with equal logits.

    Families that peft does not know (its registry is closed) are opened by :func:`fedquilt.load_adapter`.

    Raises:
        StateError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise StateError("cannot write an adapter", where=str(folder), why=why, fix="choose another folder") from error
    if adapter.modules or adapter.prompt or adapter.spec.family == "ia3":
        _peft(base, adapter, state, folder)
        card = _card(base, title)
    elif adapter.inserts:
        _own(base, adapter, state, folder)
        card = _own_card(base, title)
    else:
        _transformers(base, state, folder)
        if base.transform is not None:
            _write(folder / "preprocessor_config.json", json.dumps(_processor(base.transform), indent=2).encode())
        card = _whole_card(base, title)
    _write(folder / "README.md", card.encode())
    return folder


def _peft(base: Base, adapter: Adapter, state: State, folder: Path) -> None:
    config = peft_config(base, adapter)
    config.inference_mode, config.base_model_name_or_path = True, base.source
    wrapped = "base_model" if adapter.prompt else "base_model.model"
    tensors = {f"{wrapped}.{head_key(key)}": tensor for key, tensor in state.items() if "/head." in key}
    if adapter.prompt:
        tensors["prompt_embeddings"] = adapter.prompt.table({key: x[None] for key, x in state.items()})[0]
    else:
        tensors |= dict(_in_peft(adapter, key, tensor) for key, tensor in state.items() if "/head." not in key)
    tensors |= {f"{wrapped}.{name}": tensor for name, tensor in _drawn(base).items()}
    # Not save_pretrained: its sets would make the file depend on hash order.
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    _write(folder / "adapter_config.json", json.dumps(plain, indent=2, sort_keys=True, default=str).encode())
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    _write(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))


def _in_peft(adapter: Adapter, key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Name and shape of a leaf there."""
    module, _, role = key.rpartition("/")
    if role != "ia3":
        return f"base_model.model.{module}.{role}.weight", tensor
    return f"base_model.model.{module}.ia3_l", tensor[None] if adapter.inserts[module].reads else tensor[:, None]


def _drawn(base: Base) -> dict[str, Tensor]:
    """Parameters of the base model, under their names there, that its checkpoint lacks."""
    modules = {name: base.model.get_submodule(name) for name in base.drawn}
    return {f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()}


def _own(base: Base, adapter: Adapter, state: State, folder: Path) -> None:
    # The folder holds one head, whatever the policy.
    options = {key: value for key, value in adapter.options.items() if key != "head"}
    about = {"format": FORMAT, "family": adapter.spec.family, "options": options, "base": base.source}
    _write(folder / OWN_CONFIG, json.dumps(about, indent=2, sort_keys=True).encode())
    tensors = {**state, **_drawn(base)}
    _write(folder / OWN_TENSORS, save({key: tensor.contiguous() for key, tensor in sorted(tensors.items())}))


def read_own(folder: Path) -> tuple[str, dict[str, Any], State]:
    """Family, options and tensors of a folder that :func:`write` made for a family of ours: the adapter's leaves, which have
    a ``/`` in their names, and parameters that the base model's checkpoint lacks.

    Raises:
        StateError: no such folder, or one that cannot be read.
    """
    try:
        about = json.loads((folder / OWN_CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / OWN_TENSORS)
        family, options, version = str(about["family"]), dict(about["options"]), about["format"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        fix = "give the folder of one adapter (row-00); folders with an adapter_config.json are peft's"
        raise StateError("this is no adapter of fedquilt's own", where=str(folder), why=str(error), fix=fix) from error
    if version != FORMAT:
        raise StateError(f"format {version}; this version reads {FORMAT}", where=str(folder / OWN_CONFIG), fix="update fedquilt")
    return family, options, tensors


def _transformers(base: Base, state: State, folder: Path) -> None:
    values = {head_key(key) if "/head." in key else weight_key(key): tensor for key, tensor in state.items()}
    try:
        with _holding(base.model, values):
            base.model.save_pretrained(folder)
        # transformers has written the first parameter's dtype: of a tied output map bfloat16, to which whoever opens the folder
        # would round all trained numbers.
        base.model.config.dtype = base.dtype
        base.model.config.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise StateError("cannot write a model", where=str(folder), why=str(error), fix="free space, then run it again") from error


@contextmanager
def _holding(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with these numbers in the place of its own, until the end of the block.

    Not ``save_pretrained(state_dict=...)``: of a quantised model transformers writes its own tensors whatever it is given. A tensor
    that the model uses under two names (tied output map) is one parameter, and has one leaf, under the first of them.
    """
    own = {name: model.get_parameter(name) for name in values}
    before = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, parameter in own.items():
            parameter.data = values[name].contiguous()
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = before[name]


def _processor(how: Transform) -> dict[str, Any]:
    """The transform as transformers' image processors (and fedquilt) read it."""
    side = {"height": how.size, "width": how.size}
    return {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": how.size},
        "crop_size": side,
        "resample": 3,  # bicubic
        "image_mean": list(how.mean),
        "image_std": list(how.std),
    }


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _name(base: Base) -> str:
    """The base model in a card."""
    if base.name.startswith("tiny:"):
        return f"`{base.source}` (a model with random weights, made for tests: `from_pretrained` does not know it)"
    return f"`{base.source}`"


def _auto(base: Base) -> str:
    """The class of transformers that opens the base model."""
    if not base.head:
        return "AutoModelForCausalLM"
    return f"AutoModelFor{'Sequence' if base.transform is None else 'Image'}Classification"


def _card(base: Base, title: str) -> str:
    if not base.head:
        return _text_card(base, title)
    classes, auto = int(base.model.config.num_labels), _auto(base)
    return f"""# {title}

Trained with fedquilt on {_name(base)}; {classes} logits.

```python
from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained(
    "{base.source}", num_labels={classes}, ignore_mismatched_sizes=True  # the adapter brings the head
)
model = PeftModel.from_pretrained(base, ".")
```
{"" if base.transform is None else _seeing(base, base.transform)}"""


def _seeing(base: Base, how: Transform) -> str:
    """How the model of the card is called on an image."""
    call = "".join(f", {name}={value}" for name, value in vision.options(base.model).items())
    return f"""
Images were RGB, the shorter side resized to {how.size} pixels (bicubic), the centre square cut out:

```python
import numpy as np
import torch
from PIL import Image, ImageOps

image = ImageOps.fit(Image.open("FILE").convert("RGB"), ({how.size}, {how.size}), Image.Resampling.BICUBIC)
pixels = (torch.tensor(np.asarray(image)) / 255 - torch.tensor({list(how.mean)})) / torch.tensor({list(how.std)})
logits = model(pixel_values=pixels.permute(2, 0, 1)[None].float(){call}).logits
```
"""


def _own_card(base: Base, title: str) -> str:
    auto = _auto(base)
    head = f", num_labels={int(base.model.config.num_labels)}, ignore_mismatched_sizes=True" if base.head else ""
    return f"""# {title}

Trained with fedquilt on {_name(base)}.

```python
import fedquilt
from transformers import {auto}

model = fedquilt.load_adapter(".", {auto}.from_pretrained("{base.source}"{head}))
```
"""


def _text_card(base: Base, title: str) -> str:
    return f"""# {title}

Trained with fedquilt on {_name(base)}, a causal language model.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base.source}")
model = PeftModel.from_pretrained(base, ".")
```
"""


def _whole_card(base: Base, title: str) -> str:
    auto = _auto(base)
    logits = f"; {int(base.model.config.num_labels)} logits" if base.head else ""
    tokenizer = ", without a tokenizer: take that of the base" if base.transform is None else ""
    return f"""# {title}

Trained with fedquilt on {_name(base)}{logits}. This folder is the whole model{tokenizer}.

```python
from transformers import {auto}

model = {auto}.from_pretrained(".")
```
{"" if base.transform is None else _seeing(base, base.transform)}"""
