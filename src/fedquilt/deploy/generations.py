"""What a client's slots held after each of the last rounds."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from fedquilt.engine.kept import InMemory, kept_of, slot_of
from fedquilt.errors import StateError
from fedquilt.runs.atomic import write_atomic
from fedquilt.types import Slot, State

NAME = re.compile(r"round-(\d{6,})-([0-9a-f]{64})\.safetensors")


@dataclass
class Generations:
    """What a client's slots held after each of the last rounds: a file per round, named by its content.

    Args:
        keep: rounds. A server that writes a checkpoint every k rounds may fall back by k, and by k more if the newest is damaged.
    """

    folder: Path
    keep: int

    def __post_init__(self) -> None:
        private(self.folder)

    def before(self, number: int) -> dict[Slot, dict[str, State]]:
        """The newest generation before round ``number``; those of it and later ones never were.

        Raises:
            StateError: it is damaged.
        """
        for late, path in self._rounds().items():
            if late >= number:
                path.unlink()
        return self.after(number - 1)

    def after(self, number: int) -> dict[Slot, dict[str, State]]:
        """What slots held after round ``number``: the newest generation up to it.

        Raises:
            StateError: it is damaged.
        """
        found = {r: path for r, path in self._rounds().items() if r <= number}
        if not found:
            return {}
        path = found[max(found)]
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != path.name[-76:-12]:
            raise StateError(f"{path.name} is corrupt", where=str(path), why="its SHA-256 is another", fix="remove it")
        slots: dict[Slot, dict[str, Tensor]] = {}
        for key, x in load(data).items():
            slots.setdefault(slot_of(key), {})[key] = x
        return {slot: dict(kept_of(tensors)) for slot, tensors in slots.items()}

    def write(self, number: int, kept: InMemory) -> None:
        """The generation of a round; the oldest ones go."""
        data = save({key: x.contiguous() for key, x in kept.tensors().items()})
        name = f"round-{number:06d}-{hashlib.sha256(data).hexdigest()}.safetensors"
        write_atomic(self.folder / name, data)
        found = self._rounds()
        for old in sorted(found)[: -self.keep]:
            found[old].unlink()

    def _rounds(self) -> dict[int, Path]:
        return {int(m[1]): path for path in self.folder.iterdir() if (m := NAME.fullmatch(path.name))}


def private(folder: Path) -> None:
    """A folder that only its owner may open: it holds what was learnt from private data."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
