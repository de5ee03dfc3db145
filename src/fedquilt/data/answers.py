"""Two answers compared as SQuAD does it (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1, and the evaluation script).

Case, punctuation, articles and spaces do not count. ReCoRD (Zhang et al. 2018, arXiv 1810.12885) compares in the same way.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
NO_ANSWER = "unanswerable"
"""What is written where a text does not answer a question; compared as the empty answer."""


def normal(text: str) -> str:
    """The words that count.

    >>> normal("The  Panthers' defense.")
    'panthers defense'
    """
    words = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()
    return "" if words == [NO_ANSWER] else " ".join(words)


def exact(answer: str, references: Sequence[str]) -> float:
    """1.0 if the answer is one of the references; an empty list of references means that there is no answer."""
    return float(normal(answer) in [normal(reference) for reference in references or ("",)])


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Largest F1 of the words in common with a reference; where one side has no words: 1.0 if both have none.

    >>> token_f1("in the south of France", ["southern France", "south France"])
    0.6666666666666666
    """
    return max(_f1(normal(answer).split(), normal(reference).split()) for reference in references or ("",))


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))
