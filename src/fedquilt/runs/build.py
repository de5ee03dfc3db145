"""From a configuration to the objects of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from fedquilt.adapters.base import Adapter
from fedquilt.data.encode import Task, encode
from fedquilt.data.files import default_cache
from fedquilt.data.images import encode_images
from fedquilt.data.load import RawTask, load
from fedquilt.data.partition import Partition, own, partition
from fedquilt.data.view import View, make_view
from fedquilt.engine.base import InProcess
from fedquilt.engine.process import ProcessEngine
from fedquilt.engine.summing import table
from fedquilt.errors import ConfigError
from fedquilt.evaluate import Evaluator
from fedquilt.method import Method, Program, compose
from fedquilt.models.device import device_of
from fedquilt.models.fingerprint import Fingerprint, Fisher, Look
from fedquilt.models.half import multiplies_half
from fedquilt.models.loading import Base
from fedquilt.models.loading import load as load_base
from fedquilt.models.network import Network, TextNetwork, batches_adapters, network
from fedquilt.models.roles import inside
from fedquilt.models.room import column_budget, learnt_positions, token_budget
from fedquilt.models.scoring import TextScores
from fedquilt.runs.config import RunConfig
from fedquilt.runs.parts import check, find_engine, make_adapter, make_method
from fedquilt.runs.progress import Progress, Silent
from fedquilt.ticks import Tick, silent
from fedquilt.types import Hub, Round


@dataclass
class Built:
    """Everything of a run that is ready to go."""

    config: RunConfig
    base: Base
    adapter: Adapter
    method: Method
    program: Program
    tasks: Mapping[str, Task]
    partition: Partition
    view: View
    network: Network
    engine: InProcess
    evaluator: Evaluator
    asked: Callable[[Hub], dict[str, Any] | None] | None = None
    """Evaluation by clients who alone have the data."""

    @property
    def fingerprint(self) -> int:
        """Numbers in what newcomers send of their data; 0 where they send nothing."""
        return self.engine.fingerprint.size if self.engine.fingerprint else 0

    @property
    def bank_is_complete(self) -> bool:
        """Whether a bank row alone is a usable adapter: no trained leaf stays private."""
        now = Round(1, self.config.seed)
        return set(self.program.client.train(now)) <= set(self.program.client.share(now))

    def seated(self, hub: Hub) -> Hub:
        """With the rows that clients have chosen, where their data is here to say which; else as it is."""
        if self.program.client.choose is None or self.config.own:
            return hub
        return replace(hub, table=table(self.engine, hub, hub.step))

    def count_steps(self, first: int = 1) -> int:
        """Slot-steps of the rounds from ``first`` on: who is sampled is known beforehand; every reply is taken to be usable."""
        hub, steps = self.program.init(self.adapter.init), 0
        for number in range(1, self.config.rounds + 1):
            jobs = self.program.plan(hub, self.engine.roster(number), Round(number, self.config.seed))
            hub = replace(hub, table={**hub.table, **{job.slot: job.row for job in jobs}})
            steps += self.engine.count_steps(jobs) if number >= first else 0
        return steps


def load_tasks(config: RunConfig) -> dict[str, RawTask]:
    """The texts or images and the labels of all tasks."""
    columns = (config.partition.column,) if config.partition.column else ()
    return {task.name: load(task, root=Path(), cache=default_cache(), seed=config.seed, columns=columns) for task in config.tasks}


def make_partition(config: RunConfig, raws: Mapping[str, RawTask], client: int | None = None) -> Partition:
    """Who holds which training rows; ``client``: whose machine this is, where everybody has data of their own."""
    return own(raws, client) if config.own else partition(raws, config.partition, seed=config.seed)


def most_classes(config: RunConfig, raws: Mapping[str, RawTask]) -> int:
    """Outputs of the head; 0: a language model, which has none.

    Raises:
        ConfigError: fewer than a task's labels, or a head where there is none.
    """
    found = max((1 if raw.kind == "regression" else len(raw.labels) for raw in raws.values()), default=0)
    said = config.model.classes
    if said is None or not raws:
        return said or found
    if said < found or (said > 0) != (found > 0):
        most = f"{found} labels of a task" if found else "tasks that are answered in words"
        raise ConfigError(f"{said} classes for {most}", where="model.classes", fix=f"set it to {found}")
    return said


def set_threads(config: RunConfig) -> int:
    """Fix torch's threads: the last bits of some sums depend on their number."""
    threads = config.threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count() or 1
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # With the flag above torch fills all new memory, a twentieth of a step's time, so that reading what nobody wrote would show.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return threads


