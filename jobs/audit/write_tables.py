"""The tables that an audit leaves: of rows, in streams; of classes by rank, and of their clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from jobs.audit.audit_schema import CLASSES, CLUSTERS, ROWS, class_schema, cluster_schema, folder, row_schema
from jobs.audit.examine_stage import ExaminedClass
from jobs.audit.unit_measures import FACTS, FIGURES, integers, read_units
from jobs.storage.object_store import put
from jobs.storage.parquet import HashingWriter, parquet_bytes


def put_tables(
    store: ObjectStore, array: str, units: Sequence[int], found: Sequence[ExaminedClass], cells: tuple[int, int]
) -> list[dict[str, Any]]:
    """Ranks the classes, and puts the three tables → the classes' lines, in the order of their rank."""
    # Alarms first; ties in the order of the classes.
    ranked = sorted(found, key=lambda one: (not one.examined.line["alarm"], -(one.examined.line["score"] or 0.0)))
    lines = [{"rank": rank, **one.examined.line} for rank, one in enumerate(ranked, start=1)]
    clusters = [cluster for one in ranked for cluster in one.examined.clusters]
    _put_rows(store, array, units, found)
    for name, found_lines, schema in (
        (CLUSTERS, clusters, cluster_schema(cells)),
        (CLASSES, lines, class_schema(cells)),
    ):
        put(store, f"{folder(array)}/{name}", parquet_bytes(pa.Table.from_pylist(found_lines, schema)))
    return lines


def _put_rows(store: ObjectStore, array: str, units: Sequence[int], found: Sequence[ExaminedClass]) -> None:
    """The units' parts without the small maps, with what the classes' examination adds, one unit after the other."""
    rows = np.concatenate([one.rows for one in found])
    order = np.argsort(rows)
    rows = rows[order]
    cluster = np.concatenate([one.examined.cluster for one in found])[order]
    added = np.concatenate([np.column_stack([one.examined.outlier, one.examined.embedding]) for one in found])[order]
    schema = row_schema()
    sink = HashingWriter(store, f"{folder(array)}/{ROWS}")
    with pq.ParquetWriter(
        pa.PythonFile(sink, mode="w"), schema, compression="zstd", write_page_checksum=True
    ) as writer:
        for part in read_units(store, array, units, [*FACTS, *FIGURES]):
            places = np.searchsorted(rows, integers(part["row"]))  # every row is of a class
            part = part.append_column("cluster", pa.array(cluster[places]))
            for column, name in enumerate(("outlier", "embed_x", "embed_y")):
                values = added[places, column]
                part = part.append_column(name, pa.array(values, mask=np.isnan(values)))
            writer.write_table(part.select(schema.names).cast(schema))
    sink.finish()
