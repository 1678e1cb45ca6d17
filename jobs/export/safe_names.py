"""Names of files out of names that others gave: no sample and no array can lead out of the folder, or meet another."""

from __future__ import annotations

import re
from urllib.parse import quote

from jobs.store.run_record import ArraySpec

MAX_ID_LENGTH = 60  # characters of a sample's own name: with arrays' names a file's must stay below 255 bytes
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def sample_key(row: int, sample_id: str) -> str:
    """``00000017_ant_003_png``: unique by its row; without dots (WebDataset cuts a key there) and slashes."""
    return f"{row:08d}_{_UNSAFE.sub('_', sample_id)[-MAX_ID_LENGTH:]}"


def array_name(array: ArraySpec) -> str:
    """``predicted__gradient``: the array's prefix in the index. Escaped, should run.json have been tampered with."""
    return quote(array.column, safe="+")
