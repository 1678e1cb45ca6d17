"""Sample ids of a list made unique: the second and later lines with one id get a count."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import replace
from hashlib import blake2b

from jobs.inputs.entry import Entry

CACHE_KIB = 32 << 10  # of the ids that were listed


def _digest(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)


class UniqueIds:
    """Tells the second and later lines with the same id apart. Lists can be long: what was seen is in a temporary file
    of SQLite's, and only some of it in memory."""

    def __init__(self) -> None:
        # Without a name, nobody else sees it and it goes when it is closed, by whichever thread drops the listing.
        self._seen = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            f"PRAGMA cache_size = -{CACHE_KIB}",
            "PRAGMA journal_mode = OFF",
            "CREATE TABLE seen (digest INTEGER PRIMARY KEY)",
            "BEGIN",
        ):
            self._seen.execute(statement)
        self._again: Counter[str] = Counter()

    def close(self) -> None:
        self._seen.close()

    def distinguish(self, entry: Entry) -> Entry:
        if self._first(_digest(entry.sample_id)):
            return entry
        while True:  # somebody may have written the very name that is made here
            self._again[entry.sample_id] += 1
            name = f"{entry.sample_id}~{self._again[entry.sample_id] + 1}"
            if self._first(_digest(name)):
                return replace(entry, sample_id=name)

    def _first(self, digest: int) -> bool:
        return self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1
