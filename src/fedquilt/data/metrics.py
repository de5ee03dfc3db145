"""Metrics of one task: ``metric("f1")(predictions, labels)``. Undefined cases (a single class, no variance) are 0.0, never NaN.

Definitions: GLUE (Wang et al. 2019); F1 is of class 1 when there are two classes, macro when there are more; Matthews (1975).
Of questions with candidates: SuperGLUE (Wang et al. 2019, arXiv 1905.00537, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedquilt.data.marks import Marks
from fedquilt.errors import ConfigError, did_you_mean

Metric = Callable[[ArrayLike, ArrayLike], float]
_Array = NDArray[Any]


def _accuracy(predictions: _Array, labels: _Array) -> float:
    return float(np.mean(predictions == labels))


def _f1(predictions: _Array, labels: _Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def _macro_f1(predictions: _Array, labels: _Array) -> float:
    """Over the classes that occur."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def _matthews(predictions: _Array, labels: _Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    if len(np.unique(predictions)) == 1 or len(np.unique(labels)) == 1:
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def _constant(values: _Array) -> bool:
    return len(values) < 2 or bool(np.all(values == values[0]))


def _pearson(predictions: _Array, labels: _Array) -> float:
    if _constant(predictions) or _constant(labels):
        return 0.0
    a, b = predictions - predictions.mean(), labels - labels.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0


def _spearman(predictions: _Array, labels: _Array) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(predictions), rankdata(labels))


_METRICS: dict[str, Callable[[_Array, _Array], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}


def questions(name: str, margins: _Array, labels: _Array, marks: Marks) -> float:
    """Metrics of questions with candidates: ``margins [n]``, how much rather right than wrong; ``labels [n]``, 1 if right.

    ``choice``: share of questions of which the candidate with the largest margin (the first of equals) is right (COPA's accuracy,
    ReCoRD's exact match); ``choice_f1``: mean worth of these candidates (ReCoRD's F1); ``exact``: share of questions of which
    every candidate is told right (MultiRC's exact match).
    """
    units = marks.units(len(labels))
    if name == "exact":
        return float(np.mean([np.array_equal(margins[rows] > 0, labels[rows] == 1) for rows in units]))
    chosen = np.array([rows[np.argmax(margins[rows])] for rows in units])
    scores = labels if name == "choice" or marks.worth is None else marks.worth
    return float(np.mean(scores[chosen]))


def metric(name: str, classes: int = 2) -> Metric:
    """The metric called ``name``: predicted classes (or values) and labels ``[n]`` -> a number, higher is better.

    Args:
        classes: size of the label set: F1 is macro for more than two.

    >>> metric("accuracy")([1, 0, 1], [1, 1, 1])
    0.6666666666666666

    Raises:
        ConfigError: no such metric.
        ValueError (from the returned function): no rows, or arrays of different lengths.
    """
    if name not in _METRICS:
        raise ConfigError(f"there is no metric {name!r}", fix=did_you_mean(name, _METRICS))
    function = _macro_f1 if name == "f1" and classes > 2 else _METRICS[name]

    def checked(predictions: ArrayLike, labels: ArrayLike) -> float:
        a, b = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
        if a.ndim != 1 or a.shape != b.shape or not len(a):
            raise ValueError(f"{name} needs two vectors of the same length > 0, not shapes {a.shape} and {b.shape}")
        return function(a, b)

    return checked
