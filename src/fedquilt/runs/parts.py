"""The parts that a configuration names - method, adapter family, engine - and what can be said of them before anything is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedquilt import wire
from fedquilt.adapters.base import Adapter
from fedquilt.errors import ConfigError
from fedquilt.method import Method
from fedquilt.models.loading import Base
from fedquilt.runs import registry
from fedquilt.runs.config import RunConfig

PROVIDED = ("base", "seed", "heads")
"""Arguments of an adapter's builder that are not the configuration's."""


def check(config: RunConfig) -> None:
    """Whether method, adapter and engine are there and take the options given: data and model may take minutes to load.

    Raises:
        ConfigError: an unknown name or option, a missing one, or a value of the wrong kind.
    """
    find_adapter(config, make_method(config, len(config.tasks)))
    find_engine(config)


def make_method(config: RunConfig, tasks: int) -> Method:
    """The method named in the configuration; ``tasks`` is filled in where the builder wants it and the config is silent."""
    given = {key: value for key, value in config.method.items() if key != "name"}
    builder = registry.load("fedquilt.methods", str(config.method["name"]))
    known = registry.schema(builder).model_fields
    if "tasks" in known and "tasks" not in given:
        if config.own:
            why = "with partition.how = 'own' no machine sees all tasks"
            raise ConfigError("'tasks' is required", where="method.tasks", why=why, fix="say how many tasks there are in all")
        given["tasks"] = tasks
    if "adapter" in known and "family" in config.adapter:
        given.setdefault("adapter", config.adapter["family"])
    method = builder(**registry.options(builder, given, "method"))
    if not isinstance(method, Method):
        raise ConfigError(f"the method '{config.method['name']}' did not return a Method", why=f"but {type(method).__name__}")
    if config.secure_aggregation:
        method = replace(method, wire=wire.chain((*method.wire.parts, wire.masked())))
    return replace(method, local=replace(method.local, horizon=config.rounds))


def find_adapter(config: RunConfig, method: Method) -> tuple[registry.Builder, dict[str, Any]]:
    """The builder of the method's adapter family and the options of ``[adapter]`` for it.

    Raises:
        ConfigError: no such family, not the method's, or options that it does not take.
    """
    given = dict(config.adapter)
    family = given.pop("family", method.adapter)
    builder = registry.load("fedquilt.adapters", str(family), "adapter.family" if "family" in config.adapter else "method.adapter")
    if family != method.adapter:
        fix = "leave adapter.family out, or choose another method"
        raise ConfigError(f"the method trains '{method.adapter}', the config asks for '{family}'", where="adapter.family", fix=fix)
    chosen = registry.options(builder, given, "adapter", PROVIDED)
    if chosen.get("head") == "per-task" and config.own:
        why = "with partition.how = 'own' no machine knows the others' tasks"
        raise ConfigError(
            "a head per task is not possible", where="adapter.head", why=why, fix='"federated", "private" or "frozen"'
        )
    return builder, chosen


def make_adapter(config: RunConfig, method: Method, base: Base, tasks: int) -> Adapter:
    """The adapter of the method's family with the options of ``[adapter]``."""
    builder, chosen = find_adapter(config, method)
    heads = tasks if chosen.get("head") == "per-task" else 1
    adapter = builder(base, seed=config.seed, heads=heads, **chosen)
    if not isinstance(adapter, Adapter):
        raise ConfigError(f"the adapter family '{method.adapter}' did not return an Adapter", why=f"but {type(adapter).__name__}")
    return replace(adapter, options=chosen)


def find_engine(config: RunConfig) -> Any:
    """The class of the engine that the configuration names."""
    return registry.load("fedquilt.engines", config.engine)
