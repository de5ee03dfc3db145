"""Rounds of which the server sees the sum: the bits of a simulation, whoever leaves in whichever phase."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from door import differences, journal
from own import Federation, adapters, shared, simulated, slots
from tiny import tiny_config

from fedquilt.deploy.loopback import Node
from fedquilt.deploy.messages import Masked, Opened, Refused
from fedquilt.deploy.parcel import Parcel, parcel, read, unpack
from fedquilt.engine.base import InProcess
from fedquilt.errors import QuorumError
from fedquilt.runs.launch import run
from fedquilt.types import Reply

MOST = 1 << 30
PHASES = ("train", "share", "mask", "open")


def secure(method: str, /, **overrides: Any) -> dict[str, Any]:
    return shared(method, secure_aggregation=True, **overrides)


def without(monkeypatch: pytest.MonkeyPatch, client: int, number: int) -> None:
    """In one process: this client has no part in a round's sum, though it was asked."""
    poll = InProcess.poll

    def others(self: InProcess, tickets: list[int], deadline: float | None = None) -> list[Reply]:
        return [r for r in poll(self, tickets, deadline) if (r.slot.client, r.round) != (client, number)]

    monkeypatch.setattr(InProcess, "poll", others)


def interfering(federation: Federation, node: int, phase: str, number: int, how: Callable[[bytes, Node], bytes | None]) -> None:
    """This node's answer to one phase of one round is ``how``'s."""
    honest = federation.answers[node]

    def answer(data: bytes) -> bytes | None:
        asked = unpack(data, MOST)
        return how(data, honest) if (asked.kind, asked.said.get("round")) == (phase, number) else honest(data)

    federation.answers[node] = answer


CHOICE: dict[str, Any] = {"tasks": 3, "choice": "clients"}


