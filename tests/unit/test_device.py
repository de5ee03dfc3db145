"""A device other than the host: what runs there runs only there, is never waited for, and gives the same numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import slow_unless
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fedquilt import tree
from fedquilt.adapters.base import Adapter
from fedquilt.engine.base import Work
from fedquilt.errors import ModelError
from fedquilt.local import adamw
from fedquilt.models import device, packed
from fedquilt.models.attention import Attention, Rows, way
from fedquilt.models.loading import CPU, Base, ModelConfig
from fedquilt.models.network import network
from fedquilt.models.room import column_budget, token_budget
from fedquilt.runs import registry
from fedquilt.types import Batch, Job, Round
from tests.tiny import tiny_config
from tests.unit import test_models, test_models_causal, test_vision
from tests.unit.test_models import outcome, stack_of

META = torch.device("meta")
TEXTS, IMAGES, CAUSAL = ("bert", "roberta"), ("vit", "dinov2"), ("llama", "gpt2")
FAMILIES = sorted(registry.names("fedquilt.adapters"))
OPTIONS = {"lora": {"rank": 2, "dropout": 0.2}, "tt": {"rank": 2, "bottleneck": 8}, "bottleneck": {"bottleneck": 8}}
VIRTUAL = ("prompt", "p_tuning", "prefix")


class Strict(TorchDispatchMode):
    """Tensors of two devices never meet, but to be copied, and unless ``wait`` nobody waits for the copy. (Meta tensors alone would
    let indices of the host by.)"""

    def __init__(self, *, wait: bool = False) -> None:
        super().__init__()
        self.wait = wait

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()]
        if len({x.device.type for x in given}) > 1 and func.overloadpacket is not torch.ops.aten.copy_:
            raise RuntimeError(f"{func} of {[x.device.type for x in given]}")
        if func.overloadpacket is torch.ops.aten._to_copy and not self.wait and given and given[0].device.type == "cpu":
            to = kwargs.get("device")
            if to is not None and to.type != "cpu" and not kwargs.get("non_blocking"):
                raise RuntimeError(f"a copy of {tuple(given[0].shape)} to {to} that is waited for")
        return func(*args, **(kwargs or {}))


def case(kind: str, family: str, dropout: float = 0.0) -> tuple[Base, Adapter, dict[str, Tensor], Batch]:
    """A model, an adapter, three of it (one of those that run alone), and rows of all."""
    own = test_vision if kind in IMAGES else test_models_causal if kind in CAUSAL else test_models
    base = own.base_of(kind, dropout)
    options: dict[str, Any] = OPTIONS.get(family, {})
    if family == "tt" and kind in CAUSAL:
        options = options | {"classifier": "dense"}
    adapter: Adapter = registry.load("fedquilt.adapters", family)(base, seed=0, **options)
    adapters = 1 if adapter.weights else 3
    return base, adapter, stack_of(adapter, adapters), own.batch_of(11, adapters)


CASES = [
    (kind, family)
    for kind in (*TEXTS, *IMAGES, *CAUSAL)
    for family in FAMILIES
    if not (kind in IMAGES and family in VIRTUAL) and not (kind in CAUSAL and family == "head")
    if (kind, family) != ("llama", "bitfit")  # it has no biases
]


@pytest.mark.parametrize(
    ("kind", "family", "dropout"),
    [slow_unless((place + bool(dropout)) % 2 == 0, *one, dropout) for place, one in enumerate(CASES) for dropout in (0.0, 0.2)],
)
def test_a_pass_over_another_device_mixes_nothing_and_waits_for_nothing(kind: str, family: str, dropout: float) -> None:
    """On the meta device there are no numbers: whatever the host would have to read raises."""
    step_on_meta(*case(kind, family, dropout), packed=True)


@pytest.mark.parametrize("family", ["lora", "bitfit", "tt"])
@pytest.mark.parametrize("kind", [*TEXTS, "deberta", "deberta-v2", *IMAGES])
def test_nor_does_the_reference_of_encoders(kind: str, family: str) -> None:
    step_on_meta(*case(kind, family, 0.2), packed=False)


def step_on_meta(base: Base, adapter: Adapter, stack: dict[str, Tensor], batch: Batch, *, packed: bool) -> None:
    net = network(base, adapter, packed=packed, device=META)
    leaves = {key: x.to(META).requires_grad_() for key, x in stack.items()}
    with Strict(wait=not packed):
        losses = net.losses(leaves, batch)
        grads = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    assert losses.device == META
    assert all(grad.device == META for grad in grads)


def test_the_strict_mode_sees_an_index_of_the_host() -> None:
    x = torch.zeros(3, 2, device=META)
    assert x.index_select(0, torch.tensor([1])).shape == (1, 2)
    with Strict(), pytest.raises(RuntimeError, match="index_select"):
        x.index_select(0, torch.tensor([1]))
    with Strict(), pytest.raises(RuntimeError, match="waited for"):
        torch.ones(2).to(META)
    with Strict():
        torch.ones(2).to(META, non_blocking=True)


def test_local_steps_stay_on_the_device(tmp_path: Any) -> None:
    from fedquilt.runs.build import build

    built = build(tiny_config(tmp_path, "fltac"))
    engine = built.engine
    engine.network = network(built.base, built.adapter, packed=True, device=META)
    slots = sorted(built.view.slots)[:2]
    works = [Work(Job(s, 0, Round(1, 0)), built.view.data(s, 1), built.adapter.init, None, 2, {}) for s in slots]
    draws = {g: next(engine.sampler.draws(w.job, w.data, 1, engine.heads)) for g, w in enumerate(works)}
    x = engine.there(tree.stack([work.start for work in works]))
    local = adamw(lr=0.1, steps=1, max_norm=1.0)
    with Strict():
        grads, losses = engine._gradients(x, {}, draws)  # type: ignore[attr-defined]
        new, moments = local.step(x, grads, local.init(x), 0.1, torch.ones(2, dtype=torch.bool, device=META))
    assert {t.device for t in (losses, *new.values(), *moments.values())} == {META}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("family", ["lora", "prompt", "prefix"])
@pytest.mark.parametrize("kind", [*TEXTS, *CAUSAL])
def test_attention_in_one_call_equals_one_call_per_length(kind: str, family: str, dropout: float, monkeypatch: Any) -> None:
    base, adapter, stack, batch = case(kind, family, dropout)
    net = network(base, adapter, packed=True)
    apart = outcome(net, stack, batch)
    asked = []
    monkeypatch.setattr(packed, "way", lambda attention, rows, half: asked.append(len(rows.groups)) or attention.in_one)
    together = outcome(net, stack, batch)
    assert max(asked) > 1, "rows of several lengths"
    assert tree.max_difference(apart, together) < 1e-12


def ragged(query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *, scale: float,
           window_size: tuple[int, int], enable_gqa: bool) -> Tensor:  # fmt: skip
    """What torch says of ``varlen_attn``, row by row."""
    assert {query.dtype, key.dtype, value.dtype} == {torch.bfloat16}
    assert {cu_q.dtype, cu_k.dtype} == {torch.int32}
    assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    assert enable_gqa == (query.shape[1] > key.shape[1])
    out = []
    for (a, b), (c, d) in zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True):
        k, v = (x[c:d].double().repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[a:b].double(), k) * scale
        if window_size == (-1, 0):
            scores = scores.masked_fill(~torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a)), float("-inf"))
        else:
            assert window_size == (-1, -1)
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(out)


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize(("causal", "first_only"), [(False, False), (False, True), (True, False)])
def test_ragged_attention_is_asked_for_as_torch_describes_it(
    key_heads: int, causal: bool, first_only: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", ragged)
    rows, attention = Rows(torch.tensor([2, 3, 3, 7]), CPU), Attention(0.3, causal)
    stream = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(15, heads, 8, generator=stream, dtype=torch.float64).bfloat16().double() for heads in (4, key_heads, key_heads)
    )
    q = q[rows.first] if first_only else q
    expected = attention.by_length(q, k, v, rows, first_only=first_only)
    assert expected.shape == (4 if first_only else 15, 32)
    for found in (attention.flash(q, k, v, rows, first_only=first_only), attention.in_one(q, k, v, rows, first_only=first_only)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_way_of_attention_follows_the_device() -> None:
    plain, rough = Attention(1.0), Attention(1.0, keys=torch.zeros(2, dtype=torch.long))
    many, cuda = torch.tensor([2, 3]), torch.device("cuda")
    assert way(plain, Rows(many, CPU), half=True) == plain.by_length
    assert way(plain, Rows(torch.tensor([3, 3]), cuda), half=False) == plain.by_length, "nothing is padded"
    assert way(plain, Rows(torch.tensor([3, 3]), cuda), half=True) == plain.flash, "the same precision whatever the lengths"
    assert way(plain, Rows(many, cuda), half=False) == plain.in_one
    assert way(plain, Rows(many, cuda), half=True) == plain.flash
    assert way(rough, Rows(many, cuda), half=True) == rough.in_one, "flash attention has no masks of ours"


def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path: Any, monkeypatch: Any) -> None:
    from fedquilt.runs.build import build

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="there is no 'cuda:0' here") as caught:
        build(tiny_config(tmp_path, "fedit", model={"name": "nothing", "device": "cuda"}))
    assert "model.device" in str(caught.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device.device_of(ModelConfig(device="cuda")) == torch.device("cuda:0")
    with pytest.raises(ModelError, match="the last one is cuda:0"):
        device.device_of(ModelConfig(device="cuda:1"))
    with pytest.raises(ModelError, match="a quantised base runs on the CPU only"):
        device.device_of(ModelConfig(device="cuda", quantization="8bit"))


def test_an_idle_gpu_is_mentioned(tmp_path: Any, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from fedquilt.runs.build import build

    class Said:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def line(self, text: str) -> None:
            self.lines.append(text)

    for there in (True, False):
        said: Any = Said()
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        build(tiny_config(tmp_path, "fedit"), progress=said)
        assert any("model.device" in line for line in said.lines) == there


def sized(hidden: int, layers: int, head: bool, wide: int | None = None, dropout: float = 0.0) -> Any:
    """What of a base decides how much goes through it at once."""
    config = SimpleNamespace(hidden_size=hidden, num_hidden_layers=layers, intermediate_size=wide, num_attention_heads=12)
    model = torch.nn.Sequential(torch.nn.Dropout(dropout), torch.nn.Linear(1, 10, bias=False))
    model.config = config
    return SimpleNamespace(model=model, head=("classifier",) if head else (), dtype=torch.float32)


def test_passes_get_smaller_as_models_grow() -> None:
    """The host keeps a GiB of activations at most: 120 kB a token of MiniLM, 4 x 2 times that of BERT-base and of its width."""
    assert token_budget(sized(384, 6, True), CPU) == 6000
    assert token_budget(sized(768, 12, True), CPU) == (1 << 30) // (13 * 768 * 12 * 4)
    assert token_budget(sized(576, 30, False, 1536), CPU) == (1 << 30) // (30 * (8 * 576 + 4 * 1536) * 4)
    assert token_budget(sized(8192, 80, False, 28672), CPU) == 256, "but not smaller than that"
    assert [column_budget(sized(d, 1, True)) for d in (16, 768, 4096)] == [32, 64, 341]


def test_a_gpu_takes_half_of_its_memory_beside_the_model(monkeypatch: Any) -> None:
    """Not of what is free: a run that is resumed beside others makes the same passes. With dropout attention keeps matrices."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, (80 << 30) + 40))
    cuda, token = torch.device("cuda"), 13 * 768 * 12 * 4
    assert token_budget(sized(768, 12, True), cuda, 128) == (40 << 30) // token
    assert token_budget(sized(768, 12, True, dropout=0.1), cuda, 128) == (40 << 30) // (token + 3 * 12 * 12 * 128 * 4)


