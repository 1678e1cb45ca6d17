"""Plans a comparison: chooses the arrays, claims the output directory, and groups pairs into units."""

from __future__ import annotations

import hashlib
from itertools import islice

import numpy as np
import pyarrow as pa

from jobs.compare.common_grid import CommonRegion
from jobs.compare.compare_schema import COMPARE_JSON, Comparison
from jobs.compare.compare_stages import PairUnit
from jobs.compare.row_matching import MatchedRows, Side
from jobs.storage.object_store import list_keys, open_output, put, read_object
from jobs.storage.uris import is_remote, local_path
from jobs.store.fingerprint import differing_keys
from jobs.store.store_access import refuse_unwritable
from jobs.store.store_reader import Store
from jobs.util.formatting import first_line
from saliency_core.errors import InvalidRequestError
from saliency_core.map_measures import GRID


def choose_sides(a: Store, b: Store, array: str | None, array_b: str | None) -> tuple[Side, Side]:
    """Chooses the array of each store. Raises InvalidRequestError if there is none."""
    if array is None and array_b is not None:
        raise InvalidRequestError(f"--array-b {array_b} names B's array only: give A's too, with --array.")
    if array is None:
        common = [path for path in a.arrays if path in b.arrays]
        if not common:
            raise InvalidRequestError(
                f"the stores have no array in common (A has {', '.join(a.arrays)}; B has {', '.join(b.arrays)}): name "
                "one of each with --array and --array-b."
            )
        array = common[0]
    return Side("A", a, a.array(array).spec), Side("B", b, b.array(array_b or array).spec)


def make_plan(a: Side, b: Side, matched: MatchedRows, *, top: float) -> Comparison:
    """Returns the content of compare.json before the work begins."""
    common = CommonRegion(a.store.run, a.array, b.store.run, b.array)
    rows, compared = matched.rows, matched.compared
    sizes = np.unique(np.stack([matched.width[compared], matched.height[compared]]), axis=1).T.tolist()
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
        a=a.address,
        b=b.address,
        array_a=a.array.path,
        array_b=b.array.path,
        top=top,
        matched=matched.method,
        notes=matched.notes,
        resampled=a.array.item_shape[-2:] != b.array.item_shape[-2:]
        or not all(common.is_same_crop(*size) for size in sizes),
        grid=common.grid,
        cells=(min(GRID, common.grid[0]), min(GRID, common.grid[1])),
        rows_a=len(a.store),
        rows_b=len(b.store),
        only_a=rows["row_b"].null_count,
        only_b=rows["row_a"].null_count,
    )


def claim_output(output: str, plan: Comparison) -> None:
    """Writes compare.json into the output directory.

    Raises InvalidRequestError if the directory holds other files or another comparison, because nothing is overwritten.
    """
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
                f"--output {output} is not empty and holds no comparison (it holds {', '.join(foreign)} …), and "
                "nothing is overwritten: choose another directory, or empty this one."
            ) from None
    except ValueError as error:
        raise InvalidRequestError(
            f"{output}/{COMPARE_JSON} cannot be read ({first_line(error)}): choose another directory."
        ) from None
    else:
        differences = differing_keys(there.fingerprint, plan.fingerprint)
        if differences == ["pairs"]:
            raise InvalidRequestError(
                f"--output {output} holds a comparison of these stores from before rows were added or changed, and "
                "nothing is overwritten: choose another directory."
            )
        if differences:
            raise InvalidRequestError(
                f"--output {output} holds another comparison (it differs in {', '.join(differences)}), and "
                "nothing is overwritten: choose another directory."
            )
    put(store, COMPARE_JSON, plan.to_json())


def plan_units(a: Side, matched: MatchedRows) -> list[PairUnit]:
    """Groups the pairs to compare by A's units, because the maps of a unit are stored in one object."""
    positions = matched.compared
    rows = matched.rows.take(pa.array(positions))
    numbers = np.asarray(rows["row_a"]) // a.store.run.unit_size
    columns = [np.asarray(rows[name]) for name in ("row_a", "row_b")]
    columns += [matched.width[positions], matched.height[positions], np.asarray(rows["class"])]
    starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    units = []
    for start, stop in zip(starts, [*starts, len(positions)][1:], strict=True):
        span = [*range(start, stop), stop % len(positions)]
        units.append(PairUnit(int(numbers[start]), *(column[span] for column in columns)))
    return units
