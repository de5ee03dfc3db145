"""Held-out scores of language models, and which way they are better: evaluation, configuration, reports."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_run import METRICS, Fake, write_run

from fedquilt import tree
from fedquilt.data.rouge import rouge_l
from fedquilt.directions import LOWER_IS_BETTER, direction
from fedquilt.engine.batches import assemble
from fedquilt.errors import ConfigError
from fedquilt.models.scoring import TextScores
from fedquilt.report.build import report
from fedquilt.report.compare import compare
from fedquilt.testing import build_tiny, run_tiny, tiny_base, tiny_config
from fedquilt.types import Slot

TRAINING = {"lr": 3e-2, "steps": 4, "batch": 4}


def test_the_record_of_an_evaluation_by_hand() -> None:
    """Loss: all response tokens of the split alike, with the slot's own adapter; perplexity: its exponential."""
    outcome = run_tiny(tiny_config("fltac", "generation", method=TRAINING))
    built = outcome.built
    record = built.evaluator(outcome.hub, built.engine, built.bank_is_complete)
    for entry in record["slots"]:
        slot, task = Slot(entry["client"], entry["slot"]), built.tasks[entry["task"]]
        state = tree.row(outcome.hub.bank, outcome.hub.row_of(slot))
        asked = built.evaluator.prompts(task, len(task.evaluation))
        assert asked is not None
        batch = asked.batch
        logits = built.network.logits({key: x[None] for key, x in state.items()}, batch)
        rows = zip(batch.tokens.split(batch.lengths.tolist()), batch.types.split(batch.lengths.tolist()), strict=True)
        losses = [
            -torch.log_softmax(logits[i, j], 0)[token]
            for i, (ids, types) in enumerate(rows)
            for j, token in enumerate(ids[types == 1])
        ]
        assert entry["metrics"]["loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-12)
        assert entry["metrics"]["perplexity"] == pytest.approx(math.exp(entry["metrics"]["loss"]))
        assert list(entry["metrics"]) == ["loss", "perplexity"]
    assert record["mean"] == pytest.approx(np.mean([entry["metrics"]["loss"] for entry in record["slots"]]))


def test_training_lowers_the_loss() -> None:
    outcome = run_tiny(tiny_config("centralised_lora", "generation", rounds=6, method=TRAINING))
    built = outcome.built
    task = next(iter(built.tasks.values()))
    slot = next(slot for slot, names in built.view.truth(1).items() if names == (task.name,))
    batch = assemble([(task, 0, i) for i in range(len(task.train))], 0)
    state = built.engine.state_of(slot, tree.row(outcome.hub.bank, outcome.hub.row_of(slot)))
    before, after = (
        built.evaluator.texts({key: x[None] for key, x in values.items()}, [batch], None)["loss"]  # type: ignore[misc]
        for values in (built.adapter.init, state)
    )
    assert after < before - 0.1


class Parrot:
    """Writes what it was given; its tokens are letters."""

    def generate(self, stack: Any, batch: Any, max_new: int) -> list[list[int]]:
        rows = zip(batch.tokens.split(batch.lengths.tolist()), batch.types.split(batch.lengths.tolist()), strict=True)
        return [ids[types == 0].tolist()[:max_new] for ids, types in rows]

    def token_losses(self, stack: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((len(batch),), 6.0), torch.full((len(batch),), 4)

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(chr(97 + token % 26) for token in ids)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_rouge_is_the_mean_over_rows_spread_evenly_over_the_split(rows: int) -> None:
    built = run_tiny(tiny_config("fedit", "generation", method=TRAINING)).built
    task = built.tasks["colour"]
    scores = TextScores(Parrot(), Parrot(), rows=rows, max_new=5)  # type: ignore[arg-type]
    prompts = built.evaluator.prompts(task, rows)
    assert prompts is not None
    assert len(prompts.batch) == min(rows, len(task.evaluation))
    found = scores({}, built.evaluator.split("colour"), prompts)
    pairs = scores.answers({}, prompts.batch)
    assert found["rouge_l"] == pytest.approx(sum(rouge_l(*pair) for pair in pairs) / len(pairs))
    assert (found["loss"], found["perplexity"]) == (1.5, pytest.approx(math.exp(1.5)))
    assert built.evaluator.prompts(task, 0) is None


def test_a_run_that_generates_reports_rouge() -> None:
    config = tiny_config("fedit", "generation", method=TRAINING, evaluation={"generate": 3, "max_new": 4})
    outcome = run_tiny(config)
    record = outcome.built.evaluator(outcome.hub, outcome.built.engine, outcome.built.bank_is_complete)
    assert list(record["slots"][0]["metrics"]) == ["loss", "perplexity", "rouge_l"]


def test_directions() -> None:
    assert direction(["loss", "perplexity", ""]) == "lower is better"
    assert direction(["accuracy"]) == "higher is better"
    assert direction(["loss", "rouge_l"]) == "lower is better for loss, higher for rouge_l"
    assert direction([]) == ""
    assert {"accuracy", "f1", "matthews", "pearson", "spearman", "rouge_l"}.isdisjoint(LOWER_IS_BETTER)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"tasks": [{"name": "a", "kind": "generation"}, {"name": "b"}]}, "generation and classification tasks in one run"),
        (
            {
                "tasks": [{"name": "a", "kind": "generation"}, {"name": "b", "kind": "generation", "metrics": ["rouge_l"]}],
                "evaluation": {"generate": 1},
            },
            r"first metrics go different ways\n.*\n.*lower is better for loss, higher for rouge_l",
        ),
        ({"tasks": [{"name": "a", "kind": "generation", "metrics": ["rouge_l"]}]}, r"evaluation\.generate = 20"),
    ],
)
def test_what_cannot_be_averaged_or_measured_is_refused(tables: dict[str, Any], message: str) -> None:
    tasks = [{"source": "file:x.csv", **task} for task in tables.pop("tasks")]
    with pytest.raises(ConfigError, match=message):
        tiny_config("fedit", method={"lr": 0.1, "steps": 1}, **tables, tasks=tasks)


