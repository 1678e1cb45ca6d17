"""CSV files that a spreadsheet may open: a text in them is never a formula."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from typing import IO, Any

_FORMULA = re.compile(r"'*(?:\s*[=+\-@＝＋－＠]|[\t\r\n])")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escape_formula(text: str) -> str:
    """``=1+1`` → ``'=1+1``, which a spreadsheet shows as text; numbers stay, and so does what begins otherwise.

    ``plain`` undoes it: what already begins with apostrophes before such a sign gets one more.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def unescape_formula(cell: str) -> str:
    """The text of a cell that ``neutral`` made."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


class FormulaSafeWriter:
    """Writes lines as ``csv.writer`` does, with every text ``neutral``."""

    def __init__(self, file: IO[str]) -> None:
        self._writer = csv.writer(file)

    def write(self, line: Iterable[Any]) -> None:
        self._writer.writerow([escape_formula(cell) if isinstance(cell, str) else cell for cell in line])
