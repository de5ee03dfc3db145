"""What simulated clients keep, on disk: memory holds what changed since the last commit, whatever the number of clients.

Every commit that has something to write makes one segment, ``state/clients-<round>.safetensors``, with the slots that changed since
the one before; a slot's newest segment counts. A segment of which less than half still counts is emptied into the next one, so
the segments hold at most about twice what the clients that ever took part keep.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedquilt.engine.kept import flat, kept_of, slot_of
from fedquilt.errors import StateError
from fedquilt.runs.atomic import check, write_atomic
from fedquilt.types import Slot, State

PREFIX = "state/clients-"
OPEN = 4  # segments held open


@dataclass
class ClientStore:
    """The segments of one run directory; keeps what an engine gives it (:class:`fedquilt.engine.kept.Kept`).

    Attributes:
        files: segment -> SHA-256.
        index: slot -> the segment that has its newest state.
        slots: segment -> how many slots were written into it.
        fresh: what changed since the last commit.
        most_open: segments held open. A reader of a directory that another process writes holds all: what is open stays readable.
    """

    folder: Path
    files: dict[str, str] = field(default_factory=dict)
    index: dict[Slot, str] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    fresh: dict[Slot, Mapping[str, State]] = field(default_factory=dict)
    most_open: int = OPEN
    opened: OrderedDict[str, tuple[Any, dict[Slot, list[str]]]] = field(default_factory=OrderedDict)

    def get(self, slot: Slot) -> Mapping[str, State]:
        """What the slot keeps: kind -> tensors."""
        if slot in self.fresh or slot not in self.index:
            return self.fresh.get(slot, {})
        handle, keys = self._segment(self.index[slot])
        return kept_of({key: handle.get_tensor(key).clone() for key in keys[slot]})

    def put(self, slot: Slot, kept: Mapping[str, State]) -> None:
        """Keep until the next commit makes it durable."""
        self.fresh[slot] = kept

    def flush(self, number: int) -> dict[str, str]:
        """Write what changed as the segment of round ``number``; names and SHA-256 of all segments that count."""
        name = f"{PREFIX}{number:06d}.safetensors"
        self._empty(name)
        if self.fresh:
            tensors: dict[str, Tensor] = {}
            for slot, kept in sorted(self.fresh.items()):
                tensors.update({key: x.contiguous() for key, x in flat(slot, kept).items()})
            self.files[name] = write_atomic(self.folder / name, save(tensors))
            self.opened.pop(name, None)
            self.index.update(dict.fromkeys(self.fresh, name))
            self.slots[name] = len(self.fresh)
            self.fresh = {}
        live = set(self.index.values())
        self.files = {name: digest for name, digest in self.files.items() if name in live}
        return dict(self.files)

    def load(self, files: Mapping[str, str]) -> None:
        """Take these segments in the place of what is here.

        Raises:
            StateError: one of them is missing or corrupt.
        """
        self.files, self.index, self.slots, self.fresh = {}, {}, {}, {}
        self.opened.clear()
        for name, digest in sorted(files.items(), key=lambda entry: (len(entry[0]), entry[0])):  # by round, however many digits
            check(self.folder / name, digest)
            _, keys = self._segment(name)
            self.index.update(dict.fromkeys(keys, name))
            self.files[name], self.slots[name] = digest, len(keys)

    def _empty(self, name: str) -> None:
        """Take what counts out of segments that are mostly old, and of one that is about to be replaced."""
        counts = Counter(segment for slot, segment in self.index.items() if slot not in self.fresh)
        for slot, segment in list(self.index.items()):
            if slot not in self.fresh and (segment == name or 2 * counts[segment] < self.slots[segment]):
                self.fresh[slot] = self.get(slot)

    def _segment(self, name: str) -> tuple[Any, dict[Slot, list[str]]]:
        """(open file, slot -> its keys)."""
        if name not in self.opened:
            try:
                handle: Any = safe_open(self.folder / name, framework="pt")
            except (OSError, SafetensorError) as error:
                what = "cannot be read" if isinstance(error, OSError) else "is no safetensors file"
                raise StateError(f"{Path(name).name} {what}", where=str(self.folder / name), why=str(error)) from error
            keys: dict[Slot, list[str]] = {}
            for key in handle.keys():  # noqa: SIM118 - no mapping: it has no __iter__
                keys.setdefault(slot_of(key), []).append(key)
            self.opened[name] = handle, keys
            if len(self.opened) > self.most_open:
                self.opened.popitem(last=False)
        self.opened.move_to_end(name)
        return self.opened[name]
