"""The run's configuration: a TOML file plus ``--set a.b=c``. Unknown keys are errors everywhere. A file may begin from another
one (``extends = "tasks.toml"``, seen from its own folder).

``[method]`` and ``[adapter]`` have no schema here: the builder's signature is the schema.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field

from fedquilt.data.kinds import WRITTEN
from fedquilt.data.spec import Name, PartitionConfig, TaskConfig
from fedquilt.directions import LOWER_IS_BETTER, direction
from fedquilt.errors import ConfigError
from fedquilt.models.loading import ModelConfig
from fedquilt.runs import registry
from fedquilt.runs.toml import tables


class EvaluationConfig(BaseModel):
    """``every``: rounds between evaluations (the last round always; 0: only the last); ``start``: also before training.

    ``generate``: examples per generation task that the model answers itself, for ROUGE-L (slow; 0: none); ``max_new``: tokens each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(1, ge=0)
    start: bool = True
    generate: int = Field(0, ge=0)
    max_new: int = Field(64, ge=1)


class RunConfig(BaseModel):
    """A whole run.

    Attributes:
        engine: vectorised (fast) or sequential (the debug reference).
        cohort: slots trained side by side by the vectorised engine.
        threads: of torch; None: all cores. Recorded, for the last bits of some sums depend on it.
        workers: processes that train side by side, each with its part of the threads and a base model of its own; 1: none but this.
        checkpoint_every: rounds between durable checkpoints; a crash costs at most so many rounds.
        quorum: share of the asked slots whose replies must be usable; a round with fewer changes nothing.
        secure_aggregation: the server sees sums over clients only, behind masks where they are on machines of their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = "run"
    seed: int = Field(0, ge=0)
    rounds: int = Field(ge=1)
    engine: str = "vectorised"
    cohort: int = Field(64, ge=1)
    threads: int | None = Field(None, ge=1)
    workers: int = Field(1, ge=1)
    checkpoint_every: int = Field(1, ge=1)
    quorum: float = Field(0.0, ge=0, le=1)
    secure_aggregation: bool = False
    model: ModelConfig = ModelConfig()
    adapter: dict[str, Any] = Field(default_factory=dict)
    method: dict[str, Any] = Field(default_factory=dict)
    tasks: tuple[TaskConfig, ...] = ()
    partition: PartitionConfig = PartitionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def own(self) -> bool:
        """Whether every client has data of its own, and the server none."""
        return self.partition.how == "own"

    def arrivals(self) -> dict[str, int]:
        """Task -> the round from which on clients have its data."""
        return {task.name: task.first_round for task in self.tasks}

    def to_toml(self) -> str:
        """The resolved configuration as TOML (unset values left out)."""
        return tomli_w.dumps(json.loads(self.model_dump_json(exclude_none=True)))

    def chosen(self) -> str:
        """All that is not the default, as JSON: a key that a later version adds changes nothing."""
        return self.model_dump_json(exclude_defaults=True)

    def digest(self) -> str:
        """blake2b of what was chosen: what a resume compares."""
        return hashlib.blake2b(self.chosen().encode(), digest_size=16).hexdigest()


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, override, validate; relative paths become absolute, seen from the config file's folder.

    Raises:
        ConfigError: unreadable file, bad TOML, unknown key, bad value; one sentence with the path into the config.
    """
    path = Path(path)
    raw = _read(path, ())
    for override in overrides:
        _override(raw, override)
    return parse(raw, path.parent.resolve())


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """The tables of a file over those of the file it ``extends``; tables merge, everything else is replaced."""
    if path.resolve() in children:
        raise ConfigError(f"'{path}' extends itself", where="extends", fix="remove one of the 'extends' lines")
    try:
        raw = tables(path.read_bytes(), path, "the config file")
    except OSError as error:
        raise ConfigError(
            "cannot read the config file", where=str(path), why=error.strerror or str(error), fix="check the path"
        ) from error
    _anchor(raw, path.parent.resolve())
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    return _over(_read(path.parent / str(parent), (*children, path.resolve())), raw)


def _anchor(raw: dict[str, Any], folder: Path) -> None:
    """Make the relative paths of one file absolute: they are seen from its own folder, whoever extends it."""
    tasks = raw.get("tasks")
    for task in tasks if isinstance(tasks, list) else []:
        kind, _, path = str(task.get("source", "")).partition(":") if isinstance(task, dict) else ("", "", "")
        if kind in ("file", "folder") and path:
            task["source"] = f"{kind}:{folder / _expanded(path)}"
    for table, key in (("partition", "file"), ("model", "name")):
        value = raw.get(table, {}).get(key) if isinstance(raw.get(table), dict) else None
        if isinstance(value, str) and (table == "partition" or (folder / value / "config.json").is_file()):
            raw[table][key] = str(folder / value)


