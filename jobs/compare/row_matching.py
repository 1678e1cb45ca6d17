"""Matches the rows of two stores and joins their index columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.compare.compare_schema import COMPARED, ROW_SCHEMA
from jobs.store.index import OK, QUARANTINED
from jobs.store.run_record import ArraySpec
from jobs.store.store_reader import Store
from saliency_core.errors import InvalidRequestError

BY_ROW, BY_ID = "by row: both have the same manifest", "by sample id"
OTHER_IMAGE = "another image in B than in A"
_STATES = (OK, QUARANTINED, "no map", "")  # the last means that the store has no such row
_OK, _QUARANTINED, _NO_MAP, _ABSENT = range(4)


@dataclass(frozen=True)
class Side:
    """One of the two stores, with the array that is compared. ``name`` is A or B."""

    name: str
    store: Store
    array: ArraySpec

    @property
    def address(self) -> str:
        """The store's address."""
        return self.store.run.config.out

    @property
    def prediction(self) -> str | None:
        """The target whose class is the model's prediction; None if the store has none."""
        return self.store.run.prediction

    def lines(self) -> pa.Table:
        """Returns the index columns that are compared, of all committed rows: also ``target_…`` and ``predicted_…``."""
        columns = {name: name for name in ("row", "sample_id", "sha256", "width", "height", "label", "status")}
        of_target = ("status", "class", "class_name", "score", "probability")
        columns |= {f"target_{name}": f"{self.array.target}__{name}" for name in of_target}
        # Without a prediction, the columns exist but are null, so that callers need no special case.
        predicted = self.prediction or self.array.target
        columns |= {f"predicted_{name}": f"{predicted}__{name}" for name in ("class", "class_name")}
        index = self.store.lines(self.store.committed_rows(), list(dict.fromkeys(columns.values())))
        table = pa.table({name: index[column] for name, column in columns.items()})
        if self.prediction is None:
            for name in ("predicted_class", "predicted_class_name"):
                position = table.schema.get_field_index(name)
                nulls = pa.nulls(len(table), table.schema.field(position).type)
                table = table.set_column(position, name, nulls)
        return table


@dataclass(frozen=True)
class MatchedRows:
    """The rows of both stores, matched.

    ``rows``: the columns of ROW_SCHEMA without the measures. ``width``, ``height`` [n]: of A's image, 0 if A lacks the
    row. ``method``: how rows were matched. ``notes``: sentences for the user about rows that could not be matched.
    """

    rows: pa.Table
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    method: str
    notes: tuple[str, ...]

    @property
    def compared(self) -> NDArray[np.int64]:
        """Positions of the rows whose maps are compared."""
        return np.flatnonzero(np.asarray(pc.equal(self.rows["status"], COMPARED)))


def match_rows(a: Side, b: Side) -> MatchedRows:
    """Returns every row of A, in A's order, then the rows that only B has.

    Raises InvalidRequestError if the stores have no row in common.
    """
    lines_a, lines_b = a.lines(), b.lines()
    if a.store.run.fingerprint["samples"] == b.store.run.fingerprint["samples"]:
        method, notes = BY_ROW, []
        positions = pc.index_in(lines_a["row"], value_set=lines_b["row"])
    else:
        method, notes = BY_ID, _repeated_ids_note(a, lines_a) + _repeated_ids_note(b, lines_b)
        ids_a, ids_b = _unique_ids(lines_a["sample_id"]), _unique_ids(lines_b["sample_id"])
        positions = pc.index_in(ids_a, value_set=ids_b, skip_nulls=True)
    notes += [note for side in (a, b) if (note := _unfinished_note(side))]
    if positions.null_count == len(lines_a):
        raise InvalidRequestError(_no_common_row_error(a, lines_a, b, lines_b))
    matched_b = positions.drop_null()
    only_b = np.setdiff1d(np.arange(len(lines_b)), np.asarray(matched_b))
    in_a = pa.chunked_array([pa.array(np.arange(len(lines_a))), pa.nulls(len(only_b), pa.int64())])
    in_b = pa.chunked_array([*pa.chunked_array(positions).cast(pa.int64()).chunks, pa.array(only_b, pa.int64())])
    aligned_a, aligned_b = lines_a.take(in_a), lines_b.take(in_b)
    return MatchedRows(
        _join_rows(a, aligned_a, b, aligned_b),
        np.asarray(aligned_a["width"].fill_null(0)),
        np.asarray(aligned_a["height"].fill_null(0)),
        method,
        tuple(notes),
    )


