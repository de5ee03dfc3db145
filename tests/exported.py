"""The oracles of the export tests: what a folder of adapters should hold, and what a user gets who opens one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor

from fedquilt import load_adapter, tree
from fedquilt.runs.build import Built
from fedquilt.types import Batch, Hub, State


def adapters(built: Built, hub: Hub) -> dict[str, State]:
    """Folder name -> adapter: rows in use, or every slot with its private leaves."""
    if built.bank_is_complete:
        return {f"row-{row:02d}": tree.row(hub.bank, row) for row in sorted(set(hub.table.values()))}
    return {
        f"client-{slot.client:03d}-slot-{slot.number}": built.engine.state_of(slot, tree.row(hub.bank, hub.row_of(slot)))
        for slot in built.view.slots
    }


def by_card(folder: Path, base: Path) -> Any:
    """The adapted model, the way the exported README says."""
    auto = transformers.AutoModelForSequenceClassification
    if (folder / "config.json").exists():
        return auto.from_pretrained(folder).double().eval()
    model = auto.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True).double()
    own = (folder / "fedquilt_adapter.json").exists()
    return (load_adapter(folder, model) if own else PeftModel.from_pretrained(model, folder)).double().eval()


def theirs(model: Any, batch: Batch) -> Tensor:
    """Logits of every row alone, without padding."""
    ends = [0, *torch.cumsum(batch.lengths, 0).tolist()]
    out = []
    for first, last in pairwise(ends):
        inputs = {"input_ids": batch.tokens[first:last].long()[None]}
        if getattr(model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = batch.types[first:last].long()[None]
        with torch.no_grad():
            out.append(model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"])).logits)
    return torch.cat(out)
