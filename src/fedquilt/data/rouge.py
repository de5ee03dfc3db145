"""ROUGE-L of one text against one reference (Lin 2004, "ROUGE", section 3.1): the longest common subsequence of words.

Words are runs of a-z and 0-9 after lower-casing, without stemming, as in the common implementations; so figures compare with
theirs, and texts in other alphabets score 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """The words that are compared.

    >>> words("It's 7 o'clock -- Café!")
    ['it', 's', '7', 'o', 'clock', 'caf']
    """
    return re.findall(r"[a-z0-9]+", text.lower())


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence; time len(one) * len(other), memory len(other)."""
    best = [0] * (len(other) + 1)
    for a in one:
        before = 0  # best of the row above, one column to the left
        for j, b in enumerate(other, start=1):
            above = best[j]
            best[j] = before + 1 if a == b else max(above, best[j - 1])
            before = above
    return best[-1]


def rouge_l(text: str, reference: str) -> float:
    """F1 of precision LCS / words(text) and recall LCS / words(reference), in [0, 1]; 0 where either has no word.

    >>> rouge_l("the cat sat", "the cat was sat on")
    0.75
    """
    found, wanted = words(text), words(reference)
    shared = common(found, wanted)
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0
