"""Opens the inputs of a run, and lists their images in an order that does not depend on the machine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jobs.inputs.entry import Entry, Source, SourceError
from jobs.inputs.folder_source import FolderSource
from jobs.inputs.listing import Listing, find_files, kind_of
from jobs.inputs.parquet_source import ParquetSource, holds_images
from jobs.inputs.tar_source import TarSource
from jobs.inputs.uri_list_source import UriListSource

__all__ = ["Entry", "Source", "SourceError", "list_entries", "open_sources"]


def open_sources(
    images: Sequence[str],
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    uri_column: str | None = None,
    threads: int = 8,
) -> list[Source]:
    """Opens one source per path: a folder, a remote prefix, a glob, or a single image, tar, Parquet or CSV file.

    `image_column` (Parquet), `label_column` (Parquet, CSV, a tar's `.json`) and `uri_column` (lists) name columns
    that are otherwise recognised by their usual names. `threads` threads list tars and tables. Raises SourceError.
    """
    if not images:
        raise SourceError("no images given: name a folder, a glob, tars, Parquet files or a CSV list of URIs")
    return [_open(path, image_column, label_column, uri_column, threads) for path in images]


def list_entries(sources: Sequence[Source]) -> Iterator[Entry]:
    """All entries, source by source. With several sources, ids begin with the source's position, so they stay unique.

    Raises SourceError for a source without images and for one that cannot be listed to its end.
    """
    for position, source in enumerate(sources):
        entry = None
        try:
            for listed in source.entries():
                entry = listed.without_credentials()
                yield replace(entry, sample_id=f"{position}/{entry.sample_id}") if len(sources) > 1 else entry
        except OSError as error:
            raise _unreadable(error, source.root) from error
        if entry is None:
            raise SourceError(f"{source.root} holds no images{_ignored_files(source.ignored)}")


def _open(
    path: str, image_column: str | None, label_column: str | None, uri_column: str | None, threads: int
) -> Source:
    listing = find_files(path)
    kinds, classes = _count_kinds(listing)
    lists = kinds.pop("csv", 0)  # beside images, a CSV is an accompanying file
    compressed = kinds.pop("compressed table", 0)  # likewise
    if len(kinds) > 1:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise SourceError(f"{path} mixes kinds ({counts}): choose one with a glob, such as '{path}/**/*.jpg'")
    if "compressed tar" in kinds:
        raise SourceError(f"{path}: compressed tars cannot be read from the middle: decompress to .tar first")
    if "image" in kinds:
        return FolderSource(listing, classes=classes)
    if "tar" in kinds:
        return TarSource(listing, label_column=label_column, threads=threads)
    table = "parquet" if "parquet" in kinds else "csv"
    if table == "parquet" and holds_images(listing, image_column=image_column, uri_column=uri_column):
        return ParquetSource(listing, image_column=image_column, label_column=label_column, threads=threads)
    if table == "parquet" or (lists and not listing.whole):
        return UriListSource(listing, table=table, uri_column=uri_column, label_column=label_column, threads=threads)
    if compressed:
        raise SourceError(f"{path}: compressed tables cannot be read: decompress to .csv or .parquet first")
    hint = f": to read a list of URIs, name the file itself ({lists} .csv files found)" if lists else ""
    raise SourceError(f"{path} holds no images, tars or Parquet files{hint}")


def _count_kinds(listing: Listing) -> tuple[Counter[str], list[str] | None]:
    """Counts files by kind, and returns the classes if the images are an ImageFolder. Opens no file."""
    kinds: Counter[str] = Counter()
    classes: set[str] = set()
    flat = False
    try:
        for key in listing.names():
            if kind := kind_of(key):
                kinds[kind] += 1
                first, _, deeper = key.partition("/")
                flat |= kind == "image" and not deeper
                if kind == "image":
                    classes.add(first)
    except OSError as error:
        raise _unreadable(error, listing.root) from error
    return kinds, None if flat or not classes else sorted(classes, key=str.encode)


def _unreadable(error: OSError, root: str) -> SourceError:
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else root
    return SourceError(
        f"{where} cannot be read ({error.strerror or error}), so its images cannot be listed: "
        "make it readable and start again"
    )


def _ignored_files(ignored: Counter[str]) -> str:
    listed = ", ".join(f"{count} {name}" for name, count in ignored.most_common())
    return f", only other files ({listed})" if listed else ""
