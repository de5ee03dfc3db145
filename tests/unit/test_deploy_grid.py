"""The transport over Flower's grid, against a grid that answers late, with errors, with something else, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from fedquilt.deploy.flower import grid as module
from fedquilt.deploy.flower.codec import unwrapped, wrapped
from fedquilt.deploy.flower.grid import GridTransport
from fedquilt.deploy.messages import Done, Trained
from fedquilt.deploy.parcel import parcel
from fedquilt.errors import StateError
from fedquilt.meter import Meter
from fedquilt.types import Leaf, Spec
from fedquilt.wire import message as wire

Behaviour = Callable[[Message], Message | None]


class FakeGrid(Grid):
    """Every node answers by its own behaviour, at the second look; None: never."""

    def __init__(self, nodes: dict[int, Behaviour]) -> None:
        self.behaviours = nodes
        self.pushed: dict[str, Message] = {}
        self.looks: dict[str, int] = {}
        self.calls = 0

    def get_node_ids(self) -> Iterable[int]:
        self.calls += 1
        return list(self.behaviours)[: self.calls]  # one more appears with every look

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names: list[Any] = []
        for message in messages:
            name = None if message.metadata.dst_node_id == 99 else f"m{len(self.pushed)}"
            if name:
                message.metadata.__dict__["_message_id"] = name
                self.pushed[name] = message
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for name in message_ids:
            self.looks[name] = self.looks.get(name, 0) + 1
            asked = self.pushed[name]
            if self.looks[name] >= 2 and (answer := self.behaviours[asked.metadata.dst_node_id](asked)) is not None:
                found.append(answer)
        return found

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any: ...

    def create_message(self, *args: Any, **kwargs: Any) -> Any: ...

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Any: ...


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of Flower's asks which process it is in."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def echo(message: Message) -> Message:
    return Message(wrapped(unwrapped(message.content)[::-1]), reply_to=message)


BEHAVIOURS: dict[int, Behaviour] = {
    1: echo,
    2: lambda message: Message(Error(2, "it broke"), reply_to=message),
    3: lambda message: Message(RecordDict({"other": ConfigRecord({"x": 1})}), reply_to=message),
    4: lambda message: None,
}


def test_every_ticket_has_what_came_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, the reason of an error, nothing of ours, nothing at all once the time is up, and what could not be sent."""
    monkeypatch.setattr(module, "PAUSE", 0.001)
    transport = GridTransport(FakeGrid(BEHAVIOURS))
    transport.wait(4)
    tickets = {node: transport.send(node, b"abc") for node in (1, 2, 3, 4, 99)}
    found = transport.receive(list(tickets.values()), 0.1)
    assert {node: found.get(ticket) for node, ticket in tickets.items()} == {
        1: b"cba",
        2: "Flower's error 2: it broke",
        3: b"",
        4: None,
        99: "it could not be sent",
    }


def test_nodes_are_waited_for_until_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    grid = FakeGrid(BEHAVIOURS)
    GridTransport(grid).wait(2)
    assert grid.calls == 2, "it looked until two were there, and no longer"
    GridTransport(grid).wait(9, patience=0.05)
    assert GridTransport(grid).nodes() == [1, 2, 3, 4]


def test_a_message_s_life_is_that_of_its_round() -> None:
    grid = FakeGrid(BEHAVIOURS)
    GridTransport(grid, ttl=12.5).send(1, b"")
    assert grid.pushed["m0"].metadata.ttl == 12.5


def test_what_is_wrapped_comes_back() -> None:
    for data in (b"", bytes(range(256)) * 100):
        assert unwrapped(wrapped(data)) == data
    with pytest.raises(StateError):
        unwrapped(RecordDict())


@pytest.mark.parametrize(("numbers", "slots"), [(30_000, 1), (30_000, 5), (400_000, 2)])
def test_flower_carries_what_the_meter_counts(numbers: int, slots: int) -> None:
    """An answer with adapters of 120 kB and more: all objects that Flower makes of it are larger by less than a hundredth."""
    leaves = [Leaf("m/lora_A", (1, numbers // 2), "lora_A", 0), Leaf("m/lora_B", (numbers // 2, 1), "lora_B", 0)]
    meter, stream = Meter(Spec("lora", tuple(leaves), rank=1)), torch.Generator().manual_seed(0)
    blocks, done = [], []
    for slot in range(slots):
        blocks.append(wire.encode(leaves, {leaf.name: torch.randn(leaf.shape, generator=stream) for leaf in leaves}))
        done.append(Done(slot=slot, weight=100.0, loss=0.5, fingerprint=0))
    counted = slots * meter.size([leaf.name for leaf in leaves])
    data = parcel(Trained(run="0" * 32, round=7, done=done, undone=[]), tuple(blocks)).pack()
    asked = Message(wrapped(b""), dst_node_id=1, message_type="train")
    asked.metadata.__dict__["_message_id"] = "m"
    carried = sum(len(x.deflate()) for x in get_all_nested_objects(Message(wrapped(data), reply_to=asked)).values())
    assert counted < carried < 1.01 * counted
