"""Bytes are those of the encoded message, header included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from uploads import SPEC, state

from fedquilt.meter import Meter, encoded_size
from fedquilt.types import Job, Leaf, Reply, Round, Slot

NOW = Round(1, 0)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
names = st.text("abcdefgh.ijk/_0123456789", min_size=1, max_size=12)
leaves = st.builds(
    lambda name, shape, dtype: Leaf(name, tuple(shape), "x", 0, None, dtype),
    names,
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.sampled_from(DTYPES),
)


@given(st.lists(leaves, min_size=1, max_size=6, unique_by=lambda leaf: leaf.name))
def test_the_size_is_that_of_the_safetensors_message(leaves: list[Leaf]) -> None:
    assert encoded_size(leaves) == len(save({leaf.name: torch.zeros(leaf.shape, dtype=leaf.dtype) for leaf in leaves}))


def test_rounds_and_clients_are_counted_both_ways() -> None:
    meter = Meter(SPEC)
    jobs = [Job(Slot(0, 0), 0, NOW), Job(Slot(0, 1), 0, NOW), Job(Slot(3, 0), 0, NOW)]
    size = encoded_size(SPEC.leaves)
    meter.start_round()
    meter.down(jobs, SPEC.names())
    meter.up([Reply(Slot(0, 0), 1, state(0), 1.0), Reply(Slot(3, 0), 1, state(0), 1.0)])
    assert meter.round_bytes() == {"up": 2 * size, "down": 3 * size}
    assert meter.clients == {0: {"up": size, "down": 2 * size}, 3: {"up": size, "down": size}}
    meter.start_round()
    assert meter.round_bytes() == {"up": 0, "down": 0}
    assert (meter.total_up, meter.total_down) == (2 * size, 3 * size)


@pytest.mark.parametrize("shared", [(), ("enc.0.q/lora_B",)])
def test_only_what_travels_counts(shared: tuple[str, ...]) -> None:
    meter = Meter(SPEC)
    meter.down([Job(Slot(0, 0), 0, NOW)], shared)
    expected = len(save({key: state(0)[key] for key in shared})) if shared else 0
    assert meter.total_down == expected
