"""The entries of one tar: its images, paired with the labels that have the same key."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import BinaryIO

from jobs.inputs.entry import Entry
from jobs.inputs.label_values import read_label
from jobs.inputs.listing import IMAGES, is_hidden
from jobs.inputs.tar_headers import Member
from jobs.inputs.tar_scanner import LostMembers
from jobs.storage.files import ObjectInfo
from jobs.util.redaction import scrubbed_text

MAX_LABEL_BYTES = 1 << 20  # a larger .cls or .json is ignored
LABEL_KEYS = ("label", "cls", "class")
MOST_LOSSES = 1000  # of one tar that become rows
USUAL_TEXT = 1 << 10  # characters of a name or label; only the excess counts towards LONG_TEXTS
LONG_TEXTS = 64 << 20  # characters per tar, all of which are in memory
LONGEST_EXTENSION = 32  # characters under which ignored files are counted


@dataclass
class TarContents:
    """The contents of a tar. Labels are resolved after the last header, because equal keys need not be adjacent."""

    tar: str  # the first part of its sample ids
    info: ObjectInfo
    label_column: str | None
    members: list[Member | LostMembers] = field(default_factory=list)
    exact: set[str] = field(default_factory=set)  # keys with an image `key.jpg`, not only `key.other.jpg`
    cls: defaultdict[str, list[int | str | None]] = field(default_factory=lambda: defaultdict(list))
    json: defaultdict[str, list[int | str | None]] = field(default_factory=lambda: defaultdict(list))
    ignored: Counter[str] = field(default_factory=Counter)
    losses: int = 0
    long_text_budget: int = LONG_TEXTS

    def add(self, item: Member | LostMembers, file: BinaryIO) -> None:
        """Adds a member or loss; reads the content of a label from `file`."""
        if isinstance(item, LostMembers):
            self._add_loss(item)
        elif item.is_directory:
            pass
        elif not item.is_file:
            self.ignored["(link or device)"] += 1
        elif is_hidden(item.name):
            self.ignored["(hidden)"] += 1
        else:
            self._add_file(item, file)

    def _add_loss(self, loss: LostMembers) -> None:
        self.losses += 1
        if self.losses == MOST_LOSSES:
            reason = f"damaged in {MOST_LOSSES} places or more, and from here on only undamaged members are listed"
            loss = LostMembers(loss.offset, f"{reason}: pack the tar again")
        if self.losses <= MOST_LOSSES:
            self.members.append(loss)

    def _fits(self, text: int | str | None) -> bool:
        """Whether a name or label fits into the budget for long texts, which it then uses."""
        excess = len(text) - USUAL_TEXT if isinstance(text, str) else 0
        if excess > 0:
            self.long_text_budget -= excess
        return excess <= 0 or self.long_text_budget >= 0

    def _add_file(self, member: Member, file: BinaryIO) -> None:
        key, suffix = split_key(member.name)
        if not self._fits(member.name):
            self._add_loss(LostMembers(member.offset, "the tar's long names are too long in all: shorten them"))
            return
        if suffix.rpartition(".")[2] in IMAGES:
            self.members.append(member)
            if suffix in IMAGES:
                self.exact.add(key)
            return
        if self._is_cut(member):
            reason = f"the tar is cut off inside {member.name}: what followed it is lost; fetch it again"
            self._add_loss(LostMembers(member.offset, reason))
        elif suffix in ("cls", "json"):
            text = _read_text(file, member)
            names = LABEL_KEYS if self.label_column is None else (self.label_column,)
            label = read_label(text) if suffix == "cls" else _json_label(text, names)
            labels = self.cls if suffix == "cls" else self.json
            labels[key].append(label if self._fits(label) else None)
        else:
            self.ignored[f".{suffix[-LONGEST_EXTENSION:]}" if suffix else "(none)"] += 1

    def entries(self) -> list[Entry]:
        """The entries of all images and losses, in archive order."""
        entries: list[Entry] = []
        counts: Counter[str] = Counter()
        for item in self.members:
            if isinstance(item, LostMembers):
                entries.append(self._entry(f"@{item.offset}", error=item.reason))
                continue
            key, suffix = split_key(item.name)
            if key in self.exact and suffix not in IMAGES:  # `x.mask.png` beside `x.jpg`
                self.ignored[f".{suffix[-LONGEST_EXTENSION:]}"] += 1
                continue
            name = scrubbed_text(item.name)  # before equal names are distinguished
            counts[name] += 1
            nth = counts[name]
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
            length=member.size if member and member.size < 2**63 else None,  # the limit of a column of int64
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


def _read_text(file: BinaryIO, member: Member) -> str:
    """The content of a small text member; empty for any other, so that the image has no label."""
    if member.size > MAX_LABEL_BYTES or member.sparse:
        return ""
    file.seek(member.data)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        return ""


def _json_label(text: str, names: tuple[str, ...]) -> int | str | None:
    """The label under the first of the names that a JSON object has; None if there is none."""
    try:
        values = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    values = values if isinstance(values, dict) else {}
    return next((read_label(values[name]) for name in names if name in values), None)


def _integer(text: str) -> int | str:
    """An integer; digits that are too many for int64 stay text, since Python refuses thousands of them."""
    return int(text) if len(text) <= 19 else text
