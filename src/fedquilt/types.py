"""The nouns: what travels between clients, engines, methods and the server. Data only, no behaviour beyond checks.

There is no field in which a task name, a label or a raw example could reach the server: a slot number is a client-private
permutation, and :class:`Reply` and :class:`Updates` carry tensors and declared scalars only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.rng import Salt, derive, generator

State = Mapping[str, Tensor]  # one adapter: stable key "<module path>/<role>" -> tensor
Stack = Mapping[str, Tensor]  # the same keys with one more leading axis: [n, ...] contributors or [K, ...] rows


class Slot(NamedTuple):
    """One place an adapter lives. ``number`` is private to the client: equal numbers of two clients mean nothing."""

    client: int
    number: int


@dataclass(frozen=True)
class Leaf:
    """One tensor of an adapter.

    Attributes:
        name: stable key, ``<module path>/<role>``; no library prefix in it.
        shape: without the leading axis of a stack.
        role: lora_A, lora_B, head, weight, ...; what parts select by.
        index: position of its module in the model's order; the two factors of one map share it.
        rank_axis: the axis that has the length of the rank, or None.
        dtype: of the tensor, on the wire too.
        core: of a tensor train's core its 0-based place and the number of cores; None for other leaves.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    index: int
    rank_axis: int | None = None
    dtype: torch.dtype = torch.float32
    core: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """Number of scalars."""
        count = 1
        for side in self.shape:
            count *= side
        return count


@dataclass(frozen=True)
class Spec:
    """What every part may know of an adapter: its leaves and its algebra, never the model or the data.

    Attributes:
        scale: ``alpha / r``: what the product of the factors is multiplied by, exactly once.
        rank: of the factors; 0 where the family has none.
        head: policy of the head leaves: federated, per-task, private or frozen.
    """

    family: str
    leaves: tuple[Leaf, ...]
    scale: float = 1.0
    rank: int = 0
    head: str = "federated"

    def names(self, *roles: str) -> tuple[str, ...]:
        """Names of all leaves, or of those with one of the roles, sorted."""
        return tuple(sorted(leaf.name for leaf in self.leaves if not roles or leaf.role in roles))

    def only(self, names: Iterable[str]) -> list[Leaf]:
        """Leaves of these names, sorted by them."""
        wanted = set(names)
        return sorted((leaf for leaf in self.leaves if leaf.name in wanted), key=lambda leaf: leaf.name)

    def size(self, *roles: str) -> int:
        """Scalars in all leaves, or in those with one of the roles."""
        return sum(leaf.size for leaf in self.leaves if not roles or leaf.role in roles)

    def counts(self) -> dict[str, int]:
        """``adapter``, ``head`` and ``total`` scalars: always reported apart, for the head often outweighs the adapter."""
        head = self.size("head")
        return {"adapter": self.size() - head, "head": head, "total": self.size()}

    def pairs(self) -> list[tuple[str, str]]:
        """Names of (lora_A, lora_B) of every adapted map, in model order; empty where there is no product algebra."""
        factors: dict[int, dict[str, str]] = {}
        for leaf in self.leaves:
            if leaf.role in ("lora_A", "lora_B"):
                factors.setdefault(leaf.index, {})[leaf.role] = leaf.name
        return [(pair["lora_A"], pair["lora_B"]) for _, pair in sorted(factors.items())]


@dataclass(frozen=True)
class Round:
    """A round's number (1-based) and the run's seed: the source of all public randomness in it."""

    number: int
    seed: int

    def generator(self, *salt: Salt) -> torch.Generator:
        """Public randomness of this round for one purpose."""
        return generator(self.seed, "round", self.number, *salt)

    def derive(self, *salt: Salt) -> int:
        """A public 63-bit seed of this round for one purpose."""
        return derive(self.seed, "round", self.number, *salt)


@dataclass(frozen=True)
class Job:
    """What the server asks of one slot in one round.

    Attributes:
        row: the bank row the slot starts from.
        effort: factor on the client's configured number of local steps (a longer first phase, a straggler's share).
    """

    slot: Slot
    row: int
    round: Round
    effort: float = 1.0


@dataclass(frozen=True)
class Reply:
    """What one slot sends back: the change of the shared leaves, its weight, and declared scalars.

    ``fingerprint [d]``: what a newcomer's data looks like to the frozen base, where the method asks for it.
    """

    slot: Slot
    round: int
    delta: State
    weight: float
    extra: Mapping[str, float] = field(default_factory=dict)
    fingerprint: Tensor | None = None


@dataclass(frozen=True)
class Failure:
    """A job without a usable reply: nothing came, or what came is none. Engines whose clients are elsewhere say so.

    ``code``: lost (nothing came in time), malformed, behind (the client lacks what the changes are changes of) or refused.
    """

    slot: Slot
    code: str
    detail: str


@dataclass(frozen=True)
class Shipment:
    """Leaves that a slot is sent: those that changed since round ``since``; all of its row if that is 0."""

    leaves: tuple[str, ...]
    since: int


