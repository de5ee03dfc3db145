"""Images from every kind of source, what is left out and said, and the pixels that come out."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from real import real_data

from fedquilt.data import ImageExamples, RawTask, TaskConfig, Transform, encode_images, load
from fedquilt.data import transform as transforms
from fedquilt.data.transform import Unusable, decode, strict
from fedquilt.engine.batches import assemble
from fedquilt.errors import ConfigError, DataError
from fedquilt.runs.config import parse

HALF = (0.5, 0.5, 0.5)


def picture(
    colour: Any = (200, 30, 60), size: tuple[int, int] = (6, 4), mode: str = "RGB", kind: str = "PNG", **more: Any
) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, kind, **more)
    return out.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header claims ``side x side`` pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return data


def table(folder: Path, column: list[Any], labels: list[Any], name: str = "train", image: str = "image") -> None:
    parquet.write_table(pa.table({image: column, "label": labels}), folder / f"{name}.parquet")


def read(root: Path, **given: Any) -> RawTask:
    base = {"name": "t", "source": "file:{split}.parquet", "image": "image", "eval_split": "dev"}
    return load(TaskConfig.model_validate(base | given), root=root, cache=root / "cache", seed=0)


def encoded(raw: RawTask, root: Path, size: int = 4) -> ImageExamples:
    examples = encode_images(raw, Transform(size, 2, HALF, HALF), cache=root / "cache").train
    assert isinstance(examples, ImageExamples)
    return examples


REDS = [picture((10 * i, 0, 0)) for i in range(4)]


# ---- sources ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", ["bytes", "struct", "arrow"])
def test_columns_of_bytes_and_of_datasets_structs(tmp_path: Path, wrapped: str) -> None:
    column = REDS if wrapped == "bytes" else [{"bytes": data, "path": None} for data in REDS]
    for name in ("train", "dev"):
        if wrapped == "arrow":
            content = pa.table({"image": column, "label": [0, 1, 0, 1]})
            with pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
                writer.write_table(content)
        else:
            table(tmp_path, column, [0, 1, 0, 1], name)
    raw = read(tmp_path, source="file:{split}." + ("arrow" if wrapped == "arrow" else "parquet"))
    assert raw.has_images
    assert raw.train.images == tuple(REDS)
    assert raw.train.labels.tolist() == [0, 1, 0, 1]
    assert raw.notes == ()
    assert encoded(raw, tmp_path).pixels[:, 0, 0, 0].tolist() == [0, 10, 20, 30]


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        for name, data in (("cat/b.png", REDS[1]), ("cat/a.png", REDS[0]), ("dog/x/c.PNG", REDS[2]), ("dog/.hidden", b"")):
            path = tmp_path / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    raw = read(tmp_path, source="folder:{split}", image=None)
    assert raw.labels == ("cat", "dog")
    assert raw.train.labels.tolist() == [0, 0, 1]
    assert encoded(raw, tmp_path).pixels[:, 0, 0, 0].tolist() == [0, 10, 20]
    (tmp_path / "train" / "cat" / "a.png").write_bytes(picture((99, 0, 0), (7, 7)))  # same path, another image
    assert encoded(read(tmp_path, source="folder:{split}"), tmp_path).pixels[0, 0, 0, 0] == 99


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path, source="folder:nowhere/{split}")
    (tmp_path / "train" / "only").mkdir(parents=True)
    with pytest.raises(DataError, match=r"1 classes with 0 files[\s\S]*FOLDER/cat"):
        read(tmp_path, source="folder:{split}")


def test_hub_images_stay_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"img": [{"bytes": x, "path": None} for x in REDS], "label": [0, 1, 1, 0]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda repo, config, *, split: data)
    raw = read(tmp_path, source="hub:x/y", image="img", eval_split="test")
    assert raw.train.images == tuple(REDS)
    assert raw.labels == ("a", "b")


def test_presets_are_the_hub_s_columns() -> None:
    ten, hundred = (TaskConfig(name="t", preset=name) for name in ("cifar10", "cifar100"))
    assert (ten.source, ten.image, ten.label, ten.text, ten.eval_split) == ("hub:uoft-cs/cifar10", "img", "label", (), "test")
    assert (hundred.image, hundred.label, hundred.metrics) == ("img", "fine_label", ("accuracy",))
    local = TaskConfig(name="t", preset="cifar10", source="file:c/{split}.parquet", image="bytes")
    assert (local.eval_split, local.image) == ("test", "bytes")


def test_cifar_presets_fit_the_real_files(tmp_path: Path) -> None:
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        given = {"preset": name, "image": "image_bytes", "label": "label", "eval_split": "test"}
        raw = load(
            TaskConfig(name=name, source=f"file:{name}/{{split}}.parquet", max_train=30, max_eval=20, **given),  # type: ignore[arg-type]
            root=real_data(f"{name}/train.parquet"), cache=tmp_path, seed=0,
        )  # fmt: skip
        assert (len(raw.labels), len(raw.train), len(raw.evaluation)) == (classes, 30, 20)
        pixels = encoded(raw, tmp_path, size=32).pixels
        exact = np.asarray(Image.open(io.BytesIO(raw.train.images[7])).convert("RGB"))  # type: ignore[arg-type]
        assert np.array_equal(pixels[7], exact), "32 pixels are 32 pixels"


# ---- what is left out, and what is refused ---------------------------------------------------------------------------------

BAD = {
    "cannot be read as an image": [b"no image", REDS[0][:40], picture(kind="JPEG", size=(64, 64))[:-40]],
    "a side below 2 pixels": [picture(size=(1, 1)), picture(size=(1, 90))],
    "above 50,000,000 pixels": [bomb(8000), bomb(10_000), bomb(100_000)],
    "numbers without a known range (mode F)": [picture(0.5, mode="F", kind="TIFF")],
    "there is no image": [None, b""],
}


@pytest.mark.parametrize(("reason", "data"), [(reason, data) for reason, every in BAD.items() for data in every])
def test_an_unusable_image_is_left_out_and_counted(tmp_path: Path, reason: str, data: bytes | None) -> None:
    table(tmp_path, [REDS[0], data, REDS[1], REDS[2]], [0, 1, 1, 0])
    table(tmp_path, REDS, [0, 1, 1, 0], "dev")
    for _ in range(2):  # the second time from the cache
        raw = read(tmp_path)
        assert raw.train.labels.tolist() == [0, 1, 0]
        assert raw.train.images == tuple(REDS[:3])
        assert raw.notes == (f"train: 1 images left out: 1 {reason} (first: row 2)",)


def test_every_reason_is_counted_apart(tmp_path: Path) -> None:
    bad = [data for every in BAD.values() for data in every]
    table(tmp_path, [*bad, *REDS], [0, 1] * ((len(bad) + 4) // 2) + [0] * (len(bad) % 2))
    raw = read(tmp_path, eval_split=None, eval_share=0.5)
    assert raw.notes[0].startswith(f"train: {len(bad)} images left out: 2 a side below 2 pixels (first: row 4), 3 above")
    assert len(raw.train) + len(raw.evaluation) == 4


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    table(tmp_path, [b"x", b"y"], [0, 1])
    with pytest.raises(DataError, match=r"no row has an image[\s\S]*2 cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize("column", [["a.png", "b.png"], [1, 2]])
def test_a_column_without_images_is_an_error(tmp_path: Path, column: list[Any]) -> None:
    table(tmp_path, column, [0, 1])
    with pytest.raises(DataError, match=r"is no image[\s\S]*row 1[\s\S]*folder:PATH"):
        read(tmp_path)


def test_labels_outside_the_set_and_missing_columns(tmp_path: Path) -> None:
    table(tmp_path, REDS, [0, 1, 2, 0])
    table(tmp_path, REDS, [0, 1, 3, 0], "dev")
    with pytest.raises(DataError, match=r"label 3 is not in the label set[\s\S]*row 3"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"label 2 is not in the label set"):
        read(tmp_path, labels=["cat", "dog"])
    with pytest.raises(DataError, match="did you mean 'image'"):
        read(tmp_path, image="imag")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": "i", "text": ["t"], "source": "file:a.parquet"}, "texts or images, not both"),
        ({"image": "i", "source": "file:a.csv"}, "a .csv file holds no images"),
        ({"source": "foldr:x"}, "folder:PATH"),
    ],
)
def test_wrong_image_tasks_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskConfig.model_validate({"name": "t", **given})


def test_texts_and_images_are_not_mixed(tmp_path: Path) -> None:
    tasks = [{"name": "a", "source": "asset:mnist_digit", "image": "image"}, {"name": "b", "source": "asset:sarcasm"}]
    with pytest.raises(ConfigError, match="text and image tasks in one run; of images: a"):
        parse({"rounds": 1, "tasks": tasks, "method": {"name": "fedit"}}, tmp_path)


def test_image_folders_are_seen_from_the_config_file(tmp_path: Path) -> None:
    config = parse({"rounds": 1, "tasks": [{"name": "a", "source": "folder:x/{split}"}], "method": {"name": "fedit"}}, tmp_path)
    assert config.tasks[0].source == f"folder:{tmp_path}/x/{{split}}"
    assert config.tasks[0].image == "image"
    again = parse({**config.model_dump(exclude_none=True)}, tmp_path)
    assert again == config


# ---- pixels ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (picture(120, mode="L"), (120, 120, 120)),
        (picture(1, mode="1"), (255, 255, 255)),
        (picture(120 * 256 + 7, mode="I;16"), (120, 120, 120)),
        (picture((255, 0, 0, 0), mode="CMYK", kind="JPEG", quality=100), (0, 255, 255)),
        (picture((10, 20, 30, 0), mode="RGBA"), (255, 255, 255)),
        (picture((10, 20, 30, 255), mode="RGBA"), (10, 20, 30)),
        (picture((90, 255), mode="LA"), (90, 90, 90)),
        (picture((12, 34, 56), kind="BMP"), (12, 34, 56)),
        (picture((12, 34, 56), kind="WEBP", lossless=True), (12, 34, 56)),
        (b"P5 2 2 255\n" + bytes([77] * 4), (77, 77, 77)),
    ],
)
def test_every_mode_becomes_rgb(data: bytes, expected: tuple[int, int, int]) -> None:
    with strict():
        assert max(abs(a - b) for a, b in zip(decode(data).getpixel((0, 0)), expected, strict=True)) <= 2  # type: ignore[arg-type]


def test_the_camera_s_rotation_is_applied() -> None:
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    out = io.BytesIO()
    image.save(out, "PNG", exif=exif)
    turned = decode(out.getvalue())
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 255, 255)


def test_shorter_side_then_the_centre_square() -> None:
    columns = np.zeros((4, 8, 3), np.uint8)
    columns[:, 2:6] = 250  # the centre square of a 8 x 4 image
    data = io.BytesIO()
    Image.fromarray(columns).save(data, "PNG")
    assert (Transform(4, 2, HALF, HALF)(data.getvalue()) == 250).all()
    exact = Image.fromarray(columns).resize((16, 8), Image.Resampling.BICUBIC).crop((4, 0, 12, 8))
    assert np.array_equal(Transform(8, 2, HALF, HALF)(data.getvalue()), np.asarray(exact))
    assert Transform(8, 2, HALF, HALF).tokens == 17


def test_a_header_that_claims_too_much_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with strict(), pytest.raises(Unusable, match="above"):
        decode(bomb(9000))


def test_pixels_are_decoded_once_mapped_and_made_again_when_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path, REDS, [0, 1, 1, 0])
    raw = read(tmp_path, eval_split=None, eval_share=0.25)
    first = encoded(raw, tmp_path)
    assert isinstance(first.pixels, np.memmap)
    before = first.pixels.copy()
    path = Path(str(first.pixels.filename))
    with monkeypatch.context() as patch:
        patch.setattr(transforms, "decode", lambda content: pytest.fail("decoded again"))
        assert np.array_equal(encoded(raw, tmp_path).pixels, before)
    path.write_bytes(path.read_bytes()[:-5])
    assert np.array_equal(encoded(raw, tmp_path).pixels, before)
    assert encoded(raw, tmp_path, size=6).pixels.shape == (3, 6, 6, 3)
    assert len(list(path.parent.glob("*.npy"))) == 4, "two splits, two sizes"


def test_a_batch_of_images(tmp_path: Path) -> None:
    table(tmp_path, REDS, [0, 1, 1, 0])
    task = encode_images(read(tmp_path, eval_split=None, eval_share=0.25), Transform(4, 2, HALF, HALF), cache=tmp_path / "cache")
    batch = assemble([(task, 0, 2), (task, 1, 0)], 5)
    assert batch.pixels is not None
    assert batch.pixels.shape == (2, 3, 4, 4)
    assert batch.pixels[:, 0, 0, 0].tolist() == task.train.pixels[[2, 0], 0, 0, 0].tolist()  # type: ignore[union-attr]
    assert (batch.lengths.tolist(), batch.head.tolist(), batch.tokens.numel()) == ([5, 5], [0, 1], 0)
