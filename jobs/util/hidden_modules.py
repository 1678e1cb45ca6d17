"""Tell that a module is not the installed one, when it fails: a ``numpy.py`` in the working directory hides numpy."""

from __future__ import annotations

import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from saliency_core.errors import InvalidRequestError

_IMPORTED_LATER = {"torch", "torchvision"}  # not imported yet, perhaps, when Ray starts
_MAY_DIFFER = {"jobs", "saliency_core", "__main__"}  # an installed program may run in a checkout of its own


def describe_hidden_module(error: Exception) -> str | None:
    """The file that hides an installed module, and what to do, if ``error``, of an import, speaks of that module.

    It must work when hardly a module can be imported, so it needs little but the standard library.
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

    Ray's workers look there first, this process perhaps not at all (a console script, PYTHONSAFEPATH). A worker that
    cannot import Ray's own modules is started again, for ever.
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
