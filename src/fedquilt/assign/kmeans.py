"""k-means over uploaded adapters: FL-TAC's server step (Ping et al. 2024, arXiv 2404.15384, algorithm part 3), made robust.

Beyond the paper, each switchable: slots of one client are different tasks and never share a cluster (*cannot-link*: Hungarian
assignment inside every client); clusters keep their row over the rounds; rows that nobody reached keep their adapter; with
partial participation the previous clusters are kept as centres.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from numpy.random import Generator
from torch import Tensor

from fedquilt import tree
from fedquilt.assign.base import Assignment, Fingerprints, at_least_one
from fedquilt.assign.features import Features, beside, compared, coordinates, described, linear, located, stacked, uploaded
from fedquilt.assign.history import History, extend, recall
from fedquilt.assign.identity import by_members, by_place
from fedquilt.assign.lloyd import Clustering, constrained, farthest, from_labels, nearest, plain, plus_plus, silhouette
from fedquilt.assign.sketch import EXACT, Items
from fedquilt.errors import CompositionError, ConfigError
from fedquilt.rng import numpy_generator
from fedquilt.types import Hub, Metrics, Round, Slot, Spec, Updates

SENT: Mapping[Features, Fingerprints] = {"fingerprint": "states", "fisher": "fisher"}
LOOKED = 256  # examples whose gradients a slot squares at most: one with fewer counts less
FEWER = 16  # restarts, and clients whose slots are starts, where not all items are tried


class Cloud(NamedTuple):
    """What is clustered: ``points [n, d]``, how much each counts ``[n]``, and whose it is."""

    points: Tensor
    weight: Tensor
    clients: Sequence[int]

    @classmethod
    def of(cls, points: Tensor, slots: Sequence[Slot], weight: Tensor | None = None) -> Cloud:
        """The points of some slots; all count the same unless said otherwise."""
        return cls(points, points.new_ones(len(points)) if weight is None else weight, [slot.client for slot in slots])

    def take(self, index: Tensor) -> Cloud:
        """Some of them, in that order."""
        return Cloud(self.points[index], self.weight[index], [self.clients[i] for i in index.tolist()])


@dataclass(frozen=True)
class kmeans:
    """Cluster the uploads of a round into ``k`` groups; group g lives in bank row 1..k, row 0 stays what newcomers start from.

    Args:
        k: number of clusters (FL-TAC: the number of tasks in the federation).
        features: see :mod:`fedquilt.assign.features`.
        constraint: ``cannot-link`` (ours) or ``none`` (the paper: scikit-learn's KMeans).
        head: whether the head's tensors count as features (the public FL-TAC code lets them; they separate tasks poorly).
        restarts: k-means++ starts per round; the lowest inertia wins. Under cannot-link the slots of every client, which are of
            different tasks, are starts as well (ours). Above :data:`fedquilt.assign.sketch.EXACT` items :data:`FEWER` starts of
            either kind, on some of them.
        estimate: the number of clusters is not known: ``k`` is the most there may be, and every round takes the number from
            2 (under cannot-link: the most slots that one client has) to ``k`` with the largest mean silhouette (Rousseeuw 1987).
    """

    k: int
    features: Features = "b_factors"
    constraint: Literal["cannot-link", "none"] = "cannot-link"
    head: bool = False
    restarts: int = 50
    estimate: bool = False

    sees: ClassVar[str] = "content"

    def __post_init__(self) -> None:
        at_least_one(self, "k", "restarts")

    def check(self, spec: Spec) -> None:
        """Whether an adapter has anything to compare.

        Raises:
            CompositionError: no product of two factors, or nothing but a head that does not count.
        """
        if self.features == "products" and not spec.pairs():
            raise CompositionError(
                f"the adapter '{spec.family}' has no low-rank products to compare",
                where="method.features",
                fix="use features = 'factors' or a LoRA adapter",
            )
        if not self.head and not spec.size() - spec.size("head"):
            raise CompositionError(
                f"the adapter '{spec.family}' is nothing but a head",
                where="method.adapter",
                why="the head does not count as a feature here",
                fix="set features = 'factors' and head_features = true, or use a LoRA adapter",
            )
        if self.features == "fisher" and self.head:
            raise CompositionError(
                "the squared gradients of a head are not looked at",
                where="method.features",
                fix="leave method.head_features out, use an adapter beside the head, or other features",
            )

    def check_clients(self, clients: Sequence[int], places: int = 1) -> None:
        """Whether slots of the ``clients`` (one entry per slot) can all be in different clusters, if they have to.

        Raises:
            ConfigError: they have to, and a client's slots of one task (``places``) are to come together.
            CompositionError: a client has more slots than there are clusters.
        """
        if self.constraint != "cannot-link":
            return
        if places > 1:
            raise ConfigError(
                f"{places} slots per task, and slots of one client never share a cluster",
                where="partition.slots_per_task",
                why="the places of one task could never come together",
                fix="set method.constraint = 'none'",
            )
        most = most_slots(clients)
        if most > self.k:
            raise CompositionError(
                f"a client has {most} slots for {self.k} clusters",
                where="method.tasks",
                why="slots of one client are different tasks and need different clusters (cannot-link)",
                fix=f"set method.tasks to {most} or more, or method.constraint to 'none'",
            )

    @property
    def fingerprint(self) -> Fingerprints:
        """What newcomers send of their data."""
        return SENT.get(self.features, "")

    @property
    def rows(self) -> int:
        """k clusters and the newcomers' row."""
        return self.k + 1

    def __call__(self, updates: Updates, hub: Hub, spec: Spec, now: Round) -> Assignment:
        if not updates.delta:
            raise CompositionError("k-means needs uploads to look at", why="nothing is shared", fix="share some leaves")
        if self.features in ("history", *SENT):
            return self._by_history(updates, hub, spec, now)
        items = uploaded(updates)
        before = torch.tensor([hub.row_of(slot) for slot in updates.origin])
        points, bank_points = self._points(items, updates, hub, spec, now)
        cloud = Cloud.of(points, updates.origin)
        # Who is absent would be forgotten by a fresh start: a cohort may lack whole tasks.
        fresh = set(hub.table) <= set(updates.origin) or not bool((before > 0).any())
        found, metrics = self._best(cloud, self._known(cloud, bank_points, before, hub), now, fresh=fresh)
        rows = self._rows(found.labels, points, bank_points, items, hub, spec)
        return Assignment(rows, {**metrics, "moved": float((rows != before).sum())})

    def _by_history(self, updates: Updates, hub: Hub, spec: Spec, now: Round) -> Assignment:
        """Cluster all slots ever seen by what is known of them; the absent ones change their row too."""
        names = [] if self.features == "fisher" else compared(updates.delta, spec, self.features, self.head)
        past = extend(recall(hub.memory), updates, names)
        cloud = self._described(past, spec, now)
        before = torch.tensor([hub.row_of(slot) for slot in past.slots])
        found, metrics = self._best(cloud, self._known(cloud, None, before, hub), now, fresh=True)
        rows, source = by_members(found.labels, before, self.k)
        table = dict(zip(past.slots, rows.tolist(), strict=True))
        metrics = {**metrics, "moved": float((rows != before).sum())}
        return Assignment(torch.tensor([table[slot] for slot in updates.origin]), metrics, past.memory(), table, source)

    def _described(self, past: History, spec: Spec, now: Round) -> Cloud:
        """All slots ever seen."""
        if self.features == "fisher" and past.fingerprint is not None:
            weight = past.weight.clamp(max=LOOKED) / LOOKED  # squares of few gradients are mostly noise
            return Cloud.of(described(past.fingerprint, weight, now.seed), past.slots, weight)
        points = located([past.mean()], spec, self.features, self.head, now.seed)
        return Cloud.of(points if past.fingerprint is None else beside(points, past.fingerprint), past.slots)

    def _known(self, cloud: Cloud, bank_points: Tensor | None, before: Tensor, hub: Hub) -> Tensor | None:
        """Centres ``[k, d]`` of the rows that the slots were in; None in the first round."""
        if not bool((before > 0).any()):
            return None
        start = from_labels(cloud.points, before - 1, self.k, cloud.weight)
        if bank_points is None:
            return start
        in_use = set(hub.table.values())  # rows in use whose slots are all away keep their place
        used = torch.tensor([row + 1 in in_use for row in range(self.k)])
        return torch.where((start.isnan().any(1) & used)[:, None], bank_points, start)

    def _best(self, cloud: Cloud, known: Tensor | None, now: Round, *, fresh: bool) -> tuple[Clustering, Metrics]:
        """The lowest inertia over a start from the known rows and, if ``fresh``, random restarts."""
        self.check_clients(cloud.clients)
        candidates = [] if known is None else [self._run(cloud, known, known=True)]
        if not fresh:
            return candidates[0], {"inertia": candidates[0].inertia}
        if self.estimate:
            return self._estimated(cloud, candidates, now)
        found = min([*candidates, *self._afresh(cloud, self.k, now)], key=lambda c: c.inertia)  # of equals: the known
        return found, {"inertia": found.inertia}

    def _estimated(self, cloud: Cloud, candidates: list[Clustering], now: Round) -> tuple[Clustering, Metrics]:
        """The number of clusters with the largest silhouette; for every number the lowest inertia."""
        least = most_slots(cloud.clients) if self.constraint == "cannot-link" else 1
        best: dict[int, Clustering] = {}
        for k in range(min(max(2, least), self.k), self.k + 1):
            for found in [*candidates, *self._afresh(cloud, k, now)]:
                used = len(torch.unique(found.labels))
                if used not in best or found.inertia < best[used].inertia:
                    best[used] = found
        scores = {used: silhouette(cloud.points, found.labels, cloud.weight) for used, found in sorted(best.items())}
        used = max(scores, key=lambda k: scores[k])  # the first of equals: the fewest clusters
        return best[used], {"inertia": best[used].inertia, "clusters": float(used), "silhouette": scores[used]}

    def _afresh(self, cloud: Cloud, k: int, now: Round) -> list[Clustering]:
        """One clustering per k-means++ start; under cannot-link also one from the slots of every client (at most as many)."""
        stream = numpy_generator(now.seed, "kmeans", now.number)
        if len(cloud.points) <= EXACT:
            return self._starts(cloud, k, stream, self.restarts)
        # The best start is looked for among some clients; all items go on from what it ends in.
        some = cloud.take(of_some_clients(cloud.clients, stream))
        among = some._replace(points=coordinates(linear(some.points)))  # the same distances in fewer dimensions
        best = min(self._starts(among, k, stream, FEWER), key=lambda c: c.inertia)
        starts = [from_labels(some.points, best.labels, k, some.weight)]
        starts.append(farthest(cloud.points, min(k, len(cloud.points)), cloud.weight))  # small clusters may have nobody among them
        return [self._run(cloud, start, known=True) for start in starts]

    def _starts(self, cloud: Cloud, k: int, stream: Generator, restarts: int) -> list[Clustering]:
        firsts: list[list[int]] = [[] for _ in range(restarts)]
        if self.constraint == "cannot-link":
            firsts += own_slots(cloud.clients)[:restarts]
        k = min(k, len(cloud.points))
        return [self._run(cloud, plus_plus(cloud.points, k, stream, first, cloud.weight)) for first in firsts]

    def _points(self, items: Items, updates: Updates, hub: Hub, spec: Spec, now: Round) -> tuple[Tensor, Tensor | None]:
        """Points of the uploads ``[n, d]``, and of the bank's clusters ``[k, d]`` where the features have any."""
        if self.features == "updates":
            return located([stacked(updates.delta)], spec, self.features, self.head, now.seed), None
        bank = stacked({key: hub.bank[key][1:] for key in items.leaves})
        points = located([items, bank], spec, self.features, self.head, now.seed)
        return points[: len(updates)], points[len(updates) :]

    def _rows(self, labels: Tensor, points: Tensor, bank_points: Tensor | None, items: Items, hub: Hub, spec: Spec) -> Tensor:
        """The clusters' rows by the features that made them: a head, or a factor's gauge, that was not compared does not count."""
        if bank_points is not None:
            return by_place(labels, from_labels(points, labels, self.k), bank_points)
        names = compared(items.leaves, spec, self.features, self.head)  # changes have no place; what they lead to has
        some = Items(items.n, {name: items.leaves[name] for name in names})
        return by_place(labels, some.means(labels, self.k), tree.flatten_rows(tree.select(hub.bank, names))[1:])

    def _run(self, cloud: Cloud, start: Tensor, *, known: bool = False) -> Clustering:
        if self.constraint == "none":
            return (nearest if known else plain)(cloud.points, start, cloud.weight)
        return constrained(cloud.points, start, cloud.clients, cloud.weight)


def own_slots(clients: Sequence[int]) -> list[list[int]]:
    """Numbers of each client's items, of different tasks for certain, where it has several; the clients with the most first."""
    items: dict[int, list[int]] = {}
    for number, client in enumerate(clients):
        items.setdefault(client, []).append(number)
    return sorted((found for found in items.values() if len(found) > 1), key=len, reverse=True)


def of_some_clients(clients: Sequence[int], stream: Generator) -> Tensor:
    """Numbers of all items of some clients, about :data:`fedquilt.assign.sketch.EXACT` together, ascending."""
    owner = torch.as_tensor(clients)
    every, counts = torch.unique(owner, return_counts=True)
    order = torch.from_numpy(stream.permutation(len(every)))
    enough = int(torch.searchsorted(counts[order].cumsum(0), EXACT)) + 1
    return torch.nonzero(torch.isin(owner, every[order[:enough]])).flatten()


def most_slots(clients: Sequence[int]) -> int:
    """Slots of the client that has the most: under cannot-link there are at least so many clusters."""
    return max(Counter(clients).values(), default=0)
