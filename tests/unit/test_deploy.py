"""A run whose clients are elsewhere: the bits of the same run in one process, whatever happens to messages, clients and server."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import slow_unless
from door import differences, journal, result
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_config

from fedquilt.deploy.build import host, pins, remote
from fedquilt.deploy.host import Host
from fedquilt.deploy.loopback import Loopback, Node
from fedquilt.deploy.messages import Done, Pins, Trained
from fedquilt.deploy.parcel import HEAD, VERSION, Parcel, parcel, read, unpack
from fedquilt.deploy.remote import Remote
from fedquilt.errors import CompositionError, ConfigError, StateError
from fedquilt.method import ClientPlan
from fedquilt.runs.build import Built, build
from fedquilt.runs.config import RunConfig
from fedquilt.runs.launch import resume, run
from fedquilt.types import Job, Leaf, Round, Shipment, Slot, Spec
from fedquilt.wire import chain, message

CLIENTS = 4
RUN = "0" * 32


def config(tmp_path: Path, method: str = "fltac", /, **overrides: Any) -> RunConfig:
    return tiny_config(tmp_path, method, engine="sequential", **overrides)


@dataclass
class Federation:
    """Hosts of a run in this process; ``change``: what a test does to some of the nodes."""

    folder: Path
    change: Callable[[int, Host, Node], Node] = lambda node, host, answer: answer
    hosts: dict[int, Host] = field(default_factory=dict)
    transport: Loopback | None = None

    def engine(self, built: Built) -> Remote:
        """Node 10 is client 0: transports number as they like."""
        self.hosts = {10 + client: host(built, client, self.folder / str(client)) for client in range(CLIENTS)}
        self.transport = Loopback({node: self.change(node, one, one.answer) for node, one in self.hosts.items()})
        engine = remote(built, self.transport, RUN)
        engine.meet()
        return engine


def elsewhere(config: RunConfig, folder: Path, change: Callable[[int, Host, Node], Node] | None = None) -> Path:
    federation = Federation(folder / "clients", *([change] if change else []))
    return run(config, directory=folder / "run", engine=federation.engine)


CASES: dict[str, dict[str, Any]] = {
    "fltac": {"rounds": 3},
    "fedit": {"rounds": 3, "method": {"participation": 0.5}},
    "ffa_lora": {"rounds": 3},
    "rolora": {"rounds": 3},
    "fedtt_plus": {"rounds": 3},
    "fedit in sums": {"rounds": 3, "secure_aggregation": True, "method": {"participation": 0.75}},
    "fltac in sums": {"rounds": 3, "secure_aggregation": True, "method": {"choice": "clients", "participation": 0.75}},
}


@pytest.mark.parametrize("case", CASES)
def test_clients_elsewhere_change_no_bit(case: str, tmp_path: Path) -> None:
    """Every byte of the run directory: adapters, journals with their byte counts, state."""
    chosen = config(tmp_path, case.split()[0], **CASES[case])
    here = run(chosen, directory=tmp_path / "here")
    assert differences(result(elsewhere(chosen, tmp_path)), result(here)) == []


def test_a_client_without_data_takes_no_part(tmp_path: Path) -> None:
    few = {"how": "dirichlet-task", "clients": CLIENTS, "alpha": 0.02}
    chosen = config(tmp_path, rounds=2, seed=1, partition=few)
    here = run(chosen, directory=tmp_path / "here")
    parts = json.loads((here / "partition.json").read_text())["parts"].values()
    assert any(not any(part[client] for part in parts) for client in range(CLIENTS))
    assert differences(result(elsewhere(chosen, tmp_path)), result(here)) == []


def test_training_that_diverges_is_rejected_as_in_one_process(tmp_path: Path) -> None:
    """Weights and losses that are no numbers any more."""
    chosen = config(tmp_path, "fedit", rounds=1, method={"lr": 1e38, "steps": 4})
    here = run(chosen, directory=tmp_path / "here")
    codes = {entry["code"] for entry in journal(here)[0]["rejected"]}
    assert codes == {"nonfinite"}
    assert differences(result(elsewhere(chosen, tmp_path)), result(here)) == []


def test_a_host_that_begins_anew_before_every_message(tmp_path: Path) -> None:
    """All that it knows is on its disk; and a message that comes twice has the same answer twice."""
    chosen = config(tmp_path, rounds=4)
    built = build(chosen)

    def forgetful(node: int, one: Host, answer: Node) -> Node:
        def anew(data: bytes) -> bytes | None:
            first = host(built, one.client, one.folder).answer(data)
            assert host(built, one.client, one.folder).answer(data) == first
            return first

        return anew

    here = run(chosen, directory=tmp_path / "here")
    assert differences(result(elsewhere(chosen, tmp_path, forgetful)), result(here)) == []


class Crash(Exception):
    """The server's."""


