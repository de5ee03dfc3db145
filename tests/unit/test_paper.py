"""The paper's settings: every value has a source, every configuration is one that runs, every count on the page is computed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedquilt.runs.config import load_config
from fedquilt.runs.cost import Line, cost, paper_costs
from fedquilt.runs.parts import make_method

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "paper").glob("*.toml"))
SOURCE = re.compile(r"#.*(section \d|table \d|algorithm \d|the authors' code|ours)")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_value_names_its_source(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if re.match(r"\w+ *=", line) and not line.startswith("extends")]
    assert values
    assert [line for line in values if not SOURCE.search(line)] == []


@pytest.mark.parametrize(("name", "rank", "total"), [("fltac-glue", 1, 192_010), ("fedit-glue", 16, 591_362)])
def test_the_configurations_are_those_of_the_tables(name: str, rank: int, total: int) -> None:
    config = load_config(ROOT / "configs" / "paper" / f"{name}.toml")
    method = make_method(config, len(config.tasks))
    assert (config.partition.clients, config.partition.alpha, config.partition.min_share) == (10, 0.5, 0.01)
    assert sorted(task.source.removeprefix("hub:nyu-mll/glue:") for task in config.tasks) == ["mrpc", "qnli", "qqp", "rte", "sst2"]
    line = {line.method: line for line in cost(config).lines}[method.name]
    assert (line.rank, line.total) == (rank, total)


@pytest.mark.parametrize(
    ("name", "adapter", "total", "least", "most"),
    [
        ("fedtt-cross-silo", 37_440 + 19_968, 60_634, 0, 0),
        ("fedtt-cross-device", 37_440 + 19_968, 60_634, 0, 0),
        ("fedtt-plus-cross-silo", None, None, 13_440 + 19_968, 18_240 + 19_968),
        ("fedtt-plus-heterogeneity", 23_040 + 52_224, None, 0, 0),
        ("fedtt-squad", 140_800 + 266_240, 407_040, 0, 0),
    ],
)
def test_fedtts_configurations_train_what_its_text_implies(
    name: str, adapter: int | None, total: int | None, least: int, most: int
) -> None:
    """FedTT+ of the base model has cores of two sizes in the middle; of the large one and of Llama all are alike."""
    found = cost(load_config(ROOT / "configs" / "paper" / f"{name}.toml"))
    line = found.lines[0]
    assert adapter in (None, line.adapter)
    assert total in (None, line.total)
    changing = [note for note in found.notes if "other leaves in other rounds" in note]
    assert len(changing) == bool(most)
    assert not most or f"{least:,} to {most:,} parameters" in changing[0]


def test_the_counts_on_the_page_are_computed() -> None:
    page = (ROOT / "docs" / "results" / "fltac-paper.md").read_text(encoding="utf-8")
    table = page.partition("## Their parameter counts")[2].partition("## Why they differ")[0]
    shown = [[cell.strip() for cell in row.split("|")[2:-1]] for row in table.splitlines() if re.match(r"\| .*\d,\d{3}", row)]
    assert shown == [_row(line) for found in paper_costs() for line in found.lines]


def _row(line: Line) -> list[str]:
    name = {"fltac": "FL-TAC r 1", "fedit": "FedIT r 16", "full": "all parameters"}[line.method]
    assert line.paper is not None
    sizes = (line.paper.total, line.adapter, line.head, line.total)
    return [name, *(f"{size:,}" for size in sizes), f"{line.up / 1e6:,.2f}"]
