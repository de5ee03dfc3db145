"""Choosing an adapter without being told the task: prototypes, the choice, and what the evaluation says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from door import fedquilt, write_config
from safetensors.torch import load_file

from fedquilt import tree
from fedquilt.data.encode import Task
from fedquilt.data.marks import Marks
from fedquilt.data.metrics import metric
from fedquilt.data.rouge import rouge_l
from fedquilt.engine.batches import assemble
from fedquilt.evaluate import matched_rows
from fedquilt.models.fingerprint import Fingerprint
from fedquilt.runs.router import Router, ask, evaluate, router_of
from fedquilt.testing import Outcome, run_tiny, tiny_config, tiny_tasks
from fedquilt.types import Slot

METHOD = {"lr": 5e-2, "steps": 3, "batch": 4, "features": "fingerprint"}


def outcome(kind: Any = "classification", **more: Any) -> Outcome:
    return run_tiny(tiny_config("fltac", kind, method={**METHOD, **more}))


def router(found: Outcome) -> Router:
    made = router_of(found.built, found.hub)
    assert made is not None
    return made


def test_the_nearest_prototype() -> None:
    made = Router(torch.tensor([1, 3, 4]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]))
    assert made(torch.tensor([[0.4, 0.0], [0.6, 0.0], [0.0, 1.4], [9.0, 1.0], [0.0, 99.0]])).tolist() == [1, 3, 1, 3, 4]


def test_a_prototype_is_the_mean_fingerprint_of_its_row_s_slots() -> None:
    found = outcome()
    made, memory = router(found), found.hub.memory
    slots = [Slot(*pair) for pair in memory["history/slots"].tolist()]
    for row, prototype in zip(made.rows.tolist(), made.prototypes, strict=True):
        own = [memory["history/fingerprint"][i] for i, slot in enumerate(slots) if found.hub.table[slot] == row]
        torch.testing.assert_close(prototype, torch.stack(own).mean(0))
    assert made.rows.tolist() == sorted(set(found.hub.table.values()))


@pytest.mark.parametrize("features", ["b_factors", "history", "fisher"])
def test_what_the_server_has_not_been_sent_it_asks_for(features: str) -> None:
    """The same prototypes as from first uploads, if the slots are in the same rows."""
    sent, other = outcome(), outcome(features=features)
    assert router_of(other.built, other.hub) is None, "nothing, or nothing that an input could be compared with"
    asked = ask(other.built, replace(other.hub, table=sent.hub.table))
    made = router(sent)
    assert torch.equal(asked.rows, made.rows)
    torch.testing.assert_close(asked.prototypes, made.prototypes)


def test_told_is_the_evaluator_s_own_figure_and_routed_is_example_by_example() -> None:
    found = outcome()
    made, look = router(found), Fingerprint(found.built.base)
    record = evaluate(found.built, found.hub, made)
    usual = found.built.evaluator(found.hub, found.built.engine, True)["tasks"]
    assert set(record) == {name for name, entry in usual.items() if entry["row"] is not None} != set()
    moved = 0
    for name, entry in record.items():
        assert (entry["row"], entry["told"]) == (usual[name]["row"], usual[name]["metrics"])
        task, answers, rows = found.built.view.tasks[name], [], []
        for i in range(len(task.evaluation)):
            one = assemble([(task, 0, i)], 0, split="evaluation")
            rows.append(int(made(look(one))))
            logits = found.built.network.logits(tree.rows(found.hub.bank, rows[-1:]), one)
            answers.append(float(logits[0, : task.classes].argmax()))
        labels = torch.as_tensor(task.evaluation.labels).double().numpy()
        assert entry["routed"] == {"accuracy": metric("accuracy")(torch.tensor(answers).double().numpy(), labels)}
        assert entry["right"] == pytest.approx(sum(row == entry["row"] for row in rows) / len(rows))
        moved += sum(row != entry["row"] for row in rows)
    assert moved, "words are random here: some examples go astray, or the comparison says nothing"


def hash_of(task: Task, i: int) -> float:
    """Equal for equal texts: which of them is chosen must not matter."""
    one = assemble([(task, 0, i)], 0, split="evaluation")
    return float((one.tokens * torch.arange(1, len(one.tokens) + 1)).sum()) / 100


def test_the_candidates_of_a_question_go_together() -> None:
    """Where the mean of their looks goes; a question counts once, however many candidates it has."""
    made = Router(torch.tensor([1, 3]), torch.tensor([[0.0], [1.0]]))
    looks = torch.tensor([[0.9], [0.0], [0.2], [0.8], [0.6]])
    assert made(looks).tolist() == [3, 1, 1, 3, 3]
    assert made.together(looks, [np.array([0, 1, 2]), np.array([3]), np.array([4])]).tolist() == [1, 1, 1, 3, 3]

    found = outcome()
    made, (name, own) = router(found), next(iter(matched_rows(found.hub.table, found.built.view.truth(found.hub.step)).items()))
    task = found.built.view.tasks[name]
    n = len(task.evaluation)
    groups, worth = np.array([0] * (n - 2) + [1, 1]), np.array([hash_of(task, i) for i in range(n)])
    asking = replace(task, metrics=("choice_f1",), marks=Marks(groups, worth))
    view = replace(found.built.view, tasks={**found.built.view.tasks, name: asking})
    built = replace(found.built, view=view, evaluator=replace(found.built.evaluator, view=view, _batches={}))
    look = Fingerprint(built.base)
    looks = torch.cat([look(assemble([(task, 0, i)], 0, split="evaluation")) for i in range(n)]).double()
    chosen = [int(made(looks[torch.from_numpy(groups == group)].mean(0, keepdim=True))) for group in (0, 1)]
    won = []
    for group in (0, 1):
        members = np.flatnonzero(groups == group).tolist()
        batch = assemble([(task, 0, i) for i in members], 0, split="evaluation")
        logits = built.network.logits(tree.rows(found.hub.bank, [chosen[group]]), batch)
        won.append(worth[members[int((logits[:, task.classes - 1] - logits[:, 0]).argmax())]])
    entry = evaluate(built, found.hub, made)[name]
    assert entry["routed"] == {"choice_f1": pytest.approx(sum(won) / 2)}
    assert entry["right"] == sum(row == own for row in chosen) / 2


def test_a_language_model_s_input_is_routed_by_its_prompt_alone() -> None:
    task = tiny_tasks(0, "generation")["colour"]
    batch = assemble([(task, 0, i) for i in range(4)], 0)
    asked = batch.prompts()
    begins = torch.cumsum(batch.lengths, 0) - batch.lengths
    for i, begin in enumerate(begins.tolist()):
        answer = int((batch.types[begin : begin + int(batch.lengths[i])] == 0).sum())
        assert answer == int(asked.lengths[i]) < int(batch.lengths[i])
    assert int(asked.types.max()) == 0
    assert torch.equal(asked.tokens, batch.tokens[batch.types == 0])
    found = outcome("generation")
    record = evaluate(found.built, found.hub, router(found))
    assert all(set(entry["routed"]) == set(entry["told"]) == {"loss", "perplexity"} for entry in record.values())


def test_what_a_language_model_writes_is_routed_too() -> None:
    """By the adapter that each prompt finds, against an evaluation of that adapter alone."""
    found = run_tiny(tiny_config("fltac", "generation", method=METHOD, evaluation={"generate": 4, "max_new": 6}))
    built, made, evaluator = found.built, router(found), found.built.evaluator
    texts = evaluator.texts
    assert texts is not None
    moved = 0
    for name, entry in evaluate(built, found.hub, made).items():
        asked = evaluator.prompts(built.view.tasks[name], texts.rows)
        rows = made(Fingerprint(built.base)(asked.batch)).tolist()
        for way, chosen in (("routed", rows), ("told", [entry["row"]] * len(rows))):
            one = [
                texts.answers(tree.rows(found.hub.bank, [row]), part)
                for row, part in zip(chosen, asked.batch.parts(1), strict=True)
            ]
            assert entry[way]["rouge_l"] == pytest.approx(sum(rouge_l(answer, right) for [(answer, right)] in one) / len(rows))
        moved += sum(row != entry["row"] for row in rows)
    assert moved, "all prompts found their task's row: the comparison says nothing"


@pytest.mark.parametrize("features", ["fingerprint", "fisher"])
def test_the_command_and_what_is_exported(features: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, "fltac", method={**METHOD, "features": features})
    assert fedquilt("run", config, "--dir", tmp_path / "run").code == 0
    said = fedquilt("route", tmp_path / "run", "--json")
    assert said.code == 0, said.err
    record = json.loads(said.out)
    assert record == json.loads((tmp_path / "run" / "router.json").read_text(encoding="utf-8"))
    assert "told the task" in fedquilt("route", tmp_path / "run").out
    if features == "fisher":
        assert fedquilt("export", tmp_path / "run").code == 0
        assert not (tmp_path / "run" / "adapters" / "router.safetensors").exists(), "it may be of other rows"
        assert fedquilt("route", tmp_path / "run").code == 0
    kept = load_file(tmp_path / "run" / "adapters" / "router.safetensors")
    assert kept["rows"].tolist() == record["rows"]
    folders = {path.name for path in (tmp_path / "run" / "adapters").iterdir() if path.is_dir()}
    assert folders == {f"row-{row:02d}" for row in record["rows"]}
    assert kept["prototypes"].shape == (len(folders), 16)


def test_what_cannot_be_routed_is_refused(tmp_path: Path) -> None:
    assert fedquilt("run", write_config(tmp_path / "a", "fedit"), "--dir", tmp_path / "a").code == 0
    assert "one adapter for all" in fedquilt("route", tmp_path / "a").complaint(2)
    assert fedquilt("run", write_config(tmp_path / "d", "local_only"), "--dir", tmp_path / "d").code == 0
    assert "whole adapters" in fedquilt("route", tmp_path / "d").complaint(2)
    whole = write_config(tmp_path / "c", "fltac", method={**METHOD, "adapter": "full"}, adapter={"rank": None})
    assert fedquilt("run", whole, "--dir", tmp_path / "c").code == 0
    assert "whole model" in fedquilt("route", tmp_path / "c").complaint(2)
    private = write_config(tmp_path / "b", "fltac", method=METHOD, adapter={"head": "private"})
    assert fedquilt("run", private, "--dir", tmp_path / "b").code == 0
    assert "whole adapters" in fedquilt("route", tmp_path / "b").complaint(2)
    assert not (tmp_path / "b" / "adapters" / "router.safetensors").exists()
