"""Make a command independent of surroundings that are none of its business, or refuse them with what to set."""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from saliency_core.errors import InvalidRequestError

# What Ray puts behind its directory. A socket's path has 107 bytes at most, on Linux.
_LONGEST_SOCKET = "/session_2026-11-29_08-42-19_963771_4194304/sockets/plasma_store"
_LONGEST_DIRECTORY = 107 - len(_LONGEST_SOCKET)
_FALLBACKS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - Ray makes a directory of its own there, for each session


def restart_in_utf8() -> None:
    """Starts the program anew, in Python's UTF-8 mode, if the locale has another encoding for names of files.

    Stores and tables hold names as UTF-8, whatever the locale is; and Python could not open a file called ``größe`` in
    a locale of ASCII letters. The encoding is settled when Python starts, and no later.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this same program


def force_agg_backend() -> None:
    """Keeps matplotlib from the backend that a notebook or a desktop names in the environment.

    Pictures are drawn by Agg, explicitly; but matplotlib looks at MPLBACKEND when it is imported, here, in the
    processes that draw pages, and in a module of the user's, and fails where that names a package that is missing.
    """
    os.environ["MPLBACKEND"] = "agg"


def reset_warning_filters() -> None:
    """Gives this process, and those that it starts, Python's own filters in place of PYTHONWARNINGS.

    If that says ``error``, Ray's daemons end, and Ray Data fails, over what they themselves call deprecated.
    """
    if os.environ.pop("PYTHONWARNINGS", None) is not None:
        warnings.simplefilter("default")
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)


def ensure_user() -> None:
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


def refuse_missing_working_directory() -> None:
    """Raises InvalidRequestError if the working directory was removed: no relative path leads anywhere, and libraries
    (MKL) end the process."""
    try:
        os.getcwd()  # noqa: PTH109 - the question is whether there is one
    except FileNotFoundError as error:
        raise InvalidRequestError(
            "the working directory was removed: run the command from one that exists (cd)."
        ) from error


def refuse_missing_temporary_directory() -> None:
    """Raises InvalidRequestError if there is no directory for temporary files."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InvalidRequestError(
            f"no directory for temporary files can be written ({error.strerror}): set TMPDIR to one."
        ) from error


def choose_ray_directory() -> str:
    """A directory for the files and sockets of an embedded Ray, which it makes.

    The one that RAY_TMPDIR names, or ``ray`` in TMPDIR, or in another place for temporary files if that is missing,
    cannot be written, or is too long for the path of a socket. Raises InvalidRequestError if none of them serves.
    """
    own = os.environ.get("RAY_TMPDIR")
    places = [own] if own else [os.environ.get("TMPDIR") or tempfile.gettempdir(), *_FALLBACKS]
    obstacles = {}
    for place in places:
        directory = f"{Path(place).absolute()}/ray"
        obstacle = _find_obstacle(Path(directory))
        if obstacle is None:
            return directory
        obstacles[place] = obstacle
    reasons = "; ".join(f"{place} {obstacle}" for place, obstacle in obstacles.items())
    raise InvalidRequestError(
        f"Ray has no directory for its files and sockets: {reasons}. Set RAY_TMPDIR to a directory that can be "
        f"written, with a path of at most {_LONGEST_DIRECTORY - len('/ray')} bytes."
    )


def _find_obstacle(directory: Path) -> str | None:
    """Why Ray could not use ``directory``, which need not exist yet; None if it could."""
    if len(os.fsencode(directory)) > _LONGEST_DIRECTORY:
        return "is too long for the path of a socket"
    existing = directory if directory.exists() else directory.parent
    if not existing.is_dir():
        return "is no directory"
    return None if can_write(existing) else "cannot be written"


def can_write(directory: Path) -> bool:
    """Whether files can be made in a directory. Leaves nothing there."""
    try:
        tempfile.TemporaryFile(dir=directory).close()  # the superuser may write anywhere, says os.access
    except OSError:
        return False
    return True
