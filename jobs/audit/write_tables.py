"""Writes the tables of an audit: rows, unit by unit; classes, by rank; and their clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from jobs.audit.audit_schema import CLASSES, CLUSTERS, ROWS, audit_folder, class_schema, cluster_schema, row_schema
from jobs.audit.examine_stage import ExaminedClass
from jobs.audit.unit_measures import INDEX_COLUMNS, MEASURE_COLUMNS, read_units, to_integers
from jobs.storage.object_store import put
from jobs.storage.parquet import HashingWriter, parquet_bytes


def put_tables(
    store: ObjectStore, array: str, units: Sequence[int], classes: Sequence[ExaminedClass], cells: tuple[int, int]
) -> list[dict[str, Any]]:
    """Ranks the classes, alarms first, and writes the three tables. Returns the classes' lines by rank."""
    # The sort is stable: equal scores stay in the order of the class numbers.
    examinations = sorted(
        (examined.examination for examined in classes),
        key=lambda examination: (not examination.line["alarm"], -(examination.line["score"] or 0.0)),
    )
    lines = [{"rank": rank, **examination.line} for rank, examination in enumerate(examinations, start=1)]
    clusters = [cluster for examination in examinations for cluster in examination.clusters]
    _write_rows(store, array, units, classes)
    for name, table_lines, schema in (
        (CLUSTERS, clusters, cluster_schema(cells)),
        (CLASSES, lines, class_schema(cells)),
    ):
        put(store, f"{audit_folder(array)}/{name}", parquet_bytes(pa.Table.from_pylist(table_lines, schema)))
    return lines


def _write_rows(store: ObjectStore, array: str, units: Sequence[int], classes: Sequence[ExaminedClass]) -> None:
    """Writes rows.parquet: the units' measures without the small maps, and the results of the examination."""
    rows = np.concatenate([examined.rows for examined in classes])
    order = np.argsort(rows)
    rows = rows[order]
    examinations = [examined.examination for examined in classes]
    cluster = np.concatenate([examination.cluster for examination in examinations])[order]
    results = [np.column_stack([examination.outlier, examination.embedding]) for examination in examinations]
    added = np.concatenate(results)[order]
    schema = row_schema()
    file = HashingWriter(store, f"{audit_folder(array)}/{ROWS}")
    with pq.ParquetWriter(
        pa.PythonFile(file, mode="w"), schema, compression="zstd", write_page_checksum=True
    ) as writer:
        for part in read_units(store, array, units, [*INDEX_COLUMNS, *MEASURE_COLUMNS]):
            positions = np.searchsorted(rows, to_integers(part["row"]))  # every row belongs to a class
            part = part.append_column("cluster", pa.array(cluster[positions]))
            for column, name in enumerate(("outlier", "embed_x", "embed_y")):
                values = added[positions, column]
                part = part.append_column(name, pa.array(values, mask=np.isnan(values)))
            writer.write_table(part.select(schema.names).cast(schema))
    file.finish()
