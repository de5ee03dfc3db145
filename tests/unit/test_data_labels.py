import numpy as np
import pytest

from fedquilt.data.labels import classes, key, label_set, targets
from fedquilt.errors import DataError


def run(values: list[object], names: tuple[str, ...]) -> list[int]:
    return classes(values, names, range(1, len(values) + 1), "file").tolist()


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        (["neg", "pos", " pos"], ("neg", "pos"), [0, 1, 1]),
        ([0, 1, 1.0, "1"], ("neg", "pos"), [0, 1, 1, 1]),
        ([4, 0], ("0", "4"), [1, 0]),  # names that are numbers are names, not positions
        ([1, 0], ("1", "0"), [0, 1]),
        ([-1, 1], ("-1", "1"), [0, 1]),
        ([True, False], ("no", "yes"), [1, 0]),
        ([True, False], ("true", "false"), [0, 1]),
    ],
)
def test_values_are_mapped(values: list[object], names: tuple[str, ...], expected: list[int]) -> None:
    assert run(values, names) == expected


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (["neg", "positve"], ("neg", "positive"), r"'positve' is not in the label set[\s\S]*row 2[\s\S]*did you mean 'positive'"),
        ([0, 2], ("a", "b"), r"label 2 [\s\S]*their numbers 0 to 1"),
        ([-1], ("a", "b"), "label -1"),  # the hub's mark of an unlabelled row
        ([1], ("0", "4"), "label 1"),
        ([0.5], ("a", "b"), "label 0.5"),
        (["a", None], ("a", "b"), r"no label[\s\S]*row 2"),
        ([float("nan")], ("a", "b"), "no label"),
    ],
)
def test_values_outside_the_set_name_row_and_allowed(values: list[object], names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(values, names)


def test_the_label_set_is_sorted_by_size_then_name() -> None:
    assert label_set([10, 9, 9.0, None], "f") == ("9", "10")
    assert label_set(["b", "a", "10", "9"], "f") == ("9", "10", "a", "b")


@pytest.mark.parametrize(("values", "message"), [([1, 1], "one label is not enough"), (list(range(1001)), "regression")])
def test_no_usable_label_set(values: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        label_set(values, "f")


def test_targets() -> None:
    np.testing.assert_array_equal(targets([1, "2.5", True], [1, 2, 3], "f"), [1.0, 2.5, 1.0])


@pytest.mark.parametrize("value", [None, "x", float("inf"), float("nan"), []])
def test_targets_that_are_no_numbers(value: object) -> None:
    with pytest.raises(DataError, match="row 7"):
        targets([value], [7], "f")


def test_key_of_numpy_values() -> None:
    assert [key(np.bool_(True)), key(np.float64(2.0)), key(np.int64(3))] == ["true", "2", "3"]
