"""Rows that clients choose themselves: FL-TAC's clustering where the server may see nothing but sums.

What is clustered is what :class:`fedquilt.assign.kmeans.kmeans` clusters by default: how steep every number of B is on a slot's
data at the common start (docs/decisions/014). A client knows the points of its own slots, the server tells centres, and a step
of Lloyd's,

    every slot goes to the nearest centre (slots of one client to different ones); a centre becomes the mean of its slots

needs from the clients only, for every centre, the sum of its points and of their weights. The sums are exact (fixed point), so the
centres are to the bit those of somebody who sees all points. Nobody has to be told who went where: every client finds its rows
anew from the centres, in every round.

A sum over few slots tells much of each. So clients are asked for sums over all of them first, of points and of their products, and
points are seen along the 2 k principal axes of these, and starts are drawn along the first k - 1, which the best k clusters could
span (Ding & He, K-means clustering via principal component analysis, ICML 2004): along all of them Lloyd's algorithm stays where it
starts, for few points in many dimensions each hold their own centre. What a centre with a single slot tells of it are 2 k numbers.

Source: k-means from sums is Lloyd's algorithm as it is (1982); under secure aggregation clients that choose among models that the
server offers are IFCA's (Ghosh et al. 2020, arXiv 2006.04088), by their loss there, by their points here.

Where we differ from clustering in the clear: there is no point to start from, so centres are drawn, several starts at once, and
the one with the lowest inertia wins; points are sketched to :data:`WIDTH` numbers before their products are
added; mean, variance and axes are those of the slots that were there first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fedquilt.assign.base import Assignment, Fingerprints, at_least_one
from fedquilt.assign.identity import match
from fedquilt.assign.kmeans import LOOKED, kmeans
from fedquilt.assign.lloyd import assigned, squared
from fedquilt.assign.sketch import Items, Sketch, Source
from fedquilt.errors import CompositionError, QuorumError, StateError
from fedquilt.types import Hub, Round, Slot, Spec, Updates

WIDTH = 256  # numbers of a point before there are axes
STEPS = 30  # of Lloyd at most; each is a sum
FLAT = 1e-6  # variance of a number in which slots do not differ: below it is rounding
PREFIX = "places/"  # in Hub.memory
SLOTS, MEAN, SCALE, AXES, WIDE, CENTRES, MASS = (
    f"{PREFIX}{name}" for name in ("slots", "mean", "scale", "axes", "wide", "centres", "mass")
)
SOURCE = f"{PREFIX}source"  # what is found with these, and not kept: rows that rows go on with


class Question(NamedTuple):
    """What clients are to add up: moments of their looks ``[d]``; with ``mean [d]`` and ``scale [d]`` products of their points;
    with ``axes [p, q]`` Lloyd's sums around ``centres [R, k, q]`` of R starts."""

    mean: Tensor | None = None
    scale: Tensor | None = None
    axes: Tensor | None = None
    centres: Tensor | None = None

    @property
    def size(self) -> int:
        """Bytes: float64, one array after the other."""
        return sum(8 * x.numel() for x in self if x is not None)


Add = Callable[[Question], Tensor]  # -> the sum over clients of what they answer, float64


