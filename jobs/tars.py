"""Images in tar shards, with WebDataset's keys: `a/b.jpg` and `a/b.cls` belong together."""

from __future__ import annotations

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

from jobs.addresses import scrubbed_text
from jobs.entries import Entry, Source, integer_or_text, plain_label
from jobs.listing import IMAGES, Listing, is_hidden
from jobs.lookahead import map_ahead
from jobs.objects import NoAnswer, NotAFile, ObjectInfo, answered, open_file
from jobs.tarscan import Broken, scan

MAX_LABEL_BYTES = 1 << 20  # a larger .cls or .json is no label
LABEL_KEYS = ("label", "cls", "class")


class Tars(Source):
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
        for entries, ignored in map_ahead(self._list, tars, threads=self._threads):
            self.ignored.update(ignored)
            yield from entries

    def _list(self, named: tuple[str, ObjectInfo]) -> tuple[list[Entry], Counter[str]]:
        key, info = named
        try:
            return answered(partial(self._scanned, key, info), info.uri)
        except (NoAnswer, NotAFile) as error:
            reason = f"the tar cannot be read ({error.strerror}): once it can, run `saliency retry`"
            return [Entry(f"{key}/@0", info.uri, size=info.size, etag=info.etag, error=reason)], Counter()

    def _scanned(self, key: str, info: ObjectInfo) -> tuple[list[Entry], Counter[str]]:
        contents = _Contents(key, info, self._label_column)
        with open_file(info.uri) as file:
            for found in scan(file, info):
                contents.add(found, file)
        return contents.entries(), contents.ignored


@dataclass
class _Contents:
    """What one pass over a tar's headers found; labels are resolved last, as keys need not be adjacent."""

    tar: str  # its sample ids' first part
    info: ObjectInfo
    label_column: str | None
    found: list[tarfile.TarInfo | Broken] = field(default_factory=list)
    exact: set[str] = field(default_factory=set)  # keys with an image `key.jpg`, not only `key.other.jpg`
    cls: defaultdict[str, list[int | str | None]] = field(default_factory=lambda: defaultdict(list))
    json: defaultdict[str, list[int | str | None]] = field(default_factory=lambda: defaultdict(list))
    ignored: Counter[str] = field(default_factory=Counter)

    def add(self, item: tarfile.TarInfo | Broken, file: BinaryIO) -> None:
        if isinstance(item, Broken):
            self.found.append(item)
        elif item.isdir():
            pass
        elif not item.isreg():
            self.ignored["(link or device)"] += 1
        elif is_hidden(item.name):
            self.ignored["(hidden)"] += 1
        else:
            self._add_file(item, file)

    def _add_file(self, member: tarfile.TarInfo, file: BinaryIO) -> None:
        key, suffix = split_key(member.name)
        if suffix.rpartition(".")[2] in IMAGES:
            self.found.append(member)
            if suffix in IMAGES:
                self.exact.add(key)
            return
        if self._is_cut(member):
            reason = f"the tar is cut off inside {member.name}: what followed it is lost; fetch it again"
            self.found.append(Broken(member.offset, reason))
        elif suffix == "cls":
            self.cls[key].append(integer_or_text(_text(file, member)))
        elif suffix == "json":
            names = LABEL_KEYS if self.label_column is None else (self.label_column,)
            self.json[key].append(_json_label(_text(file, member), names))
        else:
            self.ignored[f".{suffix}" if suffix else "(none)"] += 1

    def entries(self) -> list[Entry]:
        entries: list[Entry] = []
        seen: Counter[str] = Counter()
        for item in self.found:
            if isinstance(item, Broken):
                entries.append(self._entry(f"@{item.offset}", error=item.reason))
                continue
            key, suffix = split_key(item.name)
            if key in self.exact and suffix not in IMAGES:  # `x.mask.png` beside `x.jpg`
                self.ignored[f".{suffix}"] += 1
                continue
            name = scrubbed_text(item.name)  # before equal names are told apart
            seen[name] += 1
            nth = seen[name]
            entries.append(
                self._entry(
                    name if nth == 1 else f"{name}~{nth}",
                    member=item,
                    label=self._label(key, nth - 1),
                    error=self._fault(item),
                )
            )
        return entries

    def _entry(
        self,
        name: str,
        *,
        member: tarfile.TarInfo | None = None,
        label: int | str | None = None,
        error: str | None = None,
    ) -> Entry:
        return Entry(
            sample_id=f"{self.tar}/{name}",
            uri=self.info.uri,
            member=member.name if member else None,
            offset=member.offset_data if member else None,
            length=member.size if member else None,
            size=self.info.size,
            etag=self.info.etag,
            label=label,
            error=error,
        )

    def _label(self, key: str, occurrence: int) -> int | str | None:
        """The label of a name's n-th occurrence is in the n-th `.cls` of its key."""
        if self.label_column is None and occurrence < len(self.cls.get(key, ())):
            return self.cls[key][occurrence]
        return self.json[key][occurrence] if occurrence < len(self.json.get(key, ())) else None

    def _is_cut(self, member: tarfile.TarInfo) -> bool:
        return member.offset_data + member.size > self.info.size

    def _fault(self, member: tarfile.TarInfo) -> str | None:
        if member.issparse():
            return f"{member.name} is stored as a sparse file, in pieces: pack the tar again without --sparse"
        if self._is_cut(member):
            return (
                f"the tar has {self.info.size} bytes and is cut off inside {member.name}, which would end at "
                f"{member.offset_data + member.size}: what followed is lost too; fetch the tar again"
            )
        return None


def split_key(name: str) -> tuple[str, str]:
    """`a/b.seg.PNG` → (`a/b`, `seg.png`): WebDataset's key and extension."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _text(file: BinaryIO, member: tarfile.TarInfo) -> str:
    """The content of a small text member; empty for what is none, so that the image merely has no label."""
    if member.size > MAX_LABEL_BYTES or member.issparse():
        return ""
    file.seek(member.offset_data)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        return ""


def _json_label(text: str, names: tuple[str, ...]) -> int | str | None:
    """What the first of the names says; None for what is no JSON object, or has none of them."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    values = values if isinstance(values, dict) else {}
    return next((plain_label(values[name]) for name in names if name in values), None)
