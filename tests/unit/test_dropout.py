"""Counter-based dropout: right rates, no dependence on padding, batching or threads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedquilt.models import dropout
from fedquilt.models.dropout import Masks, SeededDropout, attention_keys, clean_name, keep, mix, positions, seed_dropout

KEYS = torch.arange(4000) * 7919 + 13


def test_every_lane_drops_at_its_rate_and_keeps_the_mean() -> None:
    """Each 64-bit word decides four scalars: all four lanes must drop with probability p (5 sigma)."""
    for p in (0.05, 0.1, 0.5):
        mask = keep(KEYS, 64, p, torch.float64)
        lanes = (mask == 0).double().view(-1, 16, 4).mean((0, 1))
        sigma = (p * (1 - p) / (mask.numel() / 4)) ** 0.5
        assert bool(((lanes - p).abs() < 5 * sigma + 1e-5).all()), lanes
        assert abs(float(mask.mean()) - 1) < 5 * sigma / (1 - p)
        assert set(mask.unique().tolist()) == {0.0, 65536 / (65536 - round(p * 65536))}


def test_neighbours_are_uncorrelated() -> None:
    dropped = (keep(KEYS, 64, 0.5, torch.float64) == 0).double() - 0.5
    for a, b in ((dropped[:, 1:], dropped[:, :-1]), (dropped[1:], dropped[:-1]), (dropped[:, 4:], dropped[:, :-4])):
        assert abs(float((a * b).mean())) * 4 < 5 / a.numel() ** 0.5


def test_mix_is_a_bijection_on_a_sample_and_uses_the_top_bit() -> None:
    out = mix(torch.arange(-5000, 5000))
    assert len(out.unique()) == 10_000
    assert abs(float((out < 0).double().mean()) - 0.5) < 0.03


def test_a_token_gets_the_same_mask_padded_or_packed() -> None:
    masks = Masks()
    layer = SeededDropout(0.3, "encoder.layer.0.output.dropout", masks, "token")
    rows, lengths = torch.tensor([11, 22, 33]), [5, 2, 4]
    padded = torch.ones(3, 5, 8)
    with masks.active(rows, positions(rows[:, None], torch.arange(5)[None])):
        out = layer(padded)
    place = torch.cat([torch.arange(n) for n in lengths])
    with masks.active(rows, positions(torch.repeat_interleave(rows, torch.tensor(lengths)), place)):
        packed = layer(torch.ones(11, 8))
    assert torch.equal(torch.cat([out[i, :n] for i, n in enumerate(lengths)]), packed)


def test_attention_masks_do_not_depend_on_the_width() -> None:
    narrow = keep(attention_keys(torch.tensor([5, 6]), 3, 4), 4, 0.4, torch.float32)
    wide = keep(attention_keys(torch.tensor([5, 6]), 3, 9), 9, 0.4, torch.float32)
    assert torch.equal(narrow, wide[:, :, :4, :4])


def test_names_rows_and_p_decide() -> None:
    masks = Masks()
    one, other = (SeededDropout(0.5, name, masks, "row") for name in ("a", "b"))
    x = torch.ones(50, 16)
    rows = torch.arange(50)
    with masks.active(rows, None):
        assert not torch.equal(one(x), other(x))
        assert torch.equal(one(x), SeededDropout(0.5, "a", masks, "row")(x))
        assert torch.equal(SeededDropout(0.0, "a", masks, "row")(x), x)
    assert torch.equal(one(x), x)  # outside of training


def by_hand(key: int, width: int, p: float) -> list[float]:
    """The definition in Python's integers."""
    full, out = (1 << 64) - 1, []
    for column in range(width):
        z = (key + column // 4 * 0x9E3779B97F4A7C15) & full
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & full
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & full
        z ^= z >> 31
        sixteen = z >> (16 * (column % 4)) & 0xFFFF
        signed = sixteen - 65536 if sixteen >= 32768 else sixteen
        cut = round(p * 65536)
        out.append(65536 / (65536 - cut) if signed >= cut - 32768 else 0.0)
    return out


@pytest.mark.parametrize("block", [1, 7, 1 << 15])
@pytest.mark.parametrize("p", [0.0, 1e-6, 2e-5, 0.1, 0.5, 0.99])
def test_masks_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch, p: float, block: int) -> None:
    monkeypatch.setattr(dropout, "BLOCK", block)
    keys = KEYS[:40]
    expected = torch.tensor([by_hand(int(key), 22, p) for key in keys], dtype=torch.float64)
    assert torch.equal(keep(keys, 22, p, torch.float64), expected)
    x = torch.randn(40, 22, dtype=torch.float64).requires_grad_()
    layer = SeededDropout(p, "a", Masks(), "token")
    out = layer.drop(x, keys - layer.site)
    (grad,) = torch.autograd.grad(out, x, torch.full_like(x, 3.0))
    assert torch.equal(out, x * expected)
    assert torch.equal(grad, 3.0 * expected)


def test_nothing_to_drop() -> None:
    layer = SeededDropout(0.5, "a", Masks(), "token")
    assert layer.drop(torch.zeros(0, 6), KEYS[:0]).shape == (0, 6)
    assert layer.drop(torch.zeros(2, 0, 6), KEYS[:0].view(2, 0)).shape == (2, 0, 6)


def test_threads_cannot_matter() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = keep(KEYS, 384, 0.1, torch.float32)
        torch.set_num_threads(2)
        assert torch.equal(one, keep(KEYS, 384, 0.1, torch.float32))
    finally:
        torch.set_num_threads(before)


def test_all_dropouts_of_a_model_are_replaced_and_named_alike() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    model = nn.ModuleDict({"encoder": inner, "dropout": nn.Dropout(0.2), "classifier": nn.Sequential(nn.Dropout(0.3))})
    seed_dropout(model, Masks(), ("classifier",))
    found = {name: m for name, m in model.named_modules() if isinstance(m, SeededDropout)}
    assert {name: (m.p, m.kind) for name, m in found.items()} == {
        "encoder.1": (0.1, "token"),
        "dropout": (0.2, "row"),
        "classifier.0": (0.3, "row"),
    }
    assert not [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert clean_name("base_model.model.bert.q.lora_dropout.default") == "bert.q.lora_dropout"
    assert clean_name("base_model.model.classifier.modules_to_save.default.dropout") == "classifier.dropout"
