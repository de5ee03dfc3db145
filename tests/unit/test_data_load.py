import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from real import real_data

from fedquilt.data import RawTask, TaskConfig, load
from fedquilt.errors import DataError

ROWS = {"body": ["good film", "NA", "007"], "mark": ["pos", "neg", "pos"], "user": [3, 1, 3]}


def config(**given: object) -> TaskConfig:
    base: dict[str, object] = {"name": "t", "source": "file:{split}.csv", "text": ["body"], "label": "mark", "eval_split": "dev"}
    return TaskConfig(**(base | given))  # type: ignore[arg-type]


def read(root: Path, seed: int = 0, columns: tuple[str, ...] = (), **given: object) -> RawTask:
    return load(config(**given), root=root, cache=root / "cache", seed=seed, columns=columns)


def write(folder: Path, suffix: str, rows: dict[str, list[object]] | None = None, name: str = "train") -> None:
    table = pa.table(ROWS if rows is None else rows)
    path = folder / f"{name}{suffix}"
    if suffix == ".parquet":
        parquet.write_table(table, path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")
    elif suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        options = csv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ",")
        csv.write_csv(table, path, options)


def both(folder: Path, rows: dict[str, list[object]], suffix: str = ".parquet") -> str:
    for name in ("train", "dev"):
        write(folder, suffix, rows, name)
    return "file:{split}" + suffix


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".arrow"])
def test_every_format_gives_the_same_task(tmp_path: Path, suffix: str) -> None:
    task = read(tmp_path, source=both(tmp_path, ROWS, suffix), columns=("user",))
    assert task.train.texts == (("good film",), ("NA",), ("007",))
    assert task.labels == ("neg", "pos")
    assert task.train.labels.tolist() == [1, 0, 1]
    assert task.train.labels.dtype == np.int64
    assert task.train.columns["user"].tolist() == ["3", "1", "3"]
    assert len(task.evaluation) == 3
    assert not task.evaluation.columns
    assert task.notes == ()


