"""Which linear maps of an architecture play which role: q, k, v, o, up, down.

Adapters are placed by role because module names differ between architectures and between generations of transformers
(ViT's attention went from ``attention.attention.query`` to ``attention.q_proj`` in transformers 5).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from fedquilt.errors import ModelError, did_you_mean

BLOCK = re.compile(r"\.(layer|layers|h)\.(\d+)\.")
ROLES = ("q", "k", "v", "o", "up", "down")

_BERT = {
    "q": r"\.layer\.\d+\.attention\.self\.query$",
    "k": r"\.layer\.\d+\.attention\.self\.key$",
    "v": r"\.layer\.\d+\.attention\.self\.value$",
    "o": r"\.layer\.\d+\.attention\.output\.dense$",
    "up": r"\.layer\.\d+\.intermediate\.dense$",
    "down": r"\.layer\.\d+\.output\.dense$",
}
_VIT = {
    "q": r"\.(layer|layers)\.\d+\.attention\.(attention\.query|q_proj)$",
    "k": r"\.(layer|layers)\.\d+\.attention\.(attention\.key|k_proj)$",
    "v": r"\.(layer|layers)\.\d+\.attention\.(attention\.value|v_proj)$",
    "o": r"\.(layer|layers)\.\d+\.attention\.(output\.dense|o_proj)$",
    "up": r"\.(layer|layers)\.\d+\.(intermediate\.dense|mlp\.fc1)$",
    "down": r"\.(layer|layers)\.\d+\.(output\.dense|mlp\.fc2)$",
}
_LLAMA = {
    "q": r"\.layers\.\d+\.self_attn\.q_proj$",
    "k": r"\.layers\.\d+\.self_attn\.k_proj$",
    "v": r"\.layers\.\d+\.self_attn\.v_proj$",
    "o": r"\.layers\.\d+\.self_attn\.o_proj$",
    "up": r"\.layers\.\d+\.mlp\.up_proj$",
    "down": r"\.layers\.\d+\.mlp\.down_proj$",
}
_GPT2 = {
    **dict.fromkeys("qkv", r"\.h\.\d+\.attn\.c_attn$"),  # one map for all three
    "o": r"\.h\.\d+\.attn\.c_proj$",
    "up": r"\.h\.\d+\.mlp\.c_fc$",
    "down": r"\.h\.\d+\.mlp\.c_proj$",
}
# config.model_type -> role -> pattern on the full module name.
TABLE: dict[str, dict[str, str]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    # DeBERTa (v1) computes q, k and v in one map: any of the three roles adapts all of it.
    "deberta": {**_BERT, **dict.fromkeys("qkv", r"\.layer\.\d+\.attention\.self\.in_proj$")},
    "deberta-v2": {
        **_BERT,
        "q": r"\.layer\.\d+\.attention\.self\.query_proj$",
        "k": r"\.layer\.\d+\.attention\.self\.key_proj$",
        "v": r"\.layer\.\d+\.attention\.self\.value_proj$",
    },
    "distilbert": {
        "q": r"\.layer\.\d+\.attention\.q_lin$",
        "k": r"\.layer\.\d+\.attention\.k_lin$",
        "v": r"\.layer\.\d+\.attention\.v_lin$",
        "o": r"\.layer\.\d+\.attention\.out_lin$",
        "up": r"\.layer\.\d+\.ffn\.lin1$",
        "down": r"\.layer\.\d+\.ffn\.lin2$",
    },
    "vit": _VIT,
    "dinov2": _VIT,
    "llama": _LLAMA,
    "gpt2": _GPT2,
}


def transposed(module: nn.Module) -> bool:
    """Whether it is a linear map with its weight as ``[in, out]`` (GPT-2's ``Conv1D``)."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def inside(name: str, tops: Sequence[str]) -> bool:
    """Whether a module is one of ``tops`` or in one."""
    return any(name == top or name.startswith(f"{top}.") for top in tops)


def sides(module: nn.Module) -> tuple[int, int]:
    """(out, in) features of a linear map."""
    if isinstance(module, nn.Linear):  # a quantised one has a weight of another shape
        return module.out_features, module.in_features
    rows, columns = (int(side) for side in module.weight.shape)  # type: ignore[union-attr]
    return columns, rows  # Conv1D


def resolve(
    model: nn.Module, model_type: str, roles: Sequence[str], layers: int | None = None, *, head: Sequence[str] = ()
) -> tuple[str, ...]:
    """Names of the linear modules of ``model`` with one of the ``roles``, in model order.

    A name that is no role is taken as the ending of a module name, so other architectures work too.

    Args:
        layers: of the last so many blocks only.
        head: modules whose maps are not looked at: they train themselves, or are frozen, as the head's policy says.

    Raises:
        ModelError: unknown role, a role without a matching module outside the head, or fewer blocks.
    """
    table = TABLE.get(model_type, {})
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) or transposed(module)]
    adapted = [name for name in linears if not inside(name, head)]
    found: set[str] = set()
    for role in roles:
        ending = re.compile(table.get(role) or rf"(^|\.){re.escape(role)}$")
        hits = [name for name in adapted if ending.search(name)]
        if not hits:
            raise _nothing(role, model_type, adapted, [name for name in linears if ending.search(name)])
        found.update(hits)
    chosen = found if layers is None else set(in_last(sorted(found), layers))
    return tuple(name for name in linears if name in chosen)


def _nothing(role: str, model_type: str, adapted: Sequence[str], in_head: Sequence[str]) -> ModelError:
    """No map outside the head has this role."""
    table = TABLE.get(model_type, {})
    what = f"the model has no linear map for the adapter target '{role}'"
    why = f"model type '{model_type}' " + ("has a role table" if table else "is not in the role table")
    if in_head:
        what = f"the adapter target '{role}' is in the head alone ({', '.join(in_head)})"
        why = "the head gets no adapter: adapter.head says whether it trains"
    known = sorted(table) if table else sorted({name.rsplit(".", 1)[-1] for name in adapted})
    return ModelError(what, where="adapter.targets", why=why, fix=did_you_mean(role, known))


def in_last(names: Sequence[str], layers: int) -> list[str]:
    """Those of the ``names`` (of modules or parameters) that are in the last ``layers`` blocks.

    Raises:
        ModelError: fewer blocks, or none under a known name.
    """
    numbers = {name: int(hit[2]) for name in names if (hit := BLOCK.search(f"{name}."))}
    blocks = 1 + max(numbers.values(), default=-1)
    if blocks < layers:
        raise ModelError(f"the model has {blocks} blocks, not {layers}", where="adapter.layers", fix=f"at most {blocks}")
    return [name for name, number in numbers.items() if number >= blocks - layers]
