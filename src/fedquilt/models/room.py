"""How much goes through the model at once, and how long a text may be."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedquilt.models.loading import Base

# Tokens in one forward/backward. On CPUs 2k to 7k are within a few per cent of one another.
TOKEN_BUDGET = 6000
# The packed model multiplies every token with the factors of all adapters of the pass; above about this many columns (G r) that
# costs more than a larger batch saves.
COLUMN_BUDGET = 32
ACTIVATION_BYTES = 1 << 30  # on the host
GPU_SHARE = 0.5  # of a GPU's memory beside the model
LEAST = 256  # tokens
POSITIONS = ("position_embeddings", "embed_positions", "wpe")  # what transformers calls the embedding of positions
# What a process holds after passes of many sizes, over what one pass keeps: the allocator does not give freed blocks back, until
# they are asked for (heap.py).
ALLOCATOR = 2.5


def token_bytes(base: Base) -> int:
    """Activations of one token that autograd keeps.

    Encoders: thirteen vectors of the hidden size per layer (a 6 x 384 BERT: 120 kB; 90 kB are kept, the rest comes and goes).
    Language models: eight, and four of the feed-forward's size, which is gated.
    """
    config = base.model.config
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    return layers * (13 * hidden if base.head else 8 * hidden + 4 * _wide(config)) * base.dtype.itemsize


def _wide(config: Any) -> int:
    """Of the feed-forward."""
    return int(getattr(config, "intermediate_size", None) or 4 * int(config.hidden_size))


def model_bytes(base: Base) -> int:
    """Of the weights."""
    return sum(x.numel() * x.element_size() for x in base.model.parameters())


def pass_bytes(base: Base) -> int:
    """Of one token in a pass without gradients: what one layer makes."""
    config = base.model.config
    hidden = int(config.hidden_size)
    return (8 * hidden + 3 * _wide(config)) * base.dtype.itemsize


def token_budget(base: Base, device: torch.device, longest: int = 0) -> int:
    """Tokens of one training pass: as many as are of use, or as there is room for.

    On a GPU, where large passes pay, half of its memory without the model's; not of what is free just now, so that a run that is
    resumed makes the same passes. Attention may be padded there and its dropout keeps matrices of up to ``longest`` tokens.
    """
    if device.type == "cuda":
        room = int((torch.cuda.mem_get_info(device)[1] - model_bytes(base)) * GPU_SHARE)
        return max(LEAST, room // (token_bytes(base) + probability_bytes(base, longest)))
    return max(LEAST, min(TOKEN_BUDGET, ACTIVATION_BYTES // token_bytes(base)))


def probability_bytes(base: Base, longest: int) -> int:
    """Of one token: probabilities of attention, their mask and their product, where they have dropout; else none is kept."""
    config = base.model.config
    dropped = any(isinstance(module, nn.Dropout) and module.p > 0 for module in base.model.modules())
    return 3 * int(config.num_hidden_layers) * int(config.num_attention_heads) * longest * base.dtype.itemsize * dropped


def column_budget(base: Base) -> int:
    """Columns (G r) of one training pass: at most a twelfth of the work of the map they are added to, if that is large."""
    return max(COLUMN_BUDGET, int(base.model.config.hidden_size) // 12)


def learnt_positions(model: Any) -> int | None:
    """How many positions a model of texts has learnt; None: it computes them (rotary, relative), and there is no last one.

    Some count from behind their padding's number (RoBERTa), others begin with a few that they do not use (OPT).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            return min(module.num_embeddings - skipped, int(model.config.max_position_embeddings))
    return None
