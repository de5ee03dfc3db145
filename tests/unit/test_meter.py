"""Bytes are those of the encoded message, header included."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from tiny import tiny_config
from uploads import SPEC, state

from fedquilt import tree
from fedquilt.errors import StateError
from fedquilt.meter import Meter
from fedquilt.models.loading import ModelConfig
from fedquilt.models.meta import find_shape, meta_base
from fedquilt.runs import registry
from fedquilt.runs.plan import plan
from fedquilt.types import Leaf, Reply, Shipment, Slot
from fedquilt.wire import message

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
names = st.text("abcdefgh.ijk/_0123456789", min_size=1, max_size=12)
leaves = st.builds(
    lambda name, shape, dtype: Leaf(name, tuple(shape), "x", 0, None, dtype),
    names,
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.sampled_from(DTYPES),
)


def filled(leaves: list[Leaf]) -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    return {leaf.name: torch.randn(leaf.shape, generator=stream).to(leaf.dtype) for leaf in leaves}


some_leaves = st.lists(leaves, min_size=1, max_size=6, unique_by=lambda leaf: leaf.name)


@given(some_leaves, st.randoms())
def test_a_message_comes_back_and_has_the_stated_size(leaves: list[Leaf], random: Any) -> None:
    state, shuffled = filled(leaves), random.sample(leaves, len(leaves))
    sent = message.encode(leaves, state)
    assert len(sent) == message.size(shuffled)
    assert sent == message.encode(shuffled, state)
    back = message.decode(sent, shuffled)
    assert list(back) == sorted(state)
    assert all(torch.equal(back[key], x) and back[key].dtype == x.dtype for key, x in state.items())


@given(some_leaves)
def test_framing_is_small_and_does_not_grow_with_the_leaves(leaves: list[Leaf]) -> None:
    numbers = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert message.size(leaves) - numbers < 96 + 80 * len({leaf.dtype for leaf in leaves})


@pytest.mark.parametrize("family", ["tt", "lora", "bitfit", "bottleneck", "ia3", "prompt"])
def test_framing_is_below_a_hundredth_for_the_papers_adapters(family: str) -> None:
    config = ModelConfig(name="FacebookAI/roberta-base")
    spec = registry.load("fedquilt.adapters", family)(meta_base(find_shape(config), config, "text", 2), seed=0).spec
    assert spec.size() * 4 < message.size(spec.leaves) < spec.size() * 4 * 1.01


def test_another_layout_is_refused() -> None:
    a, b = Leaf("a", (2, 3), "x", 0), Leaf("b", (1,), "x", 0)
    sent = message.encode([a, b], {"a": torch.zeros(2, 3), "b": torch.zeros(1)})
    for other in (
        [a],
        [a, Leaf("c", (1,), "x", 0)],
        [Leaf("a", (3, 2), "x", 0), b],
        [Leaf("a", (2, 3), "x", 0, dtype=torch.float16), b],
    ):
        with pytest.raises(StateError, match=r"other leaves|want"):
            message.decode(sent, other)
    with pytest.raises(StateError, match="other leaves"):
        message.decode(sent, [Leaf("a", (3, 2), "x", 0), b])


def test_what_is_no_message_is_refused() -> None:
    leaf = Leaf("a", (2,), "x", 0)
    sent = message.encode([leaf], {"a": torch.ones(2)})
    for broken in (b"", sent[:5], sent[:-1], sent[:8], b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", sent[:8] + b"x" + sent[9:]):
        with pytest.raises(StateError):
            message.decode(broken, [leaf])


def test_a_message_is_a_safetensors_file() -> None:
    """Which its library writes in the same bytes, and reads."""
    leaves = [Leaf("a", (2, 3), "x", 0), Leaf("c", (), "x", 0), Leaf("b", (5,), "x", 0, dtype=torch.bfloat16)]
    state = {"a": torch.randn(2, 3), "c": torch.tensor(2.0), "b": torch.randn(5).bfloat16()}
    sent = message.encode(leaves, state)
    assert sent == save(load(sent), metadata={"layout": message.layout(leaves)})
    assert tree.equal(message.decode(sent, leaves), state)


def test_the_plan_says_when_rounds_differ(tmp_path: Path) -> None:
    def notes(method: str, **more: Any) -> list[str]:
        return [note for note in plan(tiny_config(tmp_path, method, **more)).notes if "round to round" in note]

    assert not notes("fedit")
    found = notes("rolora", adapter={"rank": 2, "targets": ["down"]})
    assert [note.count(" up;") + 2 * note.count(" down;") for note in found] == [1, 2]
    low, high = (int(number.replace(",", "")) for number in re.findall(r"[\d,]+(?= to | bytes)", found[0]))
    assert high - low == 2 * 2 * 4 * (32 - 16)  # two maps of rank 2 from 32 to 16


def test_rounds_and_clients_are_counted_both_ways() -> None:
    meter = Meter(SPEC)
    size = message.size(SPEC.leaves)
    meter.start_round()
    meter.down(dict.fromkeys((Slot(0, 0), Slot(0, 1), Slot(3, 0)), Shipment(SPEC.names(), 0)))
    meter.up([Reply(Slot(0, 0), 1, state(0), 1.0), Reply(Slot(3, 0), 1, state(0), 1.0)])
    assert meter.round_bytes() == {"up": 2 * size, "down": 3 * size}
    assert meter.clients == {0: {"up": size, "down": 2 * size}, 3: {"up": size, "down": size}}
    meter.start_round()
    assert meter.round_bytes() == {"up": 0, "down": 0}
    assert (meter.total_up, meter.total_down) == (2 * size, 3 * size)


@pytest.mark.parametrize("shared", [(), ("enc.0.q/lora_B",)])
def test_only_what_travels_counts(shared: tuple[str, ...]) -> None:
    meter = Meter(SPEC)
    meter.down({Slot(0, 0): Shipment(shared, 1)})
    leaves = [leaf for leaf in SPEC.leaves if leaf.name in shared]
    expected = len(message.encode(leaves, state(0))) if shared else 0
    assert meter.total_down == expected
