"""Published tasks whose rows are no (text, label): each becomes one or more rows that are.

A question with candidates becomes a row per candidate with the label ``yes`` or ``no`` (or 1 and 0) and the question as its
``group``: a client holds whole questions, and metrics look at whole questions. ``worth`` is what choosing a candidate would score.
Every form of SuperGLUE reads the layout of the hub and the one of the original files (json lines), told apart by their columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedquilt.data.answers import NO_ANSWER, exact, normal, token_f1
from fedquilt.data.labels import key
from fedquilt.data.tables import Table
from fedquilt.errors import DataError, did_you_mean

Row = dict[str, Any]
NO, YES = "no", "yes"


@dataclass(frozen=True)
class Form:
    """``layouts``: columns of a source -> the rows that one of its rows becomes. ``columns``: what these rows have."""

    layouts: Mapping[tuple[str, ...], Callable[[Row], Iterator[Row]]]
    columns: tuple[str, ...]

    def __call__(self, table: Table) -> Table:
        """The table in this form; rows keep the numbers and the other columns of those that they came from.

        Raises:
            DataError: its columns are of no known layout, or a row cannot be understood.
        """
        for names, make in self.layouts.items():
            if set(names) <= set(table.columns):
                return self._made(table, make)
        first = next(iter(self.layouts))
        missing = next(name for name in first if name not in table.columns)
        raise DataError(f"there is no column {missing!r}", where=table.where, fix=did_you_mean(missing, list(table.columns)))

    def _made(self, table: Table, make: Callable[[Row], Iterator[Row]]) -> Table:
        others = [name for name in table.columns if name not in self.columns]
        columns: dict[str, list[Any]] = {name: [] for name in (*self.columns, *others)}
        numbers = []
        for i in range(len(table)):
            source = {name: values[i] for name, values in table.columns.items()}
            try:
                rows = list(make(source))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                where = f"{table.where}, row {table.number(i)}"
                raise DataError("the row is not what its task publishes", where=where, why=repr(error)) from error
            for row in rows:
                for name in self.columns:
                    columns[name].append(row[name])
                for name in others:
                    columns[name].append(source[name])
                numbers.append(table.number(i))
        return Table(columns, table.where, None, tuple(numbers))


def _object(value: Any) -> Any:
    """Nested data, or the JSON text of it (in formats without nesting)."""
    return json.loads(value) if isinstance(value, str) else value


def _listed(values: Any) -> list[Any]:
    """A list; the letters of a text are none."""
    if isinstance(values, str):
        raise TypeError(f"a text where a list belongs: {values[:40]!r}")
    return list(values)


def _right(label: Any) -> str:
    """``yes`` or ``no``."""
    return {"1": YES, "true": YES, "0": NO, "false": NO}[key(label).lower()]


def _pair(first: str, second: str, label: Any, group: str = "") -> Row:
    return {"first": first, "second": second, "label": label, "group": group}


def _copa(row: Row) -> Iterator[Row]:
    """Roemmele et al. 2011: which of two is the cause, or the effect."""
    asks = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}[row["question"]]
    question, right = f"{row['premise']} {asks}", {"0": 0, "1": 1}[key(row["label"])]
    for number, choice in enumerate((row["choice1"], row["choice2"])):
        yield _pair(question, choice, YES if number == right else NO, f"{question} {row['choice1']} {row['choice2']}")


def _wic(row: Row) -> Iterator[Row]:
    """Pilehvar and Camacho-Collados 2019 (arXiv 1808.09121): the word that is meant stands before the first sentence."""
    yield _pair(f"{row['word']}: {row['sentence1']}", row["sentence2"], row["label"])


def _wsc(text: str, noun: str, pronoun: str, place: int, label: Any) -> Iterator[Row]:
    """Levesque et al. 2012: the pronoun is marked with stars, the noun is the second text. Where the published place is another
    word's, the nearest occurrence is meant."""
    words = text.split(" ")
    size = len(pronoun.split(" "))
    found = [i for i in range(len(words)) if normal(" ".join(words[i : i + size])) == normal(pronoun)]
    if not found:
        raise ValueError(f"the pronoun {pronoun!r} is not in the text")
    place = min(found, key=lambda i: abs(i - place))
    words[place : place + size] = [f"*{' '.join(words[place : place + size])}*"]
    yield _pair(" ".join(words), noun, label)


