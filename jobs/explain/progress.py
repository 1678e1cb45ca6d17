"""The progress of a running job: rows committed, rate, time to go, failures, and the busiest stage."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jobs.explain.unit_records import CommittedUnit
from jobs.store.index import OK, PARTIAL, QUARANTINED, add_errors
from jobs.util.console import print_text
from jobs.util.formatting import duration

STAGES = ("decode", "explain", "write")
PLAIN_SECONDS = 10.0  # between the lines that are printed if the output is no terminal


class Meter:
    """Counts the rows and times of this session. ``rows``: how many are committed if the session succeeds; ``of``: how
    many the store has, which is more with --limit. ``slots``: how many records each stage can process at once."""

    def __init__(self, *, rows: int, of: int, done_before: int, pending: int, slots: dict[str, float]) -> None:
        self.rows = rows
        self.of = of
        self.done_before = done_before
        self.pending = pending
        self.done = 0
        self.statuses: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.cpu_seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.bytes_written = 0
        self.set_up: list[float] = []
        self._slots = slots
        self._started = monotonic()
        self._first: float | None = None
        self._working_since = self._started

    def add(self, unit: CommittedUnit) -> None:
        """Counts a committed unit."""
        n = unit.statuses.total()
        if self._first is None:
            self._first = monotonic()
            # The rate counts from the start of the first unit, after workers have started and models are loaded.
            self._working_since = self._first - unit.seconds["explain"] - unit.seconds["write"]
        self.done += n
        self.statuses += unit.statuses
        add_errors(self.errors, unit.errors)
        self.bytes_written += unit.bytes_written
        if unit.seconds.get("set up"):
            self.set_up.append(unit.seconds["set up"])
        for stage in STAGES:
            self.seconds[stage] += unit.seconds[stage]
            self.cpu_seconds[stage] += unit.cpu_seconds[stage]

    @property
    def elapsed(self) -> float:
        """Seconds since the stages were started."""
        return monotonic() - self._started

    @property
    def first_commit(self) -> float | None:
        """Seconds from the start of the stages to the first commit."""
        return None if self._first is None else self._first - self._started

    @property
    def rate(self) -> float | None:
        """Rows per second without start-up; None before the first commit."""
        return self.done / (monotonic() - self._working_since) if self.done else None

    @property
    def eta(self) -> float | None:
        """Seconds to go at the present rate; None before the first commit."""
        return None if self.rate is None else (self.pending - self.done) / self.rate

    def bottleneck(self) -> tuple[str, float] | None:
        """The busiest stage, and the share of its slots' time that it worked; None before the first commit."""
        if self.first_commit is None:
            return None
        busy = {stage: self.seconds[stage] / (self._slots[stage] * self.elapsed) for stage in STAGES}
        stage = max(busy, key=lambda name: busy[name])
        return stage, min(1.0, busy[stage])

    def line(self) -> str:
        """The progress in one line."""
        parts = [f"{self.done_before + self.done:,} of {self.rows:,} rows committed"]
        if self.rows < self.of:
            parts[0] += f" (--limit, of {self.of:,})"
        if self.rate is not None and self.eta is not None:
            parts += [f"{self.rate:.1f}/s", f"{duration(self.eta)} to go"]
        bad = self.statuses[QUARANTINED]
        if bad:
            parts.append(f"{bad:,} quarantined")
        if self.statuses[PARTIAL]:
            parts.append(f"{self.statuses[PARTIAL]:,} partial")
        bottleneck = self.bottleneck()
        if bottleneck is not None:
            parts.append(f"busiest: {bottleneck[0]} {bottleneck[1]:.0%}")
        return " · ".join(parts)

    def figures(self) -> dict[str, object]:
        """The figures that run.json records."""
        return {
            "rows": self.done,
            "seconds": round(self.elapsed, 3),
            "seconds_to_first_commit": None if self.first_commit is None else round(self.first_commit, 3),
            "rows_per_second_without_start": None if self.rate is None else round(self.rate, 3),
            "model_load_seconds": [round(seconds, 3) for seconds in self.set_up],
            "stage_seconds": {stage: round(self.seconds[stage], 3) for stage in STAGES},
            "stage_cpu_seconds": {stage: round(self.cpu_seconds[stage], 3) for stage in STAGES},
            "bytes_written": self.bytes_written,
            "ok": self.statuses[OK],
            "partial": self.statuses[PARTIAL],
            "quarantined": self.statuses[QUARANTINED],
        }


class ProgressFigures(Protocol):
    """What a display needs: rows ``done`` in this session, ``done_before`` in earlier ones, and a ``line`` of text."""

    rows: int
    done_before: int
    done: int

    def line(self) -> str: ...


class Display:
    """Shows a bar on a terminal; otherwise prints a line every ``PLAIN_SECONDS`` and one at the end."""

    def __init__(self, meter: ProgressFigures, console: Console, *, at_first: str = "starting workers") -> None:
        self._meter = meter
        self._console = console
        self._last = monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(BarColumn(), TextColumn("{task.description}", markup=False), console=console)
            self._task = self._bar.add_task(at_first, total=meter.rows, completed=meter.done_before)

    def __enter__(self) -> Display:
        if self._bar:
            self._bar.start()
        return self

    def update(self) -> None:
        """Shows the meter's figures."""
        if self._bar:
            self._bar.update(
                self._task,
                completed=self._meter.done_before + self._meter.done,
                description=self._meter.line(),
            )
        elif monotonic() - self._last >= PLAIN_SECONDS:
            self._last = monotonic()
            print_text(self._console, self._meter.line())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        else:
            print_text(self._console, self._meter.line())
