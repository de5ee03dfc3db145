"""What clustering costs the server: FL-TAC's step for many uploads of a rank-1 LoRA on BERT-base (queries and values).

    python benchmarks/clustering.py [--slots 1000 10000] [--features b_factors fisher products] [--tasks 5] [--laps 3]

Every number of slots is a process of its own: seconds of one server-side assignment (median of the laps), peak memory beyond
that of the uploads themselves (with libraries in memory, and what was free before given back to the system), and the adjusted
Rand index against the tasks that the synthetic uploads were drawn from (a task's direction, and noise of the same length beside
it). One thread.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import adjusted_rand_score

from fedquilt.assign import kmeans
from fedquilt.types import Hub, Leaf, Round, Slot, Spec, Updates

HIDDEN, LAYERS, SLOTS_PER_CLIENT = 768, 12, 3


def spec() -> Spec:
    """Rank 1 on 24 maps of BERT-base: 36,864 numbers."""
    leaves: list[Leaf] = []
    for index, (layer, name) in enumerate((layer, name) for layer in range(LAYERS) for name in ("query", "value")):
        leaves.append(Leaf(f"l{layer}.{name}/lora_A", (1, HIDDEN), "lora_A", index, 0))
        leaves.append(Leaf(f"l{layer}.{name}/lora_B", (HIDDEN, 1), "lora_B", index, 1))
    return Spec("lora", tuple(leaves), rank=1)


def uploads(n: int, tasks: int, adapter: Spec, looks: bool) -> tuple[Updates, Hub, torch.Tensor]:
    """n slots of clients with three tasks each; ``looks``: with fingerprints, and changes that nobody reads."""
    stream = torch.Generator().manual_seed(0)
    truth = torch.cat([torch.randperm(tasks, generator=stream)[:SLOTS_PER_CLIENT] for _ in range(-(-n // SLOTS_PER_CLIENT))])[:n]
    start, delta, bank = {}, {}, {}
    for leaf in adapter.leaves:
        pull = torch.randn(tasks, *leaf.shape, generator=stream)
        bank[leaf.name] = torch.zeros(tasks + 1, *leaf.shape)
        start[leaf.name] = bank[leaf.name][:1].expand(n, *leaf.shape)
        delta[leaf.name] = start[leaf.name] if looks else torch.randn(n, *leaf.shape, generator=stream).add_(pull[truth])
    extra = {}
    if looks:
        wide = sum(leaf.size for leaf in adapter.leaves) // 2
        pull, drawn = torch.randn(tasks, wide, generator=stream), torch.empty(n, wide)
        for own, some in zip(drawn.split(1000), truth.split(1000), strict=True):
            torch.randn(own.shape, generator=stream, out=own).add_(pull[some])
        extra["fingerprint"] = drawn
    origin = tuple(Slot(i // SLOTS_PER_CLIENT, i % SLOTS_PER_CLIENT) for i in range(n))
    ones = torch.ones(n, dtype=torch.float64)
    return Updates(delta, start, ones, origin, torch.zeros(n), torch.ones(n), extra), Hub(bank), truth


def held(peak: str) -> float:
    """MB that this process holds (VmRSS), or held at most since the last reset (VmHWM). Linux only."""
    line = next(line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith(peak))
    return int(line.split()[1]) / 1024


def measure(n: int, features: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """In this process."""
    torch.set_num_threads(1)
    adapter = spec()
    part = kmeans(arguments.tasks, features=features)
    few, _, _ = uploads(300, arguments.tasks, adapter, features == "fisher")
    many, hub, truth = uploads(n, arguments.tasks, adapter, features == "fisher")
    part(few, hub, adapter, Round(1, 0))  # libraries are loaded
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free already would be used again, and not be counted
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before, laps = held("VmRSS"), []
    for lap in range(arguments.laps):
        begin = time.perf_counter()
        found = part(many, hub, adapter, Round(1, lap))
        laps.append(time.perf_counter() - begin)
    found_score = adjusted_rand_score(truth.tolist(), found.group.tolist())
    return {"seconds": statistics.median(laps), "laps": laps, "megabytes": held("VmHWM") - before, "ari": found_score}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--features", nargs="+", default=["b_factors", "fisher", "products"])
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--laps", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("SLOTS", "FEATURES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(int(arguments.one[0]), arguments.one[1], arguments)))
        return
    print("| slots | features | seconds | MB more | adjusted Rand index |\n|---|---|---|---|---|")
    for n in arguments.slots:
        for features in arguments.features:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", str(n), features]
            line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"| {n:,} | {features} | {line['seconds']:.2f} | {line['megabytes']:.0f} | {line['ari']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
