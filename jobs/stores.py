"""Which object store a URI means, and what its failures mean.

Credentials and endpoints come from each store's usual environment variables (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, from_url

if TYPE_CHECKING:
    from obstore.store import ObjectStore

REMOTE = ("s3://", "gs://", "az://")


def is_remote(uri: str) -> bool:
    return uri.startswith(REMOTE)


def open_output(out: str) -> ObjectStore:
    """The store of an output directory, local (made when missing) or remote; keys are relative to it."""
    if is_remote(out):
        with failures(out):
            return from_url(out)
    return LocalStore(prefix=local_path(out).absolute(), mkdir=True)


def local_path(uri: str | Path) -> Path:
    """The path of a plain path or a percent-encoded `file://` URI."""
    if isinstance(uri, str) and uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return Path(uri)


@cache
def _bucket(url: str) -> ObjectStore:
    return from_url(url)


def locate(uri: str) -> tuple[ObjectStore, str]:
    """The bucket's store and the key in it, taken as written: `#`, `?` and `%20` are part of a key."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    with failures(uri):
        return _bucket(f"{scheme}://{bucket}"), key.strip("/")


def plain_etag(etag: str | None) -> str | None:
    return etag.strip('"') if etag else None  # some stores quote it in one answer and not in the other


@contextmanager
def failures(uri: str) -> Iterator[None]:
    """Turns what obstore raises into an OSError without the store's own text."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such object", uri) from None
    except AlreadyExistsError:
        raise FileExistsError(errno.EEXIST, "is there already", uri) from None
    except (PermissionDeniedError, UnauthenticatedError):
        raise PermissionError(errno.EACCES, "access denied: check the store's credentials", uri) from None
    except (BaseError, ValueError) as error:
        raise OSError(errno.EIO, _summary(error), uri) from None


def _summary(error: Exception) -> str:
    text = str(error)
    if "empty path segment" in text or "illegal character" in text:
        return "a key with an empty segment (`//`) or a control character cannot be addressed: rename it"
    status, code = re.search(r"status code: (\d+)", text), re.search(r"<Code>(\w+)</Code>", text)
    known = " ".join(match[1] for match in (status, code) if match)
    return f"the object store answered with an error ({known or type(error).__name__})"


def read_object(store: ObjectStore, key: str) -> bytes:
    """The whole object. Raises FileNotFoundError where there is none."""
    return bytes(obstore.get(store, key).bytes())


def list_keys(store: ObjectStore, prefix: str | None = None) -> Iterator[str]:
    """Every key below ``prefix``, in the order that the store gives them."""
    for batch in obstore.list(store, prefix):
        yield from (meta["path"] for meta in batch)
