"""Metrics of one task: ``metric("f1")(predictions, labels)``. Undefined cases (a single class, no variance) are 0.0, never NaN.

Definitions: GLUE (Wang et al. 2019); F1 is of class 1 when there are two classes, macro when there are more; Matthews (1975).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedquilt.errors import ConfigError, did_you_mean

Metric = Callable[[ArrayLike, ArrayLike], float]
_Array = NDArray[Any]


def _accuracy(predictions: _Array, labels: _Array) -> float:
    return float(np.mean(predictions == labels))


def _f1(predictions: _Array, labels: _Array) -> float:
    from sklearn.metrics import f1_score

    two = max(predictions.max(), labels.max()) <= 1
    return float(f1_score(labels, predictions, average="binary" if two else "macro", zero_division=0.0))


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


def metric(name: str) -> Metric:
    """The metric called ``name``: predicted classes (or values) and labels ``[n]`` -> a number, higher is better.

    >>> metric("accuracy")([1, 0, 1], [1, 1, 1])
    0.6666666666666666

    Raises:
        ConfigError: no such metric.
        ValueError (from the returned function): no rows, or arrays of different lengths.
    """
    if name not in _METRICS:
        raise ConfigError(f"there is no metric {name!r}", fix=did_you_mean(name, _METRICS))
    function = _METRICS[name]

    def checked(predictions: ArrayLike, labels: ArrayLike) -> float:
        a, b = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
        if a.ndim != 1 or a.shape != b.shape or not len(a):
            raise ValueError(f"{name} needs two vectors of the same length > 0, not shapes {a.shape} and {b.shape}")
        return function(a, b)

    return checked
