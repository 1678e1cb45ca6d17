"""Images in tar shards, with WebDataset's keys: `a/b.jpg` and `a/b.cls` belong together."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

from jobs.inputs.container_errors import container
from jobs.inputs.entry import Entry, Source, SourceError
from jobs.inputs.label_values import read_label
from jobs.inputs.listing import IMAGES, Listing, is_hidden
from jobs.inputs.tables import Misfits
from jobs.inputs.tar_headers import Member
from jobs.inputs.tar_scanner import Broken, scan
from jobs.storage.files import ObjectInfo, call_with_hang_guard, open_file
from jobs.storage.hang_guard import NoAnswer
from jobs.util.lookahead import map_ahead
from jobs.util.redaction import scrubbed_text

MAX_LABEL_BYTES = 1 << 20  # a larger .cls or .json is no label
LABEL_KEYS = ("label", "cls", "class")
MOST_LOSSES = 1000  # of one tar that are rows of their own
USUAL_TEXT = 1 << 10  # characters of a name or label; only what is longer counts against the room for long ones
LONG_TEXTS = 64 << 20  # characters of one tar, which are all in memory
LONGEST_EXTENSION = 32  # characters of what is counted as ignored


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
        misfits = Misfits()
        for (key, info), found in map_ahead(self._list, tars, threads=self._threads):
            if isinstance(found, SourceError):
                misfits.add(found)
                yield _unread(key, info, str(found))
                continue
            misfits.fits()
            entries, ignored = found
            self.ignored.update(ignored)
            yield from entries
        misfits.end()

    def _list(
        self, named: tuple[str, ObjectInfo]
    ) -> tuple[tuple[str, ObjectInfo], tuple[list[Entry], Counter[str]] | SourceError]:
        key, info = named
        try:
            with container(info.uri):
                return named, call_with_hang_guard(partial(self._scanned, key, info), info.uri)
        except SourceError as error:
            return named, error
        except NoAnswer as error:
            reason = f"the tar cannot be read ({error.strerror}): once it can, run `saliency retry`"
            return named, ([_unread(key, info, reason)], Counter())

    def _scanned(self, key: str, info: ObjectInfo) -> tuple[list[Entry], Counter[str]]:
        contents = _Contents(key, info, self._label_column)
        with open_file(info.uri) as file:
            for found in scan(file, info):
                contents.add(found, file)
        return contents.entries(), contents.ignored


def _unread(key: str, info: ObjectInfo, reason: str) -> Entry:
    """The row of a tar that was not read at all."""
    return Entry(f"{key}/@0", info.uri, size=info.size, etag=info.etag, error=reason)


@dataclass
class _Contents:
    """What one pass over a tar's headers found; labels are resolved last, as keys need not be adjacent."""

    tar: str  # its sample ids' first part
    info: ObjectInfo
    label_column: str | None
    found: list[Member | Broken] = field(default_factory=list)
    exact: set[str] = field(default_factory=set)  # keys with an image `key.jpg`, not only `key.other.jpg`
    cls: defaultdict[str, list[int | str | None]] = field(default_factory=lambda: defaultdict(list))
    json: defaultdict[str, list[int | str | None]] = field(default_factory=lambda: defaultdict(list))
    ignored: Counter[str] = field(default_factory=Counter)
    losses: int = 0
    room: int = LONG_TEXTS

    def add(self, item: Member | Broken, file: BinaryIO) -> None:
        if isinstance(item, Broken):
            self._add_loss(item)
        elif item.is_directory:
            pass
        elif not item.is_file:
            self.ignored["(link or device)"] += 1
        elif is_hidden(item.name):
            self.ignored["(hidden)"] += 1
        else:
            self._add_file(item, file)

    def _add_loss(self, loss: Broken) -> None:
        self.losses += 1
        if self.losses == MOST_LOSSES:
            reason = f"damaged in {MOST_LOSSES} places or more, and from here on only what is whole is listed"
            loss = Broken(loss.offset, f"{reason}: pack the tar again")
        if self.losses <= MOST_LOSSES:
            self.found.append(loss)

    def _fits(self, text: int | str | None) -> bool:
        """Whether there is room in memory for a name or label, which takes it."""
        excess = len(text) - USUAL_TEXT if isinstance(text, str) else 0
        if excess > 0:
            self.room -= excess
        return excess <= 0 or self.room >= 0

    def _add_file(self, member: Member, file: BinaryIO) -> None:
        key, suffix = split_key(member.name)
        if not self._fits(member.name):
            self._add_loss(Broken(member.offset, "the tar's long names are too long in all: shorten them"))
            return
        if suffix.rpartition(".")[2] in IMAGES:
            self.found.append(member)
            if suffix in IMAGES:
                self.exact.add(key)
            return
        if self._is_cut(member):
            reason = f"the tar is cut off inside {member.name}: what followed it is lost; fetch it again"
            self._add_loss(Broken(member.offset, reason))
        elif suffix in ("cls", "json"):
            text = _text(file, member)
            names = LABEL_KEYS if self.label_column is None else (self.label_column,)
            label = read_label(text) if suffix == "cls" else _json_label(text, names)
            labels = self.cls if suffix == "cls" else self.json
            labels[key].append(label if self._fits(label) else None)
        else:
            self.ignored[f".{suffix[-LONGEST_EXTENSION:]}" if suffix else "(none)"] += 1

    def entries(self) -> list[Entry]:
        entries: list[Entry] = []
        seen: Counter[str] = Counter()
        for item in self.found:
            if isinstance(item, Broken):
                entries.append(self._entry(f"@{item.offset}", error=item.reason))
                continue
            key, suffix = split_key(item.name)
            if key in self.exact and suffix not in IMAGES:  # `x.mask.png` beside `x.jpg`
                self.ignored[f".{suffix[-LONGEST_EXTENSION:]}"] += 1
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
        member: Member | None = None,
        label: int | str | None = None,
        error: str | None = None,
    ) -> Entry:
        return Entry(
            sample_id=f"{self.tar}/{name}",
            uri=self.info.uri,
            member=member.name if member else None,
            offset=member.data if member else None,
            length=member.size if member and member.size < 2**63 else None,  # what a column of int64 holds
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

    def _is_cut(self, member: Member) -> bool:
        return member.data + member.size > self.info.size

    def _fault(self, member: Member) -> str | None:
        if member.sparse:
            return f"{member.name} is stored as a sparse file, in pieces: pack the tar again without --sparse"
        if self._is_cut(member):
            return (
                f"the tar has {self.info.size} bytes and is cut off inside {member.name}, which would end at "
                f"{member.data + member.size}, or that size is wrong: fetch the tar again"
            )
        return None


def split_key(name: str) -> tuple[str, str]:
    """`a/b.seg.PNG` → (`a/b`, `seg.png`): WebDataset's key and extension."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _text(file: BinaryIO, member: Member) -> str:
    """The content of a small text member; empty for what is none, so that the image merely has no label."""
    if member.size > MAX_LABEL_BYTES or member.sparse:
        return ""
    file.seek(member.data)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        return ""


def _json_label(text: str, names: tuple[str, ...]) -> int | str | None:
    """What the first of the names says; None for what is no JSON object, or has none of them."""
    try:
        values = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    values = values if isinstance(values, dict) else {}
    return next((read_label(values[name]) for name in names if name in values), None)


def _integer(text: str) -> int | str:
    """Python refuses to read integers of thousands of digits."""
    return int(text) if len(text) <= 19 else text
