"""A message of ours inside one of Flower's: all its bytes as one array, so that the framing does not grow with the adapter."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from fedquilt.errors import StateError

RECORD, ARRAY = "fedquilt", "parcel"


def wrapped(data: bytes) -> RecordDict:
    """The content of a message of Flower's."""
    return RecordDict({RECORD: ArrayRecord({ARRAY: Array("uint8", (len(data),), "fedquilt", data)})})


def unwrapped(content: RecordDict) -> bytes:
    """The inverse of :func:`wrapped`.

    Raises:
        StateError: the content is something else.
    """
    records = content.array_records
    if set(content) != {RECORD} or RECORD not in records or set(records[RECORD]) != {ARRAY}:
        raise StateError("a message of Flower's that is not fedquilt's", where="message")
    return bytes(records[RECORD][ARRAY].data)
