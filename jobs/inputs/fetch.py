"""Reads the bytes of the images of entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from jobs.inputs.entry import Entry
from jobs.inputs.image_columns import ImagePath, Oversized
from jobs.inputs.parquet_process import parquet_processes
from jobs.inputs.parquet_reading import image_values
from jobs.inputs.rejected import RejectedImage
from jobs.inputs.tables import DamagedTable
from jobs.inputs.uri_lookup import look_up_lines
from jobs.storage.files import ObjectInfo, read, read_ranges, stat
from jobs.storage.hang_guard import NoAnswer, map_with_hang_guard
from jobs.storage.storage_errors import MACHINE_ERRNOS
from jobs.storage.uris import is_remote, parent_uri
from jobs.util.job_errors import StoreUnreachable
from jobs.util.redaction import scrubbed

REMOTE_THREADS = 16  # a request mostly waits
BATCH = 16  # Parquet rows decoded at a time: images are large
PARQUET_MEMORY = 3 << 30  # bytes in which any valid page can be unpacked, beside some of the largest images
Value = bytes | RejectedImage | ImagePath | Oversized | None


def fetch(entries: Sequence[Entry], *, max_bytes: int) -> list[bytes | RejectedImage]:
    """Returns the bytes of each entry's image, in order, or the reason why there are none.

    Each object is looked up once; its rows are rejected if its size or etag differs from the manifest's. An image over
    `max_bytes` is not read (in Parquet: read and dropped). Raises StoreUnreachable if a whole store fails, but never
    because of the data.
    """
    by_object: defaultdict[tuple[str, bool, bool], list[int]] = defaultdict(list)
    results: list[bytes | RejectedImage] = [RejectedImage(entry.error or "") for entry in entries]
    for i, entry in enumerate(entries):
        if entry.error is None:
            # a list may name a file as an image that another source opens as a tar, so each group is read in one way
            by_object[entry.uri, entry.offset is None, entry.row_group is None].append(i)

    def fetched(rows: list[int]) -> list[bytes | RejectedImage]:
        return _fetch_object([entries[i] for i in rows], max_bytes)

    remote = [rows for (uri, _, _), rows in by_object.items() if is_remote(uri)]
    local = [rows for (uri, _, _), rows in by_object.items() if not is_remote(uri)]
    groups_of_values: list[list[bytes | RejectedImage] | NoAnswer] = []
    if remote:
        with ThreadPoolExecutor(REMOTE_THREADS) as pool:
            groups_of_values += pool.map(fetched, remote)
    groups_of_values += map_with_hang_guard(fetched, local, name=lambda rows: entries[rows[0]].uri)
    for rows, values in zip([*remote, *local], groups_of_values, strict=True):
        if isinstance(values, NoAnswer):
            reason = f"{entries[rows[0]].uri} cannot be read ({values}): once it can, run `saliency retry`"
            values = [RejectedImage(reason)] * len(rows)
        for i, value in zip(rows, values, strict=True):
            results[i] = value
    return results


def _fetch_object(entries: list[Entry], max_bytes: int) -> list[bytes | RejectedImage]:
    """Reads entries that are all in one object, in the same way."""
    uri = entries[0].uri
    try:
        info = stat(uri)
        rejections = [_refuse_changed(entry, info) or _refuse_too_large(entry, info, max_bytes) for entry in entries]
        pairs = list(zip(entries, rejections, strict=True))
        values = iter(_read([entry for entry, rejection in pairs if rejection is None], max_bytes))
        return [rejection or _check_value(entry, next(values), max_bytes) for entry, rejection in pairs]
    except FileNotFoundError:
        reason = f"{uri} is missing: put it back, then run `saliency retry`"
    except (OSError, ValueError, KeyError) as error:  # a name with a zero byte; a column that is gone
        if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
            raise StoreUnreachable(f"{uri} cannot be read on this machine ({error.strerror}): repair that.") from error
        text = error.strerror if isinstance(error, OSError) else None
        reason = f"{uri} cannot be read ({text or error}): once it can, run `saliency retry`"
    return [RejectedImage(reason)] * len(entries)


def _read(entries: list[Entry], max_bytes: int) -> list[Value]:
    if not entries:
        return []
    if entries[0].row_group is not None:
        return _read_rows(entries, max_bytes)
    if entries[0].offset is not None:
        ranges = [(entry.offset or 0, entry.length or 0) for entry in entries]
        return list(read_ranges(entries[0].uri, ranges))
    return [read(entries[0].uri, length=max_bytes + 1)] * len(entries)  # the same image, listed more than once


def _read_rows(entries: list[Entry], max_bytes: int) -> list[Value]:
    groups: defaultdict[tuple[int, str], dict[int, Value]] = defaultdict(dict)
    for entry in entries:
        gone = RejectedImage(f"{entry.uri} has no row {entry.row_in_group} in row group {entry.row_group}")
        groups[_group_of(entry)][entry.row_in_group or 0] = gone
    for (group, member), rows in groups.items():
        left = set(rows)
        try:
            for row, value in _row_values(entries[0].uri, group, member, rows, max_bytes):
                rows[row] = value
                left.discard(row)
        except DamagedTable as error:
            reason = (
                f"row group {group} of {entries[0].uri} is damaged ({error}), or cannot be read: write the file again"
            )
            rows.update(dict.fromkeys(left, RejectedImage(reason)))
    return [groups[_group_of(entry)][entry.row_in_group or 0] for entry in entries]


def _group_of(entry: Entry) -> tuple[int, str]:
    return entry.row_group or 0, entry.member or ""


def _row_values(uri: str, group: int, member: str, rows: Iterable[int], max_bytes: int) -> Iterator[tuple[int, Value]]:
    """The values of `rows`, in order, unpacked in a child process with limited memory."""
    return parquet_processes().parts(
        image_values,
        uri,
        memory=PARQUET_MEMORY + 8 * max_bytes,
        group=group,
        member=member,
        rows=frozenset(rows),
        batch=BATCH,
        max_bytes=max_bytes,
    )


def _fetch_path(entry: Entry, place: ImagePath, max_bytes: int) -> bytes | RejectedImage:
    """The image of a row that holds only a path, which is relative to its table, as in a list."""
    (target,) = look_up_lines([(entry.sample_id, place.path, None)], parent_uri(entry.uri))
    if target.error is None:
        value = _fetch_object([target], max_bytes)[0]
        if isinstance(value, bytes):
            return value
        target = replace(target, error=value.reason)
    return RejectedImage(f"{entry.sample_id} holds no bytes but the path {scrubbed(place.path)!r}, and {target.error}")


def _refuse_changed(entry: Entry, info: ObjectInfo) -> RejectedImage | None:
    """The rejection if the object changed; an entry of a remote list has no size and etag to compare."""
    if entry.size is not None and entry.size != info.size:
        difference = "its size differs"
    elif entry.etag is not None and entry.etag != info.etag:
        difference = "its etag differs"
    else:
        return None
    return RejectedImage(
        f"{entry.uri} changed since the manifest was made ({difference}), so the row may be another image: "
        "run `saliency retry` to list it again"
    )


def _refuse_too_large(entry: Entry, info: ObjectInfo, max_bytes: int) -> RejectedImage | None:
    size = info.size if entry.offset is None else entry.length or 0
    return _over_limit(entry, size, max_bytes) if entry.row_group is None else None


def _over_limit(entry: Entry, size: int, max_bytes: int) -> RejectedImage | None:
    if size <= max_bytes:
        return None
    return RejectedImage(
        f"{entry.sample_id} has {size} bytes, over the limit of {max_bytes} (max_bytes): raise the limit, "
        "or shrink the image"
    )


def _check_value(entry: Entry, value: Value, max_bytes: int) -> bytes | RejectedImage:
    if isinstance(value, ImagePath):
        return _fetch_path(entry, value, max_bytes)
    if isinstance(value, Oversized):
        return _over_limit(entry, value.size, max_bytes) or RejectedImage(f"{entry.sample_id} has {value.size} bytes")
    if isinstance(value, RejectedImage):
        return value
    if not value:
        what = "is null" if value is None else "is empty (0 bytes)"
        return RejectedImage(f"{entry.sample_id} {what}: put an image there, then run `saliency retry`")
    if entry.length is not None and len(value) < entry.length:
        return RejectedImage(
            f"{entry.sample_id}: {entry.uri} ended after {len(value)} of its {entry.length} bytes: fetch the tar again"
        )
    return _over_limit(entry, len(value), max_bytes) or value
