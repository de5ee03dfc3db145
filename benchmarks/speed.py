"""Ours against a plain peft loop, side by side in one process.

The plain loop is how the public FL-TAC code trains: one adapter after the other, every batch padded to 128 tokens, peft's model
in training mode, torch's AdamW, ``loss.item()``. Ours is the vectorised engine's step on the same rows: packed, many adapters in
one pass. Both start from the same adapters, use the same batches, and have the same dropout probabilities (in one setting none).

    python benchmarks/speed.py [--laps 5] [--threads 1] [--rank 1] [--slots 5] [--rows 32] [--data FOLDER]

Prints microseconds per real token, medians over laps, and the ratio. Lap by lap the two alternate, so that other load on the
machine hits both. Token lengths are those of real GLUE rows if ``--data`` (or $FEDQUILT_DATA, or ../shared/data) has them;
otherwise random ids with lengths of the same means (13, 53, 30, 50, 67), which is printed.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.adapters.base import Adapter
from fedquilt.adapters.lora import lora
from fedquilt.local import adamw
from fedquilt.models.loading import Base, ModelConfig, load
from fedquilt.models.packed_bert import PackedBert
from fedquilt.types import Batch

GLUE = {"sst2": ("sentence",), "mrpc": ("sentence1", "sentence2"), "qqp": ("question1", "question2"),
        "qnli": ("question", "sentence"), "rte": ("sentence1", "sentence2")}  # fmt: skip
MEANS = (13, 53, 30, 50, 67)
LR = 5e-4


def rows_of(base: Base, folder: Path | None, slots: int, rows: int, lap: int) -> list[Batch]:
    """One batch per slot; slot i holds rows of GLUE task i mod 5."""
    stream = torch.Generator().manual_seed(lap)
    out = []
    for slot in range(slots):
        if folder is None:
            lengths = (torch.randn(rows, generator=stream) * 0.4 * MEANS[slot % 5] + MEANS[slot % 5]).round().long().clamp(4, 128)
            tokens = [torch.randint(1000, 20000, (int(n),), generator=stream) for n in lengths]
        else:
            import pyarrow.parquet as parquet

            name = list(GLUE)[slot % 5]
            table = parquet.read_table(folder / f"glue_{name}" / "train.parquet")
            index = torch.randperm(table.num_rows, generator=stream)[:rows].tolist()
            texts = [[table[column][i].as_py() for i in index] for column in GLUE[name]]
            tokens = [torch.tensor(ids) for ids in base.tokenizer(*texts, truncation=True, max_length=128)["input_ids"]]
        n = len(tokens)
        out.append(
            Batch(
                tokens=torch.cat(tokens),
                types=torch.zeros(sum(map(len, tokens)), dtype=torch.long),
                lengths=torch.tensor([len(t) for t in tokens]),
                labels=torch.randint(0, 2, (n,), generator=stream).double(),
                classes=torch.full((n,), 2),
                owner=torch.full((n,), slot),
                head=torch.zeros(n, dtype=torch.long),
                keys=torch.randint(2**62, (n,), generator=stream),
            )
        )
    return out


def ours(base: Base, adapter: Adapter, slots: int) -> Callable[[list[Batch]], None]:
    """One vectorised step of all slots."""
    model, local = PackedBert(base, adapter), adamw(LR, steps=1)
    state = {"x": tree.stack([adapter.init] * slots)}
    state["moments"] = local.init(state["x"])

    def step(batches: list[Batch]) -> None:
        leaves = {key: tensor.detach().requires_grad_() for key, tensor in state["x"].items()}
        losses = model.losses(leaves, Batch.cat(batches))
        grads = torch.autograd.grad(losses.sum(), list(leaves.values()))
        everyone = torch.ones(slots, dtype=torch.bool)
        named = dict(zip(leaves, grads, strict=True))
        state["x"], state["moments"] = local.step(state["x"], named, state["moments"], LR, everyone)

    return step


def plain(base: Base, adapter: Adapter, dropout: float, pad_to: int | None) -> Callable[[list[Batch]], None]:
    """One step per slot of a plain peft model; ``pad_to=None`` pads to the longest row of the batch instead."""
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(base.model)
    config = LoraConfig(
        r=adapter.spec.rank, lora_alpha=16, lora_dropout=dropout / 2, target_modules=["query", "value"], task_type="SEQ_CLS"
    )
    model = get_peft_model(model, config).train()
    model.config._attn_implementation = "sdpa"
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)

    def step(batches: list[Batch]) -> None:
        for batch in batches:
            ids, mask = padded(batch, pad_to)
            loss = model(input_ids=ids, attention_mask=mask, labels=batch.labels.long()).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()

    return step


def padded(batch: Batch, pad_to: int | None) -> tuple[Tensor, Tensor]:
    width = pad_to or int(batch.lengths.max())
    mask = torch.arange(width) < batch.lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = batch.tokens
    return ids, mask.long()


def measure(arguments: argparse.Namespace, folder: Path | None, dropout: float) -> None:
    base = load(ModelConfig(name=arguments.model, dropout=dropout), classes=2, seed=0)
    adapter = lora(base, seed=0, rank=arguments.rank, dropout=dropout / 2)
    variants = {
        "plain peft loop, padded to 128": plain(base, adapter, dropout, 128),
        "plain peft loop, padded to the batch": plain(base, adapter, dropout, None),
        "fedquilt, vectorised": ours(base, adapter, arguments.slots),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for lap in range(arguments.laps + 1):
        batches = rows_of(base, folder, arguments.slots, arguments.rows, lap)
        tokens = sum(len(batch.tokens) for batch in batches)
        for name, step in variants.items():
            begin = time.perf_counter()
            step(batches)
            if lap:  # the first lap warms up
                times[name].append((time.perf_counter() - begin) / tokens * 1e6)
    slowest = statistics.median(times["plain peft loop, padded to 128"])
    print(f"\ndropout {dropout} in the model, {dropout / 2} on LoRA; last lap {tokens} real tokens")
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"  {name:38s} {middle:8.0f} us/token   {slowest / middle:5.2f} x   (min {min(values):.0f}, max {max(values):.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--slots", type=int, default=5)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--model", default="asset:minilm")
    parser.add_argument("--data", default=os.environ.get("FEDQUILT_DATA", str(Path(__file__).parents[2] / "shared" / "data")))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = Path(arguments.data) if Path(arguments.data, "glue_sst2").is_dir() else None
    print(f"{arguments.model}, rank {arguments.rank}, {arguments.slots} x {arguments.rows} rows, {arguments.threads} threads")
    print(f"{arguments.laps} laps, rows: {'real GLUE' if folder else 'random ids of GLUE-like lengths'}")
    for dropout in (0.0, 0.1):
        measure(arguments, folder, dropout)


if __name__ == "__main__":
    main()
