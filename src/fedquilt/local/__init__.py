"""Optimisation on the client: ``init``, ``step``, ``rate`` on stacked slots ``[G, ...]``; one row is one client's optimiser."""

from fedquilt.local.optimiser import Local, Moments, adamw, sgd
from fedquilt.local.training import Per, Training, optimiser

__all__ = ["Local", "Moments", "Per", "Training", "adamw", "optimiser", "sgd"]
