"""Reads the records of a CSV file that may be damaged. A damaged line becomes a rejection, and reading continues.

A quotation mark that is never closed would include all following lines, up to the parser's limit. Then only the line
with that mark is rejected, and the following lines are read again.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from typing import TextIO

from jobs.inputs.rejected import RejectedImage

LONGEST_LINE = 16 << 20  # characters
MOST_REREAD = 16 << 20  # characters that may be read again, in addition to as many as were read


def read_records(text: TextIO) -> Iterator[tuple[int, list[str] | RejectedImage]]:
    """The number of each record's first line, from 1, and its cells, or the reason why it has none. Skips blanks."""
    lines = _Lines(text)
    reader = csv.reader(lines)
    while True:
        lines.current.clear()
        first = lines.number + 1
        try:
            cells = next(reader)
            if len(lines.current) > 1:  # only a quoted cell spans several lines, and it must end
                list(csv.reader(lines.current, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            lost = lines.rewind()
            yield first, RejectedImage(f"not CSV ({error}){lost}")
            reader = csv.reader(lines)
            continue
        if cells:
            yield first, cells


class _Lines:
    """The lines of a text, with a maximum length. ``rewind`` returns the last ones to be read again."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._returned: deque[str] = deque()
        self._reread_budget = MOST_REREAD
        self.current: list[str] = []
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else self._text.readline(LONGEST_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        self.current.append(line)
        if len(line) >= LONGEST_LINE:
            self._skip(line)
            raise csv.Error(f"the line is longer than {LONGEST_LINE} characters")
        self._reread_budget += len(line)
        return line

    def _skip(self, line: str) -> None:
        while line and not line.endswith(("\n", "\r")):
            line = self._text.readline(LONGEST_LINE)

    def rewind(self) -> str:
        """Returns all lines of the current record but the first. If too much was read again, describes what is lost."""
        behind = self.current[1:]
        self._reread_budget -= 2 * sum(map(len, behind))
        if self._reread_budget < 0:
            return f" and with it the {len(behind)} lines behind it"
        self.number -= len(behind)
        self._returned.extendleft(reversed(behind))
        return ""
