"""Which metrics are better when they are lower: the one list that evaluation, configuration and reports go by."""

from __future__ import annotations

from collections.abc import Iterable

LOWER_IS_BETTER = frozenset({"loss", "perplexity"})


def direction(metrics: Iterable[str]) -> str:
    """ "lower is better", "higher is better", or which way each one goes when they differ; "" for no metric.

    >>> direction(["loss"]), direction(["f1", "accuracy"])
    ('lower is better', 'higher is better')
    >>> direction(["loss", "rouge_l"])
    'lower is better for loss, higher for rouge_l'
    """
    names = sorted(set(metrics) - {""})
    low, high = [name for name in names if name in LOWER_IS_BETTER], [name for name in names if name not in LOWER_IS_BETTER]
    if low and high:
        return f"lower is better for {', '.join(low)}, higher for {', '.join(high)}"
    return f"{'lower' if low else 'higher'} is better" if names else ""