@dataclass(frozen=True)
class chosen:
    """k clusters; group g lives in bank row 1..k, row 0 stays what newcomers start from. Needs ``secure_aggregation``.

    Args:
        constraint: ``cannot-link``: slots of one client are different tasks and choose different rows.
        starts: of Lloyd's algorithm, side by side. More find a better clustering, and tell the server more sums.
    """

    k: int
    constraint: Literal["cannot-link", "none"] = "cannot-link"
    starts: int = 32

    sees: ClassVar[str] = "sum"
    fingerprint: ClassVar[Fingerprints] = "fisher"

    def __post_init__(self) -> None:
        at_least_one(self, "k", "starts")

    @property
    def rows(self) -> int:
        """k clusters and the newcomers' row."""
        return self.k + 1

    def check(self, spec: Spec) -> None:
        """As :meth:`kmeans.check`."""
        self._seeing.check(spec)

    def check_clients(self, clients: Sequence[int], places: int = 1) -> None:
        """As :meth:`kmeans.check_clients`."""
        self._seeing.check_clients(clients, places)

    def largest(self, d: int, starts: int = 1) -> int:
        """Bytes of the largest question about looks of ``d`` numbers: with centres of so many starts."""
        p, q = min(d, WIDTH), min(d, WIDTH, 2 * self.k)
        return 8 * (2 * d + p * q + starts * self.k * q)

    @property
    def _seeing(self) -> kmeans:
        return kmeans(self.k, features="fisher", constraint=self.constraint)

    def __call__(self, updates: Updates, hub: Hub, spec: Spec, now: Round) -> Assignment:
        """Never: the server does not know the rows."""
        raise CompositionError("clients choose their rows", where="method.assign", fix="secure_aggregation = true")

    def settle(self, memory: Mapping[str, Tensor], slots: Sequence[Slot], now: Round, add: Add, found: dict[str, Tensor]) -> None:
        """Server: what is to be remembered of the places of these slots, all that are there, into ``found``.

        Nothing is asked while those who are new are of one client: what its slots add would be the difference to what was added
        before. It chooses among the centres that there are. ``add`` may raise: what was found until then is in ``found``, and is
        not asked again, of other clients perhaps.
        """
        there = {Slot(*pair) for pair in memory[SLOTS].tolist()} if SLOTS in memory else set()
        if SLOTS in memory and len({slot.client for slot in set(slots) - there}) < 2:
            return
        if MEAN not in memory:
            found[MEAN], found[SCALE] = moments(add(Question()))
        mean, scale = ({**memory, **found}[key] for key in (MEAN, SCALE))
        if AXES not in memory:
            found[AXES], found[WIDE] = principal(add(Question(mean, scale)), 2 * self.k)
        axes, wide = ({**memory, **found}[key] for key in (AXES, WIDE))
        known, begin = memory.get(CENTRES), self._begin(wide, now)
        if known is not None:  # is one of the starts
            begin = torch.cat([known[None], begin[1:]])
        centres, mass = self._lloyd(Question(mean, scale, axes, begin), add)
        if known is not None:
            order = matched(centres, known, memory[MASS])
            centres, mass = centres[order], mass[order]
            found[SOURCE] = going_on_with(centres, known, memory[MASS])
        found |= {SLOTS: torch.tensor(sorted(there | set(slots))), CENTRES: centres, MASS: mass}

    def _begin(self, spread: Tensor, now: Round) -> Tensor:
        """Starts ``[R, k, q]``, as wide as points are spread along every axis ``[q]``."""
        width = spread * (torch.arange(len(spread)) < max(1, self.k - 1))
        return torch.randn(self.starts, self.k, len(spread), generator=now.generator("places"), dtype=torch.float64) * width

    def _lloyd(self, question: Question, add: Add) -> tuple[Tensor, Tensor]:
        """Centres ``[k, p]`` and their weights ``[k]`` of the start with the lowest inertia, when it has come to rest."""
        centres, best, mass = question.centres, 0, torch.zeros(0)
        if centres is None:
            raise ValueError("Lloyd's algorithm without a start")
        for _ in range(STEPS):
            sums, mass, inertia = _parts(add(question._replace(centres=centres)), *centres.shape)
            best = int(inertia.argmin())  # of equals the first: what is known
            # A centre that nobody chose stays where it is, for who may come.
            after = torch.where(mass[..., None] > 0, sums / mass[..., None].clamp(min=torch.finfo(torch.float64).tiny), centres)
            if torch.equal(after[best], centres[best]):
                break
            centres = after
        return centres[best], mass[best]

    def answer(self, question: Question, looks: Tensor, samples: Sequence[int], seed: int) -> Tensor:
        """Client: what it adds, float64; ``looks [s, d]`` of its slots and how many examples each has.

        Raises:
            StateError: looks or centres that are no numbers.
        """
        weight = weights(samples)
        if question.mean is None:
            x = looks.double()
            return torch.cat([weight.sum()[None], weight @ x, weight @ x.square()])
        points = located(looks, question, seed)
        if question.centres is None:
            products = (points * weight[:, None]).t() @ points
            return torch.cat([weight.sum()[None], products[tuple(torch.triu_indices(*products.shape))]])
        found = []
        for centres in question.centres:
            distance = squared(points, centres)
            label = self._label(distance, weight)
            sums = torch.zeros_like(centres).index_add_(0, label, points * weight[:, None])
            mass = torch.zeros(self.k, dtype=torch.float64).index_add_(0, label, weight)
            inertia = distance.gather(1, label[:, None])[:, 0] @ weight
            found.append(torch.cat([sums.flatten(), mass, inertia[None]]))
        return torch.cat(found)

    def size(self, question: Question, d: int) -> int:
        """Numbers in an answer, of looks of ``d`` numbers."""
        if question.mean is None:
            return 2 * d + 1
        if question.centres is None:
            p = min(d, WIDTH)
            return p * (p + 1) // 2 + 1
        starts, k, p = question.centres.shape
        return starts * (k * (p + 1) + 1)

    def choose(self, told: Question, looks: Tensor, samples: Sequence[int], seed: int) -> list[int]:
        """Client: rows 1..k of its slots by the one set of centres that it is told."""
        if told.centres is None:
            raise ValueError("no centres to choose from")
        points = located(looks, told, seed)
        return [row + 1 for row in self._label(squared(points, told.centres[0]), weights(samples)).tolist()]

    def _label(self, distance: Tensor, weight: Tensor) -> Tensor:
        if not bool((distance < torch.finfo(torch.float64).max).all()):  # what infinity has become in it
            raise StateError("points or centres that are no numbers", where="message")
        if self.constraint == "none":
            return distance.argmin(1)
        return assigned(distance * weight[:, None], torch.zeros(len(distance), dtype=torch.long))


