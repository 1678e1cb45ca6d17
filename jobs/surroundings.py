"""Make a command independent of surroundings that are none of its business, or refuse them with what to set."""

from __future__ import annotations

import getpass
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from saliency_core.errors import Refused

# What Ray puts behind its directory. A socket's path has 107 bytes at most, on Linux.
_SOCKET = "/session_2026-11-29_08-42-19_963771_4194304/sockets/plasma_store"
_LONGEST = 107 - len(_SOCKET)
_OTHERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - Ray makes a directory of its own there, for each session


def without_windows() -> None:
    """Keeps matplotlib from the backend that a notebook or a desktop names in the environment.

    Pictures are drawn by Agg, explicitly; but matplotlib looks at MPLBACKEND when it is imported, here, in the
    processes that draw pages, and in a module of the user's, and fails where that names a package that is missing.
    """
    os.environ["MPLBACKEND"] = "agg"


def with_user() -> None:
    """Gives a user without an entry in the system's list, as a container may run under any number, a home and a name.

    Ray and torch ask for both, and fail without.
    """
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - Path.home raises instead
        with suppress(FileNotFoundError):  # refused when it is needed
            os.environ["HOME"] = tempfile.gettempdir()
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


def refuse_no_temporary() -> None:
    """Raises Refused if there is no directory for temporary files."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise Refused(
            f"no directory for temporary files can be written ({error.strerror}): set TMPDIR to one."
        ) from error


def ray_directory() -> str:
    """A directory for the files and sockets of an embedded Ray, which it makes.

    The one that RAY_TMPDIR names, or ``ray`` in TMPDIR, or in another place for temporary files if that is missing,
    cannot be written, or is too long for the path of a socket. Raises Refused if none of them serves.
    """
    own = os.environ.get("RAY_TMPDIR")
    places = [own] if own else [os.environ.get("TMPDIR") or tempfile.gettempdir(), *_OTHERS]
    troubles = {}
    for place in places:
        directory = f"{Path(place).absolute()}/ray"
        trouble = _trouble(Path(directory))
        if trouble is None:
            return directory
        troubles[place] = trouble
    told = "; ".join(f"{place} {trouble}" for place, trouble in troubles.items())
    raise Refused(
        f"Ray has no directory for its files and sockets: {told}. Set RAY_TMPDIR to a directory that can be written, "
        f"with a path of at most {_LONGEST - len('/ray')} bytes."
    )


def _trouble(directory: Path) -> str | None:
    """Why Ray could not use ``directory``, which need not exist yet; None if it could."""
    if len(os.fsencode(directory)) > _LONGEST:
        return "is too long for the path of a socket"
    there = directory if directory.exists() else directory.parent
    if not there.is_dir():
        return "is no directory"
    try:
        tempfile.TemporaryFile(dir=there).close()  # the superuser may write anywhere, says os.access
    except OSError:
        return "cannot be written"
    return None
