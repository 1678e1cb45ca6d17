"""Images are decoded in a process of their own, so that one which kills its process costs only its own row."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from threading import Lock
from time import process_time
from typing import TypeVar, cast

from jobs.inputs.rejected import RejectedImage
from jobs.util.limited_process import Child, ChildDied, start_child
from jobs.util.limited_process_messages import End, OutOfMemory

Result = TypeVar("Result")
# What strikes at random (a killed node, a kernel out of memory) may strike while a sound image is decoded, not twice.
ATTEMPTS = 2


class Decoder:
    """Calls functions in a child process, one at a time, whichever thread asks."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._child: Child | None = None
        self._cpu_seconds = 0.0

    def __call__(
        self, decode: Callable[[bytes], Result | RejectedImage], data: bytes, *, seconds: float, memory: int
    ) -> Result | RejectedImage:
        """``decode(data)``, or why that cannot be: it died over it, took too long, or more than ``memory`` bytes.

        ``decode`` travels by its name, its result as a pickle; what it raises is raised here. Raises JobStopped where
        no process can be started.
        """
        with self._lock:
            for _ in range(ATTEMPTS):
                try:
                    (said,) = self._living().ask(decode, data, seconds=seconds, memory=memory)
                except ChildDied as death:
                    if death.took_too_long:
                        return RejectedImage(
                            f"decoding it takes longer than {seconds:g} s: if the image is sound, raise --max-seconds"
                        )
                    last = death
                    continue
                self._cpu_seconds += cast(End, said).cpu_seconds
                found = said.value
                if isinstance(found, OutOfMemory):
                    return RejectedImage(
                        f"decoding it takes more than {memory / 2**20:.0f} MB of memory: if the image is sound, raise "
                        "--max-pixels, which allows for more"
                    )
                if isinstance(found, Exception):
                    raise found
                return cast("Result | RejectedImage", found)
        if last.lacked_memory:
            return RejectedImage(
                f"decoding it takes more than {memory / 2**20:.0f} MB of memory, or it is damaged ({last}): save it "
                "again with another program, or raise --max-pixels, which allows for more"
            )
        return RejectedImage(
            f"the image killed the process that decodes, {ATTEMPTS} times of {ATTEMPTS} ({last}): save it again with "
            "another program, or leave it out"
        )

    def cpu_seconds(self) -> float:
        """Spent so far by this process and, over what it answered, by the child."""
        return process_time() + self._cpu_seconds

    def _living(self) -> Child:
        if self._child is None or not self._child.lives():
            self._child = start_child("decodes images")
        return self._child


@cache
def shared_decoder() -> Decoder:
    """The one of this process."""
    return Decoder()


# The child of a forked process's parent is not its own: they would take each other's answers.
os.register_at_fork(after_in_child=shared_decoder.cache_clear)
