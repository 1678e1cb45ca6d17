"""Makes the entries of a list's lines: resolves written URIs, and looks up local files.

``fetch`` uses it, too, for the rows of a table that hold a path instead of bytes.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import replace
from functools import partial
from operator import itemgetter

from jobs.inputs.entry import Entry
from jobs.inputs.label_values import printable
from jobs.inputs.rejected import RejectedImage
from jobs.storage.files import stat
from jobs.storage.hang_guard import NoAnswer, map_with_hang_guard
from jobs.storage.uris import is_remote, local_path, uri_of
from jobs.util.redaction import plain_scheme, scrubbed
from saliency_core.errors import InvalidRequestError

_OBJECT = re.compile(r"[a-z0-9]+://[A-Za-z0-9$][A-Za-z0-9._$-]*/+[^/].*", re.DOTALL)  # a bucket, and a key in it

Line = tuple[str, str | RejectedImage | None, int | str | None]
"""Where a line stands, its URI as written or why it has none, and its label."""


def look_up_lines(lines: list[Line], folder: str) -> list[Entry]:
    """The entries of lines. Files are relative to the list's folder; local ones are looked up."""
    entries = map_with_hang_guard(partial(_checked_entry, folder=folder), lines, name=itemgetter(0))
    return [
        _checked_entry(line, folder, entry) if isinstance(entry, NoAnswer) else entry
        for line, entry in zip(lines, entries, strict=True)
    ]


def _checked_entry(line: Line, folder: str, hang: NoAnswer | None = None) -> Entry:
    """The entry of a line, with an error if its text is not a URI.

    ``hang`` is the reason why the file cannot be looked up; it is then not tried again.
    """
    where, written, label = line
    if isinstance(written, RejectedImage):
        return Entry(where, "", error=printable(written.reason))
    try:
        entry = _entry((where, written, label), folder, hang)
        entry.uri.encode()  # a column of strings accepts only valid UTF-8
    except ValueError as error:
        reason = f"{where}: {printable(written or '')!r} is not a URI ({printable(str(error))})"
        return Entry(where, "", label=label, error=reason)
    return entry if entry.error is None else replace(entry, error=printable(entry.error))


def _entry(line: tuple[str, str | None, int | str | None], folder: str, hang: NoAnswer | None = None) -> Entry:
    where, written, label = line
    if written is None or not written.strip():
        return Entry(where, "", label=label, error=f"{where} has no URI: fill it in")
    address = scrubbed(written)
    if address != written and hang is None and _is_file(written, folder):
        address = written  # a file name that only looks like a URI with credentials
    sample_id = address.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    try:
        uri = _resolve(address, folder)
    except InvalidRequestError as refused:
        return Entry(sample_id, sample_id, label=label, error=str(refused))
    if is_remote(uri):
        # An invalid bucket name would look like a store that does not answer, which stops the run.
        sound = _OBJECT.fullmatch(uri) is not None
        error = None if sound else f"{sample_id} names no object: write {uri.partition(':')[0]}://BUCKET/KEY"
        return Entry(sample_id, uri, label=label, error=error)
    if re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]*://", uri) and not uri.startswith("file://"):
        cut = ", with the credentials, which are cut off here, in the environment" if address != written else ""
        error = f"{sample_id} has a scheme that is not read: use a path, file://, s3://, gs:// or az://{cut}"
        return Entry(sample_id, sample_id, label=label, error=error)
    try:
        if hang is not None:
            raise hang
        info = stat(uri)
    except FileNotFoundError:
        hint = "" if sample_id == address else ": its name is not UTF-8; write the list as UTF-8, if the file's name is"
        return Entry(sample_id, uri, label=label, error=f"no such file: {uri}{hint}")
    except (OSError, ValueError) as error:
        return Entry(sample_id, uri, label=label, error=f"{uri}: {getattr(error, 'strerror', None) or error}")
    return Entry(sample_id, uri, size=info.size, etag=info.etag, label=label)


def _is_file(written: str, folder: str) -> bool:
    try:
        return not is_remote(folder) and (local_path(folder) / written).is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def _resolve(written: str, folder: str) -> str:
    written = plain_scheme(written)
    if written.startswith("file://"):
        return uri_of(local_path(written))
    if "://" in written:
        return written
    if is_remote(folder) and not written.startswith("/"):
        scheme, _, rest = folder.partition("://")
        bucket, _, prefix = rest.partition("/")
        return f"{scheme}://{bucket}{posixpath.normpath(f'/{prefix}/{written}')}"
    return uri_of(local_path("/" if is_remote(folder) else folder) / written)
