"""What an audit found, as ViRelAy's analysis: for each class the samples, their clusters, and where they are drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.audit.audit_schema import ROWS, read_audit
from jobs.store.index import OK
from jobs.store.run_record import ArraySpec
from jobs.store.store_reader import Store
from saliency_core.errors import InvalidRequestError

log = logging.getLogger(__name__)

CLUSTERING, EMBEDDING = "spectral", "pca"


def read_fresh_audit(store: Store, array: ArraySpec) -> pa.Table | None:
    """Rows of the array's audit, as ``row_schema`` has them; None where there was none, or of fewer maps."""
    try:
        audit, (rows,) = read_audit(store.run.config.out, array.path, ROWS)
    except FileNotFoundError:
        return None
    except InvalidRequestError as refused:  # all the rest is written by now, and good
        log.warning("without the audit of %s: %s", array.path, refused)
        return None
    statuses = store.lines(store.committed_rows(), [f"{array.target}__status"])[0]
    if audit.mapped != pc.sum(pc.equal(statuses, OK)).as_py():
        log.warning("the audit of %s is older than the store, and left out: run saliency audit again", array.path)
        return None
    return rows


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
    # Several classes may be one to ViRelAy: those that are none of the model's.
    categories = np.array([category(int(number)) for number in classes])
    with h5py.File(path, "w") as file:
        for name in np.unique(categories[usable]):
            own = np.flatnonzero(usable & (categories == name))
            index = order[np.searchsorted(samples, rows[own], sorter=order)]
            group = file.create_group(str(name))
            group["index"] = index.astype(np.uint32)
            group[f"cluster/{CLUSTERING}"] = clusters[own]
            group[f"embedding/{EMBEDDING}"] = embedding[own]
    return bool(usable.any())
