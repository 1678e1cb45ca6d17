"""Messages between a process and its limited child: pickles on a connection."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


class OutOfMemory(Exception):
    """The function asked for more memory than its limit."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of the results of a function that yields several."""

    value: Any


@dataclass(frozen=True, slots=True)
class End:
    """The last message of a call: its result, or the exception that it raised, and the CPU seconds that it took."""

    value: Any
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Asks the parent for bytes of the file that it has open."""

    position: int
    size: int


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """Sent to the child in place of a file of ``size`` bytes that the parent has open."""

    size: int


def send(connection: Connection, message: object) -> None:
    """Sends a message. Unlike ``Connection.send``, it does not build a pickler for each."""
    connection.send_bytes(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def receive(connection: Connection) -> Any:
    """Returns the next message. Raises EOFError if the other end is closed."""
    return pickle.loads(connection.recv_bytes())  # noqa: S301 - pickled by the other end
