"""Drops what native libraries print on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def silenced_native_stderr() -> Iterator[None]:
    """While the ``with`` lasts, only Python writes to standard error.

    Ray's C++ core writes its messages to the driver's log file and, past Python, to descriptor 2. The latter are
    dropped.
    """
    sys.stderr.flush()
    terminal, stderr = os.dup(2), sys.stderr
    with open(terminal, "w", buffering=1, encoding="utf-8") as copy, Path(os.devnull).open("wb") as null:  # noqa: PTH123
        os.dup2(null.fileno(), 2)
        if stderr is sys.__stderr__:
            sys.stderr = copy
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            sys.stderr = stderr
