"""Turns a replica's results for a unit into the unit's lines of the index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.store.index import OK, PARTIAL, QUARANTINED, schema
from jobs.store.run_record import STATISTICS, Run
from saliency_core.targets.class_targets import NO_LABEL, Target


class UnitResults:
    """The results of a unit's n rows. Values are NaN, and ``applies`` False, until a replica fills them in.

    ``maps`` float32 [n, …] by array path; ``columns`` [n] by index column; ``applies`` bool [n] by target: the row was
    explained and the target exists for it; ``errors``: reasons by position in the unit.
    """

    def __init__(self, run: Run, n: int) -> None:
        self.maps = {array.path: np.full((n, *array.item_shape), np.nan, np.float32) for array in run.arrays}
        self.applies = {target: np.zeros(n, np.bool_) for target in run.target_specs}
        self.columns: dict[str, NDArray[np.generic]] = {}
        self.errors: dict[int, str] = {}
        for target in run.target_specs:
            self.columns[f"{target}__class"] = np.zeros(n, np.int32)
            self.columns[f"{target}__score"] = np.full(n, np.nan, np.float32)
            self.columns[f"{target}__probability"] = np.full(n, np.nan, np.float32)
        for array in run.arrays:
            for name in (*STATISTICS, "residual") if array.residual else STATISTICS:
                self.columns[f"{array.column}__{name}"] = np.full(n, np.nan, np.float32)


def quarantine_nonfinite(run: Run, results: UnitResults) -> None:
    """Quarantines rows with a score or map that is not finite, and fills rows without a map with NaN."""
    causes: dict[int, str] = {}
    for target, applies in results.applies.items():
        _note(causes, applies & ~np.isfinite(results.columns[f"{target}__score"]), f"score of {target}")
    for array in run.arrays:
        # NaN and infinity both appear in the extremes.
        extremes = np.array([results.columns[f"{array.column}__{name}"] for name in ("min", "max")])
        _note(causes, results.applies[array.target] & ~np.isfinite(extremes).all(axis=0), f"map {array.path}")
    for position, cause in causes.items():
        results.errors[position] = (
            f"the {cause} is not finite: the model overflows on this image, or its weights are damaged"
        )
        for applies in results.applies.values():
            applies[position] = False
    for array in run.arrays:
        results.maps[array.path][~results.applies[array.target]] = np.nan


def _note(causes: dict[int, str], rows: NDArray[np.bool_], cause: str) -> None:
    for position in np.flatnonzero(rows):
        causes.setdefault(int(position), cause)


def build_index_lines(run: Run, lines: pa.Table, results: UnitResults, targets: Sequence[Target]) -> pa.Table:
    """Builds the unit's part of the index, as ``index.schema``, from the n ``lines`` of the decode stage."""
    errors = lines["error"].to_pylist()
    for position, reason in results.errors.items():
        errors[position] = reason
    quarantined = np.array([error is not None for error in errors], np.bool_)
    partial = ~quarantined & ~np.logical_and.reduce(list(results.applies.values()))
    statuses = np.select([quarantined, partial], [QUARANTINED, PARTIAL], OK)

    columns: dict[str, object] = {
        name: lines[name] for name in ("row", "unit", "sample_id", "uri", "sha256", "width", "height", "label")
    }
    columns |= {"status": pa.array(statuses, pa.string()), "error": pa.array(errors, pa.string())}
    for target in targets:
        applies = results.applies[target.slug]
        columns[f"{target.slug}__status"] = _target_statuses(target, lines, applies, quarantined, run.n_classes)
        classes = results.columns[f"{target.slug}__class"]
        scores, probabilities = (results.columns[f"{target.slug}__{name}"] for name in ("score", "probability"))
        is_class = applies & np.greater_equal(classes, 0)
        columns[f"{target.slug}__class"] = pa.array(classes, pa.int32(), mask=~is_class)
        columns[f"{target.slug}__class_name"] = _names(classes, is_class, run.class_names)
        columns[f"{target.slug}__score"] = pa.array(scores, mask=~applies)
        columns[f"{target.slug}__probability"] = pa.array(probabilities, mask=~is_class)
    for array in run.arrays:
        for name in array.statistics:
            values = results.columns[f"{array.column}__{name}"]
            columns[f"{array.column}__{name}"] = pa.array(values, pa.float32(), mask=~results.applies[array.target])
    return pa.table(columns, schema=schema(run))


def _target_statuses(
    target: Target,
    lines: pa.Table,
    applies: NDArray[np.bool_],
    quarantined: NDArray[np.bool_],
    n_classes: int,
) -> list[str]:
    labels, texts = lines["label"].fill_null(NO_LABEL).to_pylist(), lines["label_text"].to_pylist()
    statuses = []
    for position, applied in enumerate(applies):
        if quarantined[position]:
            statuses.append(QUARANTINED)
        elif applied:
            statuses.append(OK)
        elif texts[position] is not None:
            statuses.append(f"label {texts[position]!r} is no class of the model")
        else:
            statuses.append(target.why_not(labels[position], n_classes) or "does not apply")
    return statuses


def _names(classes: NDArray[np.generic], applies: NDArray[np.bool_], names: Sequence[str] | None) -> pa.Array:
    if names is None:
        return pa.nulls(len(classes), pa.string())
    return pa.array(
        [
            names[int(number)] if applied and int(number) < len(names) else None
            for number, applied in zip(classes, applies, strict=True)
        ],
        pa.string(),
    )
