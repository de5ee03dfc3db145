"""Costs from sizes alone: against equations, against peft, against what a real run builds, and against the paper's tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedquilt.adapters.lora import lora
from fedquilt.adapters.whole import full, head
from fedquilt.cli import main
from fedquilt.data.spec import TaskConfig
from fedquilt.errors import DataError, ModelError
from fedquilt.meter import fingerprint_size
from fedquilt.models import meta
from fedquilt.models.loading import ModelConfig, load
from fedquilt.models.meta import Use, find_shape, meta_base, meta_model, parameter_count, peft_count
from fedquilt.models.shapes import SHAPES
from fedquilt.runs import cost as cost_module
from fedquilt.runs.build import build
from fedquilt.runs.config import RunConfig, load_config
from fedquilt.runs.cost import Cost, Line, cost, paper_costs
from fedquilt.runs.launch import run
from fedquilt.runs.plan import plan
from fedquilt.types import Round

D, LAYERS, WIDE = 768, 12, 3072  # BERT-base and ViT-B
CAPTURED = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def paper() -> dict[str, dict[str, Line]]:
    """use -> method -> line, of the paper's three settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        return {found.use: by_method(found) for found in paper_costs()}


def by_method(found: Cost) -> dict[str, Line]:
    return {line.method: line for line in found.lines}


def as_paper(line: Line) -> int:
    assert line.paper is not None
    return line.paper.total


def encoder_layer() -> int:
    return 4 * (D * D + D) + (D * WIDE + WIDE) + (WIDE * D + D) + 2 * 2 * D  # attention, two dense maps, two norms


# -- the figures of the paper ------------------------------------------------------------------------------------------------


def test_bert_figures_of_the_paper(paper: dict[str, dict[str, Line]]) -> None:
    lines = paper["text"]
    score = 2 * D + 2
    one = LAYERS * 2 * (D + D) + score  # q and v of every layer at rank 1, and the head
    assert one == 38_402
    assert as_paper(lines["fltac"]) == 5 * one == 192_010
    assert (lines["fltac"].adapter, lines["fltac"].head, lines["fltac"].total) == (5 * 36_864, 5 * 1_538, 192_010)
    assert as_paper(lines["fedit"]) == 16 * one == 614_432
    assert lines["fedit"].total == 16 * 36_864 + score == 591_362
    embeddings = (28_996 + 512 + 2) * D + 2 * D
    whole = embeddings + LAYERS * encoder_layer() + (D * D + D) + score
    assert as_paper(lines["full"]) == lines["full"].total == whole == 108_311_810


def test_vit_figures_of_the_paper(paper: dict[str, dict[str, Line]]) -> None:
    lines = paper["image"]
    assert as_paper(lines["fltac"]) == 2 * LAYERS * (D + D) == 36_864
    assert as_paper(lines["fedit"]) == 16 * LAYERS * (D + D) == 294_912
    embeddings = D + 197 * D + (3 * 16 * 16 * D + D)  # class token, positions, patches
    trunk = embeddings + LAYERS * encoder_layer() + 2 * D
    assert as_paper(lines["full"]) == trunk + 1000 * D + 1000 + 294_912 == 86_862_568
    assert lines["full"].total == trunk + 100 * D + 100
    assert (lines["fltac"].adapter, lines["fltac"].head) == (2 * 36_864, 2 * (100 * D + 100))
    assert (lines["fedit"].adapter, lines["fedit"].head) == (16 * 36_864, 100 * D + 100)


def test_vit_figures_have_a_second_reading() -> None:
    """One adapter instead of two, rank 8 instead of 16, on q and v: no figure tells the readings apart."""
    shape = find_shape(ModelConfig(name="google/vit-base-patch16-224-in21k"))
    assert peft_count(meta_model(shape, "image", 1000), ("q", "v"), 1, head=False)[0] == 36_864
    assert peft_count(meta_model(shape, "image", 1000), ("q", "v"), 8, head=False) == (294_912, 86_862_568)


def test_llama_figures_of_the_paper(paper: dict[str, dict[str, Line]]) -> None:
    lines = paper["generation"]
    width, layers, wide, words = 4096, 32, 11_008, 32_000
    adapter, score = layers * 2 * (width + width), 2 * width
    assert adapter + score == 532_480
    assert as_paper(lines["fltac"]) == 8 * (adapter + score) == 4_259_840
    assert as_paper(lines["fedit"]) == 16 * (adapter + score) == 8_519_680
    trunk = words * width + layers * (4 * width * width + 3 * width * wide + 2 * width) + width
    assert trunk == 6_607_343_616
    assert as_paper(lines["full"]) == trunk + 2 * score + adapter == 6_607_884_288
    assert lines["full"].total == trunk + words * width == 6_738_415_616
    assert (lines["fltac"].total, lines["fedit"].total) == (8 * adapter, 16 * adapter)
    assert not lines["fltac"].head


