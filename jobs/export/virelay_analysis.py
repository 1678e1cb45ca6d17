"""What an audit found, as ViRelAy's analysis: for each class the samples, their clusters, and where they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.audit.results import ROWS, folder
from jobs.reader import Store
from jobs.record import ArraySpec
from jobs.stores import open_output, read_object

CLUSTERING = EMBEDDING = "spectral"


def read_audit(store: Store, array: ArraySpec) -> pa.Table | None:
    """Row, class, cluster, embed_x and embed_y of the array's audit; None where there was none."""
    try:
        data = read_object(open_output(store.run.config.out), f"{folder(array.path)}/{ROWS}")
    except FileNotFoundError:
        return None
    return pq.read_table(pa.BufferReader(data), columns=["row", "class", "cluster", "embed_x", "embed_y"])


def write_analysis(
    path: Path,
    audited: pa.Table,
    samples: NDArray[np.int64],
    attributed: NDArray[np.int64],
    category: Callable[[int], str],
) -> bool:
    """A group for each class with rows that have an attribution and a place; whether there is any.

    ``samples``: the row of every sample. ``attributed``: the rows that have an attribution, in the samples' order.
    """
    embedding = np.stack(
        [np.asarray(audited[name].fill_null(np.nan), np.float32) for name in ("embed_x", "embed_y")], 1
    )
    rows, classes, clusters = (np.asarray(audited[name], np.int64) for name in ("row", "class", "cluster"))
    usable = np.isin(rows, attributed) & np.isfinite(embedding).all(axis=1)
    order = np.argsort(samples, kind="stable")
    with h5py.File(path, "w") as file:
        for number in np.unique(classes[usable]):
            own = np.flatnonzero(usable & (classes == number))
            index = order[np.searchsorted(samples, rows[own], sorter=order)]
            group = file.create_group(category(int(number)))
            group["index"] = index.astype(np.uint32)
            group[f"cluster/{CLUSTERING}"] = clusters[own]
            group[f"embedding/{EMBEDDING}"] = embedding[own]
    return bool(usable.any())
