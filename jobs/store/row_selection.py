"""Chooses rows of a store by number, by class, or by a column of the index."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.store.store_reader import Store
from saliency_core.errors import InvalidRequestError
from saliency_core.targets.class_targets import class_number


def choose_rows(
    store: Store,
    *,
    target: str,
    rows: list[int] | None = None,
    class_: str | None = None,
    highest: str | None = None,
    lowest: str | None = None,
    n: int = 6,
) -> list[int]:
    """Row numbers, at least one.

    Raises InvalidRequestError if options contradict each other, a class or column is unknown, or no row is left.
    """
    if rows is not None:
        if class_ is not None or highest is not None or lowest is not None:
            raise InvalidRequestError("--rows names the rows itself: drop it, or drop --class, --highest and --lowest.")
        if not rows:
            raise InvalidRequestError("--rows is empty: give at least one row number.")
        return list(rows)
    if highest is not None and lowest is not None:
        raise InvalidRequestError("--highest and --lowest exclude each other: give one.")
    if n < 1:
        raise InvalidRequestError(f"-n {n} shows nothing: give at least 1.")
    candidates = store.committed_rows()
    if not len(candidates):
        raise InvalidRequestError(f"{store.run.config.out} has no committed rows yet: run explain again to continue.")
    if class_ is not None:
        number = class_number(class_, store.run.class_names, n_classes=store.run.n_classes)
        classes = store.lines(candidates, [f"{target}__class"])[0]
        candidates = candidates[np.asarray(pc.fill_null(pc.equal(classes, number), False))]
        if not len(candidates):
            raise InvalidRequestError(
                f"no row has class {class_!r} as its {target}: choose another class, or an array of another target."
            )
    column = highest or lowest
    if column is not None:
        values = _column_values(store, candidates, column)
        has_value = ~np.isnan(values)
        if not has_value.any():
            raise InvalidRequestError(
                f"column {column!r} has no value in any of these rows, so they have no order by it."
            )
        candidates, values = candidates[has_value], values[has_value]
        # Stable, so that equal values stand in row order.
        candidates = candidates[np.argsort(-values if highest else values, kind="stable")]
    return [int(row) for row in candidates[:n]]


def _column_values(store: Store, rows: NDArray[np.int64], column: str) -> NDArray[np.float64]:
    values = store.lines(rows, [column])[0]
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise InvalidRequestError(f"column {column!r} holds no numbers, so rows have no highest or lowest in it.")
    return np.asarray(values.cast(pa.float64()).fill_null(float("nan")))


def row_numbers(text: str) -> list[int]:
    """``"0,5,9"`` → [0, 5, 9]. Raises InvalidRequestError for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidRequestError(f"--rows {text!r} is not a list of row numbers: write them as 0,5,9.") from None
