"""Escapes texts in CSV files, so that a spreadsheet does not run them as formulas."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from typing import IO, Any

_FORMULA = re.compile(r"'*(?:\s*[=+\-@＝＋－＠]|[\t\r\n])")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escape_formula(text: str) -> str:
    """Returns the text, with an apostrophe in front if a spreadsheet may take it for a formula: ``=1+1`` → ``'=1+1``.
    Numbers such as ``-1`` are not changed.

    A text that begins with apostrophes before a formula gets one more, so that ``unescape_formula`` restores it.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def unescape_formula(cell: str) -> str:
    """Returns the text that ``escape_formula`` changed into the cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


class FormulaSafeWriter:
    """Writes lines as ``csv.writer`` does, with every text escaped."""

    def __init__(self, file: IO[str]) -> None:
        self._writer = csv.writer(file)

    def write(self, line: Iterable[Any]) -> None:
        self._writer.writerow([escape_formula(cell) if isinstance(cell, str) else cell for cell in line])
