"""Training steps of ours against plain loops, side by side in one process on the same rows.

    python benchmarks/speed.py [glue bert-base images dolly] [--laps 5] [--threads 1] [--rank 1] [--slots 5] [--rows N] [--steps 2]
                               [--dropout 0 0.1] [--data FOLDER]

glue: all-MiniLM-L6-v2 on the five GLUE tasks of the FL-TAC paper; bert-base: a random model of BERT-base's shape on the same
texts; images: a ViT-S/14 on CIFAR-10 and CIFAR-100; dolly: SmolLM2-135M on Dolly's eight categories. Every slot holds one task.

- shipped: how the public FL-TAC code trains. One adapter after the other, every text padded to 128 tokens (Dolly: 512), peft's
  model in training mode as it comes, a new AdamW for every adapter, ``loss.item()`` in every step.
- padded to the batch: the same, padded to the longest text of the batch.
- pooled: the same loop with one adapter on all rows together (centralised training), shuffled, or sorted by length; the latter
  also under torch's autocast to bfloat16.
- sequential, vectorised: our engines. bfloat16: vectorised with ``model.precision = "bfloat16"``.

A lap trains every slot from the same start on rows of its own; lap by lap the variants alternate, so that other load on the
machine hits all of them. All have the same rows and dropout probabilities, and without dropout their losses must agree.
Milliseconds per sample, medians over the laps. For BERT's shape also: the share of the measured peak of float32 products (the best
of 2,048 x 2,048 in every lap) that a vectorised step reaches, where only what must be multiplied counts: real tokens, no gradients
of frozen weights, and of the last layer what the head reads.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedquilt.data.view import SlotData
from fedquilt.engine.base import Work
from fedquilt.engine.sequential import SequentialEngine
from fedquilt.models.loading import ModelConfig, load
from fedquilt.models.loss import row_losses
from fedquilt.models.network import network
from fedquilt.models.onednn import turn_back
from fedquilt.models.padded import pad, parameter_name, with_lora
from fedquilt.models.vision import options, pixels
from fedquilt.rng import numpy_generator
from fedquilt.runs.build import Built, assemble, build
from fedquilt.runs.config import load_config
from fedquilt.types import Batch, Job, Round, Slot

CONFIGS = Path(__file__).parents[1] / "configs"
SHIPPED, BATCH, POOLED, GROUPED = "shipped", "padded to the batch", "pooled, shuffled", "pooled, sorted by length"
GROUPED_HALF = "pooled, sorted by length, bfloat16"
SEQUENTIAL, VECTORISED, HALF = "fedquilt, sequential", "fedquilt, vectorised", "fedquilt, vectorised, bfloat16"
NEAR, NEAR_HALF = 1e-4, 2e-2


@dataclass(frozen=True)
class Workload:
    """A configuration, the rows of a batch as the authors' code has them, and the length that it cuts and pads to."""

    config: str
    rows: int = 32
    pad_to: int | None = None


WORKLOADS = {
    "glue": Workload("glue/fltac.toml", pad_to=128),
    "bert-base": Workload("glue/fltac.toml", pad_to=128),
    "images": Workload("cifar/fltac.toml"),
    "dolly": Workload("dolly/fltac.toml", 4, 512),
}
BERT = ("glue", "bert-base")
Train = Callable[[list[Work]], list[float]]  # one lap; the mean loss of every slot, or of every batch of all slots together


