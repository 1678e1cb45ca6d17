"""From the figures of pairs to those of classes and of the whole, and to the rows that moved most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.compare.compare_schema import CHANGES, COMPARED, FIGURE_SCHEMA, FIGURES, ROW_SCHEMA, class_schema
from jobs.compare.location_text import direction
from jobs.compare.row_matching import Ledger, status_pair_text
from jobs.store.index import OK
from saliency_core.map_similarity import Doubles

MOST_ROWS = 12  # of a class, that are named
FEW = 5  # pairs: classes with fewer come last, for a single row proves little


@dataclass
class Sums:
    """Of pairs with relevance: their number, and the sums [h · w] of A's and B's small maps."""

    pairs: int = 0
    maps: list[Doubles] = field(default_factory=lambda: [np.zeros(1), np.zeros(1)])

    def add(self, pairs: int, maps: Iterable[Doubles]) -> None:
        self.pairs += pairs
        self.maps = [mine + more for mine, more in zip(self.maps, maps, strict=True)]

    def means(self, cells: tuple[int, int]) -> list[Doubles] | None:
        """[h, w] of A and of B; None without a pair."""
        return [one.reshape(cells) / self.pairs for one in self.maps] if self.pairs else None


@dataclass(frozen=True)
class Gathered:
    """``rows``: of ROW_SCHEMA; ``classes``: of ``class_schema``. ``overall``: as of a class. ``flat``: how many pairs
    have no rank correlation. ``means``: A's and B's mean maps over all pairs."""

    rows: pa.Table
    classes: pa.Table
    overall: dict[str, Any]
    flat: int
    means: list[Doubles] | None


def gather(ledger: Ledger, units: Iterable[tuple[pa.Table, pa.Table]], cells: tuple[int, int]) -> Gathered:
    """The units come in order, so that their figures stand in the ledger's."""
    figures, by_class, all_sums = [], dict[int, Sums](), Sums()
    for table, sums in units:
        figures.append(table)
        maps = [np.asarray(sums[name].combine_chunks().flatten()).reshape(len(sums), -1) for name in ("sum_a", "sum_b")]
        for number, pairs, *of_class in zip(
            *(sums[name].to_pylist() for name in ("class", "pairs")), *maps, strict=True
        ):
            for one in (by_class.setdefault(number, Sums()), all_sums):
                one.add(pairs, of_class)
    rows = _with_figures(ledger, pa.concat_tables(figures) if figures else FIGURE_SCHEMA.empty_table())
    classes = [
        _class(group, by_class.get(number, Sums()), cells) | {"class": number} for number, group in _groups(rows)
    ]
    classes.sort(key=_moved_most)
    lines = [one | {"rank": rank} for rank, one in enumerate(classes, 1)]
    pairs = pc.is_valid(rows["distance"])
    return Gathered(
        rows=rows,
        classes=pa.Table.from_pylist(lines, schema=class_schema(cells)),
        overall=_class(rows, all_sums, cells),
        flat=pc.sum(pc.and_(pairs, pc.is_null(rows["rank_correlation"]))).as_py() or 0,
        means=all_sums.means(cells),
    )


def _with_figures(ledger: Ledger, figures: pa.Table) -> pa.Table:
    """The ledger's rows with figures, null for those that were not compared; blank maps become a status."""
    places = np.full(len(ledger.rows), -1)
    places[ledger.compared] = np.arange(len(figures))
    placed = figures.take(pa.array(places, mask=places < 0))
    told = pa.array(
        [COMPARED, *(status_pair_text(*states) for states in (("blank", OK), (OK, "blank"), ("blank", "blank")))]
    )
    status = pc.coalesce(told.take(placed["blank"].combine_chunks()), ledger.rows["status"])
    rows = ledger.rows.set_column(ledger.rows.schema.get_field_index("status"), "status", status)
    for name in FIGURE_SCHEMA.names[2:]:
        rows = rows.append_column(name, placed[name])
    return rows.select(ROW_SCHEMA.names).cast(ROW_SCHEMA).combine_chunks()


def _groups(rows: pa.Table) -> Iterable[tuple[int, pa.Table]]:
    """Of each class, its rows; rows that only B has belong to none."""
    rows = rows.filter(pc.is_valid(rows["row_a"]))
    numbers = np.asarray(rows["class"])
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=np.iinfo(np.int32).min))
    for part in np.split(order, starts[1:]) if len(starts) else []:
        yield int(numbers[part[0]]), rows.take(pa.array(part))


def _class(rows: pa.Table, sums: Sums, cells: tuple[int, int]) -> dict[str, Any]:
    """Of ``class_schema``, for any rows; the mean maps as lists."""
    means = sums.means(cells)
    place_from, place_to = direction(*means) if means else (None, None)
    found: dict[str, Any] = {
        "class_name": rows["class_name"][0].as_py() if len(rows) else None,
        "count": len(rows),
        "pairs": sums.pairs,
        "changed": pc.mean(rows["changed"].cast(pa.float64())).as_py(),
        **_mostly(rows),
        **dict(zip(("accuracy_a", "accuracy_b"), accuracies(rows), strict=True)),
        **{f"mean_{name}": pc.mean(rows[name]).as_py() for name in CHANGES},
        "place_from": place_from,
        "place_to": place_to,
        "rows": moved_most(rows, MOST_ROWS),
    }
    for name in FIGURES:
        found[f"mean_{name}"] = pc.mean(rows[name]).as_py()
        found[f"median_{name}"] = pc.quantile(rows[name], 0.5)[0].as_py()
    if means:
        found |= {f"mean_map_{side}": one.ravel().tolist() for side, one in zip("ab", means, strict=True)}
    return found


def accuracies(rows: pa.Table) -> list[float | None]:
    """Of A and of B, both of the rows of which both have a prediction and a label."""
    both = rows.filter(pc.and_(pc.is_valid(rows["correct_a"]), pc.is_valid(rows["correct_b"])))
    return [pc.mean(both[f"correct_{side}"].cast(pa.float64())).as_py() for side in "ab"]


def _mostly(rows: pa.Table) -> dict[str, Any]:
    """What most of the rows whose prediction changed became: its name, else its number."""
    changed = rows.filter(pc.fill_null(rows["changed"], False))
    names = pc.coalesce(changed["predicted_name_b"], changed["predicted_b"].cast(pa.string()))
    counts = sorted(
        pc.value_counts(names.combine_chunks()).to_pylist(), key=lambda one: (-one["counts"], one["values"])
    )
    first = counts[0] if counts else {"values": None, "counts": 0}
    return {"mostly_to": first["values"], "mostly_rows": first["counts"]}


def moved_most(rows: pa.Table, most: int) -> list[int]:
    """Rows of A with the greatest distance; among equals, the lower rank correlation, then the lower row."""
    rows = rows.filter(pc.is_valid(rows["distance"]))
    keys = [("distance", "descending"), ("rank_correlation", "ascending"), ("row_a", "ascending")]
    chosen: list[int] = rows["row_a"].take(pc.sort_indices(rows, sort_keys=keys)[:most]).to_pylist()
    return chosen


def _moved_most(line: dict[str, Any]) -> tuple[bool, float, int]:
    median = line["median_distance"]
    return line["pairs"] < FEW, -(0.0 if median is None else median), line["class"]
