"""Clients with data of their own and a server without any: the bits of a simulation of the same clients with the same rows."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from door import differences, fedquilt, journal
from own import RUN, Federation, adapters, own_rows, shared, simulated, slots
from tiny import SIZES, WORDS, write_tasks

from fedquilt.deploy.build import host, remote
from fedquilt.deploy.loopback import Loopback, Node
from fedquilt.deploy.messages import Judge, Judged, Refused, Score
from fedquilt.deploy.parcel import Parcel, parcel, read, unpack
from fedquilt.errors import ConfigError
from fedquilt.report.read import load_run
from fedquilt.report.results import panel
from fedquilt.runs.build import build
from fedquilt.runs.config import RunConfig, parse
from fedquilt.runs.launch import resume, run
from fedquilt.runs.plan import plan
from fedquilt.types import Job, Reply, Round, Shipment, Slot

MOST = 1 << 30


@pytest.mark.parametrize("method", ["fltac", "fedit"])
def test_training_and_scores_are_those_of_the_simulation(method: str, tmp_path: Path) -> None:
    """Adapters bit for bit; rounds with their bytes; every slot's metrics on the rows that only its client has."""
    tables = shared(method, **({"method": {"tasks": 3}} if method == "fltac" else {}))
    here = simulated(tmp_path, tables)
    there = Federation(tmp_path, tables).run()
    assert adapters(here)
    assert differences(adapters(there), adapters(here)) == []
    assert journal(there) == journal(here)
    assert slots(there) == slots(here)
    assert any(score["metrics"]["accuracy"] > 0 for entry in slots(there) for score in entry)


def test_no_name_of_a_task_or_label_travels(tmp_path: Path) -> None:
    """All that clients say beside numbers, and all that the server writes, searched for every name of a task and a label."""
    tables, said = shared("fltac", method={"tasks": 3}), []
    federation = Federation(tmp_path, tables)

    def heard(answer: Node) -> Node:
        def hearing(data: bytes) -> bytes | None:
            said.append(answer(data))
            return said[-1]

        return hearing

    federation.answers = {node: heard(answer) for node, answer in federation.answers.items()}
    folder = federation.run()
    words = [*WORDS, *(label for labels in WORDS.values() for label in labels)]
    heads = [x[8 : 8 + int.from_bytes(x[:8], "little")].decode() for x in said if x]
    assert len(heads) == 4 * (1 + 3 + 4)  # who is there, three rounds, four evaluations
    assert not [word for word in words if any(word in head for head in heads)]
    written = [path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".jsonl", ".toml")]
    assert not [word for word in WORDS if any(word in text for text in written)]


def test_the_server_reads_no_data(tmp_path: Path) -> None:
    """Also where its configuration names some."""
    task = {"name": "colour", "source": "file:nowhere.csv"}
    built = build(parse({**shared("fedit"), "tasks": [task]}, tmp_path))
    assert (dict(built.tasks), dict(built.view.slots)) == ({}, {})


@pytest.mark.parametrize("head", ["private", "frozen"])
def test_leaves_that_stay_with_their_client_are_evaluated_there(head: str, tmp_path: Path) -> None:
    tables = shared("fedit", adapter={"head": head})
    assert slots(Federation(tmp_path, tables).run()) != []
    simulated_run = simulated(tmp_path, tables)
    assert slots(tmp_path / "run") == slots(simulated_run)
    assert bool(adapters(tmp_path / "run")) == (head == "frozen"), "an adapter without its head is none"


def test_a_run_continues_where_it_was(tmp_path: Path) -> None:
    """The server dies in the second evaluation."""
    tables = shared("fltac", method={"tasks": 3})
    whole = Federation(tmp_path, tables).run().rename(tmp_path / "whole")
    (tmp_path / "clients").rename(tmp_path / "clients-of-whole")
    federation, count = Federation(tmp_path, tables), 0

    def dying(data: bytes) -> bytes | None:
        nonlocal count
        count += unpack(data, MOST).kind == "judge"
        if count == 2:
            raise KeyboardInterrupt
        return federation.hosts[10].answer(data)

    federation.answers[10] = dying
    with pytest.raises(KeyboardInterrupt):
        federation.run()
    federation.answers[10] = federation.hosts[10].answer
    resume(tmp_path / "run", engine=federation.engine)
    for name in ("rounds.jsonl", "evals.jsonl", "routes.jsonl", "points.jsonl"):
        assert journal(tmp_path / "run", name) == journal(whole, name)
    assert differences(adapters(tmp_path / "run"), adapters(whole)) == []


