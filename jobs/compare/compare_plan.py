"""What a comparison compares: which arrays, which rows, how they are cut into units; refused before work begins."""

from __future__ import annotations

import hashlib
from itertools import islice

import numpy as np
import pyarrow as pa

from jobs.compare.common_grid import CommonPart
from jobs.compare.compare_schema import COMPARE_JSON, Comparison
from jobs.compare.compare_stages import PairUnit
from jobs.compare.row_matching import Ledger, Side
from jobs.storage.files import is_remote, local_path
from jobs.storage.object_store import list_keys, open_output, put, read_object
from jobs.store.fingerprint import differing_keys
from jobs.store.store_access import refuse_unwritable
from jobs.store.store_reader import Store
from jobs.util.formatting import first_line
from saliency_core.errors import InvalidRequestError
from saliency_core.map_measures import GRID


def choose_sides(a: Store, b: Store, array: str | None, array_b: str | None) -> tuple[Side, Side]:
    if array is None and array_b is not None:
        raise InvalidRequestError(f"--array-b {array_b} names B's array alone: give A's too, with --array.")
    if array is None:
        common = [path for path in a.arrays if path in b.arrays]
        if not common:
            raise InvalidRequestError(
                f"the stores have no array in common (A has {', '.join(a.arrays)}; B {', '.join(b.arrays)}): name one "
                "of each, with --array and --array-b."
            )
        array = common[0]
    return Side("A", a, a.array(array).spec), Side("B", b, b.array(array_b or array).spec)


def make_plan(a: Side, b: Side, ledger: Ledger, *, top: float) -> Comparison:
    common = CommonPart(a.store.run, a.array, b.store.run, b.array)
    rows, compared = ledger.rows, ledger.compared
    sizes = np.unique(np.stack([ledger.width[compared], ledger.height[compared]]), axis=1).T.tolist()
    pairs = hashlib.sha256()
    for name in ("row_a", "row_b"):
        pairs.update(np.asarray(rows[name].take(pa.array(compared))).tobytes())
    return Comparison(
        fingerprint={
            "a": a.store.run.fingerprint,
            "b": b.store.run.fingerprint,
            "array_a": a.array.path,
            "array_b": b.array.path,
            "top": top,
            "pairs": pairs.hexdigest(),
        },
        a=a.where,
        b=b.where,
        array_a=a.array.path,
        array_b=b.array.path,
        top=top,
        matched=ledger.matched,
        notes=ledger.notes,
        resampled=a.array.item_shape[-2:] != b.array.item_shape[-2:] or not all(common.same(*size) for size in sizes),
        grid=common.grid,
        cells=(min(GRID, common.grid[0]), min(GRID, common.grid[1])),
        rows_a=len(a.store),
        rows_b=len(b.store),
        only_a=rows["row_b"].null_count,
        only_b=rows["row_a"].null_count,
    )


def claim(output: str, plan: Comparison) -> None:
    """Puts compare.json, unless it is there. Raises InvalidRequestError where the directory holds anything else: that
    is somebody's."""
    refuse_unwritable(output, flag="--output")
    if not is_remote(output) and not local_path(output).exists():
        put(open_output(output, make=True), COMPARE_JSON, plan.to_json())
        return
    store = open_output(output)
    try:
        there = Comparison.model_validate_json(read_object(store, COMPARE_JSON))
    except FileNotFoundError:
        foreign = list(islice(list_keys(store), 3))
        if foreign:
            raise InvalidRequestError(
                f"--output {output} is not empty and no comparison (it holds {', '.join(foreign)} …), and nothing is "
                "overwritten: choose another, or empty it yourself."
            ) from None
    except ValueError as error:
        raise InvalidRequestError(
            f"{output}/{COMPARE_JSON} cannot be read ({first_line(error)}): choose another."
        ) from None
    else:
        others = differing_keys(there.fingerprint, plan.fingerprint)
        if others == ["pairs"]:
            raise InvalidRequestError(
                f"--output {output} holds a comparison of these stores as they were before rows came or changed, and "
                "nothing is overwritten: choose another directory."
            )
        if others:
            raise InvalidRequestError(
                f"--output {output} holds a comparison of other things (they differ in {', '.join(others)}), and "
                "nothing is overwritten: choose another directory."
            )
    put(store, COMPARE_JSON, plan.to_json())


def pair_units(a: Side, ledger: Ledger) -> list[PairUnit]:
    """The pairs to compare, by A's units: what lies in one object is read at once."""
    places = ledger.compared
    rows = ledger.rows.take(pa.array(places))
    numbers = np.asarray(rows["row_a"]) // a.store.run.unit_size
    columns = [np.asarray(rows[name]) for name in ("row_a", "row_b")]
    columns += [ledger.width[places], ledger.height[places], np.asarray(rows["class"])]
    starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    units = []
    for start, stop in zip(starts, [*starts, len(places)][1:], strict=True):
        span = [*range(start, stop), stop % len(places)]
        units.append(PairUnit(int(numbers[start]), *(column[span] for column in columns)))
    return units
