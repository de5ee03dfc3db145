"""From an image file to the pixels that a model sees: opened with pillow, resized, cropped to a square.

Only what changes no decision silently: greys, palettes, CMYK and 16-bit greys become RGB, a camera's rotation tag is applied,
transparency is laid on white. The first picture of an animation counts. What cannot be used is refused with a reason.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

LEAST_SIDE = 2  # pixels: one is a colour, not a picture
MOST_PIXELS = 50_000_000  # a 50-megapixel photo takes 150 MB in memory; a small file can claim any size
Content = bytes | Path


class Unusable(ValueError):
    """An image that is left out; the message is the reason."""


@dataclass(frozen=True)
class Transform:
    """Shorter side to ``size`` pixels (bicubic, antialiased), the centre square of it; ``mean`` and ``std`` of each channel in
    [0, 1] are applied in the model's precision when a batch is made.

    Attributes:
        patch: side of the model's patches, of which ``size`` is a multiple.
    """

    size: int
    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def tokens(self) -> int:
        """Tokens of one image: its patches and the class token."""
        return (self.size // self.patch) ** 2 + 1

    def __call__(self, content: Content) -> NDArray[np.uint8]:
        """Pixels ``[size, size, 3]``.

        Raises:
            Unusable: see :func:`decode`.
        """
        image = ImageOps.fit(decode(content), (self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image, np.uint8)

    def identity(self) -> str:
        """What decides the pixels, for names of cache files."""
        return f"fit-bicubic {self.size}"


def decode(content: Content) -> Image.Image:
    """The RGB image in the bytes, or in the file, of any format that pillow knows.

    Raises:
        Unusable: not an image, damaged, a side below 2 pixels, above 50 million pixels, or numbers without a known range.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            _check_size(image.size)  # known from the header, before any pixel takes memory
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unusable(f"above {MOST_PIXELS:,} pixels") from error
    except Unusable:
        raise
    # pillow's decoders raise all of these on damaged input
    except (OSError, ValueError, TypeError, SyntaxError, EOFError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise Unusable("cannot be read as an image") from error


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < LEAST_SIDE:
        raise Unusable(f"a side below {LEAST_SIDE} pixels")
    if size[0] * size[1] > MOST_PIXELS:
        raise Unusable(f"above {MOST_PIXELS:,} pixels")


def _rgb(image: Any) -> Image.Image:
    if image.mode.startswith("I;16"):  # pillow's own conversion would clip everything above 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Unusable(f"numbers without a known range (mode {image.mode})")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    converted: Image.Image = image.convert("RGB")
    return converted


@contextmanager
def strict() -> Iterator[None]:
    """Inside: pillow's warning about a decompression bomb is an error, its other warnings (odd metadata) are not shown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def digest(contents: tuple[Content, ...], *salt: str) -> str:
    """A name for what is computed from these images: bytes by value; files by path, size and time of change."""
    out = hashlib.blake2b(" ".join(salt).encode(), digest_size=20)
    for content in contents:
        if isinstance(content, bytes):
            out.update(b"%d " % len(content))
            out.update(content)
        else:
            found = content.stat()
            out.update(f"{content} {found.st_size} {found.st_mtime_ns} ".encode("utf-8", "surrogateescape"))
    return out.hexdigest()