def test_on_a_gpu_every_row_of_a_pass_counts_as_the_longest(tmp_path: Any) -> None:
    from fedquilt.runs.build import build

    built = build(tiny_config(tmp_path, "fltac"))
    engine: Any = built.engine
    works = [Work(Job(s, 0, Round(1, 0)), built.view.data(s, 1), built.adapter.init, None, 1, {}) for s in sorted(built.view.slots)]
    draws = {g: next(engine.sampler.draws(w.job, w.data, 1, engine.heads)) for g, w in enumerate(works)}
    engine.token_budget = 40
    for where, padded in ((CPU, False), (META, True)):
        engine.network = SimpleNamespace(device=where)
        pieces = engine._pieces(draws)
        sizes = [len(p.batch) * int(p.batch.lengths.max()) if padded else int(p.batch.lengths.sum()) for p in pieces]
        assert max(sizes) <= 40
        assert sum(len(p.batch) for p in pieces) == sum(len(draw) for draw in draws.values())
        share: dict[int, float] = {}
        for piece in pieces:
            for slot, part in zip(piece.slots.tolist(), piece.share.tolist(), strict=True):
                share[slot] = share.get(slot, 0.0) + part
        assert share == pytest.approx(dict.fromkeys(draws, 1.0))


@pytest.mark.parametrize(("family", "options", "together"), [("lora", {"rank": 16}, 2), ("tt", {"rank": 16, "bottleneck": 8}, 64)])
def test_only_factors_take_columns(family: str, options: dict[str, Any], together: int, tmp_path: Any) -> None:
    from fedquilt.runs.build import build

    built = build(tiny_config(tmp_path, "fedit", adapter={"family": family, **options}))
    assert built.engine.together == together  # type: ignore[attr-defined]
