"""Derived public seeds and secret randomness."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from fedquilt.rng import derive, generator, numpy_generator, secret_normal

SALT = st.lists(st.integers() | st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"])), max_size=4)


def test_definition() -> None:
    digest = hashlib.blake2b(b"int:7\x1fstr:batch\x1fint:-3", digest_size=8).digest()
    assert derive(7, "batch", -3) == int.from_bytes(digest, "big") >> 1


def test_published_values_never_change() -> None:
    # Golden values: a change here changes every published run.
    assert derive(0) == 6711488920161924273
    assert derive(42, "round", 1, "cohort") == 1892393296953029273


@given(st.integers(), SALT)
def test_range(seed: int, salt: list[int | str]) -> None:
    assert 0 <= derive(seed, *salt) < 2**63


@given(st.integers(), SALT, st.integers(), SALT)
def test_different_arguments_give_different_seeds(a: int, salt_a: list[int | str], b: int, salt_b: list[int | str]) -> None:
    def key(seed: int, salt: list[int | str]) -> list[tuple[str, int | str]]:
        return [(type(part).__name__, part) for part in (seed, *salt)]

    assert (derive(a, *salt_a) == derive(b, *salt_b)) == (key(a, salt_a) == key(b, salt_b))


def test_the_same_in_every_process() -> None:
    code = (
        "import torch; from fedquilt.rng import derive, generator; "
        "print(derive(1, 'x'), torch.rand(3, generator=generator(1, 'x')).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    expected = f"{derive(1, 'x')} {torch.rand(3, generator=generator(1, 'x')).tolist()}\n"
    assert outputs == {expected}


def test_generators_start_from_the_derived_seed_and_leave_global_state_alone() -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    drawn = torch.rand(5, generator=generator(3, "a"))
    drawn_numpy = numpy_generator(3, "a").random(5)
    assert torch.equal(drawn, torch.rand(5, generator=torch.Generator().manual_seed(derive(3, "a"))))
    assert np.array_equal(drawn_numpy, np.random.default_rng(derive(3, "a")).random(5))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(before_numpy, np.random.get_state()[1])


def test_secret_numbers_are_normal_and_do_not_follow_the_global_seed() -> None:
    torch.manual_seed(0)
    one = secret_normal((40, 500))
    torch.manual_seed(0)
    assert not torch.equal(one, secret_normal((40, 500)))
    assert one.dtype == torch.float64
    # Fails once in a million times: nobody can seed it.
    assert kstest(one.flatten().numpy(), "norm").pvalue > 1e-6


def test_secret_numbers_are_made_of_entropy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # 128 bits each: torch keeps 32 of a seed, which are quickly tried.
    given = np.random.default_rng(0).integers(0, 2**64, size=(2, 3, 5), dtype=np.uint64)
    given[0, 0, :2] = 0, 2**64 - 1
    monkeypatch.setattr("os.urandom", lambda size: given.tobytes() if size == given.nbytes else b"")
    first, second = ((given >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    expected = np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)
    found = secret_normal((3, 5))
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)
