"""The package as a user meets it: public names, what an import loads, doctests."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import fedquilt
from fedquilt.errors import ConfigError
from fedquilt.methods.fedit import fedit
from fedquilt.testing import check_method

HEAVY = {"transformers", "peft", "sklearn", "scipy", "datasets", "pandas", "pyarrow", "matplotlib", "plotly", "umap", "flwr"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules outside the standard library after running ``code`` in a fresh interpreter."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    names = set(json.loads(done.stdout.splitlines()[-1]))
    return {name for name in names if name not in sys.stdlib_module_names and not name.startswith("_")}


def test_public_names_are_sorted_unique_and_there() -> None:
    assert fedquilt.__all__ == sorted(set(fedquilt.__all__))
    assert all(hasattr(fedquilt, name) for name in fedquilt.__all__)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'fedquilt' has no attribute 'nothing'"):
        fedquilt.nothing  # noqa: B018


def test_version_is_that_of_the_distribution() -> None:
    assert fedquilt.__version__ == metadata.version("fedquilt")


def test_import_loads_torch_and_nothing_heavier() -> None:
    allowed = loaded_by("import torch, numpy") | {"fedquilt"}
    assert loaded_by("import fedquilt") <= allowed
    assert loaded_by("import fedquilt.types, fedquilt.tree, fedquilt.rng") <= allowed


def test_describing_a_method_loads_no_model_library() -> None:
    assert not loaded_by("import fedquilt; fedquilt.Method") & HEAVY


@pytest.mark.parametrize("name", sorted(m.name for m in pkgutil.walk_packages(fedquilt.__path__, "fedquilt.")))
def test_doctests(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_the_configuration_in_the_first_example_is_in_a_checkout() -> None:
    (path,) = re.findall(r'fedquilt.run\("(.*?)"\)', fedquilt.__doc__ or "")
    assert (Path(__file__).resolve().parents[2] / path).is_file()


@pytest.mark.parametrize("given", [fedit, fedit(lr=1e-3, steps=1)], ids=["builder", "method"])
@pytest.mark.parametrize("call", [fedquilt.run, check_method])
def test_a_method_in_the_place_of_a_name_is_refused_with_the_way_to_one(given: Any, call: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError, match=r"'fedit' is given as a method itself(.*\n)*.*fix: register the function"):
        call(given)


def test_run_stays_a_function_after_its_module_was_imported() -> None:
    first = fedquilt.run
    importlib.import_module("fedquilt.runs.launch")
    assert fedquilt.run is first
    assert callable(fedquilt.run)
