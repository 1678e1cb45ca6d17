"""Runs an iterator in its own thread, a bounded number of items ahead of the consumer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
BATCH = 500  # items per hand-over: one by one, the hand-over takes longer than the listing
_END_OF_ITEMS = object()


@contextmanager
def prefetched(items: Iterable[Item], *, ahead: int = 50_000) -> Iterator[Iterator[Item]]:
    """Gives an iterator of the same items in the same order. It raises an exception of theirs at the same place.

    Leaving the ``with`` stops the thread.
    """
    queue: Queue[object] = Queue(max(1, ahead // BATCH))
    stop = Event()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                queue.put(item, timeout=0.1)
            except Full:
                continue
            return

    def produce() -> None:
        batch: list[Item] = []
        end: object = _END_OF_ITEMS
        try:
            for item in items:
                batch.append(item)
                if len(batch) == BATCH:
                    put(batch)
                    batch = []
                if stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
            end = error
        put(batch)
        put(end)

    def consume() -> Iterator[Item]:
        while thread.is_alive() or not queue.empty():
            try:
                entry = queue.get(timeout=0.1)
            except Empty:
                continue
            if isinstance(entry, list):
                yield from entry
            elif isinstance(entry, BaseException):
                raise entry
            else:
                return

    thread = Thread(target=produce, name="listing", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()
