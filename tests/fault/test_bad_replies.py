"""One bad reply among good ones: rejected with its code, counted, and the aggregate is that of the others, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from door import differences, fedquilt, journal, result, write_config
from torch import Tensor

from fedquilt.engine.vectorised import VectorisedEngine
from fedquilt.runs import registry
from fedquilt.types import Reply, Slot

ROUND, VICTIM, ROUNDS = 2, 1, 3
Change = Callable[[Reply], Sequence[Reply]]


def with_leaf(change: Callable[[Tensor], Any], leaf: int = 0) -> Change:
    """One leaf of the delta changed."""

    def spoil(reply: Reply) -> list[Reply]:
        key = sorted(reply.delta)[leaf]
        return [replace(reply, delta={**reply.delta, key: change(reply.delta[key].clone())})]

    return spoil


def one_value(value: float) -> Callable[[Tensor], Tensor]:
    """The last scalar of a tensor replaced."""

    def put(tensor: Tensor) -> Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return put


def renamed(reply: Reply) -> list[Reply]:
    key, *rest = sorted(reply.delta)
    return [replace(reply, delta={f"{key}x": reply.delta[key], **{name: reply.delta[name] for name in rest}})]


def without(reply: Reply) -> list[Reply]:
    return [replace(reply, delta={name: reply.delta[name] for name in sorted(reply.delta)[1:]})]


def with_more(reply: Reply) -> list[Reply]:
    return [replace(reply, delta={**reply.delta, "../../x": torch.zeros(2)})]


def weighing(weight: Any) -> Change:
    return lambda reply: [replace(reply, weight=weight)]


def saying(extra: dict[str, Any]) -> Change:
    return lambda reply: [replace(reply, extra=extra)]


BAD: dict[str, tuple[str, Change]] = {
    "nan": ("nonfinite", with_leaf(one_value(float("nan")))),
    "nan in the last leaf": ("nonfinite", with_leaf(one_value(float("nan")), -1)),
    "inf": ("nonfinite", with_leaf(one_value(float("inf")))),
    "loss nan": ("nonfinite", saying({"loss": float("nan")})),
    "loss a word": ("nonfinite", saying({"loss": "low"})),
    "shape that broadcasts": ("schema", with_leaf(lambda x: x[:1, :1])),
    "one more axis": ("schema", with_leaf(lambda x: x[None])),
    "transposed": ("schema", with_leaf(lambda x: x.T)),
    "float64": ("schema", with_leaf(lambda x: x.double())),
    "complex": ("schema", with_leaf(lambda x: x.to(torch.complex64))),
    "sparse": ("schema", with_leaf(lambda x: x.to_sparse())),
    "a list": ("schema", with_leaf(lambda x: x.tolist())),
    "key missing": ("schema", without),
    "key unexpected": ("schema", with_more),
    "key renamed": ("schema", renamed),
    "weight nan": ("weight", weighing(float("nan"))),
    "weight zero": ("weight", weighing(0.0)),
    "weight negative": ("weight", weighing(-9.0)),
    "weight huge": ("weight", weighing(1e12)),
    "weight a word": ("weight", weighing("9")),
    "another round": ("replay", lambda reply: [replace(reply, round=ROUND - 1)]),
}


def engine(change: Change) -> type[VectorisedEngine]:
    """An engine in which one client is bad in one round."""

    class Spoilt(VectorisedEngine):
        def poll(self, tickets: Sequence[int], deadline: float | None = None) -> list[Reply]:
            replies = super().poll(tickets, deadline)
            if replies[VICTIM].round != ROUND:
                return replies
            return [*replies[:VICTIM], *change(replies[VICTIM]), *replies[VICTIM + 1 :]]

    return Spoilt


def run_with(change: Change, folder: Path, method: str = "fedit") -> Path:
    """A run by the command line with such an engine, registered the way a plug-in's would be."""
    honest = registry.load

    def load(group: str, name: str, where: str = "") -> Any:
        return engine(change) if (group, name) == ("fedquilt.engines", "spoilt") else honest(group, name, where)

    config = write_config(folder, method, rounds=ROUNDS, engine="spoilt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load", load)
        said = fedquilt("run", config, "--dir", folder / "run")
    assert said.code == 0, said.err
    return folder / "run"


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """What a run of a method comes to when the reply is simply not there."""
    known: dict[str, dict[str, bytes]] = {}

    def get(method: str) -> dict[str, bytes]:
        if method not in known:
            known[method] = result(run_with(lambda reply: [], tmp_path_factory.mktemp("lacking"), method))
        return known[method]

    return get


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run comes to when nobody is bad."""
    return result(run_with(lambda reply: [reply], tmp_path_factory.mktemp("honest")))


# These depend on the bytes that were sent, or on where the data lies.
REPORTED = {"rounds.jsonl", "hub.json", "summary", "config.toml"}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_is_rejected_with_its_code_and_touches_nothing(
    name: str, tmp_path: Path, lacking: Callable[[str], dict[str, bytes]]
) -> None:
    code, change = BAD[name]
    run = run_with(change, tmp_path)
    lines = journal(run)
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert [[entry["code"] for entry in line["rejected"]] for line in lines] == [[], [code], []]
    assert lines[1]["rejected"][0]["slot"] == [VICTIM, 0]
    assert lines[1]["rejected"][0]["detail"]
    assert lines[1]["accepted"] == lines[1]["jobs"] - 1
    assert set(differences(result(run), lacking("fedit"))) <= REPORTED


@pytest.mark.parametrize("name", ["nan", "shape that broadcasts"])
def test_a_bad_upload_is_not_clustered_either(name: str, tmp_path: Path, lacking: Callable[[str], dict[str, bytes]]) -> None:
    run = run_with(BAD[name][1], tmp_path, "fltac")
    assert [len(line["rejected"]) for line in journal(run)] == [0, 1, 0]
    assert set(differences(result(run), lacking("fltac"))) <= REPORTED


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("duplicate", lambda reply: [reply, reply, *with_leaf(lambda x: 2 * x)(reply)]),
        ("unknown", lambda reply: [reply, replace(reply, slot=Slot(99, 0))]),
        ("unknown", lambda reply: [replace(reply, slot=Slot(reply.slot.client, 7)), reply]),
    ],
)
def test_replies_too_many_change_nothing(code: str, change: Change, tmp_path: Path, honest: dict[str, bytes]) -> None:
    run = run_with(change, tmp_path)
    assert {entry["code"] for entry in journal(run)[1]["rejected"]} == {code}
    assert set(differences(result(run), honest)) <= REPORTED


def test_a_reply_without_a_declared_loss_is_used(tmp_path: Path, honest: dict[str, bytes]) -> None:
    run = run_with(saying({}), tmp_path)
    lines = journal(run)
    assert lines[1]["rejected"] == []
    assert isinstance(lines[1]["loss"], float)
    assert set(differences(result(run), honest)) <= REPORTED


def test_the_reply_of_these_tests_matters(honest: dict[str, bytes], lacking: Callable[[str], dict[str, bytes]]) -> None:
    assert f"state/hub-{ROUNDS:06d}.safetensors" in differences(honest, lacking("fedit"))
