import json
from pathlib import Path

import numpy as np
import pytest

from fedquilt.data import Partition, PartitionConfig, RawSplit, RawTask, partition
from fedquilt.errors import DataError, StateError

# Sizes of the training sets and the partition of the published FL-TAC code at seed 42.
GLUE_ROWS = {"sst2": 67349, "mrpc": 3668, "qqp": 363846, "qnli": 104743, "rte": 2490}
PUBLISHED = {
    "mrpc": [531, 847, 0, 499, 0, 91, 297, 205, 705, 493],
    "qnli": [0, 7522, 15319, 3738, 61791, 1645, 2023, 4995, 7710, 0],
    "qqp": [0, 12764, 0, 8855, 31032, 13121, 165334, 0, 132740, 0],
    "rte": [105, 241, 282, 53, 132, 200, 1037, 306, 134, 0],
    "sst2": [27854, 1163, 6608, 4099, 14004, 10245, 0, 2383, 992, 1],
}
LABELS = np.repeat([0, 1, 2], [50, 30, 20])


def raw(columns: dict[str, list[str]], n: int) -> RawTask:
    arrays = {name: np.array(values) for name, values in columns.items()}
    split = RawSplit((("x",),) * n, np.zeros(n, np.int64), arrays)
    return RawTask("t", "classification", ("a", "b"), ("accuracy",), split, split)


def test_seed_42_gives_the_published_partition() -> None:
    tasks = {name: np.zeros(rows) for name, rows in GLUE_ROWS.items()}
    result = partition(tasks, PartitionConfig(), seed=42)
    assert result.counts() == PUBLISHED
    assert sum(count > 0 for counts in result.counts().values() for count in counts) == 40


def test_the_partition_has_its_own_seed_when_given() -> None:
    tasks = {name: np.zeros(rows) for name, rows in GLUE_ROWS.items()}
    assert partition(tasks, PartitionConfig(seed=42), seed=7).counts() == PUBLISHED


def test_bare_labels_and_loaded_tasks_are_cut_alike() -> None:
    config = PartitionConfig(how="dirichlet-label", clients=4)
    a = partition({"t": np.zeros(30, np.int64)}, config, seed=0)
    b = partition({"t": raw({}, 30)}, config, seed=0)
    assert [part.tolist() for part in a.parts["t"]] == [part.tolist() for part in b.parts["t"]]


def test_all_shares_below_the_threshold() -> None:
    result = partition({"t": np.zeros(500)}, PartitionConfig(clients=300, alpha=100.0, min_share=0.05), seed=0)
    assert sorted(result.counts()["t"])[-2:] == [0, 500]


@pytest.mark.parametrize("alpha", [1e-3, 1e-6])
def test_extreme_unevenness_terminates(alpha: float) -> None:
    for how in ("dirichlet-task", "dirichlet-label"):
        result = partition({"t": LABELS}, PartitionConfig(how=how, alpha=alpha), seed=1)
        assert sum(result.counts()["t"]) == 100


def test_unevenness_follows_alpha() -> None:
    def mixture(alpha: float) -> float:
        """Mean share of the most frequent label within a client."""
        labels = np.tile([0, 1], 500)
        parts = partition({"t": labels}, PartitionConfig(how="dirichlet-label", alpha=alpha, clients=5), seed=0).parts["t"]
        shares = [max(labels[part].mean(), 1 - labels[part].mean()) for part in parts if len(part)]
        return float(np.mean(shares))

    assert mixture(0.05) > 0.9
    assert mixture(1000.0) < 0.55


def test_iid_sizes_differ_by_at_most_one() -> None:
    counts = partition({"t": np.zeros(103)}, PartitionConfig(how="iid", clients=10), seed=0).counts()["t"]
    assert (min(counts), max(counts)) == (10, 11)


def test_a_client_of_shards_sees_few_labels() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 20))
    parts = partition({"t": labels}, PartitionConfig(how="shards", clients=10, shards_per_client=2), seed=0).parts["t"]
    assert [len(part) for part in parts] == [20] * 10
    assert all(len(np.unique(labels[part])) <= 2 for part in parts)


def test_column_makes_one_client_per_value_over_all_tasks() -> None:
    tasks = {"a": raw({"user": ["10", "2", "2"]}, 3), "b": raw({"user": ["x", "10"]}, 2)}
    result = partition(tasks, PartitionConfig(how="column", column="user", clients=10), seed=0)
    assert {name: [part.tolist() for part in parts] for name, parts in result.parts.items()} == {
        "a": [[1, 2], [0], []],  # clients: 2, 10, x
        "b": [[], [1], [0]],
    }
    assert result.clients == 3
    assert "3 clients come from the column" in result.notes[0]


