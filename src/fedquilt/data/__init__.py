"""Tasks and partitions: from a configuration to token numbers or pixels, and who holds which rows."""

from __future__ import annotations

from fedquilt.data.encode import Examples, Task, encode
from fedquilt.data.images import ImageExamples, encode_images
from fedquilt.data.load import RawSplit, RawTask, load
from fedquilt.data.metrics import metric
from fedquilt.data.partition import Partition, partition
from fedquilt.data.spec import PartitionConfig, TaskConfig
from fedquilt.data.transform import Transform

__all__ = [
    "Examples",
    "ImageExamples",
    "Partition",
    "PartitionConfig",
    "RawSplit",
    "RawTask",
    "Task",
    "TaskConfig",
    "Transform",
    "encode",
    "encode_images",
    "load",
    "metric",
    "partition",
]
