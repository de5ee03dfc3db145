"""methods list, methods show: what can stand under ``[method]``, ours and plug-ins' alike."""

from __future__ import annotations

import inspect
import json
import re
import typing
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import typer

from fedquilt.cli import show as out

if TYPE_CHECKING:
    from pydantic import BaseModel

GROUP = "fedquilt.methods"
FILLED = {"tasks": "number of [[tasks]]"}  # by a run, where the configuration is silent
app = typer.Typer(help="The methods that a configuration can name.", no_args_is_help=True)


@app.command("list")
def list_methods(as_json: out.AsJson = False) -> None:
    """Name every installed method."""
    from fedquilt.report.table import Table
    from fedquilt.runs import registry

    records = [{"name": name, "about": _first_line(registry.load(GROUP, name))} for name in registry.names(GROUP)]
    if as_json:
        out.print_json(records)
    else:
        out.print_table(Table(("method", "about"), tuple((r["name"], r["about"]) for r in records)))


@app.command("show")
def show_method(name: Annotated[str, typer.Argument(help="A name from `methods list`.")], as_json: out.AsJson = False) -> None:
    """Describe one method: its documentation and its options with their defaults."""
    from fedquilt.report.table import Table
    from fedquilt.runs import registry

    builder = registry.load(GROUP, name)
    about, told = _described(builder)
    options = _options(registry.schema(builder), told)
    if as_json:
        out.print_json({"name": name, "about": about, "options": options})
        return
    typer.echo(f"{name}\n\n{about}\n")
    rows = tuple((option["name"], option["type"], _default(option), option["about"]) for option in options)
    out.print_table(Table(("option", "type", "default", "meaning"), rows), "[method]")


def _first_line(builder: Any) -> str:
    return _described(builder)[0].partition("\n")[0]


def _described(builder: Any) -> tuple[str, dict[str, str]]:
    """A docstring without its markup: the text, and what its ``Args:`` say of each."""
    text = re.sub(r"(?::\w+)+:`~?([^`]+)`", r"\1", inspect.getdoc(builder) or "").replace("``", "")
    begin, _, rest = text.partition("\nArgs:\n")
    section = re.match(r"(?: .*\n?|\n)*", rest)
    arguments = section[0] if section else ""
    told = {
        found[1]: " ".join(found[2].split()).removesuffix(".")
        for found in re.finditer(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", arguments, re.M)
    }
    return f"{begin.strip()}\n\n{rest[len(arguments) :]}".strip(), told


def _default(option: dict[str, Any]) -> str:
    if option["required"]:
        return "required"
    return FILLED.get(option["name"], "not set") if option["default"] is None else json.dumps(option["default"], default=str)


def _options(model: type[BaseModel], told: dict[str, str]) -> list[dict[str, Any]]:
    """The builder's own words come first: an option of a plug-in may mean something else there."""
    found = []
    for name, field in model.model_fields.items():
        required = field.is_required()
        about = told.get(name) or field.description or ""
        default = None if required else field.default
        required = required and name not in FILLED
        found.append({"name": name, "type": _type(field.annotation), "required": required, "default": default, "about": about})
    return found


def _type(kind: Any) -> str:
    """As it is written in TOML, which has no null: what may be left out has no other sign than its default."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return " | ".join(json.dumps(part) for part in parts)
    if origin in (Union, UnionType):
        return " | ".join(_type(part) for part in parts if part is not NoneType)
    return inspect.formatannotation(kind)
