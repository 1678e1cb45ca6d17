"""The problems that ``verify`` finds, printed as they come and counted."""

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
        self._spoke = monotonic()
        self.problems = 0

    def take(self, problems: Iterable[Problem]) -> bool:
        """Whether there were none."""
        before = self.problems
        for problem in problems:
            self.problems += 1
            if self.problems <= MOST_PRINTED:
                print_text(self._console, f"{problem.where}: {problem.what}")
        return self.problems == before

    def progress(self, text: str) -> None:
        if monotonic() - self._spoke > PROGRESS_SECONDS:
            self._spoke = monotonic()
            print_text(self._console, text)

    def end(self, remark: str) -> int:
        """The last line of a store that is damaged."""
        unseen = self.problems - MOST_PRINTED
        more = f" ({unseen:,} of them not printed)" if unseen > 0 else ""
        print_text(self._console, f"damaged: {self.problems:,} problems{more}. {remark}")
        return DAMAGED