# Nobody is new after the first round, and one instant of every other phase says it for all.
INSTANTS = [*(("train", after) for after in range(1, 5)), ("place", 1), ("share", 2), ("mask", 2), ("open", 2)]


Simulated = Callable[[int, bool], tuple[RunConfig, dict[str, bytes]]]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """A run of four rounds with a checkpoint every so many, in the clear or in sums, and what it leaves in one process."""

    @cache
    def once(every: int, hidden: bool) -> tuple[RunConfig, dict[str, bytes]]:
        folder = tmp_path_factory.mktemp("simulated")
        sums = {"secure_aggregation": True, "method": {"choice": "clients"}} if hidden else {}
        chosen = config(folder, rounds=4, checkpoint_every=every, **sums)
        return chosen, result(run(chosen, directory=folder / "here"))

    return once


@pytest.mark.parametrize(
    ("phase", "after", "every"),
    [slow_unless(every == 1 + place % 2, *instant, every) for place, instant in enumerate(INSTANTS) for every in (1, 2)],
)
def test_a_server_that_falls_back_takes_its_clients_along(
    phase: str, after: int, every: int, simulated: Simulated, tmp_path: Path
) -> None:
    """It dies in a phase of round ``after``, and has a checkpoint every ``every`` rounds."""
    chosen, here = simulated(every, phase != "train")
    seen: set[int] = set()

    def until(node: int, one: Host, answer: Node) -> Node:
        def counting(data: bytes) -> bytes | None:
            found = unpack(data, 1 << 30)
            seen.add(int(found.said.get("round", 0)))
            said = answer(data)
            if (found.said.get("round"), found.kind) == (after, phase) and node == 10 + CLIENTS - 1:
                raise Crash
            return said

        return counting

    federation = Federation(tmp_path / "clients", until)
    with pytest.raises(Crash):
        run(chosen, directory=tmp_path / "run", engine=federation.engine)
    again = Federation(tmp_path / "clients")
    assert differences(result(resume(tmp_path / "run", engine=again.engine)), here) == []


def test_a_client_that_does_not_answer_is_left_out_and_comes_back(tmp_path: Path) -> None:
    """Client 3 is away in round 2; after that it is sent everything, and is right."""
    chosen = config(tmp_path, "fedit", rounds=4)
    asked: list[Any] = []

    def away(node: int, one: Host, answer: Node) -> Node:
        def sometimes(data: bytes) -> bytes | None:
            said = unpack(data, 1 << 30).said
            if node == 13 and "asks" in said:
                asked.append((said["round"], said["asks"][0]["since"]))
            return None if node == 13 and said.get("round") == 2 else answer(data)

        return sometimes

    rounds = journal(elsewhere(chosen, tmp_path, away))
    assert [entry["accepted"] for entry in rounds] == [4, 3, 4, 4]
    assert rounds[1]["rejected"] == [{"slot": [3, 0], "code": "lost", "detail": "nothing came in time"}]
    assert asked == [(1, 0), (2, 1), (3, 0), (4, 3)]


def test_a_client_that_lost_its_disk_is_behind_once(tmp_path: Path) -> None:
    chosen = config(tmp_path, "fedit", rounds=4)

    def losing(node: int, one: Host, answer: Node) -> Node:
        def lose(data: bytes) -> bytes | None:
            if node == 11 and unpack(data, 1 << 30).said.get("round") == 3:
                shutil.rmtree(one.folder)
                one.folder.mkdir()
            return answer(data)

        return lose

    rounds = journal(elsewhere(chosen, tmp_path, losing))
    assert [entry["accepted"] for entry in rounds] == [4, 4, 3, 4]
    assert rounds[2]["rejected"] == [{"slot": [1, 0], "code": "behind", "detail": "so it says"}]


