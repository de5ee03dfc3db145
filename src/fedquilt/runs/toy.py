"""The toy simulation behind FL-TAC: does one small network on two tasks lose more than one smaller network for each?

Source: S. Ping et al. 2024, arXiv 2404.15384, section 3.2 and figure 3. Stated there: scalar inputs; labels are a sine, for task 2
shifted by 0.5, with Gaussian noise, stronger for task 2; one hidden layer whose width stands for the rank; 1000 epochs; mean
squared error on fresh points. Everything else is ours and stands in :class:`Setting`.

One network with the input x alone cannot be right on two different functions of x, however wide it is. So beside the paper's two
variants there is a third, one network that is told which task a point belongs to, and beside all of them the error that no network
can get below (:func:`floors`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fedquilt.rng import generator

Activation = Literal["relu", "tanh"]
Errors = dict[str, Tensor]
KINDS = ("shared", "told", "separate")


@dataclass(frozen=True)
class Setting:
    """Of the simulation.

    Attributes:
        seeds, epochs: how many.
        widths: of the hidden layer.
        train, test: points per task.
        spread: standard deviation of the inputs.
        shift: of the sine of task 2.
        noise: standard deviation of the labels of either task.
        lr: of Adam, one step per epoch on all points.
        activation: of the hidden layer.
    """

    seeds: int = 10
    epochs: int = 1000
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    train: int = 100
    test: int = 1000
    spread: float = 1.0
    shift: float = 0.5
    noise: tuple[float, float] = (0.1, 0.3)
    lr: float = 0.01
    activation: Activation = "relu"


def simulate(setting: Setting) -> Errors:
    """Test errors ``[seeds, widths]``, the mean over both tasks, of each of :data:`KINDS`.

    ``separate`` at width w are two networks of width w. All networks of a kind train in one stack; they do not touch one another.
    """
    train, test = draw(setting, "train", setting.train), draw(setting, "test", setting.test)
    return {kind: _errors(setting, kind, train, test) for kind in KINDS}


def floors(setting: Setting) -> dict[str, float]:
    """The least expected error: that of the noise, and more for a network that is not told the task.

    The best guess of such a network is the mean of both sines.

    For x ~ N(0, s^2) a quarter of E[(sin(x + f) - sin x)^2] is sin^2(f/2) (1 + exp(-2 s^2) cos f) / 2.
    """
    noise = sum(sd**2 for sd in setting.noise) / 2
    mixed = math.sin(setting.shift / 2) ** 2 * (1 + math.exp(-2 * setting.spread**2) * math.cos(setting.shift)) / 2
    return {"shared": noise + mixed, "told": noise, "separate": noise}


def draw(setting: Setting, part: str, rows: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels, ``[seeds, 2, rows]`` each."""
    shift = torch.tensor([0.0, setting.shift])[:, None]
    noise = torch.tensor(setting.noise)[:, None]
    streams = [generator(seed, "toy", part) for seed in range(setting.seeds)]
    x = torch.stack([torch.randn(2, rows, generator=stream) for stream in streams]) * setting.spread
    return x, torch.sin(x + shift) + noise * torch.stack([torch.randn(2, rows, generator=stream) for stream in streams])


def _errors(setting: Setting, kind: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Tensor:
    x, y, sign = _points(kind, setting, *train)
    widths = [width for width in setting.widths for _ in range(x.shape[0] // len(setting.widths))]
    nets = Nets(widths, kind, told=kind == "told", activation=setting.activation)
    fit(nets, x, y, sign, setting)
    x, y, sign = _points(kind, setting, *test)
    with torch.no_grad():
        found = (nets(x, sign) - y).square().mean(1)
    return found.reshape(len(setting.widths), setting.seeds, -1).mean(2).T


def _points(kind: str, setting: Setting, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels and the sign of the task ``[G, N]``: one row per network, widths before seeds (before tasks)."""
    sign = torch.tensor([-1.0, 1.0])[:, None].expand_as(x)
    rows = (setting.seeds * 2, -1) if kind == "separate" else (setting.seeds, -1)
    wide, tall, signs = (tensor.reshape(rows).repeat(len(setting.widths), 1) for tensor in (x, y, sign))
    return wide, tall, signs


class Nets:
    """G networks of one hidden layer side by side; their hidden units stand in one row, ``owner [H]`` says whose they are.

    So a network of width 1 costs a sixty-fourth of one of width 64, and all of them are one computation.
    """

    def __init__(self, widths: list[int], *salt: str, told: bool = False, activation: Activation = "relu") -> None:
        self.activation = activation
        self.owner = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths))
        reach = 1 / torch.tensor(widths, dtype=torch.float32).sqrt()
        stream, units = generator(0, "toy", "start", *salt), len(self.owner)

        def uniform(bound: Tensor) -> Tensor:  # torch.nn.Linear's start: +-1 / sqrt(inputs)
            return ((torch.rand(len(bound), generator=stream) * 2 - 1) * bound).requires_grad_()

        ones = torch.full((units,), 1 / math.sqrt(1 + told))
        self.slope, self.bias = uniform(ones), uniform(ones)
        self.out, self.level = uniform(reach[self.owner]), uniform(reach)
        self.task = uniform(ones) if told else None

    @property
    def parameters(self) -> list[Tensor]:
        """What trains: ``[H]`` each, and the level ``[G]``."""
        return [self.slope, self.bias, self.out, self.level, *([] if self.task is None else [self.task])]

    def __call__(self, x: Tensor, sign: Tensor) -> Tensor:
        """Predictions ``[G, N]`` for inputs and signs of the task ``[G, N]``."""
        hidden = torch.addcmul(self.bias[:, None], self.slope[:, None], x[self.owner])
        if self.task is not None:
            hidden = torch.addcmul(hidden, self.task[:, None], sign[self.owner])
        return (
            torch.zeros_like(x).index_add(0, self.owner, self.out[:, None] * getattr(torch, self.activation)(hidden))
            + self.level[:, None]
        )


def fit(nets: Nets, x: Tensor, y: Tensor, sign: Tensor, setting: Setting) -> None:
    """Adam on the mean squared error of every network; the sum over networks leaves each its own gradient."""
    adam = torch.optim.Adam(nets.parameters, lr=setting.lr)
    for _ in range(setting.epochs):
        adam.zero_grad()
        (nets(x, sign) - y).square().mean(1).sum().backward()
        adam.step()


def record(setting: Setting) -> dict[str, Any]:
    """Everything that a report needs, for JSON: ``activations -> floors, errors -> kind -> seeds x widths``."""
    activations: dict[str, Any] = {}
    for name in get_args(Activation):
        one = replace(setting, activation=name)
        activations[name] = {"floors": floors(one), "errors": {kind: rows.tolist() for kind, rows in simulate(one).items()}}
    shared = {key: value for key, value in asdict(setting).items() if key != "activation"}
    return {"setting": shared, "activations": activations}
