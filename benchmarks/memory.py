"""What a run is said to need, and what it takes.

    python benchmarks/memory.py [--only glue images dolly small] [--rounds 2] [--data FOLDER]

For every configuration a process that estimates, as ``fedquilt run --dry-run`` does, and one that runs, whose peak (getrusage) is
shown. glue: FL-TAC on five tasks in float32; small: three clients with short texts; images: ViT-S/14; dolly: SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from fedquilt.runs.config import load_config
from fedquilt.runs.launch import run
from fedquilt.runs.plan import plan

CONFIGS = Path(__file__).parents[1] / "configs"
FEW = tuple(f"tasks.{i}.max_eval=100" for i in range(5))
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "glue": ("glue/fltac.toml", (*FEW, "model.precision=float32", "model.max_length=128", "method.batch=32", "method.steps=2")),
    "small": ("fedtt/lora-r8.toml", ("method.steps=4", "model.precision=float32")),
    "images": ("cifar/fltac.toml", ("method.steps=1", "tasks.0.max_eval=100", "tasks.1.max_eval=100")),
    "dolly": ("dolly/fltac.toml", ("method.steps=1", "evaluation.generate=0", *(f"tasks.{i}.max_eval=10" for i in range(8)))),
}


def measure(name: str, rounds: int, *, said: bool) -> float:
    """Megabytes, by this process."""
    where, sets = CASES[name]
    config = load_config(CONFIGS / where, [f"rounds={rounds}", *sets])
    if said:
        return plan(config).memory / 1e6
    with tempfile.TemporaryDirectory() as folder:
        run(config, directory=Path(folder) / "run")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data", default=os.environ.get("FEDQUILT_DATA", str(Path(__file__).parents[2] / "shared" / "data")))
    parser.add_argument("--one", nargs=2, metavar=("NAME", "WHAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["FEDQUILT_DATA"] = arguments.data
    if arguments.one:
        name, what = arguments.one
        print(measure(name, arguments.rounds, said=what == "said"))
        return
    print("| run | said, MB | taken, MB | said over taken |\n|---|---|---|---|")
    for name in arguments.only:
        found = []
        for what in ("said", "taken"):
            words = [sys.executable, __file__, *sys.argv[1:], "--one", name, what]
            found.append(float(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]))
        print(f"| {name} | {found[0]:,.0f} | {found[1]:,.0f} | {found[0] / found[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
