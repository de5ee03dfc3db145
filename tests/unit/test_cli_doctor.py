"""doctor finds what is wrong and says how to fix it."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path

import pytest

from fedquilt.cli import doctor, main
from fedquilt.models.onednn import pays

Usage = namedtuple("Usage", "total used free")


def problems(capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = main(["doctor", "--json"])
    return code, [problem["what"] for problem in json.loads(capsys.readouterr().out)["problems"]]


def test_a_healthy_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9e12, 0, 9e12))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert any(line.split() == ["torch", version("torch")] for line in shown.splitlines())
    for word in ("versions", "machine", "extras", "cache", "problems\n  none", "cores", "memory", "float32 products", "viz"):
        assert word in shown


def test_a_package_that_is_too_old_breaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"peft": "0.3.1", "rich": None}
    monkeypatch.setattr(doctor, "_installed", lambda name: found.get(name, "99.0"))
    code, what = problems(capsys)
    assert code == 1
    assert any(text.startswith("peft is 0.3.1, 0.18") for text in what)
    assert any(text.startswith("rich is not installed") for text in what)


def test_versions_are_compared_as_numbers() -> None:
    assert doctor._numbers("2.13.0+cpu") > doctor._numbers("2.9")
    assert doctor._numbers("weird") == ()


@pytest.mark.parametrize(("value", "what"), [("4096", "OMP_NUM_THREADS is 4096 on"), ("many", "OMP_NUM_THREADS is 'many'")])
def test_threads(value: str, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    code, found = problems(capsys)
    assert code == 0, "slow is not broken"
    assert any(text.startswith(what) for text in found)


def test_little_memory_and_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "memory_bytes", lambda: int(5e8))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1e9, 9e8, 1e8))
    _, found = problems(capsys)
    assert any("500.00 MB of memory" in text for text in found)
    assert any("100.00 MB free" in text for text in found)
    assert any("little space for the cache" in text for text in found)


def test_a_cache_that_cannot_be_a_folder_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDQUILT_CACHE", str(tmp_path / "file" / "cache"))
    code, found = problems(capsys)
    assert code == 1
    assert any("cannot be written" in text for text in found)


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_containers_limit_counts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("1048576\n")
    assert doctor.memory_bytes(tmp_path) == 1048576
    (tmp_path / name).write_text("max\n")
    assert (doctor.memory_bytes(tmp_path) or 0) > 1048576


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "umap" else object())
    extras = doctor._extras()
    assert extras["viz"] == "without umap: pip install 'fedquilt[viz]'"
    assert extras["dp"] == "installed"


def test_a_checkout_that_is_not_installed_breaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: None)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "fedquilt is imported but not installed" in shown
    assert "fix: pip install fedquilt" in shown


def test_offline_settings_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    main(["doctor"])
    assert "HF_HUB_OFFLINE set: nothing is downloaded" in capsys.readouterr().out


def test_a_library_of_products_that_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pays.cache_clear()
    monkeypatch.setenv("FEDQUILT_PRODUCTS", "onednm")
    code, found = problems(capsys)
    assert code == 1
    assert "FEDQUILT_PRODUCTS is 'onednm'" in found
