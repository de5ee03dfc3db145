"""Tasks and partitions: from a configuration to token numbers, and who holds which rows."""

from __future__ import annotations

from fedquilt.data.encode import Examples, Task, encode
from fedquilt.data.load import RawSplit, RawTask, load
from fedquilt.data.metrics import metric
from fedquilt.data.partition import Partition, partition
from fedquilt.data.spec import PartitionConfig, TaskConfig

__all__ = [
    "Examples",
    "Partition",
    "PartitionConfig",
    "RawSplit",
    "RawTask",
    "Task",
    "TaskConfig",
    "encode",
    "load",
    "metric",
    "partition",
]
