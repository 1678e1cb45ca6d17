"""Resolves a path that the user gives to a list of files, and determines the kind of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from jobs.inputs.entry import SourceError
from jobs.inputs.globs import expand_glob, fixed_prefix, is_glob
from jobs.storage.file_walk import walk, walk_keys
from jobs.storage.files import ObjectInfo, call_with_hang_guard, stat
from jobs.storage.uris import REMOTE, is_remote, local_path, normalize_uri, parent_uri, relative_key

PHOTOS = ("jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "avif", "jp2")
BITMAPS = ("bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm")
IMAGES = frozenset((*PHOTOS, *BITMAPS))  # what Pillow opens without plugins
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
COMPRESSED_TABLES = tuple(f".{table}{end}" for table in ("csv", "parquet") for end in (".gz", ".bz2", ".xz", ".zst"))
KINDS = {"tar": "tar", "parquet": "parquet", "csv": "csv"} | dict.fromkeys(IMAGES, "image")


def is_hidden(key: str) -> bool:
    """Names such as `.DS_Store`, `._x.jpg` (a resource fork, no JPEG) and all below `.ipynb_checkpoints/`."""
    return any(part.startswith(".") and part not in (".", "..") for part in key.split("/"))


def extension(key: str) -> str:
    """The extension of a key in lower case, with its dot; empty if there is none."""
    return PurePosixPath(key).suffix.lower()


def kind_of(key: str) -> str | None:
    """`image`, `tar`, `parquet`, `csv`, `compressed tar`, `compressed table`, or None for other files."""
    if is_hidden(key):
        return None
    if key.lower().endswith(COMPRESSED):
        return "compressed tar"
    if key.lower().endswith(COMPRESSED_TABLES):
        return "compressed table"
    return KINDS.get(extension(key).removeprefix("."))


@dataclass(frozen=True, slots=True)
class Listing:
    """Files below `root`. `files` holds them if listing again would be slow (remote) or needless (a glob)."""

    root: str
    files: tuple[ObjectInfo, ...] | None = None
    whole: bool = False  # all files below `root`, not files that the user chose

    def __iter__(self) -> Iterator[tuple[str, ObjectInfo]]:
        """(relative key, info) in key order."""
        for info in walk(self.root) if self.files is None else self.files:
            yield relative_key(self.root, info.uri), info

    def names(self) -> Iterator[str]:
        """The relative keys, in order."""
        return walk_keys(self.root) if self.files is None else (key for key, _ in self)

    def of_kind(self, kind: str, ignored: Counter[str]) -> Iterator[tuple[str, ObjectInfo]]:
        """The files of one kind; the others are counted in `ignored`, by extension."""
        for key, info in self:
            if kind_of(key) == kind:
                yield key, info
            else:
                ignored["(hidden)" if is_hidden(key) else extension(key) or "(none)"] += 1


def find_files(path: str) -> Listing:
    """The files of a folder, remote prefix, glob or single file. Raises SourceError if there are none."""
    try:
        listing = _find_files(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be listed: {error.strerror}") from error
    if listing.files == ():
        raise SourceError(f"{path} matches no file: check the spelling, and quote patterns in the shell")
    return listing


def _find_files(path: str) -> Listing:
    place = normalize_uri(path)
    if re.match(r"[a-z][a-z0-9+.-]+://", path) and not path.startswith(("file://", *REMOTE)):
        raise SourceError(f"{path} has a scheme that is not read: use a local path, s3://, gs:// or az://")
    if is_remote(path):
        single = place.count("/") > 2 and _exists(place)
    else:
        is_directory, single = call_with_hang_guard(partial(_directory_and_existence, local_path(path)), path)
        if is_directory:
            return Listing(place, whole=True)
    if single:
        return Listing(parent_uri(place), (stat(place),))
    if is_glob(path):
        return Listing(fixed_prefix(path), tuple(expand_glob(path)))
    return Listing(place, tuple(walk(place)) if is_remote(path) else (), whole=True)


def _directory_and_existence(path: Path) -> tuple[bool, bool]:
    return path.is_dir(), path.exists()


def _exists(uri: str) -> bool:
    try:
        stat(uri)
    except FileNotFoundError:
        return False
    return True