class Loop:
    """peft's model, one adapter after the other."""

    def __init__(self, built: Built, pad_to: int | None, half: bool = False) -> None:
        self.built, self.pad_to, self.half = built, pad_to, half
        model = copy.deepcopy(built.base.model)
        turn_back(model)  # products as torch makes them
        model.set_attn_implementation("sdpa")  # transformers' own choice
        for module in model.modules():  # Llama and vision models take it from a number; ours from a module
            if hasattr(module, "attention_dropout") and hasattr(module, "dropout"):
                module.attention_dropout = module.dropout.p
        self.model: Any = with_lora(model, built.base, built.adapter).train()

    def slots(self, works: list[Work]) -> list[float]:
        """Every slot with its own rows."""
        return [self.train(batches(self.built, work)) for work in works]

    def pooled(self, works: list[Work], *, sort: bool) -> list[float]:
        """One adapter on the rows of all slots, in as many batches."""
        parts = [batch for work in works for batch in batches(self.built, work)]
        rows = Batch.cat(parts)
        order = torch.sort(rows.lengths).indices if sort else torch.randperm(len(rows))
        return [self.train([rows.pick(index) for index in order.split(len(parts[0]))])]

    def train(self, found: list[Batch]) -> float:
        """The adapter from its start on; mean loss."""
        self._reset()
        mine = [x for x in self.model.parameters() if x.requires_grad]
        optimiser = torch.optim.AdamW(mine, lr=self.built.method.local.lr, weight_decay=self.built.method.local.weight_decay)
        losses = []
        for batch in found:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
                loss = self._loss(batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    def _reset(self) -> None:
        adapter, base = self.built.adapter, self.built.base
        with torch.no_grad():
            for leaf in adapter.spec.leaves:
                self.model.get_parameter(parameter_name(leaf.name, leaf.role, base, True)).copy_(adapter.init[leaf.name])

    def _loss(self, batch: Batch) -> Tensor:
        base = self.built.base
        if batch.pixels is not None:
            seen = pixels(batch, base.transform, base.dtype)
            logits = self.model(pixel_values=seen, **options(base.model)).logits
            return row_losses(logits, batch.labels, batch.classes).mean()
        ids, types, mask = wide(*pad(batch, 0), self.pad_to)
        if base.head:
            logits = self.model(input_ids=ids, token_type_ids=types, attention_mask=mask.long()).logits
            return row_losses(logits, batch.labels, batch.classes).mean()
        logits = self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        wanted = ids.where((types == 1) & mask, -100)[:, 1:]
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
        return (losses.sum(1) / (wanted >= 0).sum(1)).mean()


def wide(ids: Tensor, types: Tensor, mask: Tensor, width: int | None) -> tuple[Tensor, ...]:
    """Padded on to ``width``."""
    more = max(0, (width or 0) - ids.shape[1])
    return tuple(F.pad(x, (0, more)) for x in (ids, types, mask))


def batches(built: Built, work: Work) -> list[Batch]:
    """The batches that our engines draw for this work."""
    return [draw.batch() for draw in built.engine.sampler.draws(work.job, work.data, work.steps, built.engine.heads)]


def works(built: Built, slots: int, rows: int, steps: int, lap: int) -> list[Work]:
    """One slot after the other with rows of one task."""
    out, names = [], sorted(built.tasks)
    for number in range(slots):
        name = names[number % len(names)]
        train = built.tasks[name].train
        usable = train.usable(numpy_generator(lap, number).permutation(len(train)))[: rows * steps]
        job = Job(Slot(number, 0), 0, Round(1 + lap, 0))
        out.append(Work(job, SlotData(((name, usable),)), built.adapter.init, None, steps, {}))
    return out


def prepare(name: str, arguments: argparse.Namespace, dropout: float, precision: str, folder: Path, before: Built | None) -> Built:
    """Model, tasks and engine of a workload; the tasks of ``before`` if there is one."""
    sets = [f"model.precision={precision}", f"model.dropout={dropout}", f"adapter.dropout={dropout / 2}"]
    sets += [f"adapter.rank={arguments.rank}", f"method.batch={rows_of(name, arguments)}", "method.schedule=constant"]
    if WORKLOADS[name].pad_to:
        sets.append(f"model.max_length={WORKLOADS[name].pad_to}")
    if name == "bert-base":
        sets.append(f"model.name={bert_base(folder)}")
    config = load_config(CONFIGS / WORKLOADS[name].config, sets)
    if before is None:
        built = build(config)
    else:
        base = load(config.model, classes=max(task.classes for task in before.tasks.values()), seed=config.seed)
        built = assemble(config, base, before.tasks, before.partition)
    torch.set_num_threads(arguments.threads)
    return built


def rows_of(name: str, arguments: argparse.Namespace) -> int:
    """Rows of a batch."""
    return int(arguments.rows or WORKLOADS[name].rows)


def bert_base(folder: Path) -> Path:
    """A random model of BERT-base's shape with MiniLM's tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification

    path = folder / "bert-base"
    if not path.exists():
        torch.manual_seed(0)
        BertForSequenceClassification(BertConfig()).save_pretrained(path)
        load(ModelConfig(), classes=2, seed=0).tokenizer.save_pretrained(path)
    return path


def variants(name: str, built: Built, half: Built | None) -> dict[str, Train]:
    """What is compared, the slowest first."""
    pad_to, loop, halved = WORKLOADS[name].pad_to, Loop(built, None), Loop(built, None, half=True)
    slow = SequentialEngine(
        built.view, built.adapter.spec, built.program.client, network(built.base, built.adapter, packed=False), built.config.seed
    )
    out: dict[str, Train] = {SHIPPED: Loop(built, pad_to).slots} if pad_to else {}
    out |= {BATCH: loop.slots} if pad_to else {SHIPPED: loop.slots}
    out |= {POOLED: lambda given: loop.pooled(given, sort=False)}
    out |= {GROUPED: lambda given: loop.pooled(given, sort=True)} if pad_to else {}
    out |= {GROUPED_HALF: lambda given: halved.pooled(given, sort=True)} if pad_to and half else {}
    out |= {SEQUENTIAL: lambda given: [done.loss for done in slow.train(given)]}
    out |= {VECTORISED: lambda given: [done.loss for done in built.engine.train(given)]}
    return out | ({HALF: lambda given: [done.loss for done in half.engine.train(given)]} if half else {})


def measure(name: str, arguments: argparse.Namespace, dropout: float, folder: Path, before: Built | None) -> Built:
    """One table."""
    built = prepare(name, arguments, dropout, "float32", folder, before)
    half = None if arguments.no_half else prepare(name, arguments, dropout, "bfloat16", folder, built)
    ways = variants(name, built, half)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    shares = []
    for lap in range(arguments.laps + 1):
        given, losses, spent = works(built, arguments.slots, rows_of(name, arguments), arguments.steps, lap), {}, {}
        for way, train in ways.items():
            begin = time.perf_counter()
            losses[way] = train(given)
            spent[way] = time.perf_counter() - begin
        if not dropout:
            agree(losses)
        if lap:  # the first lap warms up
            for way in ways:
                seconds[way].append(spent[way])
            shares += [needed(built, given) / spent[VECTORISED] / peak()] if name in BERT else []
    samples = sum(len(batch) for work in given for batch in batches(built, work))
    show(seconds, samples)
    if shares:
        print(f"\nShare of the peak of float32 products: {statistics.median(shares):.0%}")
    return built


def agree(losses: Mapping[str, list[float]]) -> None:
    """Every variant that trains slot by slot must have found the same losses; trained together they are others.

    Raises:
        ValueError: they have not.
    """
    truth = torch.tensor(losses[SEQUENTIAL])
    for way, found in losses.items():
        if way in (POOLED, GROUPED, GROUPED_HALF):
            continue
        apart = float(((torch.tensor(found) - truth).abs() / truth.clamp(min=1)).max())
        if not apart <= (NEAR_HALF if way == HALF else NEAR):  # NaN is not near either
            raise ValueError(f"{way}: losses {found}, want {truth.tolist()}")


def needed(built: Built, given: list[Work]) -> float:
    """Floating-point operations that a step of an encoder of BERT's shape cannot do without."""
    config = built.base.model.config
    d, layers = config.hidden_size, config.num_hidden_layers
    total = 0.0
    for work in given:
        for batch in batches(built, work):
            lengths = batch.lengths.double()
            tokens, pairs, n = float(lengths.sum()), float(lengths.square().sum()), len(batch)
            maps, mlp = 2.0 * d * d, 4.0 * d * config.intermediate_size  # one map, both maps of the feed-forward, per token
            middle = tokens * (4 * maps + mlp) + 4 * pairs * d  # forward of a whole layer
            last = tokens * 2 * maps + n * (2 * maps + mlp) + 4 * tokens * d
            # Backwards: frozen maps cost as much as forwards, attention twice; the first layer's input needs no gradient.
            back = middle + 4 * pairs * d
            total += (layers - 1) * (middle + back) - 3 * tokens * maps + 2 * last + 4 * tokens * d
    return total


def peak() -> float:
    """Operations per second of a large float32 product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begin)
    return 2.0 * 2048**3 / best


def show(seconds: Mapping[str, list[float]], samples: int) -> None:
    """Medians over the laps; ratios of the medians."""
    slowest = statistics.median(seconds[SHIPPED])
    print("| variant | ms per sample | fastest, slowest lap | shipped over it |\n|---|---|---|---|")
    for way, laps in seconds.items():
        middle, low, high = (1000 * x / samples for x in (statistics.median(laps), min(laps), max(laps)))
        print(f"| {way} | {middle:.2f} | {low:.2f}, {high:.2f} | {slowest / statistics.median(laps):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "workloads", nargs="*", default=["glue"], metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; default: glue"
    )
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--slots", type=int, default=5)
    parser.add_argument("--rows", type=int, help="of a batch; default: the authors' 32, for Dolly 4")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1], help="of the model; half of it on LoRA's inputs")
    parser.add_argument("--no-half", action="store_true", help="leave bfloat16 out")
    parser.add_argument("--data", default=os.environ.get("FEDQUILT_DATA", str(Path(__file__).parents[2] / "shared" / "data")))
    arguments = parser.parse_args()
    if unknown := set(arguments.workloads) - set(WORKLOADS):
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(WORKLOADS)}")
    os.environ["FEDQUILT_DATA"] = arguments.data
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.workloads:
            built = None
            for dropout in arguments.dropout:
                shape = f"{arguments.slots} slots, {arguments.steps} steps of {rows_of(name, arguments)} rows"
                print(f"\n{name}, rank {arguments.rank}, dropout {dropout}: {shape}, {arguments.threads} threads\n", flush=True)
                built = measure(name, arguments, dropout, Path(folder), built)


if __name__ == "__main__":
    main()
