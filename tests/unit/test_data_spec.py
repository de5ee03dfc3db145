import pytest
from pydantic import ValidationError

from fedquilt.data.presets import PRESETS
from fedquilt.data.spec import PartitionConfig, TaskConfig
from fedquilt.errors import ConfigError


def test_preset_fills_what_is_not_given() -> None:
    task = TaskConfig(name="mrpc", preset="glue/mrpc", max_train=10)
    assert task.source == "hub:nyu-mll/glue:mrpc"
    assert task.text == ("sentence1", "sentence2")
    assert task.labels == ("not_equivalent", "equivalent")
    assert task.metrics == ("accuracy", "f1")
    assert (task.eval_split, task.max_train) == ("validation", 10)


def test_what_is_given_wins_over_the_preset() -> None:
    task = TaskConfig(name="q", preset="glue/qqp", metrics=["f1"], text=["question1"])
    assert (task.metrics, task.text) == (("f1",), ("question1",))


@pytest.mark.parametrize(
    ("source", "split"),
    [(None, "validation_matched"), ("file:mnli/{split}.parquet", "validation"), ("file:all.parquet", None)],
)
def test_the_evaluation_split_follows_the_source(source: str | None, split: str | None) -> None:
    assert TaskConfig(name="m", preset="glue/mnli", source=source).eval_split == split


def test_a_resolved_task_reads_back_to_itself() -> None:
    for name in PRESETS:
        task = TaskConfig(name="t", preset=name)
        assert TaskConfig(**task.model_dump()) == task


def test_the_nine_glue_tasks() -> None:
    names = {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
    assert {name for name in PRESETS if name.startswith("glue/")} == {f"glue/{name}" for name in names}
    stsb = TaskConfig(name="stsb", preset="glue/stsb")
    assert (stsb.kind, stsb.labels, stsb.metrics) == ("regression", None, ("pearson", "spearman"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "glue/sst-2"}, "did you mean 'glue/sst2'"),
        ({}, "neither source nor preset"),
        ({"source": "sst2"}, "hub:REPO"),
        ({"source": "hub:"}, "not understood"),
        ({"source": "file:a.parqet"}, "did you mean '.parquet'"),
        ({"source": "file:"}, r"'file:' is not understood[\s\S]*write hub:REPO"),
        ({"source": "file:rows"}, r"no ending that says its format[\s\S]*allowed: .arrow"),
        ({"source": "asset:x", "text": ["a", "b", "c"]}, r"one or two columns[\s\S]*join them into one column"),
        ({"source": "asset:x", "labels": ["a", "a"]}, r"twice[\s\S]*write every label once"),
        ({"source": "asset:x", "labels": ["a"]}, r"at least two[\s\S]*leave labels out"),
        ({"source": "asset:x", "metrics": ["pearson"]}, "not for classification"),
        ({"source": "asset:x", "kind": "regression", "metrics": ["f1"]}, "not for regression"),
        ({"source": "asset:x", "eval_split": "train"}, r"the training and the evaluation split[\s\S]*leave eval_split out"),
    ],
)
def test_wrong_tasks_are_refused_with_a_reason(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskConfig(name="t", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{"name": "a b"}, {"name": ""}, {"nmae": "x"}, {"max_train": 0}, {"eval_share": 1.0}])
def test_wrong_fields_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TaskConfig(**({"name": "t", "source": "asset:x"} | given))  # type: ignore[arg-type]


def test_one_text_column_may_be_a_bare_string() -> None:
    assert TaskConfig(name="t", source="asset:x", text="body").text == ("body",)  # type: ignore[arg-type]


def test_primary_metric_when_none_is_given() -> None:
    assert TaskConfig(name="t", source="asset:x").metrics == ("accuracy",)
    assert TaskConfig(name="t", source="asset:x", kind="regression").metrics == ("pearson",)


@pytest.mark.parametrize("how", ["column", "file"])
def test_partitions_that_need_a_field_say_so(how: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"needs partition.{how}\n  where: partition.{how}\n  fix: for example partition.{how} = "
    ):
        PartitionConfig(how=how)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{"clients": 0}, {"alpha": 0}, {"min_share": 1.0}, {"how": "dirichlet"}, {"seed": -1}])
def test_wrong_partitions_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PartitionConfig(**given)  # type: ignore[arg-type]
