"""Every reply is checked before it can touch the server's state. A bad one is rejected with a code, counted, and never ends a run.

What a stock federated server accepts (measured on Flower 1.41): NaN and Inf tensors, an example count of 1e12 or -9, shapes that
broadcast, complex numbers. So here: exact keys, shapes and dtypes, finite values, sane weights, one reply per job, of this round.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from fedquilt import tree
from fedquilt.types import Failure, Job, Leaf, Reply, Slot, Spec, State

CODES = ("unknown", "replay", "duplicate", "schema", "nonfinite", "weight", "lost", "malformed", "behind", "refused")


@dataclass(frozen=True)
class Rejection:
    """Why a reply was not used; ``code`` is one of CODES."""

    slot: Slot
    code: str
    detail: str


@dataclass(frozen=True)
class Gate:
    """Checks replies against what was asked for.

    Args:
        most: largest believable number of examples of one slot.
        fingerprint: numbers in the fingerprint that a newcomer has to send; 0: nobody sends one.
    """

    spec: Spec
    most: float = 1e9
    fingerprint: int = 0

    @cached_property
    def leaves(self) -> Mapping[str, Leaf]:
        """By name."""
        return {leaf.name: leaf for leaf in self.spec.leaves}

    def __call__(
        self, replies: Sequence[Reply | Failure], jobs: Sequence[Job], shared: Sequence[str]
    ) -> tuple[list[Reply], list[Rejection]]:
        """(accepted, rejected); of several replies to one job the first is used. Failures are counted with the rejected."""
        asked = {job.slot: job for job in jobs}
        accepted: dict[Slot, Reply] = {}
        rejected, sound = [], self._sound(replies, shared)
        for reply in replies:
            if isinstance(reply, Failure):
                rejected.append(Rejection(reply.slot, reply.code, reply.detail))
                continue
            found = self._code(reply, asked, shared, sound)
            if found is None and reply.slot in accepted:
                found = ("duplicate", "a reply of this slot was already accepted")
            if found is None:
                accepted[reply.slot] = reply
            else:
                rejected.append(Rejection(reply.slot, *found))
        return list(accepted.values()), rejected

    def _sound(self, replies: Sequence[Reply | Failure], shared: Sequence[str]) -> set[int]:
        """Stacks of which replies are rows, by id, if none of their rows can be bad: these are looked at once, not row by row."""
        rows = [reply.delta for reply in replies if isinstance(reply, Reply) and isinstance(reply.delta, tree.Row)]
        stacks = {id(row.of): row for row in rows}
        return {of for of, row in stacks.items() if self._schema(row, shared) is None and tree.finite(row.of)}

    def _code(
        self, reply: Reply, asked: Mapping[Slot, Job], shared: Sequence[str], sound: Collection[int]
    ) -> tuple[str, str] | None:
        job = asked.get(reply.slot)
        if job is None:
            return "unknown", "this slot was not asked"
        if reply.round != job.round.number:
            return "replay", f"reply of round {reply.round} in round {job.round.number}"
        if not (isinstance(reply.weight, float) and math.isfinite(reply.weight) and 0 < reply.weight <= self.most):
            return "weight", f"weight {reply.weight!r}, want a number in (0, {self.most:g}]"
        known = isinstance(reply.delta, tree.Row) and id(reply.delta.of) in sound
        found = None if known else self._schema(reply.delta, shared) or self._finite(reply.delta)
        return found or self._scalars(reply) or self._looks(reply, job)

    def _looks(self, reply: Reply, job: Job) -> tuple[str, str] | None:
        found = reply.fingerprint
        wanted = self.fingerprint if job.row == 0 else 0
        if found is None or not wanted:
            return None if found is None and not wanted else ("schema", "fingerprint is " + ("missing" if wanted else "unexpected"))
        if not (isinstance(found, torch.Tensor) and found.dtype == torch.float32 and tuple(found.shape) == (wanted,)):
            return "schema", f"fingerprint is not a float32 vector of {wanted}"
        return None if bool(torch.isfinite(found).all()) else ("nonfinite", "fingerprint has NaN or Inf")

    def _schema(self, delta: State, shared: Sequence[str]) -> tuple[str, str] | None:
        if set(delta) != set(shared):
            odd = sorted(set(delta) ^ set(shared))[0]
            return "schema", f"key '{odd}' is " + ("missing" if odd in shared else "unexpected")
        for key, tensor in delta.items():
            leaf = self.leaves[key]
            if not (isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided):
                return "schema", f"'{key}' is no dense tensor"
            if tuple(tensor.shape) != leaf.shape:
                return "schema", f"'{key}' has shape {tuple(tensor.shape)}, want {leaf.shape}"
            if tensor.dtype != leaf.dtype:
                return "schema", f"'{key}' is {tensor.dtype}, want {leaf.dtype}"
        return None

    def _finite(self, delta: State) -> tuple[str, str] | None:
        if tree.finite(delta):
            return None
        key = next(key for key, x in delta.items() if not bool(torch.isfinite(x).all()))
        return "nonfinite", f"'{key}' has NaN or Inf"

    def _scalars(self, reply: Reply) -> tuple[str, str] | None:
        odd = [name for name, value in reply.extra.items() if not (isinstance(value, (int, float)) and math.isfinite(value))]
        return ("nonfinite", f"scalar '{odd[0]}'") if odd else None
