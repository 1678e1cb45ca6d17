"""What a listing gives: one entry per image, before it has a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jobs.util.redaction import scrubbed, scrubbed_text
from saliency_core.errors import InvalidRequestError


class SourceError(InvalidRequestError):
    """An input that is refused; the message says what to do, without credentials."""

    def __init__(self, message: str) -> None:
        super().__init__(scrubbed_text(message))


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

    def without_credentials(self) -> Entry:
        """The entry as it may be written; the same object if there is nothing to cut."""
        texts = {"sample_id": self.sample_id, "label": self.label, "error": self.error}
        if self.row_group is None:  # else it is a column, and needed for reading
            texts["member"] = self.member
        cut: dict[str, Any] = {}
        for name, text in texts.items():
            if isinstance(text, str):
                # A label is one text or one address; what an error quotes ends at white space.
                safe = scrubbed(text) if name == "label" else scrubbed_text(text)
                if safe != text:
                    cut[name] = safe
        return replace(self, **cut) if cut else self


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
