"""Reads and writes the measures of one unit's rows, an object in the store with the provenance of its values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from obstore.store import ObjectStore

from jobs.audit.audit_schema import OBJECT_MEASURES, audit_folder
from jobs.storage.object_store import read_object
from jobs.storage.parquet import UNREADABLE, parquet_bytes, parquet_table
from jobs.store.layout import unit_key
from jobs.util.lookahead import map_ahead
from saliency_core.map_measures import MEASURES, Floats

INDEX_COLUMNS = ("row", "class", "label", "predicted", "correct", "probability", "sure")
MEASURE_COLUMNS = (*MEASURES, *OBJECT_MEASURES)
READ_AHEAD = 4  # units
_METADATA_KEY = b"saliency.audit"


def measures_key(array: str, unit: int) -> str:
    """Returns the key of a unit's measures."""
    return unit_key(f"{audit_folder(array)}/units", unit)


def encode_unit(
    columns: pa.Table, measures: Mapping[str, Floats], small: Floats, *, provenance: Mapping[str, Any]
) -> bytes:
    """Returns a unit's measures as Parquet, with ``provenance`` and the size of the small maps as metadata.

    Small maps are stored as float16, which keeps three digits of each share.
    """
    n, height, width = small.shape
    table = columns
    for name in MEASURE_COLUMNS:
        values = measures.get(name, np.full(n, np.nan, np.float32))
        table = table.append_column(name, pa.array(values, mask=np.isnan(values)))
    cells = pa.FixedSizeListArray.from_arrays(pa.array(small.astype(np.float16).ravel()), height * width)
    table = table.append_column("small", cells)
    metadata = json.dumps({**provenance, "cells": [height, width]}, sort_keys=True).encode()
    return parquet_bytes(table.replace_schema_metadata({_METADATA_KEY: metadata}))


def read_provenance(data: bytes) -> dict[str, Any]:
    """Returns the ``provenance`` that was given to ``encode_unit``, and ``cells``; empty if the bytes are damaged."""
    try:
        provenance: dict[str, Any] = json.loads((parquet_table(data).schema.metadata or {})[_METADATA_KEY])
    except UNREADABLE:
        return {}
    return provenance


def read_units(store: ObjectStore, array: str, units: Iterable[int], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yields these columns of the units' measures, in order; reads a few units ahead."""
    return map_ahead(
        lambda unit: parquet_table(read_object(store, measures_key(array, unit)), columns), units, threads=READ_AHEAD
    )


def to_floats(column: pa.ChunkedArray) -> Floats:
    """Returns float32 [n], NaN for null."""
    values: Floats = np.asarray(column.cast(pa.float32()).fill_null(np.nan), np.float32)
    return values


def to_integers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Returns int64 [n], −1 for null."""
    values: NDArray[np.int64] = np.asarray(column.cast(pa.int64()).fill_null(-1), np.int64)
    return values


def to_small_maps(column: pa.ChunkedArray, cells: tuple[int, int]) -> Floats:
    """Returns float32 [n, *cells]."""
    flat = column.combine_chunks().flatten()
    maps: Floats = np.asarray(flat, np.float16).astype(np.float32).reshape(-1, *cells)
    return maps
