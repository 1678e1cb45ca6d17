"""Identities: the SHA-256 of the image of each row, kept while the commit that records it is withdrawn.

``retry`` withdraws commits, and with them the hashes of their rows. ``identity/unit-00000017.parquet`` holds the hashes
until a new commit records them again, also if the process is killed in between. So a row that was explained once is
never explained from other bytes.
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
class RecordedImage:
    """The image that a row had.

    ``explained`` is True if the row has, or had, maps of it. If it is False, the file may be replaced.
    """

    sha256: str
    explained: bool


RecordedImages = dict[int, RecordedImage]
"""Images by row, without the rows whose bytes were never read."""


def units_with_identities(store: ObjectStore) -> set[int]:
    """The units that have an identity object."""
    return {unit for key in list_keys(store, IDENTITY) if (unit := unit_of_identity(key)) is not None}


def read_identities(store: ObjectStore, unit: int) -> RecordedImages:
    """The images in a unit's identity object; empty if there is none. Raises DamagedError if it cannot be read."""
    key = identity_key(unit)
    try:
        data = read_object(store, key)
    except FileNotFoundError:
        return {}
    try:
        return decode_identities(data)
    except UNREADABLE as error:
        raise DamagedError(
            f"{key} is damaged ({first_line(error)}), so the images of the unit's rows are unknown: restore it "
            "from a copy, or explain into a new --out."
        ) from error


def decode_identities(data: bytes) -> RecordedImages:
    """The content of an identity object. Raises one of ``UNREADABLE`` if the object is damaged."""
    table = parquet_table(data)
    if table.schema != _SCHEMA:
        raise ValueError("it has other columns than identities")
    return {line["row"]: RecordedImage(line["sha256"], line["explained"]) for line in table.to_pylist()}


def recorded_images(store: ObjectStore, unit: int) -> RecordedImages:
    """A unit's images, from its identity object and its commit."""
    images_by_row = read_identities(store, unit)
    with suppress(WithdrawnError):  # the unit has no commit
        images_by_row.update(_replaceable(images_by_row, _committed_images(store, unit)))
    return images_by_row


def keep_identities(store: ObjectStore, unit: int) -> None:
    """Puts a unit's identity object, before its commit is withdrawn. Doing it again changes nothing."""
    images_by_row = recorded_images(store, unit)
    if images_by_row:
        columns = {
            "row": sorted(images_by_row),
            "sha256": [images_by_row[row].sha256 for row in sorted(images_by_row)],
            "explained": [images_by_row[row].explained for row in sorted(images_by_row)],
        }
        put(store, identity_key(unit), parquet_bytes(pa.table(columns, schema=_SCHEMA)))


def delete_committed_identities(store: ObjectStore) -> dict[str, bytes]:
    """Deletes the identity objects whose images the commits record again; returns those that stay, by key.

    A unit's object stays if a row that was explained once is quarantined now, because its commit has no hash of it.
    """
    objects = {}
    for unit in sorted(units_with_identities(store)):
        committed = _committed_images(store, unit)
        explained = {row for row, image in read_identities(store, unit).items() if image.explained}
        if any(row not in committed or not committed[row].explained for row in explained):
            objects[identity_key(unit)] = read_object(store, identity_key(unit))
        else:
            delete(store, identity_key(unit))
    return objects


def _committed_images(store: ObjectStore, unit: int) -> RecordedImages:
    lines = read_part(store, unit)[0].select(["row", "sha256", "status"]).to_pylist()
    return {
        line["row"]: RecordedImage(line["sha256"], line["status"] != QUARANTINED)
        for line in lines
        if line["sha256"] is not None
    }


def _replaceable(images_by_row: RecordedImages, images: RecordedImages) -> Iterator[tuple[int, RecordedImage]]:
    for row, image in images.items():
        if row not in images_by_row or not images_by_row[row].explained:
            yield row, image
