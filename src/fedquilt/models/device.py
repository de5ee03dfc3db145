"""Where the model runs. The server's mathematics, data and everything that is kept stay on the host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from fedquilt.errors import ModelError

if TYPE_CHECKING:
    from fedquilt.models.loading import ModelConfig


def device_of(config: ModelConfig) -> torch.device:
    """The device of ``model.device``, ready for deterministic products.

    Raises:
        ModelError: it is not there, or the base is quantised and it is no CPU.
    """
    device, where = torch.device(config.device), "model.device"
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # as tensors spell it
    if device.type == "cpu":
        return device
    if config.quantization is not None:
        why = "bitsandbytes has packed its weights for the host when they get there"
        raise ModelError("a quantised base runs on the CPU only", where=where, why=why, fix="leave one of the two out")
    if not torch.cuda.is_available():
        why = "this build of torch has none" if torch.version.cuda is None else "torch finds no driver or no device"
        raise ModelError(f"there is no '{device}' here", where=where, why=why, fix='model.device = "cpu"')
    if device.index >= torch.cuda.device_count():
        most = torch.cuda.device_count() - 1
        raise ModelError(f"there is no '{device}' here", where=where, why=f"the last one is cuda:{most}", fix="choose another")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses deterministic products
    return device
