"""``verify --recompute``: explains some rows again, with the same stages, and compares them with the stored maps.

It finds stores that agree with themselves and are wrong nevertheless.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from obstore.store import ObjectStore

from jobs.explain.decode_stage import DecodeStage
from jobs.explain.unit_records import ExplainedUnit
from jobs.storage.object_store import read_object
from jobs.store.arrays import decode_shard, unscale_maps
from jobs.store.index import OK, QUARANTINED, read_part
from jobs.store.manifest import Manifest, without_size_and_etag
from jobs.store.run_record import ArraySpec, Run
from jobs.util.failure_reasons import reword_for_explained
from jobs.verify.checked_objects import Problem, redo_remedy, unit_objects
from saliency_core.errors import InvalidRequestError

# Largest relative L2 between a map and the stored one that counts as the same explanation. Other processors change the
# last bits of float32, and more bits of the shorter formats; maps of different images differ by about 1.4.
ALLOWED = {"float32": 0.1, "tf32": 0.2, "bf16": 0.5, "fp16": 0.5}

StoredMaps = tuple[NDArray[np.generic], NDArray[np.float32] | None]
"""A unit's maps [n, …] as they are stored, and the scales [n] of scaled arrays."""


class RowSample:
    """Draws ``size`` random rows among those with maps, each with equal probability, in one pass over the index."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._random = random.Random(seed)  # noqa: S311 - not for security
        self._heap: list[tuple[float, int]] = []

    def add(self, lines: pa.Table) -> None:
        for row, status in zip(lines["row"].to_pylist(), lines["status"].to_pylist(), strict=True):
            if status != QUARANTINED and self._size:
                heapq.heappush(self._heap, (self._random.random(), row))
                if len(self._heap) > self._size:
                    heapq.heappop(self._heap)

    @property
    def rows(self) -> list[int]:
        return sorted(row for _, row in self._heap)


class Recomputation:
    """Explains rows again with a replica of the model and compares them with the store. Raises InvalidRequestError if
    the run's model cannot be built, or this machine has no device of the run's kind.

    ``notes``: observations that are not damage of the store.
    """

    def __init__(self, store: ObjectStore, run: Run) -> None:
        from jobs.explain.explain_stage import ExplainStage  # imports torch, which is needed only here

        _refuse_other_device(run)
        self._store = store
        self._run = run
        self._manifest = Manifest(store)
        # Software may differ from the store's: the differences are reported with each row.
        self._decode = DecodeStage(run, any_software=True)
        self._explain = ExplainStage(run, any_software=True)
        self._unit, self._maps = -1, dict[str, StoredMaps]()
        self._same, self._largest = Counter[bool](), 0.0
        self.notes: list[str] = []

    def check(self, row: int) -> Iterator[Problem]:
        """Explains the row again, in the micro-batch that it had, and compares. Call it in row order, so that each
        shard is read once."""
        run, unit = self._run, row // self._run.unit_size
        first = run.unit_rows(unit).start
        # Aligned as in the run, because the other rows of a batch may change the last bits.
        start = (row - first) // run.micro_batch * run.micro_batch
        lines, commit = read_part(self._store, unit)
        line = lines.slice(row - first, 1).to_pylist()[0]
        planned = self._manifest.unit_lines(unit).slice(start, run.micro_batch)
        decoded = self._decode.decode_lines(unit, without_size_and_etag(planned))
        position = row - first - start
        now = decoded.lines.slice(position, 1).to_pylist()[0]
        if now["status"] != OK or now["sha256"] != line["sha256"]:
            why = reword_for_explained(
                now["error"] or "other bytes: put the former image back, then run `saliency retry`"
            )
            self.notes.append(f"row {row} was not compared: its image has changed ({why})")
            return
        if commit.micro_batches:
            self.notes.append(
                f"row {row}: unit {unit} ran out of memory, so its smaller micro-batches may differ in the last bits"
            )
        explained = self._explain(decoded)
        maker = run.find_software(commit.software)
        differences = (
            [f"made by software {commit.software}"] if maker is None else maker.differences(self._explain.software)
        )
        troubles, distance = self._differences(line, explained, position, stored_position=row - first)
        if troubles and differences:  # either the store or the software may be the cause
            self.notes += [
                f"row {row}: {trouble}; but it was made with other software ({'; '.join(differences)}), so the row "
                "proves nothing"
                for trouble in troubles
            ]
            return
        self._same[not distance] += 1
        self._largest = max(self._largest, distance)
        for trouble in troubles:
            yield Problem(
                f"row {row}", f"{trouble}, so the store does not hold what this model explains: {redo_remedy(unit)}"
            )

    @property
    def compared(self) -> int:
        """The number of rows that were explained again and compared. A row that differs does not count if other
        software made it."""
        return self._same.total()

    def summary(self, requested: int) -> str:
        """A line with how many of the ``requested`` rows were compared, and how much they differ."""
        text = f"{self.compared} rows explained again, {self._same[True]} of them to the bit"
        if self.compared < requested:
            text = f"of {requested} requested rows, {text}"
        return text + (f", the others within a relative L2 of {self._largest:.1e}" if self._same[False] else "")

    def _differences(
        self, line: dict[str, object], explained: ExplainedUnit, position: int, *, stored_position: int
    ) -> tuple[list[str], float]:
        """The differences that are too large, and the largest relative L2 of the row's maps (0.0 if all are equal)."""
        run, troubles, largest = self._run, list[str](), 0.0
        now = explained.lines.slice(position, 1).to_pylist()[0]
        for target in run.target_specs:
            for name in (f"{target}__status", f"{target}__class"):
                if now[name] != line[name]:
                    troubles.append(f"{name} is {line[name]!r} in the index and {now[name]!r} when explained again")
        for array in run.arrays:
            if line[f"{array.target}__status"] != OK or now[f"{array.target}__status"] != OK:
                continue
            old = _row(*self._stored(explained.unit, array), stored_position)
            new = _row(explained.maps[array.path], explained.scales.get(array.path), position)
            distance, norm = float(np.linalg.norm(old - new)), float(np.linalg.norm(new))
            relative = distance / norm if norm else np.inf
            if distance:
                largest = max(largest, relative)
            if distance > ALLOWED[run.config.precision] * norm + _step(array, explained, position):
                troubles.append(f"map {array.path} differs when explained again (relative L2 {relative:.2g})")
        return troubles, largest

    def _stored(self, unit: int, array: ArraySpec) -> StoredMaps:
        if self._unit != unit:
            self._unit, self._maps = unit, {}
        if array.path not in self._maps:
            maps, scales = array.path, array.scale_path
            self._maps[array.path] = (
                self._decode_shard(unit, maps),
                self._decode_shard(unit, scales) if array.scaled else None,
            )
        return self._maps[array.path]

    def _decode_shard(self, unit: int, path: str) -> NDArray[Any]:
        return decode_shard(self._run, path, unit, read_object(self._store, unit_objects(self._run, unit)[path]))


def _row(stored: NDArray[np.generic], scales: NDArray[np.float32] | None, position: int) -> NDArray[np.float64]:
    row = slice(position, position + 1)
    maps = stored[row] if scales is None else unscale_maps(stored[row], scales[row])
    return maps.astype(np.float64)


def _step(array: ArraySpec, explained: ExplainedUnit, position: int) -> float:
    """The L2 that rounding to 8 bits may add: values at a rounding boundary fall to either side."""
    if array.dtype not in ("uint8", "int8"):
        return 0.0
    return float(explained.scales[array.path][position]) * float(np.sqrt(np.prod(array.item_shape)))


def _refuse_other_device(run: Run) -> None:
    import torch

    if run.device == "cuda" and not torch.cuda.is_available():
        raise InvalidRequestError(
            "--recompute: the store was made on a GPU and this machine has none, so maps would differ. Omit it."
        )
