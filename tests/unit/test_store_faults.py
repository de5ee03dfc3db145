"""Finer damage to the run directory: half-written files, a manifest with one wrong bit, refused system calls."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from stored import books, commit, hub

from fedquilt import tree
from fedquilt.errors import StateError
from fedquilt.runs.atomic import write_atomic
from fedquilt.runs.store import MANIFEST, Store, read_manifest, writing
from fedquilt.types import Slot


def test_one_wrong_bit_in_the_manifest_is_never_believed(two: Path) -> None:
    """Without a seal, 75 of 8,400 single-bit flips changed the table, the round or the bytes unnoticed."""
    path = two / MANIFEST
    whole = path.read_bytes()
    good = read_manifest(two)
    refused = 0
    for place in range(0, 8 * len(whole), 7):  # every byte, another bit each time
        wrong = bytearray(whole)
        wrong[place // 8] ^= 1 << place % 8
        path.write_bytes(wrong)
        try:
            found = read_manifest(two)
        except StateError as error:
            refused += 1
            assert error.where == str(path)
        else:
            assert found is not None
            assert good is not None
            assert found["generations"] == good["generations"]
    assert refused > 0.8 * len(whole)


def test_a_manifest_cut_anywhere_is_named(two: Path) -> None:
    whole = (two / MANIFEST).read_bytes()
    for length in range(len(whole)):
        (two / MANIFEST).write_bytes(whole[:length])
        with pytest.raises(StateError, match=r"hub\.json"):
            Store(two).load()


def test_a_manifest_without_its_seal_is_not_believed(two: Path) -> None:
    manifest = json.loads((two / MANIFEST).read_text())
    del manifest["sha256"]
    (two / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StateError, match=r"hub\.json is corrupt"):
        Store(two).load()


def test_a_fall_back_finds_the_clients_as_they_were(tmp_path: Path) -> None:
    """Cohorts at random, so that segments are emptied and removed; then the newest state is damaged."""
    for seed in range(12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        stream = torch.Generator().manual_seed(seed)
        store, held, before = Store(folder), {}, {}
        for step in range(1, 13):
            before = dict(held)
            for client in torch.randperm(8, generator=stream)[:3].tolist():
                held[client] = float(step)
                store.clients.put(Slot(client, 0), {"private": {"a/w": torch.full((4,), float(step))}})
            store.commit(hub(step), {}, books(step))
        newest = max((folder / "state").glob("hub-*" if seed % 2 else "clients-*"))
        newest.write_bytes(newest.read_bytes()[:-1])
        again = Store(folder)
        found = again.load()
        assert found is not None
        assert found[0].step == 11
        assert {c: float(again.clients.get(Slot(c, 0))["private"]["a/w"][0]) for c in before} == before


class Torn:
    """A file whose ``left``-th write over all files stores the first half and then finds the disk full."""

    left = 0

    def __init__(self, inner: IO[Any]) -> None:
        self.inner = inner

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *problem: object) -> None:
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def write(self, data: bytes) -> int:
        Torn.left -= 1
        if Torn.left == 0:
            self.inner.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.inner.write(data)


def test_a_write_that_stops_half_way_leaves_the_round_before(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open
    before = Store(two).load()
    assert before is not None
    torn = 0
    for k in range(1, 20):
        Torn.left = k
        store = Store(two)
        store.load()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", lambda self, mode="r", **o: Torn(original(self, mode, **o)))
            try:
                commit(store, 3)
                break
            except StateError as error:
                torn += 1
                assert error.why == "No space left on device"
                assert error.fix.endswith(f"fedquilt resume {two}")
        assert not list(two.rglob("*.tmp"))  # half a file must not fill the disk further
        found = Store(two).load(strict=True)
        assert found is not None
        assert tree.equal(found[0].bank, before[0].bank)
        assert (found[0].table, found[0].step, found[1]) == (before[0].table, 2, before[1])
    assert torn == 7  # two state files, four journals, the manifest
    found = Store(two).load(strict=True)
    assert found is not None
    assert found[0].step == 3
    assert [json.loads(line)["round"] for line in (two / "rounds.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_replaced_file_is_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "x", b"old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


# -- from system calls to sentences --------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
def test_a_refused_write_becomes_a_sentence(tmp_path: Path, begun: bool) -> None:
    if begun:
        (tmp_path / "config.toml").touch()
    with pytest.raises(StateError) as caught, writing(tmp_path):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(tmp_path / "env.json"))
    assert caught.value.why == os.strerror(errno.EDQUOT)
    assert caught.value.where == str(tmp_path / "env.json")
    assert (f"fedquilt resume {tmp_path}" in caught.value.fix) is begun


def test_a_sentence_about_a_refused_write_keeps_what_it_knows(tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught, writing(tmp_path):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise StateError("cannot write round 3", where="hub.json") from error
    assert (caught.value.what, caught.value.where) == ("cannot write round 3", "hub.json")
    assert caught.value.fix == "free space, or choose another --dir"


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "not there"), StateError("in use"), ValueError("a bug")])
def test_other_errors_pass_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, writing(tmp_path):
        raise error
    assert caught.value is error
