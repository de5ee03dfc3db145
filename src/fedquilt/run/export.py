"""Every row of the bank as a folder that plain peft (or transformers) opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fedquilt import tree
from fedquilt.adapters.base import head_key
from fedquilt.adapters.whole import weight_key
from fedquilt.errors import StateError
from fedquilt.run.build import Built, build
from fedquilt.run.config import load_config
from fedquilt.run.store import Store, write_atomic
from fedquilt.types import Hub, State


def export(run: Path, out: Path | None = None) -> list[Path]:
    """Export the last committed state of a run directory; returns the folders.

    Raises:
        StateError: nothing committed there.
    """
    from fedquilt.data.partition import Partition

    run = Path(run)
    loaded = Store(run).load()
    if loaded is None:
        raise StateError("the run has no committed round", where=str(run), fix=f"fedquilt resume {run}")
    built = build(load_config(run / "config.toml"), saved=Partition.load(run / "partition.json"))
    built.engine.restore(loaded[1])
    return export_bank(built, loaded[0], out or run / "adapters")


def export_bank(built: Built, hub: Hub, out: Path) -> list[Path]:
    """``row-NN`` per row in use; ``client-CCC-slot-S`` per slot where private leaves make every slot an adapter of its own."""
    if built.bank_is_complete:
        used = sorted({0, *hub.table.values()} if tree.length(hub.bank) == 1 else set(hub.table.values()))
        states: dict[str, State] = {f"row-{row:02d}": tree.row(hub.bank, row) for row in used}
    else:
        states = {
            f"client-{slot.client:03d}-slot-{slot.number}": built.engine.state_of(slot, tree.row(hub.bank, hub.row_of(slot)))
            for slot in built.view.slots
        }
    return [write_adapter(built, state, out / name) for name, state in states.items()]


def write_adapter(built: Built, state: State, folder: Path) -> Path:
    """One adapter: peft's format for LoRA (one folder per task's head where heads are per task), else a transformers model."""
    if built.adapter.heads > 1:
        for name, head in built.evaluator.heads.items():
            single = {key: x[head] if "/head." in key else x for key, x in state.items()}
            _write_one(built, single, folder / name)
        return folder
    return _write_one(built, state, folder)


def _write_one(built: Built, state: State, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if built.adapter.modules:
        _peft(built, state, folder)
    else:
        _transformers(built, state, folder)
    return folder


def _peft(built: Built, state: State, folder: Path) -> None:
    from peft import LoraConfig

    adapter = built.adapter
    config = LoraConfig(
        r=adapter.spec.rank,
        lora_alpha=int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=list(adapter.modules),
        modules_to_save=list(built.base.head),
        task_type="SEQ_CLS",
        inference_mode=True,
        base_model_name_or_path=built.base.source,
    )
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = head_key(key) if "/head." in key else f"{key.replace('/', '.')}.weight"
        tensors[f"base_model.model.{name}"] = tensor.contiguous()
    # save_pretrained of the config alone: sets become lists, so the file does not depend on hash order.
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    write_atomic(folder / "adapter_config.json", json.dumps(plain, indent=2, sort_keys=True, default=str).encode())
    write_atomic(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_atomic(folder / "README.md", _card(built).encode())


def _transformers(built: Built, state: State, folder: Path) -> None:
    model: Any = built.base.model
    values = {head_key(key) if "/head." in key else weight_key(key): tensor for key, tensor in state.items()}
    full = {name: values.get(name, tensor) for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.save_pretrained(folder, state_dict={name: tensor.contiguous() for name, tensor in full.items()})


def _card(built: Built) -> str:
    classes = int(built.base.model.config.num_labels)
    return (
        f"# {built.config.name}\n\nTrained with fedquilt, method `{built.config.method['name']}`, base `{built.base.source}`, "
        f"{classes} logits.\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForSequenceClassification\n\n"
        f'base = AutoModelForSequenceClassification.from_pretrained("{built.base.source}", num_labels={classes})\n'
        'model = PeftModel.from_pretrained(base, ".")\n```\n'
    )