@pytest.mark.parametrize(("metric", "better"), [("loss", "lower is better"), ("accuracy", "higher is better")])
def test_pages_say_which_way_is_better(metric: str, better: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for task in Fake().tasks:
        monkeypatch.setitem(METRICS, task, (metric,))
    run = write_run(tmp_path / "run", Fake())
    other = "higher is better" if better.startswith("lower") else "lower is better"
    for page in (report(run), compare([run], tmp_path / "out")):
        text = page.read_text(encoding="utf-8").lower()
        assert better in text
        assert other not in text


def test_what_is_written_needs_positions_too() -> None:
    """GPT-2's are learnt and end; Llama's are computed."""

    def built(model: str, written: int) -> object:
        evaluation = {"generate": 1, "max_new": written}
        return build_tiny(
            tiny_config("fedit", "generation", method=TRAINING, model={"name": f"tiny:{model}"}, evaluation=evaluation)
        )

    positions = tiny_base(tiny_config("fedit", "generation", method=TRAINING, model={"name": "tiny:gpt2"})).model.config.n_positions
    room = positions - tiny_config("fedit", method=TRAINING).model.max_length
    built("gpt2", room)
    built("llama", 5000)
    with pytest.raises(ConfigError, match=f"and {room + 1} that are written are more than {positions} positions"):
        built("gpt2", room + 1)


def test_a_prefix_takes_positions_from_what_is_written() -> None:
    """Words begin behind it: it counts though the model reads no tokens of it."""

    def built(model: str, tokens: int) -> object:
        tables = {"model": {"name": f"tiny:{model}", "max_length": 200}, "evaluation": {"generate": 1, "max_new": 90}}
        return build_tiny(
            tiny_config("fedit", "generation", method=TRAINING, adapter={"family": "prefix", "tokens": tokens}, **tables)
        )

    built("gpt2", 10)
    built("llama", 30)
    with pytest.raises(ConfigError, match="200 tokens, 11 virtual ones and 90 that are written are more than 300 positions"):
        built("gpt2", 11)