def _join_rows(a: Side, lines_a: pa.Table, b: Side, lines_b: pa.Table) -> pa.Table:
    names = [side.store.run.class_names for side in (a, b)]
    by_name = None not in names and names[0] != names[1]
    prediction = "predicted_class_name" if by_name else "predicted_class"
    numbers = pc.coalesce(lines_a["target_class"], lines_a["label"])
    columns = {
        "row_a": lines_a["row"],
        "row_b": lines_b["row"],
        "sample_id": pc.coalesce(lines_a["sample_id"], lines_b["sample_id"]),
        "label": pc.coalesce(lines_a["label"], lines_b["label"]),
        "status": _pair_statuses(lines_a, lines_b),
        "class": pc.fill_null(numbers, -1),
        "class_name": _class_names(numbers, names[0]),
        "changed": pc.not_equal(lines_a[prediction], lines_b[prediction]),
    }
    for side, lines in (("a", lines_a), ("b", lines_b)):
        columns |= {
            f"predicted_{side}": lines["predicted_class"],
            f"predicted_name_{side}": lines["predicted_class_name"],
            f"correct_{side}": pc.equal(lines["predicted_class"], lines["label"]),
        }
    for name in ("score", "probability"):
        before, after = lines_a[f"target_{name}"], lines_b[f"target_{name}"]
        columns |= {f"{name}_a": before, f"{name}_b": after, f"{name}_change": pc.subtract(after, before)}
    schema = pa.schema([ROW_SCHEMA.field(name) for name in columns])
    return pa.table(columns).cast(schema).combine_chunks()


def _class_names(numbers: pa.ChunkedArray, names: tuple[str, ...] | None) -> pa.ChunkedArray:
    if names is None:
        return pa.chunked_array([pa.nulls(len(numbers), pa.string())])
    named = pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(names)))
    return pa.chunked_array(pa.array(names, pa.string()).take(pc.if_else(named, numbers, None).combine_chunks()))


def _pair_statuses(lines_a: pa.Table, lines_b: pa.Table) -> pa.Array:
    states_a, states_b = _row_states(lines_a), _row_states(lines_b)
    codes = states_a * len(_STATES) + states_b
    differs = pc.fill_null(pc.not_equal(lines_a["sha256"], lines_b["sha256"]), False)
    codes = np.where(np.asarray(differs) & (codes == 0), len(_STATES) ** 2, codes)
    texts = [_status_text(a, b) for a in range(len(_STATES)) for b in range(len(_STATES))]
    return pa.array([*texts, OTHER_IMAGE], pa.string()).take(pa.array(codes))


def _row_states(lines: pa.Table) -> NDArray[np.int64]:
    absent = np.asarray(pc.is_null(lines["row"]))
    quarantined = np.asarray(pc.fill_null(pc.equal(lines["status"], QUARANTINED), False))
    explained = np.asarray(pc.fill_null(pc.equal(lines["target_status"], OK), False))
    return np.select([absent, quarantined, ~explained], [_ABSENT, _QUARANTINED, _NO_MAP], _OK)


def _status_text(a: int, b: int) -> str:
    if _ABSENT in (a, b):
        return "only in B" if a == _ABSENT else "only in A"
    return status_pair_text(_STATES[a], _STATES[b])


def status_pair_text(a: str, b: str) -> str:
    """Joins the states in A and in B: ``ok``, ``blank in A``, ``blank in both``, ``quarantined in A, no map in B``."""
    if a == b:
        return COMPARED if a == OK else f"{a} in both"
    return ", ".join(f"{state} in {name}" for state, name in ((a, "A"), (b, "B")) if state != OK)


WITHOUT_MAP = {status_pair_text(a, b) for a in _STATES[:_ABSENT] for b in _STATES[:_ABSENT]} - {COMPARED}
"""Statuses of rows that are quarantined or have no map (the target does not apply) in one of the stores or in both."""


# -- matching ------------------------------------------------------------------------------------------------


def _unique_ids(ids: pa.ChunkedArray) -> pa.Array:
    """Replaces ids that occur more than once by null, because such rows cannot be matched."""
    counts = pc.value_counts(ids.combine_chunks())
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return pc.if_else(pc.is_in(ids, value_set=repeated), pa.scalar(None, pa.string()), ids).combine_chunks()


def _repeated_ids_note(side: Side, lines: pa.Table) -> list[str]:
    repeated = _unique_ids(lines["sample_id"]).null_count
    if not repeated:
        return []
    return [f"{repeated:,} rows of {side.name} share their sample id with other rows and are not matched"]


def _unfinished_note(side: Side) -> str:
    if side.store.finished:
        return ""
    done, rows = len(side.store.committed_rows()), len(side.store)
    return f"{side.name} is not finished: {done:,} of its {rows:,} rows are explained, and the others count as missing"


def _no_common_row_error(a: Side, lines_a: pa.Table, b: Side, lines_b: pa.Table) -> str:
    for side, lines in ((a, lines_a), (b, lines_b)):
        if not len(lines):
            return f"{side.address} has no explained rows yet: run the same explain command again to continue."
    first_a, first_b = (repr(lines["sample_id"][0].as_py()) for lines in (lines_a, lines_b))
    return (
        f"{a.address} and {b.address} have no row in common, so nothing can be compared: A's first sample is "
        f"{first_a}, B's is {first_b}. Rows are matched by sample id, which is relative to the folder or file of "
        "--images: explain the same images, given in the same way, with both models."
    )
