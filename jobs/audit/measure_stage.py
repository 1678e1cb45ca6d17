"""The first stage of an audit: a unit's maps → measures and small maps, beside the store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.audit.object_masks import ObjectsOf, on_objects
from jobs.audit.unit_measures import FACTS, encode, made_from, part_key
from jobs.storage.object_store import open_output, put, read_object
from jobs.store.index import OK, load_part, stored_part
from jobs.store.run_record import Run
from jobs.store.store_reader import open_store
from saliency_core.map_measures import CORNER, FRAME, GRID, Floats, measure, shares, shrink

AT_ONCE = 64  # maps in memory: 13 MB at 224 × 224, and a few times that on the way


@dataclass(frozen=True)
class MeasuredUnit:
    """``rows``: of the unit; ``mapped``: those that have a map. ``made``: now, or by an earlier audit."""

    rows: int
    mapped: int
    made: bool


class MeasureStage:
    """Measures a unit, unless that was done of these very maps before."""

    def __init__(self, out: str, array: str, objects: str | None) -> None:
        self._reader = open_store(out)
        self._store = open_output(out)
        self._spec = self._reader.array(array).spec
        self._objects = ObjectsOf(objects) if objects else None

    def __call__(self, unit: int) -> MeasuredUnit:
        array, run = self._spec.path, self._reader.run
        committed = stored_part(self._store, unit)
        of: dict[str, object] = {
            "commit": hashlib.sha256(committed).hexdigest(),
            "objects": self._objects.digest if self._objects else None,
            "how": [GRID, FRAME, CORNER, *FACTS],
        }
        lines, _ = load_part(committed, unit)
        lines = lines.filter(pc.equal(lines[f"{self._spec.target}__status"], OK))
        # Of masks only the paths are known: what they hold may be new.
        made = (self._objects is not None and self._objects.masks) or not self._is_there(array, unit, of)
        if made:
            facts = _facts(lines, run, self._spec.target)
            rows = np.asarray(facts["row"], np.int64)
            figures: dict[str, list[Floats]] = {}
            # At least one, for the columns.
            pieces = [rows[start : start + AT_ONCE] for start in range(0, max(1, len(rows)), AT_ONCE)]
            small: list[Floats] = []
            for piece in pieces:
                parts = shares(self._reader.maps(array, piece))
                measured = measure(parts)
                if self._objects is not None:
                    measured |= on_objects(parts, self._objects, lines.slice(len(small) * AT_ONCE, AT_ONCE), run)
                for name, values in measured.items():
                    figures.setdefault(name, []).append(values)
                small.append(shrink(parts))
            whole = {name: np.concatenate(values) for name, values in figures.items()}
            put(self._store, part_key(array, unit), encode(facts, whole, np.concatenate(small), of=of))
        return MeasuredUnit(len(run.unit_rows(unit)), len(lines), made)

    def _is_there(self, array: str, unit: int, of: dict[str, object]) -> bool:
        try:
            found = made_from(read_object(self._store, part_key(array, unit)))
        except FileNotFoundError:
            return False
        return {**found, "cells": None} == {**of, "cells": None}


def _facts(lines: pa.Table, run: Run, target: str) -> pa.Table:
    """What the index knows of each row, under the audit's names."""
    nothing = pa.nulls(len(lines), pa.int32())
    explained = lines[f"{target}__class"]
    told = run.prediction
    predicted = lines[f"{told}__class"] if told else nothing
    label = lines["label"]
    return pa.table(
        {
            "row": lines["row"],
            "class": pc.fill_null(pc.coalesce(explained, label), -1),
            "label": label,
            "predicted": predicted,
            "correct": pc.equal(label, predicted),
            "probability": lines[f"{target}__probability"],
            "sure": lines[f"{told}__probability"] if told else nothing.cast(pa.float32()),
        }
    )
