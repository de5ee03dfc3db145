"""Builders found by name, signatures as schemas, and the configuration file with its overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from typing_extensions import Unpack

from fedquilt.errors import ConfigError, did_you_mean
from fedquilt.methods.fltac import fltac
from fedquilt.runs import registry
from fedquilt.runs.config import RunConfig, load_config, parse

METHODS = ["centralised_full", "centralised_lora", "fedit", "fltac", "head_only", "local_only"]


class Some(TypedDict, total=False):
    """Optional unless said otherwise."""

    lr: Required[Annotated[float, Field(gt=0)]]
    steps: int


class All(TypedDict):
    """Required unless said otherwise."""

    size: int
    name: NotRequired[str]


def some(*, kind: Literal["a", "b"] = "a", **rest: Unpack[Some]) -> dict[str, Any]:
    return {"kind": kind, **rest}


def everything(base: object, *, seed: int, **rest: Unpack[All]) -> dict[str, Any]:
    return {"seed": seed, **rest}


def positional(lr: float, steps: int = 3) -> tuple[float, int]:
    return lr, steps


def refused(where: str, call: Callable[[], object]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.where == where
    return caught.value


# -- signatures as schemas -----------------------------------------------------------------------------------------------


def test_a_typed_dict_is_spread_with_its_required_keys() -> None:
    fields = registry.schema(some).model_fields
    assert {name: field.is_required() for name, field in fields.items()} == {"kind": False, "lr": True, "steps": False}
    fields = registry.schema(everything, ("base", "seed")).model_fields
    assert {name: field.is_required() for name, field in fields.items()} == {"size": True, "name": False}


def test_only_what_was_given_reaches_the_builder() -> None:
    assert some(**registry.options(some, {"lr": 0.5}, "method")) == {"kind": "a", "lr": 0.5}
    full = {"lr": 1, "steps": 2, "kind": "b"}
    assert some(**registry.options(some, full, "method")) == full
    assert everything(None, seed=1, **registry.options(everything, {"size": 3}, "x", ("base", "seed"))) == {"seed": 1, "size": 3}


def test_arguments_need_not_be_keyword_only() -> None:
    assert positional(**registry.options(positional, {"lr": 0.5}, "method")) == (0.5, 3)
    assert "required" in refused("method.lr", lambda: registry.options(positional, {}, "method")).what


def test_a_signature_that_says_nothing_is_refused() -> None:
    def stars(*args: int) -> None: ...

    def untyped(**rest): ...  # type: ignore[no-untyped-def]

    def plain(**rest: dict[str, int]) -> None: ...

    for builder in (stars, untyped, plain):
        assert builder.__name__ in refused("", lambda b=builder: registry.schema(b)).what  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given_", "where", "what", "fix"),
    [
        ({"lr": 1, "stesp": 2}, "method.stesp", "unknown key 'stesp'", "did you mean 'steps'? (allowed: kind, lr, steps)"),
        ({}, "method.lr", "'lr' is required", "add it under [method]"),
        ({"lr": "fast"}, "method.lr", "'fast' is not allowed for 'lr'", "valid number"),
        ({"lr": 0.0}, "method.lr", "0.0 is not allowed for 'lr'", "greater than 0"),
        ({"lr": 1, "steps": 1.5}, "method.steps", "1.5 is not allowed", "integer"),
        ({"lr": 1, "kind": "c"}, "method.kind", "'c' is not allowed", "'a' or 'b'"),
    ],
)
def test_one_sentence_about_the_first_problem(given_: dict[str, Any], where: str, what: str, fix: str) -> None:
    error = refused(where, lambda: registry.options(some, given_, "method"))
    assert what in error.what
    assert fix in error.fix


def test_further_problems_are_counted() -> None:
    assert "1 more problem" in refused("method.lr", lambda: registry.options(some, {"zzz": 1}, "method")).why


# -- names ---------------------------------------------------------------------------------------------------------------


def package(folder: Path, name: str, entry: str, code: str = "") -> None:
    """An installed third-party distribution, as importlib.metadata sees one."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fedquilt.methods]\n{entry}\n")
    (folder / f"{name}.py").write_text(code)


def test_our_methods_are_registered() -> None:
    assert set(METHODS) <= set(registry.names("fedquilt.methods"))
    assert registry.load("fedquilt.methods", "fltac") is fltac
    error = refused("method.name", lambda: registry.load("fedquilt.methods", "fltaz"))
    assert "did you mean 'fltac'?" in error.fix
    assert "unknown adapter 'lroa'" in refused("adapter.family", lambda: registry.load("fedquilt.adapters", "lroa")).what


