"""Writes the result of an audit as a ViRelAy analysis: samples, clusters and embedding of each class."""

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
    """Reads the rows of the array's audit (``row_schema``); None if there is none, or if it is older than the store."""
    try:
        audit, (rows,) = read_audit(store.run.config.out, array.path, ROWS)
    except FileNotFoundError:
        return None
    except InvalidRequestError as error:  # the rest of the export is complete
        log.warning("the audit of %s is left out: %s", array.path, error)
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
    """Writes a group for each class with rows that have an attribution and an embedding; returns whether there is one.

    ``samples``: the row of every sample. ``attributed``: the rows that have an attribution, in the samples' order.
    """
    embedding = np.stack(
        [np.asarray(audited[name].fill_null(np.nan), np.float32) for name in ("embed_x", "embed_y")], 1
    )
    rows, classes, clusters = (np.asarray(audited[name], np.int64) for name in ("row", "class", "cluster"))
    usable = np.isin(rows, attributed) & np.isfinite(embedding).all(axis=1)
    order = np.argsort(samples, kind="stable")
    # All labels that are not classes of the model share the category "unknown".
    categories = np.array([category(int(number)) for number in classes])
    with h5py.File(path, "w") as file:
        for name in np.unique(categories[usable]):
            members = np.flatnonzero(usable & (categories == name))
            index = order[np.searchsorted(samples, rows[members], sorter=order)]
            group = file.create_group(str(name))
            group["index"] = index.astype(np.uint32)
            group[f"cluster/{CLUSTERING}"] = clusters[members]
            group[f"embedding/{EMBEDDING}"] = embedding[members]
    return bool(usable.any())
