"""Which contribution belongs to which row of the bank: ``assign(updates, hub, spec, now) -> Assignment``."""

from fedquilt.assign.base import Assign, Assignment, Fingerprints, one
from fedquilt.assign.chosen import chosen
from fedquilt.assign.kmeans import kmeans

__all__ = ["Assign", "Assignment", "Fingerprints", "chosen", "kmeans", "one"]
