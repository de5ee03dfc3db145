"""Language models through the user's door: run, resume's state, export; plain peft and transformers open what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from door import fedquilt
from exported import adapters
from texts import KINDS, text_config
from torch import Tensor

from fedquilt.models.loading import ModelConfig, load
from fedquilt.runs.build import Built, build
from fedquilt.runs.config import load_config
from fedquilt.runs.store import Store
from fedquilt.types import State

# peft asks transformers for something by its old name, in the user's own code too.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

CASES = [
    ("fltac", "llama", {}),
    ("fltac", "gpt2", {"adapter": {"rank": 3, "alpha": 4.5, "targets": ["q", "o", "up", "down"]}}),
    ("fedit", "llama", {"adapter": {"rank": 2, "dropout": 0.1, "targets": ["q", "k", "v", "o", "up", "down", "gate_proj"]}}),
    ("local_only", "llama", {}),
    ("centralised_full", "llama", {"method": {"mixed": True}}),
    ("centralised_full", "gpt2", {"method": {"mixed": True}}),
]


def opened(folder: Path, base: Path) -> Any:
    """The way the exported README says."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()


def theirs(model: Any, built: Built, task: str) -> list[Tensor]:
    """Logits that predict each response of the evaluation split, every row alone."""
    out = []
    examples = built.tasks[task].evaluation
    for a, b in zip(examples.offsets, examples.offsets[1:], strict=False):
        ids = torch.from_numpy(examples.tokens[a:b]).long()
        first = int(examples.types[a:b].argmax())
        with torch.no_grad():
            out.append(model(input_ids=ids[None]).logits[0, first - 1 : -1])
    return out


def ours(built: Built, state: State, task: str) -> list[Tensor]:
    data = built.tasks[task]
    asked = built.evaluator.prompts(data, len(data.evaluation))
    assert asked is not None
    batch = asked.batch
    logits = built.network.logits({key: x[None] for key, x in state.items()}, batch)
    return [row[: int(types.sum())] for row, types in zip(logits, batch.types.split(batch.lengths.tolist()), strict=True)]


@pytest.mark.parametrize(("method", "kind", "tables"), CASES, ids=[f"{method}-{kind}" for method, kind, _ in CASES])
def test_logits_through_plain_libraries_are_ours(method: str, kind: str, tables: dict[str, Any], tmp_path: Path) -> None:
    base = load(ModelConfig(name=f"tiny:{kind}"), classes=0, seed=0)
    base.model.save_pretrained(tmp_path / "base")
    config = tmp_path / "run.toml"
    config.write_text(text_config(tmp_path, method, f"tiny:{kind}", **tables).to_toml(), encoding="utf-8")
    assert fedquilt("run", config, "--dir", tmp_path / "run").code == 0
    built = build(load_config(tmp_path / "run" / "config.toml"))
    store = Store(tmp_path / "run")
    loaded = store.load()
    assert loaded is not None
    built.engine.kept = store.clients
    found = adapters(built, loaded[0])
    assert sorted(path.name for path in (tmp_path / "run" / "adapters").iterdir()) == sorted(found)
    moved = 0.0
    for name, state in found.items():
        folder = tmp_path / "run" / "adapters" / name
        plain = opened(folder, tmp_path / "base")
        for task in KINDS:
            fresh = ours(built, built.adapter.init, task)
            for logits, own, start in zip(theirs(plain, built, task), ours(built, state, task), fresh, strict=True):
                assert float((logits - own).abs().max()) <= 1e-5
                moved = max(moved, float((logits - start).abs().max()))
        if method != "centralised_full":
            described = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            assert (described["task_type"], described["modules_to_save"]) == ("CAUSAL_LM", None)
            assert described["fan_in_fan_out"] == (kind == "gpt2")
        assert "AutoModelForCausalLM" in (folder / "README.md").read_text(encoding="utf-8")
    assert moved > 1e-3, "training moved it: the comparison is not between two untouched models"


def test_a_run_on_texts_is_evaluated_and_reported(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    tables = {"evaluation": {"generate": 2, "max_new": 4}}
    config.write_text(text_config(tmp_path, "fltac", **tables).to_toml(), encoding="utf-8")
    assert fedquilt("run", config, "--dir", tmp_path / "run").code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["parameters"]["head"] == 0
    assert {task["metric"] for task in summary["tasks"].values()} == {"loss"}
    assert set(summary["tasks"]["copy"]["metrics"]) == {"loss", "perplexity", "rouge_l"}
    said = fedquilt("report", tmp_path / "run")
    assert said.code == 0
    assert "lower is better" in said.out
    seen = fedquilt("data", "inspect", config)
    assert seen.code == 0
    assert "generation" in seen.out


def test_a_head_policy_on_a_language_model_is_refused_at_the_door(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(text_config(tmp_path, "fltac", adapter={"head": "private"}).to_toml(), encoding="utf-8")
    assert "leave adapter.head out" in fedquilt("run", config, "--dir", tmp_path / "run").complaint(2)
