"""The toy simulation against plain torch networks one by one, and its floors against a numerical integral."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedquilt.cli import main
from fedquilt.cli import toy as command
from fedquilt.report.table import Spread
from fedquilt.report.toy import COLUMNS, panel
from fedquilt.runs import toy
from fedquilt.runs.toy import KINDS, Activation, Nets, Setting, draw, fit, floors, simulate

SMALL = Setting(seeds=2, epochs=25, widths=(1, 3), train=12, test=40, lr=0.05)


def plain(nets: Nets, place: int) -> nn.Sequential:
    """One of the networks as a torch module with the same start; inputs are x, or x and the sign of the task."""
    mine = nets.owner == place
    inputs = [nets.slope[mine]] + ([] if nets.task is None else [nets.task[mine]])
    width = int(mine.sum())
    net = nn.Sequential(nn.Linear(len(inputs), width), nn.Tanh() if nets.activation == "tanh" else nn.ReLU(), nn.Linear(width, 1))
    values = [torch.stack(inputs, 1), nets.bias[mine], nets.out[mine][None], nets.level[place : place + 1]]
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), values, strict=True):
            parameter.copy_(value)
    return net


def rows_of(x: Tensor, sign: Tensor, told: bool) -> Tensor:
    return torch.stack([x, sign], 1) if told else x[:, None]


def trained(net: nn.Sequential, inputs: Tensor, y: Tensor, setting: Setting) -> nn.Sequential:
    adam = torch.optim.Adam(net.parameters(), lr=setting.lr)
    for _ in range(setting.epochs):
        adam.zero_grad()
        nn.functional.mse_loss(net(inputs)[:, 0], y).backward()
        adam.step()
    return net


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("told", [False, True])
def test_the_stack_is_many_plain_networks(told: bool, activation: Activation) -> None:
    """Different widths, different data, one computation: every network ends where it ends alone."""
    stream = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 20, generator=stream), torch.randn(4, 20, generator=stream)
    sign = torch.randn(4, 20, generator=stream).sign()
    nets = Nets([1, 5, 2, 5], "test", told=told, activation=activation)
    alone = [trained(plain(nets, i), rows_of(x[i], sign[i], told), y[i], SMALL) for i in range(4)]
    fit(nets, x, y, sign, SMALL)
    together = nets(x, sign)
    for i, net in enumerate(alone):
        assert torch.allclose(together[i], net(rows_of(x[i], sign[i], told))[:, 0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_belong_to_their_seed_width_and_task(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained networks, evaluated one by one on the points of their seed (and task)."""
    made: list[Nets] = []
    monkeypatch.setattr(toy, "fit", lambda nets, *_: made.append(nets))
    found = simulate(SMALL)[kind]
    nets = made[KINDS.index(kind)]
    x, y = draw(SMALL, "test", SMALL.test)
    sign = torch.tensor([-1.0, 1.0])[:, None].expand_as(x[0])
    place = 0
    for column in range(2):
        for seed in range(2):
            assert int((nets.owner == place).sum()) == SMALL.widths[column]
            per_task = []
            for task in range(2):
                net = plain(nets, place + task if kind == "separate" else place)
                guess = net(rows_of(x[seed, task], sign[task], kind == "told"))[:, 0]
                per_task.append(nn.functional.mse_loss(guess, y[seed, task]).item())
            assert found[seed, column].item() == pytest.approx(sum(per_task) / 2, rel=1e-5)
            place += 2 if kind == "separate" else 1
    assert place == len(nets.level)


def test_training_data_are_those_of_the_same_seed() -> None:
    """With no noise and a wide network, training reaches what test points of the same tasks ask for."""
    setting = Setting(seeds=2, epochs=800, widths=(16,), shift=2.0, noise=(0.0, 0.0), activation="tanh")
    found = simulate(setting)
    assert found["separate"].max() < 0.01
    assert found["told"].max() < 0.01
    assert found["shared"].min() > 0.9 * floors(setting)["shared"] > 0.2


