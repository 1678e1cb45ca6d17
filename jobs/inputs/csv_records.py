"""The records of a CSV file that may be damaged: a line that is no CSV is told, and reading goes on after it.

A quotation mark that is never closed would swallow the lines behind it up to the parser's limit; then the line that it
stands in is the damaged one, and those behind it are read again by themselves.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from typing import TextIO

from jobs.inputs.rejected import RejectedImage

LONGEST_LINE = 16 << 20  # characters
MOST_REREAD = 16 << 20  # characters that are read again at least, and otherwise as many as were read


def read_records(text: TextIO) -> Iterator[tuple[int, list[str] | RejectedImage]]:
    """The number of each record's first line, from 1, and its cells, or why they cannot be told. Skips blank lines."""
    lines = _Lines(text)
    reader = csv.reader(lines)
    while True:
        lines.taken.clear()
        first = lines.number + 1
        try:
            cells = next(reader)
            if len(lines.taken) > 1:  # over several lines only a quoted cell goes, which must then end
                list(csv.reader(lines.taken, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            more = lines.go_back()
            yield first, RejectedImage(f"not CSV ({error}){more}")
            reader = csv.reader(lines)
            continue
        if cells:
            yield first, cells


class _Lines:
    """The lines of a text, bounded, of which the last ones can be had again."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._again: deque[str] = deque()
        self._room = MOST_REREAD
        self.taken: list[str] = []
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._text.readline(LONGEST_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        self.taken.append(line)
        if len(line) >= LONGEST_LINE:
            self._skip(line)
            raise csv.Error(f"the line is longer than {LONGEST_LINE} characters")
        self._room += len(line)
        return line

    def _skip(self, line: str) -> None:
        while line and not line.endswith(("\n", "\r")):
            line = self._text.readline(LONGEST_LINE)

    def go_back(self) -> str:
        """Gives all taken lines but the first again; when too much was given again already, says what is lost."""
        behind = self.taken[1:]
        self._room -= 2 * sum(map(len, behind))
        if self._room < 0:
            return f" and with it the {len(behind)} lines behind it"
        self.number -= len(behind)
        self._again.extendleft(reversed(behind))
        return ""
