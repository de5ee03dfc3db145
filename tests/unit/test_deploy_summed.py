"""Rounds of which the server sees the sum: the bits of a simulation, whoever leaves in whichever phase."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import slow_unless
from door import differences, fedquilt, journal
from own import RUN, Federation, adapters, shared, simulated, slots
from tiny import tiny_config

from fedquilt.assign.chosen import SOURCE, chosen
from fedquilt.deploy.loopback import Node
from fedquilt.deploy.messages import Masked, Opened, Refused
from fedquilt.deploy.parcel import Parcel, parcel, read, unpack
from fedquilt.deploy.summing import Openings
from fedquilt.engine.base import InProcess
from fedquilt.errors import QuorumError, StateError
from fedquilt.privacy.sums import Sums
from fedquilt.runs.config import parse
from fedquilt.runs.launch import run
from fedquilt.types import Reply, Round

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
        said = {"row": None, "samples": 0} if method == "fltac" else {"samples": 0}
        assert one == [{**slot, **said} for slot in other], "neither rows nor sample counts are said"


def test_rows_that_go_on_with_another_s_adapter_do_so_wherever_the_round_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = simulated(tmp_path / "plain", tables := secure("fltac", method=CHOICE))
    settle = chosen.settle

    def moving(self: chosen, memory: Any, slots: Any, now: Round, add: Any, found: dict[str, Any]) -> None:
        settle(self, memory, slots, now, add, found)
        if now.number == 2:
            found[SOURCE] = torch.tensor([0, 3, 1, 2])

    monkeypatch.setattr(chosen, "settle", moving)
    here = simulated(tmp_path, tables)
    there = Federation(tmp_path, tables).run()
    assert differences(adapters(there), adapters(here)) == []
    assert journal(there) == journal(here)
    assert differences(adapters(here), adapters(plain)), "nothing was put to the test"


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


BELOW = [*(("fedit", phase, 2) for phase in PHASES), *(("fltac", phase, 1) for phase in ("place", *PHASES))]


@pytest.mark.parametrize(("method", "phase", "number"), BELOW)
def test_with_fewer_than_the_threshold_there_is_no_sum(method: str, phase: str, number: int, tmp_path: Path) -> None:
    """Two of four leave, three are needed: the round changes nothing, and the next one is a round like any other."""
    federation = Federation(tmp_path, secure(method, method=CHOICE if method == "fltac" else {}))
    for node in (11, 12):
        interfering(federation, node, phase, number, lambda data, honest: None)
    rounds = journal(federation.run())
    every = rounds[-1]["jobs"]
    assert [entry["accepted"] for entry in rounds] == [0 if entry["round"] == number else every for entry in rounds]
    details = {tuple(entry["slot"]): entry["detail"] for entry in rounds[number - 1]["rejected"]}
    assert {client for client, _ in details} == set(range(4))
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


@pytest.mark.parametrize(
    ("lie", "phase"),
    [slow_unless((i + j) % 2 == 0, lie, phase) for i, lie in enumerate(LIES) for j, phase in enumerate(PHASES)],
)
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


@pytest.mark.parametrize("clients", [0, 2])
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
    assert entry["accepted"] == 0
    why = "an error of its own" if clients else "an unreadable message"
    assert {(r["code"], r["detail"]) for r in entry["rejected"]} == {("refused", why)}


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


def test_zeros_are_nobody_to_hide_among(tmp_path: Path) -> None:
    """Three of four lost what they had, and have nothing to add: the sum would be the fourth one's changes."""
    federation = Federation(tmp_path, secure("fedit"))

    def losing(data: bytes, honest: Node) -> bytes | None:
        host = federation.hosts[next(node for node, answer in originals.items() if answer is honest)]
        for path in (host.folder / RUN).glob("round-*"):
            path.unlink()
        return honest(data)

    originals = dict(federation.answers)
    for node in (10, 11, 12):
        interfering(federation, node, "train", 2, losing)
    rounds = journal(federation.run())
    assert [entry["accepted"] for entry in rounds] == [4, 0, 4]
    details = [entry["detail"] for entry in rounds[1]["rejected"]]
    assert details.count("nothing to add") == 3


def test_the_same_numbers_are_never_summed_with_others(tmp_path: Path) -> None:
    """A server that lost its state asks round 1 again. With the same people it is told the same; without one of them nobody opens:
    the difference of the two sums would be that one's changes."""
    federation = Federation(tmp_path, secure("fedit", rounds=1))
    first = adapters(federation.run())
    config = parse(federation.tables, tmp_path)
    again = run(config, directory=tmp_path / "again", engine=federation.engine)
    assert differences(adapters(again), first) == []
    interfering(federation, 13, "train", 1, lambda data, honest: None)
    (entry,) = journal(run(config, directory=tmp_path / "fewer", engine=federation.engine))
    assert entry["accepted"] == 0
    assert [r["detail"] for r in entry["rejected"]] == ["in another sum already"] * 3 + ["nothing came in time"]


