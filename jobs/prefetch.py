"""An iterator that is worked off in a thread of its own, a bounded way ahead of whoever takes from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


@contextmanager
def prefetched(items: Iterable[Item], *, ahead: int = 50_000) -> Iterator[Iterator[Item]]:
    """The same items in the same order; an exception of theirs is raised where they would have gone on.

    Leaving the ``with`` stops the thread, wherever it is.
    """
    queue: Queue[object] = Queue(ahead)
    stop = Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                queue.put(item, timeout=0.1)
            except Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # noqa: BLE001 - it is raised again, on the consumer's side
            put(error)

    def consume() -> Iterator[Item]:
        while thread.is_alive() or not queue.empty():
            try:
                item = queue.get(timeout=0.1)
            except Empty:
                continue
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]

    thread = Thread(target=produce, name="listing", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()
