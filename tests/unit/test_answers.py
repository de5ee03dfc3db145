"""SQuAD's and ReCoRD's comparison of answers: cases by hand, and a second implementation."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.data.answers import NO_ANSWER, exact, token_f1

CASES = [
    # answer, references, exact, F1
    ("Denver Broncos", ["Denver Broncos"], 1, 1),
    ("denver broncos", ["Denver Broncos"], 1, 1),
    ("the Denver Broncos", ["Denver Broncos"], 1, 1),
    ("Denver Broncos.", ["The Denver Broncos"], 1, 1),
    ("Broncos", ["Denver Broncos"], 0, 2 / 3),
    ("Denver", ["Carolina Panthers"], 0, 0),
    ("Denver Broncos won", ["Denver Broncos"], 0, 4 / 5),
    ("  Denver   Broncos ", ["Denver Broncos"], 1, 1),
    ("Santa Clara, California", ["Santa Clara", "Santa Clara, California", "Levi's Stadium"], 1, 1),
    ("Levis Stadium", ["Levi's Stadium"], 1, 1),
    ("gold", ["gold", "gold-themed"], 1, 1),
    ("gold themed", ["gold-themed"], 0, 0),
    ("in 1996", ["1996", "in the year 1996"], 0, 4 / 5),
    ("a", ["b"], 0, 0),
    ("a", ["an"], 1, 1),
    ("", ["something"], 0, 0),
    ("", [], 1, 1),
    ("something", [], 0, 0),
    (NO_ANSWER, [], 1, 1),
    ("Unanswerable.", [], 1, 1),
    (NO_ANSWER, ["France"], 0, 0),
    ("New York New York", ["New York"], 0, 2 * 2 / (4 + 2)),
    ("New York", ["New York New York"], 0, 2 * 2 / (4 + 2)),
    ("north and south", ["south and north"], 0, 1),
    ("10th and 11th centuries", ["in the 10th and 11th centuries"], 0, 2 * 4 / (4 + 5)),
    ("Beyoncé", ["Beyonce"], 0, 0),
]


@pytest.mark.parametrize(("answer", "references", "same", "f1"), CASES)
def test_by_hand(answer: str, references: list[str], same: float, f1: float) -> None:
    assert exact(answer, references) == same
    assert token_f1(answer, references) == pytest.approx(f1)


def second(answer: str, reference: str) -> tuple[float, float]:
    """Character by character, and by taking matched words away; nothing in common with ours."""

    def clean(text: str) -> list[str]:
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    mine, theirs = clean(answer), clean(reference)
    left, hits = list(theirs), 0
    for word in mine:
        if word in left:
            left.remove(word)
            hits += 1
    if not mine or not theirs:
        return float(mine == theirs), float(mine == theirs)
    precision, recall = hits / len(mine), hits / len(theirs)
    return float(mine == theirs), 2 * precision * recall / (precision + recall) if hits else 0.0


words = st.lists(
    st.sampled_from(["the", "a", "An", "red", "Red", "fox.", "fox", "o'clock", "oclock", "10th", ",", "x-y"]), max_size=6
)


@given(words.map(" ".join), st.lists(words.map(" ".join), min_size=1, max_size=3))
def test_against_a_second_implementation(answer: str, references: list[str]) -> None:
    pairs = [second(answer, reference) for reference in references]
    assert exact(answer, references) == max(same for same, _ in pairs)
    assert token_f1(answer, references) == pytest.approx(max(f1 for _, f1 in pairs))


@given(st.text())
def test_what_is_normal_stays(text: str) -> None:
    assert exact(text, [text]) == 1.0