def test_a_third_partys_builder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "quilt_third", "mine = quilt_third:mine", "def mine(*, lr: float): return lr\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "mine" in registry.names("fedquilt.methods")
    assert registry.load("fedquilt.methods", "mine")(lr=2.0) == 2.0


def test_what_is_installed_later_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert "late" not in registry.names("fedquilt.methods")
    package(tmp_path, "quilt_late", "late = quilt_late:late")
    assert "late" in registry.names("fedquilt.methods")


def test_two_packages_with_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "quilt_rival", "fltac = quilt_rival:fltac")
    monkeypatch.syspath_prepend(tmp_path)
    what = refused("", lambda: registry.load("fedquilt.methods", "fltac")).what
    assert "fedquilt.methods.fltac:fltac, quilt_rival:fltac" in what


@pytest.mark.parametrize("code", ["import no_such_module_anywhere", ""])
def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    name = f"quilt_broken_{len(code)}"
    package(tmp_path, name, f"broken = {name}:broken", code)
    monkeypatch.syspath_prepend(tmp_path)
    assert "cannot be imported" in refused(f"{name}:broken", lambda: registry.load("fedquilt.methods", "broken")).what


@given(st.sampled_from(METHODS), st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=9))
def test_no_method_swallows_an_unknown_key(method: str, key: str) -> None:
    builder = registry.load("fedquilt.methods", method)
    allowed = registry.schema(builder).model_fields
    if key in allowed:
        return
    error = refused(f"method.{key}", lambda: registry.options(builder, {"lr": 0.1, "steps": 1, "tasks": 2, key: 1}
                    if "tasks" in allowed else {"lr": 0.1, "steps": 1, key: 1}, "method"))  # fmt: skip
    assert error.fix == did_you_mean(key, allowed)


# -- the file ------------------------------------------------------------------------------------------------------------

