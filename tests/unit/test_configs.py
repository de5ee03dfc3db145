"""Every configuration that comes with the project is valid: keys, arguments of the builders, presets, columns."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from fedquilt.cli.demos import DEMOS
from fedquilt.data.assets import ASSETS, MODELS
from fedquilt.models.shapes import SHAPES
from fedquilt.runs import registry
from fedquilt.runs.config import load_config
from fedquilt.runs.parts import make_method

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "src" / "fedquilt" / "configs" / "demo"
CONFIGS = [path for path in sorted([*(ROOT / "configs").rglob("*.toml"), *DEMO.glob("*.toml")]) if "tasks.toml" not in path.name]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_configuration_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDQUILT_DATA", str(tmp_path))
    config = load_config(path)
    given = {key: value for key, value in config.method.items() if key != "name"}
    builder = registry.load("fedquilt.methods", config.method["name"])
    wanted = registry.schema(builder).model_fields
    registry.options(builder, {**({"tasks": len(config.tasks)} if "tasks" in wanted else {}), **given}, "method")
    family = make_method(config, len(config.tasks)).adapter
    own = {key: value for key, value in config.adapter.items() if key != "family"}
    assert config.adapter.get("family", family) == family
    registry.options(registry.load("fedquilt.adapters", family), own, "adapter", ("base", "seed", "heads"))
    assert config.model.name.removeprefix("asset:") in (SHAPES if path.parent.name == "paper" else MODELS)


@pytest.mark.parametrize("which", DEMOS)
def test_a_demonstration_fetches_what_its_runs_need(which: str) -> None:
    demo = DEMOS[which]
    for run in demo.runs:
        config = load_config(DEMO / f"{demo.prefix}{run}.toml")
        assert config.model.name == f"asset:{demo.model}"
        assert {task.source for task in config.tasks} == {f"asset:{name}" for name in demo.data}
        assert all((ASSETS[name].column == "image") == (config.tasks[0].image is not None) for name in demo.data)
        if run in ("fedit", "fedit-params"):
            assert config.adapter["rank"] == len(config.tasks)
    archives = {MODELS[demo.model].archive, *(ASSETS[name].archive for name in demo.data)}
    assert demo.megabytes - 45 < sum(archive.bytes for archive in archives) / 1e6 < demo.megabytes + 45


def test_the_benchmark_names_every_configuration_there_is() -> None:
    families = runpy.run_path(str(ROOT / "benchmarks" / "grid.py"))["FAMILIES"]
    assert set(families) == {path.name for path in (ROOT / "configs").iterdir()} - {"paper"}
    for family, names in families.items():
        assert sorted(names) == sorted({path.stem for path in (ROOT / "configs" / family).glob("*.toml")} - {"tasks"})
