"""What an audit left in a store, as the report reads it."""

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


@dataclass(frozen=True)
class Audited:
    """``classes``: lines of classes.parquet, by rank. ``clusters``: those of clusters.parquet, by class number.

    ``overall``: of all rows. ``rows``: rows.parquet, of which ``members`` gives a class' part.
    """

    audit: Audit
    overall: Line
    classes: list[Line]
    clusters: dict[int, list[Line]]
    rows: pa.Table
    _order: NDArray[np.int64]
    _starts: dict[int, tuple[int, int]]

    def members(self, number: int) -> pa.Table:
        """The lines of rows.parquet of one class, in row order."""
        start, stop = self._starts.get(number, (0, 0))
        return self.rows.take(pa.array(self._order[start:stop]))

    def suspect(self, line: Line) -> Line | None:
        """The cluster that a class is suspected for."""
        own = self.clusters.get(line["class"], [])
        return next((one for one in own if one["cluster"] == line["suspect"]), None)

    def median(self) -> Line:
        """Of each figure of the classes, where any has it: what is usual."""
        known: defaultdict[str, list[float]] = defaultdict(list)
        for line in self.classes:
            for name, value in line.items():
                if isinstance(value, float | int) and math.isfinite(value):
                    known[name].append(value)
        return {name: median(values) for name, values in known.items()}

    @property
    def alarms(self) -> list[Line]:
        return [line for line in self.classes if line["alarm"]]


def read_audited(store: Store, array: str) -> Audited:
    """The audit of ``array``. Raises InvalidRequestError where there is none, or where it cannot be read."""
    out = store.run.config.out
    store.array(array)  # InvalidRequestError with the list of them
    try:
        audit, (classes, clusters, rows) = read_audit(out, array, CLASSES, CLUSTERS, ROWS)
    except FileNotFoundError:
        raise InvalidRequestError(
            f"{out} has no finished audit of {array}, and a report is made of one: run `saliency audit`."
        ) from None
    height, width = store.arrays[array].item_shape[-2:]
    overall: Line = dict(audit.overall)
    for line in [overall, *(lines := classes.to_pylist()), *(of_clusters := clusters.to_pylist())]:
        if line["mean_map"] is not None:
            line["mean_map"] = density(np.asarray(line["mean_map"], np.float32), (height, width))
    by_class: defaultdict[int, list[Line]] = defaultdict(list)
    for line in of_clusters:
        by_class[line["class"]].append(line)
    lines.sort(key=lambda line: line["rank"])
    return Audited(audit, overall, lines, dict(by_class), rows, *_by_class(np.asarray(rows["class"])))


def _by_class(classes: NDArray[np.int32]) -> tuple[NDArray[np.int64], dict[int, tuple[int, int]]]:
    """The places of the rows, class by class, and where each class begins and ends there."""
    order = np.argsort(classes, kind="stable").astype(np.int64)
    found = np.unique(classes[order], return_index=True, return_counts=True)
    parts = zip(*(values.tolist() for values in found), strict=True)
    return order, {number: (start, start + count) for number, start, count in parts}
