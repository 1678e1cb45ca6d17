"""Entries and sources: one entry per image of a listing, before it has a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jobs.util.redaction import scrubbed, scrubbed_text
from saliency_core.errors import InvalidRequestError


class SourceError(InvalidRequestError):
    """An input is refused. The message contains the remedy, and no credentials."""

    def __init__(self, message: str) -> None:
        super().__init__(scrubbed_text(message))


@dataclass(frozen=True, slots=True)
class Entry:
    """One image: where its bytes are, and what its listing shows without reading them.

    Attributes:
        sample_id: The image's id, unique in its run; relative to the root of its source.
        uri: The object that holds the image: the image file, a tar, or a Parquet file.
        member: The name in the tar, or the column in the Parquet file; None for an image file.
        offset: The first byte of the image in the tar.
        length: The number of bytes of the image in the tar.
        row_group: The row group in the Parquet file.
        row_in_group: The row in that row group.
        size: The size of the object in bytes at listing time; None if unknown.
        etag: The etag of the object at listing time; None if unknown.
        label: The class number or text; None if there is no label.
        error: Why there are no bytes to read, if the listing shows that already.
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

    def without_credentials(self) -> Entry:
        """Returns the entry without credentials, as it may be stored; the same object if it has none."""
        texts = {"sample_id": self.sample_id, "label": self.label, "error": self.error}
        if self.row_group is None:  # otherwise the member is a column, and is needed for reading
            texts["member"] = self.member
        cut: dict[str, Any] = {}
        for name, text in texts.items():
            if isinstance(text, str):
                # A label is a whole text or URI; a URI that an error quotes ends at white space.
                safe = scrubbed(text) if name == "label" else scrubbed_text(text)
                if safe != text:
                    cut[name] = safe
        return replace(self, **cut) if cut else self


class Source(ABC):
    """One input of a run. A subclass reads one kind of container; `open_sources` chooses it.

    Attributes:
        kind: The name of the kind of container.
        root: The path or URI that sample ids are relative to.
        ignored: The number of files that are not images, by extension. Filled while `entries` is iterated.
    """

    kind: str
    root: str
    ignored: Counter[str]

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Lists the images lazily, in an order that depends on names alone.

        Every call yields the same entries in the same order.

        Raises:
            SourceError: The input does not have the expected form.
            OSError: The input cannot be read.
        """

    def class_names(self) -> list[str] | None:
        """Returns the names of the classes that the source defines, in order; None if it defines none."""
        return None
