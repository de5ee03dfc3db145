"""Exported folders opened by plain peft or transformers, on a base model that fedquilt has not touched: the same logits."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from door import fedquilt, write_config
from exported import adapters
from tiny import WORDS
from torch import Tensor

from fedquilt import load_adapter
from fedquilt.engine.batches import assemble
from fedquilt.models.loading import ModelConfig, load
from fedquilt.models.padded import Padded
from fedquilt.models.roles import ROLES
from fedquilt.runs.build import Built, build
from fedquilt.runs.config import load_config
from fedquilt.runs.store import Store
from fedquilt.types import Hub, State

# peft asks transformers for something by its old name, in the user's own code too.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fltac": ("fltac", {}),
    "fltac, more targets, odd alpha": (
        "fltac",
        {"adapter": {"rank": 3, "alpha": 4.5, "targets": list(ROLES)}},
    ),
    "fltac, private head": ("fltac", {"adapter": {"head": "private"}}),
    "fedit": ("fedit", {"adapter": {"dropout": 0.1}}),
    "fedit, head per task": ("fedit", {"adapter": {"head": "per-task"}}),
    "fedit, frozen head": ("fedit", {"adapter": {"head": "frozen"}}),
    "local_only": ("local_only", {}),
    "centralised_lora": ("centralised_lora", {}),
    "head_only": ("head_only", {}),
    "centralised_full": ("centralised_full", {}),
    "fedtt": ("fedtt", {"adapter": {"rank": 2, "bottleneck": 8}}),
    "fedit, ia3": ("fedit", {"adapter": {"family": "ia3", "rank": None}}),
    "fltac, bottlenecks": ("fltac", {"adapter": {"family": "bottleneck", "bottleneck": 4, "rank": None}}),
    "fedit, biases, head per task": ("fedit", {"adapter": {"family": "bitfit", "head": "per-task", "rank": None}}),
    "fedit, every dense": ("fedit", {"adapter": {"targets": ["dense"]}}),
    "fedit, ia3 on every dense": ("fedit", {"adapter": {"family": "ia3", "targets": ["dense"], "rank": None}}),
    "fedit, prompt": ("fedit", {"adapter": {"family": "prompt", "tokens": 3, "rank": None}}),
    "fedit, p-tuning, head per task": ("fedit", {"adapter": {"family": "p_tuning", "tokens": 3, "head": "per-task", "rank": None}}),
    "fedit, prefix": ("fedit", {"adapter": {"family": "prefix", "tokens": 3, "rank": None}}),
    "fedit, norms": ("fedit", {"adapter": {"family": "layer_norms", "rank": None}}),
    "fedit, ssf": ("fedit", {"adapter": {"family": "ssf", "rank": None}}),
    "fedit, last layers": ("fedit", {"adapter": {"family": "last_layers", "rank": None}}),
    "centralised_full, mixed, head per task": ("centralised_full", {"method": {"mixed": True}, "adapter": {"head": "per-task"}}),
}
BERT = [pytest.param(name, "tiny:bert", id=name) for name in CASES]
HEADS = [pytest.param(name, "tiny:roberta", id=f"{name}-roberta") for name in CASES if "every dense" in name]  # its head has one
OTHERS = [
    pytest.param(name, model, id=f"{name}-{model}", marks=() if name == "fltac" else pytest.mark.slow)
    for name in (
        "fltac",
        "fedit, head per task",
        "head_only",
        "centralised_full",
        "fedtt",
        "fedit, ia3",
        "fedit, ssf",
        "fedit, prompt",
    )
    for model in ("tiny:roberta", "tiny:deberta", "tiny:deberta-v2")
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base models as a user has them: folders."""
    folder = tmp_path_factory.mktemp("base")
    for kind in ("bert", "roberta", "deberta", "deberta-v2"):
        base = load(ModelConfig(name=f"tiny:{kind}"), classes=3, seed=0)
        base.model.save_pretrained(folder / kind)
        base.tokenizer.save_pretrained(folder / kind)
    return folder


