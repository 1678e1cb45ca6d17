"""Normalises a local path, so that it does not depend on the working directory."""

from __future__ import annotations

import glob
import os
from pathlib import Path


def plain_path(path: Path) -> Path:
    """Returns the absolute path without `..`. A link keeps its name, unless `..` follows: then it is resolved.

    The part after a wildcard stays as it is, because `*/..` stands for every directory that exists.
    """
    root, *parts = path.absolute().parts
    place = Path(root)
    for index, part in enumerate(parts):
        if glob.has_magic(part):
            return place.joinpath(*parts[index:])
        if part != "..":
            place /= part
        else:
            # Not Path.is_symlink, which raises for names that are too long.
            place = Path(os.path.realpath(place) if os.path.islink(place) else place).parent  # noqa: PTH114
    return place
