"""Open an adapter of a family that peft does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fedquilt.adapters.base import head_key
from fedquilt.adapters.export import read_own
from fedquilt.errors import StateError
from fedquilt.models.inserts import Owners, hook
from fedquilt.models.loading import HEADS, Base
from fedquilt.runs import registry

LOADED = "fedquilt_adapter"


def load_adapter(folder: str | Path, model: Any) -> Any:
    """A transformers ``model`` with the adapter in ``folder`` (a row that ``fedquilt export`` wrote) put into it.

    The model is changed: forward hooks on the adapted modules, the adapter's head in the place of its own. It takes one adapter.

    >>> model = AutoModelForSequenceClassification.from_pretrained("roberta-base", num_labels=2)    # doctest: +SKIP
    >>> model = fedquilt.load_adapter("runs/fedtt/adapters/row-00", model)                          # doctest: +SKIP

    Raises:
        StateError: no such adapter, one of another model, or a model that already has one.
    """
    if hasattr(model, LOADED):
        what = f"the model already has the adapter of {getattr(model, LOADED)}"
        raise StateError(what, where=str(folder), why="two would be added up", fix="load the base model anew for every adapter")
    family, options, read = read_own(Path(folder))
    tensors = {key: x for key, x in read.items() if "/" in key}
    head = tuple(name for name in HEADS if isinstance(getattr(model, name, None), nn.Module))
    base = Base(model, None, "model", str(model.config.model_type), head, model.dtype, str(folder))
    builder = registry.load("fedquilt.adapters", family)
    adapter = builder(base, seed=0, **registry.options(builder, options, "adapter", ("base", "seed", "heads")))
    wanted, found = ({key: tuple(x.shape) for key, x in state.items()} for state in (adapter.init, tensors))
    if wrong := sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)):
        name = wrong[0]
        raise StateError(
            f"an adapter of another model: '{name}' is {found.get(name, 'missing')}, the model wants {wanted.get(name, 'none')}",
            where=str(folder),
            why=f"{len(wrong)} of {len(wanted)} tensors differ",
            fix="load the base model and the number of labels that its README.md names",
        )
    owners = Owners()
    owners.set({key: x.to(model.device, model.dtype)[None] for key, x in tensors.items()})
    for name, insert in adapter.inserts.items():
        hook(model.get_submodule(name), name, insert, owners)
    for key, x in read.items():
        if key not in tensors or ("/head." in key and key not in adapter.inserted):
            model.get_parameter(head_key(key)).data.copy_(x)
    setattr(model, LOADED, str(folder))
    return model
