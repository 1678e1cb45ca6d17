"""Tell that a module is not the installed one, when it fails: a ``numpy.py`` in the working directory hides numpy."""

from __future__ import annotations

import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path


def hidden_module(error: Exception) -> str | None:
    """The file that hides an installed module, and what to do, if ``error``, of an import, speaks of that module.

    It must work when hardly a module can be imported, so it needs the standard library alone.
    """
    if not isinstance(error, ImportError | AttributeError):
        return None
    for name in re.findall(r"\w+", str(error)):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None:
            continue
        path = Path(file).resolve()
        folder = path.parents[1] if path.stem == "__init__" else path.parent
        spec = PathFinder.find_spec(name, [entry for entry in sys.path if Path(entry).resolve() != folder])
        if spec is not None and spec.origin is not None:
            return (
                f"{path} hides the module {name} that this program needs, {spec.origin} ({error}). Rename it, or run "
                "from another directory, or set PYTHONSAFEPATH=1."
            )
    return None
