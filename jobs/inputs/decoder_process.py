"""Decodes images in a child process, so that an image which kills the process costs only its own row."""

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
# A random event (a killed node, a kernel out of memory) may hit a valid image once, but hardly twice.
ATTEMPTS = 2


class Decoder:
    """Calls functions in a child process, one at a time. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._child: Child | None = None
        self._cpu_seconds = 0.0

    def __call__(
        self, decode: Callable[[bytes], Result | RejectedImage], data: bytes, *, seconds: float, memory: int
    ) -> Result | RejectedImage:
        """Returns ``decode(data)``, or a rejection if the child died, took too long or needs over ``memory`` bytes.

        ``decode`` is sent by its name, and its result as a pickle; its exceptions are raised here. Raises JobStopped
        if no process can be started.
        """
        with self._lock:
            for _ in range(ATTEMPTS):
                try:
                    (answer,) = self._living().ask(decode, data, seconds=seconds, memory=memory)
                except ChildDied as death:
                    if death.took_too_long:
                        return RejectedImage(
                            f"decoding it takes longer than {seconds:g} s: if the image is sound, raise --max-seconds"
                        )
                    last = death
                    continue
                self._cpu_seconds += cast(End, answer).cpu_seconds
                result = answer.value
                if isinstance(result, OutOfMemory):
                    return RejectedImage(
                        f"decoding it takes more than {memory / 2**20:.0f} MB of memory: if the image is sound, raise "
                        "--max-pixels, which allows for more"
                    )
                if isinstance(result, Exception):
                    raise result
                return cast("Result | RejectedImage", result)
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
        """The CPU time of this process, and of the child for the calls that it answered."""
        return process_time() + self._cpu_seconds

    def _living(self) -> Child:
        if self._child is None or not self._child.lives():
            self._child = start_child("decodes images")
        return self._child


@cache
def shared_decoder() -> Decoder:
    """The decoder of this process."""
    return Decoder()


# A forked process must not share its parent's child: they would receive each other's answers.
os.register_at_fork(after_in_child=shared_decoder.cache_clear)
