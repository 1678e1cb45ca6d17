"""Which row of A is which row of B, and what their index lines say of both: the ledger of a comparison."""

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
_STATES = (OK, QUARANTINED, "no map", "")  # the last: the store has no such row
_OK, _QUARANTINED, _NO_MAP, _ABSENT = range(4)


@dataclass(frozen=True)
class Side:
    """One of the two stores, and the array that is compared; ``name`` is A or B."""

    name: str
    store: Store
    array: ArraySpec

    @property
    def where(self) -> str:
        return self.store.run.config.out

    @property
    def prediction(self) -> str | None:
        """The target whose class is the model's prediction; None where the store has none."""
        return self.store.run.prediction

    def lines(self) -> pa.Table:
        """Of every committed row, what is compared: ``target_…`` of what was explained, ``predicted_…``."""
        columns = {name: name for name in ("row", "sample_id", "sha256", "width", "height", "label", "status")}
        of_target = ("status", "class", "class_name", "score", "probability")
        columns |= {f"target_{name}": f"{self.array.target}__{name}" for name in of_target}
        # Without a prediction, these columns are null: they are there, so that nobody need ask.
        predicted = self.prediction or self.array.target
        columns |= {f"predicted_{name}": f"{predicted}__{name}" for name in ("class", "class_name")}
        found = self.store.lines(self.store.committed_rows(), list(dict.fromkeys(columns.values())))
        table = pa.table({name: found[column] for name, column in columns.items()})
        if self.prediction is None:
            for name in ("predicted_class", "predicted_class_name"):
                place = table.schema.get_field_index(name)
                table = table.set_column(place, name, pa.nulls(len(table), table.schema.field(place).type))
        return table


@dataclass(frozen=True)
class Ledger:
    """``rows``: of ROW_SCHEMA but for the figures; ``width`` and ``height`` [n] of A's image, 0 where there is none.

    ``matched``: how. ``notes``: what the user should know of it.
    """

    rows: pa.Table
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    matched: str
    notes: tuple[str, ...]

    @property
    def compared(self) -> NDArray[np.int64]:
        """Places of the rows whose maps are compared."""
        return np.flatnonzero(np.asarray(pc.equal(self.rows["status"], COMPARED)))


def make_ledger(a: Side, b: Side) -> Ledger:
    """Every row of A in A's order, then those that only B has. Raises InvalidRequestError where the two have no row in
    common."""
    lines_a, lines_b = a.lines(), b.lines()
    if a.store.run.fingerprint["samples"] == b.store.run.fingerprint["samples"]:
        matched, notes = BY_ROW, []
        places = pc.index_in(lines_a["row"], value_set=lines_b["row"])
    else:
        matched, notes = BY_ID, _repeated(a, lines_a) + _repeated(b, lines_b)
        places = pc.index_in(_unique(lines_a["sample_id"]), value_set=_unique(lines_b["sample_id"]), skip_nulls=True)
    notes += [note for side in (a, b) if (note := _unfinished(side))]
    if places.null_count == len(lines_a):
        raise InvalidRequestError(_nothing_in_common(a, lines_a, b, lines_b))
    matched_b = places.drop_null()
    only_b = np.setdiff1d(np.arange(len(lines_b)), np.asarray(matched_b))
    in_a = pa.chunked_array([pa.array(np.arange(len(lines_a))), pa.nulls(len(only_b), pa.int64())])
    in_b = pa.chunked_array([*pa.chunked_array(places).cast(pa.int64()).chunks, pa.array(only_b, pa.int64())])
    beside_a, beside_b = lines_a.take(in_a), lines_b.take(in_b)
    return Ledger(
        _rows(a, beside_a, b, beside_b),
        np.asarray(beside_a["width"].fill_null(0)),
        np.asarray(beside_a["height"].fill_null(0)),
        matched,
        tuple(notes),
    )


