"""Selects the rows and arrays of an export, and reads them in batches that fit into memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.config.requested_rows import RowSelection
from jobs.store.index import OK, QUARANTINED
from jobs.store.row_selection import choose_rows
from jobs.store.run_record import ArraySpec
from jobs.store.store_reader import Store
from jobs.util.digests import sha256_of
from saliency_core.errors import InvalidRequestError

BATCH_ROWS = 32  # rows whose maps are in memory at the same time
_LINES_PER_TABLE = 10_000  # index lines


@dataclass(frozen=True)
class Batch:
    """Index lines and maps of some rows; ``maps`` by array path: float32 [n, …], NaN if a row has no map."""

    rows: NDArray[np.int64]
    lines: list[dict[str, Any]]
    maps: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ExportSelection:
    """Rows and arrays to export; ``rows`` in the order of the export, each once."""

    store: Store
    arrays: list[ArraySpec]
    rows: NDArray[np.int64]

    def batches(self, rows: NDArray[np.int64]) -> Iterator[Batch]:
        """Yields ``rows``, which are some of the selection's, with their maps."""
        for start in range(0, len(rows), BATCH_ROWS):
            batch_rows = rows[start : start + BATCH_ROWS]
            maps = {array.path: self.store.maps(array.path, batch_rows) for array in self.arrays}
            yield Batch(batch_rows, self.store.lines(batch_rows).to_pylist(), maps)

    def lines(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields the index lines of all rows, some at a time."""
        for start in range(0, len(self.rows), _LINES_PER_TABLE):
            yield self.store.lines(self.rows[start : start + _LINES_PER_TABLE], columns)

    def count_quarantined(self) -> int:
        """Returns the number of quarantined rows."""
        return sum(lines["status"].to_pylist().count(QUARANTINED) for lines in self.lines(["status"]))

    def imperfect_rows(self) -> set[int]:
        """Returns the numbers of rows that are quarantined or partial."""
        rows: set[int] = set()
        for lines in self.lines(["row", "status"]):
            rows.update(lines.filter(pc.not_equal(lines["status"], OK))["row"].to_pylist())
        return rows

    def recipe(self) -> dict[str, Any]:
        """Returns what identifies the export's content. It stays when the store moves, and changes after a retry."""
        targets = dict.fromkeys(array.target for array in self.arrays)
        columns = ["row", "sha256", "status", *(f"{target}__status" for target in targets)]
        digest = hashlib.sha256()
        for lines in self.lines(columns):
            digest.update(json.dumps(lines.to_pydict()).encode())
        run = json.dumps(self.store.run.fingerprint, sort_keys=True)
        return {
            "store": sha256_of(run.encode()),
            "rows": f"{len(self.rows)}, sha256 {digest.hexdigest()}",
            "arrays": [array.path for array in self.arrays],
        }


def select_rows(store: Store, selection: RowSelection, *, arrays: list[str] | None) -> ExportSelection:
    """Makes the selection of an export; ``arrays``: their paths, None for all.

    Raises `InvalidRequestError` if a row or an array does not exist, if a row is named twice, or if the store is
    unfinished and rows are not named.
    """
    specs = [store.array(path).spec for path in dict.fromkeys(arrays)] if arrays else list(store.arrays.values())
    if selection.rows is None and not store.finished:
        raise InvalidRequestError(
            f"{store.run.config.out} is not finished, and its export would be incomplete: run explain again to "
            "resume, or name committed rows with --rows."
        )
    row_numbers = choose_rows(store, selection, target=specs[0].target)
    numbers = np.asarray(row_numbers, np.int64)
    unique, counts = np.unique(numbers, return_counts=True)
    if len(unique) < len(numbers):
        raise InvalidRequestError(
            f"--rows names row {unique[counts > 1][0]} twice, but a row is exported once: name it once."
        )
    return ExportSelection(store, specs, numbers)


def left_out_reasons(
    line: dict[str, Any], arrays: list[ArraySpec], *, image_problem: str | None = None
) -> dict[str, str | None]:
    """Returns for every array path why a row is left out of the array; None if it is not.

    ``image_problem``: why the image is not available, if the format needs it; None if it is.
    """
    no_image = None if image_problem is None else f"no image: {image_problem}"
    return {array.path: _missing_map_reason(line, array) or no_image for array in arrays}


def _missing_map_reason(line: dict[str, Any], array: ArraySpec) -> str | None:
    status = line[f"{array.target}__status"]
    if status == OK:
        return None
    return f"{status}: {line['error']}" if line["error"] else str(status)
