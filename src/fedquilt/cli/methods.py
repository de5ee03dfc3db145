"""methods list, methods show: what can stand under ``[method]``, ours and plug-ins' alike."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedquilt.cli import show as out

if TYPE_CHECKING:
    from pydantic import BaseModel

GROUP = "fedquilt.methods"
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
    about = inspect.getdoc(builder) or ""
    options = _options(registry.schema(builder))
    if as_json:
        out.print_json({"name": name, "about": about, "options": options})
        return
    typer.echo(f"{name}\n\n{about}\n")
    rows = tuple((option["name"], option["type"], _default(option)) for option in options)
    out.print_table(Table(("option", "type", "default"), rows), "[method]")


def _first_line(builder: Any) -> str:
    return (inspect.getdoc(builder) or "").partition("\n")[0]


def _default(option: dict[str, Any]) -> str:
    if option["required"]:
        return "required"
    return "not set" if option["default"] is None else repr(option["default"])


def _options(model: type[BaseModel]) -> list[dict[str, Any]]:
    found = []
    for name, field in model.model_fields.items():
        required = field.is_required()
        kind = inspect.formatannotation(field.annotation)
        found.append({"name": name, "type": kind, "required": required, "default": None if required else field.default})
    return found
