"""Instruction tasks: which rows, which prompt, which tokens are learnt, and what is left out and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real import real_data

from fedquilt.data import PartitionConfig, RawSplit, RawTask, TaskConfig, encode, load, partition
from fedquilt.data.presets import DOLLY
from fedquilt.data.prompts import render, tokenise
from fedquilt.data.view import make_view
from fedquilt.errors import ConfigError, DataError
from fedquilt.evaluate import Evaluator
from tests.unit.test_data_encode import CLS, SEP, A, B, C, make_tokenizer

ROWS = [
    {"instruction": "a", "context": "", "response": "b c", "category": "qa", "client": 0},
    {"instruction": "a", "context": "c", "response": "b", "category": "chat", "client": 0},
    {"instruction": "b", "context": None, "response": " ", "category": "qa", "client": 1},
    {"instruction": "c", "context": "", "response": "a", "category": "qa", "client": 1},
    {"instruction": "c c", "context": "", "response": "b b", "category": "qa", "client": -1},
    {"instruction": "", "context": "", "response": "b b", "category": "qa", "client": 10},
]


@pytest.fixture
def tokenizer() -> Any:
    made = make_tokenizer()
    made.eos_token = "[SEP]"
    made.chat_template = "{% for m in messages %}a {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}c{% endif %}"
    return made


def task(folder: Path, rows: list[dict[str, Any]] = ROWS, **more: Any) -> RawTask:
    (folder / "all.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    config = TaskConfig(name="t", source="file:all.jsonl", kind="generation", **more)
    return load(config, root=folder, cache=folder, seed=0, columns=("client",))


def raw(rows: list[tuple[str, str, str]], prompt: Any = "alpaca") -> RawTask:
    split = RawSplit(tuple(rows), np.zeros(len(rows)))
    return RawTask("t", "generation", (), ("loss",), split, split, (), prompt)


def test_rows_are_chosen_by_columns_and_evaluation_rows_may_be_named(tmp_path: Path) -> None:
    """A published split: the rows marked -1 are nobody's training rows and are what is evaluated on."""
    found = task(tmp_path, where={"category": "qa"}, eval_where={"client": -1})
    assert found.train.texts == (("a", "", "b c"), ("c", "", "a"))
    assert found.evaluation.texts == (("c c", "", "b b"),)
    assert found.notes == ("train: 1 rows without text dropped", "train: 1 rows without response dropped")
    parts = partition({"t": found}, PartitionConfig(how="column", column="client"), seed=0)
    assert [part.tolist() for part in parts.parts["t"]] == [[0], [1]], "-1 is no client, nor is a row that was dropped"
    assert found.train.labels.tolist() == [0.0, 0.0]


def test_several_values_and_several_columns(tmp_path: Path) -> None:
    found = task(tmp_path, where={"category": ["qa", "chat"], "client": [0]}, eval_share=0.5)
    assert len(found.train) + len(found.evaluation) == 2
    assert TaskConfig(name="t", source="file:a.csv", where={"k": 1.0, "l": ["x", True]}).where == {"k": ("1",), "l": ("x", "true")}


def test_rows_of_a_classification_task_can_be_chosen_too_and_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("text,label,part\na,x,1\nb,y,2\nc,x,2\nd,,2\n", encoding="utf-8")
    config = TaskConfig(name="t", source="file:all.csv", where={"part": 2}, labels=("x", "y"))
    with pytest.raises(DataError, match="row 4"):
        load(config, root=tmp_path, cache=tmp_path, seed=0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"where": {"category": "chatt"}}, "did you mean 'chat'"),
        ({"where": {"categry": "qa"}}, "did you mean 'category'"),
        ({"where": {"category": "chat", "client": 1}}, "no row meets all conditions"),
        ({"eval_where": {"client": [0, 1, -1, 10]}}, "none is left to train on"),
        ({"response": "respnse"}, "did you mean 'response'"),
    ],
)
def test_conditions_that_cannot_be_met(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task(tmp_path, **more)


def test_a_task_without_a_column_of_contexts(tmp_path: Path) -> None:
    found = task(tmp_path, instruction="category", context="", response="instruction", eval_where={"client": 1})
    assert found.train.texts[0] == ("qa", "", "a")


def test_two_ways_to_name_evaluation_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="eval_where and eval_split"):
        TaskConfig(name="t", source="hub:x", eval_where={"a": 1}, eval_split="test")
    with pytest.raises(ConfigError, match="'accuracy' is not for generation"):
        TaskConfig(name="t", source="hub:x", kind="generation", metrics=["accuracy"])


def test_the_eight_tasks_of_dolly() -> None:
    one = TaskConfig(name="o", preset="dolly/open_qa")
    assert (one.kind, one.where, one.eval_split, one.metrics) == (
        "generation",
        {"category": ("open_qa",)},
        None,
        ("loss", "perplexity"),
    )
    assert one.columns == ("instruction", "context", "response")
    assert len(DOLLY) == 8
    narrowed = TaskConfig(name="o", preset="dolly/open_qa", where={"shepherd_client": 3})
    assert narrowed.where == {"category": ("open_qa",), "shepherd_client": ("3",)}


