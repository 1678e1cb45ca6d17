"""Packs a record for Ray as one opaque Arrow cell. A failed record is replaced by a ``StageFailure``."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class StageFailure:
    """The exception of a stage, passed on in place of its record. Ray would pass on only the text of a traceback."""

    message: str
    trace: str


def pack(record: Any) -> pa.Table:
    """Returns a table of one row and one column. It makes no copy beside pickle's own."""
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
    return pickle.loads(value.as_buffer())  # noqa: S301 - pickled by the previous stage
