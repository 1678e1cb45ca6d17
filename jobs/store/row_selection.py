"""Chooses rows of a store by number, by class, or by a column of the index."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.config.requested_rows import RowSelection
from jobs.store.store_reader import Store
from saliency_core.errors import InvalidRequestError
from saliency_core.targets.class_targets import parse_class


def choose_rows(store: Store, selection: RowSelection, *, target: str) -> list[int]:
    """Row numbers, at least one; ``target``: the one whose class ``selection.class_`` names.

    Raises InvalidRequestError if a class or column is unknown, or if no row is left.
    """
    if selection.rows is not None:
        return list(selection.rows)
    candidates = store.committed_rows()
    if not len(candidates):
        raise InvalidRequestError(f"{store.run.config.out} has no committed rows yet: run explain again to go on.")
    if selection.class_ is not None:
        number = parse_class(selection.class_, store.run.class_names, n_classes=store.run.n_classes)
        classes = store.lines(candidates, [f"{target}__class"])[0]
        candidates = candidates[np.asarray(pc.fill_null(pc.equal(classes, number), False))]
        if not len(candidates):
            raise InvalidRequestError(
                f"no row has class {selection.class_!r} as its {target}: choose another class, or an array of another "
                "target."
            )
    column = selection.highest or selection.lowest
    if column is not None:
        values = _column_values(store, candidates, column)
        has_value = ~np.isnan(values)
        if not has_value.any():
            raise InvalidRequestError(
                f"column {column!r} has no value in any of these rows, so they have no order by it."
            )
        candidates, values = candidates[has_value], values[has_value]
        # Stable, so that equal values stand in row order.
        candidates = candidates[np.argsort(-values if selection.highest else values, kind="stable")]
    return [int(row) for row in candidates[: selection.n]]


def _column_values(store: Store, rows: NDArray[np.int64], column: str) -> NDArray[np.float64]:
    values = store.lines(rows, [column])[0]
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise InvalidRequestError(f"column {column!r} holds no numbers, so rows have no highest or lowest in it.")
    return np.asarray(values.cast(pa.float64()).fill_null(float("nan")))
