"""The drive loop when replies are bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fedquilt import tree
from fedquilt.clock import ABANDONED, PATIENCE, Drive
from fedquilt.engine.base import InProcess
from fedquilt.errors import FedquiltError, QuorumError
from fedquilt.meter import Meter
from fedquilt.runs.build import assemble
from fedquilt.testing import Nowhere, run_tiny, tiny_base, tiny_config, tiny_partition, tiny_tasks
from fedquilt.types import Hub, Reply

CONFIG = tiny_config("fedit", rounds=4, method={"lr": 1e-2, "steps": 1, "batch": 4})


def spoiled(rounds: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """All replies of these rounds are NaN."""
    poll = InProcess.poll

    def bad(self: InProcess, tickets: Sequence[int], deadline: float | None = None) -> list[Reply]:
        replies = poll(self, tickets, deadline)
        return [
            replace(r, delta=tree.scale(r.delta, float("nan"))) if r.round in rounds else r for r in replies
        ]  # fmt: skip

    monkeypatch.setattr(InProcess, "poll", bad)


def test_a_round_without_a_usable_reply_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled([2], monkeypatch)
    outcome = run_tiny(CONFIG)
    assert [entry["accepted"] for entry in outcome.rounds] == [4, 0, 4, 4]
    assert outcome.rounds[1]["loss"] is None
    assert {r["code"] for r in outcome.rounds[1]["rejected"]} == {"nonfinite"}
    assert ABANDONED not in outcome.hub.memory
    assert outcome.hub.step == 4
    one, two = (run_tiny(CONFIG.model_copy(update={"rounds": rounds})).hub for rounds in (1, 2))
    assert tree.equal(one.bank, two.bank)
    assert (one.table, two.step, float(two.memory[ABANDONED])) == (two.table, 2, 1.0)


def test_one_bad_reply_is_counted_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The aggregate is that of a federation in which the bad client does not exist, and its bytes count all the same."""
    poll = InProcess.poll

    def bad(self: InProcess, tickets: Sequence[int], deadline: float | None = None) -> list[Reply]:
        return [replace(r, weight=-9.0) if r.slot.client == 2 else r for r in poll(self, tickets, deadline)]

    def absent(self: InProcess, tickets: Sequence[int], deadline: float | None = None) -> list[Reply]:
        return [r for r in poll(self, tickets, deadline) if r.slot.client != 2]

    outcomes = []
    for behaviour in (bad, absent):
        with monkeypatch.context() as patch:
            patch.setattr(InProcess, "poll", behaviour)
            outcomes.append(run_tiny(CONFIG))
    rejected, missing = outcomes
    assert tree.equal(rejected.hub.bank, missing.hub.bank)
    for entry, other in zip(rejected.rounds, missing.rounds, strict=True):
        assert [(r["slot"], r["code"]) for r in entry["rejected"]] == [([2, 0], "weight")]
        assert (entry["jobs"], entry["accepted"], entry["loss"]) == (4, 3, other["loss"])
        assert entry["bytes_up"] * 3 == other["bytes_up"] * 4


def test_nobody_answers() -> None:
    """Patience ends with an error, and until then the state is that of the last round."""
    built = assemble(CONFIG, tiny_base(CONFIG), tiny_tasks(), tiny_partition())
    built.engine.poll = lambda tickets, deadline=None: []  # type: ignore[method-assign]
    journal = Nowhere()
    drive = Drive(built.program, built.engine, built.adapter.spec, journal, Meter(built.adapter.spec), 0, 9,
                  lambda n, u, h: {}, lambda h, n: None, lambda n, s, e: None)  # fmt: skip
    with pytest.raises(QuorumError, match=f"round {PATIENCE}"):
        drive.run(built.program.init(built.adapter.init))
    assert [entry["accepted"] for entry in journal.records["rounds.jsonl"]] == [0] * (PATIENCE - 1)
    assert all(entry["step"] == {"abandoned": 1.0} for entry in journal.records["rounds.jsonl"])


@pytest.mark.parametrize(("quorum", "counts"), [(0.75, True), (0.76, False)])
def test_a_round_with_fewer_replies_than_the_quorum_changes_nothing(quorum: float, counts: bool) -> None:
    """Three of four replies are there in every round."""
    built = assemble(CONFIG, tiny_base(CONFIG), tiny_tasks(), tiny_partition())
    poll, journal = built.engine.poll, Nowhere()
    built.engine.poll = lambda tickets, deadline=None: poll(tickets)[1:]  # type: ignore[method-assign]
    drive = Drive(built.program, built.engine, built.adapter.spec, journal, Meter(built.adapter.spec), 0, PATIENCE - 1,
                  lambda n, u, h: {}, lambda h, n: None, lambda n, s, e: None, quorum=quorum)  # fmt: skip
    begin = built.program.init(built.adapter.init)
    after = drive.run(begin)
    assert tree.equal(after.bank, begin.bank) != counts
    assert [entry["accepted"] for entry in journal.records["rounds.jsonl"]] == [3] * (PATIENCE - 1)


def test_after_too_many_in_a_row_the_run_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled(range(2, 9), monkeypatch)
    with pytest.raises(QuorumError, match=f"in {PATIENCE} rounds in a row"):
        run_tiny(CONFIG)


def test_patience_is_part_of_the_state_so_a_resume_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled(range(1, 9), monkeypatch)
    built = assemble(CONFIG, tiny_base(CONFIG), tiny_tasks(), tiny_partition())
    hub = replace(built.program.init(built.adapter.init), step=1, memory={ABANDONED: torch.tensor(PATIENCE - 1.0)})
    drive = Drive(built.program, built.engine, built.adapter.spec, Nowhere(), Meter(built.adapter.spec), 0, 4,
                  lambda n, u, h: {}, lambda h, n: None, lambda n, s, e: None)  # fmt: skip
    with pytest.raises(QuorumError, match="round 2"):
        drive.run(hub)


def test_an_aggregate_that_overflows_ends_the_run_before_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite updates, infinite sum: every reply passes the gate, the bank would not."""
    poll = InProcess.poll

    def huge(self: InProcess, tickets: Sequence[int], deadline: float | None = None) -> list[Reply]:
        return [
            replace(r, delta=tree.map_leaves(lambda x: torch.full_like(x, 1.7e308), r.delta)) for r in poll(self, tickets, deadline)
        ]

    monkeypatch.setattr(InProcess, "poll", huge)
    with pytest.raises(FedquiltError, match="overflowed"):
        run_tiny(CONFIG)


def test_a_meter_counts_every_round() -> None:
    outcome = run_tiny(CONFIG)
    sums = [entry["total_up"] for entry in outcome.rounds]
    assert sums == [outcome.rounds[0]["bytes_up"] * n for n in (1, 2, 3, 4)]
    assert isinstance(outcome.hub, Hub)
