"""Reads the label of an image as a container has it: a class number, a text, or no label.

Every container (`.cls`, `.json`, CSV, Parquet) is read by `read_label`, so the same label means the same everywhere:

| written | meaning |
|---|---|
| 7, "7", " 7 ", "+7", "007" | number 7 |
| 7.0, "7.0", "7.", decimal 7.00 | number 7: pandas has no integers with gaps |
| 1.5, "1.5" | text: a rating may be a class name |
| an integer that no int64 holds, 1e300 | text, as it is written |
| "cat", "None", "nan", "true", "1_000", "٣" | text: all of these may be class names |
| null, blank text, a float NaN or infinity, true and false, a list, a date | no label |
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

import numpy as np

LONGEST_LABEL = 16 << 10  # characters; a longer text is not a class name, and a listing keeps all labels in memory
_INTEGER = re.compile(r"([+-]?)0*([0-9]{1,19})(?:\.0*)?")
_INT64 = range(-(2**63), 2**63)


def read_label(value: object) -> int | str | None:
    """The class number or text that a cell, a JSON value or the content of a `.cls` file means; None for no label."""
    if isinstance(value, str):
        return _read_text(value)
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int):
        return value if value in _INT64 else _decimal_text(value)
    if isinstance(value, float | np.floating):
        return _read_float(float(value))
    if isinstance(value, Decimal):
        return _read_text(f"{value:f}") if value.is_finite() else None
    return None


def _read_text(text: str) -> int | str | None:
    text = text.strip()
    if len(text) > LONGEST_LABEL:
        return None
    if written := _INTEGER.fullmatch(text):
        number = int(written[1] + written[2])
        return number if number in _INT64 else text
    return printable(text) or None


def _read_float(value: float) -> int | str | None:
    if not math.isfinite(value):
        return None
    if value.is_integer() and abs(value) < 2**63:
        return int(value)
    return repr(value)


def _decimal_text(value: int) -> str | None:
    """The digits of an integer; None if there are more than Python converts."""
    try:
        return str(value)
    except ValueError:
        return None


def printable(text: str) -> str:
    r"""The text with bytes that are not UTF-8 (read by `surrogateescape`) and lone surrogates written as `\xff`.

    A column of strings accepts no others.
    """
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
