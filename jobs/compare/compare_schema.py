"""Defines the files of a comparison.

DIR/
  compare.json                 ``Comparison``: what was compared, how, and the results; written first and last
  units/unit-00000017.parquet  measures of the pairs of A's unit 17; if it exists, the unit is done
  units/maps-00000017.parquet  for each class of that unit: how many pairs, and the sums of their small maps
  rows.parquet                 every row of A, in A's order, then the rows that only B has: ``ROW_SCHEMA``
  classes.parquet              every class, those whose maps changed most first: ``class_schema``
  index.html                   the report; its other files lie beside it

The class of a row is the class that A's target explained; if the target is not a class, the label; −1 if there is
neither.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from jobs.audit.audit_schema import small_map_type
from jobs.store.layout import unit_key

COMPARE_JSON = "compare.json"
ROWS, CLASSES = "rows.parquet", "classes.parquet"
COMPARED = "ok"

PAIR_MEASURES = ("rank_correlation", "overlap", "distance")
"""Measures of a pair of maps, null if there are none.

rank_correlation: Spearman's, of the pixels' |values|; null also if a map is constant. overlap: intersection over union
of the top regions. distance: half of Σ|A − B| of the small maps' shares, 0 to 1: the share of the relevance that moved.
"""
CENTRE_COLUMNS = ("centre_y_a", "centre_x_a", "centre_y_b", "centre_x_b")
CHANGE_COLUMNS = ("score_change", "probability_change")
"""B minus A, of the score and the probability that each store explained."""

PAIR_SCHEMA = pa.schema(
    [
        ("row_a", pa.int64()),
        ("blank", pa.int8()),  # bits: 1 if A's map has no relevance, 2 if B's has none
        *[(name, pa.float32()) for name in (*PAIR_MEASURES, "to_next", *CENTRE_COLUMNS)],
    ]
)

ROW_SCHEMA = pa.schema(
    [
        ("row_a", pa.int64()), ("row_b", pa.int64()), ("sample_id", pa.string()), ("label", pa.int32()),
        ("status", pa.string()),
        ("class", pa.int32()), ("class_name", pa.string()), ("changed", pa.bool_()),
        ("predicted_a", pa.int32()), ("predicted_name_a", pa.string()), ("correct_a", pa.bool_()),
        ("predicted_b", pa.int32()), ("predicted_name_b", pa.string()), ("correct_b", pa.bool_()),
        ("score_a", pa.float32()), ("score_b", pa.float32()), ("score_change", pa.float32()),
        ("probability_a", pa.float32()), ("probability_b", pa.float32()), ("probability_change", pa.float32()),
        *[(name, pa.float32()) for name in (*PAIR_MEASURES, "to_next", *CENTRE_COLUMNS)],
    ]
)  # fmt: skip
"""``status``: ``ok``, or why the row was not compared. ``changed``: whether B's model predicts another class; null if a
store has no target ``predicted``. ``to_next``: distance from A's map of this row to B's map of the next row, a scale
for how far maps of different images are apart."""


def class_schema(cells: tuple[int, int]) -> pa.Schema:
    """The schema of classes.parquet.

    ``pairs``: how many rows have measures. ``changed``: share of the rows whose prediction changed, among those with
    predictions. ``mostly_to``: the new class of most of these; ``mostly_rows``: how many. ``accuracy_a``,
    ``accuracy_b``: on the rows that also have a label. ``rows``: rows of A whose maps changed most. ``place_from``,
    ``place_to``: names of the parts of the image between which relevance moved; null if the change is small.
    """
    measures = [(f"{part}_{name}", pa.float32()) for name in PAIR_MEASURES for part in ("median", "mean")]
    return pa.schema(
        [
            ("rank", pa.int32()), ("class", pa.int32()), ("class_name", pa.string()),
            ("count", pa.int64()), ("pairs", pa.int64()), ("changed", pa.float32()),
            ("mostly_to", pa.string()), ("mostly_rows", pa.int64()),
            ("accuracy_a", pa.float32()), ("accuracy_b", pa.float32()), *measures,
            *[(f"mean_{name}", pa.float32()) for name in CHANGE_COLUMNS],
            ("place_from", pa.string()), ("place_to", pa.string()), ("finding", pa.string()),
            ("rows", pa.list_(pa.int64())),
            ("mean_map_a", small_map_type(cells)), ("mean_map_b", small_map_type(cells)),
        ]
    )  # fmt: skip


class Comparison(BaseModel):
    """The content of compare.json.

    ``matched``: how rows were matched. ``only_a``, ``only_b``: rows that the other store lacks. ``pairs``: rows with
    measures. ``statuses``: how many rows have each status; ``examples``: some sample ids for each status but ``ok``.
    ``flat``: pairs without a rank correlation, because a map is constant. ``resampled``: whether maps were resampled to
    the ``grid``. ``cells``: height and width of the small maps. ``overall``: the columns of ``class_schema`` for all
    rows. ``summary``: sentences.
    """

    model_config = ConfigDict(frozen=True)

    format_version: int = 1
    state: str = "running"
    fingerprint: dict[str, Any]
    a: str
    b: str
    array_a: str
    array_b: str
    top: float
    matched: str
    notes: tuple[str, ...] = ()
    resampled: bool
    grid: tuple[int, int]
    cells: tuple[int, int]
    rows_a: int
    rows_b: int
    only_a: int
    only_b: int
    pairs: int = 0
    flat: int = 0
    statuses: dict[str, int] = {}
    examples: dict[str, list[str]] = {}
    overall: dict[str, Any] = {}
    summary: tuple[str, ...] = ()
    seconds: dict[str, float] = {}

    def to_json(self) -> bytes:
        return (self.model_dump_json(indent=2) + "\n").encode()


def pairs_key(unit: int) -> str:
    """The key of a unit's compared pairs."""
    return unit_key("units", unit)


def sums_key(unit: int) -> str:
    """The key of a unit's sums of maps."""
    return unit_key("units", unit, name="maps")
