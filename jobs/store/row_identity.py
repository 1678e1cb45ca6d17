"""Which image a row stands for: the SHA-256 of its bytes, kept while the commit that knows it is withdrawn.

A commit that ``retry`` withdraws takes the hashes of its rows away. ``identity/unit-00000017.parquet`` holds them
until a new commit has them again, also if the process is killed in between: a row that was explained once is never
explained from other bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
from obstore.store import ObjectStore

from jobs.storage.object_store import delete, list_keys, put, read_object
from jobs.storage.parquet import UNREADABLE, parquet_bytes, parquet_table
from jobs.store.index import QUARANTINED, DamagedError, WithdrawnError, read_part
from jobs.store.layout import IDENTITY, identity_key, unit_of_identity
from jobs.util.formatting import first_line

_SCHEMA = pa.schema({"row": pa.int64(), "sha256": pa.string(), "explained": pa.bool_()})


@dataclass(frozen=True, slots=True)
class KnownImage:
    """The image that a row had. ``explained``: the row has, or had, maps of it; else the file may be repaired."""

    sha256: str
    explained: bool


Known = dict[int, KnownImage]
"""Images by row; rows whose bytes were never read are absent."""


def remembered_units(store: ObjectStore) -> set[int]:
    """The units whose identities are kept apart from their commit."""
    return {unit for key in list_keys(store, IDENTITY) if (unit := unit_of_identity(key)) is not None}


def remembered(store: ObjectStore, unit: int) -> Known:
    """The identities that ``remember`` kept of a unit; empty when there are none.

    Raises:
        DamagedError: They cannot be read.
    """
    key = identity_key(unit)
    try:
        data = read_object(store, key)
    except FileNotFoundError:
        return {}
    try:
        return decode_identities(data)
    except UNREADABLE as error:
        raise DamagedError(
            f"{key} is damaged ({first_line(error)}), so which images the unit's rows had is not known: restore it "
            "from a copy, or explain into a new --out."
        ) from error


def decode_identities(data: bytes) -> Known:
    """The content of an identity object. Raises one of ``UNREADABLE`` if the object is damaged."""
    table = parquet_table(data)
    if table.schema != _SCHEMA:
        raise ValueError("it has other columns than identities")
    return {line["row"]: KnownImage(line["sha256"], line["explained"]) for line in table.to_pylist()}


def known_images(store: ObjectStore, unit: int) -> Known:
    """All that the store knows of a unit's images: what was kept, and what its commit says."""
    known = remembered(store, unit)
    with suppress(WithdrawnError):  # the unit has no commit
        known.update(_not_explained_before(known, _committed_images(store, unit)))
    return known


def remember(store: ObjectStore, unit: int) -> None:
    """Keeps what is known of a unit's images, before its commit is withdrawn. Doing it again changes nothing."""
    known = known_images(store, unit)
    if known:
        columns = {
            "row": sorted(known),
            "sha256": [known[row].sha256 for row in sorted(known)],
            "explained": [known[row].explained for row in sorted(known)],
        }
        put(store, identity_key(unit), parquet_bytes(pa.table(columns, schema=_SCHEMA)))


def forget_committed(store: ObjectStore) -> dict[str, bytes]:
    """Deletes the identities that the commits have again; returns the objects that stay, by key.

    A unit's object stays if a row that was explained once is quarantined now: its commit does not know the image.
    """
    kept = {}
    for unit in sorted(remembered_units(store)):
        committed = _committed_images(store, unit)
        explained = {row for row, image in remembered(store, unit).items() if image.explained}
        if any(row not in committed or not committed[row].explained for row in explained):
            kept[identity_key(unit)] = read_object(store, identity_key(unit))
        else:
            delete(store, identity_key(unit))
    return kept


def _committed_images(store: ObjectStore, unit: int) -> Known:
    lines = read_part(store, unit)[0].select(["row", "sha256", "status"]).to_pylist()
    return {
        line["row"]: KnownImage(line["sha256"], line["status"] != QUARANTINED)
        for line in lines
        if line["sha256"] is not None
    }


def _not_explained_before(known: Known, images: Known) -> Iterator[tuple[int, KnownImage]]:
    for row, image in images.items():
        if row not in known or not known[row].explained:
            yield row, image
