"""Tell a container that cannot be opened, such as a dangling link, from storage that fails."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.inputs.entry import SourceError
from jobs.storage.storage_errors import NotAFile

FILE_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EISDIR})
"""What is wrong with one file, whatever others are: missing, a link to itself, no permission."""


@contextmanager
def container_errors(uri: str) -> Iterator[None]:
    """Turns what opening a tar, table or list raises into SourceError, if it is wrong with that file alone."""
    try:
        yield
    except OSError as error:
        if isinstance(error, NotAFile) or error.errno in FILE_ERRNOS:
            raise unreadable_container(uri, error) from error
        raise


def unreadable_container(uri: str, error: OSError) -> SourceError:
    """The reason of a container whose images cannot be listed."""
    return SourceError(
        f"{uri} cannot be read ({error.strerror or error}), so its images cannot be listed: make it readable and start "
        "again (for a row of a store: `saliency retry`)"
    )
