"""Expands wildcards, with the same meaning locally and on object stores."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase

from jobs.storage.file_walk import stat_files, walk
from jobs.storage.files import ObjectInfo
from jobs.storage.hang_guard import map_with_hang_guard
from jobs.storage.uris import is_remote, local_path, normalize_uri, relative_key


def is_glob(path: str) -> bool:
    """Whether a path contains wildcards."""
    return glob.has_magic(path)


def expand_glob(pattern: str) -> list[ObjectInfo]:
    """The files that match `* ? [..]` (within one directory level) and `**` (any number), in key order."""
    root = fixed_prefix(pattern)
    rest = normalize_uri(pattern).removeprefix(root).strip("/").split("/")
    if is_remote(pattern) or "**" in rest:  # `glob` may follow linked directories without end
        return [info for info in walk(root) if _matches(relative_key(root, info.uri).split("/"), rest)]
    matches = glob.glob(str(local_path(normalize_uri(pattern))))  # noqa: PTH207 - Path.glob shows hidden files
    paths = sorted(map(os.fsencode, matches))
    directories = map_with_hang_guard(os.path.isdir, paths)
    return stat_files([path for path, yes in zip(paths, directories, strict=True) if yes is not True])


def fixed_prefix(pattern: str) -> str:
    """The directory above a pattern's first wildcard: the root of what it matches."""
    parts = normalize_uri(pattern).split("/")
    return "/".join(parts[: next(i for i, part in enumerate(parts) if is_glob(part))]) or "/"


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**" and _matches(parts, pattern[1:]):
        return True
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    if pattern[0] == "**":
        return _matches(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