@pytest.mark.parametrize(
    ("method", "more"),
    [("fedit", {}), ("fedtt_plus", {}), ("rolora", {}), ("fltac", CHOICE)],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_sum_is_that_of_a_simulation(method: str, more: dict[str, Any], tmp_path: Path) -> None:
    """Adapters, rounds with their bytes, scores: masks change no bit, and the meter's bytes are those that travelled."""
    tables = secure(method, method=more)
    here = simulated(tmp_path, tables)
    there = Federation(tmp_path, tables).run()
    assert adapters(here)
    assert differences(adapters(there), adapters(here)) == []
    assert journal(there) == journal(here)
    for one, other in zip(slots(there), slots(here), strict=True):
        assert [{**slot, "row": None} for slot in one] == [{**slot, "row": None} for slot in other]


def test_it_is_the_mean_in_the_clear_but_for_rounding(tmp_path: Path) -> None:
    """The second implementation: replies, a gate and float64 sums."""
    one, other = (journal(simulated(tmp_path / str(on), shared("fedit", secure_aggregation=on))) for on in (True, False))
    for summed, clear in zip(one, other, strict=True):
        assert summed["loss"] == pytest.approx(clear["loss"], rel=1e-6)
        assert (summed["accepted"], summed["cohort"]) == (clear["accepted"], clear["cohort"])


@pytest.mark.parametrize("phase", PHASES[:3])
def test_who_leaves_before_its_vector_is_sent_is_not_in_the_sum(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits of a run in which that client's part is left out in that round."""
    tables = secure("fedit")
    federation = Federation(tmp_path, tables)
    interfering(federation, 12, phase, 2, lambda data, honest: None)
    there = federation.run()
    entry = journal(there)[1]
    assert entry["rejected"] == [{"slot": [2, 0], "code": "lost", "detail": "nothing came in time"}]
    assert (entry["jobs"], entry["accepted"]) == (4, 3)
    with monkeypatch.context() as patch:
        without(patch, 2, 2)
        here = simulated(tmp_path, tables)
    assert differences(adapters(there), adapters(here)) == []


def test_who_leaves_after_its_vector_was_sent_is_in_the_sum(tmp_path: Path) -> None:
    tables = secure("fedit")
    federation = Federation(tmp_path, tables)
    interfering(federation, 12, "open", 2, lambda data, honest: None)
    there = federation.run()
    assert journal(there)[1]["accepted"] == 4
    assert differences(adapters(there), adapters(simulated(tmp_path, tables))) == []


@pytest.mark.parametrize("phase", PHASES)
def test_with_fewer_than_the_threshold_there_is_no_sum(phase: str, tmp_path: Path) -> None:
    """Two of four leave, three are needed: the round changes nothing, and the next one is a round like any other."""
    federation = Federation(tmp_path, secure("fedit"))
    for node in (11, 12):
        interfering(federation, node, phase, 2, lambda data, honest: None)
    rounds = journal(federation.run())
    assert [entry["accepted"] for entry in rounds] == [4, 0, 4]
    details = {tuple(entry["slot"]): entry["detail"] for entry in rounds[1]["rejected"]}
    assert set(details) == {(c, 0) for c in range(4)}
    assert any("3 are needed" in detail for detail in details.values())


def test_two_clients_are_enough_and_one_is_not(tmp_path: Path) -> None:
    federation = Federation(tmp_path, secure("fedit", rounds=1), away={10, 11})
    assert journal(federation.run())[0]["accepted"] == 2
    alone = Federation(tmp_path / "alone", secure("fedit"), away={10, 11, 12})
    with pytest.raises(QuorumError, match="usable replies in 3 rounds"):
        alone.run()


LIES: dict[str, Callable[[bytes, Node], bytes | None]] = {
    "no message": lambda data, honest: b"abc",
    "another kind": lambda data, honest: Parcel("present").pack(),
    "another round": lambda data, honest: _with(honest(data), round=9),
    "another run": lambda data, honest: _with(honest(data), run="1" * 32),
    "a block more": lambda data, honest: _blocks(honest(data), lambda blocks: (*blocks, b"")),
    "a block less": lambda data, honest: _blocks(honest(data), lambda blocks: blocks[1:]),
    "a shorter block": lambda data, honest: _blocks(honest(data), lambda blocks: (blocks[0][1:], *blocks[1:])),
    "too much": lambda data, honest: _blocks(honest(data), lambda blocks: (*blocks, bytes(1 << 20))),
    "a refusal": lambda data, honest: parcel(Refused(why="too few clients to hide among")).pack(),
}


def _with(data: bytes | None, **said: Any) -> bytes:
    answer = unpack(data or b"", MOST)
    return Parcel(answer.kind, {**answer.said, **said}, answer.blocks).pack()


def _blocks(data: bytes | None, how: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]) -> bytes:
    answer = unpack(data or b"", MOST)
    return Parcel(answer.kind, answer.said, how(answer.blocks)).pack()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("lie", LIES)
def test_who_says_something_else_falls_out(lie: str, phase: str, tmp_path: Path) -> None:
    """And the others' sum is made all the same."""
    federation = Federation(tmp_path, secure("fedit", rounds=1))
    interfering(federation, 13, phase, 1, LIES[lie])
    (entry,) = journal(federation.run())
    assert entry["accepted"] == (4 if phase == "open" else 3)  # a vector that has arrived counts
    if phase != "open":
        (rejected,) = entry["rejected"]
        assert (rejected["slot"], rejected["code"]) == ([3, 0], "refused" if lie == "a refusal" else "malformed")


def test_wrong_shares_are_found_out_and_nothing_is_made_of_them(tmp_path: Path) -> None:
    federation = Federation(tmp_path, secure("fedit", rounds=2))
    wrong = lambda data, honest: _blocks(honest(data), lambda blocks: (bytes(len(blocks[0])),))  # noqa: E731
    interfering(federation, 10, "open", 1, wrong)
    first, second = journal(federation.run())
    assert (first["accepted"], second["accepted"]) == (0, 4)
    assert all("do not give" in entry["detail"] or "incomplete" in entry["detail"] for entry in first["rejected"])


def test_what_a_client_sends_looks_like_noise_and_is_another_every_time(tmp_path: Path) -> None:
    """The same run twice: the same adapters, and no masked vector like that of the other time or like what is in it."""
    said: list[list[np.ndarray[Any, Any]]] = []
    runs = []
    for time in range(2):
        federation, seen = Federation(tmp_path / str(time), secure("fedit", rounds=1)), []
        for node, honest in list(federation.answers.items()):

            def heard(data: bytes, honest: Node = honest) -> bytes | None:
                answer = honest(data)
                if unpack(data, MOST).kind == "mask":
                    found = unpack(answer or b"", MOST)
                    read(found, Masked)
                    seen.append(np.frombuffer(found.blocks[0], dtype="<u8"))  # noqa: B023 - called in this lap
                return answer

            federation.answers[node] = heard
        runs.append(adapters(federation.run()))
        said.append(seen)
    assert differences(*runs) == []
    vectors = np.stack([vector for seen in said for vector in seen])
    assert len(np.unique(vectors)) == vectors.size
    top = vectors >> np.uint64(60)  # of small fixed-point numbers 0 or 15
    counts = np.bincount(top.ravel().astype(np.int64), minlength=16)
    expected = vectors.size / 16
    assert ((counts - expected) ** 2 / expected).sum() < 50, "15 degrees of freedom: one in 100,000"


def test_a_phase_is_answered_the_same_when_it_is_asked_the_same_and_never_anew(tmp_path: Path) -> None:
    """An answer may be lost on the way; another question to the same phase would unmask somebody."""
    federation = Federation(tmp_path, secure("fedit", rounds=1))
    asked: list[bytes] = []
    for phase in PHASES[1:]:
        interfering(federation, 10, phase, 1, lambda data, honest: (asked.append(data), honest(data))[1])
    federation.run()
    host = federation.hosts[10]
    share, mask, opened = asked
    first = unpack(host.answer(opened), MOST)
    assert read(first, Opened).round == 1
    fewer = unpack(opened, MOST)
    other = Parcel("open", {**fewer.said, "clients": fewer.said["clients"][:-1]}).pack()
    for question in (other, mask, share):
        assert unpack(host.answer(question), MOST).kind == "refused"


@pytest.mark.parametrize("clients", [0, 3])
def test_a_server_that_says_fewer_clients_than_there_are_gets_no_shares(clients: int, tmp_path: Path) -> None:
    """The threshold is made from the number that the train message says: below two thirds of those who sent keys nobody goes on."""
    federation = Federation(tmp_path, secure("fedit", rounds=1))
    honest = dict(federation.answers)

    def cheating(node: int) -> Node:
        def answer(data: bytes) -> bytes | None:
            asked = unpack(data, MOST)
            return honest[node](_with(data, clients=clients) if asked.kind == "train" else data)

        return answer

    federation.answers = {node: cheating(node) for node in honest}
    (entry,) = journal(federation.run())
    if clients:  # three of four: the threshold is three all the same
        assert entry["accepted"] == 4
    else:
        assert {(r["code"], r["detail"]) for r in entry["rejected"]} == {("refused", "an unreadable message")}


def test_a_slot_that_diverged_is_left_out_by_its_own_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here nobody else can: its client's other slots and all others count."""
    config = tiny_config(tmp_path, "fedit", secure_aggregation=True)
    before = InProcess._reply

    def diverging(self: InProcess, *args: Any) -> Reply:
        reply = before(self, *args)
        delta = {key: x * float("nan") for key, x in reply.delta.items()} if reply.slot.client == 1 else reply.delta
        return Reply(reply.slot, reply.round, delta, reply.weight, reply.extra, reply.fingerprint)

    monkeypatch.setattr(InProcess, "_reply", diverging)
    assert [entry["accepted"] for entry in journal(run(config, directory=tmp_path / "run"))] == [3, 3]
