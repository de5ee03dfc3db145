"""The tiny federation with every client's rows in files of its own."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from door import journal
from tiny import SIZES, WORDS, tiny_config, write_tasks

from fedquilt.deploy.build import host, remote
from fedquilt.deploy.host import Host
from fedquilt.deploy.loopback import Loopback, Node
from fedquilt.deploy.remote import Remote
from fedquilt.runs.build import Built, build
from fedquilt.runs.config import parse
from fedquilt.runs.launch import run

CLIENTS = range(4)
RUN = "0" * 32


@dataclass
class Federation:
    """Every client with a configuration of its own; ``away``: nodes that are not connected."""

    folder: Path
    tables: dict[str, Any]
    away: set[int] = field(default_factory=set)
    hosts: dict[int, Host] = field(default_factory=dict)
    answers: dict[int, Node] = field(default_factory=dict)
    remote: Remote | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        write_tasks(self.folder)
        for client in CLIENTS:
            config = parse({**self.tables, "tasks": own_rows(self.folder, client)}, self.folder)
            self.hosts[10 + client] = host(build(config, client=client), client, self.folder / "clients" / str(client))
        self.answers = {node: one.answer for node, one in self.hosts.items()}

    def engine(self, built: Built) -> Remote:
        there = {node: answer for node, answer in self.answers.items() if node not in self.away}
        self.remote = remote(built, Loopback(there), RUN)
        self.remote.meet()
        return self.remote

    def run(self) -> Path:
        return run(parse(self.tables, self.folder), directory=self.folder / "run", engine=self.engine)


def shared(method: str, /, **overrides: Any) -> dict[str, Any]:
    """What every machine has the same of."""
    tables: dict[str, Any] = {
        "name": method,
        "rounds": 3,
        "threads": 1,
        "engine": "sequential",
        "model": {"name": "tiny:bert", "max_length": 24, "classes": 3},
        "adapter": {"rank": 2},
        "method": {"name": method, "lr": 0.01, "steps": 2, "batch": 4},
        "partition": {"how": "own"},
    }
    return {key: {**value, **overrides.get(key, {})} if isinstance(value, dict) else value for key, value in tables.items()} | {
        key: value for key, value in overrides.items() if not isinstance(value, dict)
    }


def own_rows(folder: Path, *clients: int) -> list[dict[str, Any]]:
    """The rows of these clients of the tiny federation in files of their own, in their order; the tasks that they have."""
    tables, name, wanted = [], "-".join(map(str, clients)), [f"client-{client}" for client in clients]
    for task, counts in SIZES.items():
        if not set(clients) & counts.keys():
            continue
        rows = list(csv.reader((folder / f"{task}-train.csv").read_text(encoding="utf-8").splitlines()))
        with (folder / f"{name}-{task}-train.csv").open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows([rows[0], *(row for row in rows[1:] if row[2] in wanted)])
        (folder / f"{name}-{task}-dev.csv").write_bytes((folder / f"{task}-dev.csv").read_bytes())
        source = f"file:{name}-{task}-{{split}}.csv"
        tables.append({"name": task, "source": source, "eval_split": "dev", "labels": list(WORDS[task])})
    return tables


def simulated(folder: Path, tables: dict[str, Any]) -> Path:
    """The same clients in one process: what a simulation says of them."""
    folder.mkdir(exist_ok=True)
    overrides = {key: value for key, value in tables.items() if key not in ("partition", "name")}
    config = tiny_config(folder, tables["method"]["name"], **overrides)
    return run(config, directory=folder / "simulated")


def adapters(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in (run / "adapters").rglob("*.safetensors")}


def slots(run: Path) -> list[list[dict[str, Any]]]:
    """Of every evaluation what each slot's adapter is worth, without the names of tasks."""
    return [[{k: v for k, v in slot.items() if k != "task"} for slot in entry["slots"]] for entry in journal(run, "evals.jsonl")]
