"""Makes the sample ids of a list unique: the second and later lines with one id get a count."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import replace
from hashlib import blake2b

from jobs.inputs.entry import Entry

CACHE_KIB = 32 << 10  # of the table of ids


def _digest(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)


class UniqueIds:
    """Makes the sample ids from lists of images unique: a repeated id becomes ``id~2``, ``id~3``, ….

    Hashes of the ids are kept in a temporary SQLite file, because lists can be too long for memory.
    """

    def __init__(self) -> None:
        # A database without a name is private and deleted when it is closed, which may happen in another thread.
        self._used_ids = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            f"PRAGMA cache_size = -{CACHE_KIB}",
            "PRAGMA journal_mode = OFF",
            "CREATE TABLE seen (digest INTEGER PRIMARY KEY)",
            "BEGIN",
        ):
            self._used_ids.execute(statement)
        self._occurrences: Counter[str] = Counter()

    def close(self) -> None:
        self._used_ids.close()

    def make_unique(self, entry: Entry) -> Entry:
        """The entry with a unique sample id: `name`, `name~2`, …"""
        if self._first(_digest(entry.sample_id)):
            return entry
        while True:  # the list may contain the very name that is made here
            self._occurrences[entry.sample_id] += 1
            name = f"{entry.sample_id}~{self._occurrences[entry.sample_id] + 1}"
            if self._first(_digest(name)):
                return replace(entry, sample_id=name)

    def _first(self, digest: int) -> bool:
        return self._used_ids.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1
