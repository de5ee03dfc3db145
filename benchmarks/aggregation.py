"""What averaging uploads costs the server: ``reduce.mean`` beside the machine's memory and the usual loop.

    python benchmarks/aggregation.py [--laps 7] [--groups 5]

GB of uploads a second in one thread, medians of interleaved laps, for adapters of three sizes: reading them once (their plain sum,
what memory gives), ``reduce.mean`` (float64, always the same bits), one float32 product of matrices (rounded in float32), and a
loop that adds state dicts tensor after tensor, as public FL-TAC code does. The smallest uploads fit the processor's cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from fedquilt import reduce, tree
from fedquilt.types import Slot, Stack, Updates

SHAPES = {  # uploads, tensors of one upload, numbers of a tensor
    "50 of MiniLM, rank 1": (50, 48, 384),
    "1,000 of BERT-base, rank 1": (1000, 48, 768),
    "20 of Llama-7B, rank 8": (20, 128, 32_768),
}


def uploads(n: int, tensors: int, numbers: int) -> Updates:
    """n uploads of clients with one slot."""
    delta = {f"{index:03}": torch.randn(n, numbers) for index in range(tensors)}
    slots = tuple(Slot(client, 0) for client in range(n))
    return Updates(delta, delta, torch.rand(n, dtype=torch.float64) + 0.1, slots, torch.zeros(n), torch.zeros(n))


def by_matrix(updates: Updates, group: torch.Tensor, groups: int) -> Stack:
    """Every group by one float32 product per tensor."""
    share = torch.zeros(groups, len(updates))
    share[group, torch.arange(len(updates))] = updates.weight.float()
    share /= share.sum(1, keepdim=True)
    return {key: share @ delta for key, delta in updates.delta.items()}


def by_loop(
    states: list[dict[str, torch.Tensor]], weight: list[float], group: list[int], groups: int
) -> list[dict[str, torch.Tensor]]:
    """Every group by adding state dicts, tensor after tensor."""
    out = []
    for number in range(groups):
        mine = [index for index, found in enumerate(group) if found == number]
        mass = sum(weight[index] for index in mine)
        total = {key: torch.zeros_like(tensor) for key, tensor in states[0].items()}
        for index in mine:
            for key, tensor in states[index].items():
                total[key] = total[key] + tensor * (weight[index] / mass)
        out.append(total)
    return out


def rates(n: int, tensors: int, numbers: int, groups: int, laps: int) -> dict[str, list[float]]:
    """GB/s of every way, all laps."""
    updates, group = uploads(n, tensors, numbers), torch.arange(n) % groups
    states, weight, groups_of = [tree.row(updates.delta, index) for index in range(n)], updates.weight.tolist(), group.tolist()
    ways: dict[str, Callable[[], object]] = {
        "memory": lambda: [delta.sum() for delta in updates.delta.values()],
        "reduce.mean": lambda: reduce.mean()(updates, group, groups),
        "float32 product": lambda: by_matrix(updates, group, groups),
        "loop": lambda: by_loop(states, weight, groups_of, groups),
    }
    exact, rough = reduce.mean()(updates, group, groups)[0], by_matrix(updates, group, groups)
    assert tree.max_difference(exact, rough) < 1e-5
    assert tree.max_difference(exact, tree.stack(by_loop(states, weight, groups_of, groups))) < 1e-5
    found: dict[str, list[float]] = {name: [] for name in ways}
    size = 4e-9 * n * tensors * numbers
    for _ in range(laps):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            found[name].append(size / (time.perf_counter() - begin))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laps", type=int, default=7)
    parser.add_argument("--groups", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| uploads | memory | reduce.mean | of memory | float32 product | loop |\n|---|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        found = {way: statistics.median(laps) for way, laps in rates(*shape, arguments.groups, arguments.laps).items()}
        share = found["reduce.mean"] / found["memory"]
        cells = [f"{found[way]:.2f}" for way in ("memory", "reduce.mean", "float32 product", "loop")]
        print(f"| {name} | {cells[0]} | {cells[1]} | {share:.0%} | {cells[2]} | {cells[3]} |", flush=True)


if __name__ == "__main__":
    main()