@pytest.mark.parametrize(("spread", "shift"), [(1.0, 0.5), (2.0, 0.5), (0.3, 3.0)])
def test_floors_are_the_integral(spread: float, shift: float) -> None:
    found = floors(Setting(spread=spread, shift=shift, noise=(0.2, 0.4)))
    x = torch.linspace(-12 * spread, 12 * spread, 200_001, dtype=torch.float64)
    density = torch.exp(-((x / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))
    guess = (torch.sin(x) + torch.sin(x + shift)) / 2
    mixed = torch.trapezoid(density * (torch.sin(x) - guess) ** 2, x).item()
    assert found["told"] == found["separate"] == pytest.approx((0.04 + 0.16) / 2)
    assert found["shared"] == pytest.approx(found["told"] + mixed, rel=1e-9)


def test_data_are_what_the_paper_describes() -> None:
    x, y = draw(Setting(seeds=3, spread=2.0), "train", 20_000)
    assert x.shape == y.shape == (3, 2, 20_000)
    assert x.std().item() == pytest.approx(2.0, rel=0.02)
    rest = y - torch.sin(x + torch.tensor([0.0, 0.5])[:, None])
    assert rest.mean((0, 2)).abs().max() < 0.01
    assert rest.std((0, 2)).tolist() == pytest.approx([0.1, 0.3], rel=0.02)
    assert not torch.equal(x[0], x[1])
    assert not torch.equal(x, draw(Setting(seeds=3, spread=2.0), "test", 20_000)[0])


def result(errors: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Of one activation; two seeds, widths 2, 4, 6."""
    one = {"floors": {"shared": 0.2, "told": 0.1, "separate": 0.1}, "errors": errors}
    return {"setting": {"widths": [2, 4, 6]}, "activations": {"relu": one}}


def test_the_table_compares_at_equal_width_and_at_equal_total() -> None:
    shared, separate = [[1.0, 0.8, 0.6], [1.2, 1.0, 0.6]], [[0.9, 0.5, 0.5], [0.7, 0.5, 0.5]]
    table = panel(result({"shared": shared, "separate": separate, "told": separate})).table
    assert table is not None
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in table.rows]
    assert [row["width"] for row in rows] == [2, 4, 6]
    assert rows[0]["per task, half as wide"] is rows[0]["gain, same total"] is None  # width 1 was not simulated
    assert rows[2]["per task, half as wide"] is None
    assert rows[1]["per task, half as wide"] == Spread(0.8, pytest.approx(math.sqrt(0.02)), 2)
    gain = rows[1]["gain, same total"]  # 0.8 - 0.9 and 1.0 - 0.7, seed by seed
    assert gain == Spread(pytest.approx(0.1), pytest.approx(math.sqrt(0.08)), 2)
    assert rows[0]["gain, same width"] == Spread(pytest.approx(0.3), pytest.approx(math.sqrt(0.08)), 2)


WORDS = ["toy", "--seeds", "2", "--epochs", "2", "--out"]


def test_the_command_writes_table_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs the viz extra")
    assert main([*WORDS, str(tmp_path / "a")]) == 0
    shown = capsys.readouterr().out
    assert "0.0842 for a network that is not told the task" in shown
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["toy.csv", "toy.json", "toy.png", "toy.svg"]
    record = json.loads((tmp_path / "a" / "toy.json").read_text())
    expected = simulate(Setting(seeds=2, epochs=2, activation="tanh"))
    for kind in KINDS:
        assert torch.allclose(torch.tensor(record["activations"]["tanh"]["errors"][kind]), expected[kind])
    assert "one network per task" in (tmp_path / "a" / "toy.svg").read_text()
    assert main([*WORDS, str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["activations"] == record["activations"]


def test_without_matplotlib_there_is_a_table_and_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    assert main([*WORDS, str(tmp_path)]) == 0
    assert "matplotlib is not installed" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.csv", "toy.json"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([*WORDS, str(tmp_path / "file")]) == 5
    assert "--out" in capsys.readouterr().err
