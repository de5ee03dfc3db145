"""The documentation against the code: every key, argument, name and code is described, every example is valid."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import fedquilt
from fedquilt import errors, gate
from fedquilt.data.assets import ASSETS
from fedquilt.data.presets import PRESETS
from fedquilt.data.spec import PartitionConfig, TaskConfig
from fedquilt.models.loading import ModelConfig
from fedquilt.runs import registry
from fedquilt.runs.config import EvaluationConfig, RunConfig, parse
from fedquilt.runs.store import JOURNALS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "PAPERS.md", *sorted(DOCS.rglob("*.md"))]
METHODS = registry.names("fedquilt.methods")


def blocks(language: str) -> list[Any]:
    """All fenced code blocks of a language, with the page they are on."""
    found = []
    for page in PAGES:
        for number, text in enumerate(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)):
            found.append(pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


def section(page: str, title: str) -> str:
    """The text under a level-two heading."""
    text = (DOCS / page).read_text(encoding="utf-8")
    match = re.search(rf"^## [^\n]*{re.escape(title)}[^\n]*\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    assert match, f"{page} has no section {title}"
    return match[1]


@pytest.mark.parametrize(
    ("model", "title"),
    [
        (RunConfig, "Top level"),
        (ModelConfig, "`[model]`"),
        (TaskConfig, "`[[tasks]]`"),
        (PartitionConfig, "`[partition]`"),
        (EvaluationConfig, "`[evaluation]`"),
    ],
)
def test_every_config_key_is_described(model: type[BaseModel], title: str) -> None:
    tables = {"model", "adapter", "method", "tasks", "partition", "evaluation"} if model is RunConfig else set()
    keys = set(
        re.findall(
            r"`([a-z_]+)`", "\n".join(line.split("|")[1] for line in section("config.md", title).splitlines() if "|" in line)
        )
    )
    assert keys == set(model.model_fields) - tables


def test_every_lora_argument_is_described_with_its_default() -> None:
    text = section("config.md", "`[adapter]`")
    for name, field in registry.schema(registry.load("fedquilt.adapters", "lora"), ("base", "seed", "heads")).model_fields.items():
        default = str(list(field.default) if isinstance(field.default, tuple) else field.default).replace("'", '"')
        shown = f'"{default}"' if isinstance(field.default, str) else default
        assert f"| `{name}` | `{shown}` |" in text


@pytest.mark.parametrize("name", METHODS)
def test_every_method_and_its_own_arguments_are_described(name: str) -> None:
    if f"`{name}`" not in (DOCS / "methods.md").read_text(encoding="utf-8"):
        own = {point.value.split(".")[0] for point in entry_points(group="fedquilt.methods") if point.name == name}
        assert "fedquilt" not in own  # a plug-in that happens to be installed
        return
    common, own_text = section("methods.md", "What all of them take"), section("methods.md", f"`{name}`")
    for argument, field in registry.schema(registry.load("fedquilt.methods", name)).model_fields.items():
        assert f"`{argument}`" in common or f"`{argument}" in own_text, argument
        row = re.search(rf"^\| `{argument}` \| (.*?) \|", own_text, re.M)
        row = row or re.search(rf"^\| `{argument}` \| (.*?) \|", common, re.M)
        if row and not field.is_required():  # a default that is shown is the true one
            shown = row[1].replace("one of the two", "–").strip("`").strip('"')
            assert shown == str(field.default).lower().replace("none", "–")
    assert f"| `{name}` |" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_presets_assets_and_ways_to_partition_are_described() -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    ways = PartitionConfig.model_fields["how"].annotation.__args__  # type: ignore[union-attr]
    missing = [name for name in (*PRESETS, *ASSETS, *ways) if f"`{name}`" not in text]
    assert not missing


def test_errors_and_rejection_codes_are_described() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FedquiltError)]
    for kind in kinds:
        assert f"| `{kind.__name__}` | {kind.exit_code} |" in text
    assert set(re.findall(r"^\| `([a-z]+)` \|", section("errors.md", "Rejected replies"), re.M)) == set(gate.CODES)


def test_journals_are_described() -> None:
    text = (DOCS / "reports.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in JOURNALS)


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_examples_are_valid(text: str, tmp_path: Path) -> None:
    raw = tomllib.loads(text)
    if "rounds" in raw:
        config = parse(raw, tmp_path)
        given = {"tasks": len(config.tasks), **{key: value for key, value in config.method.items() if key != "name"}}
        registry.options(registry.load("fedquilt.methods", config.method["name"]), given, "method")
        registry.options(registry.load("fedquilt.adapters", "lora"), config.adapter, "adapter", ("base", "seed", "heads"))
    for task in raw.get("tasks", []):
        TaskConfig.model_validate(task)


@pytest.mark.parametrize("text", blocks("python"))
def test_python_examples_compile_and_import_what_is_there(text: str) -> None:
    lines = ast.parse(text)
    for node in ast.walk(lines):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedquilt"):
            exec(ast.unparse(node), {})


def test_methods_in_the_examples_can_be_built() -> None:
    for parameter in blocks("python"):
        text = str(parameter.values[0])
        if "Method(" in text:
            scope: dict[str, Any] = {}
            exec(text, scope)
            built = scope["method"] if "method" in scope else scope["softer"](clusters=2, lr=1e-3, steps=1)
            assert built.slots == "task"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "PAPERS.md"], ids=lambda page: page.name)
def test_relative_links_of_top_level_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", [DOCS / "development" / "traps.md", ROOT / "PAPERS.md"], ids=lambda page: page.name)
def test_named_tests_and_files_exist(page: Path) -> None:
    for path, _, name in re.findall(r"`((?:src|tests)/[\w/.]+)(::(\w+))?`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"


def test_every_module_is_on_an_api_page() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (fedquilt\.\w+)", pages, re.M))
    there = {module.name for module in pkgutil.iter_modules(fedquilt.__path__, "fedquilt.")}
    # Commands are documented by --help; configs holds no code.
    assert there - {"fedquilt.cli", "fedquilt.configs", "fedquilt.__main__"} <= shown


def test_no_machine_path_in_tracked_text() -> None:
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    homes = re.compile(r"(?<![\w.])/(?:home|Users|root|work|opt|mnt)/\w")
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yml", ""} and path.is_file() and path != Path(__file__).resolve():
            assert not homes.search(path.read_text(encoding="utf-8")), name
