"""fedquilt: federated fine-tuning of pre-trained transformers with small adapters.

>>> import fedquilt                                     # doctest: +SKIP
>>> fedquilt.run("configs/glue/fltac.toml")             # doctest: +SKIP

Importing the package loads torch and nothing heavier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedquilt.errors import FedquiltError

if TYPE_CHECKING:
    from fedquilt.method import Method
    from fedquilt.runs.launch import resume, run
    from fedquilt.runs.saved import load_adapter

__version__ = "0.1.0"
__all__ = ["FedquiltError", "Method", "__version__", "load_adapter", "resume", "run"]

_LAZY = {
    "run": "fedquilt.runs.launch",
    "resume": "fedquilt.runs.launch",
    "load_adapter": "fedquilt.runs.saved",
    "Method": "fedquilt.method",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fedquilt' has no attribute '{name}'")