def test_a_quirk_is_named_exactly_where_the_paper_differs(paper: dict[str, dict[str, Line]]) -> None:
    for line in (line for lines in paper.values() for line in lines.values()):
        assert line.paper is not None
        assert bool(line.paper.quirk) == (line.paper.total != line.total)


# -- against a real run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "place"), [("glue", 0), ("cifar", 1), ("dolly", 2)])
def test_the_shipped_settings_of_the_paper_cost_what_the_paper_s_do(name: str, place: int) -> None:
    """But for FedIT on CIFAR: there our head is per task."""
    folder, expected = Path(__file__).resolve().parents[2] / "configs" / "paper", by_method(paper_costs()[place])
    for method in ("fltac", "fedit"):
        found = by_method(cost(load_config(folder / f"{method}-{name}.toml")))
        if (method, name) != ("fedit", "cifar"):
            assert (found[method], found["full"]) == (expected[method], expected["full"])


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta", "deberta-v2"])
def test_an_adapter_without_weights_is_the_adapter_with_weights(kind: str, precision: Any) -> None:
    model = ModelConfig(name=f"tiny:{kind}", precision=precision)
    real, bare = load(model, classes=3, seed=0), meta_base(find_shape(model), model, "text", 3)
    assert {parameter.device.type for parameter in bare.model.parameters()} == {"meta"}
    assert lora(bare, seed=0, rank=2).spec == lora(real, seed=0, rank=2).spec
    assert full(bare, seed=0).spec == full(real, seed=0).spec
    assert head(bare, seed=0).spec == head(real, seed=0).spec
    assert (bare.head, bare.model_type, bare.dtype) == (real.head, real.model_type, real.dtype)


