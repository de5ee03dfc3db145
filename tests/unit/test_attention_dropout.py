"""Attention with dropout of all lengths together, against the textbook's one row at a time with masks made one by one."""

from __future__ import annotations

import pytest
import torch

from fedquilt.models.attention_dropout import attend, layout
from fedquilt.models.dropout import Masks, SeededDropout, attention_keys, keep

LENGTHS = [1, 3, 3, 4, 7, 7, 7, 9]


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_values_and_gradients(p: float) -> None:
    torch.manual_seed(0)
    heads, width, tokens = 3, 5, sum(LENGTHS)
    dropout, keys = (
        SeededDropout(p, "layer.0.attention.self.dropout", Masks(), "token"),
        torch.randint(-(2**62), 2**62, (len(LENGTHS),)),
    )
    q, k, v = (torch.randn(tokens, heads, width, dtype=torch.float64).requires_grad_() for _ in "qkv")
    groups = [(LENGTHS.count(length), length) for length in sorted(set(LENGTHS))]
    given = torch.randn(tokens, heads * width, dtype=torch.float64)

    out = attend(q, k, v, 0.3, dropout, layout(groups, heads, keys))
    found = torch.autograd.grad(out, (q, k, v), given)

    rows, zeros = [], 0
    for key, query, word, value in zip(keys, q.split(LENGTHS), k.split(LENGTHS), v.split(LENGTHS), strict=True):
        mask = keep(attention_keys(key[None], heads, len(query)) + dropout.site, len(query), p, torch.float64)[0]
        zeros += int((mask == 0).sum())
        weights = torch.softmax(torch.einsum("ihd,jhd->hij", query, word) * 0.3, -1) * mask
        rows.append(torch.einsum("hij,jhd->ihd", weights, value).flatten(1))
    expected = torch.cat(rows)
    assert zeros > 10, "nothing was dropped"
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for own, other in zip(found, torch.autograd.grad(expected, (q, k, v), given), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-12)