BAD: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "empty": ("malformed", lambda data: b""),
    "cut off": ("malformed", lambda data: data[:-1]),
    "too large": ("malformed", lambda data: data + bytes(HEAD + (1 << 22))),
    "noise": ("malformed", lambda data: bytes(200)),
    "another version": ("malformed", lambda data: data.replace(b'"version":%d' % VERSION, b'"version":9')),
    "an unknown field": ("malformed", lambda data: changed(data, lambda said: said | {"task": "mood"})),
    "a word for a number": ("malformed", lambda data: changed(data, lambda said: said | {"round": "2"})),
    "no slots": ("lost", lambda data: repacked(data, lambda p: Parcel(p.kind, {**p.said, "done": [], "undone": []}))),
    "another run": ("malformed", lambda data: changed(data, lambda said: said | {"run": "0" * 64})),
    "an older round": ("replay", lambda data: changed(data, lambda said: said | {"round": 1})),
    "a block more": ("malformed", lambda data: repacked(data, lambda p: Parcel(p.kind, p.said, (*p.blocks, b"x")))),
    "a block less": ("malformed", lambda data: repacked(data, lambda p: Parcel(p.kind, p.said, p.blocks[:-1]))),
    "a shorter block": ("malformed", lambda data: repacked(data, lambda p: Parcel(p.kind, p.said, (p.blocks[0][:-4],)))),
    "weight nan": ("weight", lambda data: done(data, weight=float("nan"))),
    "another slot": ("lost", lambda data: done(data, slot=7)),
    "a refusal": ("refused", lambda data: Parcel("refused", {"why": "an error of its own"}).pack()),
    "a refusal that tells": ("malformed", lambda data: Parcel("refused", {"why": "the text of row 3"}).pack()),
    "a field that tells": ("malformed", lambda data: done(data, note="the text of row 3")),
    "a loss that overflows": ("malformed", lambda data: done(data, loss=1e308)),
    "a nested header": ("malformed", lambda data: headed(data, b"[" * 200_000)),
    "another type": ("malformed", lambda data: headed(data, b'{"F32":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}')),
    "a kind that no screen can show": ("malformed", lambda data: Parcel("\ud800\x1b[2J", {}).pack()),
}  # fmt: skip


def repacked(data: bytes, how: Callable[[Parcel], Parcel]) -> bytes:
    return how(unpack(data, 1 << 30)).pack()


def changed(data: bytes, how: Callable[[Any], Any]) -> bytes:
    return repacked(data, lambda p: Parcel(p.kind, how(dict(p.said)), p.blocks))


def done(data: bytes, **values: Any) -> bytes:
    return changed(data, lambda said: said | {"done": [said["done"][0] | values]})


def headed(data: bytes, head: bytes) -> bytes:
    """The first block with another head."""
    return repacked(data, lambda p: Parcel(p.kind, p.said, (len(head).to_bytes(8, "little") + head, *p.blocks[1:])))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_counted_and_ends_nothing(name: str, tmp_path: Path) -> None:
    """Client 2's in round 2; the round is that of the other three."""
    code, how = BAD[name]

    def bad(node: int, one: Host, answer: Node) -> Node:
        def spoil(data: bytes) -> bytes | None:
            said = answer(data)
            assert said is not None
            return how(said) if node == 12 and unpack(data, 1 << 30).said.get("round") == 2 else said

        return spoil

    rounds = journal(elsewhere(config(tmp_path, "fedit", rounds=3), tmp_path, bad))
    assert [entry["accepted"] for entry in rounds] == [4, 3, 4]
    codes = [entry["code"] for entry in rounds[1]["rejected"]]
    assert code in codes
    assert set(codes) <= {code, "unknown"}


def test_who_holds_something_else_is_not_asked(tmp_path: Path) -> None:
    """Another base, configuration or partition, two that say they are the same client: each with its reason."""
    chosen = config(tmp_path, "fedit", rounds=2)
    built = build(chosen)
    hosts = {node: host(built, client, tmp_path / str(node)) for node, client in enumerate((0, 1, 2, 3, 3, 1))}
    hosts[1].pins = hosts[1].pins.model_copy(update={"base": "f" * 32})
    hosts[2].pins = pins(build(config(tmp_path, "fedit", rounds=2, method={"lr": 0.5})))
    hosts[5].client = 9
    engine = remote(built, Loopback({node: one.answer for node, one in hosts.items()}), RUN)
    engine.meet()
    assert engine.nodes == {0: 0}
    assert engine.refused == {
        1: "it has another base model",
        2: "it has another configuration",
        3: "2 nodes say that they are client 3",
        4: "2 nodes say that they are client 3",
        5: "as client 9 it has no data",
    }
    nobody = remote(built, Loopback({1: hosts[1].answer}), RUN)
    with pytest.raises(ConfigError, match="no client takes part") as caught:
        nobody.meet()
    assert "another base" in str(caught.value)


