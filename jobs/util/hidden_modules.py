"""Detects files that hide installed modules, as a ``numpy.py`` in the working directory hides numpy."""

from __future__ import annotations

import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from saliency_core.errors import InvalidRequestError

_IMPORTED_LATER = {"torch", "torchvision"}  # perhaps not imported yet when Ray starts
_MAY_DIFFER = {"jobs", "saliency_core", "__main__"}  # an installed program may run in its own checkout


def describe_hidden_module(error: Exception) -> str | None:
    """Returns which file hides an installed module, and what to do, if the import error names that module.

    It uses little but the standard library, because it must work if hardly any module can be imported.
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


def refuse_hidden_from_workers() -> None:
    """Raises InvalidRequestError if a module of the working directory would hide one that this process has.

    Ray's workers search that directory first; this process may not search it (a console script, PYTHONSAFEPATH). Ray
    restarts a worker that cannot import Ray's own modules without end.
    """
    names = _IMPORTED_LATER | {name for name in list(sys.modules) if "." not in name}
    for name in sorted(names - sys.stdlib_module_names - _MAY_DIFFER):
        theirs = PathFinder.find_spec(name, [str(Path.cwd())])
        if theirs is None or theirs.origin is None:
            continue
        ours = PathFinder.find_spec(name, sys.path)
        if ours is not None and ours.origin is not None and not Path(ours.origin).samefile(theirs.origin):
            raise InvalidRequestError(
                f"{theirs.origin} would hide the module {name} ({ours.origin}) from Ray's workers, which look for "
                "modules in the working directory first. Rename it, or run from another directory."
            )
