"""Find methods, adapters and engines by name, ours and third parties' alike, and turn a builder's signature into a schema."""

from __future__ import annotations

import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Annotated, Any, NotRequired, Required

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from typing_extensions import get_type_hints, is_typeddict

from fedquilt.errors import ConfigError, did_you_mean

Builder = Callable[..., Any]
PLACES = {"fedquilt.methods": "method.name", "fedquilt.adapters": "adapter.family", "fedquilt.engines": "engine"}
"""Where a configuration names one of a group."""


def names(group: str) -> list[str]:
    """All registered names of a group, sorted."""
    return sorted({point.name for point in _points(group)})


def load(group: str, name: str, where: str = "") -> Builder:
    """The builder registered under ``name``; ``where``: who asks for it, if not the place in :data:`PLACES`.

    Raises:
        ConfigError: no such name, two packages with the same name, or a package that cannot be imported.
    """
    points = list({(point.value): point for point in _points(group) if point.name == name}.values())
    kind = group.rpartition(".")[2].rstrip("s")
    if not points:
        raise ConfigError(f"unknown {kind} '{name}'", where=where or PLACES[group], fix=did_you_mean(name, names(group)))
    if len(points) > 1:
        homes = ", ".join(sorted(point.value for point in points))
        raise ConfigError(f"two packages register the {kind} '{name}': {homes}", fix="uninstall one of them")
    try:
        builder: Builder = points[0].load()
    except (ImportError, AttributeError) as error:
        fix = "install what it needs, or uninstall it"
        raise ConfigError(f"the {kind} '{name}' cannot be imported", where=points[0].value, why=str(error), fix=fix) from error
    return builder


def _points(group: str) -> EntryPoints:
    return _installed(group, tuple(_stamp(Path(place)) for place in sys.path))


@lru_cache(maxsize=len(PLACES))
def _installed(group: str, _: tuple[tuple[Path, int], ...]) -> EntryPoints:
    """Finding them reads a file of every installed package, and a run asks six times: again only if a folder of the path has
    changed, as it does when something is installed."""
    return entry_points(group=group)


def _stamp(place: Path) -> tuple[Path, int]:
    return place, place.stat().st_mtime_ns if place.exists() else 0


def schema(builder: Builder, provided: tuple[str, ...] = ()) -> type[BaseModel]:
    """The keyword arguments of a builder as a pydantic model that forbids unknown keys.

    Args:
        provided: arguments that the caller supplies, not the config. ``**kwargs: Unpack[SomeTypedDict]`` is spread out.

    Raises:
        ConfigError: ``*args``, or ``**kwargs`` of unknown names.
    """
    hints = get_type_hints(builder, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(builder).parameters.items():
        if name in provided:
            continue
        if parameter.kind is inspect.Parameter.VAR_KEYWORD and any(map(is_typeddict, typing.get_args(hints.get(name)))):
            fields |= _spread(hints[name])
        elif parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            raise ConfigError(
                f"'{name}' of {getattr(builder, '__name__', 'the builder')} does not say which settings there are",
                why="the signature is the configuration's schema",
                fix="name the arguments, or annotate: **kwargs: Unpack[SomeTypedDict]",
            )
        else:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[name] = (hints.get(name, Any), default)
    config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    return create_model(f"{getattr(builder, '__name__', 'Builder')}_options", __config__=config, **fields)


def _spread(unpacked: Any) -> dict[str, Any]:
    """Fields of the TypedDict in ``Unpack[...]``; optional keys without a default (``Field`` in ``Annotated``) stay unset."""
    table = typing.get_args(unpacked)[0]
    total = getattr(table, "__total__", True)
    out: dict[str, Any] = {}
    for name, hint in get_type_hints(table, include_extras=True).items():
        origin: Any = typing.get_origin(hint)
        inner = typing.get_args(hint)[0] if origin in (Required, NotRequired) else hint
        required = origin is Required or (total and origin is not NotRequired)
        known = next((x for x in typing.get_args(inner) if isinstance(x, FieldInfo)), FieldInfo())
        if required:
            out[name] = (inner, ...)
        elif known.is_required():
            out[name] = (Annotated[inner | None, known], None)
        else:
            out[name] = (inner, known.default)
    return out


def options(builder: Builder, given: Mapping[str, Any], where: str, provided: tuple[str, ...] = ()) -> dict[str, Any]:
    """Checked keyword arguments for a builder, without those that were not given.

    Raises:
        ConfigError: unknown key, missing key, or a value of the wrong kind; says path, value and what is allowed.
    """
    model = schema(builder, provided)
    checked = validate(model, given, where)
    return {name: getattr(checked, name) for name in sorted(checked.model_fields_set)}


def validate(model: type[BaseModel], given: Mapping[str, Any], where: str) -> Any:
    """``model(**given)`` with a pydantic error turned into one sentence about the first problem."""
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise _sentence(error, model, where) from error


def _sentence(error: ValidationError, model: type[BaseModel], where: str) -> ConfigError:
    first = error.errors()[0]
    parts = [str(part) for part in (where, *first["loc"]) if part != ""]
    path = ".".join(parts)
    key = str(first["loc"][-1]) if first["loc"] else ""
    more = f"{error.error_count() - 1} more problem(s) in the same table" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        allowed = _model_at(model, first["loc"][:-1]).model_fields
        return ConfigError(f"unknown key '{key}'", where=path, why=more, fix=did_you_mean(key, allowed))
    if first["type"] == "missing":
        table = path.rpartition(".")[0]
        place = f"under [{table}]" if table else "at the top of the file"
        return ConfigError(f"'{key}' is required", where=path, why=more, fix=f"add it {place}")
    if first["type"] == "tuple_type" and isinstance(first["input"], Mapping):
        return ConfigError(
            f"'{key}' is one table, not a list of tables", where=path, why=more, fix=f"write [[{path}]], two brackets"
        )
    return ConfigError(f"{first['input']!r} is not allowed for '{key}'", where=path, why=more, fix=_allowed(first, model, parts))


def _allowed(first: ErrorDetails, model: type[BaseModel], path: Sequence[str]) -> str:
    """What can be there instead: in the words of a configuration file where pydantic's are those of Python."""
    kind, given = first["type"], first["input"]
    if kind == "tuple_type":
        return f"write a list: [{json.dumps(given, default=str)}]"
    if kind in ("dict_type", "model_type"):
        listed = path[-1].isdigit()
        return f"write a table, [[{'.'.join(path[:-1])}]]" if listed else f"write a table, [{'.'.join(path)}]"
    if kind == "string_pattern_mismatch" and first["loc"]:
        field = _model_at(model, first["loc"][:-1]).model_fields.get(str(first["loc"][-1]))
        return (field and field.description) or str(first["msg"])
    return str(first["msg"])


def _model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """The model of the table at a path."""
    for part in path:
        field = model.model_fields.get(str(part))
        inner = [t for t in (field.annotation, *typing.get_args(field.annotation)) if _is_model(t)] if field else []
        if inner:
            model = inner[0]
    return model


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
