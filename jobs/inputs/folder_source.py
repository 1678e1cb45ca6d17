"""Reads image files in a directory tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from jobs.inputs.entry import Entry, Source
from jobs.inputs.listing import Listing


class FolderSource(Source):
    """Every image file of a listing.

    `classes` are the first-level directories if the tree is an ImageFolder, in which no image is directly in the root.
    Then the label of each image is the name of its directory. If None, there are no labels.
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