def packed(told: Question) -> bytes:
    """A question as bytes: what there is of it, float64, one array after the other."""
    return b"".join(x.numpy().tobytes() for x in told if x is not None)


def unpacked(data: bytes, k: int, d: int, most: int) -> Question:
    """The inverse, for ``k`` clusters, looks of ``d`` numbers and at most so many starts.

    Raises:
        StateError: no such question.
    """
    p, q = min(d, WIDTH), min(d, WIDTH, 2 * k)
    numbers = torch.frombuffer(bytearray(data), dtype=torch.float64) if data and len(data) % 8 == 0 else torch.zeros(0).double()
    more = len(numbers) - 2 * d - p * q
    if not data:
        return Question()
    if len(numbers) != 2 * d and (more <= 0 or more % (k * q) or more // (k * q) > most):
        raise StateError(f"{len(data):,} bytes are no centres", where="message")
    mean, scale, rest = numbers[:d], numbers[d : 2 * d], numbers[2 * d :]
    if not bool(mean.isfinite().all() and rest.isfinite().all() and (scale > 0).all()):
        raise StateError("centres that are no numbers", where="message")
    if not len(rest):
        return Question(mean, scale)
    return Question(mean, scale, rest[: p * q].view(p, q), rest[p * q :].view(-1, k, q))


def weights(samples: Sequence[int]) -> Tensor:
    """Of slots ``[s]``: squares of few gradients are mostly noise."""
    return torch.tensor(samples, dtype=torch.float64).clamp(max=LOOKED) / LOOKED


def moments(total: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``[d]`` from the sums; a number in which slots do not differ is infinitely wide."""
    _numbers(total)
    mass, first, second = total[0], *total[1:].chunk(2)
    mean = first / mass
    variance = second / mass - mean.square()
    return mean, torch.where(variance > FLAT, variance.clamp(min=FLAT).sqrt(), torch.inf)


def principal(total: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Axes ``[p, q]`` of the points whose products were added, the widest first, at most so many, and how wide each is ``[q]``."""
    _numbers(total)
    p = int((2 * (len(total) - 1)) ** 0.5)
    products = torch.zeros(p, p, dtype=torch.float64)
    products[tuple(torch.triu_indices(p, p))] = total[1:]
    variance, axes = torch.linalg.eigh((products + products.triu(1).t()) / total[0])
    q = min(p, most)
    return axes[:, -q:].flip(1).contiguous(), variance[-q:].flip(0).clamp(min=0).sqrt()


def located(looks: Tensor, told: Question, seed: int) -> Tensor:
    """Points ``[s, p]`` of looks ``[s, d]``: every number of the same weight, sketched where there are many; ``[s, q]`` along the
    axes where there are any."""
    if told.mean is None or told.scale is None:
        raise ValueError("no mean to look from")
    points = (looks.double() - told.mean) / told.scale
    if points.shape[1] > WIDTH:
        x, points = points, torch.zeros(len(points), WIDTH, dtype=torch.float64)
        Sketch(WIDTH, seed).add(points, Items(len(x), {"": Source(x.shape[1:], lambda rows, out: out.copy_(x[rows]))}), [""])
    return points if told.axes is None else points @ told.axes


def matched(centres: Tensor, before: Tensor, mass: Tensor) -> list[int]:
    """Which of the ``centres [k, p]`` is where which of those ``before [k, p]`` was, so that rows keep their meaning.

    ``mass [k]`` of the rows before: where a row was that nobody was in is nothing to keep, and would push others out of theirs.
    """
    distance = squared(before, centres)
    distance[mass <= 0] = 0
    return match(distance).tolist()


def going_on_with(centres: Tensor, before: Tensor, mass: Tensor) -> Tensor:
    """Rows ``[k + 1]`` with whose adapters the rows go on. ``mass [k]`` of the rows before: nobody was in those of none.

    A row whose centre is now nearest to where another row's was has that row's slots: half of a cluster that became two, say, which
    got the row of two that became one. It goes on with what these slots had.
    """
    distance, own = squared(centres, before), torch.arange(len(mass))
    distance[:, mass <= 0] = torch.inf
    nearest = distance.argmin(1)
    moved = (mass > 0) & (distance[own, nearest] < distance[own, own])
    return torch.cat([own[:1], torch.where(moved, nearest, own) + 1])


def _numbers(total: Tensor) -> None:
    if not (bool(total.isfinite().all()) and total[0] > 0):
        raise QuorumError("the clients' sums are no numbers", where="secure aggregation")


def _parts(total: Tensor, starts: int, k: int, p: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums ``[R, k, p]``, weights ``[R, k]`` and inertia ``[R]``."""
    each = total.view(starts, k * (p + 1) + 1)
    return each[:, : k * p].reshape(starts, k, p), each[:, k * p : -1], each[:, -1]
