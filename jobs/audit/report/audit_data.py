"""Reads what an audit left in a store, for the report."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.audit.audit_schema import CLASSES, CLUSTERS, ROWS, Audit, read_audit
from jobs.store.store_reader import Store
from saliency_core.errors import InvalidRequestError
from saliency_core.map_measures import density

Line = dict[str, Any]
"""One line of a table of the audit, by column."""


@dataclass(frozen=True)
class AuditData:
    """An audit and its tables.

    ``overall``: statistics of all rows. ``classes``: lines of classes.parquet, by rank. ``clusters``: lines of
    clusters.parquet, by class number. ``rows``: rows.parquet; ``members`` returns the part of one class.
    """

    audit: Audit
    overall: Line
    classes: list[Line]
    clusters: dict[int, list[Line]]
    rows: pa.Table
    _order: NDArray[np.int64]
    _spans: dict[int, tuple[int, int]]

    def members(self, number: int) -> pa.Table:
        """Returns the lines of rows.parquet of one class, in row order."""
        start, stop = self._spans.get(number, (0, 0))
        return self.rows.take(pa.array(self._order[start:stop]))

    def suspected_cluster(self, line: Line) -> Line | None:
        """Returns the cluster that a class's finding is about; None if it is about the whole class."""
        clusters = self.clusters.get(line["class"], [])
        return next((cluster for cluster in clusters if cluster["cluster"] == line["suspect"]), None)

    def class_medians(self) -> Line:
        """Returns the median over the classes of every numeric column; classes without a value are left out."""
        values_by_column: defaultdict[str, list[float]] = defaultdict(list)
        for line in self.classes:
            for name, value in line.items():
                if isinstance(value, float | int) and math.isfinite(value):
                    values_by_column[name].append(value)
        return {name: median(values) for name, values in values_by_column.items()}

    @property
    def alarms(self) -> list[Line]:
        """The classes that are findings, by rank."""
        return [line for line in self.classes if line["alarm"]]


def read_audit_data(store: Store, array: str) -> AuditData:
    """Reads the audit of ``array``. Raises InvalidRequestError if there is none or it cannot be read."""
    out = store.run.config.out
    store.array(array)  # raises InvalidRequestError with the list of arrays
    try:
        audit, (classes, clusters, rows) = read_audit(out, array, CLASSES, CLUSTERS, ROWS)
    except FileNotFoundError:
        raise InvalidRequestError(
            f"{out} has no finished audit of {array}, and a report is made from an audit: run `saliency audit`."
        ) from None
    height, width = store.arrays[array].item_shape[-2:]
    overall: Line = dict(audit.overall)
    for line in [overall, *(lines := classes.to_pylist()), *(cluster_lines := clusters.to_pylist())]:
        if line["mean_map"] is not None:
            line["mean_map"] = density(np.asarray(line["mean_map"], np.float32), (height, width))
    clusters_by_class: defaultdict[int, list[Line]] = defaultdict(list)
    for line in cluster_lines:
        clusters_by_class[line["class"]].append(line)
    lines.sort(key=lambda line: line["rank"])
    return AuditData(audit, overall, lines, dict(clusters_by_class), rows, *_sort_by_class(np.asarray(rows["class"])))


def _sort_by_class(classes: NDArray[np.int32]) -> tuple[NDArray[np.int64], dict[int, tuple[int, int]]]:
    """Returns the positions of the rows, sorted by class, and where each class starts and stops among them."""
    order = np.argsort(classes, kind="stable").astype(np.int64)
    runs = np.unique(classes[order], return_index=True, return_counts=True)
    spans = zip(*(values.tolist() for values in runs), strict=True)
    return order, {number: (start, start + count) for number, start, count in spans}