@pytest.mark.parametrize(
    ("method", "adapter"),
    [
        ("fltac", {"rank": 2}),
        ("fltac", {"rank": 3, "head": "private", "targets": ["q", "down"]}),
        ("fedit", {"rank": 2, "head": "frozen"}),
        ("fedit", {"head": "per-task"}),
        ("local_only", {}),
        ("head_only", {}),
        ("centralised_lora", {}),
        ("centralised_full", {}),
        ("fltac", {"rank": 1, "head": "frozen"}),
        ("ffa_lora", {"rank": 2}),
        ("rolora", {"rank": 2, "targets": ["down"]}),
        ("fedtt_plus", {"rank": 2, "bottleneck": 8}),
    ],
)
def test_the_cost_is_that_of_the_run(tiny: Callable[..., RunConfig], method: str, adapter: dict[str, Any], tmp_path: Path) -> None:
    """For the client that holds all tasks: what trains, what plan says, and what the meter counts; means over four rounds."""
    config = tiny(method, adapter=adapter, rounds=4, evaluation={"every": 0, "start": False})
    found = by_method(cost(config))[method]
    built, expected = build(config), plan(config)
    client = max(expected.up, key=lambda c: built.view.roster(1)[c])
    rounds = [set(built.program.client.train(Round(number, 0))) for number in range(1, 5)]
    trained = [leaf for names in rounds for leaf in built.adapter.spec.leaves if leaf.name in names]
    assert found.adapters == built.view.roster(1)[client]
    assert found.total == round(found.adapters * sum(leaf.size for leaf in trained) / 4)
    assert found.head == round(found.adapters * sum(leaf.size for leaf in trained if leaf.role == "head") / 4)
    assert (found.up, found.down) == (expected.up[client], expected.down[client])
    folder = run(config, directory=tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for way in ("up", "down"):  # of all rounds; a newcomer of fltac sends its squared gradients beside
        counted = sum(line["client_bytes"][str(client)][way] for line in lines)
        extra = found.adapters * fingerprint_size(built.fingerprint) if way == "up" and built.fingerprint else 0
        assert getattr(found, way) == round((counted - extra) / 4)


def test_the_compared_methods_are_what_those_methods_would_cost(tiny: Callable[..., RunConfig]) -> None:
    beside = by_method(cost(tiny("local_only"), fltac_rank=2, fedit_rank=3))
    assert list(beside) == ["local_only", "fltac", "fedit", "full"]
    assert beside["fltac"] == by_method(cost(tiny("fltac", adapter={"rank": 2})))["fltac"]
    assert beside["fedit"] == by_method(cost(tiny("fedit", adapter={"rank": 3})))["fedit"]
    whole = tiny("fedit", method={"adapter": "full"}, adapter={"rank": None})
    assert beside["full"] == by_method(cost(whole))["full"]
    assert beside["full"].up == plan(whole).up[0]
    assert list(by_method(cost(whole))) == ["fltac", "fedit", "full"]


def test_places_of_a_task_are_adapters_of_their_own(tiny: Callable[..., RunConfig]) -> None:
    one, two = (
        cost(tiny("fltac", method={"constraint": "none"}, partition={"slots_per_task": places})).lines[0] for places in (1, 2)
    )
    assert (two.adapters, two.up, two.total) == (2 * one.adapters, 2 * one.up, 2 * one.total)


@pytest.mark.parametrize("method", ["fedit", "fltac"])
def test_bytes_where_clients_add_up_are_those_of_the_plan(method: str, tiny: Callable[..., RunConfig]) -> None:
    more = {"choice": "clients"} if method == "fltac" else {}
    config = tiny(method, secure_aggregation=True, method=more, partition={"how": "iid", "clients": 4})
    line, planned = by_method(found := cost(config))[method], plan(config)
    assert (line.up, line.down) == (planned.up[0], planned.down[0])
    assert found.notes.count("secure aggregation: bytes are those of a sum over 4 clients") == 1


def test_what_is_sent_once_is_said(tiny: Callable[..., RunConfig]) -> None:
    config = tiny("fltac", method={"features": "fisher"})
    (note,) = (note for note in cost(config).notes if "fingerprint" in note)
    (planned,) = (note for note in plan(config).notes if "fingerprint" in note)
    size = fingerprint_size(build(config).fingerprint)
    assert f"{size:,} bytes more" in planned
    assert f"{cost(config).lines[0].adapters * size:,} bytes more" in note
    assert cost(tiny("fltac", method={"features": "b_factors"})).notes == ()


def test_an_impossible_comparison_is_left_out_with_a_reason(tiny: Callable[..., RunConfig]) -> None:
    found = cost(tiny("fedit", adapter={"head": "per-task"}))
    assert "fltac" not in by_method(found)
    assert found.notes == (
        "fltac is not counted: per-task heads tell the server the task of every upload: which head changed is its label",
    )


def test_a_family_other_than_lora_has_no_count_in_the_paper(tiny: Callable[..., RunConfig]) -> None:
    for where in ({"method": {"adapter": "head"}, "adapter": {"rank": None}}, {"adapter": {"family": "head", "rank": None}}):
        found = by_method(cost(tiny("fedit", **where)))
        assert found["fedit (head)"].paper is None
        assert found["fedit (head)"].total == found["fedit (head)"].head == 3 * 16 + 3
        assert found["fedit"].rank == 16, "what it is compared with stays"
    whole = [line.method for line in cost(tiny("fedit", adapter={"family": "full", "rank": None})).lines]
    assert whole == ["fltac", "fedit", "full"]


# -- where sizes come from ---------------------------------------------------------------------------------------------------


def test_a_folder_is_read_and_its_weights_are_not(tmp_path: Path) -> None:
    real = load(ModelConfig(name="tiny:roberta"), classes=2, seed=0)
    real.model.config.save_pretrained(tmp_path)
    model = ModelConfig(name=str(tmp_path))
    shape = find_shape(model)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert "folder" in shape.source
    assert lora(meta_base(shape, model, "text", 2), seed=0).spec == lora(real, seed=0).spec


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_shipped_sizes_need_no_file_and_say_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta, "_read", lambda *_, **__: None)
    shape = find_shape(ModelConfig(name=name))
    assert "shipped" in shape.source
    assert all(getattr(shape.config, key) == value for key, value in SHAPES[name].items())
    with pytest.raises(ModelError, match="no configuration"):  # another revision may have other sizes
        find_shape(ModelConfig(name=name.replace("asset:", "who/"), revision="v2"))


def test_minilm_by_its_published_size() -> None:
    """22,713,216 parameters without a head: what its model card's 22.7 million are."""
    shape = find_shape(ModelConfig(name="asset:minilm"))
    assert parameter_count(meta_model(shape, "text", 2)) - (2 * 384 + 2) == 22_713_216


