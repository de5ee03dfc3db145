"""Texts -> token numbers, once per tokenizer and length, kept in a cache that can always be rebuilt."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedquilt.data import prompts
from fedquilt.data.files import replacing
from fedquilt.data.kinds import Kind
from fedquilt.data.load import RawSplit, RawTask
from fedquilt.data.marks import NO_MARKS, Marks
from fedquilt.errors import DataError

if TYPE_CHECKING:
    from fedquilt.data.images import ImageExamples

BATCH = 1000
_FORMAT = "1"


class Tokenizer(Protocol):
    """What is used of a ``transformers`` tokenizer."""

    def __call__(self, text: Any, text_pair: Any = None, **options: Any) -> Mapping[str, Any]: ...

    def get_vocab(self) -> dict[str, int]: ...


@dataclass(frozen=True)
class Examples:
    """``n`` tokenised texts without padding: example i is ``tokens[offsets[i] : offsets[i + 1]]``."""

    tokens: NDArray[np.int32]
    """``[T]`` token numbers of all examples, one after the other, special tokens included."""
    types: NDArray[np.uint8]
    """``[T]`` 1 in the second text of a pair (if the model distinguishes them) and in responses, else 0."""
    offsets: NDArray[np.int64]
    """``[n + 1]``."""
    labels: NDArray[np.float64]
    """``[n]`` class numbers or values."""
    truncated: int = 0
    """How many texts were longer than the limit."""
    skipped: tuple[int, ...] = ()
    """Examples that are left out, since the prompt leaves no room for a response; they keep their number and have no tokens."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``[n]`` tokens of each example."""
        return np.diff(self.offsets)

    def length(self, row: int) -> int:
        """Tokens of one example."""
        return int(self.offsets[row + 1] - self.offsets[row])

    def usable(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """``rows`` without the skipped ones."""
        return rows[~np.isin(rows, self.skipped)] if self.skipped else rows


@dataclass(frozen=True)
class Task:
    """An encoded task."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train: Examples | ImageExamples
    evaluation: Examples | ImageExamples
    notes: tuple[str, ...] = ()
    marks: Marks = NO_MARKS
    """Of the evaluation rows."""

    @property
    def classes(self) -> int:
        """Outputs that the model's head needs: 1 for regression, 0 for generation."""
        return 1 if self.kind == "regression" else len(self.labels)


def encode(raw: RawTask, tokenizer: Tokenizer, *, max_length: int, cache: Path) -> Task:
    """Tokenise both splits, cutting texts to ``max_length`` tokens (of a pair, the longer text first).

    The cache file is named by a hash of the tokenizer, the texts and the length; a damaged one is rebuilt.

    Raises:
        DataError: ``max_length`` leaves no room for a token beside the special ones, or for no response of a split.
        StateError: the cache folder cannot be written.
    """
    identity = fingerprint(tokenizer)
    train = _encode_split(raw, raw.train, tokenizer, identity, max_length, cache)
    evaluation = _encode_split(raw, raw.evaluation, tokenizer, identity, max_length, cache)
    notes = list(raw.notes)
    for part, examples in (("train", train), ("evaluation", evaluation)):
        if examples.truncated:
            share = 100 * examples.truncated / len(examples)
            notes.append(f"{part}: {examples.truncated:,} texts ({share:.1f} %) cut to {max_length} tokens")
        if examples.skipped:
            _check_left(raw.name, part, examples, max_length)
            n = len(examples.skipped)
            notes.append(
                f"{part}: {n:,} examples ({100 * n / len(examples):.1f} %) skipped, their prompts fill {max_length} tokens"
            )
    return Task(raw.name, raw.kind, raw.labels, raw.metrics, train, evaluation, tuple(notes), raw.evaluation.marks)


def fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of what decides the token numbers: rules and vocabulary, not the padding or truncation last used."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        state = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    else:
        state = tokenizer.get_vocab()
    sides = [str(getattr(tokenizer, name, "")) for name in ("truncation_side", "model_input_names")]
    text = json.dumps([type(tokenizer).__name__, state, sides], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _encode_split(raw: RawTask, split: RawSplit, tokenizer: Tokenizer, identity: str, max_length: int, cache: Path) -> Examples:
    texts: Sequence[tuple[str, ...]] = split.texts
    generation = raw.kind == "generation"
    if generation:
        texts = prompts.render(split.texts, raw.prompt, tokenizer)
        identity = f"{identity} {raw.prompt} {getattr(tokenizer, 'eos_token_id', None)}"
    path = cache / "tokens" / f"{_key(texts, identity, max_length)}.npz"
    arrays = _read(path, len(split))
    if arrays is None:
        make = partial(prompts.tokenise, prompt=raw.prompt) if generation else _tokenise
        arrays = make(texts, tokenizer=tokenizer, max_length=max_length)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    tokens, types, offsets = arrays["tokens"], arrays["types"], arrays["offsets"]
    skipped = tuple(np.flatnonzero(np.diff(offsets) == 0).tolist()) if generation else ()
    return Examples(tokens, types, offsets, split.labels.astype(np.float64), int(arrays["truncated"]), skipped)


def _check_left(name: str, part: str, examples: Examples, max_length: int) -> None:
    if len(examples.skipped) == len(examples):
        raise DataError(
            f"every prompt of the {part} rows fills max_length = {max_length} tokens: no response fits behind one",
            where=f"task {name!r}, model.max_length",
            fix="raise model.max_length, or leave the task out",
        )


def _key(texts: Sequence[tuple[str, ...]], identity: str, max_length: int) -> str:
    digest = hashlib.blake2b(f"{_FORMAT} {identity} {max_length}".encode(), digest_size=20)
    for row in texts:
        for text in row:
            data = text.encode("utf-8", "surrogatepass")
            # The length keeps ("ab", "c") apart from ("a", "bc").
            digest.update(b"%d %d " % (len(row), len(data)))
            digest.update(data)
    return digest.hexdigest()


def _read(path: Path, n: int) -> dict[str, NDArray[Any]] | None:
    """The cached arrays, or None when there are none or they are damaged (a zip member carries its checksum)."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("tokens", "types", "offsets", "truncated")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, NotImplementedError):
        return None
    offsets, tokens = arrays["offsets"], arrays["tokens"]
    whole = len(offsets) == n + 1 and offsets[-1] == len(tokens) == len(arrays["types"])
    return arrays if whole else None


def _tokenise(texts: Sequence[tuple[str, ...]], tokenizer: Tokenizer, max_length: int) -> dict[str, NDArray[Any]]:
    tokens: list[NDArray[np.int32]] = []
    types: list[NDArray[np.uint8]] = []
    truncated = 0
    _check_room(tokenizer, max_length, pair=len(texts[0]) > 1)
    for start in range(0, len(texts), BATCH):
        rows = texts[start : start + BATCH]
        # Without truncation first: only so is it known which texts are cut.
        whole = _call(tokenizer, rows)
        long = [i for i, ids in enumerate(whole["input_ids"]) if len(ids) > max_length]
        truncated += len(long)
        cut = _call(tokenizer, [rows[i] for i in long], truncation=True, max_length=max_length) if long else {}
        place = {row: i for i, row in enumerate(long)}
        for i in range(len(rows)):
            source, j = (cut, place[i]) if i in place else (whole, i)
            ids = np.array(source["input_ids"][j], np.int32)
            tokens.append(ids)
            given = source.get("token_type_ids")
            types.append(np.zeros(len(ids), np.uint8) if given is None else np.array(given[j], np.uint8))
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in tokens])]).astype(np.int64)
    return {
        "tokens": np.concatenate(tokens),
        "types": np.concatenate(types),
        "offsets": offsets,
        "truncated": np.array(truncated),
    }


def _check_room(tokenizer: Tokenizer, max_length: int, *, pair: bool) -> None:
    empty = len(_call(tokenizer, [("", "") if pair else ("",)])["input_ids"][0])
    if max_length <= empty + pair:
        what = f"max_length = {max_length} leaves no room: {empty} tokens are special ones"
        raise DataError(what, where="max_length", fix=f"use at least {empty + pair + 1}")


def _call(tokenizer: Tokenizer, rows: Sequence[tuple[str, ...]], **options: Any) -> Mapping[str, Any]:
    first = [row[0] for row in rows]
    second = [row[1] for row in rows] if len(rows[0]) > 1 else None
    # verbose=False: no warning about texts longer than the model's limit, which are about to be cut.
    return tokenizer(first, second, verbose=False, **options)
