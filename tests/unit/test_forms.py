"""SuperGLUE and SQuAD as they are published: rows by hand in both layouts, questions that stay whole, metrics of questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real import real_data

from fedquilt.data import Partition, PartitionConfig, RawTask, TaskConfig, load, partition
from fedquilt.data.forms import FORMS
from fedquilt.data.marks import Marks
from fedquilt.data.metrics import questions
from fedquilt.data.tables import Table
from fedquilt.errors import ConfigError, DataError
from fedquilt.runs.config import parse

COPA = {"premise": "It rained.", "choice1": "I sang.", "choice2": "I got wet.", "question": "effect", "label": 1}
MULTIRC = {
    "text": "<b>Sent 1: </b>Sent flowers.<br><b>Sent 12: </b>A  fish swims.",
    "questions": [
        {"question": "Who swims?", "answers": [{"text": "a fish", "isAnswer": True}, {"text": "flowers", "isAnswer": False}]},
        {"question": "What was sent?", "answers": [{"text": "flowers", "label": 1}]},
    ],
}
PASSAGE = "Ann met Bob Roy.\n@highlight\nAnn smiled"
ENTITIES = [{"start": 0, "end": 2}, {"start": 8, "end": 14}, {"start": 28, "end": 30}]
QUERY = "@placeholder was met"


def made(name: str, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    table = FORMS[name](Table({key: [row[key] for row in rows] for key in rows[0]}, "here"))
    return [dict(zip(table.columns, values, strict=True)) for values in zip(*table.columns.values(), strict=True)]


def test_copa_asks_for_the_cause_or_the_effect() -> None:
    one, two = made("copa", COPA)
    assert [(row["first"], row["second"], row["label"]) for row in (one, two)] == [
        ("It rained. What happened as a result?", "I sang.", "no"),
        ("It rained. What happened as a result?", "I got wet.", "yes"),
    ]
    assert one["group"] == two["group"]
    assert made("copa", COPA | {"question": "cause"})[0]["first"] == "It rained. What was the cause of this?"


def test_multirc_has_a_row_per_answer_in_both_layouts() -> None:
    rows = made("multirc", {"passage": json.dumps(MULTIRC), "idx": 0})
    assert [(row["second"], row["label"]) for row in rows] == [
        ("Who swims? a fish", "yes"),
        ("Who swims? flowers", "no"),
        ("What was sent? flowers", "yes"),
    ]
    assert {row["first"] for row in rows} == {"Sent flowers. A fish swims."}
    assert rows[0]["group"] == rows[1]["group"] != rows[2]["group"]
    hub = [
        {"paragraph": MULTIRC["text"], "question": "Who swims?", "answer": answer, "label": label}
        for answer, label in (("a fish", 1), ("flowers", 0))
    ]
    found = made("multirc", *hub)
    assert [{key: row[key] for key in ("first", "second", "label", "group")} for row in found] == [
        {key: row[key] for key in ("first", "second", "label", "group")} for row in rows[:2]
    ]


def test_record_has_a_row_per_entity_in_both_layouts() -> None:
    qas = [{"query": QUERY, "answers": [{"text": "Bob Roy"}, {"text": "Bob"}]}]
    rows = made("record", {"passage": json.dumps({"text": PASSAGE, "entities": ENTITIES}), "qas": json.dumps(qas), "idx": 3})
    assert [(row["second"], row["label"], row["worth"]) for row in rows] == [
        ("Ann was met", "no", 0.0),
        ("Bob Roy was met", "yes", 1.0),
    ]
    assert rows[0]["first"] == "Ann met Bob Roy.. Ann smiled"
    hub = {"passage": PASSAGE, "query": QUERY, "entities": ["Ann", "Bob Roy", "Bob Hope"], "answers": ["bob roy"]}
    found = made("record", hub)
    assert [row["label"] for row in found] == ["no", "yes", "no"]
    assert [row["worth"] for row in found] == [0.0, 1.0, 0.5]
    assert len({row["group"] for row in found}) == 1


def test_wsc_marks_the_pronoun_in_both_layouts() -> None:
    text = "Mark told Pete that he lied ."
    target = {"span1_index": 0, "span1_text": "Mark", "span2_index": 4, "span2_text": "he"}
    for row in ({"text": text, "target": json.dumps(target), "label": 1}, {"text": text, **target, "label": 1}):
        (found,) = made("wsc", row)
        assert (found["first"], found["second"], found["label"]) == ("Mark told Pete that *he* lied .", "Mark", 1)


def test_wsc_marks_the_word_that_is_meant_though_its_place_is_wrong() -> None:
    row = {"text": "It is said that Mark uses it , and it works .", "span1_text": "Mark", "span2_text": "it", "label": 1}
    for place, marked in ((5, "uses *it* , and it"), (0, "*It* is said"), (99, "and *it* works")):
        (found,) = made("wsc", row | {"span2_index": place})
        assert marked in found["first"]


def test_multirc_reads_labels_as_labels_are_read() -> None:
    for label, right in (
        (1, "yes"),
        ("1", "yes"),
        (True, "yes"),
        ("True", "yes"),
        (0, "no"),
        ("0", "no"),
        ("False", "no"),
        (0.0, "no"),
    ):
        (found,) = made("multirc", {"paragraph": "a", "question": "b", "answer": "c", "label": label})
        assert found["label"] == right


def test_original_files_are_read_as_they_are(tmp_path: Path) -> None:
    """Json lines with nested objects."""
    wsc = {"text": "Mark said he lied .", "target": {"span1_index": 0, "span1_text": "Mark", "span2_index": 2, "span2_text": "he"}}
    answers, passage = [{"text": "Bob Roy"}], {"text": PASSAGE, "entities": ENTITIES}
    rows = {
        "wsc": [wsc | {"label": label, "idx": i} for i, label in enumerate([True, False] * 5)],
        "multirc": [{"idx": i, "passage": MULTIRC | {"text": f"{i} {MULTIRC['text']}"}} for i in range(6)],
        "record": [{"passage": passage, "qas": [{"query": f"{i} {QUERY}", "answers": answers}]} for i in range(10)],
    }  # fmt: skip
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        config = TaskConfig(name=name, preset=f"superglue/{name}", source=f"file:{name}.jsonl")
        task = load(config, root=tmp_path, cache=tmp_path, seed=0)
        assert len(task.train) + len(task.evaluation) == {"wsc": 10, "multirc": 18, "record": 20}[name]


def test_wic_names_the_word() -> None:
    (found,) = made("wic", {"word": "bank", "sentence1": "A bank.", "sentence2": "Banks lend.", "label": 0, "start1": 2})
    assert (found["first"], found["second"], found["label"]) == ("bank: A bank.", "Banks lend.", 0)


def test_squad_keeps_all_right_answers_in_both_layouts() -> None:
    row = {"context": "Rome is old.", "question": " What is old? ", "title": "Rome"}
    for answers in (
        {"answer_text": ["Rome", "Rome", "It"]},
        {"answers": {"text": ["Rome", "Rome", "It"], "answer_start": [0, 0, 0]}},
    ):
        (found,) = made("squad", row | answers)
        wanted = {"instruction": "What is old?", "context": "Rome is old.", "response": "Rome", "references": ("Rome", "It")}
        assert {key: found[key] for key in wanted} == wanted
        assert found["title"] == "Rome"  # to partition by
    (none,) = made("squad", row | {"answer_text": []})
    assert (none["response"], none["references"]) == ("unanswerable", ())


@pytest.mark.parametrize("name", sorted(FORMS))
def test_another_table_is_named(name: str) -> None:
    with pytest.raises(DataError, match="there is no column"):
        FORMS[name](Table({"sentence": ["x"], "label": [0]}, "here.csv"))


def test_an_unknown_form_is_named_with_its_task() -> None:
    with pytest.raises(ConfigError, match="no form 'coppa'") as caught:
        TaskConfig(name="t", source="file:x.csv", form="coppa")
    assert "'t'" in caught.value.where
    assert "copa" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "row"),
    [("copa", COPA | {"question": "why"}), ("multirc", {"passage": "{"}), ("record", {"passage": "{}", "qas": "[]"}),
     ("wsc", {"text": "a", "target": "[]", "label": 0}), ("squad", {"context": "a", "question": "b", "answers": None}),
     ("copa", COPA | {"label": -1}),  # test rows have hidden labels
     ("multirc", {"paragraph": "a", "question": "b", "answer": "c", "label": -1}),
     ("record", {"passage": "a", "query": "@placeholder", "entities": ["a"], "answers": []}),
     ("record", {"passage": "a", "query": "@placeholder", "entities": "Bob", "answers": ["Bob"]}),
     ("squad", {"context": "Paris", "question": "b", "answer_text": "Paris"}),
     ("wsc", {"text": "no such word", "span1_text": "x", "span2_text": "he", "span2_index": 1, "label": 0})],
)  # fmt: skip
def test_a_broken_row_is_named(name: str, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="row is not what its task publishes") as caught:
        FORMS[name](Table({key: [value] for key, value in row.items()}, "here", rows=(7,)))
    assert caught.value.where == "here, row 7"


# -- questions -----------------------------------------------------------------------------------------------------------

A, B, C = 0, 1, 2
CASES = [
    # groups, margins, labels, worth, choice, choice_f1, exact
    ([A, A], [1, 0], [1, 0], [1, 0], 1, 1, 1),  # 0 is not larger than 0: told wrong, which it is; 1: told right
    ([A, A], [1, -1], [1, 0], [1, 0], 1, 1, 1),
    ([A, A], [-1, 1], [1, 0], [1, 0], 0, 0, 0),
    ([A, A], [-2, -1], [0, 1], [0, 1], 1, 1, 0),
    ([A, A], [2, 1], [1, 0], [1, 0.5], 1, 1, 0),
    ([A, A], [1, 2], [1, 0], [1, 0.5], 0, 0.5, 0),
    ([A, A], [0, 0], [1, 0], [1, 0], 1, 1, 0),  # the first of equals
    ([A, A], [0, 0], [0, 1], [0, 1], 0, 0, 0),
    ([A, B, A, B], [1, -1, -1, 1], [1, 0, 0, 1], [1, 0, 0, 1], 1, 1, 1),
    ([A, B, A, B], [1, 1, -1, -1], [1, 0, 0, 1], [1, 0, 0, 1], 0.5, 0.5, 0.5),
    ([B, A, B, A], [1, 1, -1, -1], [1, 0, 0, 1], [1, 0, 0, 1], 0.5, 0.5, 0.5),
    ([A, A, A], [1, 1, -1], [1, 1, 0], [1, 1, 0], 1, 1, 1),  # two right answers
    ([A, A, A], [3, 2, 1], [1, 1, 1], [1, 1, 1], 1, 1, 1),
    ([A, A, A], [3, -2, 1], [1, 1, 1], [1, 1, 1], 1, 1, 0),
    ([A, A, A], [-3, -2, -1], [0, 0, 0], [0, 0, 0.4], 0, 0.4, 1),  # no right answer
    ([A], [-5], [1], [1], 1, 1, 0),  # a candidate by itself is chosen
    ([A], [-5], [0], [0], 0, 0, 1),
    ([A, B, C], [1, 1, 1], [1, 0, 1], [1, 0.3, 1], 2 / 3, 2.3 / 3, 2 / 3),
    ([C, B, A, A], [1, 1, 1, 2], [1, 1, 0, 1], [1, 1, 0, 1], 1, 1, 2 / 3),
    ([A, A, B, B, C, C], [1, 2, 2, 1, -1, -2], [0, 1, 0, 1, 1, 0], [0, 1, 0.5, 1, 1, 0], 2 / 3, 2.5 / 3, 0),
    ([A, A, A, A], [0.1, 0.2, 0.3, 0.4], [0, 0, 0, 1], [0, 0, 0, 1], 1, 1, 0),
    ([A, A, A, A], [-0.1, -0.2, -0.3, 0.4], [0, 0, 0, 1], [0, 0, 0, 1], 1, 1, 1),
]


@pytest.mark.parametrize(("groups", "margins", "labels", "worth", "choice", "choice_f1", "exact"), CASES)
def test_by_hand(
    groups: list[int], margins: list[float], labels: list[int], worth: list[float], choice: float, choice_f1: float, exact: float
) -> None:
    marks = Marks(np.array(groups), np.array(worth, float))
    for name, expected in (("choice", choice), ("choice_f1", choice_f1), ("exact", exact)):
        assert questions(name, np.array(margins, float), np.array(labels, float), marks) == pytest.approx(expected), name


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_units_are_the_questions(groups: list[int]) -> None:
    units = Marks(np.array(groups)).units(len(groups))
    assert sorted(row for unit in units for row in unit.tolist()) == list(range(len(groups)))
    assert [unit[0] for unit in units] == sorted(groups.index(group) for group in set(groups))
    assert all(len({groups[row] for row in unit}) == 1 and sorted(unit) == unit.tolist() for unit in units)
    assert len(units) == len(set(groups))


# -- whole tasks ---------------------------------------------------------------------------------------------------------


def copas(folder: Path, rows: int = 20, **more: Any) -> RawTask:
    lines = [COPA | {"premise": f"It rained {i} times.", "label": i % 2} for i in range(rows)]
    (folder / "copa.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return load(
        TaskConfig(name="copa", preset="superglue/copa", source="file:copa.jsonl", **more), root=folder, cache=folder, seed=0
    )


def test_questions_are_never_parted(tmp_path: Path) -> None:
    """Neither by the hold-out nor by a subset nor by a partition."""
    task = copas(tmp_path, max_train=31)
    assert (len(task.train), len(task.evaluation)) == (30, 4)  # 18 questions are left, 15 fit
    assert "evaluation: 2 of 20 training questions held out (seed 0)" in task.notes
    assert "train: a random 15 of 18 questions (seed 0)" in task.notes
    for how in ("iid", "dirichlet-task", "dirichlet-label", "shards"):
        parts = partition({"copa": task}, PartitionConfig(how=how, clients=4), seed=1).parts["copa"]
        assert sorted(np.concatenate(parts).tolist()) == list(range(30))
        held = [set(task.train.marks.groups[part].tolist()) for part in parts]  # type: ignore[index]
        assert sum(map(len, held)) == 15
    texts = {text[0] for text in task.train.texts} & {text[0] for text in task.evaluation.texts}
    assert not texts


def test_columns_files_and_places_may_not_part_questions(tmp_path: Path) -> None:
    rows = [
        {"text": f"{q} {c}", "label": "yes" if c == q % 3 else "no", "of": f"q{q}", "who": c, "fold": c}
        for q in range(9)
        for c in range(3)
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given: dict[str, Any] = {
        "name": "own",
        "source": "file:own.jsonl",
        "labels": ["no", "yes"],
        "metrics": ["choice"],
        "group": "of",
    }
    task = load(TaskConfig(**given), root=tmp_path, cache=tmp_path, seed=0, columns=("who", "of"))
    with pytest.raises(DataError, match="parts questions of task 'own'"):
        partition({"own": task}, PartitionConfig(how="column", column="who"), seed=0)
    whole = partition({"own": task}, PartitionConfig(how="column", column="of"), seed=0)
    assert {len(part) for part in whole.parts["own"]} == {3}
    halves = Partition({"own": (np.arange(0, len(task.train), 2), np.arange(1, len(task.train), 2))}, "file")
    halves.save(tmp_path / "halves.json")
    with pytest.raises(DataError, match="'file' parts questions"):
        partition({"own": task}, PartitionConfig(how="file", file=str(tmp_path / "halves.json")), seed=0)
    with pytest.raises(DataError, match="eval_where parts a question"):
        load(TaskConfig(**given, eval_where={"fold": 2}), root=tmp_path, cache=tmp_path, seed=0)
    raw = {"rounds": 1, "method": {"name": "fltac", "lr": 0.1, "steps": 1}, "tasks": [given], "model": {"name": "tiny:bert"}}
    with pytest.raises(ConfigError, match="part questions"):
        parse(raw | {"partition": {"slots_per_task": 2}}, tmp_path)


def test_own_candidates_need_a_column_of_questions(tmp_path: Path) -> None:
    rows = [{"text": f"{q} {c}", "label": "yes" if c == q % 3 else "no", "of": f"q{q}"} for q in range(10) for c in range(3)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = {"name": "own", "source": "file:own.jsonl", "labels": ["no", "yes"], "metrics": ["choice"]}
    task = load(TaskConfig(**given, group="of"), root=tmp_path, cache=tmp_path, seed=0)
    assert len(task.evaluation) == 3
    with pytest.raises(ConfigError, match="group"):
        TaskConfig(**given)
    with pytest.raises(ConfigError, match="ReCoRD"):
        TaskConfig(**given | {"metrics": ["choice_f1"]}, group="of")
    for labels in (["a", "b", "c"], None):
        with pytest.raises(ConfigError, match="two labels"):
            TaskConfig(**given | {"labels": labels}, group="of")
    with pytest.raises(ConfigError, match="the second label means right"):
        TaskConfig(**given | {"labels": ["yes", "no"]}, group="of")
    with pytest.raises(DataError, match="column 'off'"):
        load(TaskConfig(**given, group="off"), root=tmp_path, cache=tmp_path, seed=0)
    del rows[4]["of"]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match="row 5"):
        load(TaskConfig(**given, group="of"), root=tmp_path, cache=tmp_path, seed=0)


@pytest.mark.parametrize(
    ("name", "file", "train", "evaluation", "questions_"),
    [
        ("boolq", "{split}", 9427, 3270, None),
        ("cb", "{split}", 250, 56, None),
        ("copa", "{split}", 800, 200, 100),
        ("multirc", "train", None, None, None),
        ("rte", "{split}", 2490, 277, None),
        ("wic", "{split}", 5428, 638, None),
        ("wsc", "{split}", 554, 104, None),
    ],
)
def test_superglue_as_published(
    tmp_path: Path, name: str, file: str, train: int | None, evaluation: int | None, questions_: int | None
) -> None:
    folder = real_data(f"superglue_{name}/train.parquet")
    config = TaskConfig(name=name, preset=f"superglue/{name}", source=f"file:{folder}/superglue_{name}/{file}.parquet")
    task = load(config, root=tmp_path, cache=tmp_path, seed=0)
    if train is not None:
        assert (len(task.train), len(task.evaluation)) == (train, evaluation)
    else:
        assert len(task.train) + len(task.evaluation) == 27243  # the published number of its training answers
        assert len(task.train.marks.units(len(task.train))) + len(task.evaluation.marks.units(len(task.evaluation))) == 5131
    if questions_ is not None:
        units = task.evaluation.marks.units(len(task.evaluation))
        assert [task.evaluation.labels[unit].sum() for unit in units] == [1.0] * questions_


def test_record_as_published(tmp_path: Path) -> None:
    folder = real_data("superglue_record_fewglue32/train.parquet")
    config = TaskConfig(name="r", preset="superglue/record", source=f"file:{folder}/superglue_record_fewglue32/train.parquet")
    task = load(config, root=tmp_path, cache=tmp_path, seed=0)
    for split in (task.train, task.evaluation):
        for unit in split.marks.units(len(split)):
            assert split.labels[unit].max() == 1.0  # every question has a right entity
            assert split.marks.worth is not None
            assert split.marks.worth[unit][split.labels[unit] == 1] == pytest.approx(1.0)
    assert all("@placeholder" not in second and "@highlight" not in first for first, second in task.train.texts)


@pytest.mark.parametrize(("file", "rows", "none"), [("squad_xquad_en/test", 1190, 0), ("squad2_dev_part/dev", 1407, 702)])
def test_squad_as_published(tmp_path: Path, file: str, rows: int, none: int) -> None:
    folder = real_data(f"{file}.parquet")
    config = TaskConfig(name="s", preset="squad2", source=f"file:{folder}/{file}.parquet")
    task = load(config, root=tmp_path, cache=tmp_path, seed=0)
    references = [*task.train.marks.references, *task.evaluation.marks.references]
    assert len(references) == rows
    assert sum(not found for found in references) == none
