"""ROUGE-L against cases worked out by hand and against its definition by brute force."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.data.rouge import common, rouge_l, words


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        # Lin 2004, section 3.1: reference "police killed the gunman"; "kill" is another word than "killed"
        ("police kill the gunman", "police killed the gunman", 2 * 3 / 8),
        ("the gunman kill police", "police killed the gunman", 2 * 2 / 8),
        ("a b c", "a b c", 1.0),
        ("c b a", "a b c", 2 * 1 / 6),
        ("a x b y c", "a b c", 2 * 3 / 8),
        ("a a a", "a", 2 * 1 / 4),
        ("The CAT, sat.", "the cat sat", 1.0),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("...", "...", 0.0),
        ("x", "y", 0.0),
    ],
)
def test_worked_out_by_hand(text: str, reference: str, score: float) -> None:
    assert rouge_l(text, reference) == pytest.approx(score)


def test_words() -> None:
    assert words("It's 7 o'clock -- Café!") == ["it", "s", "7", "o", "clock", "caf"]


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_the_longest_common_subsequence_is_the_longest_of_all(one: str, other: str) -> None:
    found = {"".join(part) for n in range(len(one) + 1) for part in combinations(one, n)}
    also = {"".join(part) for n in range(len(other) + 1) for part in combinations(other, n)}
    assert common(one, other) == max(map(len, found & also))
    assert rouge_l(" ".join(one), " ".join(other)) == rouge_l(" ".join(other), " ".join(one))
