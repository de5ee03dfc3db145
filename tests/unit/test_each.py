"""Vectors of every token's own adapter: what they do is what the same written out does, forwards and backwards."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fedquilt.models import each
from fedquilt.models.each import Each, affine

TOKENS, ADAPTERS, WIDTH = 23, 3, 5


@pytest.fixture
def owner() -> Tensor:
    """Of every token; adapter 1 has none."""
    return 2 * torch.randint(0, 2, (TOKENS,), generator=torch.Generator().manual_seed(0))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("block", [1, 2 * WIDTH, 7 * WIDTH + 1, 1 << 20])
@pytest.mark.parametrize(("scaled", "shifted"), [(True, True), (True, False), (False, True)])
def test_as_written_out(block: int, scaled: bool, shifted: bool, owner: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens are done at a time; for inputs with axes before the tokens, too."""
    monkeypatch.setattr(each, "BLOCK", block)
    torch.manual_seed(1)
    members = torch.nn.functional.one_hot(owner, ADAPTERS).double()
    y, scale, shift, weight = drawn(1, TOKENS, WIDTH), drawn(ADAPTERS, WIDTH), drawn(ADAPTERS, WIDTH), drawn(TOKENS, WIDTH)
    found = affine(y, Each(scale, owner, members) if scaled else None, Each(shift, owner, members) if shifted else None)
    expected = affine(y, scale[owner] if scaled else None, shift[owner] if shifted else None)
    assert found.shape == y.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    leaves = [y, *([scale] if scaled else []), *([shift] if shifted else [])]
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), leaves), torch.autograd.grad((expected * weight).sum(), leaves), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_what_needs_no_gradient_gets_none(owner: Tensor) -> None:
    """Every subset of input, scale and shift may train."""
    members = torch.nn.functional.one_hot(owner, ADAPTERS).double()
    for needs in itertools.product((False, True), repeat=3):
        if not any(needs):
            continue
        parts = [drawn(*shape).detach().requires_grad_(need) for shape, need in zip(SHAPES, needs, strict=True)]
        affine(parts[0], Each(parts[1], owner, members), Each(parts[2], owner, members)).sum().backward()
        assert [part.grad is not None for part in parts] == list(needs)


SHAPES = ((TOKENS, WIDTH), (ADAPTERS, WIDTH), (ADAPTERS, WIDTH))


def test_a_scale_that_has_diverged_is_in_its_own_tokens_alone(owner: Tensor) -> None:
    """Forwards, that is: its gradient, and a shift, are products with ones and zeros, and 0 times infinity is no number. So engines
    train works one after the other as soon as one of them diverges."""
    members = torch.nn.functional.one_hot(owner, ADAPTERS).double()
    scale = torch.tensor([1.0, 1.0, float("inf")], dtype=torch.float64)[:, None].expand(ADAPTERS, WIDTH)
    out = affine(torch.ones(TOKENS, WIDTH, dtype=torch.float64), Each(scale, owner, members), None)
    assert out.isfinite().all(1).equal(owner == 0)


def test_less_a_vector_of_all(owner: Tensor) -> None:
    members = torch.nn.functional.one_hot(owner, ADAPTERS).double()
    stack, own, y = drawn(ADAPTERS, WIDTH), drawn(WIDTH), drawn(TOKENS, WIDTH)
    found = affine(y, None, Each(stack, owner, members) - own)
    torch.testing.assert_close(found, y + stack[owner] - own)


def test_one_of_each_kind_is_refused(owner: Tensor) -> None:
    members, vector = torch.nn.functional.one_hot(owner, ADAPTERS).double(), drawn(WIDTH)
    each_ = Each(drawn(ADAPTERS, WIDTH), owner, members)
    for scale, shift in ((each_, vector), (vector, each_)):
        with pytest.raises(TypeError, match="two kinds"):
            affine(drawn(TOKENS, WIDTH), scale, shift)