def _expanded(path: str) -> str:
    """``$NAME`` and ``${NAME}`` replaced by environment variables."""
    out = os.path.expandvars(path)
    if "$" in out:
        name = out.partition("$")[2].strip("{").partition("}")[0].partition("/")[0]
        raise ConfigError(f"the environment variable '{name}' is not set", where=f"file:{path}", fix=f"export {name}=FOLDER")
    return out


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = _over(below[key], above[key])
    return both


def parse(raw: dict[str, Any], root: Path) -> RunConfig:
    """A validated configuration from plain tables, which are left as they are."""
    raw = copy.deepcopy(raw)
    _anchor(raw, root)
    config: RunConfig = registry.validate(RunConfig, raw, "")
    names = [task.name for task in config.tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"two tasks have the same name in {names}", where="tasks", fix="give every [[tasks]] its own name")
    if config.own and config.model.classes is None:
        why, fix = "with partition.how = 'own' no machine sees all tasks", "the most labels that a task has; 0 for a language model"
        raise ConfigError("'classes' is required", where="model.classes", why=why, fix=fix)
    if config.tasks:
        _check_kinds(config)
        _check_arrivals(config)
    elif not config.own:
        raise ConfigError("'tasks' is required", where="tasks", fix="add [[tasks]] with a name and a source or preset")
    if "name" not in config.method:
        key, place = ("name", "under [method]") if config.method else ("method", "as a table [method] with a name")
        where = "method.name" if config.method else "method"
        known = ", ".join(registry.names("fedquilt.methods"))
        raise ConfigError(f"'{key}' is required", where=where, fix=f"add it {place}, one of: {known}")
    return config


def _check_kinds(config: RunConfig) -> None:
    """One model serves all tasks, and a mean over their primary metrics must say something."""
    if len({task.image is None for task in config.tasks}) > 1:
        images = ", ".join(task.name for task in config.tasks if task.image is not None)
        why = "all tasks of a run share one model, which reads either"
        fix = "make two runs of them"
        raise ConfigError(f"text and image tasks in one run; of images: {images}", where="tasks", why=why, fix=fix)
    kinds = {task.kind == "generation" for task in config.tasks}
    if len(kinds) > 1:
        raise ConfigError(
            "generation and classification tasks in one run",
            where="tasks",
            why="the first need a causal language model, the others an encoder with a head",
            fix="make two runs of it",
        )
    first = {task.metrics[0]: task.name for task in config.tasks}
    if len({name in LOWER_IS_BETTER for name in first}) > 1:
        why = direction(first) + ": a mean over slots would say nothing"
        raise ConfigError(
            "the tasks' first metrics go different ways", where="tasks.metrics", why=why, fix="put the same metric first"
        )
    grouped = [task.name for task in config.tasks if task.group]
    if grouped and config.partition.slots_per_task > 1:
        why = f"the candidates of a question of task {grouped[0]!r} would be spread over them"
        raise ConfigError("several slots per task part questions", where="partition.slots_per_task", why=why, fix="leave it at 1")
    wanting = [task.name for task in config.tasks if task.kind == "generation" and set(WRITTEN) & set(task.metrics)]
    if wanting and not config.evaluation.generate:
        why = f"task {wanting[0]!r} asks for {', '.join(WRITTEN[:-1])} or {WRITTEN[-1]}, which need texts that the model writes"
        raise ConfigError(
            "evaluation.generate = 0", where="evaluation.generate", why=why, fix="for example evaluation.generate = 20"
        )


def _check_arrivals(config: RunConfig) -> None:
    late = [name for name, number in config.arrivals().items() if number > config.rounds]
    if late:
        fix = f"at most {config.rounds}, or more rounds"
        raise ConfigError(f"task '{late[0]}' arrives after the last round", where="tasks.first_round", fix=fix)
    if min(config.arrivals().values()) > 1:
        raise ConfigError("no task is there in round 1", where="tasks.first_round", fix="leave it out of one task at least")


def _override(raw: dict[str, Any], text: str) -> None:
    """Apply ``a.b=value``; the value is TOML, or a bare string. ``tasks.0.max_train=100`` reaches into lists."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"'{text}' is not of the form a.b=value", where="--set", fix="for example --set method.lr=1e-3")
    try:
        parsed = tomllib.loads(f"x = {value.strip()}")["x"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    node: Any = raw
    for key in keys[:-1]:
        node = _child(node, key, text)
    if isinstance(node, list):
        _child(node, keys[-1], text)
        node[int(keys[-1])] = parsed
    else:
        node[keys[-1]] = parsed


def _child(node: Any, key: str, text: str) -> Any:
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            last = len(node) - 1
            fix = f"positions are 0 to {last}: .{last}. is the last one" if node else "add an entry in the file first"
            raise ConfigError(f"'{key}' is no position in a list of {len(node)}", where=f"--set {text}", fix=fix)
        return node[int(key)]
    if not isinstance(node, dict):
        fix = f"leave .{key} out, or check what is before it"
        raise ConfigError(f"'{key}' is inside a plain value", where=f"--set {text}", fix=fix)
    return node.setdefault(key, {})
