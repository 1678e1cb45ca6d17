"""What a listing gives: one entry per image, before it has a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from saliency_core.errors import Refused


class SourceError(Refused):
    """An input that is refused; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image: where its bytes are, and what is known of it without reading them.

    `uri` is the object that holds it: the image file itself, a tar (`offset` and `length` in bytes, `member`
    its name there) or a Parquet file (`row_group`, `row_in_group`, `member` the column). `size` and `etag`
    are the object's at listing time; None means not known. `error` is set when it is clear already that there
    are no bytes to read.
    """

    sample_id: str
    uri: str
    member: str | None = None
    offset: int | None = None
    length: int | None = None
    row_group: int | None = None
    row_in_group: int | None = None
    size: int | None = None
    etag: str | None = None
    label: int | str | None = None
    error: str | None = None


class Source(ABC):
    """One input of a run. Iterating `entries` twice gives the same entries in the same order."""

    kind: str
    root: str
    ignored: Counter[str]  # files that are no images, by extension; filled while `entries` is iterated

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """The images, lazily and in an order that depends on names alone. Raises SourceError, OSError."""

    def class_names(self) -> list[str] | None:
        """The classes that the source itself names, in order; None where it names none."""
        return None
