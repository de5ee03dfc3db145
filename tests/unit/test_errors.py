"""The exception tree: messages, exit codes, suggestions."""

from __future__ import annotations

import pytest

from fedquilt import errors

EXIT_CODES = {
    "FedquiltError": 1,
    "ConfigError": 2,
    "CompositionError": 2,
    "ModelError": 2,
    "DataError": 3,
    "QuorumError": 4,
    "StateError": 5,
}


def test_every_class_has_its_exit_code_and_one_root() -> None:
    found = {name: kind.exit_code for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert found == EXIT_CODES
    assert all(issubclass(getattr(errors, name), errors.FedquiltError) for name in EXIT_CODES)
    assert issubclass(errors.CompositionError, errors.ConfigError)


def test_the_drawing_in_the_docstring_is_the_tree() -> None:
    drawing = errors.__doc__ or ""
    for name, code in EXIT_CODES.items():
        line = next(line for line in drawing.splitlines() if name in line)
        assert str(code) in line.split(name)[1]


def test_message_has_what_where_why_and_fix_in_this_order() -> None:
    error = errors.DataError("no column 'text'", where="train.csv", why="the file has: a, b", fix="text = ['a']")
    assert str(error) == "no column 'text'\n  where: train.csv\n  why: the file has: a, b\n  fix: text = ['a']"
    assert (error.what, error.where, error.why, error.fix) == (
        "no column 'text'",
        "train.csv",
        "the file has: a, b",
        "text = ['a']",
    )


@pytest.mark.parametrize("part", ["where", "why", "fix"])
def test_parts_that_are_not_given_leave_no_line(part: str) -> None:
    assert str(errors.StateError("broken", **{part: "x"})) == f"broken\n  {part}: x"
    assert str(errors.StateError("broken")) == "broken"


@pytest.mark.parametrize(
    ("word", "allowed", "sentence"),
    [
        ("sentance", ["label", "sentence"], "did you mean 'sentence'? (allowed: label, sentence)"),
        ("xyz", ["b", "a"], "allowed: a, b"),
        ("xyz", [], "allowed: nothing"),
        ("lr", iter(["lr_", "steps"]), "did you mean 'lr_'? (allowed: lr_, steps)"),
    ],
)
def test_did_you_mean(word: str, allowed: list[str], sentence: str) -> None:
    assert errors.did_you_mean(word, allowed) == sentence
