"""What a checkpoint lacks of a model: heads always, poolers where it was saved from pre-training.

transformers fills it from torch's global generator. Here it is drawn from the run's seed, so that every process and every machine
has the same model, and saved with every exported adapter, for nobody else can draw it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from fedquilt.errors import ModelError
from fedquilt.models.roles import BLOCK, inside
from fedquilt.rng import derive

EMBEDDED = re.compile(r"^(?!.*token_type).*embed")  # kinds of tokens are few, and texts without pairs have one


def lacking(info: Mapping[str, Any], name: str, head: Sequence[str] = ()) -> set[str]:
    """Names of the tensors that were not in the checkpoint, or, of the ``head``, not in this size.

    Args:
        info: what ``from_pretrained`` says with ``output_loading_info=True``.
        name: of the model.

    Raises:
        ModelError: one of an embedding or of a block, or another size outside the head: with random numbers there a model is of
            no use.
    """
    missing, resized = set(info["missing_keys"]), {key for key, *_ in info["mismatched_keys"]}
    needed = {key for key in missing if BLOCK.search(key) or EMBEDDED.search(key)}
    refuse(sorted(needed | {key for key in resized if not inside(key, head)}), name)
    return missing | resized


def refuse(names: Sequence[str], name: str) -> None:
    """Nothing may be missing but what can be drawn.

    Raises:
        ModelError: there are ``names`` of tensors that are missing.
    """
    if names:
        more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
        raise ModelError(
            f"the weights of '{name}' lack '{names[0]}'{more}",
            where="model.name",
            why="with random numbers in their place it would know nothing",
            fix="give a checkpoint whose config.json and weights are of one model",
        )


def redraw(model: Any, names: Collection[str], head: Sequence[str], seed: int) -> tuple[str, ...]:
    """Draw the tensors ``names`` outside the ``head`` anew, as the architecture initialises them, each module from the seed and its
    name alone; names of these modules."""
    owners = {key.rpartition(".")[0] for key in names if not inside(key, head)}
    drawn = tuple(name for name, _ in model.named_modules() if name in owners)
    with torch.random.fork_rng(devices=[]):
        for name in drawn:
            torch.manual_seed(derive(seed, "missing", name))
            model._init_weights(model.get_submodule(name))  # it leaves alone what was loaded
    return drawn
