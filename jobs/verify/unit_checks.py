"""The checks of ``verify`` on a unit: its lines match the plan, its shards the commit, and each map its line."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.storage.parquet import UNREADABLE
from jobs.store.arrays import decode_shard, fill_value
from jobs.store.finalize import check_rows
from jobs.store.index import OK, PARTIAL, QUARANTINED, Commit, ShardRecord, decode_part
from jobs.store.layout import index_key
from jobs.store.run_record import ArraySpec, Run
from jobs.util.formatting import format_ranges
from jobs.verify.checked_objects import CheckedObjects, Problem, redo_remedy, unit_objects
from saliency_core.spec_syntax import is_class_spec

PLANNED = ("row", "unit", "sample_id", "uri", "label")
# The largest rounding error as a part of the map's scale: half a step of 8 bits, or float16's for values up to 1.
_ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "uint8": 0.5, "int8": 0.5}
_SLACK = 1.001
_TINY = 1e-35  # maps below float32's normal range are stored as zero

Bools = NDArray[np.bool_]


def check_unit(
    objects: CheckedObjects, run: Run, unit: int, planned: pa.Table | None
) -> Generator[Problem, None, tuple[pa.Table, Commit] | None]:
    """Checks a unit → its lines and commit, or None if they are damaged. ``planned``: the unit's lines of the manifest,
    None if that is damaged."""
    key = index_key(unit)
    missing = f"so unit {unit} is not done; run the same explain command again"
    data = yield from objects.read(key, remedy=redo_remedy(unit), if_missing=missing)
    if data is None:
        return None
    try:
        lines, commit = decode_part(data)
        lines.validate(full=True)  # otherwise damaged text is noticed only when it is used
        check_rows(run, unit, lines)
    except UNREADABLE as error:
        yield Problem(key, f"is damaged ({error}): {redo_remedy(unit)}")
        return None
    for trouble in (*_check_plan(lines, planned), *_check_statuses(run, lines)):
        yield Problem(key, f"{trouble}: {redo_remedy(unit)}")
    shards = unit_objects(run, unit)
    records = {record.key: record for record in commit.shards}
    if len(records) != len(commit.shards) or records.keys() != set(shards.values()):
        differing = sorted(records.keys() ^ set(shards.values()))
        yield Problem(
            key, f"commits other shards than the run has ({', '.join(differing[:3]) or 'twice'}): {redo_remedy(unit)}"
        )
    for array in run.arrays:
        yield from _check_array(objects, run, unit, array, lines, shards, records)
    return lines, commit


def _check_plan(lines: pa.Table, planned: pa.Table | None) -> Iterator[str]:
    if planned is None:
        return
    for name in PLANNED:
        if not lines[name].equals(planned[name]):
            first = lines["row"][0].as_py()
            pairs = zip(lines[name].to_pylist(), planned[name].to_pylist(), strict=True)
            rows = [first + i for i, (value, planned_value) in enumerate(pairs) if value != planned_value]
            where = f"rows {format_ranges(rows)}"
            yield f"has another {name} than the manifest in {where}, so its lines are of other images"


def _check_statuses(run: Run, lines: pa.Table) -> Iterator[str]:
    applies = [_applies(lines, target) for target in run.target_specs]
    quarantined = np.array(lines["error"].is_valid())
    expected = np.select([quarantined, ~np.logical_and.reduce(applies)], [QUARANTINED, PARTIAL], OK)
    wrong = expected != np.array(lines["status"].to_pylist())
    for target, applied in zip(run.target_specs, applies, strict=True):
        wrong |= applied & quarantined
        has_class = np.array(lines[f"{target}__class"].is_valid())
        wrong |= has_class != (applied & is_class_spec(run.target_specs[target]))
    if wrong.any():
        yield f"contradicts itself on the status of rows {_rows(lines, wrong)}"


def _check_array(
    objects: CheckedObjects,
    run: Run,
    unit: int,
    array: ArraySpec,
    lines: pa.Table,
    shards: dict[str, str],
    records: dict[str, ShardRecord],
) -> Iterator[Problem]:
    paths = [array.path, array.scale_path] if array.scaled else [array.path]
    decoded = []
    for path in paths:
        key = shards[path]
        data = yield from objects.read(key, remedy=redo_remedy(unit), record=records.get(key))
        try:
            if data is not None:
                decoded.append(decode_shard(run, path, unit, data))
        except (*UNREADABLE, RuntimeError) as error:
            yield Problem(key, f"cannot be decoded ({error}): {redo_remedy(unit)}")
    if len(decoded) == len(paths):
        maps, scales = decoded if array.scaled else (decoded[0], None)
        with np.errstate(invalid="ignore", over="ignore"):  # damaged numbers are reported below
            for trouble in _check_maps(array, lines, maps, scales):
                yield Problem(shards[array.path], f"{trouble}: {redo_remedy(unit)}")


def _check_maps(
    array: ArraySpec, lines: pa.Table, maps: NDArray[np.generic], scales: NDArray[np.float32] | None
) -> Iterator[str]:
    """Checks that line i describes map i: there is a map if the line has one, with the extremes of the line."""
    applies = _applies(lines, array.target)
    flat = maps.reshape(len(maps), -1)
    low, high = flat.min(axis=1).astype(np.float64), flat.max(axis=1).astype(np.float64)
    fill = fill_value(array)
    empty = np.isnan(flat) if np.isnan(fill) else flat == fill
    extra = ~applies & ~empty.all(axis=1)
    if extra.any():
        yield f"has maps in rows {_rows(lines, extra)}, for which the index has none"
    holes = applies & (empty.any(axis=1) | ~np.isfinite(low) | ~np.isfinite(high))
    if holes.any():
        yield f"has no complete map in rows {_rows(lines, holes)}, for which the index has one"
    step = np.zeros(len(maps))
    if scales is not None:
        if not np.array_equal(scales, _numbers(lines, f"{array.column}__scale"), equal_nan=True):
            yield "has other scales than the index"
        step = scales.astype(np.float64)
        low, high = low * step, high * step
    allowed = step * _ROUNDING[array.dtype] * _SLACK + (_TINY if array.scaled else 0)
    other = np.zeros(len(maps), np.bool_)
    for name, extremes in (("min", low), ("max", high)):
        column = f"{array.column}__{name}"
        recorded = _numbers(lines, column)
        other |= applies & ~holes & ~(np.abs(extremes - recorded) <= allowed)
        other |= applies != np.array(lines[column].is_valid())
    if other.any():
        yield f"has other extremes than the index in rows {_rows(lines, other)}, so they are of different images"


def _applies(lines: pa.Table, target: str) -> Bools:
    return np.array([status == OK for status in lines[f"{target}__status"].to_pylist()], np.bool_)


def _numbers(lines: pa.Table, column: str) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in lines[column].to_pylist()], np.float64)


def _rows(lines: pa.Table, mask: Bools) -> str:
    return format_ranges([lines["row"][int(position)].as_py() for position in np.flatnonzero(mask)])
