"""The first stage of an audit: computes measures and small maps of a unit's maps and writes them to the store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.audit.object_masks import ObjectTable, measure_on_objects
from jobs.audit.unit_measures import INDEX_COLUMNS, encode_unit, measures_key, read_provenance
from jobs.storage.object_store import open_output, put, read_object
from jobs.store.index import OK, load_part, stored_part
from jobs.store.run_record import Run
from jobs.store.store_reader import open_store
from jobs.util.digests import sha256_of
from saliency_core.map_measures import CORNER, FRAME, GRID, Floats, measure, shares, shrink

MAPS_AT_ONCE = 64  # maps that are measured together: 13 MB at 224 × 224, and a few times that for intermediates


@dataclass(frozen=True)
class MeasuredUnit:
    """The number of rows of a unit, and of those with a map. ``computed``: False if an earlier audit measured it."""

    rows: int
    mapped: int
    computed: bool


class MeasureStage:
    """Measures a unit, unless an earlier audit has measured the same maps in the same way."""

    def __init__(self, out: str, array: str, objects: str | None) -> None:
        self._reader = open_store(out)
        self._store = open_output(out)
        self._spec = self._reader.array(array).spec
        self._objects = ObjectTable(objects) if objects else None

    def __call__(self, unit: int) -> MeasuredUnit:
        array, run = self._spec.path, self._reader.run
        committed = stored_part(self._store, unit)
        provenance: dict[str, object] = {
            "commit": sha256_of(committed),
            "objects": self._objects.digest if self._objects else None,
            "how": [GRID, FRAME, CORNER, *INDEX_COLUMNS],
        }
        lines, _ = load_part(committed, unit)
        lines = lines.filter(pc.equal(lines[f"{self._spec.target}__status"], OK))
        # The digest of --objects covers the paths of masks, not their content, which may have changed.
        compute = (self._objects is not None and self._objects.has_masks) or not self._is_measured(
            array, unit, provenance
        )
        if compute:
            columns = _index_columns(lines, run, self._spec.target)
            rows = np.asarray(columns["row"], np.int64)
            measures: dict[str, list[Floats]] = {}
            # At least one piece, so that a unit without maps gets its columns, too.
            pieces = [rows[start : start + MAPS_AT_ONCE] for start in range(0, max(1, len(rows)), MAPS_AT_ONCE)]
            small: list[Floats] = []
            for piece in pieces:
                parts = shares(self._reader.maps(array, piece))
                measured = measure(parts)
                if self._objects is not None:
                    measured |= measure_on_objects(
                        parts, self._objects, lines.slice(len(small) * MAPS_AT_ONCE, MAPS_AT_ONCE), run
                    )
                for name, values in measured.items():
                    measures.setdefault(name, []).append(values)
                small.append(shrink(parts))
            joined = {name: np.concatenate(values) for name, values in measures.items()}
            data = encode_unit(columns, joined, np.concatenate(small), provenance=provenance)
            put(self._store, measures_key(array, unit), data)
        return MeasuredUnit(len(run.unit_rows(unit)), len(lines), compute)

    def _is_measured(self, array: str, unit: int, provenance: dict[str, object]) -> bool:
        try:
            stored = read_provenance(read_object(self._store, measures_key(array, unit)))
        except FileNotFoundError:
            return False
        return {**stored, "cells": None} == {**provenance, "cells": None}


def _index_columns(lines: pa.Table, run: Run, target: str) -> pa.Table:
    """Returns the index's columns that the audit needs, under the audit's names."""
    nulls = pa.nulls(len(lines), pa.int32())
    explained = lines[f"{target}__class"]
    prediction = run.prediction
    predicted = lines[f"{prediction}__class"] if prediction else nulls
    label = lines["label"]
    return pa.table(
        {
            "row": lines["row"],
            "class": pc.fill_null(pc.coalesce(explained, label), -1),
            "label": label,
            "predicted": predicted,
            "correct": pc.equal(label, predicted),
            "probability": lines[f"{target}__probability"],
            "sure": lines[f"{prediction}__probability"] if prediction else nulls.cast(pa.float32()),
        }
    )