def test_texts_that_look_like_numbers_stay_as_written(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text("body,mark\n007,1\n1e3,0\n", encoding="utf-8")
    assert read(tmp_path).train.texts == (("007",), ("1e3",))


def test_the_stream_format_of_arrow(tmp_path: Path) -> None:
    table = pa.table(ROWS)
    for name in ("train", "dev"):
        with pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    assert len(read(tmp_path, source="file:{split}.arrow").train) == 3


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_text_of_five_megabytes_and_one_with_line_breaks(tmp_path: Path, suffix: str) -> None:
    rows = {"body": ["word " * 1_000_000, 'a "quoted"\nline'], "mark": [0, 1]}
    task = read(tmp_path, source=both(tmp_path, rows, suffix))
    assert [len(text) for (text,) in task.train.texts] == [5_000_000, 15]


def test_empty_texts_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = {"body": ["a", None, " \n", "b", ""], "mark": [0, None, 1, 1, 0]}
    task = read(tmp_path, source=both(tmp_path, rows))
    assert task.train.texts == (("a",), ("b",))
    assert task.train.labels.tolist() == [0, 1]
    assert task.notes == ("train: 3 rows without text dropped", "evaluation: 3 rows without text dropped")


def test_half_a_pair_is_kept(tmp_path: Path) -> None:
    rows = {"a": ["x", None, None], "b": [None, "y", None], "mark": [0, 1, 1]}
    task = read(tmp_path, source=both(tmp_path, rows), text=["a", "b"])
    assert task.train.texts == (("x", ""), ("", "y"))


def test_row_numbers_in_messages_count_dropped_rows(tmp_path: Path) -> None:
    rows = {"body": ["", "a", "b"], "mark": ["x", "x", "odd"]}
    with pytest.raises(DataError, match=r"'odd'[\s\S]*train.parquet, column 'mark', row 3"):
        read(tmp_path, source=both(tmp_path, rows), labels=["x", "y"])


def test_a_label_that_only_the_evaluation_has(tmp_path: Path) -> None:
    write(tmp_path, ".parquet", {"body": ["a", "b"], "mark": ["x", "y"]})
    write(tmp_path, ".parquet", {"body": ["a"], "mark": ["z"]}, "dev")
    with pytest.raises(DataError, match=r"'z' is not in the label set[\s\S]*dev.parquet"):
        read(tmp_path, source="file:{split}.parquet")


def test_regression(tmp_path: Path) -> None:
    rows = {"body": ["a", "b"], "mark": [0.5, 5.0]}
    task = read(tmp_path, source=both(tmp_path, rows), kind="regression")
    assert task.labels == ()
    assert task.train.labels.dtype == np.float64
    assert task.train.labels.tolist() == [0.5, 5.0]


def many(tmp_path: Path, n: int = 100) -> str:
    write(tmp_path, ".parquet", {"body": [f"text {i}" for i in range(n)], "mark": [i % 2 for i in range(n)]})
    return "file:train.parquet"


def test_the_hold_out_is_a_seeded_split(tmp_path: Path) -> None:
    source = many(tmp_path)
    first = read(tmp_path, source=source, eval_split=None, eval_share=0.2)
    train, held = set(first.train.texts), set(first.evaluation.texts)
    assert (len(train), len(held), len(train | held)) == (80, 20, 100)
    assert first.notes == ("evaluation: 20 of 100 training rows held out (seed 0)",)
    assert read(tmp_path, source=source, eval_split=None, eval_share=0.2).evaluation.texts == first.evaluation.texts
    assert read(tmp_path, seed=1, source=source, eval_split=None, eval_share=0.2).evaluation.texts != first.evaluation.texts
    for (text,), label in zip(first.train.texts, first.train.labels, strict=True):
        assert int(text.split()[1]) % 2 == label  # labels moved with their texts


def test_subsets_are_seeded_and_said(tmp_path: Path) -> None:
    source = many(tmp_path)
    task = read(tmp_path, source=source, eval_split=None, eval_share=0.5, max_train=10, max_eval=50)
    assert (len(task.train), len(task.evaluation)) == (10, 50)
    assert task.notes[-1] == "train: a random 10 of 50 rows (seed 0)"
    assert not set(task.train.texts) & set(task.evaluation.texts)
    numbers = [int(text.split()[1]) for (text,) in task.train.texts]
    assert numbers == sorted(numbers)
    assert numbers != list(range(10))


def test_too_few_rows_for_a_hold_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be split"):
        read(tmp_path, source=many(tmp_path, 4), eval_split=None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "file:trian.parquet", "eval_split": None}, r"no such file[\s\S]*did you mean 'train.parquet'"),
        ({"source": "file:no/where/{split}.parquet"}, "does not exist either"),
        ({"source": "file:trian.parquet"}, r"no such file[\s\S]*did you mean 'train.parquet'"),
        ({"source": "folder:pictures", "text": []}, r"no such folder[\s\S]*fix: check the path"),
        ({"source": "file:train.parquet"}, r"no split 'dev'[\s\S]*leave eval_split out"),
        ({"text": ["boby"]}, r"no column 'boby'[\s\S]*did you mean 'body'"),
        ({"label": "label"}, r"no column 'label'[\s\S]*body, mark"),
        ({"text": ["mark"], "label": "body"}, r"holds int, not text[\s\S]*row 1"),
        ({"source": "asset:vader_twet"}, r"no data asset[\s\S]*did you mean 'vader_tweet'"),
        ({"source": "asset:vader_tweet"}, "no split 'dev'"),
    ],
)
def test_errors_say_what_is_there(tmp_path: Path, given: dict[str, object], message: str) -> None:
    base = {"source": both(tmp_path, {"body": ["a", "b"], "mark": [0, 1]})}
    with pytest.raises(DataError, match=message):
        read(tmp_path, **(base | given))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe broken \xe4\n", b'{"body": \n'])
