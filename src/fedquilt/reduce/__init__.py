"""Rows of one group become one row: ``reduce(updates, delta, group, rows) -> (delta [K, ...], touched [K])``."""

from fedquilt.reduce.mean import Reduce, mean

__all__ = ["Reduce", "mean"]
