"""Where the time of a vectorised step goes, operation by operation.

    python benchmarks/where.py [glue images dolly bert-base] [--steps 6] [--dropout 0] [--precision float32]

The rows of speed.py. Printed: the share of every group of operations in the processor time of a step, by torch's profiler (self
time, one thread), what one call of the group's costliest operation takes, and how often it is called.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from speed import WORKLOADS, prepare, works
from torch.profiler import ProfilerActivity, profile

GROUPS = {
    "matrix products": ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "mkldnn"),
    "attention": ("aten::_scaled_dot_product", "aten::_flash", "aten::_softmax"),
    "GELU, SiLU": ("aten::gelu", "aten::silu"),
    "norms": ("aten::native_layer_norm", "aten::rsqrt", "aten::pow", "aten::mean"),
    "copies": ("aten::copy_", "aten::cat", "aten::index", "aten::clone", "aten::fill_", "aten::zero_", "aten::_to_copy"),
    "elementwise": ("aten::add", "aten::mul", "aten::sub", "aten::div", "aten::sum", "aten::where", "aten::neg", "aten::cos"),
    "dropout masks": ("aten::bitwise", "aten::ge", "aten::__rshift__", "aten::__and__"),
}


def group(name: str) -> str:
    """Of an operation."""
    return next((group for group, starts in GROUPS.items() if name.startswith(starts)), "the rest")


def shares(events: Any) -> list[tuple[str, float, str, float, int]]:
    """(group, share of all time, its costliest operation, microseconds of one call, calls), the largest first."""
    times: dict[str, float] = defaultdict(float)
    most: dict[str, Any] = {}
    for event in events:
        name = group(event.key)
        times[name] += event.self_cpu_time_total
        if name not in most or event.self_cpu_time_total > most[name].self_cpu_time_total:
            most[name] = event
    total = sum(times.values())
    found = [(name, spent / total, most[name].key, most[name].self_cpu_time_total / most[name].count, most[name].count)
             for name, spent in times.items()]  # fmt: skip
    return sorted(found, key=lambda line: -line[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["glue"], metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--data", default=os.environ.get("FEDQUILT_DATA", str(Path(__file__).parents[2] / "shared" / "data")))
    arguments = parser.parse_args()
    if unknown := set(arguments.workloads) - set(WORKLOADS):
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(WORKLOADS)}")
    arguments.rank, arguments.rows, arguments.threads = 1, None, 1
    os.environ["FEDQUILT_DATA"] = arguments.data
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.workloads:
            built = prepare(name, arguments, arguments.dropout, arguments.precision, Path(folder), None)
            given = works(built, 5, built.config.method["batch"], arguments.steps, 1)
            built.engine.train(works(built, 5, built.config.method["batch"], 1, 0))
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                built.engine.train(given)
            print(f"\n{name}, {arguments.precision}, dropout {arguments.dropout}, {arguments.steps} steps\n")
            print("| group | share | its costliest operation | µs a call | calls |\n|---|---|---|---|---|")
            for what, share, operation, each, calls in shares(seen.key_averages()):
                print(f"| {what} | {share:.1%} | {operation} | {each:,.0f} | {calls:,} |")


if __name__ == "__main__":
    main()
