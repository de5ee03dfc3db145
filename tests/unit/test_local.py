"""Client-side optimisers against torch.optim, and the rules about steps, rates and memory."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedquilt import local, tree
from fedquilt.errors import ConfigError
from fedquilt.local import Local
from fedquilt.runs.build import Built
from fedquilt.testing import run_tiny, tiny_base, tiny_config
from fedquilt.types import Leaf, Round, Spec

G, STEPS = 3, 20
SHAPES = {"m": (2, 3), "v": (4,), "s": ()}


def noise(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return {key: torch.randn((G, *shape), generator=stream, dtype=torch.float64).to(dtype) for key, shape in SHAPES.items()}


def gradient(step: int, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """A gradient that depends on the point, so that errors cannot cancel."""
    return {key: value + noise(100 + step)[key] for key, value in x.items()}


def reference(kind: str, row: int, steps: int, spared: Collection[str] = (), **options: Any) -> dict[str, Tensor]:
    """One slot alone through torch.optim; ``spared``: a group of parameters without weight decay."""
    parameters = {key: x[row].clone().requires_grad_() for key, x in noise(0).items()}
    groups = [{"params": [x for key, x in parameters.items() if key not in spared]}]
    groups += [{"params": [parameters[key]], "weight_decay": 0.0} for key in spared]
    optimiser = getattr(torch.optim, kind)(groups, foreach=False, **options)
    for step in range(steps):
        for key, parameter in parameters.items():
            parameter.grad = (parameter + noise(100 + step)[key][row]).detach()
        optimiser.step()
    return {key: parameter.detach() for key, parameter in parameters.items()}


CASES: list[tuple[Local, str, dict[str, Any]]] = [
    (local.adamw(lr=0.05, steps=1), "AdamW", {"lr": 0.05, "weight_decay": 0.0}),
    (local.adamw(lr=0.05, steps=1, weight_decay=0.1), "AdamW", {"lr": 0.05, "weight_decay": 0.1}),
    (
        local.adamw(lr=0.02, steps=1, beta1=0.8, beta2=0.95, eps=1e-3),
        "AdamW",
        {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.0},
    ),
    (local.sgd(lr=0.05, steps=1), "SGD", {"lr": 0.05}),
    (local.sgd(lr=0.05, steps=1, weight_decay=0.1), "SGD", {"lr": 0.05, "weight_decay": 0.1}),
    (local.sgd(lr=0.05, steps=1, momentum=0.9, weight_decay=0.1), "SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(("part", "kind", "options"), CASES)
def test_twenty_steps_equal_torch_optim_with_slots_of_unequal_length(part: Local, kind: str, options: dict[str, Any]) -> None:
    lengths = torch.tensor([STEPS, 7, 1])
    x, moments = noise(0), part.init(noise(0))
    for step in range(STEPS):
        active = lengths > step
        grads = gradient(step, x)
        # A slot that rests may bring anything as its gradient.
        poisoned = {key: torch.where(active.view(-1, *[1] * (g.dim() - 1)), g, torch.nan) for key, g in grads.items()}
        x, moments = part.step(x, poisoned, moments, part.lr, active)
    for row in range(G):
        alone = reference(kind, row, int(lengths[row]), **options)
        assert tree.max_difference(tree.row(x, row), alone) < 1e-13
    assert all(bool(torch.isfinite(m).all()) for m in moments.values())


@pytest.mark.parametrize(("part", "kind", "options"), [case for case in CASES if case[0].weight_decay])
@pytest.mark.parametrize("role", ["scale", "shift", "norm", "bias"])
def test_scales_and_biases_are_a_group_without_decay(role: str, part: Local, kind: str, options: dict[str, Any]) -> None:
    roles = {"m": "lora_A", "v": role, "s": "head"}
    part = part.on(Spec("test", tuple(Leaf(key, SHAPES[key], roles[key], 0) for key in SHAPES)))
    x, moments = noise(0), part.init(noise(0))
    for step in range(STEPS):
        x, moments = part.step(x, gradient(step, x), moments, part.lr, torch.ones(G, dtype=torch.bool))
    for row in range(G):
        assert tree.max_difference(tree.row(x, row), reference(kind, row, STEPS, ["v"], **options)) < 1e-13
        assert tree.max_difference(tree.row(x, row), reference(kind, row, STEPS, **options)) > 1e-3


MODEL = {"name": "tiny:bert", "precision": "float64", "max_length": 64}


def decayed(built: Built) -> set[str]:
    """Leaves without the numbers that start at one and without biases, by the modules of the base model."""
    norms = {f"{name}/{part}" for name, module in built.base.model.named_modules() if isinstance(module, torch.nn.LayerNorm)
             for part in ("weight", "bias", "gamma", "beta")}  # fmt: skip
    vectors = ("/gamma", "/beta", "/ia3", "bias")
    return {name for name in built.adapter.init if "/head." in name or not (name in norms or name.endswith(vectors))}


@pytest.mark.parametrize("engine", ["vectorised", "sequential"])
@pytest.mark.parametrize(
    "family", ["lora", "ia3", "ssf", "layer_norms", "bitfit", "bottleneck", "last_layers", "full", "prompt", "p_tuning"]
)
def test_one_step_with_decay_pulls_weights_and_heads(family: str, engine: str) -> None:
    """SGD: x - lr (g + decay x). All clients start alike and have equal decay, so the average is pulled by as much."""
    found = []
    for decay in (0.0, 0.3):
        method = {"lr": 0.1, "steps": 1, "per": "slot", "optimiser": "sgd", "weight_decay": decay}
        config = tiny_config("fedit", method=method, adapter={"family": family}, engine=engine, model=MODEL)
        base = tiny_base(config)
        for parameter in base.model.parameters():  # biases that are not at zero anyway
            parameter.data += 0.1
        found.append(run_tiny(config, base, rounds=1))
    without, pulled = (outcome.hub.bank for outcome in found)
    weights = decayed(found[0].built)
    assert {"classifier/head.weight", "classifier/head.bias"} <= weights
    for key, start in found[0].built.adapter.init.items():
        expected = without[key][0] - 0.1 * 0.3 * start if key in weights else without[key][0]
        assert float((pulled[key][0] - expected).abs().max()) < 1e-12, key


@pytest.mark.parametrize(("part", "kind", "options"), CASES)
def test_memory_that_persists_equals_one_long_run_and_reset_does_not(part: Local, kind: str, options: dict[str, Any]) -> None:
    everyone = torch.ones(G, dtype=torch.bool)

    def rounds(persist: bool) -> dict[str, Tensor]:
        x = noise(0)
        moments = part.init(x)
        for step in range(STEPS):
            if step % 5 == 0 and not persist:
                moments = part.init(x)
            x, moments = part.step(x, gradient(step, x), moments, part.lr, everyone)
        return dict(x)

    straight = {key: torch.stack([reference(kind, row, STEPS, **options)[key] for row in range(G)]) for key in SHAPES}
    assert tree.max_difference(rounds(persist=True), straight) < 1e-13
    stateless = kind == "SGD" and "momentum" not in options
    assert (tree.max_difference(rounds(persist=False), straight) < 1e-13) is stateless


@pytest.mark.parametrize("part", [case[0] for case in CASES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_cannot_influence_one_another(part: Local, dtype: torch.dtype) -> None:
    x, grads = noise(0, dtype), noise(1, dtype)
    both, after = part.step(x, grads, part.init(x), 0.1, torch.ones(G, dtype=torch.bool))
    for row in range(G):
        own = tree.rows(x, [row])
        one, _ = part.step(own, tree.rows(grads, [row]), part.init(own), 0.1, torch.ones(1, dtype=torch.bool))
        assert tree.equal(tree.row(both, row), tree.row(one, 0))
    assert all(value.dtype == dtype for value in both.values())
    assert all(m.dtype == dtype for key, m in after.items() if key != "steps")


def test_inputs_are_not_changed() -> None:
    for part, _, _ in CASES:
        x, grads = noise(0), noise(1)
        moments = part.init(x)
        part.step(x, grads, moments, 0.1, torch.ones(G, dtype=torch.bool))
        assert tree.equal(x, noise(0))
        assert tree.equal(grads, noise(1))
        assert tree.equal(moments, part.init(x))


def test_clipping_bounds_each_slot_by_itself() -> None:
    part = local.sgd(lr=1.0, steps=1, max_norm=1.5)
    grads = noise(3)
    grads = {key: g * torch.tensor([10.0, 1e-3, 0.0]).view(-1, *[1] * (g.dim() - 1)) for key, g in grads.items()}
    clipped = part.clipped(grads)
    norms = tree.norm_rows(clipped)
    assert norms[0].item() == pytest.approx(1.5, rel=1e-12)
    for row in (1, 2):  # small ones, and zero, are left alone
        assert tree.equal(tree.row(clipped, row), tree.row(grads, row))
    direction = tree.scale(tree.row(grads, 0), 1.5 / tree.norm_rows(grads)[0].item())
    assert tree.max_difference(tree.row(clipped, 0), direction) < 1e-14
    x, _ = part.step(noise(0), grads, {}, 1.0, torch.ones(G, dtype=torch.bool))
    assert tree.max_difference(x, tree.sub(noise(0), clipped)) == 0.0


# -- steps and rates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "samples", "tasks", "effort", "steps"),
    [
        ({"steps": 5}, 1, 3, 1.0, 5),
        ({"steps": 5, "per": "task"}, 1000, 3, 1.0, 15),
        ({"steps": 5}, 1, 1, 2.5, 13),  # 12.5 rounds up, never to even
        ({"steps": 1}, 1, 1, 0.01, 1),
        ({"epochs": 2, "batch": 4}, 9, 1, 1.0, 6),
        ({"epochs": 2, "batch": 4}, 1, 1, 1.0, 2),
        ({"epochs": 1, "batch": 4}, 8, 3, 0.5, 1),
    ],
)
def test_count(options: dict[str, Any], samples: int, tasks: int, effort: float, steps: int) -> None:
    assert local.sgd(lr=1.0, **options).count(samples, tasks, effort) == steps


@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 5))
def test_epochs_make_exactly_enough_batches(samples: int, batch: int, epochs: int) -> None:
    steps = local.sgd(lr=1.0, epochs=epochs, batch=batch).count(samples, 1, 1.0)
    assert steps == epochs * len(range(0, samples, batch))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_falls_over_rounds_from_lr_towards_zero(schedule: str) -> None:
    part = local.adamw(lr=0.4, steps=1, schedule=schedule, horizon=10)  # type: ignore[arg-type]
    rates = [part.rate(Round(number, 0)) for number in range(1, 12)]
    expected = {
        "constant": [0.4] * 11,
        "linear": [0.4 * (1 - i / 10) for i in range(11)],
        "cosine": [0.2 * (1 + math.cos(math.pi * i / 10)) for i in range(11)],
    }[schedule]
    assert rates == pytest.approx(expected, abs=1e-15)
    assert part.rate(Round(50, 0)) == rates[-1]  # never negative, never rising again


def test_a_schedule_without_horizon_is_constant() -> None:
    assert local.sgd(lr=0.4, steps=1, schedule="linear").rate(Round(9, 0)) == 0.4


@pytest.mark.parametrize("options", [{}, {"steps": 1, "epochs": 1}])
def test_exactly_one_of_steps_and_epochs(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="exactly one of steps and epochs"):
        local.adamw(lr=1.0, **options)


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"lr": float("nan")}, {"steps": 0}, {"steps": None, "epochs": -1}, {"batch": 0}, {"max_norm": 0.0}],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be positive") as caught:
        local.sgd(**{"lr": 1.0, "steps": 1, **options})
    assert caught.value.where.startswith("method.")


def test_the_builder_passes_every_setting_on() -> None:
    plain = local.optimiser({"lr": 0.1, "steps": 3, "weight_decay": 0.2, "max_norm": 1.0}, per="task")
    assert plain == local.adamw(lr=0.1, steps=3, weight_decay=0.2, max_norm=1.0, per="task")
    heavy = local.optimiser(
        {"lr": 0.1, "epochs": 3, "optimiser": "sgd", "momentum": 0.5, "batch": 2, "schedule": "cosine"}, memory="persist"
    )
    assert heavy == local.sgd(lr=0.1, epochs=3, momentum=0.5, batch=2, schedule="cosine", memory="persist")
    assert local.optimiser({"lr": 0.1, "epochs": 1, "optimiser": "sgd"}) == local.sgd(lr=0.1, epochs=1)


def test_momentum_without_sgd_is_refused_not_ignored() -> None:
    with pytest.raises(ConfigError, match="momentum is a setting of SGD"):
        local.optimiser({"lr": 0.1, "steps": 1, "momentum": 0.9})