def test_damaged_files_are_data_errors(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"train{suffix}").write_bytes(content)
    with pytest.raises(DataError):
        read(tmp_path, source=f"file:train{suffix}", eval_split=None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "body,mark\nx,1\ny,2,3\n",
            r"Row #3: Expected 2 columns, got 3[\s\S]*fix: every row .* texts with commas in double",
        ),
        ("a.tsv", "body\tmark\nx\n", r"Row #2: Expected 2 columns, got 1[\s\S]*fix: every row .* texts with tabs in double"),
        (
            "a.csv",
            "body;mark\nx;1\n",
            r"no column 'body'[\s\S]*parted by a semicolon, not by a comma: save .* a comma between them$",
        ),
        ("a.csv", "body;mark\nx, y;1\n", r"Expected 1 columns, got 2[\s\S]*fix: the columns seem to be parted by a semicolon"),
        ("a.csv", "body\tmark\nx\t1\n", r"no column 'body'[\s\S]*parted by a tab, .*; tabs: name the file .tsv"),
        ("a.tsv", "body,mark\nx,1\n", r"no column 'body'[\s\S]*parted by a comma, not by a tab"),
        ("a.csv", "text\nx\n", r"no column 'body'[\s\S]*fix: allowed: text"),
        ("a.jsonl", '{"body": \n', r"line 1[\s\S]*fix: write one object on each line"),
        ("a.jsonl", "[1]\n", r"not a JSON object[\s\S]*fix: write one object on each line"),
        ("a.parquet", "text", r"cannot be read[\s\S]*fix: is it whole, and of the format"),
        ("a.csv", "body,mark\nx,1\ny,1\n", r"one label is not enough[\s\S]*fix: add rows with another label"),
    ],
)
def test_what_is_wrong_with_a_file_can_be_mended(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read(tmp_path, source=f"file:{name}", eval_split=None)


def test_names_are_no_numbers_to_be_predicted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("body,mark\nx,good\ny,bad\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"'good' is not a number\n  where: .*column 'mark', row 1\n  fix: .*kind = 'classification'"
    ):
        read(tmp_path, source="file:a.csv", eval_split=None, kind="regression")


def test_a_bad_line_of_jsonl_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"body": "a", "mark": 1}\n\n[1]\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 3"):
        read(tmp_path, source="file:train.jsonl", eval_split=None)


def test_a_split_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row has a text"):
        read(tmp_path, source=both(tmp_path, {"body": ["", " "], "mark": [0, 1]}))


def test_an_empty_cell_in_the_partition_column(tmp_path: Path) -> None:
    rows = {"body": ["a", "b"], "mark": [0, 1], "user": ["u", None]}
    with pytest.raises(DataError, match=r"'user' is empty[\s\S]*row 2"):
        read(tmp_path, source=both(tmp_path, rows), columns=("user",))


class HubStub:
    """Stands for ``datasets.load_dataset``: remembers calls, answers from a dict or raises."""

    def __init__(self, answer: object) -> None:
        self.answer, self.calls = answer, []  # type: ignore[var-annotated]

    def __call__(self, repo: str, config: str | None, *, split: str) -> object:
        self.calls.append((repo, config, split))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_hub_data_uses_the_names_of_its_label_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "ok"])})
    data = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features=features)
    stub = HubStub(data)
    monkeypatch.setattr(datasets, "load_dataset", stub)
    task = read(tmp_path, source="hub:nyu-mll/glue:cola", text=["sentence"], label="label", eval_split="validation")
    assert task.labels == ("bad", "ok")
    assert task.train.labels.tolist() == [1, 0]
    assert stub.calls == [("nyu-mll/glue", "cola", "train"), ("nyu-mll/glue", "cola", "validation")]


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError('Unknown split "x"'), FileNotFoundError("gone")])
def test_an_unreachable_hub_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", HubStub(error))
    with pytest.raises(DataError, match=r"hub:x/y, split train[\s\S]*local copy"):
        read(tmp_path, source="hub:x/y")


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"])
def test_glue_presets_fit_the_real_files(tmp_path: Path, name: str) -> None:
    folder = real_data(f"glue_{name}/train.parquet")
    source = f"file:glue_{name}/{{split}}.parquet"
    task = TaskConfig(name=name, preset=f"glue/{name}", source=source, max_train=50)
    raw = load(task, root=folder, cache=tmp_path, seed=0)
    assert len(raw.train) == 50
    assert len(raw.evaluation) == parquet.ParquetFile(folder / f"glue_{name}/validation.parquet").metadata.num_rows
    if raw.kind == "regression":
        assert raw.evaluation.labels.min() >= 0
        assert raw.evaluation.labels.max() <= 5
    else:
        assert set(raw.evaluation.labels.tolist()) == set(range(len(raw.labels)))