def test_a_client_that_connects_in_mid_run_takes_part(tmp_path: Path) -> None:
    """From the round after the one in which it said who it is."""
    federation = Federation(tmp_path, shared("fedit"), away={13})
    first = federation.answers[10]

    def arriving(data: bytes) -> bytes | None:
        if unpack(data, MOST).kind == "train" and federation.remote:
            federation.remote.transport.hosts[13] = federation.answers[13]  # type: ignore[attr-defined]
        return first(data)

    federation.answers[10] = arriving
    cohorts = [entry["cohort"] for entry in journal(federation.run())]
    assert cohorts == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_client_that_comes_back_as_another_node_is_the_same_client(tmp_path: Path) -> None:
    """Its old node is not connected any more; as long as it is, a second one is refused."""
    federation = Federation(tmp_path, shared("fedit"))
    engine = federation.engine(build(parse(federation.tables, tmp_path)))
    hosts = engine.transport.hosts  # type: ignore[attr-defined]
    hosts[99] = federation.answers[13]
    engine.roster(1), engine.roster(1)
    assert (engine.nodes[3], engine.refused[99]) == (13, "client 3 is there already")
    del hosts[13]
    engine.roster(1), engine.roster(1)
    assert (engine.nodes[3], engine.refused) == (99, {})


def test_a_client_that_mends_what_was_wrong_takes_part(tmp_path: Path) -> None:
    """The same node, refused at first."""
    federation = Federation(tmp_path, shared("fedit"))
    honest, said = federation.answers[13], [parcel(Refused(why="another configuration")).pack(), None]

    def mending(data: bytes) -> bytes | None:
        return said.pop(0) if said else honest(data)

    federation.answers[13] = mending
    engine = federation.engine(build(parse(federation.tables, tmp_path)))
    assert engine.refused[13] == "it has another configuration"
    engine.deadline = 0.0
    for _ in range(3):
        engine.roster(1)
    assert engine.nodes[3] == 13


def test_a_client_is_who_its_key_says(tmp_path: Path) -> None:
    """Where the server knows whose key a node has."""
    federation = Federation(tmp_path, shared("fedit"))
    engine = remote(build(parse(federation.tables, tmp_path)), Loopback(federation.answers), RUN)
    engine.numbers = lambda: {10: 0, 11: 2, 12: 2}
    engine.meet()
    assert engine.nodes == {0: 10, 2: 12}
    assert engine.refused[11] == "it says that it is client 1, and its key is another's"
    assert 13 in engine.refused, "of a node that nobody registered nothing is believed"


def presence(client: Any = 0, slots: Any = ((1, 1),), samples: Any = (1,)) -> Parcel:
    return Parcel("present", {"client": client, "slots": [list(x) for x in slots], "samples": list(samples)})


