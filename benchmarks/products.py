"""How fast this processor multiplies the matrices of a frozen map, with every library that torch brings along.

    python benchmarks/products.py [--laps 15] [--tokens 700 4300] [--threads 1]
    MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/products.py      as MKL does on processors that are not Intel's

Billions of operations a second, medians of interleaved laps, for the maps of MiniLM (384, 1,536) and of BERT-base (768, 3,072),
bias included: forwards and, for the gradient of the input, backwards; float32 by MKL and by oneDNN
(:mod:`fedquilt.models.onednn`), and bfloat16 (:mod:`fedquilt.models.half`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from laps import laps_of
from torch import Tensor, nn

from fedquilt.models.half import HalfLinear
from fedquilt.models.onednn import maker, pays, turn

SIDES = ((384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768))
LIBRARIES = ("MKL", "oneDNN", "bfloat16")


def maps(inside: int, outside: int) -> dict[str, nn.Linear]:
    """The same frozen map for every library."""
    made = {name: nn.Linear(inside, outside).requires_grad_(False) for name in LIBRARIES}
    for layer in made.values():
        layer.load_state_dict(made["MKL"].state_dict())
    turn(nn.ModuleList([made["oneDNN"]]), keep=())
    made["bfloat16"].__class__ = HalfLinear
    made["bfloat16"].to(torch.bfloat16)
    return made


def backwards(layer: nn.Linear, x: Tensor, grad: Tensor) -> Callable[[], object]:
    """The gradient of the input alone: the graph is made once."""
    out = layer(x)
    return lambda: torch.autograd.grad(out, x, grad, retain_graph=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laps", type=int, default=15)
    parser.add_argument("--tokens", type=int, nargs="+", default=[700, 4300])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"processor by {maker() or 'unknown'}; fedquilt takes {'oneDNN' if pays() else 'MKL'} here\n")
    heads = [f"{name} {way}" for way in ("forwards", "backwards") for name in LIBRARIES]
    print(f"| tokens | map | {' | '.join(heads)} |\n|{'---|' * (2 + len(heads))}")
    for tokens in arguments.tokens:
        for inside, outside in SIDES:
            x, grad = torch.randn(tokens, inside).requires_grad_(), torch.randn(tokens, outside)
            made = maps(inside, outside)
            still = x.detach()
            ways = {f"{name} forwards": lambda layer=layer, still=still: layer(still) for name, layer in made.items()}
            ways |= {f"{name} backwards": backwards(layer, x, grad) for name, layer in made.items()}
            seconds = {way: statistics.median(laps) for way, laps in laps_of(ways, arguments.laps).items()}
            rates = " | ".join(f"{2e-9 * tokens * inside * outside / seconds[head]:.0f}" for head in heads)
            print(f"| {tokens:,} | {inside} to {outside} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