def build(
    config: RunConfig,
    *,
    saved: Partition | None = None,
    progress: Progress | None = None,
    tick: Tick = silent,
    client: int | None = None,
) -> Built:
    """All objects of a run.

    Args:
        saved: the partition of a run that is resumed.
        client: whose machine this is, where everybody has data of their own; None: the server's, which reads none.
    """
    check(config)
    say = progress or Silent()
    threads = set_threads(config)
    if device_of(config.model).type == "cpu" and torch.cuda.is_available():
        say.line('note: there is a GPU here; model.device = "cuda" uses it')
    say.line("loading the tasks")
    raws = {} if config.own and client is None else load_tasks(config)
    parts = saved or make_partition(config, raws, client)
    classes = most_classes(config, raws)
    say.line(f"loading the model {config.model.name}")
    base = load_base(config.model, classes=classes, seed=config.seed)
    tasks = {name: encode_task(raw, base, config) for name, raw in raws.items()}
    if config.model.precision == "bfloat16" and config.model.device == "cpu" and not multiplies_half():
        say.line('note: this processor has no bfloat16 products; model.precision = "float32" is faster here')
    for note in (*base.notes, *parts.notes, *(f"{task.name}: {note}" for task in tasks.values() for note in task.notes)):
        say.line(f"note: {note}")
    built = assemble(config, base, tasks, parts, tick=tick)
    if config.workers > 1:
        from fedquilt.runs.workers import hiring  # a worker builds, too

        hire = hiring(config, parts, max(1, threads // config.workers), client)
        built.engine = ProcessEngine(built.engine, config.workers, hire, say.line)
    return built


def encode_task(raw: RawTask, base: Base, config: RunConfig) -> Task:
    """What the model sees of a task: token numbers or pixels.

    Raises:
        ConfigError: images for a model that reads text, or texts for one that sees images.
    """
    if raw.has_images != (base.transform is not None):
        needs, reads, choose = ("images", "text", "asset:vit-s14") if raw.has_images else ("texts", "images", "asset:minilm")
        raise ConfigError(
            f"task '{raw.name}' has {needs}, and the model '{base.name}' reads {reads}",
            where="model.name",
            fix=f'choose another model, such as name = "{choose}"',
        )
    if base.transform is not None:
        return encode_images(raw, base.transform, cache=default_cache())
    return encode(raw, base.tokenizer, max_length=config.model.max_length, cache=default_cache())


def assemble(config: RunConfig, base: Base, tasks: Mapping[str, Task], parts: Partition, *, tick: Tick = silent) -> Built:
    """The objects of a run over data and a model that are loaded already."""
    method = make_method(config, len(tasks))
    adapter = make_adapter(config, method, base, len(tasks))
    check_room(config, base, adapter, config.evaluation.max_new if config.evaluation.generate else 0)
    check_targets(base, adapter)
    program = compose(method, adapter.spec)
    view = View({}, {})
    if tasks or not config.own:
        view = make_view(tasks, parts, method.slots, config.seed, config.arrivals(), config.partition.slots_per_task)
    if not config.own:
        check_rows(method, view, config.partition.slots_per_task)
    engine_class = find_engine(config)
    runner = network(base, adapter, packed=engine_class.packed, device=device_of(config.model))
    looks: dict[str, Callable[[], Look]] = {"states": lambda: Fingerprint(base), "fisher": lambda: Fisher(runner, adapter.spec)}
    look = looks[program.client.fingerprint]() if program.client.fingerprint else None
    options: dict[str, Any] = {"cohort": config.cohort, "tick": tick, "fingerprint": look}
    if engine_class.packed:
        options |= {"one_by_one": not batches_adapters(base, adapter), "virtual": adapter.virtual}
        options |= {
            "token_budget": token_budget(base, runner.device, config.model.max_length),
            "column_budget": column_budget(base),
        }
    engine = engine_class(view, adapter.spec, program.client, runner, config.seed, **options)
    texts = None
    if not base.head:
        texts = TextScores(cast(TextNetwork, runner), base.tokenizer, config.evaluation.generate, config.evaluation.max_new, tick)
    evaluator = Evaluator(runner, view, adapter.spec, engine.heads, texts, adapter.virtual, tick)
    return Built(config, base, adapter, method, program, tasks, parts, view, runner, engine, evaluator)


def check_room(config: RunConfig, base: Base, adapter: Adapter, written: int = 0) -> None:
    """Words, virtual tokens and up to ``written`` tokens that are generated must have positions in the model.

    Raises:
        ConfigError: more of them than there are positions.
    """
    learnt = learnt_positions(base.model)
    most = getattr(base.model.config, "max_position_embeddings", None) if learnt is None else learnt
    if most is None:
        return
    tokens = adapter.prompt.tokens if adapter.prompt else 0
    if tokens > most - 4:
        what = f"{tokens} virtual tokens leave no room for words in {most} positions"
        raise ConfigError(what, where="adapter.tokens", fix=f"at most {most - 4}")
    if learnt is None or base.head:  # computed positions go on, if badly
        written = 0
    if config.model.max_length + tokens + written <= most or (learnt is None and not tokens):
        return
    parts = {"texts of {} tokens": config.model.max_length, "{} virtual ones": tokens, "{} that are written": written}
    *first, last = (part.format(count) for part, count in parts.items() if count)
    raise ConfigError(
        f"{', '.join(first)}{' and ' if first else ''}{last} are more than {most} positions",
        where="model.max_length",
        fix="make model.max_length, or what is written, shorter" if written else f"set model.max_length to {most - tokens} or less",
    )


def check_targets(base: Base, adapter: Adapter) -> None:
    """What the checkpoint lacks is saved whole with the adapter, and peft adapts nothing that it saves.

    Raises:
        ConfigError: such a module is one of LoRA's or IA3's targets.
    """
    adapted = tuple(adapter.inserts) if adapter.spec.family == "ia3" else adapter.modules
    if both := [name for name in adapted if inside(name, base.drawn)]:
        raise ConfigError(
            f"'{both[0]}' cannot be adapted",
            where="adapter.targets",
            why=f"the weights of '{base.name}' lack it, so peft saves it whole, and adapts nothing that it saves",
            fix="choose targets by role, such as q and v, or a checkpoint that has it",
        )


def check_rows(method: Method, view: View, slots_per_task: int = 1) -> None:
    """Clusters and slots must fit: now, not when a late task arrives.

    Raises:
        ConfigError: more clusters than slots, or a constraint that would part the places of one task.
        CompositionError: slots of one client cannot all be in different clusters.
    """
    method.assign.check_clients([slot.client for slot in view.slots], slots_per_task)
    clusters = method.assign.rows - 1
    if clusters > len(view.slots):
        raise ConfigError(
            f"{clusters} clusters for {len(view.slots)} slots",
            where="method.tasks",
            why="every cluster needs at least one adapter",
            fix=f"set method.tasks to {len(view.slots)} or less, or use more clients or data",
        )
