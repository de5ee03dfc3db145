"""Counter-based dropout: right rates, no dependence on padding, batching or threads."""

from __future__ import annotations

import torch
from torch import nn

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
