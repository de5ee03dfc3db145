"""The run directory: whatever happens to a disk, the last committed round is there, or the damage is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from stored import KEPT, books, commit, hub

from fedquilt import tree
from fedquilt.errors import StateError
from fedquilt.runs import store as module
from fedquilt.runs.atomic import write_atomic
from fedquilt.runs.store import MANIFEST, Store, _seal, locked, read_manifest
from fedquilt.types import Hub, Slot


def rounds(folder: Path) -> list[int]:
    return [json.loads(line)["round"] for line in (folder / "rounds.jsonl").read_text().splitlines()]


def newest(folder: Path) -> Path:
    return folder / "state" / "hub-000002.safetensors"


def loaded(folder: Path, **options: Any) -> tuple[Hub, list[str]]:
    found = Store(folder).load(**options)
    assert found is not None
    return found[0], found[2]


def test_what_was_committed_comes_back(two: Path) -> None:
    store = Store(two)
    found = store.load()
    assert found is not None
    back, remembered, warnings = found
    assert tree.equal(back.bank, hub(2).bank)
    assert tree.equal(back.patch, hub(2).patch)
    assert tree.equal(back.memory, hub(2).memory)
    assert (back.table, back.step) == (hub(2).table, 2)
    assert tree.equal(store.clients.get(Slot(0, 0))["private"], KEPT["private"])
    assert remembered == books(2)
    assert warnings == []
    assert rounds(two) == [1, 2]


def test_nothing_committed_is_none(tmp_path: Path) -> None:
    assert Store(tmp_path).load() is None


def test_two_generations_are_kept(two: Path) -> None:
    store = Store(two)
    store.load()
    commit(store, 3)
    assert sorted(path.name for path in (two / "state").iterdir()) == [
        "clients-000002.safetensors",
        "clients-000003.safetensors",
        "hub-000002.safetensors",
        "hub-000003.safetensors",
    ]


def test_lines_of_a_round_that_was_never_committed_are_cut_away(two: Path) -> None:
    with (two / "rounds.jsonl").open("a") as handle:
        handle.write('{"round": 3}\n{"rou')
    store = Store(two)
    store.load()
    commit(store, 3)
    assert rounds(two) == [1, 2, 3]


def test_rounds_between_checkpoints_wait_and_come_in_order(tmp_path: Path) -> None:
    store = Store(tmp_path, every=2, last=5)
    for step in (1, 2, 3):
        commit(store, step)
    assert loaded(tmp_path)[0].step == 2
    assert rounds(tmp_path) == [1, 2]
    commit(store, 4)
    commit(store, 5)
    assert loaded(tmp_path)[0].step == 5
    assert rounds(tmp_path) == [1, 2, 3, 4, 5]


def test_a_file_cut_anywhere_is_detected_and_the_round_before_is_used(two: Path) -> None:
    whole = newest(two).read_bytes()
    for length in range(len(whole)):
        newest(two).write_bytes(whole[:length])
        back, warnings = loaded(two)
        assert back.step == 1
        assert len(warnings) == 1
    newest(two).write_bytes(whole)
    assert loaded(two)[0].step == 2


def test_a_flipped_byte_anywhere_is_detected(two: Path) -> None:
    whole = newest(two).read_bytes()
    for place in range(len(whole)):
        newest(two).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert loaded(two)[0].step == 1


def test_after_a_fall_back_the_journal_follows(two: Path) -> None:
    newest(two).unlink()
    store = Store(two)
    assert store.load() is not None
    commit(store, 2)
    assert rounds(two) == [1, 2]
    assert loaded(two) [1] == []  # fmt: skip


def test_strict_does_not_fall_back(two: Path) -> None:
    newest(two).write_bytes(b"x")
    with pytest.raises(StateError, match="corrupt"):
        Store(two).load(strict=True)


def test_both_generations_gone_is_an_error(two: Path) -> None:
    for path in (two / "state").iterdir():
        path.unlink()
    with pytest.raises(StateError, match="no readable state"):
        Store(two).load()


def test_a_right_digest_over_something_else_is_an_error_too(two: Path) -> None:
    manifest = json.loads((two / MANIFEST).read_text())
    digest = write_atomic(newest(two), b"not safetensors")
    manifest["generations"][0]["files"]["state/hub-000002.safetensors"] = digest
    manifest["sha256"] = _seal(manifest["generations"])
    (two / MANIFEST).write_text(json.dumps(manifest))
    assert loaded(two)[0].step == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', '{"format": 99, "generations": []}', '{"format": 2, "generations": [{}]}']
)
def test_a_manifest_that_is_none_is_named(two: Path, text: str) -> None:
    (two / MANIFEST).write_text(text)
    with pytest.raises(StateError, match=r"hub\.json"):
        read_manifest(two)


@pytest.mark.parametrize("cut", [0, 5])
def test_a_journal_shorter_than_committed_is_an_error(two: Path, cut: int) -> None:
    (two / "rounds.jsonl").write_bytes((two / "rounds.jsonl").read_bytes()[:cut])
    with pytest.raises(StateError, match=r"rounds\.jsonl has"):
        Store(two).load()


def test_a_missing_journal_is_an_error(two: Path) -> None:
    (two / "rounds.jsonl").unlink()
    with pytest.raises(StateError, match=r"rounds\.jsonl has 0 bytes"):
        Store(two).load()


def _failing(original: Callable[..., Any], state: dict[str, int]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        state["left"] -= 1
        if state["left"] == 0:
            raise OSError(28, "No space left on device", "somewhere")
        return original(*args, **kwargs)

    return call


def _commits(store: Store) -> bool:
    """Whether round 3 was committed; a failure must say why and what to do."""
    try:
        commit(store, 3)
    except StateError as error:
        return not ("No space left" in str(error) and "resume" in error.fix)
    return True


def test_whichever_system_call_fails_the_round_before_stays(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The k-th fsync, rename or open fails, for every k: round 2 is loadable, and round 3 can be committed afterwards."""
    failures = 0
    for k in range(1, 60):
        state = {"left": k}
        store = Store(two)
        found = store.load()
        assert found is not None
        assert found[0].step == 2
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _failing(os.fsync, state))
            patch.setattr(Path, "replace", _failing(Path.replace, state))
            patch.setattr(Path, "open", _failing(Path.open, state))
            if _commits(store):
                break
        failures += 1
        # The manifest's own folder fsync comes after its rename: then round 3 counts already.
        if loaded(two)[0].step == 3:
            break
    assert failures > 8
    assert loaded(two)[0].step == 3
    store = Store(two)
    store.load()
    commit(store, 4)
    assert rounds(two) == [1, 2, 3, 4]


def test_atomic_writes_leave_no_temporary_file_and_tell_the_digest(tmp_path: Path) -> None:
    import hashlib

    assert write_atomic(tmp_path / "x", b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


def test_a_directory_is_held_by_one_process(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".owner").read_text()
    assert not (tmp_path / ".owner").exists()
    other = FileLock(tmp_path / ".lock", is_singleton=False)
    with other:
        with pytest.raises(StateError, match="in use"), locked(tmp_path):
            pytest.fail("two holders")
        (tmp_path / ".owner").write_text("process 1 on here")
        with pytest.raises(StateError, match="process 1 on here"), locked(tmp_path):
            pytest.fail("two holders")


def test_the_same_round_twice_keeps_one_generation_of_it(two: Path) -> None:
    store = Store(two)
    store.load()
    store.clients.put(Slot(0, 1), KEPT)
    store.commit(hub(2), {}, books(2))
    assert [g["round"] for g in module.read_manifest(two)["generations"]] == [2]  # type: ignore[index]
    store = Store(two)
    store.load()
    assert all(tree.equal(store.clients.get(slot)["private"], KEPT["private"]) for slot in (Slot(0, 0), Slot(0, 1)))
