"""Aggregates the measures of pairs of maps for each class and for the whole, and finds the rows that changed most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.compare.compare_schema import CHANGE_COLUMNS, COMPARED, PAIR_MEASURES, PAIR_SCHEMA, ROW_SCHEMA, class_schema
from jobs.compare.location_text import find_shift
from jobs.compare.row_matching import MatchedRows, status_pair_text
from jobs.store.index import OK
from saliency_core.map_similarity import Doubles

MAX_ROWS = 12  # rows of a class that are named
MIN_PAIRS = 5  # classes with fewer pairs come last, because single rows prove little


@dataclass
class MapSums:
    """The number of pairs whose maps have relevance, and the sums [h · w] of A's and B's small maps."""

    pairs: int = 0
    maps: list[Doubles] = field(default_factory=lambda: [np.zeros(1), np.zeros(1)])

    def add(self, pairs: int, maps: Iterable[Doubles]) -> None:
        self.pairs += pairs
        self.maps = [total + more for total, more in zip(self.maps, maps, strict=True)]

    def means(self, cells: tuple[int, int]) -> list[Doubles] | None:
        """Returns the mean maps [h, w] of A and of B; None without a pair."""
        return [total.reshape(cells) / self.pairs for total in self.maps] if self.pairs else None


@dataclass(frozen=True)
class Aggregates:
    """The results of a comparison.

    ``rows``: a table of ROW_SCHEMA. ``classes``: a table of ``class_schema``. ``overall``: one line with
    the columns of ``class_schema``, computed over all rows together. ``flat``: the number of pairs without a rank
    correlation, because one of the maps is constant. ``means``: the mean maps of A and B; None if there are no pairs.
    """

    rows: pa.Table
    classes: pa.Table
    overall: dict[str, Any]
    flat: int
    means: list[Doubles] | None


def aggregate_units(
    matched: MatchedRows, units: Iterable[tuple[pa.Table, pa.Table]], cells: tuple[int, int]
) -> Aggregates:
    """Aggregates the tables of all units, which must come in order: their lines then match ``matched.compared``."""
    measures, by_class, total = [], dict[int, MapSums](), MapSums()
    for table, sums in units:
        measures.append(table)
        maps = [np.asarray(sums[name].combine_chunks().flatten()).reshape(len(sums), -1) for name in ("sum_a", "sum_b")]
        for number, pairs, *class_maps in zip(
            *(sums[name].to_pylist() for name in ("class", "pairs")), *maps, strict=True
        ):
            for map_sums in (by_class.setdefault(number, MapSums()), total):
                map_sums.add(pairs, class_maps)
    rows = _add_measures(matched, pa.concat_tables(measures) if measures else PAIR_SCHEMA.empty_table())
    classes = [
        _aggregate_rows(members, by_class.get(number, MapSums()), cells) | {"class": number}
        for number, members in _rows_by_class(rows)
    ]
    classes.sort(key=_rank_key)
    lines = [line | {"rank": rank} for rank, line in enumerate(classes, 1)]
    pairs = pc.is_valid(rows["distance"])
    return Aggregates(
        rows=rows,
        classes=pa.Table.from_pylist(lines, schema=class_schema(cells)),
        overall=_aggregate_rows(rows, total, cells),
        flat=pc.sum(pc.and_(pairs, pc.is_null(rows["rank_correlation"]))).as_py() or 0,
        means=total.means(cells),
    )


def _add_measures(matched: MatchedRows, measures: pa.Table) -> pa.Table:
    """Adds the measures to the matched rows, null if a row was not compared; blank maps become a status."""
    positions = np.full(len(matched.rows), -1)
    positions[matched.compared] = np.arange(len(measures))
    aligned = measures.take(pa.array(positions, mask=positions < 0))
    texts = pa.array(
        [COMPARED, *(status_pair_text(*states) for states in (("blank", OK), (OK, "blank"), ("blank", "blank")))]
    )
    status = pc.coalesce(texts.take(aligned["blank"].combine_chunks()), matched.rows["status"])
    rows = matched.rows.set_column(matched.rows.schema.get_field_index("status"), "status", status)
    for name in PAIR_SCHEMA.names[2:]:
        rows = rows.append_column(name, aligned[name])
    return rows.select(ROW_SCHEMA.names).cast(ROW_SCHEMA).combine_chunks()


def count_statuses(rows: pa.Table) -> dict[str, int]:
    """Returns how many rows have each status, sorted by status."""
    counts = pc.value_counts(rows["status"].combine_chunks()).to_pylist()
    return dict(sorted((count["values"], count["counts"]) for count in counts))


def _rows_by_class(rows: pa.Table) -> Iterable[tuple[int, pa.Table]]:
    """Yields each class and its rows. Rows that only B has belong to no class."""
    rows = rows.filter(pc.is_valid(rows["row_a"]))
    numbers = np.asarray(rows["class"])
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=np.iinfo(np.int32).min))
    for part in np.split(order, starts[1:]) if len(starts) else []:
        yield int(numbers[part[0]]), rows.take(pa.array(part))


def _aggregate_rows(rows: pa.Table, sums: MapSums, cells: tuple[int, int]) -> dict[str, Any]:
    """Returns the columns of ``class_schema`` for any rows, with the mean maps as lists."""
    means = sums.means(cells)
    place_from, place_to = find_shift(*means) if means else (None, None)
    line: dict[str, Any] = {
        "class_name": rows["class_name"][0].as_py() if len(rows) else None,
        "count": len(rows),
        "pairs": sums.pairs,
        "changed": pc.mean(rows["changed"].cast(pa.float64())).as_py(),
        **_commonest_new_class(rows),
        **dict(zip(("accuracy_a", "accuracy_b"), compute_accuracies(rows), strict=True)),
        **{f"mean_{name}": pc.mean(rows[name]).as_py() for name in CHANGE_COLUMNS},
        "place_from": place_from,
        "place_to": place_to,
        "rows": rows_moved_most(rows, MAX_ROWS),
    }
    for name in PAIR_MEASURES:
        line[f"mean_{name}"] = pc.mean(rows[name]).as_py()
        line[f"median_{name}"] = pc.quantile(rows[name], 0.5)[0].as_py()
    if means:
        line |= {f"mean_map_{side}": mean.ravel().tolist() for side, mean in zip("ab", means, strict=True)}
    return line


def compute_accuracies(rows: pa.Table) -> list[float | None]:
    """Returns the accuracies of A and of B on the rows for which both have a prediction and a label."""
    both = rows.filter(pc.and_(pc.is_valid(rows["correct_a"]), pc.is_valid(rows["correct_b"])))
    return [pc.mean(both[f"correct_{side}"].cast(pa.float64())).as_py() for side in "ab"]


def _commonest_new_class(rows: pa.Table) -> dict[str, Any]:
    """Returns the class (its name, else its number) that B predicts most often among the rows that changed."""
    changed = rows.filter(pc.fill_null(rows["changed"], False))
    names = pc.coalesce(changed["predicted_name_b"], changed["predicted_b"].cast(pa.string()))
    counts = sorted(
        pc.value_counts(names.combine_chunks()).to_pylist(), key=lambda count: (-count["counts"], count["values"])
    )
    first = counts[0] if counts else {"values": None, "counts": 0}
    return {"mostly_to": first["values"], "mostly_rows": first["counts"]}


def rows_moved_most(rows: pa.Table, most: int) -> list[int]:
    """Returns the rows of A with the greatest distance; ties: the lower rank correlation, then the lower row."""
    rows = rows.filter(pc.is_valid(rows["distance"]))
    keys = [("distance", "descending"), ("rank_correlation", "ascending"), ("row_a", "ascending")]
    chosen: list[int] = rows["row_a"].take(pc.sort_indices(rows, sort_keys=keys)[:most]).to_pylist()
    return chosen


def _rank_key(line: dict[str, Any]) -> tuple[bool, float, int]:
    median = line["median_distance"]
    return line["pairs"] < MIN_PAIRS, -(0.0 if median is None else median), line["class"]
