"""What an audit leaves in a store, and how it is read.

OUT/audit/<target>/<method>/
  units/unit-00000017.parquet  of one unit, in row order: measures and the small map of every row; made once
  rows.parquet                 of every row that has a map, in row order: ``row_schema``
  classes.parquet              of every class, in the order of their rank: ``class_schema``
  clusters.parquet             of every cluster of every class that splits: ``cluster_schema``
  audit.json                   ``Audit``: what was audited, how, and what is told of all rows together

A class is what the target explained; for a target that is no class, the label; −1 where there is neither.
"""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from jobs.storage.object_store import open_output, read_object
from jobs.storage.parquet import UNREADABLE, parquet_table
from jobs.util.formatting import first_line
from saliency_core.errors import InvalidRequestError
from saliency_core.map_measures import MEASURES

AUDIT_JSON = "audit.json"
ROWS, CLASSES, CLUSTERS = "rows.parquet", "classes.parquet", "clusters.parquet"
ON_OBJECT = ("pointing", "inside")
"""Where objects are given: 1 if the peak lies on one, else 0; the share that lies on them. Null without."""

Figures = dict[str, int | float | list[float] | None]
"""The columns of ``group_schema`` by their names."""


def _figures(names: tuple[str, ...]) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.float32()) for name in names]


def small_map_type(cells: tuple[int, int]) -> pa.DataType:
    """A small map, row by row: shares that add up to 1."""
    return pa.list_(pa.float32(), cells[0] * cells[1])


def row_schema() -> pa.Schema:
    """``probability``: of ``class``; ``sure``: of ``predicted``. ``correct``: null where label or prediction are
    unknown. ``cluster``: within its class, from 0; −1 for none.

    ``outlier``: how far from its class, in its class' usual distances. ``embed_…``: for a picture of the class.
    """
    return pa.schema(
        [
            ("row", pa.int64()), ("class", pa.int32()), ("label", pa.int32()), ("predicted", pa.int32()),
            ("correct", pa.bool_()), ("probability", pa.float32()), ("sure", pa.float32()),
            *_figures(MEASURES), *_figures(ON_OBJECT),
            ("cluster", pa.int32()), ("outlier", pa.float32()), ("embed_x", pa.float32()), ("embed_y", pa.float32()),
        ]
    )  # fmt: skip


def group_schema(cells: tuple[int, int]) -> list[tuple[str, pa.DataType]]:
    """What is told of any group of rows. ``accuracy``: of those with label and prediction; null without any.

    ``confidence``: mean probability. ``spread``: mean distance to the mean map (half of Σ|share − mean share|, 0 to 1).
    Measures: their means. ``mean_map``: mean of the small maps.
    """
    return [
        ("count", pa.int64()), ("accuracy", pa.float32()), ("confidence", pa.float32()), ("spread", pa.float32()),
        *_figures(MEASURES), *_figures(ON_OBJECT), ("mean_map", small_map_type(cells)),
    ]  # fmt: skip


def class_schema(cells: tuple[int, int]) -> pa.Schema:
    """``score``: how suspicious, higher is more; null where there are too few maps to tell.
    ``alarm``: whether that is a finding, which takes at least 1.

    ``suspect``: the cluster that it is about; −1 for the whole class. ``spot_y``, ``spot_x``: where (0 to 1), and
    ``spot_rows``: how many rows show the pattern there. ``eigengap``: the largest among the first eigenvalues of
    the maps' neighbour graph; ``clusters``: how many there are, at least 1; with one, there are no lines of them and
    every row has −1. A finding's rows are a cluster of their own. ``typical``, ``atypical``, ``wrong``: rows.
    """
    rows = pa.list_(pa.int64())
    return pa.schema(
        [
            ("rank", pa.int32()), ("class", pa.int32()), ("class_name", pa.string()), *group_schema(cells),
            ("score", pa.float32()), ("alarm", pa.bool_()), ("suspect", pa.int32()),
            ("spot_y", pa.float32()), ("spot_x", pa.float32()), ("spot_rows", pa.int64()), ("finding", pa.string()),
            ("eigengap", pa.float32()), ("clusters", pa.int32()),
            ("typical", rows), ("atypical", rows), ("wrong", rows),
        ]
    )  # fmt: skip


def cluster_schema(cells: tuple[int, int]) -> pa.Schema:
    """``differs``: in words, what sets it apart from the rest of its class. ``examples``: its most typical rows."""
    return pa.schema(
        [
            ("class", pa.int32()), ("cluster", pa.int32()), *group_schema(cells),
            ("differs", pa.string()), ("examples", pa.list_(pa.int64())),
        ]
    )  # fmt: skip


class Audit(BaseModel):
    """The content of audit.json. ``cells``: height and width of the small maps. ``alarms``: classes that are findings;
    ``unjudged``: those of which, or beside which, there are too few maps to tell.

    ``rows``: of the store; ``mapped``: those that have a map; ``blank``: those whose map is zero or not finite.
    ``overall``: of all those that have a map, the columns of ``group_schema``.
    """

    model_config = ConfigDict(frozen=True)

    format_version: int = 1
    array: str
    target_spec: str
    method_spec: str
    cells: tuple[int, int]
    rows: int
    mapped: int
    blank: int
    classes: int
    alarms: int
    unjudged: int = 0
    seed: int
    objects: str | None = None
    seconds: dict[str, float] = {}
    overall: Figures  # the last: a small map is long


def read_audit(out: str, array: str, *tables: str) -> tuple[Audit, list[pa.Table]]:
    """What the audit of an array left in the store ``out``, and those of its tables.

    Raises FileNotFoundError where no audit of it has ended; InvalidRequestError where one cannot be read.
    """
    objects, where = open_output(out), folder(array)
    try:
        audit = Audit.model_validate_json(read_object(objects, f"{where}/{AUDIT_JSON}"))
        found = [parquet_table(read_object(objects, f"{where}/{name}")) for name in tables]
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise InvalidRequestError(
            f"{out}/{where} cannot be read ({first_line(error)}): run `saliency audit` again."
        ) from error
    return audit, found


def folder(array: str) -> str:
    """Where in the store the audit of an array lies."""
    return f"audit/{array}"