TEXT = """
rounds = 3
[method]
name = "fedit"
lr = 0.1
steps = 2
[model]
name = "tiny:bert"
[[tasks]]
name = "one"
source = "file:one.csv"
[[tasks]]
name = "two"
source = "file:two.csv"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run.toml").write_text(TEXT)
    return tmp_path / "run.toml"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("rounds=7", lambda c: c.rounds == 7),
        ("method.lr=1e-3", lambda c: c.method["lr"] == 1e-3),
        ("method.name=fltac", lambda c: c.method["name"] == "fltac"),
        (" method.name = 'fltac' ", lambda c: c.method["name"] == "fltac"),
        ("adapter.targets=['q', 'k']", lambda c: c.adapter == {"targets": ["q", "k"]}),
        ("tasks.1.max_train=100", lambda c: [t.max_train for t in c.tasks] == [None, 100]),
        ("tasks.0.text=['a', 'b']", lambda c: c.tasks[0].text == ("a", "b")),
        ("tasks.1={name = 'three', source = 'file:x.csv'}", lambda c: [t.name for t in c.tasks] == ["one", "three"]),
        ("tasks.0.metrics=f1", lambda c: c.tasks[0].metrics == ("f1",)),
        ("evaluation.start=false", lambda c: c.evaluation.start is False),
        ("name=a=b.c", None),
    ],
)
def test_set(path: Path, override: str, read: Callable[[RunConfig], bool] | None) -> None:
    if read is None:  # the value is everything after the first '='; '=' is not allowed in a name
        assert "'a=b.c'" in refused("name", lambda: load_config(path, [override])).what
    else:
        assert read(load_config(path, [override]))


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("rounds", "not of the form a.b=value"),
        ("=3", "not of the form"),
        ("method..lr=3", "not of the form"),
        ("tasks.2.name=x", "'2' is no position in a list of 2"),
        ("tasks.first.name=x", "'first' is no position"),
        ("tasks.2=x", "'2' is no position"),
        ("rounds.more.x=1", "'more' is inside a plain value"),
        ("roundz=1", "unknown key 'roundz'"),
        ("tasks.1.name=one", "two tasks have the same name"),
        ("rounds=0", "0 is not allowed for 'rounds'"),
        ("tasks=[]", "'tasks'"),
    ],
)
def test_set_that_cannot_be(path: Path, override: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what.replace("(", r"\(")):
        load_config(path, [override])


def test_what_is_missing_is_named_with_its_place() -> None:
    whole = tomllib.loads(TEXT)
    error = refused("rounds", lambda: parse({k: v for k, v in whole.items() if k != "rounds"}, Path()))
    assert error.fix == "add it at the top of the file"
    error = refused("method.name", lambda: parse({**whole, "method": {"lr": 0.1}}, Path()))
    assert "fltac" in error.fix


def test_files_that_are_no_configuration(tmp_path: Path, path: Path) -> None:
    assert "cannot read" in refused(str(tmp_path / "no.toml"), lambda: load_config(tmp_path / "no.toml")).what
    path.write_bytes(b"rounds = ")
    assert "not valid TOML" in refused(str(path), lambda: load_config(path)).what
    path.write_text(TEXT, encoding="utf-16")
    error = refused(str(path), lambda: load_config(path))
    assert (error.what, error.fix) == ("the config file is not UTF-8", "save the file as UTF-8")
    path.write_text(TEXT, encoding="utf-8-sig")  # as some editors save it
    assert load_config(path).rounds == 3


@pytest.mark.parametrize(
    ("override", "where", "what", "fix"),
    [
        ("method={}", "method", "'method' is required", "add it as a table [method] with a name, one of: "),
        ("method={lr = 1}", "method.name", "'name' is required", "add it under [method], one of: "),
        ("method=fedit", "method", "'fedit' is not allowed", "write a table, [method]"),
        ("model=3", "model", "3 is not allowed", "write a table, [model]"),
        ("tasks={name = 'a'}", "tasks", "'tasks' is one table, not a list of tables", "write [[tasks]], two brackets"),
        ("tasks=['a']", "tasks.0", "'a' is not allowed", "write a table, [[tasks]]"),
        ("tasks.0.labels=yes", "tasks.0.labels", "'yes' is not allowed for 'labels'", 'write a list: ["yes"]'),
        ("tasks.1.preset=glue/sst3", "task 'two', preset", "no preset 'glue/sst3'", "did you mean 'glue/sst2'?"),
        ("tasks.1.preset=[1]", "task 'two', preset", "no preset [1]", "allowed: "),
        ("tasks.0.name=a b", "tasks.0.name", "'a b' is not allowed", "letters, digits, '.', '_' and '-', and a letter or a digit"),
        ("name=../evil", "name", "'../evil' is not allowed", "letters, digits, '.', '_' and '-', and a letter or a digit"),
        ("model.device=gpu", "model.device", "'gpu' is not allowed", '"cpu", "cuda", or '),
        ("tasks.2.name=x", "--set tasks.2.name=x", "'2' is no position", "positions are 0 to 1: .1. is the last one"),
        ("rounds.more.x=1", "--set rounds.more.x=1", "inside a plain value", "leave .more out"),
    ],
)
def test_the_fix_is_in_the_words_of_the_file(path: Path, override: str, where: str, what: str, fix: str) -> None:
    error = refused(where, lambda: load_config(path, [override]))
    assert what in error.what
    assert fix in error.fix


def test_a_position_in_an_empty_list(path: Path) -> None:
    assert "add an entry" in refused("--set tasks.0.name=x", lambda: load_config(path, ["tasks=[]", "tasks.0.name=x"])).fix


def test_relative_paths_are_seen_from_the_file_and_the_callers_tables_stay(path: Path) -> None:
    assert load_config(path).tasks[0].source == f"file:{path.parent / 'one.csv'}"
    tables = tomllib.loads(TEXT)
    parse(tables, path.parent)
    assert tables == tomllib.loads(TEXT)


def test_a_file_extends_another_key_by_key(path: Path) -> None:
    child = path.with_name("child.toml")
    child.write_text('extends = "run.toml"\nrounds = 9\n[method]\nlr = 0.5\n')
    config = load_config(child)
    assert (config.rounds, config.method) == (9, {"name": "fedit", "lr": 0.5, "steps": 2})
    path.write_text('extends = "child.toml"\n' + TEXT)
    assert "extends itself" in refused("extends", lambda: load_config(child)).what


def test_environment_variables_in_sources(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(TEXT.replace("file:one.csv", "file:${QUILT_DATA}/one.csv"))
    monkeypatch.delenv("QUILT_DATA", raising=False)
    assert "'QUILT_DATA' is not set" in refused("file:${QUILT_DATA}/one.csv", lambda: load_config(path)).what
    monkeypatch.setenv("QUILT_DATA", "elsewhere")
    assert load_config(path).tasks[0].source == f"file:{path.parent / 'elsewhere' / 'one.csv'}"


def test_the_resolved_file_reads_back_equal_and_the_digest_sees_every_value(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["method.schedule=cosine", "adapter.rank=2", "partition.alpha=0.25", "seed=4"])
    (tmp_path / "resolved.toml").write_text(config.to_toml())
    again = load_config(tmp_path / "resolved.toml")
    assert again == config
    assert again.digest() == config.digest()
    changes = ["seed=5", "method.lr=0.2", "tasks.0.label=y", "partition.clients=3", "model.max_length=64", "adapter.rank=1"]
    digests = {load_config(tmp_path / "resolved.toml", [change]).digest() for change in changes}
    assert len(digests | {config.digest()}) == len(changes) + 1
