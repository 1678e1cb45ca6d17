"""The measures of one unit's rows, as an object of the store: made once for what was committed then."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from obstore.store import ObjectStore

from jobs.audit.audit_schema import ON_OBJECT, folder
from jobs.storage.object_store import read_object
from jobs.storage.parquet import UNREADABLE, parquet_bytes, parquet_table
from jobs.util.lookahead import map_ahead
from saliency_core.map_measures import MEASURES, Floats

FACTS = ("row", "class", "label", "predicted", "correct", "probability", "sure")
FIGURES = (*MEASURES, *ON_OBJECT)
READ_AHEAD = 4  # parts
_OF = b"saliency.audit"


def part_key(array: str, unit: int) -> str:
    return f"{folder(array)}/units/unit-{unit:08d}.parquet"


def encode(facts: pa.Table, figures: Mapping[str, Floats], small: Floats, *, of: Mapping[str, Any]) -> bytes:
    """``of``: what the part was made from. Small maps are kept as float16: three digits of each share."""
    n, height, width = small.shape
    table = facts
    for name in FIGURES:
        values = figures.get(name, np.full(n, np.nan, np.float32))
        table = table.append_column(name, pa.array(values, mask=np.isnan(values)))
    cells = pa.FixedSizeListArray.from_arrays(pa.array(small.astype(np.float16).ravel()), height * width)
    table = table.append_column("small", cells)
    told = json.dumps({**of, "cells": [height, width]}, sort_keys=True).encode()
    return parquet_bytes(table.replace_schema_metadata({_OF: told}))


def made_from(data: bytes) -> dict[str, Any]:
    """``of`` of ``encode``, and ``cells``; empty where the bytes are not as it made them."""
    try:
        found: dict[str, Any] = json.loads((parquet_table(data).schema.metadata or {})[_OF])
    except UNREADABLE:
        return {}
    return found


def read_units(store: ObjectStore, array: str, units: Iterable[int], columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of the units' parts, in order, a few ahead."""
    return map_ahead(
        lambda unit: parquet_table(read_object(store, part_key(array, unit)), columns), units, threads=READ_AHEAD
    )


def floats(column: pa.ChunkedArray) -> Floats:
    """float32 [n]; NaN for null."""
    found: Floats = np.asarray(column.cast(pa.float32()).fill_null(np.nan), np.float32)
    return found


def integers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """int64 [n]; −1 for null."""
    found: NDArray[np.int64] = np.asarray(column.cast(pa.int64()).fill_null(-1), np.int64)
    return found


def small_maps(column: pa.ChunkedArray, cells: tuple[int, int]) -> Floats:
    """float32 [n, *cells]."""
    flat = column.combine_chunks().flatten()
    found: Floats = np.asarray(flat, np.float16).astype(np.float32).reshape(-1, *cells)
    return found