def test_alpaca_s_two_prompts() -> None:
    """Word for word those of the released code of Stanford Alpaca, which FedIT took over."""
    with_input, without = (text for text, _ in render([("I", "X", "r"), ("I", " ", " r ")], "alpaca", None))
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
        "appropriately completes the request.\n\n### Instruction:\nI\n\n### Input:\nX\n\n### Response:\n"
    )
    assert without == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nI\n\n### Response:\n"
    )


def test_the_chat_prompt_is_the_tokenizer_s_own(tokenizer: Any) -> None:
    assert render([("b", "b", "c"), ("b", "", "c")], "chat", tokenizer) == [("a b\n\nb c", "c"), ("a b c", "c")]
    with pytest.raises(DataError, match='prompt = "alpaca"'):
        render([("b", "", "c")], "chat", make_tokenizer())


def test_only_the_response_and_the_end_are_learnt(tokenizer: Any) -> None:
    found = tokenise([("a b", "c a"), ("c", "b")], "alpaca", tokenizer, 20)
    assert found["tokens"].tolist() == [CLS, A, B, C, A, SEP, CLS, C, B, SEP]
    assert found["types"].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert found["offsets"].tolist() == [0, 6, 10]
    assert int(found["truncated"]) == 0
    chat = tokenise([("a b", "c a")], "chat", tokenizer, 20)
    assert chat["tokens"].tolist() == [A, B, C, A, SEP], "a chat template has its special tokens in the text"
    with pytest.raises(DataError, match="no end token"):
        tokenise([("a", "b")], "chat", make_tokenizer(), 20)


def test_cut_and_skipped_examples_are_counted_and_reported(tokenizer: Any, tmp_path: Path) -> None:
    """With room for 6 tokens: whole, response cut (no end token), one response token left, no room, no token in the response."""
    pairs = [("a", "b c"), ("a", "b c b c"), ("a a a a", "b c"), ("a a a a a", "b"), ("a", "")]
    found = tokenise(pairs, "alpaca", tokenizer, 6)
    rows = [found["tokens"][a:b].tolist() for a, b in zip(found["offsets"], found["offsets"][1:], strict=False)]
    assert rows == [[CLS, A, B, C, SEP], [CLS, A, B, C, B, C], [CLS, A, A, A, A, B], [], []]
    kinds = [found["types"][a:b].sum() for a, b in zip(found["offsets"], found["offsets"][1:], strict=False)]
    assert kinds == [3, 4, 1, 0, 0]
    assert int(found["truncated"]) == 2

    made = encode(raw([("a", "", "b"), ("a " * 60, "", "b"), ("c", "", "b " * 60)]), tokenizer, max_length=50, cache=tmp_path)
    assert made.train.skipped == (1,)
    assert [note for note in made.notes if note.startswith("train")] == [
        "train: 1 texts (33.3 %) cut to 50 tokens",
        "train: 1 examples (33.3 %) skipped, their prompts fill 50 tokens",
    ]
    again = encode(raw([("a", "", "b"), ("a " * 60, "", "b"), ("c", "", "b " * 60)]), tokenizer, max_length=50, cache=tmp_path)
    assert (again.train.skipped, again.notes) == (made.train.skipped, made.notes), "from the cache"
    other = encode(raw([("a", "", "b"), ("a", "", "b")], "chat"), tokenizer, max_length=50, cache=tmp_path)
    assert other.train.lengths[0] != made.train.lengths[0]


def test_a_skipped_example_is_nobody_s_and_is_not_evaluated(tokenizer: Any, tmp_path: Path) -> None:
    source = raw([("a", "", "b"), ("a " * 60, "", "b"), ("c", "", "b")])
    made = encode(source, tokenizer, max_length=50, cache=tmp_path)
    parts = partition({"t": source}, PartitionConfig(how="iid", clients=1), seed=0)
    for kind in ("task", "client", "pooled"):
        view = make_view({"t": made}, parts, kind, 0)  # type: ignore[arg-type]
        assert [data.parts[0][1].tolist() for data in view.slots.values()] == [[0, 2]]
    split = Evaluator(None, view, None).split("t")  # type: ignore[arg-type]
    assert sum(len(batch) for batch in split) == 2
    with pytest.raises(DataError, match=r"no response fits .*\n.*max_length"):
        encode(source, tokenizer, max_length=10, cache=tmp_path)


def test_fedit_s_public_split_of_dolly() -> None:
    """Ten clients, and ten test rows of each category that no client has."""
    folder = real_data("dolly15k/all.parquet")
    raws = {}
    for name in DOLLY:
        config = TaskConfig(
            name=name, preset=f"dolly/{name}", source="file:dolly15k/all.parquet", eval_where={"shepherd_client": -1}
        )
        raws[name] = load(config, root=folder, cache=Path(), seed=0, columns=("shepherd_client",))
    parts = partition(raws, PartitionConfig(how="column", column="shepherd_client"), seed=0)
    assert parts.clients == 10
    assert [len(raw.evaluation) for raw in raws.values()] == [10] * 8
    assert sum(len(raw.train) for raw in raws.values()) == sum(map(sum, parts.counts().values()))
    assert 14_900 < sum(map(sum, parts.counts().values())) <= 15_011 - 80
