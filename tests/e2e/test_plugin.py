"""A third party's package with a method: found, checked, and run by its name from TOML, without a line of ours changed."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from door import differences, fedquilt, finish, result, start
from tiny import tiny_config

from fedquilt.errors import CompositionError, ConfigError
from fedquilt.testing import check_method, run_tiny
from fedquilt.testing import tiny_config as checked_config

PLUGIN = Path(__file__).parent / "plugin"
PAGE = Path(__file__).parents[2] / "docs" / "howto-plugin.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installer leaves in site-packages: the module, and a .dist-info folder made from pyproject.toml."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shutil.copy(PLUGIN / "fedquilt_fedavgm.py", folder)
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in table.items()) for group, table in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(points))
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package in this process."""
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    return site


def write_run(folder: Path) -> Path:
    """The package's example configuration over the tiny tasks."""
    (folder / "tasks.toml").write_text(tiny_config(folder, "fedit").to_toml(), encoding="utf-8")
    return Path(shutil.copy(PLUGIN / "config.toml", folder / "momentum.toml"))


def test_it_is_unknown_before_it_is_installed() -> None:
    with pytest.raises(ConfigError, match="unknown method 'fedavgm'"):
        check_method("fedavgm", lr=1e-2, steps=2)


def test_it_is_listed_and_described(installed: Path) -> None:
    listed = json.loads(fedquilt("methods", "list", "--json").out)
    assert {"name": "fedavgm", "about": "One adapter for everybody; the server adds a decaying sum of all averages."} in listed
    shown = fedquilt("methods", "show", "fedavgm")
    assert shown.code == 0
    for word in ("beta", "0.9", "server_lr", "lr", "required"):
        assert word in shown.out


def test_it_passes_the_check(installed: Path) -> None:
    assert len(check_method("fedavgm", lr=1e-2, steps=2)) == 7
    assert len(check_method("fedavgm", lr=1e-2, epochs=1, optimiser="sgd", beta=0.5)) == 7


def test_its_options_are_checked(installed: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'betta'") as caught:
        check_method("fedavgm", lr=1e-2, steps=2, betta=0.5)
    assert "did you mean 'beta'?" in caught.value.fix
    with pytest.raises(ConfigError, match=r"server momentum must be in \[0, 1\)"):
        check_method("fedavgm", lr=1e-2, steps=2, beta=1.0)


def test_without_momentum_it_is_fedit(installed: Path) -> None:
    ours = run_tiny(checked_config("fedit", method={"lr": 1e-2, "steps": 2}))
    theirs = run_tiny(checked_config("fedavgm", method={"lr": 1e-2, "steps": 2, "beta": 0.0}))
    moved = run_tiny(checked_config("fedavgm", method={"lr": 1e-2, "steps": 2}))
    assert all(torch.equal(x, theirs.hub.bank[key]) for key, x in ours.hub.bank.items())
    assert any(not torch.equal(x, moved.hub.bank[key]) for key, x in ours.hub.bank.items())


def test_it_runs_by_its_name_and_resumes(site: Path, installed: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path)
    process = start("run", config, "--dir", tmp_path / "run", env={**os.environ, "PYTHONPATH": str(site)})
    said = finish(process)
    assert said.code == 0, said.err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["method"] == "fedavgm"
    # The same in this process, interrupted after a round: the server's momentum is part of the state.
    assert fedquilt("run", config, "--dir", tmp_path / "again", "--set", "rounds=3").code == 0
    flipped = max((tmp_path / "again" / "state").glob("hub-*"))
    flipped.write_bytes(b"")
    assert fedquilt("resume", tmp_path / "again").code == 0
    assert differences(result(tmp_path / "run"), result(tmp_path / "again")) == []


@pytest.mark.slow
def test_it_installs_with_pip(tmp_path: Path) -> None:
    source = shutil.copytree(PLUGIN, tmp_path / "source")
    target = tmp_path / "target"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", str(target), str(source)], check=False, capture_output=True, text=True)
    if "No module named pip" in done.stderr or "Cannot import 'setuptools" in done.stderr:
        pytest.skip("pip and setuptools are not in this environment")
    assert done.returncode == 0, done.stderr
    said = finish(start("methods", "list", "--json", env={**os.environ, "PYTHONPATH": str(target)}))
    assert "fedavgm" in [entry["name"] for entry in json.loads(said.out)]


def test_a_plug_in_that_breaks_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_plugin.py").write_text("import there_is_no_such_module\n")
    info = tmp_path / "broken_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[fedquilt.methods]\nbroken = broken_plugin:method\nfedit = broken_plugin:fedit\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match="the method 'broken' cannot be imported"):
        check_method("broken", lr=1e-2, steps=1)
    with pytest.raises(ConfigError, match="two packages register the method 'fedit'"):
        check_method("fedit", lr=1e-2, steps=1)


def test_the_page_shows_the_files_that_are_tested_here() -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w+ title=\"([\w./]+)\"\n(.*?)^```", page, re.S | re.M)
    assert {name for name, _ in blocks} == {"fedquilt_fedavgm.py", "pyproject.toml", "config.toml"}
    for name, text in blocks:
        assert text == (PLUGIN / name).read_text(encoding="utf-8"), name
    assert CompositionError.__name__ in page
