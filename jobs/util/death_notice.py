"""What is said of a process that can say nothing any more."""

from __future__ import annotations

import atexit
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def announce_unexpected_exit(text: str, *, lasting: bool = True) -> Iterator[None]:
    """Should this process die within the ``with``, by whatever hand, ``text`` comes on its standard error. So it
    does, if ``lasting``, where it dies later, after an error has left the ``with``, and before its own end.

    A driver that is killed (out of memory, a batch system's limit), or that Ray's library ends because Ray's daemons
    are gone, would end without a word. A shell waits for the end of a pipe, and knows by a line in it that all is well.
    """
    # In a session of its own, for Ctrl-C and signals to the group are not meant for it, and no child of this process,
    # for Ray kills the children of a driver that it ends. (A shell gives what it puts in the background no input.)
    waits = 'exec 3<&0; { read -r _ <&3 || printf "%s\\n" "$0" >&2; } &'
    starting = subprocess.Popen(  # noqa: S603 - the text is an argument, and no command
        ["sh", "-c", waits, text],  # noqa: S607 - wherever the system has it
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    starting.wait()
    try:
        yield
    except BaseException:
        # Ray, whose daemons are gone, may end this process on its way out, before it could tell why it goes.
        if lasting:
            atexit.register(_confirm_exit, starting)
        else:
            _confirm_exit(starting)
        raise
    _confirm_exit(starting)


def _confirm_exit(waiting: subprocess.Popen[bytes]) -> None:
    with suppress(BrokenPipeError):
        waiting.communicate(b"well\n")
