"""What a cohort gains on a GPU, and whether the numbers are those of the CPU.

    python benchmarks/gpu.py [check bert llama] [--device cuda] [--laps 5] [--small] [--precision bfloat16]

Needs no data and no download: random weights, random tokens. On one H200 everything is meant to fit ten minutes; ``--small
--device cpu`` tries the script anywhere.

- check: two steps of several families on tiny models, on the device and on the CPU: largest difference of losses and adapters, and
  whether the device repeats its bits.
- bert: a model of BERT-base's shape, 32 texts of 16 to 128 tokens a slot, LoRA of rank 1: samples a second with 1, 10 and 50 slots,
  trained together and one at a time.
- llama: the shape of Llama-7B, 8 slots, rows of 512 tokens, ranks 1, 4 and 16: tokens a second with 1 and 4 rows a slot, trained
  together, one at a time, and by peft's model with one adapter on all rows (centralised). Share of the measured peak of bfloat16
  products, counting four operations per weight and token (forwards, and backwards without weight gradients).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from grid import row as line
from laps import laps_of
from peft import get_peft_model
from torch import Tensor
from torch.nn import functional as F

from fedquilt import tree
from fedquilt.adapters.base import Adapter
from fedquilt.adapters.bottleneck import bottleneck
from fedquilt.adapters.lora import lora
from fedquilt.adapters.prompts import prefix
from fedquilt.adapters.tt.family import tt
from fedquilt.data.encode import Examples, Task
from fedquilt.data.view import SlotData, View
from fedquilt.engine.base import Work
from fedquilt.engine.vectorised import VectorisedEngine
from fedquilt.method import compose
from fedquilt.methods.fedit import fedit
from fedquilt.models.causal import add_dropout
from fedquilt.models.device import device_of
from fedquilt.models.half import halve
from fedquilt.models.loading import Base, ModelConfig, load
from fedquilt.models.network import network
from fedquilt.models.padded import peft_config
from fedquilt.models.room import column_budget, token_budget
from fedquilt.types import Job, Round, Slot

SEED = 0


def texts(slots: int, rows: int, low: int, high: int, vocabulary: int, *, answers: bool) -> Task:
    """Random tokens of ``low`` to ``high`` a row; with ``answers`` the second half of every row is its response."""
    stream = np.random.default_rng(SEED)
    lengths = stream.integers(low, high + 1, slots * rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = stream.integers(5, vocabulary, offsets[-1]).astype(np.int32)
    halves = [np.arange(n) >= n // 2 if answers else np.zeros(n) for n in lengths]
    examples = Examples(tokens, np.concatenate(halves).astype(np.uint8), offsets, stream.integers(0, 2, len(lengths)).astype(float))
    kind: Any = "generation" if answers else "classification"
    return Task("random", kind, () if answers else ("a", "b"), (), examples, examples)


class Trainer:
    """Slots with rows of their own on one base."""

    def __init__(self, base: Base, adapter: Adapter, task: Task, rows: int, device: torch.device, steps: int = 1) -> None:
        count = len(task.train) // rows
        data = {Slot(c, 0): SlotData((("random", np.arange(c * rows, (c + 1) * rows)),)) for c in range(count)}
        method = fedit(lr=1e-3, steps=steps, batch=rows, adapter=adapter.spec.family)
        client = compose(method, adapter.spec).client
        self.net = network(base, adapter, packed=True, device=device)
        longest = int(task.train.lengths.max())
        budgets = {"token_budget": token_budget(base, device, longest), "column_budget": column_budget(base)}
        self.engine = VectorisedEngine(View({"random": task}, data), adapter.spec, client, self.net, SEED, **budgets)
        self.works = [Work(Job(slot, 0, Round(1, SEED)), own, adapter.init, None, steps, {}) for slot, own in data.items()]

    def together(self) -> list[Any]:
        """All slots side by side."""
        return list(self.engine.train(self.works))

    def alone(self) -> list[Any]:
        """One slot after the other."""
        return [self.engine.train([work])[0] for work in self.works]


def clock(ways: Mapping[str, Callable[[], object]], laps: int) -> dict[str, float]:
    """Median seconds."""
    return {name: statistics.median(found) for name, found in laps_of(ways, laps).items()}


def row(*cells: object) -> None:
    """Of a Markdown table."""
    print(line([str(cell) for cell in cells]), flush=True)


def head(*cells: str) -> None:
    """The first rows of a table."""
    row(*cells)
    row(*["---"] * len(cells))


def check(device: torch.device, arguments: argparse.Namespace) -> None:
    """The device's numbers against the CPU's."""
    head("model", "family", "precision", "loss apart", "adapter apart, of its change", "same bits again")
    families: dict[str, Callable[[Base], Adapter]] = {
        "lora": lambda base: lora(base, seed=0, rank=2, dropout=0.1),
        "tt": lambda base: tt(base, seed=0, rank=2, bottleneck=8, classifier="dense"),
        "bottleneck": lambda base: bottleneck(base, seed=0, bottleneck=8),
        "prefix": lambda base: prefix(base, seed=0, tokens=3),
    }
    for kind in ("bert", "llama"):
        task = texts(6, 8, 4, 40, 90, answers=kind == "llama")
        for name, precision in [*((name, "float32") for name in families), ("lora", "bfloat16")]:  # the last by flash attention
            config = ModelConfig(name=f"tiny:{kind}", dropout=0.1 if precision == "float32" else 0.0, precision=precision)
            base, family = load(config, classes=0 if kind == "llama" else 2, seed=0), families[name]
            there, here = (Trainer(base, family(base), task, 8, where, 2) for where in (device, torch.device("cpu")))
            found, again, expected = there.together(), there.together(), here.together()
            loss = max(abs(a.loss - b.loss) for a, b in zip(found, expected, strict=True))
            apart = max(tree.max_difference(a.delta, b.delta) for a, b in zip(found, expected, strict=True))
            moved = max(float(x.abs().max()) for x in expected[0].delta.values())
            same = all(tree.equal(a.state, b.state) for a, b in zip(found, again, strict=True))
            row(kind, name, precision, f"{loss:.1e}", f"{apart / moved:.1e}", "yes" if same else "NO")


def bert(device: torch.device, arguments: argparse.Namespace) -> None:
    """Many small steps."""
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 200}
    torch.manual_seed(SEED)
    shape = BertConfig(**(small if arguments.small else {}), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = BertForSequenceClassification(shape)
    base = ready(model, None, "bert", ("classifier",), arguments)
    head("slots", "samples/s together", "samples/s one at a time", "factor")
    for slots in (1, 3) if arguments.small else (1, 10, 50):
        trainer = Trainer(base, lora(base, seed=0), texts(slots, 32, 16, 128, shape.vocab_size, answers=False), 32, device)
        found = clock({"together": trainer.together, "alone": trainer.alone}, arguments.laps)
        rates = {name: slots * 32 / seconds for name, seconds in found.items()}
        row(slots, f"{rates['together']:,.0f}", f"{rates['alone']:,.0f}", f"{rates['together'] / rates['alone']:.2f}")


def llama(device: torch.device, arguments: argparse.Namespace) -> None:
    """Few large ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    if arguments.small:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
    slots, length = (3, 16) if arguments.small else (8, 512)
    shape = LlamaConfig(**sizes, max_position_embeddings=2048)
    torch.manual_seed(SEED)
    with device:  # 27 GB in float32: made where it is used
        model = LlamaForCausalLM(shape)
    base = ready(model, SimpleNamespace(eos_token_id=2), "llama", (), arguments)
    weights = sum(x.numel() for name, x in model.named_parameters() if x.dim() == 2 and "embed" not in name)
    best = peak(device, 512 if arguments.small else 8192)
    head("rank", "rows a slot", "tokens/s together", "one slot at a time", "centralised", "over one", "over centralised", "of peak")
    for rank in (1, 4, 16):
        adapter = lora(base, seed=0, rank=rank)
        central = Centralised(base, adapter, device, getattr(torch, arguments.precision))
        for rows in (1, 4):
            task = texts(slots, rows, length, length, shape.vocab_size, answers=True)
            trainer = Trainer(base, adapter, task, rows, device)
            ids = torch.from_numpy(task.train.tokens.astype(np.int64)).view(slots * rows, length)  # type: ignore[union-attr]
            parts = -(-ids.numel() // trainer.engine.token_budget)  # as many passes as ours
            ways = {"together": trainer.together, "alone": trainer.alone, "central": partial(central.step, ids, parts)}
            rates = {name: ids.numel() / seconds for name, seconds in clock(ways, arguments.laps).items()}
            speeds = [f"{rates[name]:,.0f}" for name in ways]
            factors = [f"{rates['together'] / rates[name]:.2f}" for name in ("alone", "central")]
            row(rank, rows, *speeds, *factors, f"{rates['together'] * 4 * weights / best:.0%}")


def ready(model: Any, tokenizer: Any, kind: str, keep: tuple[str, ...], arguments: argparse.Namespace) -> Base:
    """Frozen, in the wanted precision, with dropout modules where a model of ours has them."""
    if not keep:
        add_dropout(model, 0.0)
    model.eval().requires_grad_(False)
    if arguments.precision == "bfloat16":
        halve(model, keep=keep)
    return Base(model, tokenizer, "random", kind, keep, torch.float32, "random")


class Centralised:
    """peft's model with one adapter, the base in the wanted precision: a step on all rows in ``parts`` passes."""

    def __init__(self, base: Base, adapter: Adapter, device: torch.device, dtype: torch.dtype) -> None:
        model = copy.deepcopy(base.model).to(device, dtype)
        model.set_attn_implementation("sdpa")
        for module in model.modules():  # transformers takes it as a number
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        self.model: Any = get_peft_model(model, peft_config(base, adapter))
        self.device = device
        self.optimiser = torch.optim.AdamW([x for x in self.model.parameters() if x.requires_grad], lr=1e-3)

    def step(self, ids: Tensor, parts: int) -> float:
        """One step; the loss of the second half of every row."""
        self.optimiser.zero_grad()
        total = torch.zeros((), device=self.device)
        for some in ids.to(self.device).chunk(parts):
            half = some.shape[1] // 2
            logits = self.model(input_ids=some, use_cache=False, logits_to_keep=half + 1).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1).float(), some[:, -half:].flatten()) * len(some) / len(ids)
            loss.backward()
            total += loss.detach()
        self.optimiser.step()
        return float(total)


def peak(device: torch.device, side: int) -> float:
    """Operations a second of a large product in bfloat16."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        (a @ b)[0, 0].item()  # waits
        best = min(best, time.perf_counter() - begin)
    return 2.0 * side**3 / best


PARTS = {"check": check, "bert": bert, "llama": llama}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[*PARTS], metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="tiny models: tries the script, measures nothing")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(PARTS)}")
    device = device_of(ModelConfig(device=arguments.device))
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print(f"torch {torch.__version__} on {name}, {arguments.precision}", flush=True)
    for part in arguments.parts:
        print(f"\n{part}\n", flush=True)
        PARTS[part](device, arguments)


if __name__ == "__main__":
    main()
