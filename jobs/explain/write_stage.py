"""The write stage of ``explain``: encodes a unit's maps as shards and commits the unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from jobs.explain.unit_records import CommittedUnit, ExplainedUnit
from jobs.store.arrays import encode_shards
from jobs.store.index import count_errors
from jobs.store.run_record import Run
from jobs.store.unit_writer import UnitWriter


class WriteStage:
    """Writes explained units into the store of ``run``."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._writer = UnitWriter(run)

    def __call__(self, unit: ExplainedUnit) -> CommittedUnit:
        statuses = Counter(unit.lines["status"].to_pylist())
        errors = count_errors(unit.lines)
        committed = CommittedUnit(unit.unit, statuses, errors, 0, seconds=unit.seconds, cpu_seconds=unit.cpu_seconds)
        with committed.timing("write"):
            committed.bytes_written = self._writer.write(
                unit.unit,
                self._shards(unit),
                unit.lines,
                software=unit.software,
                micro_batches=unit.micro_batches,
            )
        return committed

    def _shards(self, unit: ExplainedUnit) -> Iterator[tuple[str, bytes]]:
        """Encodes one array at a time, so that the shards of all arrays are never in memory together."""
        for array in self._run.arrays:
            scales = unit.scales.get(array.path)
            yield from encode_shards(self._run, array, unit.unit, unit.maps[array.path], scales).items()