@dataclass(frozen=True)
class Updates:
    """The accepted replies of a round as stacked tensors, sorted by slot.

    Attributes:
        delta: ``[n, ...]`` change against ``start``.
        start: ``[n, ...]`` the shared leaves every contributor started from.
        weight: ``[n]`` float64, positive.
        origin: n slots in ascending order.
        staleness: ``[n]`` rounds between the start and now (0 in synchronous rounds).
        rank: ``[n]`` adapter rank of each contributor (0 where the family has none).
        extra: declared scalars or small vectors, ``[n, ...]``.
    """

    delta: Stack
    start: Stack
    weight: Tensor
    origin: tuple[Slot, ...]
    staleness: Tensor
    rank: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.origin)
        if list(self.origin) != sorted(set(self.origin)):
            raise ValueError("updates must be sorted by (client, slot) and unique: the order of sums decides the bits")
        for name, stacked in (("delta", self.delta), ("start", self.start)):
            if stacked and tree.length(stacked) != n:
                raise ValueError(f"{name} has {tree.length(stacked)} rows for {n} slots")
        tree.same_keys(self.delta, self.start)
        for vector in (self.weight, self.staleness, self.rank, *self.extra.values()):
            if vector.shape[0] != n:
                raise ValueError(f"a vector of length {vector.shape[0]} for {n} slots")

    def __len__(self) -> int:
        return len(self.origin)

    def with_delta(self, delta: Stack) -> Updates:
        """A copy with another ``delta``."""
        return replace(self, delta=delta)


@dataclass(frozen=True)
class Hub:
    """All server state, saved as safetensors + json.

    Attributes:
        bank: ``[K, ...]`` K adapters; row 0 is what a newcomer starts from.
        table: slot -> row, for every slot that has contributed.
        patch: low-rank corrections of the base weights *per row*, two factors per module:
            ``<module path>/patch_A [K, R, in]`` and ``<module path>/patch_B [K, out, R]``. Per row, because a patch of the
            one global base could not be combined with clustering.
        memory: per-row moments of the server optimiser and whatever else a part keeps, ``[K, ...]`` or ``[...]``.
        step: completed server steps.
    """

    bank: Stack
    table: Mapping[Slot, int] = field(default_factory=dict)
    patch: Stack = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        if not self.bank:
            return
        k = tree.length(self.bank)
        if any(not 0 <= row < k for row in self.table.values()):
            raise ValueError(f"the table points outside the bank of {k} rows")
        for key, tensor in self.patch.items():
            path, _, role = key.rpartition("/")
            if role not in ("patch_A", "patch_B") or {f"{path}/patch_A", f"{path}/patch_B"} - set(self.patch):
                raise ValueError(f"patch leaf '{key}': patches are pairs of low-rank factors <module>/patch_A, patch_B")
            if tensor.dim() != 3 or tensor.shape[0] != k:
                raise ValueError(f"patch leaf '{key}' has shape {tuple(tensor.shape)}, want [{k}, ., .]: one patch per row")

    def row_of(self, slot: Slot) -> int:
        """The slot's row; row 0 for a slot that never contributed."""
        return self.table.get(slot, 0)


@dataclass(frozen=True)
class Batch:
    """Examples of one or many slots, ragged: no padding is stored. Texts, or images of one size.

    Attributes:
        tokens: ``[T]`` token ids of all rows one after the other (T = sum of lengths); empty for images.
        types: ``[T]`` segment ids (0 first text, 1 second); empty for images.
        lengths: ``[n]`` tokens per row (of an image: its patches and the class token).
        labels: ``[n]`` float64: class index, or the value of a regression.
        classes: ``[n]`` number of classes of the row's label set; 1 means regression.
        owner: ``[n]`` which of the G stacked adapters the row belongs to.
        head: ``[n]`` which head of its adapter the row uses (0 unless heads are per task).
        keys: ``[n]`` int64 seeds of the row's dropout masks.
        pixels: ``[n, 3, H, W]`` uint8, not yet normalised; None for texts.
    """

    tokens: Tensor
    types: Tensor
    lengths: Tensor
    labels: Tensor
    classes: Tensor
    owner: Tensor
    head: Tensor
    keys: Tensor
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return int(self.lengths.shape[0])

    def parts(self, most: int) -> list[Batch]:
        """The rows in order, up to ``most`` at a time."""
        return [self.pick(index) for index in torch.arange(len(self)).split(most)]

    def pick(self, index: Tensor) -> Batch:
        """The rows ``index`` in that order."""
        rest = {name: getattr(self, name)[index] for name in ("labels", "classes", "owner", "head", "keys")}
        if self.pixels is not None:
            lengths, pixels = self.lengths[index], self.pixels[index]
            return Batch(tokens=self.tokens, types=self.types, lengths=lengths, pixels=pixels, **rest)
        ends = torch.cumsum(self.lengths, 0)
        lengths = self.lengths[index]
        starts = (ends - self.lengths)[index]
        offsets = torch.cumsum(lengths, 0) - lengths
        where = torch.arange(int(lengths.sum())) + torch.repeat_interleave(starts - offsets, lengths)
        return Batch(tokens=self.tokens[where], types=self.types[where], lengths=lengths, **rest)

    def prompts(self) -> Batch:
        """Rows of a language model without their responses (tokens of type 1)."""
        asked = self.types == 0
        row = torch.repeat_interleave(torch.arange(len(self)), self.lengths)
        lengths = torch.zeros_like(self.lengths).index_add_(0, row, asked.long())
        return replace(self, tokens=self.tokens[asked], types=self.types[asked], lengths=lengths)

    @staticmethod
    def cat(batches: list[Batch]) -> Batch:
        """Several batches one after the other."""
        names = ["tokens", "types", "lengths", "labels", "classes", "owner", "head", "keys"]
        names += ["pixels"] if batches[0].pixels is not None else []
        return Batch(**{name: torch.cat([getattr(b, name) for b in batches]) for name in names})


LossFn = Callable[[Stack, Batch], Tensor]  # G stacked adapters, rows of all of them -> [G] mean loss of each one's rows
Metrics = dict[str, float]
