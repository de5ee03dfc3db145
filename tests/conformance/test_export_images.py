"""Image classifiers from a folder of pictures to an exported adapter, opened by the words of its own README: the same logits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from door import fedquilt
from exported import adapters
from PIL import Image

from fedquilt import tree
from fedquilt.engine.batches import assemble
from fedquilt.models.loading import ModelConfig, load
from fedquilt.runs.build import Built, build
from fedquilt.runs.config import load_config
from fedquilt.runs.store import Store

# peft asks transformers for something by its old name, in the user's own code too.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

CLASSES = {"colour": ("blue", "green", "red"), "shade": ("dark", "light")}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def draw(folder: Path) -> None:
    """Noisy pictures of 9 x 12 pixels whose mean gives the class away; one of them cannot be read."""
    stream = np.random.default_rng(0)
    tones = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0), "dark": (30, 30, 30), "light": (210, 210, 210)}
    for task, names in CLASSES.items():
        for split, n in (("train", 8), ("test", 4)):
            for name in names:
                (folder / task / split / name).mkdir(parents=True)
                for i in range(n):
                    pixels = np.clip(stream.normal(tones[name], 25, (9, 12, 3)), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / task / split / name / f"{i}.png")
    (folder / "colour" / "train" / "red" / "9.png").write_bytes(b"broken")


@pytest.fixture(params=["vit", "dinov2"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A base model as a user has it: a folder."""
    folder = tmp_path / "base"
    load(ModelConfig(name=f"tiny:{request.param}"), classes=2, seed=0).model.save_pretrained(folder)
    content = {"image_processor_type": "BitImageProcessor", "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def config(folder: Path, model: str, method: str, **more: Any) -> Path:
    tasks = [{"name": task, "source": f"folder:{task}/{{split}}", "eval_split": "test"} for task in CLASSES]
    raw = {
        "rounds": 2, "threads": 1, "model": {"name": model, "image_size": 8},
        "method": {"name": method, "lr": 0.01, "steps": 2, "batch": 4}, "tasks": tasks, "partition": {"how": "iid", "clients": 2},
    }  # fmt: skip
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps({**raw, **more}), encoding="utf-8")
    return path


def ours(built: Built, state: Any, task: str, head: int) -> torch.Tensor:
    data = built.tasks[task]
    batch = assemble([(data, head, i) for i in range(len(data.evaluation))], 0, split="evaluation")
    return built.network.logits({key: x[None] for key, x in state.items()}, batch)


def by_its_readme(folder: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Run the code blocks of the card, in its folder, on one image."""
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 2
    scope: dict[str, Any] = {}
    exec("\n".join(blocks).replace("FILE", str(image)), scope)
    logits: torch.Tensor = scope["logits"].detach()[0]
    return logits


@pytest.mark.parametrize(
    ("method", "adapter"),
    [("fltac", {"targets": ["q", "v", "down"], "rank": 2, "alpha": 4.5}), ("fedit", {"dropout": 0.1, "head": "per-task"})],
)
def test_the_readme_of_an_adapter_gives_our_logits(
    method: str, adapter: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path)
    assert fedquilt("run", config(tmp_path, str(model), method, adapter=adapter), "--dir", tmp_path / "run").code == 0
    built = build(load_config(tmp_path / "run" / "config.toml"))
    assert "train: 1 images left out: 1 cannot be read as an image (first: row 25)" in built.tasks["colour"].notes
    loaded = Store(tmp_path / "run").load()
    assert loaded is not None
    hub = loaded[0]
    rows = sorted(set(hub.table.values()))
    assert len(rows) == {"fltac": 2, "fedit": 1}[method]
    for row in rows:
        for number, task in enumerate(sorted(CLASSES)):
            per_task = built.adapter.heads > 1
            folder = tmp_path / "run" / "adapters" / f"row-{row:02d}" / (task if per_task else "")
            expected = ours(built, tree.row(hub.bank, row), task, number if per_task else 0)
            image = tmp_path / task / "test" / CLASSES[task][-1] / "3.png"  # the last row of the split
            found = by_its_readme(folder, image, monkeypatch)
            assert float((found - expected[-1]).abs().max()) <= 1e-5
    fresh = ours(built, built.adapter.init, "colour", 0)
    assert float((fresh - ours(built, tree.row(hub.bank, rows[0]), "colour", 0)).abs().max()) > 1e-3, "training moved it"


@pytest.mark.parametrize("method", ["head_only", "centralised_full"])
def test_a_whole_model_is_a_folder_of_transformers(method: str, model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    draw(tmp_path)
    assert fedquilt("run", config(tmp_path, str(model), method), "--dir", tmp_path / "run").code == 0
    built = build(load_config(tmp_path / "run" / "config.toml"))
    store = Store(tmp_path / "run")
    loaded = store.load()
    assert loaded is not None
    data = built.tasks["shade"]
    pixels = (torch.tensor(np.array(data.evaluation.pixels)) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)  # type: ignore[union-attr]
    built.engine.kept = store.clients
    states = adapters(built, loaded[0])
    for name, state in states.items():
        plain = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "adapters" / name).eval()
        more = {"interpolate_pos_encoding": True} if built.base.model_type == "vit" else {}
        with torch.no_grad():
            theirs = plain(pixel_values=pixels.permute(0, 3, 1, 2).float(), **more).logits
        assert float((theirs - ours(built, state, "shade", 0)).abs().max()) <= 1e-5
    again = load(ModelConfig(name=str(tmp_path / "run" / "adapters" / next(iter(states)))), classes=3, seed=0)
    assert again.transform == built.base.transform, "the folder says how it sees"


def test_commands_speak_of_images(model: Path, tmp_path: Path) -> None:
    draw(tmp_path)
    path = config(tmp_path, str(model), "fltac")
    said = fedquilt("data", "inspect", path)
    assert said.code == 0
    assert "1 cannot be read as an image" in said.out
    assert fedquilt("data", "partition", path).code == 0
    assert fedquilt("run", path, "--dry-run").code == 0
    wrong = fedquilt("run", path, "--set", "model.name=tiny:bert", "--set", "model.image_size=8", "--dir", tmp_path / "x")
    assert "task 'colour' has images, and the model 'tiny:bert' reads text" in wrong.complaint(2)
    odd = fedquilt("run", path, "--set", "model.image_size=9", "--dir", tmp_path / "y")
    assert "choose 8 or 12" in odd.complaint(2)


def test_texts_for_an_image_model(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"word {i},{i % 2}\n" for i in range(30)))
    tasks = [{"name": "t", "source": "file:t.csv"}]
    said = fedquilt("run", config(tmp_path, "tiny:vit", "fedit", tasks=tasks), "--dir", tmp_path / "run")
    assert "task 't' has texts, and the model 'tiny:vit' reads images" in said.complaint(2)
