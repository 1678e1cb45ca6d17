"""``verify --recompute``: some rows are explained again, by the same stages, and held against what is stored.

Nothing else can find a store that agrees with itself and is wrong all the same.
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
from jobs.util.failure_reasons import for_explained
from jobs.verify.checked_objects import Problem, redo, unit_objects
from saliency_core.errors import InvalidRequestError

# Relative L2 between the map and the one stored, beyond which it is not the same explanation. Other processors move
# float32's last bits, and far more of the shorter formats'; maps of different images differ by about 1.4.
ALLOWED = {"float32": 0.1, "tf32": 0.2, "bf16": 0.5, "fp16": 0.5}

Stored = tuple[NDArray[np.generic], NDArray[np.float32] | None]
"""What is stored of a unit's maps [n, …], and the scales [n] of scaled arrays."""


class Sample:
    """``size`` random rows of those with maps, each as likely as any other, from one pass over the index."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._random = random.Random(seed)  # noqa: S311 - nobody must be kept from guessing
        self._kept: list[tuple[float, int]] = []

    def add(self, lines: pa.Table) -> None:
        for row, status in zip(lines["row"].to_pylist(), lines["status"].to_pylist(), strict=True):
            if status != QUARANTINED and self._size:
                heapq.heappush(self._kept, (self._random.random(), row))
                if len(self._kept) > self._size:
                    heapq.heappop(self._kept)

    @property
    def rows(self) -> list[int]:
        return sorted(row for _, row in self._kept)


class Recompute:
    """Holds a replica of the model. Raises InvalidRequestError where the run's model, or its kind of device, cannot be
    had here.

    ``notes``: what was seen that is no damage of the store; ``summary``: of the rows that could be compared.
    """

    def __init__(self, store: ObjectStore, run: Run) -> None:
        from jobs.explain.explain_stage import ExplainStage  # with it comes torch, which nothing else here needs

        _refuse_other_device(run)
        self._store = store
        self._run = run
        self._manifest = Manifest(store)
        # Other software than the store's is no reason to refuse here: what differs is said beside each row.
        self._decode = DecodeStage(run, any_software=True)
        self._explain = ExplainStage(run, any_software=True)
        self._unit, self._maps = -1, dict[str, Stored]()
        self._same, self._largest = Counter[bool](), 0.0
        self.notes: list[str] = []

    def check(self, row: int) -> Iterator[Problem]:
        """Explains the row again, within the micro-batch that it had, and compares. Rows are best given in order."""
        run, unit = self._run, row // self._run.unit_size
        first = run.unit_rows(unit).start
        # Aligned as the run had it: what else is in a batch may move the last bits.
        start = (row - first) // run.micro_batch * run.micro_batch
        lines, commit = read_part(self._store, unit)
        line = lines.slice(row - first, 1).to_pylist()[0]
        planned = self._manifest.unit_lines(unit).slice(start, run.micro_batch)
        decoded = self._decode.lines(unit, without_size_and_etag(planned))
        position = row - first - start
        now = decoded.lines.slice(position, 1).to_pylist()[0]
        if now["status"] != OK or now["sha256"] != line["sha256"]:
            why = for_explained(now["error"] or "other bytes: put the former image back, then run `saliency retry`")
            self.notes.append(f"row {row} was not compared: its image is not what it was ({why})")
            return
        if commit.micro_batches:
            self.notes.append(
                f"row {row}: unit {unit} ran out of memory, its smaller micro-batches may give other bits"
            )
        explained = self._explain(decoded)
        maker = run.find_software(commit.software)
        others = [f"made by software {commit.software}"] if maker is None else maker.differences(self._explain.software)
        troubles, distance = self._differences(line, explained, position, stored_position=row - first)
        if troubles and others:  # the store's fault or the software's: the row proves neither
            self.notes += [
                f"row {row}: {trouble}; but it was made with other software ({'; '.join(others)}), so the row proves "
                "nothing"
                for trouble in troubles
            ]
            return
        self._same[not distance] += 1
        self._largest = max(self._largest, distance)
        for trouble in troubles:
            yield Problem(f"row {row}", f"{trouble}, so the store does not hold what this model explains: {redo(unit)}")

    @property
    def compared(self) -> int:
        """How many rows were explained again and held against the store, without those that prove nothing: they differ,
        and other software may be why."""
        return self._same.total()

    def summary(self, asked: int) -> str:
        """How many of the rows ``asked`` for were compared, and how near they came."""
        told = f"{self.compared} rows explained again, {self._same[True]} of them to the bit"
        if self.compared < asked:
            told = f"of {asked} rows asked for, {told}"
        return told + (f", the others within a relative L2 of {self._largest:.1e}" if self._same[False] else "")

    def _differences(
        self, line: dict[str, object], explained: ExplainedUnit, position: int, *, stored_position: int
    ) -> tuple[list[str], float]:
        """What differs beyond what may, and the largest relative L2 of the row's maps: 0.0 if all are the same."""
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
                troubles.append(f"map {array.path} is another when explained again (relative L2 {relative:.2g})")
        return troubles, largest

    def _stored(self, unit: int, array: ArraySpec) -> Stored:
        if self._unit != unit:
            self._unit, self._maps = unit, {}
        if array.path not in self._maps:
            maps, scales = array.path, f"{array.path}_scale"
            self._maps[array.path] = self._decoded(unit, maps), self._decoded(unit, scales) if array.scaled else None
        return self._maps[array.path]

    def _decoded(self, unit: int, path: str) -> NDArray[Any]:
        return decode_shard(self._run, path, unit, read_object(self._store, unit_objects(self._run, unit)[path]))


def _row(stored: NDArray[np.generic], scales: NDArray[np.float32] | None, position: int) -> NDArray[np.float64]:
    one = slice(position, position + 1)
    maps = stored[one] if scales is None else unscale_maps(stored[one], scales[one])
    return maps.astype(np.float64)


def _step(array: ArraySpec, explained: ExplainedUnit, position: int) -> float:
    """What one step of an 8-bit map may add: values at a rounding boundary fall to either side."""
    if array.dtype not in ("uint8", "int8"):
        return 0.0
    return float(explained.scales[array.path][position]) * float(np.sqrt(np.prod(array.item_shape)))


def _refuse_other_device(run: Run) -> None:
    import torch

    if run.device == "cuda" and not torch.cuda.is_available():
        raise InvalidRequestError(
            "--recompute: the store was made on a GPU and there is none here, so maps would differ. Leave it out."
        )
