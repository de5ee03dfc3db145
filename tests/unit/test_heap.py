"""What was freed goes back to the system when it has become much."""

from __future__ import annotations

import sys

import pytest
import torch

from fedquilt.models import heap
from fedquilt.models.heap import Heap, held, trimmer
from fedquilt.testing import run_tiny, tiny_config

NUMBERS = 1 << 10  # 4 kB: of the heap, not mapped by itself

glibc = pytest.mark.skipif(trimmer() is None, reason="the C library is not glibc")


def holes() -> list[torch.Tensor]:
    """Every hundredth of blocks of 400 MB; the others are free again, and lie between these, so that they cannot go back alone."""
    blocks = [torch.ones(NUMBERS) for _ in range(100_000)]
    return blocks[::100]


@glibc
def test_what_was_freed_goes_back_above_the_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    patient, one = Heap(1 << 40), Heap(200 << 20)
    seen: list[int] = []  # a look takes a page now and then, so no two need be equal
    monkeypatch.setattr(heap, "held", lambda: seen.append(held() or 0) or seen[-1])
    kept = holes()
    assert not patient.settle()
    assert one.settle()
    before, after = seen[-2:]
    assert before - after > 200 << 20
    assert one.floor == after
    assert not one.settle(), "nothing has grown since"
    assert all(bool((block == 1).all()) for block in kept)


def test_where_the_system_does_not_say_or_cannot_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Heap(0)
    one.floor = 0
    monkeypatch.setattr(heap, "trimmer", lambda: None)
    assert not one.settle()
    monkeypatch.setattr(heap, "trimmer", lambda: lambda _: pytest.fail("nobody knows whether it has grown"))
    monkeypatch.setattr(heap, "held", lambda: None)
    assert not one.settle()
    assert not Heap(0).settle()


def test_elsewhere_than_on_linux_there_is_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert trimmer.__wrapped__() is None


@glibc
@pytest.mark.parametrize("engine", ["vectorised", "sequential"])
def test_both_engines_settle_after_every_pass(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no number depends on it."""
    config = tiny_config("fedit", method={"lr": 1e-2, "steps": 2, "batch": 4}, engine=engine, rounds=1)
    wanted, trims = run_tiny(config).tensors(), []
    monkeypatch.setattr(Heap.__init__, "__defaults__", (-(1 << 40),))
    monkeypatch.setattr(heap, "trimmer", lambda: trims.append)
    found = run_tiny(config).tensors()
    assert len(trims) > 1
    assert all(torch.equal(found[key], x) for key, x in wanted.items())