def _wsc_file(row: Row) -> Iterator[Row]:
    target = _object(row["target"])
    return _wsc(row["text"], target["span1_text"], target["span2_text"], int(target["span2_index"]), row["label"])


def _wsc_hub(row: Row) -> Iterator[Row]:
    return _wsc(row["text"], row["span1_text"], row["span2_text"], int(row["span2_index"]), row["label"])


def _multirc_file(row: Row) -> Iterator[Row]:
    """Khashabi et al. 2018 (NAACL): every answer of a question is right or wrong by itself."""
    passage = _object(row["passage"])
    for question in passage["questions"]:
        for answer in question["answers"]:
            right = answer["isAnswer"] if "isAnswer" in answer else answer["label"]
            yield _multirc(passage["text"], question["question"], answer["text"], right)


def _multirc_hub(row: Row) -> Iterator[Row]:
    yield _multirc(row["paragraph"], row["question"], row["answer"], row["label"])


def _multirc(paragraph: str, question: str, answer: str, right: Any) -> Row:
    plain = " ".join(re.sub(r"<b>Sent \d+: </b>|<[^>]*>", " ", paragraph).split())
    return _pair(plain, f"{question} {answer}", _right(right), f"{question} {plain}")


def _record_file(row: Row) -> Iterator[Row]:
    """Zhang et al. 2018 (arXiv 1810.12885): which entity of the passage stands for ``@placeholder``."""
    passage = _object(row["passage"])
    text = passage["text"]
    entities = [text[entity["start"] : entity["end"] + 1] for entity in passage["entities"]]
    for question in _object(row["qas"]):
        yield from _record(text, question["query"], entities, [answer["text"] for answer in question["answers"]])


def _record_hub(row: Row) -> Iterator[Row]:
    return _record(row["passage"], row["query"], _listed(row["entities"]), _listed(row["answers"]))


def _record(text: str, query: str, entities: Sequence[str], answers: Sequence[str]) -> Iterator[Row]:
    if not answers:
        raise ValueError("there is no label: the row has no answers")
    plain = text.replace("\n@highlight\n", ". ").replace("@highlight", "")
    for entity in dict.fromkeys(entities):
        right = YES if exact(entity, answers) else NO
        pair = _pair(plain, query.replace("@placeholder", entity), right, f"{query} {plain}")
        yield {**pair, "worth": token_f1(entity, answers)}


def _squad(context: str, question: str, answers: Sequence[str]) -> Iterator[Row]:
    """Rajpurkar et al. 2016, 2018: the answer is written; without one: ``unanswerable``."""
    response = answers[0] if answers else NO_ANSWER
    yield {"instruction": question.strip(), "context": context, "response": response, "references": tuple(dict.fromkeys(answers))}


def _squad_hub(row: Row) -> Iterator[Row]:
    return _squad(row["context"], row["question"], _listed(row["answers"]["text"]))


def _squad_flat(row: Row) -> Iterator[Row]:
    return _squad(row["context"], row["question"], _listed(row["answer_text"]))


_PAIR = ("first", "second", "label")
_GROUPED = (*_PAIR, "group")
FORMS = {
    "copa": Form({("premise", "choice1", "choice2", "question", "label"): _copa}, _GROUPED),
    "wic": Form({("word", "sentence1", "sentence2", "label"): _wic}, _PAIR),
    "wsc": Form(
        {("text", "span1_text", "span2_text", "span2_index", "label"): _wsc_hub, ("text", "target", "label"): _wsc_file}, _PAIR
    ),
    "multirc": Form({("paragraph", "question", "answer", "label"): _multirc_hub, ("passage",): _multirc_file}, _GROUPED),
    "record": Form(
        {("passage", "query", "entities", "answers"): _record_hub, ("passage", "qas"): _record_file}, (*_GROUPED, "worth")
    ),
    "squad": Form(
        {("context", "question", "answers"): _squad_hub, ("context", "question", "answer_text"): _squad_flat},
        ("instruction", "context", "response", "references"),
    ),
}
