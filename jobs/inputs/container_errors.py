"""Separates a container that cannot be opened, such as a dangling link, from storage that fails."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.inputs.entry import SourceError
from jobs.storage.storage_errors import NotAFile

FILE_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EISDIR})
"""Errors of a single file: it is missing, a link to itself, or not permitted."""


@contextmanager
def container_errors(uri: str) -> Iterator[None]:
    """Translates errors of opening a tar, table or list into SourceError, if they concern that file alone."""
    try:
        yield
    except OSError as error:
        if isinstance(error, NotAFile) or error.errno in FILE_ERRNOS:
            raise unreadable_container(uri, error) from error
        raise


def unreadable_container(uri: str, error: OSError) -> SourceError:
    """The error for a container whose images cannot be listed."""
    return SourceError(
        f"{uri} cannot be read ({error.strerror or error}), so its images cannot be listed: make it readable and start "
        "again (for a row of a store: `saliency retry`)"
    )