def test_what_a_node_says_of_itself_cannot_end_a_run(tmp_path: Path) -> None:
    """More slots than it can have, a client that nobody knows, words that no screen can show."""
    built = build(config(tmp_path, "fedit", rounds=2))
    said = [
        Parcel("present", {"client": 0, "slots": [[1, 5]]}),
        Parcel("present", {"client": 10**30, "slots": [[1, 1]]}),
        Parcel("present", {"client": 1, "slots": [[1, 10**6]]}),
        Parcel("\ud800\x1b[2J", {}),
        Parcel("refused", {"why": "\x1b[2J"}),
    ]
    right = host(built, 3, tmp_path / "3")
    nodes = {node: (lambda data, one=one: one.pack()) for node, one in enumerate(said)}
    engine = remote(built, Loopback({**nodes, 9: right.answer}), RUN)
    engine.meet()
    assert engine.nodes == {3: 9}
    assert set(engine.refused) == set(nodes)
    assert all(why.isprintable() for why in engine.refused.values())


def test_what_only_one_machine_knows_is_not_pinned(tmp_path: Path) -> None:
    one = build(config(tmp_path, "fedit"))
    assert pins(one) == pins(build(config(tmp_path, "fedit", threads=2, cohort=3)))


def test_the_base_s_digest_does_not_depend_on_what_was_tokenised_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold and warm caches: a tokenizer remembers how it last cut a text."""
    monkeypatch.setenv("FEDQUILT_CACHE", str(tmp_path / "cache"))
    cut = config(tmp_path, "fedit", model={"max_length": 6})
    assert pins(build(cut)) == pins(build(cut))


def test_runs_of_one_configuration_keep_their_state_apart(tmp_path: Path) -> None:
    """Two servers that ask the same clients in turn, each from its own run."""
    chosen = config(tmp_path, "rolora", rounds=4, method={"participation": 0.5})
    here = run(chosen, directory=tmp_path / "here")
    built = build(chosen)
    hosts = {client: host(built, client, tmp_path / str(client)) for client in range(CLIENTS)}
    for number in ("1", "2"):

        def engine(found: Built, number: str = number) -> Remote:
            made = remote(found, Loopback({client: one.answer for client, one in hosts.items()}), number * 32)
            made.meet()
            return made

        folder = run(chosen, directory=tmp_path / number, engine=engine)
        assert differences(result(folder), result(here)) == []
    assert {path.name for path in hosts[0].folder.iterdir()} <= {"1" * 32, "2" * 32}
    assert stat.S_IMODE(hosts[0].folder.stat().st_mode) == 0o700


def test_a_server_whose_newest_checkpoint_is_damaged_takes_its_clients_along_too(tmp_path: Path) -> None:
    """Killed in round 6 with a checkpoint every two rounds, of which the last cannot be read: it begins again after round 2."""
    chosen = config(tmp_path, rounds=6, checkpoint_every=2)

    def until(node: int, one: Host, answer: Node) -> Node:
        def dying(data: bytes) -> bytes | None:
            if unpack(data, 1 << 30).said.get("round") == 6 and node == 13:
                raise Crash
            return answer(data)

        return dying

    with pytest.raises(Crash):
        run(chosen, directory=tmp_path / "run", engine=Federation(tmp_path / "clients", until).engine)
    newest = max((tmp_path / "run" / "state").glob("hub-*"))
    newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    found = resume(tmp_path / "run", engine=Federation(tmp_path / "clients").engine)
    assert {entry["accepted"] for entry in journal(found)} == {9}
    assert differences(result(found), result(run(chosen, directory=tmp_path / "here"))) == []


def test_leaves_that_stay_with_clients_are_refused_for_now(tmp_path: Path) -> None:
    built = build(config(tmp_path, "fedit", adapter={"head": "private"}))
    with pytest.raises(CompositionError, match="stay on the clients"):
        remote(built, Loopback({}), RUN)


def test_what_is_counted_is_what_travels(tmp_path: Path) -> None:
    """The meter's bytes beside those of the messages: one head per message more, a hundred bytes or two."""
    chosen = config(tmp_path, "fedit", rounds=3, adapter={"rank": 8})
    federation = Federation(tmp_path / "clients")
    folder = run(chosen, directory=tmp_path / "run", engine=federation.engine)
    transport = federation.transport
    assert transport is not None
    last = journal(folder)[-1]
    messages = CLIENTS * 4
    for counted, travelled in ((last["total_down"], transport.sent), (last["total_up"], transport.came)):
        assert 0 <= travelled - counted <= 250 * messages


