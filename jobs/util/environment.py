"""Makes a command independent of its environment (locale, variables, user), or refuses it with what to set."""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from saliency_core.errors import InvalidRequestError

# The longest path that Ray appends to its directory. On Linux a socket's path has at most 107 bytes.
_LONGEST_SOCKET = "/session_2026-11-29_08-42-19_963771_4194304/sockets/plasma_store"
_LONGEST_DIRECTORY = 107 - len(_LONGEST_SOCKET)
_FALLBACKS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - Ray makes a directory of its own there, for each session


def restart_in_utf8() -> None:
    """Restarts the program in Python's UTF-8 mode if the locale has another encoding for file names.

    Stores and tables hold names as UTF-8, and in an ASCII locale Python cannot open a file called ``größe``. The
    encoding cannot be changed after Python has started.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this same program


def force_agg_backend() -> None:
    """Sets MPLBACKEND to Agg, in place of the backend of a notebook or a desktop.

    The program draws with Agg explicitly. But matplotlib reads MPLBACKEND when it is imported, also in processes that
    draw pages and in the user's modules, and fails if it names a package that is missing.
    """
    os.environ["MPLBACKEND"] = "agg"


def reset_warning_filters() -> None:
    """Removes PYTHONWARNINGS and sets Python's default filters, for this process and those that it starts.

    With PYTHONWARNINGS=error, Ray's daemons end and Ray Data fails at their own deprecation warnings.
    """
    if os.environ.pop("PYTHONWARNINGS", None) is not None:
        warnings.simplefilter("default")
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)


def ensure_user() -> None:
    """Sets HOME and USER for a user without an entry in the system's list, as containers may have.

    Ray and torch fail without them.
    """
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - Path.home raises instead
        with suppress(FileNotFoundError):  # refused when it is needed
            os.environ["HOME"] = tempfile.gettempdir()
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


def refuse_missing_working_directory() -> None:
    """Raises InvalidRequestError if the working directory was removed.

    Without it relative paths cannot be opened, and some libraries (MKL) would end the process.
    """
    try:
        os.getcwd()  # noqa: PTH109 - checks whether it exists
    except FileNotFoundError as error:
        raise InvalidRequestError(
            "the working directory was removed: run the command from one that exists (cd)."
        ) from error


def refuse_missing_temporary_directory() -> None:
    """Raises InvalidRequestError if no directory for temporary files exists."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InvalidRequestError(
            f"no directory for temporary files can be written ({error.strerror}): set TMPDIR to one."
        ) from error


def choose_ray_directory() -> str:
    """Returns a directory for the files and sockets of an embedded Ray, which creates it.

    It is ``ray`` in RAY_TMPDIR if that is set. Otherwise it is ``ray`` in TMPDIR, or in another place for temporary
    files if TMPDIR is missing, cannot be written, or is too long for the path of a socket. Raises InvalidRequestError
    if no directory can be used.
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
    """Returns why Ray cannot use ``directory``, which need not exist yet; None if it can."""
    if len(os.fsencode(directory)) > _LONGEST_DIRECTORY:
        return "is too long for the path of a socket"
    existing = directory if directory.exists() else directory.parent
    if not existing.is_dir():
        return "is not a directory"
    return None if can_write(existing) else "cannot be written"


def can_write(directory: Path) -> bool:
    """Whether files can be created in a directory. Leaves no file there."""
    try:
        tempfile.TemporaryFile(dir=directory).close()  # os.access allows the superuser everything
    except OSError:
        return False
    return True
