"""The keys of a store's objects. No other module builds or parses them.

run.json, classes.json           the record of a run, of a class run (`jobs.store.class_record`)
manifest/part-00003.parquet      where the rows' images are
index/unit-00000017.parquet      a unit's rows, and its commit
identity/unit-00000017.parquet   the images that a withdrawn unit's rows had
maps.zarr/ARRAY/c/17/0/0         a unit's shard of an array; classes.zarr/… in a store of class images
index.parquet, SHA256SUMS        a finished store's index and checksums
"""

from __future__ import annotations

import re

RUN_JSON = "run.json"
CLASSES_JSON = "classes.json"
INDEX_PARQUET = "index.parquet"
SHA256SUMS = "SHA256SUMS"
MANIFEST = "manifest"
INDEX = "index"
IDENTITY = "identity"
MAPS = "maps.zarr"
CLASSES = "classes.zarr"

_UNIT = re.compile(rf"(?P<folder>{INDEX}|{IDENTITY})/unit-(?P<unit>\d{{8,}})\.parquet")
_SHARD = re.compile(rf"{re.escape(MAPS)}/.+/c/(?P<unit>\d+)(?:/0)*")


def manifest_key(part: int) -> str:
    """The key of a part of the manifest."""
    return f"{MANIFEST}/part-{part:05d}.parquet"


def unit_key(folder: str, unit: int, *, name: str = "unit") -> str:
    """The key of a unit's table in a folder of the store, of an audit or of a comparison."""
    return f"{folder}/{name}-{unit:08d}.parquet"


def index_key(unit: int) -> str:
    """The key of a unit's commit."""
    return unit_key(INDEX, unit)


def identity_key(unit: int) -> str:
    """The key of the image hashes of a unit whose commit was withdrawn."""
    return unit_key(IDENTITY, unit)


def shard_key(array: str, unit: int, *, item_axes: int) -> str:
    """The key of a unit's shard within its Zarr group. ``item_axes`` is the number of axes beside the rows."""
    return f"{array}/c/" + "/".join([str(unit), *["0"] * item_axes])


def unit_of_index(key: str) -> int | None:
    """``index/unit-00000017.parquet`` → 17; None for any other key."""
    return _unit_in(INDEX, key)


def unit_of_identity(key: str) -> int | None:
    """``identity/unit-00000017.parquet`` → 17; None for any other key."""
    return _unit_in(IDENTITY, key)


def unit_of_shard(key: str) -> int | None:
    """``maps.zarr/predicted/gradient/c/17/0/0`` → 17; None for any other key."""
    match = _SHARD.fullmatch(key)
    return int(match["unit"]) if match else None


def _unit_in(folder: str, key: str) -> int | None:
    match = _UNIT.fullmatch(key)
    return int(match["unit"]) if match and match["folder"] == folder else None
