"""Every adapter family under federation: both engines, by one line of the configuration; and what has to stay frozen does."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import slow_unless
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from fedquilt import pick, tree
from fedquilt.adapters.tt.family import tt
from fedquilt.adapters.tt.maps import dense
from fedquilt.errors import ConfigError
from fedquilt.models.loading import ModelConfig, load
from fedquilt.models.meta import Use, find_shape, meta_base
from fedquilt.runs.config import RunConfig
from fedquilt.testing import build_tiny, check_method, run_tiny, tiny_base, tiny_config
from fedquilt.types import Round

BASE, LARGE, LLAMA = "FacebookAI/roberta-base", "FacebookAI/roberta-large", "meta-llama/Llama-2-7b-hf"
FAMILIES: dict[str, dict[str, Any]] = {
    "tt": {"rank": 2, "bottleneck": 8},
    "bottleneck": {"bottleneck": 4},
    "ia3": {},
    "bitfit": {},
    "layer_norms": {},
    "ssf": {},
    "last_layers": {},
    "prompt": {"tokens": 3},
    "p_tuning": {"tokens": 3, "hidden": 5},
    "prefix": {"tokens": 3},
}
WORDS = ("prompt", "p_tuning", "prefix")
TRAINING: dict[str, Any] = {"lr": 1e-2, "steps": 3, "batch": 4}
ENCODERS = ("bert", "roberta", "deberta", "deberta-v2", "vit", "dinov2")
LANGUAGE = ("llama", "gpt2")
# In the fast suite every family meets BERT under FedIT, and every other one FL-TAC and Llama, the rest images and GPT-2.
QUICK = ({("fedit", "bert"), ("fltac", "bert")}, {("fedit", "bert"), ("fedit", "vit")})
CASES = [
    slow_unless((method, model) in QUICK[place % 2], family, method, model)
    for place, family in enumerate(FAMILIES)
    for method in ("fedit", "fltac", "local_only")
    for model in ENCODERS
    if not (family in WORDS and model in ("vit", "dinov2")) and not (family == "prefix" and model.startswith("deberta"))
]


@pytest.mark.parametrize(("family", "method", "model"), CASES)
def test_families_pass_the_check_under_methods(family: str, method: str, model: str) -> None:
    tables = {"adapter": {"family": family, **FAMILIES[family]}, "model": {"name": f"tiny:{model}", "dropout": 0.1}}
    tables["model"]["precision"] = "float64"
    assert len(check_method(method, tables=tables, **TRAINING)) == 7


@pytest.mark.parametrize(
    ("family", "model"),
    [
        slow_unless(model == LANGUAGE[place % 2], family, model)
        for place, family in enumerate(name for name in FAMILIES if name != "bitfit")
        for model in LANGUAGE
    ],
)
def test_families_pass_the_check_on_language_models(family: str, model: str) -> None:
    tables = {"adapter": {"family": family, **FAMILIES[family]}, "model": {"name": f"tiny:{model}", "precision": "float64"}}
    assert len(check_method("fedit", kind="generation", tables=tables, **TRAINING)) == 7


@pytest.mark.parametrize("policy", ["private", "frozen", "per-task"])
@pytest.mark.parametrize("family", ["tt", "bitfit"])
def test_head_policies(family: str, policy: str) -> None:
    dense = {"classifier": "dense"} if (family, policy) == ("tt", "per-task") else {}
    assert len(
        check_method("fedit", tables={"adapter": {"family": family, "head": policy, **FAMILIES[family], **dense}}, **TRAINING)
    )


def test_a_family_that_the_method_does_not_train_is_refused() -> None:
    config = tiny_config("ffa_lora", method=TRAINING, adapter={"family": "tt"})
    with pytest.raises(ConfigError, match="trains 'lora', the config asks for 'tt'"):
        build_tiny(config)
    both = tiny_config("fedit", method={**TRAINING, "adapter": "lora"}, adapter={"family": "tt"})
    with pytest.raises(ConfigError, match="trains 'lora', the config asks for 'tt'"):
        build_tiny(both)


@pytest.mark.parametrize(("model", "most"), [("bert", 140), ("roberta", 139)])
def test_virtual_tokens_need_positions(model: str, most: int) -> None:
    def built(length: int) -> None:
        tables = {"model": {"name": f"tiny:{model}", "max_length": length}, "adapter": {"family": "prefix", "tokens": 10}}
        build_tiny(tiny_config("fedit", method=TRAINING, **tables))

    built(most - 10)
    with pytest.raises(ConfigError, match=f"more than {most} positions"):
        built(most - 9)


@pytest.mark.parametrize("model", ["bert", "roberta", "deberta", "deberta-v2"])
def test_words_need_positions(model: str) -> None:
    """The model itself says how many it has: with one more it dies."""

    def tables(length: int) -> RunConfig:
        return tiny_config("fedit", method=TRAINING, model={"name": f"tiny:{model}", "max_length": length})

    def reads(length: int) -> bool:
        ids = torch.full((1, length), 5)
        try:
            base.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        except (IndexError, RuntimeError):
            return False
        return True

    base = tiny_base(tables(24))
    most = max(length for length in range(130, 150) if reads(length))
    assert most < 149
    build_tiny(tables(most))
    with pytest.raises(ConfigError, match=f"texts of {most + 1} tokens are more than {most} positions") as caught:
        build_tiny(tables(most + 1))
    assert f"set model.max_length to {most} or less" in str(caught.value)


def test_positions_that_are_computed_go_on(tmp_path: Path) -> None:
    """DeBERTa as it is on the hub: relative positions alone."""
    base = load(ModelConfig(name="tiny:deberta"), classes=3, seed=0)
    base.model.config.position_biased_input = False
    AutoModelForSequenceClassification.from_config(base.model.config).save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    assert len(run_tiny(tiny_config("fedit", method=TRAINING, model={"name": str(tmp_path), "max_length": 1000})).rounds) == 2


# ---- what stays frozen (by the bits), over six rounds ---------------------------------------------------------------------


def rounds_of(name: str, adapter: Mapping[str, Any], **method: Any) -> list[dict[str, Tensor]]:
    """The server's adapter before round 1 and after each of six rounds; the base model is checked on the way."""
    config = tiny_config(name, method={**TRAINING, **method}, adapter=adapter, rounds=6)
    base = tiny_base(config)
    before = base.fingerprint
    hubs = run_tiny(config, base).hubs
    base._fingerprint = ""
    assert base.fingerprint == before
    assert [hub.step for hub in hubs] == list(range(7))
    return [dict(tree.row(hub.bank, 0)) for hub in hubs]


