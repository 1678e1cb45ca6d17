"""Lists images in tar shards with WebDataset's keys, by which `a/b.jpg` has the label in `a/b.cls`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

from jobs.inputs.container_errors import container_errors
from jobs.inputs.entry import Entry, Source, SourceError
from jobs.inputs.listing import Listing
from jobs.inputs.tables import ColumnMismatches
from jobs.inputs.tar_contents import TarContents
from jobs.inputs.tar_scanner import scan_members
from jobs.storage.files import ObjectInfo, call_with_hang_guard, open_file
from jobs.storage.hang_guard import NoAnswer
from jobs.util.lookahead import map_ahead


class TarSource(Source):
    """Every image member of every tar of a listing, in archive order.

    The label comes from the key's `.cls` (integer or text), else its `.json` (`label`, `cls` or `class`);
    `label_column` names another key of the `.json` and then only that counts.
    """

    kind = "tar"

    def __init__(self, listing: Listing, *, label_column: str | None = None, threads: int = 8) -> None:
        self.root = listing.root
        self.ignored = Counter()
        self._listing = listing
        self._label_column = label_column
        self._threads = threads

    def entries(self) -> Iterator[Entry]:
        self.ignored.clear()
        tars = self._listing.of_kind("tar", self.ignored)
        misfits = ColumnMismatches()
        for (key, info), result in map_ahead(self._list, tars, threads=self._threads):
            if isinstance(result, SourceError):
                misfits.add(result)
                yield _unread(key, info, str(result))
                continue
            misfits.fits()
            entries, ignored = result
            self.ignored.update(ignored)
            yield from entries
        misfits.end()

    def _list(
        self, named: tuple[str, ObjectInfo]
    ) -> tuple[tuple[str, ObjectInfo], tuple[list[Entry], Counter[str]] | SourceError]:
        key, info = named
        try:
            with container_errors(info.uri):
                return named, call_with_hang_guard(partial(self._scanned, key, info), info.uri)
        except SourceError as error:
            return named, error
        except NoAnswer as error:
            reason = f"the tar cannot be read ({error.strerror}): once it can, run `saliency retry`"
            return named, ([_unread(key, info, reason)], Counter())

    def _scanned(self, key: str, info: ObjectInfo) -> tuple[list[Entry], Counter[str]]:
        contents = TarContents(key, info, self._label_column)
        with open_file(info.uri) as file:
            for result in scan_members(file, info):
                contents.add(result, file)
        return contents.entries(), contents.ignored


def _unread(key: str, info: ObjectInfo, reason: str) -> Entry:
    """The single row of a tar that cannot be read."""
    return Entry(f"{key}/@0", info.uri, size=info.size, etag=info.etag, error=reason)
