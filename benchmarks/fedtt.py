"""FedTT and FedTT+ against the other families and LoRA's federated variants, one GLUE task at a time, on MiniLM.

    FEDQUILT_DATA=FOLDER python benchmarks/fedtt.py [main|clients|device|rates] [--settings rate-8e-3 ...] [--seeds 0 1]
                                                    [--tasks sst2 ...] [--only fedtt ...] [--out runs] [--set a.b=c]

main: every configuration of configs/fedtt on five tasks, three clients with identical shares, the methods that FedTT is about with
two seeds. clients: those that differ in how averaging goes wrong, with 3, 10 and 30 clients, one seed (the paper's way to more
heterogeneity: smaller shares). device: 1,000 clients, ten a round, one seed. rates: what the learning rates of the configurations
are chosen by (the mean of SST-2 and QNLI, half the local steps, a seed that is not reported).
FOLDER holds glue_<task>/{train,validation}.parquet. Interrupted runs are resumed; what finished ones found is kept in
benchmarks/results/fedtt.jsonl and not run again while its configuration is the same (other code is not noticed: --ledger NEW).
Printed, as Markdown: the final score of every task (mean ± standard deviation over the seeds), the numbers that train, and the
megabytes in both directions until the score first reaches the best LoRA's less one point.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from grid import CONFIGS, FAMILIES, ensure, lines, row, spread

from fedquilt.runs.config import RunConfig, load_config

LEDGER = Path(__file__).parent / "results" / "fedtt.jsonl"

TASKS = ("sst2", "qnli", "qqp", "mrpc", "mnli")
TWICE = ("fedtt", "fedtt-plus", "lora-r8", "ffa-lora", "rolora")  # two seeds
AVERAGED = ("fedtt", "fedtt-plus", "lora-r4", "ffa-lora", "rolora")
DEVICE = ("fedtt", "lora-r8", "lora-r4", "bitfit", "bottleneck", "ia3")
RATES = ("5e-4", "2e-3", "4e-3", "8e-3", "3.2e-2")
POINT = 0.01  # less than the best LoRA


@dataclass(frozen=True)
class Setting:
    """One table: its name, what is run in it and what it changes in the configurations."""

    name: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...] = TASKS
    seeds: tuple[int, ...] = (0, 1)
    overrides: tuple[str, ...] = ()
    runs: str = ""  # the setting whose runs these are; "": its own
    once: tuple[str, ...] = ()  # methods of which only the first seed is run


PARTS: dict[str, tuple[Setting, ...]] = {
    "main": (Setting("main", FAMILIES["fedtt"], once=tuple(name for name in FAMILIES["fedtt"] if name not in TWICE)),),
    "clients": (
        Setting("clients-3", AVERAGED, ("sst2",), (0,), runs="main"),
        *(Setting(f"clients-{n}", AVERAGED, ("sst2",), (0,), (f"partition.clients={n}",)) for n in (10, 30)),
    ),
    "device": (
        Setting(
            "device",
            DEVICE,
            ("sst2",),
            (0,),
            (
                "partition.clients=1000",
                "method.participation=0.01",
                "method.steps=5",
                "tasks.0.max_train=20000",
                "rounds=30",
            ),
        ),
    ),
    "rates": tuple(
        Setting(
            f"rate-{rate}",
            FAMILIES["fedtt"],
            ("sst2", "qnli"),
            (100,),
            (f"method.lr={rate}", "method.steps=10", "evaluation.every=0"),
        )
        for rate in RATES
    ),
}


@dataclass(frozen=True)
class Found:
    """One finished run."""

    parameters: dict[str, int]
    rounds: list[int]  # after which it was evaluated
    scores: list[float]
    megabytes: list[float]  # both ways, until then
    minutes: float

    def until(self, score: float) -> float | None:
        """Megabytes until the score was reached first; None if it never was."""
        return next((sent for sent, reached in zip(self.megabytes, self.scores, strict=True) if reached >= score), None)


def found(folder: Path) -> Found:
    """What a run directory says."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    scores = {line["round"]: line["mean"] for line in lines(folder / "evals.jsonl")}
    sent = {0: 0.0} | {line["round"]: (line["total_up"] + line["total_down"]) / 1e6 for line in lines(folder / "rounds.jsonl")}
    rounds = sorted(scores)
    megabytes = [round(sent[number], 6) for number in rounds]
    return Found(
        summary["parameters"], rounds, [scores[number] for number in rounds], megabytes, round(summary["seconds"]["total"] / 60, 2)
    )