STRANGE: dict[str, Parcel] = {
    "a number that no tensor holds": presence(client=1 << 63),
    "more examples than there are": presence(samples=[10**13]),
    "more slots than tasks": presence(slots=[(1, 4)], samples=[1] * 4),
    "a thousand slots": presence(slots=[(1, 1000)], samples=[1] * 1000),
    "a list without end": presence(samples=[1] * 50_000),
    "a number of many digits": presence(client=10**4000),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_client_that_cannot_be_is_refused_and_the_run_goes_on(case: str, tmp_path: Path) -> None:
    federation = Federation(tmp_path, shared("fltac", rounds=1, method={"tasks": 3}))
    federation.answers[10] = lambda data: STRANGE[case].pack()
    folder = federation.run()
    assert [entry["cohort"] for entry in journal(folder)] == [[1, 2, 3]]
    assert federation.remote is not None
    assert 10 in federation.remote.refused


@pytest.mark.parametrize("numbers", [10**7 + 1, 10**4000])
def test_a_fingerprint_that_cannot_be_is_malformed(numbers: int, tmp_path: Path) -> None:
    federation = Federation(tmp_path, shared("fltac", rounds=1, method={"tasks": 3}))
    honest = federation.answers[10]

    def boasting(data: bytes) -> bytes | None:
        if unpack(data, MOST).kind != "train":
            return honest(data)
        done = {"slot": 0, "weight": 1.0, "loss": None, "fingerprint": numbers}
        return Parcel("trained", {"run": RUN, "round": 1, "done": [done], "undone": []}, (b"", b"")).pack()

    federation.answers[10] = boasting
    (entry,) = journal(federation.run())
    assert {rejected["code"] for rejected in entry["rejected"]} == {"malformed"}
    assert entry["accepted"] > 0


def test_a_client_whose_tasks_have_changed_is_refused(tmp_path: Path) -> None:
    """What is kept of a slot, here and on the server, is of its task."""
    federation = Federation(tmp_path, shared("fedit", rounds=2))
    before = federation.hosts[10]
    fewer = parse({**federation.tables, "tasks": own_rows(tmp_path, 0)[1:]}, tmp_path)
    after = host(build(fewer, client=0), 0, before.folder)
    federation.answers[10] = lambda data: (after if unpack(data, MOST).said.get("round") == 2 else before).answer(data)
    first, second = journal(federation.run())
    assert first["rejected"] == []
    assert [entry["detail"] for entry in second["rejected"]] == ["other data than before"]


@pytest.mark.usefixtures("forking")
def test_workers_train_a_client_s_own_data(tmp_path: Path) -> None:
    """Processes of their own know whose machine it is."""
    tables = shared("fedit", rounds=1, workers=2)
    config = parse({**tables, "tasks": own_rows_of(tmp_path, 1)}, tmp_path)
    built = build(config, client=1)
    try:
        one = host(built, 1, tmp_path / "one")
        engine = remote(build(parse(tables, tmp_path)), Loopback({5: one.answer}), RUN)
        engine.meet()
        roster = engine.roster(1)
        slot = Slot(1, 0)
        job = Job(slot, 0, Round(1, 0))
        row = {key: x[None] for key, x in built.adapter.init.items()}
        (reply,) = engine.poll(engine.submit([job], row, {slot: Shipment(engine.spec.names(), 0)}))
    finally:
        built.engine.close()
    assert roster == {1: 1}
    assert isinstance(reply, Reply), reply


def own_rows_of(folder: Path, client: int) -> list[dict[str, Any]]:
    write_tasks(folder)
    return own_rows(folder, client)


SCORE = Score(slot=0, part=0, metrics={"accuracy": 0.5}, samples=1)
LIES: dict[str, Parcel | bytes | None] = {
    "nothing": None,
    "no message": b"abc",
    "another kind": Parcel("present"),
    "another run": parcel(Judged(run="1" * 32, round=0, scores=[SCORE])),
    "another round": parcel(Judged(run=RUN, round=7, scores=[SCORE])),
    "a slot that is not there": parcel(Judged(run=RUN, round=0, scores=[SCORE.model_copy(update={"slot": 9})])),
    "twice": parcel(Judged(run=RUN, round=0, scores=[SCORE, SCORE])),
    "a name": Parcel("judged", {"run": RUN, "round": 0, "scores": [{**SCORE.model_dump(), "metrics": {"mood": 1.0}}]}),
    "no number": Parcel("judged", {"run": RUN, "round": 0, "scores": [{**SCORE.model_dump(), "metrics": {"f1": float("inf")}}]}),
    "more": Parcel("judged", {"run": RUN, "round": 0, "scores": [{**SCORE.model_dump(), "rows": ["a text"]}]}),
}


@pytest.mark.parametrize("lie", LIES)
def test_scores_that_cannot_be_believed_are_left_out(lie: str, tmp_path: Path) -> None:
    federation = Federation(tmp_path, shared("fedit", rounds=1))
    honest, said = federation.answers[11], LIES[lie]

    def lying(data: bytes) -> bytes | None:
        if unpack(data, MOST).kind != "judge" or read(unpack(data, MOST), Judge).round:
            return honest(data)
        return said.pack() if isinstance(said, Parcel) else said

    federation.answers[11] = lying
    first, last = journal(federation.run(), "evals.jsonl")
    assert {slot["client"] for slot in first["slots"]} == {0, 2, 3}
    assert {slot["client"] for slot in last["slots"]} == {0, 1, 2, 3}


def test_a_run_that_nobody_evaluates_still_ends(tmp_path: Path) -> None:
    federation = Federation(tmp_path, shared("fedit", rounds=1))
    honest = dict(federation.answers)

    def mute(node: int) -> Node:
        return lambda data: None if unpack(data, MOST).kind == "judge" else honest[node](data)

    federation.answers = {node: mute(node) for node in honest}
    folder = federation.run()
    assert (folder / "evals.jsonl").read_text() == ""
    assert json.loads((folder / "summary.json").read_text())["mean"] is None
    assert fedquilt("report", folder).code == 0


def test_its_run_can_be_shown_and_exported(tmp_path: Path) -> None:
    folder = Federation(tmp_path, shared("fltac", method={"tasks": 3})).run()
    data = load_run(folder)
    assert len(data.evals) == 4
    assert data.tasks[:2] == ("client-0-slot-0", "client-0-slot-1")
    assert sum(map(sum, data.counts.values())) == sum(sum(own.values()) for own in SIZES.values())
    table = panel(data).table
    assert table is not None
    assert [row[0] for row in table.rows] == list(data.tasks)
    for words in (("report", folder), ("export", folder, "--out", tmp_path / "out")):
        said = fedquilt(*words)
        assert said.code == 0, said.err
    assert differences(adapters(folder), {f"adapters/{k}": v for k, v in exported(tmp_path / "out").items()}) == []


def exported(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_configurations_that_differ_are_refused(tmp_path: Path) -> None:
    """A client that spreads rows by a rule is of another federation."""
    federation = Federation(tmp_path, shared("fedit"))
    other = parse({**federation.tables, "partition": {"clients": 1}, "tasks": own_rows(tmp_path, 0)}, tmp_path)
    federation.answers[10] = host(build(other), 0, tmp_path / "other").answer
    engine = federation.engine(build(parse(federation.tables, tmp_path)))
    assert engine.refused == {10: "it has another configuration"}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "classes": ({"model": {"classes": None}}, "'classes' is required"),
    "too few": ({"model": {"classes": 2}, "tasks": True}, "2 classes for 3 labels of a task"),
    "a language model": ({"model": {"classes": 0}, "tasks": True}, "0 classes for 3 labels"),
    "tasks": ({"method": {"name": "fltac"}}, "'tasks' is required"),
    "heads": ({"adapter": {"head": "per-task"}}, "a head per task is not possible"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_one_machine_cannot_know_must_be_said(case: str, tmp_path: Path) -> None:
    tables, message = WRONG[case]
    given = {**shared("fedit", **{k: v for k, v in tables.items() if k != "tasks"})}
    given["model"] = {key: value for key, value in given["model"].items() if value is not None}
    if tables.get("tasks"):
        write_tasks(tmp_path)
        given["tasks"] = own_rows(tmp_path, 2)
    with pytest.raises(ConfigError, match=message):
        build(parse(given, tmp_path), client=2)


def test_it_cannot_be_simulated(tmp_path: Path) -> None:
    config: RunConfig = parse(shared("fedit"), tmp_path)
    for way in (partial(run, directory=tmp_path / "run"), plan):
        with pytest.raises(ConfigError, match="on their own machines"):
            way(config)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".lock"}, "a run that cannot be resumed was left behind"
    assert torch.get_num_threads() == 1
