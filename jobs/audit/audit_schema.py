"""Defines the files of an audit, and reads them.

OUT/audit/<target>/<method>/
  units/unit-00000017.parquet  measures and small maps of one unit's rows, in row order; computed once
  rows.parquet                 every row that has a map, in row order: ``row_schema``
  classes.parquet              every class, by rank: ``class_schema``
  clusters.parquet             every cluster of every class that splits: ``cluster_schema``
  audit.json                   ``Audit``: what was audited, how, and the statistics of all rows together

The class of a row is the class that the target explained; if the target is not a class, the label; −1 if there is
neither.
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
OBJECT_MEASURES = ("pointing", "inside")
"""Measures on objects, null if the row has none: 1 if the map's peak lies on one, else 0; the share on objects."""

GroupStatistics = dict[str, int | float | list[float] | None]
"""Values of ``group_schema`` by column name."""


def _float_columns(names: tuple[str, ...]) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.float32()) for name in names]


def small_map_type(cells: tuple[int, int]) -> pa.DataType:
    """The type of a small map, flattened row by row: shares of the relevance that add up to 1."""
    return pa.list_(pa.float32(), cells[0] * cells[1])


def row_schema() -> pa.Schema:
    """The schema of rows.parquet.

    ``probability``: of ``class``; ``sure``: of ``predicted``. ``correct``: null if the label or the prediction is
    unknown. ``cluster``: number within the class, from 0; −1 for none. ``outlier``: mean distance to the nearest maps
    of the class, divided by the class's median. ``embed_x``, ``embed_y``: coordinates in the report's scatter plot.
    """
    return pa.schema(
        [
            ("row", pa.int64()), ("class", pa.int32()), ("label", pa.int32()), ("predicted", pa.int32()),
            ("correct", pa.bool_()), ("probability", pa.float32()), ("sure", pa.float32()),
            *_float_columns(MEASURES), *_float_columns(OBJECT_MEASURES),
            ("cluster", pa.int32()), ("outlier", pa.float32()), ("embed_x", pa.float32()), ("embed_y", pa.float32()),
        ]
    )  # fmt: skip


def group_schema(cells: tuple[int, int]) -> list[tuple[str, pa.DataType]]:
    """The columns of statistics of a group of rows.

    ``accuracy``: of the rows with label and prediction; null if there are none. ``confidence``: mean probability.
    ``spread``: mean distance to the mean map (half of Σ|share − mean share|, 0 to 1). Measures: their means.
    ``mean_map``: mean of the small maps.
    """
    return [
        ("count", pa.int64()), ("accuracy", pa.float32()), ("confidence", pa.float32()), ("spread", pa.float32()),
        *_float_columns(MEASURES), *_float_columns(OBJECT_MEASURES), ("mean_map", small_map_type(cells)),
    ]  # fmt: skip


def class_schema(cells: tuple[int, int]) -> pa.Schema:
    """The schema of classes.parquet.

    ``score``: how suspicious the class is; null if there are too few maps to judge. ``alarm``: whether it is a finding,
    which needs a score of at least 1. ``suspect``: the cluster made of the finding's rows; −1 if there is no
    finding, or if it is about the whole class. ``spot_y``, ``spot_x``: the place in the map, 0 to 1, of the pattern of
    relevance that many rows of this class share and few rows of other classes have; ``spot_rows``: how many rows of the
    class have it. ``eigengap``: the
    largest gap among the first eigenvalues of the maps' neighbour graph. ``clusters``: the number of
    clusters, at least 1; if it is 1, clusters.parquet has no lines of the class, and its rows have the cluster −1.
    ``typical``, ``atypical``: the rows whose maps are most and least like others of the class; ``wrong``: the wrong
    predictions with the highest probability. ``cells``: height and width of the small maps.
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
    """The schema of clusters.parquet.

    ``differs``: text that says how it differs from the rest of its class. ``examples``: rows nearest to its mean map.
    """
    return pa.schema(
        [
            ("class", pa.int32()), ("cluster", pa.int32()), *group_schema(cells),
            ("differs", pa.string()), ("examples", pa.list_(pa.int64())),
        ]
    )  # fmt: skip


class Audit(BaseModel):
    """The content of audit.json.

    ``cells``: height and width of the small maps. ``rows``: rows of the store; ``mapped``: rows that have a map;
    ``blank``: rows whose map is zero or not finite. ``alarms``: classes that are findings; ``unjudged``: classes
    without a score, because they or the other classes have too few maps. ``overall``: statistics of all rows that have
    a map.
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
    overall: GroupStatistics  # last, because the mean map is long


def read_audit(out: str, array: str, *tables: str) -> tuple[Audit, list[pa.Table]]:
    """Reads the audit of an array from the store ``out``, and the named tables.

    Raises FileNotFoundError if no audit of the array has finished; InvalidRequestError if it cannot be read.
    """
    store, prefix = open_output(out), audit_folder(array)
    try:
        audit = Audit.model_validate_json(read_object(store, f"{prefix}/{AUDIT_JSON}"))
        contents = [parquet_table(read_object(store, f"{prefix}/{name}")) for name in tables]
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise InvalidRequestError(
            f"{out}/{prefix} cannot be read ({first_line(error)}): run `saliency audit` again."
        ) from error
    return audit, contents


def audit_folder(array: str) -> str:
    """Returns the prefix of an audit's keys in the store."""
    return f"audit/{array}"