def ensured(ledger: Path, config: Path, seed: int, folder: Path, overrides: list[str]) -> Found:
    """What the ledger says of this run, or what it finds when it is trained."""
    key = {"run": f"{folder.parent.name}/{folder.name}", "config": digest(load_config(config, [f"seed={seed}", *overrides]))}
    for line in lines(ledger) if ledger.exists() else []:
        if all(line.pop(name) == value for name, value in key.items()):
            return Found(**line)
    ensure(config, seed, folder, overrides)
    fresh = found(folder)
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps({**key, **asdict(fresh)}) + "\n")
    return fresh


def digest(config: RunConfig) -> str:
    """Of what is not the default, so that a setting which a later version adds changes nothing, and wherever the data is."""
    wanted = config.model_dump_json(exclude_defaults=True).replace(os.environ["FEDQUILT_DATA"], "$FEDQUILT_DATA")
    return hashlib.sha256(wanted.encode()).hexdigest()[:16]


def task_overrides(task: str) -> list[str]:
    """SST-2 is the task of the configurations; what makes it another."""
    source = f"file:$FEDQUILT_DATA/glue_{task}/{{split}}.parquet"
    return [f"tasks.0.name={task}", f"tasks.0.preset=glue/{task}", f"tasks.0.source={source}"]


def table(results: dict[str, dict[str, list[Found]]]) -> str:
    """method -> task -> a run per seed, as Markdown: scores, sizes, megabytes until one point below the best LoRA."""
    tasks = list(next(iter(results.values())))
    out = [row(["method", "adapter", "head", "mean", *tasks]), "|---" * (len(tasks) + 4) + "|"]
    for name, runs in results.items():
        sizes = [f"{next(iter(runs.values()))[0].parameters[part]:,}" for part in ("adapter", "head")]
        seeds = zip(*([run.scores[-1] for run in runs[task]] for task in tasks), strict=True)
        scores = [spread([statistics.mean(seed) for seed in seeds])]
        scores += [spread([run.scores[-1] for run in runs[task]]) for task in tasks]
        out.append(row([name, *sizes, *scores]))
    loras = [runs for name, runs in results.items() if name.startswith("lora")]
    if loras:
        wanted = {task: max(statistics.mean(run.scores[-1] for run in runs[task]) for runs in loras) - POINT for task in tasks}
        out += ["", row(["MB until", *(f"{task} {wanted[task]:.3f}" for task in tasks)]), "|---" * (len(tasks) + 1) + "|"]
        out += [row([name, *(reached(runs[task], wanted[task]) for task in tasks)]) for name, runs in results.items()]
    return "\n".join(out)


def chosen(asked: Sequence[str], every: Sequence[str]) -> list[str]:
    """Those asked for; all if none were."""
    return [name for name in every if name in (asked or every)]


def reached(runs: Sequence[Found], score: float) -> str:
    """The mean of the seeds that got there, and how many did where not all did."""
    got = [sent for run in runs if (sent := run.until(score)) is not None]
    share = f" ({len(got)} of {len(runs)})" if 0 < len(got) < len(runs) else ""
    return f"{statistics.mean(got):.2f}{share}" if got else "-"


def tables(part: str, arguments: argparse.Namespace) -> str:
    """Run what is missing of one part; its tables."""
    out = []
    for setting in PARTS[part]:
        if setting.name not in (arguments.settings or [setting.name]):
            continue
        results: dict[str, dict[str, list[Found]]] = {}
        seeds = arguments.seeds or setting.seeds
        for seed in seeds:
            methods = [name for name in setting.methods if seed == seeds[0] or name not in setting.once]
            for task in chosen(arguments.tasks, setting.tasks):
                for name in chosen(arguments.only, methods):
                    folder = arguments.out / "fedtt" / (setting.runs or setting.name) / f"{task}-{name}-{seed}"
                    overrides = [*task_overrides(task), *setting.overrides, *arguments.overrides]
                    run = ensured(arguments.ledger, CONFIGS / "fedtt" / f"{name}.toml", seed, folder, overrides)
                    results.setdefault(name, {}).setdefault(task, []).append(run)
        if results:  # of what was asked for there may be nothing in this setting
            out.append(f"{setting.name}\n\n{table(results)}")
    return "\n\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    parser.add_argument("--settings", nargs="+", default=[], metavar="NAME", help="of a part that has several, such as rate-8e-3")
    parser.add_argument("--tasks", nargs="+", default=[], choices=TASKS)
    parser.add_argument("--only", nargs="+", default=[], choices=FAMILIES["fedtt"], metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=C")
    arguments = parser.parse_args()
    for part in [arguments.part] if arguments.part else ["main", "clients", "device"]:
        print(tables(part, arguments))


if __name__ == "__main__":
    main()