def test_a_column_that_was_not_loaded() -> None:
    with pytest.raises(DataError, match=r"'usr' was not loaded[\s\S]*did you mean 'user'"):
        partition({"a": raw({"user": ["u"]}, 1)}, PartitionConfig(how="column", column="usr"), seed=0)


def test_idle_clients_are_noted() -> None:
    result = partition({"t": np.zeros(3)}, PartitionConfig(how="iid", clients=5), seed=0)
    idle = [client for client, count in enumerate(result.counts()["t"]) if not count]
    assert result.notes == (f"2 of 5 clients have no data: {idle[0]}, {idle[1]}",)


def test_few_rows_are_not_always_the_first_clients() -> None:
    """Five tasks of forty rows over a hundred clients: about 1 - 0.6^5 of them have some, and not the same for every task."""
    tasks = {name: np.zeros(40) for name in "abcde"}
    counts = np.array(list(partition(tasks, PartitionConfig(how="iid", clients=100), seed=0).counts().values()))
    assert counts.sum(1).tolist() == [40] * 5
    assert 85 <= int((counts.sum(0) > 0).sum()) <= 99


@pytest.mark.parametrize("tasks", [{}, {"t": np.zeros(0)}])
@pytest.mark.parametrize("how", ["dirichlet-task", "dirichlet-label", "iid", "shards"])
def test_nobody_has_data(tasks: dict[str, np.ndarray], how: str) -> None:
    with pytest.raises(DataError):
        partition(tasks, PartitionConfig(how=how), seed=0)  # type: ignore[arg-type]


def saved(path: Path) -> Partition:
    result = partition({"t": LABELS, "u": LABELS[:7]}, PartitionConfig(clients=3), seed=3)
    result.save(path / "p.json")
    return result


def test_saved_and_read_back(tmp_path: Path) -> None:
    first = saved(tmp_path)
    second = Partition.load(tmp_path / "p.json")
    assert second.counts() == first.counts()
    for name in first.parts:
        for a, b in zip(first.parts[name], second.parts[name], strict=True):
            np.testing.assert_array_equal(a, b)
            assert b.dtype == np.int64
    assert (second.how, second.notes) == (first.how, first.notes)
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.json"]


def test_a_saved_partition_is_used_by_name(tmp_path: Path) -> None:
    first = saved(tmp_path)
    config = PartitionConfig(how="file", file="p.json", clients=3)
    again = partition({"u": LABELS[:7], "t": LABELS}, config, seed=99, root=tmp_path)
    assert again.counts() == first.counts()


def test_a_saved_partition_of_other_data_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    config = PartitionConfig(how="file", file="p.json", clients=3)
    with pytest.raises(DataError, match="of other tasks: u"):
        partition({"t": LABELS}, config, seed=0, root=tmp_path)
    with pytest.raises(DataError, match=r"does not fit task 't'[\s\S]*rows 0 to 98, each once"):
        partition({"t": LABELS[:99], "u": LABELS[:7]}, config, seed=0, root=tmp_path)


@pytest.mark.parametrize(
    "parts",
    [
        [[0, 1], [1]],  # a row twice
        [[0], [1, 2]],  # a row that does not exist
        [[0]],  # a row nobody has
    ],
)
def test_files_that_are_no_partition_of_the_rows(tmp_path: Path, parts: list[list[int]]) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"how": "iid", "parts": {"t": parts}}), encoding="utf-8")
    with pytest.raises(DataError, match="does not fit"):
        partition({"t": np.zeros(2)}, PartitionConfig(how="file", file="p.json"), seed=0, root=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"how": "iid", "parts": []}',
        '{"how": "iid", "parts": {}}',
        '{"how": "iid", "parts": {"t": []}}',
        '{"how": "iid", "parts": {"t": 3}}',
        '{"how": "iid", "parts": {"t": [[0.5]]}}',
        '{"how": "iid", "parts": {"t": [[true]]}}',
        '{"how": "iid", "parts": {"t": ["01"]}}',
        '{"how": "iid", "parts": {"t": [[99999999999999999999]]}}',
        '{"how": "iid", "parts": {"t": [[0]], "u": [[0], [1]]}}',
    ],
)
def test_damaged_partition_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"p\.json"):
        Partition.load(tmp_path / "p.json")


def test_a_missing_partition_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Partition.load(tmp_path / "none.json")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = saved(tmp_path)

    def full(*args: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StateError, match="No space left"):
        Partition(first.parts, "iid").save(tmp_path / "p.json")
    monkeypatch.undo()
    assert Partition.load(tmp_path / "p.json").how == "dirichlet-task"
    assert len(list(tmp_path.iterdir())) == 1