def test_a_damaged_generation_is_refused_and_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The server hears that it is refused, the client's own log hears why."""
    chosen = config(tmp_path, "fedit", rounds=3)

    def damaging(node: int, one: Host, answer: Node) -> Node:
        def damage(data: bytes) -> bytes | None:
            if node == 10 and unpack(data, 1 << 30).said.get("round") == 3:
                path = max((one.folder / RUN).iterdir())
                path.write_bytes(path.read_bytes()[:-1] + b"!")
            return answer(data)

        return damage

    rounds = journal(elsewhere(chosen, tmp_path, damaging))
    refused = {"slot": [0, 0], "code": "refused", "detail": "an error of its own"}
    assert rounds[2]["rejected"] == [refused]
    assert "is corrupt" in capsys.readouterr().err


MESSAGE = Parcel("trained", {"run": RUN, "round": 1, "done": [], "undone": []}, (b"abc", b"", b"de")).pack()


@settings(max_examples=2000, deadline=None)
@given(st.binary(max_size=80) | st.tuples(st.integers(0, len(MESSAGE) - 1), st.binary(max_size=9)))
def test_no_bytes_are_more_than_a_refused_message(found: bytes | tuple[int, bytes]) -> None:
    """Noise, and a right message with some bytes replaced."""
    data = found if isinstance(found, bytes) else MESSAGE[: found[0]] + found[1] + MESSAGE[found[0] + len(found[1]) :]
    try:
        read(unpack(data, 1 << 20), Trained)
    except StateError:
        return
    assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["kind"] == "trained"


@pytest.mark.parametrize("lengths", [[3, 2, 1], [3], [6, -1], [True, 4], [5.0], ["5"], None, {"5": 5}])
def test_blocks_must_be_what_is_there(lengths: Any) -> None:
    head = json.dumps({"version": VERSION, "kind": "x", "said": {}, "blocks": lengths}).encode()
    with pytest.raises(StateError):
        unpack(len(head).to_bytes(8, "little") + head + b"abcde", 1 << 20)


def test_parcels_come_back_as_they_were() -> None:
    one = Parcel("x", {"a": [1, 2.5, None, "ü"]}, (b"", bytes(range(256)), b"y"))
    assert unpack(one.pack(), 1 << 20) == one


LEAF = Leaf("w", (2,), "x", 0)
PLAN = ClientPlan(train=lambda now: ("w",), share=lambda now: ("w",), local=None, wire=chain())  # type: ignore[arg-type]
ANSWER = parcel(
    Trained(run=RUN, round=1, done=[Done(slot=0, weight=1.0, loss=0.5, fingerprint=0)], undone=[]),
    (message.encode([LEAF], {"w": torch.ones(2)}),),
).pack()


@settings(max_examples=3000, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(ANSWER) - 1), st.binary(min_size=1, max_size=6)), max_size=4), st.integers(0, len(ANSWER))
)
def test_no_answer_is_more_than_a_reply_or_a_failure(changes: list[tuple[int, bytes]], end: int) -> None:
    """A right answer with some bytes replaced, perhaps cut: the job has something in the end, and nothing is raised."""
    data = bytearray(ANSWER)
    for place, new in changes:
        data[place : place + len(new)] = new
    sent = bytes(data[: end or None])
    transport = Loopback({0: lambda asked: sent})
    none = Pins(config="", base="", layout="")
    engine = Remote(transport, Spec("x", (LEAF,)), PLAN, 0, 1, lambda number: {0: 1}, none, RUN)
    engine.nodes[0] = 0
    jobs = [Job(Slot(0, 0), 0, Round(1, 0))]
    found = engine.poll(engine.submit(jobs, {"w": torch.zeros(1, 2)}, {Slot(0, 0): Shipment(("w",), 0)}))
    assert Slot(0, 0) in {one.slot for one in found}