def test_an_asset_that_is_not_in_the_table_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(ModelConfig(name="tiny:bert"), classes=2, seed=0).model.config.save_pretrained(tmp_path)
    monkeypatch.setattr("fedquilt.data.assets.model_folder", lambda name: {"other": tmp_path}[name])
    shape = find_shape(ModelConfig(name="asset:other"))
    assert shape.source == "config.json of the asset"
    assert shape.about == "bert, 2 layers of 16"


@pytest.mark.parametrize(("text", "message"), [("{", "no configuration"), ('{"model_type": "nonesuch"}', "cannot be read")])
def test_a_broken_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        find_shape(ModelConfig(name=str(tmp_path)))
    assert caught.value.fix


def test_a_model_without_the_wanted_form_is_refused() -> None:
    shape = find_shape(ModelConfig(name="google/vit-base-patch16-224-in21k"))
    with pytest.raises(ModelError, match="has no text form"):
        meta_model(shape, "text", 2)


# -- classes and kinds -------------------------------------------------------------------------------------------------------


def test_labels_are_read_only_where_they_are_not_declared(tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("fedit")
    bare = config.model_copy(update={"tasks": tuple(task.model_copy(update={"labels": None}) for task in config.tasks)})
    assert cost(bare).classes == 3

    def refuse(*_: Any, **__: Any) -> None:
        raise DataError("read")

    monkeypatch.setattr(cost_module, "load", refuse)
    assert cost(config).classes == 3
    with pytest.raises(DataError, match="read"):
        cost(bare)


@pytest.mark.parametrize(
    ("task", "classes"),
    [({"preset": "glue/mnli"}, 3), ({"preset": "glue/stsb"}, 1), ({"source": "asset:sarcasm"}, 2)],
)
def test_presets_and_assets_declare_their_classes(tiny: Callable[..., RunConfig], task: dict[str, Any], classes: int) -> None:
    config = tiny("fedit").model_copy(update={"tasks": (TaskConfig(name="one", **task),)})
    assert cost(config).classes == classes


@pytest.mark.parametrize(
    ("task", "use"),
    [
        ({"source": "folder:x", "image": "image", "labels": ["a", "b"]}, "image"),
        ({"source": "file:x.csv", "kind": "generation"}, "generation"),
        ({"source": "file:x.csv", "kind": "regression"}, "text"),
    ],
)
def test_the_kind_of_the_tasks_decides_the_head(task: dict[str, Any], use: Use) -> None:
    assert cost_module._use([TaskConfig(name="t", **task)]) == use


# -- the command -------------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_same_numbers_twice(tiny: Callable[..., RunConfig], tmp_path: Path, capsys: CAPTURED) -> None:
    path = tmp_path / "c.toml"
    path.write_text(tiny("fltac").to_toml())
    assert main(["cost", str(path), "--json", "--set", "adapter.rank=3", "--fedit-rank", "4"]) == 0
    record = json.loads(capsys.readouterr().out)
    rows = {row["method"]: row for row in record["methods"]}
    assert rows["fltac"]["exact"] == {"adapter": 3 * 4 * 3 * 32, "head": 3 * 51, "total": 1305}
    assert rows["fedit"]["paper"]["total"] == 4 * (4 * 32 + 51)
    assert record["model"]["name"] == "tiny:bert"
    assert main(["cost", str(path), "--set", "adapter.rank=3", "--fedit-rank", "4"]) == 0
    shown = capsys.readouterr().out
    assert ["fltac", "3", "3", "1,152", "153", "1,305", "1,305"] in [line.split()[:7] for line in shown.splitlines()]
    assert "paper-style fedit: r times the rank-1 count" in shown


def test_the_paper_from_the_command_line(
    paper: dict[str, dict[str, Line]], capsys: CAPTURED, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["cost", "--paper", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["use"] for record in records] == list(paper)
    assert records[2]["methods"][2]["paper"]["total"] == 6_607_884_288
    monkeypatch.setattr(cost_module, "paper_costs", lambda: [])
    assert main(["cost", "--paper"]) == 0


@pytest.mark.parametrize("words", [["cost"], ["cost", "c.toml", "--paper"]])
def test_either_a_configuration_or_the_paper(words: list[str], capsys: CAPTURED) -> None:
    assert main(words) == 2
    assert "either a CONFIG or --paper" in capsys.readouterr().err


def test_counting_allocates_nothing() -> None:
    shape = find_shape(ModelConfig(name="huggyllama/llama-7b"))
    model = meta_model(shape, "generation", 0)
    assert all(tensor.device == torch.device("meta") for tensor in model.parameters())
