import math
import warnings

import numpy as np
import pytest

from fedquilt.data.metrics import metric
from fedquilt.errors import ConfigError

# 2 true positives, 1 false positive, 1 false negative, 1 true negative.
PREDICTED, LABELS = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("name", "predictions", "labels", "expected"),
    [
        ("accuracy", PREDICTED, LABELS, 3 / 5),
        ("f1", PREDICTED, LABELS, 2 * 2 / (2 * 2 + 1 + 1)),
        ("f1", [0, 1, 2], [0, 1, 1], (1 + 2 / 3 + 0) / 3),  # macro over three classes
        ("matthews", PREDICTED, LABELS, (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)),
        ("matthews", [0, 1], [1, 0], -1.0),
        ("pearson", [1, 2, 3], [2, 4, 7], 5 / math.sqrt(2 * 38 / 3)),
        ("spearman", [1, 2, 3], [2, 4, 100], 1.0),
        ("spearman", [1, 1, 2], [1, 2, 3], math.sqrt(3) / 2),  # ties share their mean rank
        ("spearman", [3, 2, 1], [0, 5, 6], -1.0),
    ],
)
def test_hand_computed(name: str, predictions: list[float], labels: list[float], expected: float) -> None:
    classes = int(max(*predictions, *labels)) + 1 if name == "f1" else 2
    assert metric(name, classes)(predictions, labels) == pytest.approx(expected, abs=1e-12)


def test_f1_of_three_classes_is_macro_though_only_two_occur() -> None:
    """CommitmentBank's third class is rare: whether it is in the rows must not change what F1 means."""
    assert metric("f1", 3)([0, 1, 1], [0, 1, 0]) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert metric("f1")([0, 1, 1, 1], [0, 1, 0, 0]) == pytest.approx(2 / 4)


@pytest.mark.parametrize("name", ["f1", "matthews", "pearson", "spearman"])
@pytest.mark.parametrize(("predictions", "labels"), [([0, 0], [0, 0]), ([0], [0]), ([0, 0], [0, 1]), ([0, 1], [0, 0])])
def test_undefined_cases_are_zero_without_a_warning(name: str, predictions: list[float], labels: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric(name)(predictions, labels) == 0.0


def test_matches_scipy_on_random_values() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50).round(1), rng.normal(size=50).round(1)
    assert metric("pearson")(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)
    assert metric("spearman")(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_unknown_metric() -> None:
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        metric("acuracy")


@pytest.mark.parametrize(("predictions", "labels"), [([], []), ([1], [1, 0]), ([[1, 0]], [[1, 0]])])
def test_shapes_that_make_no_sense(predictions: list[float], labels: list[float]) -> None:
    with pytest.raises(ValueError, match="same length"):
        metric("accuracy")(predictions, labels)
