"""Images of a task: found, checked, decoded once into a cache that is mapped into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedquilt.data.encode import Task
from fedquilt.data.files import replacing
from fedquilt.data.load import RawSplit, RawTask
from fedquilt.data.transform import Transform, Unusable, digest, strict
from fedquilt.errors import DataError

_FORMAT = "1"


@dataclass(frozen=True)
class ImageExamples:
    """``n`` images of one size."""

    pixels: NDArray[np.uint8]
    """``[n, H, W, 3]``, mapped from the cache: a row is read when a batch asks for it."""
    labels: NDArray[np.float64]
    """``[n]`` class numbers or values."""
    tokens: int
    """Tokens that the model makes of one image."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``[n]`` tokens of each example: all the same."""
        return np.full(len(self), self.tokens)

    def length(self, row: int) -> int:
        """Tokens of one example."""
        return self.tokens

    def usable(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """``rows``: images that cannot be used are left out before the partition."""
        return rows


def encode_images(raw: RawTask, transform: Transform, *, cache: Path) -> Task:
    """Decode, resize and crop both splits.

    The cache file is named by a hash of the images and the transform; one of another shape (cut) is rebuilt.

    Raises:
        DataError: a file was changed since it was checked.
        StateError: the cache folder cannot be written.
    """
    train, evaluation = (_encode(split, transform, cache) for split in (raw.train, raw.evaluation))
    return Task(raw.name, raw.kind, raw.labels, raw.metrics, train, evaluation, raw.notes, raw.evaluation.marks)


def _encode(split: RawSplit, transform: Transform, cache: Path) -> ImageExamples:
    path = cache / "pixels" / f"{digest(split.images, _FORMAT, transform.identity())}.npy"
    shape = (len(split), transform.size, transform.size, 3)
    pixels = _mapped(path, shape)
    if pixels is None:
        with replacing(path) as temporary:
            _decode(split, transform, shape, temporary)
        pixels = np.load(path, mmap_mode="r")
    return ImageExamples(pixels, split.labels.astype(np.float64), transform.tokens)


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The cached pixels, or None when there are none or they are not what they should be."""
    try:
        pixels: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _decode(split: RawSplit, transform: Transform, shape: tuple[int, ...], path: Path) -> None:
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with strict():
        for i, content in enumerate(split.images):
            try:
                out[i] = transform(content)
            except Unusable as error:  # it could be read a moment ago
                raise DataError("an image changed while it was read", where=str(content)[:80], why=str(error)) from error
    out.flush()


def gather(rows: Sequence[tuple[ImageExamples, int]]) -> dict[str, Tensor]:
    """``pixels [n, 3, H, W]`` uint8 of some examples, their lengths, and no tokens: the content of a batch."""
    pixels = torch.from_numpy(np.stack([examples.pixels[index] for examples, index in rows]))
    empty = torch.empty(0, dtype=torch.long)
    lengths = torch.tensor([examples.tokens for examples, _ in rows])
    return {"tokens": empty, "types": empty, "lengths": lengths, "pixels": pixels.permute(0, 3, 1, 2).contiguous()}