def test_what_was_opened_is_remembered(tmp_path: Path) -> None:
    """Also if the last line was cut off by a crash: that vector was not opened."""
    path, one, other = tmp_path / "opened.jsonl", np.arange(3, dtype=np.uint64), np.arange(4, dtype=np.uint64)
    Openings(path).allow(one, [0, 1, 2])
    path.write_text(path.read_text() + '["abc", [0, 1')
    Openings(path).allow(other, [0, 1])
    for words, clients in ((one, [0, 1]), (other, [0, 1, 2]), (one, [0, 1, 2, 3])):
        with pytest.raises(StateError, match="with other clients"):
            Openings(path).allow(words, clients)
    for words, clients in ((one, [0, 1, 2]), (other, [0, 1])):
        Openings(path).allow(words, clients)
    assert len(path.read_text().splitlines()) == 3


KEYS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "no key for masks": lambda mine, other: bytes(32) + mine[32:],
    "no key for shares": lambda mine, other: mine[:32] + bytes(32) + mine[64:],
    "the same twice": lambda mine, other: mine[:32] * 2 + mine[64:],
    "another one's": lambda mine, other: other,
}


@pytest.mark.parametrize("case", KEYS)
def test_keys_that_nobody_can_use_cost_their_owner_the_sum_and_nobody_else(case: str, tmp_path: Path) -> None:
    federation, seen = Federation(tmp_path, secure("fedit", rounds=1)), list[bytes]()
    interfering(federation, 10, "train", 1, lambda data, honest: (seen.append(honest(data) or b""), seen[-1])[1])

    def lying(data: bytes, honest: Node) -> bytes | None:
        other = unpack(seen[0], MOST).blocks[0]
        return _blocks(honest(data), lambda blocks: (KEYS[case](blocks[0], other),))

    interfering(federation, 13, "train", 1, lying)
    (entry,) = journal(federation.run())
    stolen = case == "another one's"  # whose they are cannot be known
    assert entry["accepted"] == (0 if stolen else 3)
    wrong = {tuple(r["slot"]) for r in entry["rejected"] if r["detail"] == "public keys that nobody can use"}
    assert wrong == ({(0, 0), (3, 0)} if stolen else {(3, 0)})


def sums(counts: list[int], weights: list[float], value: float = 1.0) -> Sums:
    return Sums(
        {"w": torch.full((len(counts), 2), value, dtype=torch.float64)}, torch.tensor(weights).double(), torch.tensor(counts), 0.5
    )


@pytest.mark.parametrize(
    ("found", "uniform", "wrong"),
    [
        (sums([0, 2, 1], [0.0, 40.0, 2.0]), False, ""),
        (sums([2, 1], [2.0, 1.0]), True, ""),
        (sums([4], [9.0]), False, "4 slots were counted, and 3 took part"),
        (sums([4, -2], [9.0, 1.0]), False, "2 slots were counted"),
        (sums([1], [-1.0]), False, "weights"),
        (sums([1, 1], [1.0, 0.0]), False, "weights"),
        (sums([0, 1], [1.0, 1.0]), False, "weights"),
        (sums([1], [1e12]), False, "weights"),
        (sums([1], [2.0]), True, "weights"),
        (sums([1], [1.0], float("nan")), False, "numbers that are none"),
    ],
)
def test_sums_that_cannot_be_are_found_out(found: Sums, uniform: bool, wrong: str) -> None:
    assert found.wrong(3, 1e9, uniform=uniform).startswith(wrong)
    assert bool(found.wrong(3, 1e9, uniform=uniform)) == bool(wrong)


def test_a_sum_that_cannot_be_ends_no_run(tmp_path: Path) -> None:
    """One client adds a count of a thousand: the round changes nothing."""
    federation = Federation(tmp_path, secure("fedit", rounds=2))
    node = federation.hosts[11]
    answer = node.answer

    def lying(data: bytes) -> bytes:
        said = answer(data)
        if node.party is not None and unpack(data, MOST).kind == "train" and unpack(data, MOST).said["round"] == 1:
            node.party.words[-2] += np.uint64(1000 << 32)
        return said

    federation.answers[11] = lying
    first, second = journal(federation.run())
    assert (first["accepted"], second["accepted"]) == (0, 4)
    assert {r["code"] for r in first["rejected"]} == {"schema"}
    assert "1004 slots were counted" in first["rejected"][0]["detail"]


def test_its_run_can_be_shown_and_exported(tmp_path: Path) -> None:
    """Clusters, of which the server knows no member: a report, and every row that somebody is in."""
    folder = Federation(tmp_path, secure("fltac", rounds=1, method=CHOICE)).run()
    for words in (("report", folder), ("export", folder, "--out", tmp_path / "out")):
        said = fedquilt(*words)
        assert said.code == 0, said.err
    assert "sums alone" in (folder / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["row-01", "row-02", "row-03"]
    assert {slot["row"] for slot in journal(folder, "evals.jsonl")[-1]["slots"]} == {None}
