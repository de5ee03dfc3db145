"""The run directory: state that survives a kill at any instant, and journals that never disagree with it.

Commit protocol of a round: write the state's files under new names and fsync them; append the records to the journals and fsync
them; then replace the manifest ``hub.json`` atomically (temporary file, fsync, rename, fsync of the folder). Only the manifest
makes a round count: it names the state's files with their SHA-256 and the length of every journal, and carries its own. The next
commit cuts journals back to those lengths and removes files nobody names. The previous generation is kept until then. What clients
keep is :mod:`fedquilt.runs.clients`' business: its files are named by the same manifest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fedquilt.clock import Books
from fedquilt.errors import StateError
from fedquilt.runs.atomic import read, write_atomic
from fedquilt.runs.clients import PREFIX, ClientStore
from fedquilt.types import Hub, Slot

MANIFEST = "hub.json"
ADAPTERS = "adapters"  # the folder of what is exported
JOURNALS = ("rounds.jsonl", "evals.jsonl", "routes.jsonl", "points.jsonl")
FORMAT = 2
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass
class Store:
    """One run directory, opened for writing by one process."""

    folder: Path
    every: int = 1
    last: int = 0  # the final round: always made durable
    lengths: dict[str, int] = field(default_factory=dict)
    generations: list[dict[str, Any]] = field(default_factory=list)
    pending: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clients = ClientStore(self.folder)

    def commit(self, hub: Hub, records: Mapping[str, Sequence[Mapping[str, Any]]], books: Books) -> None:
        """Make a round durable (every ``every`` rounds and at the last one; in between, records wait in memory).

        Raises:
            StateError: the disk refused; the last committed round is intact.
        """
        for name, lines in records.items():
            self.pending.setdefault(name, []).extend(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        if hub.step % self.every and hub.step != self.last:
            return
        try:
            self._commit(hub, books)
        except OSError as error:
            raise StateError(
                f"cannot write round {hub.step}",
                where=str(error.filename or self.folder),
                why=error.strerror or str(error),
                fix=f"free space, then: fedquilt resume {self.folder}",
            ) from error

    def _commit(self, hub: Hub, books: Books) -> None:
        (self.folder / "state").mkdir(exist_ok=True)
        name = f"state/hub-{hub.step:06d}.safetensors"
        tensors = {key: x.contiguous() for key, x in _hub_tensors(hub).items()}
        files = {name: write_atomic(self.folder / name, save_tensors(tensors)), **self.clients.flush(hub.step)}
        lengths = {name: self._append(name) for name in JOURNALS}
        generation = {
            "round": hub.step,
            "files": files,
            "lengths": lengths,
            "table": [[slot.client, slot.number, row] for slot, row in hub.table.items()],
            "books": books,
        }
        generations = [generation, *(g for g in self.generations[:1] if g["round"] != hub.step)]
        manifest = {"format": FORMAT, "sha256": _seal(generations), "generations": generations}
        write_atomic(self.folder / MANIFEST, json.dumps(manifest, separators=(",", ":")).encode())
        self.generations, self.lengths, self.pending = generations, lengths, {}
        self._collect_garbage()

    def _append(self, name: str) -> int:
        """Append the waiting lines at the committed length and fsync; returns the new length."""
        path, begin = self.folder / name, self.lengths.get(name, 0)
        text = "".join(self.pending.get(name, [])).encode()
        with path.open("r+b" if path.exists() else "w+b") as handle:
            handle.truncate(begin)
            handle.seek(begin)
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        return begin + len(text)

    def _collect_garbage(self) -> None:
        named = {name for generation in self.generations for name in generation["files"]}
        for path in sorted((self.folder / "state").iterdir()):
            if f"state/{path.name}" not in named:
                path.unlink()

    def load(self, *, strict: bool = False) -> tuple[Hub, Books, list[str]] | None:
        """(hub, books, warnings) of the last good round, with ``clients`` as they were then; None if no round was committed.

        Raises:
            StateError: the manifest or all generations are corrupt (with ``strict``: the newest one).
        """
        manifest = read_manifest(self.folder)
        if manifest is None:
            return None
        warnings: list[str] = []
        for generation in manifest["generations"]:
            try:
                hub = _read_hub(self.folder, generation)
                self.clients.load({name: digest for name, digest in generation["files"].items() if name.startswith(PREFIX)})
            except StateError as error:
                if strict:
                    raise
                warnings.append(str(error))
                continue
            self.generations, self.lengths = [generation], dict(generation["lengths"])
            self._check_journals()
            return hub, generation["books"], warnings
        raise StateError(
            "no readable state in the run directory",
            where=str(self.folder),
            why="; ".join(w.splitlines()[0] for w in warnings),
            fix="start the run anew",
        )

    def _check_journals(self) -> None:
        for name, length in self.lengths.items():
            path = self.folder / name
            size = path.stat().st_size if path.exists() else 0
            if size < length:
                raise StateError(
                    f"{name} has {size} bytes, {length} were committed",
                    where=str(path),
                    why="the file was cut",
                    fix="start the run anew",
                )


def _hub_tensors(hub: Hub) -> dict[str, Tensor]:
    groups = (("bank", hub.bank), ("patch", hub.patch), ("memory", hub.memory))
    return {f"{kind}:{key}": tensor for kind, tensors in groups for key, tensor in tensors.items()}


def _read_hub(folder: Path, generation: Mapping[str, Any]) -> Hub:
    (path,) = (folder / name for name in generation["files"] if not name.startswith(PREFIX))
    data = read(path, generation["files"][f"state/{path.name}"])
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise StateError(f"{path.name} is no safetensors file", where=str(path), why=str(error)) from error
    parts: dict[str, dict[str, Tensor]] = {"bank": {}, "patch": {}, "memory": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(":")
        parts[kind][name] = tensor
    table = {Slot(client, number): row for client, number, row in generation["table"]}
    return Hub(**parts, table=table, step=generation["round"])


def _seal(generations: Any) -> str:
    """SHA-256 of the manifest's content: a flipped digit in the table would send a slot to another row."""
    return hashlib.sha256(json.dumps(generations, sort_keys=True).encode()).hexdigest()