def _rows(a: Side, lines_a: pa.Table, b: Side, lines_b: pa.Table) -> pa.Table:
    names = [side.store.run.class_names for side in (a, b)]
    by_name = None not in names and names[0] != names[1]
    compared = "predicted_class_name" if by_name else "predicted_class"
    numbers = pc.coalesce(lines_a["target_class"], lines_a["label"])
    columns = {
        "row_a": lines_a["row"],
        "row_b": lines_b["row"],
        "sample_id": pc.coalesce(lines_a["sample_id"], lines_b["sample_id"]),
        "label": pc.coalesce(lines_a["label"], lines_b["label"]),
        "status": _statuses(lines_a, lines_b),
        "class": pc.fill_null(numbers, -1),
        "class_name": _class_names(numbers, names[0]),
        "changed": pc.not_equal(lines_a[compared], lines_b[compared]),
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
    known = pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(names)))
    return pa.chunked_array(pa.array(names, pa.string()).take(pc.if_else(known, numbers, None).combine_chunks()))


def _statuses(lines_a: pa.Table, lines_b: pa.Table) -> pa.Array:
    states_a, states_b = _states(lines_a), _states(lines_b)
    codes = states_a * len(_STATES) + states_b
    other = pc.fill_null(pc.not_equal(lines_a["sha256"], lines_b["sha256"]), False)
    codes = np.where(np.asarray(other) & (codes == 0), len(_STATES) ** 2, codes)
    told = [_absence_text(a, b) for a in range(len(_STATES)) for b in range(len(_STATES))]
    return pa.array([*told, OTHER_IMAGE], pa.string()).take(pa.array(codes))


def _states(lines: pa.Table) -> NDArray[np.int64]:
    absent = np.asarray(pc.is_null(lines["row"]))
    quarantined = np.asarray(pc.fill_null(pc.equal(lines["status"], QUARANTINED), False))
    explained = np.asarray(pc.fill_null(pc.equal(lines["target_status"], OK), False))
    return np.select([absent, quarantined, ~explained], [_ABSENT, _QUARANTINED, _NO_MAP], _OK)


def _absence_text(a: int, b: int) -> str:
    if _ABSENT in (a, b):
        return "only in B" if a == _ABSENT else "only in A"
    return status_pair_text(_STATES[a], _STATES[b])


def status_pair_text(a: str, b: str) -> str:
    """What is so in A and in B → ``ok``, ``blank in A``, ``blank in both``, ``quarantined in A, no map in B``."""
    if a == b:
        return COMPARED if a == OK else f"{a} in both"
    return ", ".join(f"{what} in {name}" for what, name in ((a, "A"), (b, "B")) if what != OK)


WITHOUT_MAP = {status_pair_text(a, b) for a in _STATES[:_ABSENT] for b in _STATES[:_ABSENT]} - {COMPARED}
"""Statuses of rows that are quarantined, or whose target does not apply, in one of the stores or in both."""


# -- matching ------------------------------------------------------------------------------------------------


def _unique(ids: pa.ChunkedArray) -> pa.Array:
    """The ids; null for those that occur several times, which nobody could tell apart."""
    counts = pc.value_counts(ids.combine_chunks())
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return pc.if_else(pc.is_in(ids, value_set=repeated), pa.scalar(None, pa.string()), ids).combine_chunks()


def _repeated(side: Side, lines: pa.Table) -> list[str]:
    missing = _unique(lines["sample_id"]).null_count
    return (
        [f"{missing:,} rows of {side.name} share their sample id with others, and are not matched"] if missing else []
    )


def _unfinished(side: Side) -> str:
    if side.store.finished:
        return ""
    done, rows = len(side.store.committed_rows()), len(side.store)
    return f"{side.name} is not finished: {done:,} of its {rows:,} rows are explained, the others are taken as missing"


def _nothing_in_common(a: Side, lines_a: pa.Table, b: Side, lines_b: pa.Table) -> str:
    for side, lines in ((a, lines_a), (b, lines_b)):
        if not len(lines):
            return f"{side.where} has no explained rows yet: run explain again."
    first_a, first_b = (repr(lines["sample_id"][0].as_py()) for lines in (lines_a, lines_b))
    return (
        f"{a.where} and {b.where} have no row in common, so nothing can be compared: A's first sample is {first_a}, "
        f"B's {first_b}. Samples are matched by their ids, relative to the folder or file that --images named: "
        "explain the same images, named in the same way, with both models."
    )
