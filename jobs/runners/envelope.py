"""How a record travels: as one Arrow cell that nobody on the way looks into, or as the failure that took its place."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class StageFailure:
    """What a stage raised, handed on in place of its record: through Ray, only the text of a traceback would come."""

    message: str
    trace: str


def pack(record: Any) -> pa.Table:
    """One row, one column. Without a copy beside pickle's own."""
    data = pickle.dumps(record, protocol=5)
    offsets = pa.array([0, len(data)], pa.int64())
    return pa.table(
        {
            "record": pa.LargeBinaryArray.from_buffers(
                pa.large_binary(), 1, [None, offsets.buffers()[1], pa.py_buffer(data)]
            )
        }
    )


def unpack(batch: pa.Table) -> Any:
    (value,) = batch["record"]
    return pickle.loads(value.as_buffer())  # noqa: S301 - our own, from the stage before
