"""What a comparison leaves in its directory, and how it is read.

DIR/
  compare.json                 ``Comparison``: what was compared, how, and what was found; without it there is nothing
  units/unit-00000017.parquet  figures of the pairs of A's unit 17; its existence says that the unit is done
  units/maps-00000017.parquet  of each class of that unit: how many pairs, and the sums of their small maps
  rows.parquet                 every row of A, in A's order, then the rows that only B has: ``ROW_SCHEMA``
  classes.parquet              every class, those that moved most first: ``class_schema``
  index.html                   the report, and what it shows beside it

A class is what A's target explained; where that is no class, the label; −1 where there is neither.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from jobs.audit.audit_schema import small_map_type

COMPARE_JSON = "compare.json"
ROWS, CLASSES = "rows.parquet", "classes.parquet"
COMPARED = "ok"

FIGURES = ("rank_correlation", "overlap", "distance")
"""Of a pair of maps, each null where there is none.

rank_correlation: Spearman's, of the pixels' |values|; also null where a map is the same everywhere. overlap:
intersection over union of the top regions. distance: half of Σ|A − B| of the small maps' shares, 0 to 1, which is how
much of the relevance lies elsewhere.
"""
CENTRES = ("centre_y_a", "centre_x_a", "centre_y_b", "centre_x_b")
CHANGES = ("score_change", "probability_change")
"""B − A, of what each explained of the row."""

FIGURE_SCHEMA = pa.schema(
    [
        ("row_a", pa.int64()),
        ("blank", pa.int8()),  # 1: A's map has no relevance, 2: B's, 3: neither
        *[(name, pa.float32()) for name in (*FIGURES, "to_next", *CENTRES)],
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
        *[(name, pa.float32()) for name in (*FIGURES, "to_next", *CENTRES)],
    ]
)  # fmt: skip
"""``status``: ``ok``, or why there is no comparison. ``changed``: whether B's model predicts another class; null where
a store has no target ``predicted``. ``to_next``: distance from A's map of this row to B's map of the next: how far
different images are apart."""


def class_schema(cells: tuple[int, int]) -> pa.Schema:
    """``pairs``: how many have figures. ``changed``: share, of those whose predictions are known; ``mostly_to``: what
    most of these became, and ``mostly_rows`` how many. ``accuracy``: of those with a label too. ``rows``: those that
    moved most (of A). ``place_from``, ``place_to``: where relevance went, in words; null where it is no one place.
    """
    figures = [(f"{part}_{name}", pa.float32()) for name in FIGURES for part in ("median", "mean")]
    return pa.schema(
        [
            ("rank", pa.int32()), ("class", pa.int32()), ("class_name", pa.string()),
            ("count", pa.int64()), ("pairs", pa.int64()), ("changed", pa.float32()),
            ("mostly_to", pa.string()), ("mostly_rows", pa.int64()),
            ("accuracy_a", pa.float32()), ("accuracy_b", pa.float32()), *figures,
            *[(f"mean_{name}", pa.float32()) for name in CHANGES],
            ("place_from", pa.string()), ("place_to", pa.string()), ("finding", pa.string()),
            ("rows", pa.list_(pa.int64())),
            ("mean_map_a", small_map_type(cells)), ("mean_map_b", small_map_type(cells)),
        ]
    )  # fmt: skip


class Comparison(BaseModel):
    """The content of compare.json.

    ``matched``: how rows were paired. ``only_a``, ``only_b``: rows that the other lacks. ``pairs``: rows with figures;
    ``statuses``: how many rows have each status, and ``examples`` some sample ids of each but ``ok``. ``flat``: pairs
    without a rank correlation, for a map that is the same everywhere. ``resampled``: whether maps were brought to one
    ``grid``; ``cells``: of the small maps. ``overall``: as of a class. ``summary``: in words.
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


def part_key(unit: int) -> str:
    return f"units/unit-{unit:08d}.parquet"


def sums_key(unit: int) -> str:
    return f"units/maps-{unit:08d}.parquet"
