"""What simulated clients keep on disk: the newest of every slot, in files that do not outgrow it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedquilt.engine.kept import InMemory
from fedquilt.errors import StateError
from fedquilt.runs.atomic import write_atomic
from fedquilt.runs.clients import OPEN, ClientStore
from fedquilt.types import Slot

NUMBERS = 256  # of one slot's private leaf


def kept(value: float) -> dict[str, dict[str, Tensor]]:
    return {"private": {"a/w": torch.full((NUMBERS,), value)}, "moments": {"a/w/m": torch.full((2,), -value)}}


def value(store: ClientStore | InMemory, slot: Slot) -> float | None:
    found = store.get(slot)
    if not found:
        return None
    assert found.keys() == {"private", "moments"}
    assert torch.equal(found["moments"]["a/w/m"], -found["private"]["a/w"][:2])
    return float(found["private"]["a/w"][0])


def opened(folder: Path) -> ClientStore:
    (folder / "state").mkdir(exist_ok=True)
    return ClientStore(folder)


def collect(store: ClientStore, before: dict[str, str]) -> int:
    """Remove what neither this nor the last commit names, as the run directory does; bytes that are left."""
    sizes = 0
    for path in (store.folder / "state").iterdir():
        if f"state/{path.name}" in store.files or f"state/{path.name}" in before:
            sizes += path.stat().st_size
        else:
            path.unlink()
    return sizes


@settings(max_examples=30, deadline=None)
@given(cohorts=st.lists(st.sets(st.integers(0, 11), max_size=5), max_size=25))
def test_it_is_a_dictionary_whatever_the_order_of_visits(tmp_path_factory: pytest.TempPathFactory, cohorts: list[set[int]]) -> None:
    store, plain = opened(tmp_path_factory.mktemp("run")), InMemory()
    files: dict[str, str] = {}
    for number, cohort in enumerate(cohorts, 1):
        for client in cohort:
            for keeper in (store, plain):
                keeper.put(Slot(client, 0), kept(number + client / 100))
        before, files = files, store.flush(number)
        collect(store, before)
        again = opened(store.folder)
        again.load(files)
        for client in range(12):
            assert value(again, Slot(client, 0)) == value(store, Slot(client, 0)) == value(plain, Slot(client, 0))
        assert again.index == store.index
        assert len(store.opened) <= OPEN


def test_disk_grows_with_the_clients_that_took_part_and_not_with_the_rounds(tmp_path: Path) -> None:
    store, before = opened(tmp_path), {}
    sizes = []
    for number in range(1, 121):
        stream = torch.Generator().manual_seed(number)
        for client in torch.randperm(30, generator=stream)[:3].tolist():
            store.put(Slot(client, 0), kept(number))
        files = store.flush(number)
        sizes.append(collect(store, before))
        before = files
    one = 4 * (NUMBERS + 2)
    assert len(store.index) == 30
    assert 30 * one < sizes[-1] < 3 * 30 * (one + 400)  # 400: a slot's part of a header
    assert max(sizes[60:]) < 1.5 * max(sizes[30:60])


def test_nothing_kept_writes_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.flush(1) == {}
    assert store.get(Slot(0, 0)) == {}
    assert list((tmp_path / "state").iterdir()) == []


def test_what_was_read_is_the_readers_own(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(Slot(0, 0), kept(1))
    store.flush(1)
    store.get(Slot(0, 0))["private"]["a/w"].zero_()
    assert value(store, Slot(0, 0)) == 1


def test_a_reader_that_holds_all_segments_can_read_what_the_writer_removes(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for client in range(6):
        store.put(Slot(client, 0), kept(client))
        files = store.flush(client + 1)
    reader, other = opened(tmp_path), opened(tmp_path)
    reader.most_open = 10**6
    for one in (reader, other):
        one.load(files)
    for name in files:
        (tmp_path / name).unlink()
    assert [value(reader, Slot(client, 0)) for client in range(6)] == list(range(6))
    with pytest.raises(StateError, match=r"clients-000001\.safetensors cannot be read"):
        value(other, Slot(0, 0))


def test_the_newest_of_rounds_with_more_digits_counts(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in (999_999, 1_000_000):
        store.put(Slot(0, 0), kept(number))
        store.put(Slot(number, 0), kept(0))  # so that the older segment stays
        files = store.flush(number)
    again = opened(tmp_path)
    again.load(files)
    assert value(again, Slot(0, 0)) == 1_000_000


def test_damaged_segments_are_named(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(Slot(0, 0), kept(1))
    files = store.flush(1)
    (name,) = files
    with pytest.raises(StateError, match=r"clients-000001\.safetensors is corrupt"):
        opened(tmp_path).load({name: "0" * 64})
    digest = write_atomic(tmp_path / name, b"no tensors")
    with pytest.raises(StateError, match="is no safetensors file"):
        opened(tmp_path).load({name: digest})
    (tmp_path / name).unlink()
    with pytest.raises(StateError, match="cannot read clients"):
        opened(tmp_path).load(files)
