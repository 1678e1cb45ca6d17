"""Prints and counts the problems that ``verify`` finds."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

from rich.console import Console

from jobs.util.console import print_text
from jobs.util.exit_codes import DAMAGED
from jobs.verify.checked_objects import Problem

MOST_PRINTED = 50
PROGRESS_SECONDS = 15.0


class ProblemReport:
    """Prints problems as they are found, up to a number, and counts them all."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = monotonic()
        self.problems = 0

    def add(self, problems: Iterable[Problem]) -> bool:
        """Prints and counts the problems → whether there were none."""
        before = self.problems
        for problem in problems:
            self.problems += 1
            if self.problems <= MOST_PRINTED:
                print_text(self._console, f"{problem.where}: {problem.what}")
        return self.problems == before

    def progress(self, text: str) -> None:
        """Prints ``text`` if the last progress was printed long enough ago."""
        if monotonic() - self._last > PROGRESS_SECONDS:
            self._last = monotonic()
            print_text(self._console, text)

    def end(self, remark: str) -> int:
        """Prints the last line of a damaged store → the exit code."""
        unprinted = self.problems - MOST_PRINTED
        more = f" ({unprinted:,} of them not printed)" if unprinted > 0 else ""
        print_text(self._console, f"damaged: {self.problems:,} problems{more}. {remark}")
        return DAMAGED