def moved(states: list[dict[str, Tensor]], ending: str) -> list[set[str]]:
    """Leaves with this ending that changed in rounds 1 to 6."""
    names = [name for name in states[0] if name.endswith(ending)]
    return [{name for name in names if not torch.equal(old[name], new[name])} for old, new in pairwise(states)]


def test_ffa_never_moves_a() -> None:
    states = rounds_of("ffa_lora", {"rank": 2})
    assert moved(states, "lora_A") == [set()] * 6
    assert all(len(names) == 4 for names in moved(states, "lora_B"))
    assert all(moved(states, "head.weight"))


def test_rolora_moves_one_factor_a_round_b_first() -> None:
    states = rounds_of("rolora", {"rank": 2})
    assert [len(names) for names in moved(states, "lora_B")] == [4, 0] * 3
    assert [len(names) for names in moved(states, "lora_A")] == [0, 4] * 3
    assert all(moved(states, "head.weight"))


def cores_moved(states: list[dict[str, Tensor]]) -> list[set[int]]:
    """Places of the adapters' cores (four trains of one length) that moved, in every round."""
    trains = {name.rpartition(".core.")[0] for name in states[0] if ".core." in name}
    lengths = {sum(name.startswith(f"{train}.core.") for name in states[0]) for train in trains if "/head" not in train}
    assert lengths == {3}, "the tiny model's trains"
    by_place = [moved(states, f"core.{place}") for place in range(3)]
    return [{j for j in range(3) if any("/head" not in name for name in by_place[j][number])} for number in range(6)]


def test_fedtt_plus_moves_the_scheduled_cores_only() -> None:
    adapter = {"rank": 2, "bottleneck": 32}
    assert cores_moved(rounds_of("fedtt", adapter))[1:] == [{0, 1, 2}] * 5
    # In round 1 the last core of `up` is zero: nothing before it has a gradient.
    single = rounds_of("fedtt_plus", adapter, trainable="single")
    assert cores_moved(single) == [{2}, {1}, {0}] * 2
    assert all(moved(single, "down.bias")[1:])
    bare = rounds_of("fedtt_plus", adapter, trainable="single", biases=False)
    assert moved(bare, "bias") == [set()] * 6
    assert cores_moved(bare) == [{2}, {1}, {0}] * 2


def test_single_cores_average_exactly_and_the_papers_do_not() -> None:
    """Clients' trains W, averaged, against the train of the averaged cores; from a common start one round earlier."""

    def gap(**method: Any) -> float:
        adapter = {"rank": 2, "bottleneck": 32, "start": "paper"}
        config = tiny_config("fedtt_plus", method={**TRAINING, **method}, adapter=adapter, rounds=3)
        built, start = build_tiny(config), run_tiny(config, rounds=2).hub
        jobs = built.program.plan(start, built.engine.roster(3), Round(3, config.seed))
        replies = built.engine.poll(built.engine.submit(jobs, start.bank))
        row = tree.row(start.bank, 0)
        ends = [{**row, **{key: row[key] + x for key, x in reply.delta.items()}} for reply in replies]
        train = next(name.rpartition(".core.")[0] for name in row if "down.core" in name)

        def matrix(state: Mapping[str, Tensor]) -> Tensor:
            names = sorted(name for name in state if name.startswith(f"{train}.core."))
            return dense([state[name] for name in names], 16)

        mean = {key: torch.stack([end[key] for end in ends]).mean(0) for key in row}
        ideal = torch.stack([matrix(end) for end in ends]).mean(0)
        moved = float((ideal - matrix(row)).norm())
        assert moved > 1e-3
        return float((matrix(mean) - ideal).norm()) / moved

    assert gap(trainable="single") < 1e-12
    assert gap(trainable="paper") > 1e-4


# ---- the schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "cores"), [(BASE, (13_440, 18_240, 13_440)), (LARGE, (23_040,) * 3), (LLAMA, (44_800,) * 3)])
def test_numbers_that_travel_per_round(model: str, cores: tuple[int, ...]) -> None:
    config = ModelConfig(name=model)
    use: Use = "generation" if model == LLAMA else "text"
    spec = tt(meta_base(find_shape(config), config, use, 0 if model == LLAMA else 2), seed=0).spec
    chosen = [set(pick.cores()(spec, Round(number, 0))) for number in (1, 2, 3)]
    assert tuple(sum(leaf.size for leaf in spec.leaves if leaf.name in names and leaf.role == "core") for names in chosen) == cores
