from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from fedquilt.data import RawSplit, RawTask, encode
from fedquilt.data.encode import fingerprint
from fedquilt.errors import DataError, StateError

PAD, UNK, CLS, SEP, A, B, C = range(7)
Make = Callable[..., Any]


def make_tokenizer(**changes: int) -> Any:
    """One token per letter word: [CLS] a b [SEP] c [SEP]."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"[PAD]": PAD, "[UNK]": UNK, "[CLS]": CLS, "[SEP]": SEP, "a": A, "b": B, "c": C} | changes
    rules = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    rules.pre_tokenizer = Whitespace()
    special = [("[CLS]", CLS), ("[SEP]", SEP)]
    rules.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=rules, pad_token="[PAD]", unk_token="[UNK]", model_input_names=names)


def raw(texts: list[tuple[str, ...]], evaluation: list[tuple[str, ...]] | None = None) -> RawTask:
    def split(rows: list[tuple[str, ...]]) -> RawSplit:
        return RawSplit(tuple(rows), np.arange(len(rows)) % 2)

    return RawTask("t", "classification", ("n", "p"), ("accuracy",), split(texts), split(evaluation or texts[:1]), ("from load",))


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self) -> None:
        self.inner, self.calls = make_tokenizer(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        return self.inner(*args, **options)


def test_ragged_arrays(tmp_path: Path) -> None:
    task = encode(raw([("a b",), ("c",), ("zzz",)]), make_tokenizer(), max_length=8, cache=tmp_path)
    assert task.train.tokens.tolist() == [CLS, A, B, SEP, CLS, C, SEP, CLS, UNK, SEP]
    assert task.train.offsets.tolist() == [0, 4, 7, 10]
    assert task.train.lengths.tolist() == [4, 3, 3]
    assert task.train.types.tolist() == [0] * 10
    assert task.train.labels.tolist() == [0.0, 1.0, 0.0]
    kinds = [task.train.tokens.dtype, task.train.types.dtype, task.train.offsets.dtype, task.train.labels.dtype]
    assert kinds == [np.int32, np.uint8, np.int64, np.float64]
    assert (len(task.train), len(task.evaluation), task.classes, task.notes) == (3, 1, 2, ("from load",))


def test_pairs_have_types_and_lose_the_longer_text_first(tmp_path: Path) -> None:
    task = encode(raw([("a a a a a", "b"), ("a", "b")]), make_tokenizer(), max_length=6, cache=tmp_path)
    first = slice(*task.train.offsets[:2])
    assert task.train.tokens[first].tolist() == [CLS, A, A, SEP, B, SEP]
    assert task.train.types[first].tolist() == [0, 0, 0, 0, 1, 1]
    assert task.train.truncated == 1


def test_only_longer_texts_count_as_truncated(tmp_path: Path) -> None:
    task = encode(raw([("a a",), ("a a a",), ("a " * 300_000,)]), make_tokenizer(), max_length=4, cache=tmp_path)
    assert task.train.lengths.tolist() == [4, 4, 4]
    assert task.train.truncated == 2
    assert task.notes == ("from load", "train: 2 texts (66.7 %) cut to 4 tokens")


def test_more_rows_than_one_batch_stay_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys.modules["fedquilt.data.encode"], "BATCH", 2)
    texts = [("a",), ("b b b b",), ("c",), ("a b",), ("c c c c",)]
    task = encode(raw(texts), make_tokenizer(), max_length=4, cache=tmp_path)
    assert [task.train.tokens[start + 1] for start in task.train.offsets[:-1]] == [A, B, C, A, C]
    assert task.train.lengths.tolist() == [3, 4, 3, 4, 4]


def test_the_second_time_nothing_is_tokenised(tmp_path: Path) -> None:
    tokenizer = Counting()
    first = encode(raw([("a b",), ("c " * 9,)]), tokenizer, max_length=5, cache=tmp_path)
    calls = tokenizer.calls
    second = encode(raw([("a b",), ("c " * 9,)]), tokenizer, max_length=5, cache=tmp_path)
    assert tokenizer.calls == calls
    assert second.train.tokens.tolist() == first.train.tokens.tolist()
    assert (second.train.truncated, second.notes) == (1, first.notes)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "other"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, damage: str) -> None:
    task = raw([("a b",), ("c",)])
    good = encode(task, make_tokenizer(), max_length=8, cache=tmp_path)
    for path in (tmp_path / "tokens").iterdir():
        data = bytearray(path.read_bytes())
        if damage == "flip":
            at = data.index(np.array([CLS, A], np.int32).tobytes())
            data[at] ^= 1
        changed = {"cut": bytes(data[:200]), "flip": bytes(data), "empty": b"", "text": b"hello"}
        if damage == "other":
            np.savez(path.with_suffix(""), tokens=np.zeros(1), types=np.zeros(2), offsets=np.array([0, 1]), truncated=0)
        else:
            path.write_bytes(changed[damage])
    again = encode(task, make_tokenizer(), max_length=8, cache=tmp_path)
    assert again.train.tokens.tolist() == good.train.tokens.tolist()
    assert not list((tmp_path / "tokens").glob("*.tmp"))


def test_what_changes_the_tokens_changes_the_cache_key(tmp_path: Path) -> None:
    def files(task: RawTask, tokenizer: Any, length: int = 8) -> int:
        encode(task, tokenizer, max_length=length, cache=tmp_path)
        return len(list((tmp_path / "tokens").iterdir()))

    one = raw([("ab", "c")], [("a", "b")])
    assert files(one, make_tokenizer()) == 2
    assert files(one, make_tokenizer()) == 2
    assert files(one, make_tokenizer(), 7) == 4
    assert files(one, make_tokenizer(d=7)) == 6
    assert files(raw([("a", "bc")], [("a", "b")]), make_tokenizer()) == 7  # the border between the two texts counts
    other_labels = replace(one, train=RawSplit(one.train.texts, np.ones(1, np.int64)))
    assert files(other_labels, make_tokenizer()) == 7  # labels are not cached


def test_the_fingerprint_ignores_how_the_tokenizer_was_used_last() -> None:
    tokenizer = make_tokenizer()
    before = fingerprint(tokenizer)
    tokenizer(["a", "a b c"], truncation=True, max_length=3, padding=True)
    assert fingerprint(tokenizer) == before
    assert fingerprint(make_tokenizer(d=7)) != before


def test_a_tokenizer_without_rust_rules() -> None:
    class Plain:
        def __init__(self, words: dict[str, int]) -> None:
            self.words = words

        def get_vocab(self) -> dict[str, int]:
            return self.words

        def __call__(self, text: Any, text_pair: Any = None, **options: Any) -> dict[str, Any]:
            return {"input_ids": [[self.words[word] for word in row.split()] for row in text]}

    assert fingerprint(Plain({"a": 1})) != fingerprint(Plain({"a": 2}))


def test_a_length_that_leaves_no_room(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 tokens are special[\s\S]*at least 3"):
        encode(raw([("a",)]), make_tokenizer(), max_length=2, cache=tmp_path)
    with pytest.raises(DataError, match=r"3 tokens are special[\s\S]*at least 5"):
        encode(raw([("a", "b")]), make_tokenizer(), max_length=4, cache=tmp_path)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(StateError, match="cannot write"):
        encode(raw([("a",)]), make_tokenizer(), max_length=8, cache=tmp_path)


def test_regression_has_one_output(tmp_path: Path) -> None:
    task = replace(raw([("a",)]), kind="regression", labels=())
    assert encode(task, make_tokenizer(), max_length=8, cache=tmp_path).classes == 1
