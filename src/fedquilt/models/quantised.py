"""Frozen linear maps in 8 or 4 bits by bitsandbytes, through transformers: a base that does not fit otherwise.

Source: Dettmers et al. 2022, arXiv 2208.07339 (LLM.int8, 8 bits); Dettmers et al. 2023, arXiv 2305.14314 (QLoRA: 4 bits, NF4).
Adapters, heads, embeddings and layer norms stay as they are. It saves memory, not time.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedquilt.errors import ModelError

if TYPE_CHECKING:
    from fedquilt.models.loading import ModelConfig

KEPT = ("pre_classifier", "classifier", "score", "lm_head")  # they train, or the logits need them


def load_options(config: ModelConfig) -> dict[str, Any]:
    """Arguments for ``from_pretrained``; none where the base is not to be quantised.

    Raises:
        ModelError: bitsandbytes is not installed, or the precision cannot be had.
    """
    bits = config.quantization
    if bits is None:
        return {}
    where = "model.quantization"
    if config.precision == "float64":
        raise ModelError(f"{bits} weights and float64 products exclude one another", where=where, fix="leave one of them out")
    if find_spec("bitsandbytes") is None:
        raise ModelError(f"{bits} weights need bitsandbytes", where=where, fix="pip install 'fedquilt[quant]'")
    from transformers import BitsAndBytesConfig

    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    kind = {"load_in_8bit": True} if bits == "8bit" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    how = BitsAndBytesConfig(**kind, bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=list(KEPT))
    return {"quantization_config": how, "device_map": {"": "cpu"}, "dtype": torch.float32}


def settle(model: nn.Module) -> None:
    """Make passes leave the quantised maps as they are, whoever shares their weights.

    In the first pass over an 8-bit map bitsandbytes moves the weight's scales into the module, where another module with the same
    weight does not find them; in a pass without gradients it repacks 4-bit weights on some processors, for a product that has no
    gradient and that only some sizes fit.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # a plain attribute
        if hasattr(module, "init_8bit_state") and getattr(module.weight, "CB", None) is not None:
            module.init_8bit_state()  # type: ignore[operator]


def refuse_random(config: ModelConfig) -> None:
    """There is nothing to load for a ``tiny:`` model.

    Raises:
        ModelError: one is to be quantised.
    """
    if config.quantization is not None:
        fix = "choose a model with weights"
        raise ModelError(f"'{config.name}' is made up and cannot be quantised", where="model.quantization", fix=fix)


def refuse_drawn(config: ModelConfig, drawn: Sequence[str]) -> None:
    """A map that a checkpoint lacks stays as it was drawn, and bitsandbytes wants it quantised: it dies in the first pass, ours
    and that of whoever opens an export.

    Raises:
        ModelError: a model with such maps, ``drawn``, is to be quantised.
    """
    if config.quantization is not None and drawn:
        raise ModelError(
            f"'{config.name}' cannot be quantised",
            where="model.quantization",
            why=f"its weights lack {', '.join(drawn)}",
            fix="leave model.quantization out, or give a checkpoint that has it",
        )
