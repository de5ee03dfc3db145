"""A round of which the server sees sums alone: what a client adds to them, and what they say.

One vector of fixed-point numbers per client, in which every row of the bank that a slot may be in has a place:

    for every row and leaf  sum of weight * change       over the client's slots that are in the row
    for every row           sum of weights, number of slots
                            sum of weight * loss         over all rows

The sum over clients modulo 2^64 is exact, whatever its order, so a simulation has the bits of a deployment in which the vectors are
added behind masks (:mod:`fedquilt.privacy.secagg`). Which row a slot is in stays with its client: rows it does not use are zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedquilt.errors import QuorumError
from fedquilt.privacy import fixed
from fedquilt.privacy.fixed import Words
from fedquilt.types import Failure, Leaf, Reply, Slot, Stack

BITS = 32  # behind the point: 2e-10, and sums up to 2e9
KEYS, SHARE, SEALED = 96, 33, 94  # bytes: of a client's public keys, of an opened share, of two shares encrypted for somebody


class Sums(NamedTuple):
    """Of K rows: ``delta [K, ...]`` weighted sums in float64, ``weights [K]``, ``counts [K]`` int64 slots, ``loss``, weighted."""

    delta: Stack
    weights: Tensor
    counts: Tensor
    loss: float

    def wrong(self, slots: int, most: float, *, uniform: bool) -> str:
        """What these sums of so many slots, none heavier than ``most``, cannot be; empty if they can: one client can add anything,
        and nobody sees whose it is."""
        counts = self.counts.double()
        if bool((counts < 0).any()) or int(counts.sum()) > slots:
            return f"{int(counts.sum())} slots were counted, and {slots} took part"
        heavy = counts if uniform else counts * most
        if bool((self.weights > heavy).any()) or bool((self.weights <= 0)[counts > 0].any()):
            return "weights that so many slots cannot have"
        return "" if all(bool(x.isfinite().all()) for x in self.delta.values()) else "numbers that are none"

    def means(self, leaves: Sequence[Leaf]) -> dict[str, Tensor]:
        """Weighted means ``[K, ...]`` in the leaves' types; 0 where nothing weighs."""
        mass = self.weights.clamp(min=torch.finfo(torch.float64).tiny)
        return {
            leaf.name: (self.delta[leaf.name] / mass.view(-1, *[1] * len(leaf.shape))).to(leaf.dtype)
            for leaf in leaves
            if leaf.name in self.delta
        }


@dataclass(frozen=True)
class Total:
    """What came of a round.

    Attributes:
        sums: None: too few clients for any.
        slots: of the clients whose part is in it.
        failures: slots of the others.
        sent, came: bytes per client beside the leaves that its slots were sent: keys, shares, vectors, and what it chooses from.
        memory: what the server is to remember from now on.
    """

    sums: Sums | None
    slots: tuple[Slot, ...]
    failures: tuple[Failure, ...]
    sent: Mapping[int, int]
    came: Mapping[int, int]
    memory: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Where what is in the vector. ``leaves``: those that travel in a round; ``rows`` of the bank, the ``first`` of which nobody is
    ever in; ``uniform``: every slot weighs 1."""

    leaves: Sequence[Leaf]
    rows: int = 1
    uniform: bool = False
    first: int = 0

    @property
    def size(self) -> int:
        """Numbers."""
        return (self.rows - self.first) * (sum(leaf.size for leaf in self.leaves) + 2) + 1

    def usable(self, reply: Reply) -> bool:
        """Whether it is finite: a slot that diverged is left out by its own client, as the gate of a server would."""
        return bool(np.isfinite(self._flat(reply.delta)).all() and np.isfinite(reply.extra["loss"]))

    def words(self, replies: Sequence[tuple[int, Reply]], clients: int) -> Words:
        """A client's vector from the rows of its slots and their replies, all usable.

        Raises:
            ValueError: so large that the sum over ``clients`` such vectors could leave 64 bits.
        """
        vector = np.zeros(self.size)
        places, counts, loss = self._parts(vector)
        for row, reply in replies:
            weight = 1.0 if self.uniform else reply.weight
            places[row - self.first] += weight * self._flat(reply.delta)
            counts[row - self.first] += weight, 1.0
            loss += weight * reply.extra["loss"]
        return fixed.encode(vector, bits=BITS, contributors=clients)

    def read(self, total: Words) -> Sums:
        """The inverse, of a sum; of all rows."""
        places, counts, loss = self._parts(fixed.decode(total, bits=BITS))
        places, counts = (np.pad(x, ((self.first, 0), (0, 0))) for x in (places, counts))
        delta, at = {}, 0
        for leaf in sorted(self.leaves, key=lambda leaf: leaf.name):
            delta[leaf.name] = torch.from_numpy(places[:, at : at + leaf.size].copy()).reshape(self.rows, *leaf.shape)
            at += leaf.size
        weights, many = torch.from_numpy(counts.copy()).unbind(1)
        return Sums(delta, weights, many.long(), float(loss[0]))

    def _parts(self, vector: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Views: ``[rows, numbers]``, ``[rows, 2]``, ``[1]``."""
        rows = self.rows - self.first
        changes, counts = vector[: -2 * rows - 1], vector[-2 * rows - 1 : -1]
        return changes.reshape(rows, -1), counts.reshape(rows, 2), vector[-1:]

    def _flat(self, delta: Mapping[str, Tensor]) -> NDArray[np.float64]:
        parts = [delta[leaf.name].reshape(-1).double().numpy() for leaf in sorted(self.leaves, key=lambda leaf: leaf.name)]
        return np.concatenate(parts) if parts else np.zeros(0)


def encoded(vector: Tensor, clients: int) -> Words:
    """A float64 vector as what can be added over so many clients."""
    return fixed.encode(vector.double().numpy(), bits=BITS, contributors=clients)


def decoded(total: Words) -> Tensor:
    """A sum of such vectors."""
    return torch.from_numpy(fixed.decode(total, bits=BITS))


class Adding:
    """A sum of what clients of this process would send, of so many that were asked; vectors are not kept."""

    def __init__(self, asked: int) -> None:
        self.asked, self.clients = asked, list[int]()
        self.words: Words = np.zeros(0, dtype=np.uint64)

    def add(self, client: int, words: Words) -> None:
        """One more."""
        self.words = self.words + words if self.clients else words
        self.clients.append(client)

    def total(self) -> Words:
        """The sum.

        Raises:
            QuorumError: too few to hide among.
        """
        if len(self.clients) < least(self.asked):
            what = f"{len(self.clients)} of {self.asked} clients are too few to hide among: {least(self.asked)} are needed"
            raise QuorumError(what)
        return self.words


def least(clients: int) -> int:
    """The smallest threshold that clients accept: more than two thirds, and two (the sum of one is what it sent)."""
    return max(2, 2 * clients // 3 + 1)


def traffic(clients: int, numbers: int) -> tuple[int, int]:
    """Bytes that a client is sent and sends in one sum of so many clients, nobody leaving (heads of messages not counted)."""
    shares = (clients - 1) * SEALED
    return clients * KEYS + shares, KEYS + shares + 8 * numbers + clients * SHARE
