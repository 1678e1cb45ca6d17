"""Prints a message if this process is killed."""

from __future__ import annotations

import atexit
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def announce_unexpected_exit(text: str, *, lasting: bool = True) -> Iterator[None]:
    """Prints ``text`` on standard error if this process dies within the ``with``.

    With ``lasting``, it also prints the text if an error leaves the ``with`` and the process then dies before its
    normal exit.

    A driver that is killed (out of memory, a batch system's limit), or that Ray's library ends because Ray's daemons
    are gone, prints nothing itself. A shell process prints the text for it: the shell waits for the end of a pipe, and
    prints nothing if it has read a line from it.
    """
    # The shell has its own session, so that Ctrl-C and signals to the group do not reach it, and it runs in the
    # background of another shell, because Ray kills the children of a driver that it ends. Descriptor 3 is needed
    # because a shell gives a background command no input.
    waits = 'exec 3<&0; { read -r _ <&3 || printf "%s\\n" "$0" >&2; } &'
    starting = subprocess.Popen(  # noqa: S603 - the text is an argument, and no command
        ["sh", "-c", waits, text],  # noqa: S607 - from PATH
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    starting.wait()
    try:
        yield
    except BaseException:
        # If its daemons are gone, Ray may end this process before the error is printed.
        if lasting:
            atexit.register(_confirm_exit, starting)
        else:
            _confirm_exit(starting)
        raise
    _confirm_exit(starting)


def _confirm_exit(waiting: subprocess.Popen[bytes]) -> None:
    with suppress(BrokenPipeError):
        waiting.communicate(b"well\n")
