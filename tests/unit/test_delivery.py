"""What slots are sent, against a client that keeps what it was sent: it must always hold its row of the server's bank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedquilt import clock, tree
from fedquilt.delivery import Delivery
from fedquilt.engine.base import InProcess
from fedquilt.method import ClientPlan
from fedquilt.runs.plan import traffic
from fedquilt.testing import Outcome, run_tiny, tiny_config
from fedquilt.types import Job, Leaf, Round, Slot, Spec, Stack
from fedquilt.wire import message

SPEC = Spec("x", tuple(Leaf(name, (2,), name, place) for place, name in enumerate("abc")))


def client(train: str = "abc", share: str = "abc") -> ClientPlan:
    return ClientPlan(train=lambda now: tuple(train), share=lambda now: tuple(share), local=None, wire=None)  # type: ignore[arg-type]


def bank(**rows: list[float]) -> dict[str, Tensor]:
    """Two rows; ``a=[1, 2]``: leaf a is full of ones in row 0, of twos in row 1."""
    whole = {name: [0.0, 0.0] for name in "abc"} | rows
    return {name: torch.tensor(values)[:, None].expand(2, 2).clone() for name, values in whole.items()}


def visit(delivery: Delivery, number: int, row: int = 0, slot: int = 0) -> str:
    now = Round(number, 0)
    return "".join(delivery.send([Job(Slot(slot, 0), row, now)], now)[Slot(slot, 0)].leaves)


def test_first_everything_then_what_changed_since() -> None:
    delivery = Delivery(SPEC, client())
    assert visit(delivery, 1) == "abc"
    delivery.stepped(bank(), bank(b=[1, 0]), 1)
    assert visit(delivery, 2) == "b"
    delivery.stepped(bank(b=[1, 0]), bank(b=[1, 0]), 2)
    assert visit(delivery, 3) == ""
    delivery.stepped(bank(b=[1, 0]), bank(a=[1, 0], b=[1, 0]), 3)
    delivery.stepped(bank(a=[1, 0], b=[1, 0]), bank(a=[1, 0], b=[1, 0], c=[2, 0]), 4)
    assert visit(delivery, 5) == "ac"  # away in round 4
    assert visit(delivery, 5, slot=1) == "abc"


def test_another_row_is_another_adapter_and_only_its_own_changes_count() -> None:
    delivery = Delivery(SPEC, client())
    assert visit(delivery, 1) == "abc"
    delivery.stepped(bank(), bank(a=[0, 5]), 1)
    assert visit(delivery, 2) == ""
    assert visit(delivery, 3, row=1) == "a"  # b and c are as they began in every row
    assert visit(delivery, 4, row=1) == ""
    assert visit(delivery, 5) == "a"


@pytest.mark.parametrize(("train", "share", "first"), [("bc", "bc", "abc"), ("abc", "b", "b"), ("abc", "", ""), ("b", "b", "abc")])
def test_what_a_client_keeps_for_itself_is_not_sent(train: str, share: str, first: str) -> None:
    assert visit(Delivery(SPEC, client(train, share)), 1) == first


def test_it_goes_on_from_what_it_wrote_down() -> None:
    delivery, again = Delivery(SPEC, client()), Delivery(SPEC, client())
    visit(delivery, 1)
    delivery.stepped(bank(), bank(c=[1, 0]), 1)
    written = delivery.state()
    again.restore(written)
    assert (again.visits, again.changes) == (delivery.visits, delivery.changes)
    delivery.stepped(bank(c=[1, 0]), bank(c=[2, 0]), 2)
    assert written == again.state() != delivery.state()  # what was written stays
    assert visit(again, 2) == "c"


class Clients:
    """Deployed clients: each keeps what it was ever sent, and must have all of its row when it trains."""

    def __init__(self) -> None:
        self.held: dict[Slot, dict[str, Tensor]] = {}
        self.row: dict[Slot, int] = {}
        self.sent: list[int] = []

    def receive(self, bank: Stack, job: Job, names: tuple[str, ...], own: set[str]) -> None:
        row = tree.row(bank, job.row)
        held = self.held.setdefault(job.slot, {})
        held.update({name: row[name].clone() for name in names})
        assert not own & set(names)
        for name in row.keys() - own:
            assert torch.equal(held[name], row[name]), f"round {job.round.number}: {name} is out of date"
        self.sent.append(len(names))


@pytest.mark.parametrize(
    ("method", "tables"),
    [
        ("fedit", {}),
        ("ffa_lora", {}),
        ("rolora", {}),
        ("rolora", {"adapter": {"head": "private"}}),
        ("fedtt_plus", {"method": {"trainable": "single"}, "adapter": {"rank": 2, "bottleneck": 4}}),
        ("fltac", {}),
        ("local_only", {}),
    ],
)
def test_a_client_that_keeps_what_it_gets_always_has_its_row(
    monkeypatch: pytest.MonkeyPatch, method: str, tables: dict[str, Any]
) -> None:
    """Two of four clients a round, in every method that does not send everything in every round."""
    clients, banks = Clients(), []
    submit, send = InProcess.submit, Delivery.send

    def watched(self: Delivery, jobs: Any, now: Round) -> Any:
        due = send(self, jobs, now)
        banks.append((self, jobs, due, now))
        return due

    def submitted(self: InProcess, jobs: Any, bank: Stack, shipments: Any) -> Any:
        delivery, asked, due, now = banks[-1]
        assert asked is jobs
        own = set(delivery.client.train(now)) - set(delivery.client.share(now))
        for job in jobs:
            clients.receive(bank, job, shipments[job.slot].leaves, own)
        assert shipments is due
        return submit(self, jobs, bank, shipments)

    monkeypatch.setattr(clock.Delivery, "send", watched)
    monkeypatch.setattr(InProcess, "submit", submitted)
    options = {"lr": 1e-2, "steps": 1, "batch": 4} | ({"participation": 0.5} if method != "local_only" else {})
    more = {**tables, "method": {**options, **tables.get("method", {})}}
    found: Outcome = run_tiny(tiny_config(method, rounds=6, **more))
    leaves = len(found.built.adapter.spec.leaves)
    if method in ("ffa_lora", "rolora", "fedtt_plus"):  # not all leaves at every visit
        assert 0 < min(clients.sent) < max(clients.sent) <= leaves
    if method == "local_only":
        assert set(clients.sent) == {0}


def test_traffic_of_a_slot_that_is_always_there() -> None:
    """B goes back and forth; A comes once."""
    spec = Spec("x", (Leaf("m/A", (3,), "lora_A", 0), Leaf("m/B", (5,), "lora_B", 0)))
    plan = ClientPlan(train=lambda now: ("m/B",), share=lambda now: ("m/B",), local=None, wire=None)  # type: ignore[arg-type]
    b, both = message.size([spec.leaves[1]]), message.size(spec.leaves)
    assert traffic(spec, plan, 3, 0) == [(b, both), (b, b), (b, b)]