def opened(folder: Path, base: Path) -> Any:
    """The way the exported README says."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    if (folder / "config.json").exists():
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    if (folder / "fedquilt_adapter.json").exists():
        return load_adapter(folder, model).eval()
    return PeftModel.from_pretrained(model, folder).eval()


def theirs(model: Any, built: Built, task: str) -> Tensor:
    """Logits of the evaluation split from tokens with ordinary padding and an ordinary mask."""
    examples = built.tasks[task].evaluation
    rows = [torch.from_numpy(part) for part in split(examples.tokens, examples.offsets)]
    kinds = [torch.from_numpy(part) for part in split(examples.types, examples.offsets)]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(rows, batch_first=True, padding_value=int(model.config.pad_token_id)).long()
    mask = pad([torch.ones(len(row)) for row in rows], batch_first=True).long()
    types = pad(kinds, batch_first=True).long().clamp(max=model.config.type_vocab_size - 1)
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    return logits


def split(values: Any, offsets: Any) -> list[Any]:
    return [values[a:b] for a, b in pairwise(offsets)]


def ours(built: Built, state: State, task: str, head: int) -> Tensor:
    """Logits of the network that trained it."""
    data = built.tasks[task]
    batch = assemble([(data, head, i) for i in range(len(data.evaluation))], 0, split="evaluation")
    return built.network.logits({key: x[None] for key, x in state.items()}, batch)


def heads_of(built: Built) -> Sequence[tuple[str, int]]:
    """(folder inside the adapter's, head): one, or one per task in alphabetical order."""
    return [("", 0)] if built.adapter.heads == 1 else [(task, i) for i, task in enumerate(sorted(built.tasks))]


def trained(case: str, model: str, folder: Path) -> tuple[Path, Built, Hub]:
    """A short run by the command line, and its objects built again."""
    method, overrides = CASES[case]
    config = write_config(folder, method, **{"rounds": 2, **overrides, "model": {"name": model}})
    assert fedquilt("run", config, "--dir", folder / "run").code == 0
    built = build(load_config(folder / "run" / "config.toml"))
    store = Store(folder / "run")
    loaded = store.load()
    assert loaded is not None
    built.engine.kept = store.clients
    return folder / "run", built, loaded[0]


@pytest.mark.parametrize(("case", "model"), BERT + HEADS + OTHERS)
def test_logits_through_plain_libraries_are_ours(case: str, model: str, saved: Path, tmp_path: Path) -> None:
    run, built, hub = trained(case, model, tmp_path)
    found = adapters(built, hub)
    assert sorted(path.name for path in (run / "adapters").iterdir()) == sorted(found)
    seen = []
    for name, state in found.items():
        for inner, head in heads_of(built):
            plain = opened(run / "adapters" / name / inner, saved / model.removeprefix("tiny:"))
            for task in [inner] if inner else list(WORDS):
                logits = theirs(plain, built, task)
                assert float((logits - ours(built, state, task, head)).abs().max()) <= 1e-5
                seen.append(logits)
    # Training moved it: the comparison is not between two untouched models.
    fresh = ours(built, built.adapter.init, next(iter(WORDS)), 0)
    assert all(float((logits[: len(fresh)] - fresh).abs().max()) > 1e-3 for logits in seen[:1])


def test_adapters_of_a_run_differ_from_one_another(tmp_path: Path, saved: Path) -> None:
    run, built, _ = trained("fltac, private head", "tiny:bert", tmp_path)
    folders = sorted((run / "adapters").iterdir())
    task = next(iter(WORDS))
    logits = [theirs(opened(folder, saved / "bert"), built, task) for folder in folders]
    assert len(folders) == 9
    assert all(not torch.allclose(a, b, atol=1e-4) for i, a in enumerate(logits) for b in logits[:i])


def test_the_padded_reference_agrees_with_the_export_too(tmp_path: Path, saved: Path) -> None:
    run, built, hub = trained("fltac", "tiny:bert", tmp_path)
    reference = Padded(built.base, built.adapter)
    data = built.tasks["mood"]
    batch = assemble([(data, 0, i) for i in range(len(data.evaluation))], 0, split="evaluation")
    for name, state in adapters(built, hub).items():
        logits = reference.logits({key: x[None] for key, x in state.items()}, batch)
        assert float((theirs(opened(run / "adapters" / name, saved / "bert"), built, "mood") - logits).abs().max()) <= 1e-5


def test_export_writes_the_same_files_again_elsewhere(tmp_path: Path) -> None:
    run, _, _ = trained("fedit", "tiny:bert", tmp_path)
    said = fedquilt("export", run, "--out", tmp_path / "out", "--json")
    assert said.code == 0
    assert json.loads(said.out) == {"folders": [str(tmp_path / "out" / "row-00")]}
    files = [path for path in (run / "adapters").rglob("*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        again = tmp_path / "out" / path.relative_to(run / "adapters")
        assert again.read_bytes() == path.read_bytes()
        assert again.stat().st_mode & 0o777 == (run / "hub.json").stat().st_mode & 0o777  # readable by whom the umask lets


def test_export_of_a_run_without_a_round_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    assert "no committed round" in fedquilt("export", tmp_path).complaint(5)


def test_export_of_what_is_no_run_says_so(tmp_path: Path) -> None:
    message = fedquilt("export", tmp_path / "nosuch").complaint(5)
    assert "nosuch' is not a run directory" in message
    assert "resume" not in message
    assert not (tmp_path / "nosuch").exists()


def test_export_over_a_file_is_refused(tmp_path: Path) -> None:
    run, _, _ = trained("fedit", "tiny:bert", tmp_path)
    (tmp_path / "file").touch()
    message = fedquilt("export", run, "--out", tmp_path / "file").complaint(5)
    assert "cannot write an adapter" in message
    assert "choose another folder" in message


@pytest.mark.parametrize("case", ["fedit", "fedtt", "centralised_full"])
def test_the_readme_of_a_random_base_says_that_it_cannot_be_fetched(case: str, tmp_path: Path) -> None:
    run, _, _ = trained(case, "tiny:bert", tmp_path)
    folder = next((run / "adapters").iterdir())
    assert "`tiny:bert` (a model with random weights, made for tests" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", ["head_only", "centralised_full"])
def test_the_readme_of_a_whole_model_opens_it(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, built, hub = trained(case, "tiny:bert", tmp_path)
    for name, state in adapters(built, hub).items():
        monkeypatch.chdir(run / "adapters" / name)
        scope: dict[str, Any] = {}
        (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.S)
        exec(code, scope)
        difference = theirs(scope["model"], built, "mood") - ours(built, state, "mood", 0)
        assert float(difference.abs().max()) <= 1e-5
