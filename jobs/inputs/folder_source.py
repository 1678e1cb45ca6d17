"""Image files in a tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from jobs.inputs.entry import Entry, Source
from jobs.inputs.listing import Listing


class FolderSource(Source):
    """Every image file of a listing.

    `classes` are the first-level directories when the tree is an ImageFolder (no image lies directly in the
    root): then each image's label is the name of its own. None: no labels.
    """

    kind = "folder"

    def __init__(self, listing: Listing, *, classes: list[str] | None) -> None:
        self.root = listing.root
        self.ignored = Counter()
        self._listing = listing
        self._classes = classes

    def entries(self) -> Iterator[Entry]:
        self.ignored.clear()
        for key, info in self._listing.of_kind("image", self.ignored):
            label = key.split("/")[0] if self._classes is not None else None
            yield Entry(sample_id=key, uri=info.uri, size=info.size, etag=info.etag, label=label)

    def class_names(self) -> list[str] | None:
        return self._classes
