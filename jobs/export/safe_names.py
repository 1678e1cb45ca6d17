"""Makes file names of sample ids and array names, which may hold any text.

A name is unique and cannot lead out of the directory.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from jobs.store.run_record import ArraySpec

MAX_ID_LENGTH = 60  # characters of a sample id: with the array's name, a file name stays below 255 bytes
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def sample_key(row: int, sample_id: str) -> str:
    """Returns ``00000017_ant_003_png``, for example: unique by its row, without dots (they end a WebDataset key)."""
    return f"{row:08d}_{_UNSAFE.sub('_', sample_id)[-MAX_ID_LENGTH:]}"


def array_name(array: ArraySpec) -> str:
    """Returns ``predicted__gradient``, for example, escaped in case run.json was tampered with."""
    return quote(array.column, safe="+")
