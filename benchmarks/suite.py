"""Everything that is measured side by side, into one file.

    python benchmarks/suite.py [--only speed engine ...] [--laps 5] [--out benchmarks/results]

Runs the other scripts one after the other, each as a process of its own that alternates what it compares lap by lap, and writes
what they print to OUT/<processor>-<cores>.md with the machine, the versions and the commands; what is not run again stays there. A
script that fails is named there and at the end; the others still run. grid.py, fedtt.py and cross_device.py train for hours and are
not among them; gpu.py is where there is a GPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

HERE = Path(__file__).parent
SUITE: dict[str, tuple[tuple[str, ...], ...]] = {
    "speed": (
        ("speed.py", "glue"),
        ("speed.py", "glue", "--rank", "4", "--dropout", "0", "--steps", "1"),
        ("speed.py", "glue", "--rank", "16", "--dropout", "0", "--steps", "1"),
        ("speed.py", "images", "--dropout", "0", "--steps", "1", "--rows", "8"),
        ("speed.py", "dolly", "--dropout", "0", "--steps", "1", "--rows", "2"),
        ("speed.py", "bert-base", "--dropout", "0", "--steps", "1", "--rows", "8"),
    ),
    "products": (("products.py",),),
    "engine": tuple(("engine.py", part) for part in ("clients", "families", "evaluation", "lanes", "workers")),
    "aggregation": (("aggregation.py",),),
    "clustering": (("clustering.py",),),
    "memory": (("memory.py",),),
    "secagg": (("secagg.py",), ("sums.py",)),
    "deploy": (("deploy.py",),),
    "gpu": (("gpu.py",),) if torch.cuda.is_available() else (),
}
LAPS = ("speed", "products", "engine", "aggregation", "clustering", "gpu")  # those that alternate
PACKAGES = ("fedquilt", "torch", "transformers", "peft", "numpy", "scikit-learn")


def processor() -> str:
    """What the system calls it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(encoding="utf-8"), re.M) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def slug(name: str, cores: int) -> str:
    """A file's name: ``AMD EPYC 9B14`` with two cores is ``amd-epyc-9b14-2``."""
    return "-".join([*re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", name.lower())), str(cores)])


def machine() -> str:
    """What ran, as Markdown."""
    lines = [f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"]
    lines += [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    lines += [", ".join(f"{name} {version(name)}" for name in PACKAGES)]
    commit = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    lines += [f"commit {commit.stdout.strip()}"] if commit.returncode == 0 else []
    return "\n".join(f"- {line}" for line in lines)


def read(path: Path) -> dict[str, str]:
    """What an earlier call has measured, by command: only what is measured again is replaced."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    parts = (part.partition("\n") for part in text.split("\n## ")[1:])
    return {command: found.strip() for command, _, found in parts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SUITE, default=list(SUITE), metavar="NAME", help=f"of {', '.join(SUITE)}")
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{slug(processor(), os.cpu_count() or 1)}.md"
    sections = read(path)
    failed = []
    for name in arguments.only:
        for script, *rest in SUITE[name]:
            words = [script, *rest, *(["--laps", str(arguments.laps)] if name in LAPS else [])]
            print(f"== {' '.join(words)}", file=sys.stderr, flush=True)
            begin, load = time.perf_counter(), os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
            done = subprocess.run([sys.executable, str(HERE / script), *words[1:]], stdout=subprocess.PIPE, text=True)
            said = done.stdout.strip()
            failed += [" ".join(words)] if done.returncode else []
            end = "" if done.returncode == 0 else f"\n\nended with code {done.returncode}"
            took = f"{time.perf_counter() - begin:,.0f} s, load when it began {load:.2f}"
            sections[f"`python benchmarks/{' '.join(words)}`"] = f"{machine()}\n\n{said}{end}\n\n{took}"
            path.write_text("# Side by side\n" + "".join(f"\n## {what}\n\n{text}\n" for what, text in sections.items()), "utf-8")
            print(said, flush=True)
    print(f"written: {path}", file=sys.stderr)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