def begun(folder: Path) -> bool:
    """Whether there is a run that has committed anything: what ended before holds nothing worth keeping."""
    return (folder / MANIFEST).exists()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The parsed ``hub.json``; None if there is none.

    Raises:
        StateError: it is not what this version writes.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        ok = manifest["format"] == FORMAT and all(
            {"round", "files", "lengths", "table", "books"} <= set(g) for g in manifest["generations"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StateError("hub.json is corrupt", where=str(path), why=str(error), fix="start the run anew") from error
    if not ok:
        raise StateError("hub.json has an unknown format", where=str(path), fix="use the version of fedquilt that wrote it")
    if manifest.get("sha256") != _seal(manifest["generations"]):
        raise StateError(
            "hub.json is corrupt", where=str(path), why="its content is not what its SHA-256 says", fix="start the run anew"
        )
    return dict(manifest)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a write that the system refuses (disk full, quota, read-only) into a sentence.

    Raises:
        StateError: it was refused; what was committed is intact.
    """
    try:
        yield
    except (OSError, StateError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in REFUSED:
            raise
        known = error if isinstance(error, StateError) else None
        written = (folder / "config.toml").exists()
        raise StateError(
            known.what if known else "a file of the run cannot be written",
            where=known.where if known else str(cause.filename or folder),
            why=cause.strerror or str(cause),
            fix=f"free space, then: fedquilt resume {folder}" if written else "free space, or choose another --dir",
        ) from cause


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run directory for this process.

    Raises:
        StateError: another process has it; says which.
    """
    lock, owner = FileLock(folder / ".lock"), folder / ".owner"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = owner.read_text(encoding="utf-8") if owner.exists() else "an unknown process"
        raise StateError(
            "the run directory is in use", where=str(folder), why=f"by {who}", fix="wait for it, or stop it"
        ) from error
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
