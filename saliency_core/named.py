"""Things of the user's own, named as ``package.module:attribute``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def import_named(path: str) -> object:
    """The attribute itself. ValueError where ``path`` is not so written, ImportError where it cannot be had."""
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise ValueError(f"{path!r} is not package.module:attribute")
    # The console script does not put the working directory on the path, as `python -m` does.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    found = import_module(module)
    try:
        return getattr(found, attribute)
    except AttributeError as error:
        raise ImportError(str(error)) from error
