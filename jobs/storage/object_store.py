"""Opens the store of a URI, and makes all requests to object stores and all writes.

Credentials, region and endpoint come from each store's usual environment variables (jobs/docs/object-stores.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import obstore
from obstore.exceptions import InvalidPathError
from obstore.store import LocalStore, from_url

from jobs.storage.local_writes import fsync_names, write_atomically
from jobs.storage.raw_listing import NotListable, list_raw_objects
from jobs.storage.retrying import FIRST_PAUSE, LONGEST_PAUSE, RetryBudget, retry_seconds, with_retries
from jobs.storage.storage_errors import OBSTORE_ERRORS, status_of, translate_error, translated_errors
from jobs.storage.uris import is_remote, local_path
from jobs.util.job_errors import StoreMissing, StoreUnusable

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

VARIABLES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
CLIENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_excludes", "proxy_ca_certificate")

PIECE = 4 << 20  # bytes


def plain_etag(etag: str | None) -> str | None:
    return etag.strip('"') if etag else None  # some stores quote it in some answers only


# -- opening --------------------------------------------------------------------------------------------------


def open_output(out: str, *, make: bool = False) -> ObjectStore:
    """Opens the store of an output directory, local or remote. Keys are relative to it.

    ``make``: creates a local directory that is missing, for a command that begins a store. Otherwise raises
    StoreMissing, because files in a directory that is created again would have no record.
    """
    with errors_as_unusable(out):
        if is_remote(out):
            return _open(out)
        root = local_path(out).absolute()
        if not make and not root.is_dir():
            raise missing_store_error(str(root))
        return LocalStore(prefix=root, mkdir=make)


def locate(uri: str) -> tuple[ObjectStore, str]:
    """Returns the bucket's store and the key in it, as written: `#`, `?` and `%20` are part of a key."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    with translated_errors(uri):
        return _bucket(f"{scheme}://{bucket}"), key.strip("/")


@cache
def _bucket(url: str) -> ObjectStore:
    return _open(url)


def _open(url: str) -> ObjectStore:
    seconds, variables = retry_seconds(), VARIABLES[url.partition("://")[0]]
    # A request without an answer times out early enough for two more.
    client = {"timeout": f"{max(1, round(seconds / 3))}s", "connect_timeout": f"{max(1, round(min(5, seconds / 3)))}s"}
    # Options that are passed replace those of the environment, which are therefore among them.
    for option in CLIENT_OPTIONS:
        value = os.environ.get(f"{variables}_{option.upper()}")
        if value is not None:
            client[option] = value
    retry: RetryConfig = {
        "max_retries": 1000,  # limited by time instead
        "retry_timeout": timedelta(seconds=seconds),
        "backoff": {
            "init_backoff": timedelta(seconds=FIRST_PAUSE),
            "max_backoff": timedelta(seconds=LONGEST_PAUSE),
            "base": 2,
        },
    }
    return from_url(url, client_options=cast("ClientConfig", client), retry_config=retry)


# -- requests -------------------------------------------------------------------------------------------------


def stat_object(store: ObjectStore, key: str, uri: str) -> ObjectMeta:
    """Returns size and etag of an object. Raises OSError or StoreUnreachable."""

    def ask() -> ObjectMeta:
        try:
            return obstore.head(store, key)
        except OBSTORE_ERRORS as error:
            if status_of(error) not in (400, 403):
                raise
            # The answer to HEAD has no body, which distinguishes a forbidden object from expired credentials.
            return obstore.get(store, key, options={"range": (0, 1)}).meta

    return with_retries(ask, uri)


def list_objects(store: ObjectStore, prefix: str | None, uri: str) -> Iterator[ObjectMeta]:
    """Yields the objects below ``prefix``, in the store's order. Raises OSError or StoreUnreachable."""
    tries, last = RetryBudget(uri), None
    while True:
        try:
            for batch in obstore.list(store, prefix, offset=last, chunk_size=1000):
                yield from batch
                last = batch[-1]["path"]
                tries.renew()
            return
        except InvalidPathError as error:
            below = f"{prefix}/" if prefix else ""
            try:
                yield from cast(
                    "Iterator[ObjectMeta]", list_raw_objects(store, prefix=below, after=last or "", uri=uri)
                )
            except NotListable:
                raise translate_error(error, uri) from None
            return
        except OBSTORE_ERRORS as error:
            tries.wait(error)


# -- the store of a run ---------------------------------------------------------------------------------------


def store_address(store: ObjectStore) -> str:
    """Returns the URI or path of a store, as the user writes it."""
    if isinstance(store, LocalStore):
        return str(store.prefix)
    scheme = {"S3Store": "s3", "GCSStore": "gs", "AzureStore": "az"}.get(type(store).__name__, type(store).__name__)
    config: dict[str, Any] = dict(getattr(store, "config", {}))
    root = config.get("bucket") or config.get("container_name") or ""
    return "/".join(filter(None, [f"{scheme}://{root}", str(getattr(store, "prefix", None) or "")]))


def missing_store_error(what: str) -> StoreMissing:
    """Returns the error for a store that lost its directory or its record during a command."""
    return StoreMissing(
        f"{what} is gone: it was renamed or removed while this command ran. It is not created again. If it was "
        "renamed, put it back, and run the same command again; if it was removed, that command begins anew."
    )


def put(store: ObjectStore, key: str, data: bytes, *, create: bool = False, lasting: bool = True) -> None:
    """Puts an object, whole or not at all. With ``create``, raises FileExistsError if it exists.

    ``lasting``: returns only when the object would survive a power failure.
    """
    uri = f"{store_address(store)}/{key}"
    with errors_as_unusable(uri):
        try:
            if isinstance(store, LocalStore):
                write_atomically(Path(str(store.prefix)), key, data, create=create, lasting=lasting)
            else:
                with_retries(lambda: obstore.put(store, key, data, mode="create" if create else "overwrite"), uri)
        except FileNotFoundError:
            if isinstance(store, LocalStore):
                raise missing_store_error(store_address(store)) from None
            raise StoreUnusable(f"{uri} cannot be written: no such bucket or container exists.") from None


def delete(store: ObjectStore, key: str) -> None:
    """Deletes an object. An object that does not exist, because another process deleted it, is not an error."""
    uri = f"{store_address(store)}/{key}"
    with errors_as_unusable(uri):
        with suppress(FileNotFoundError):
            with_retries(lambda: obstore.delete(store, key), uri)
        if isinstance(store, LocalStore):
            fsync_names(Path(str(store.prefix)), key)


def read_object(store: ObjectStore, key: str) -> bytes:
    """Returns the whole object. Raises FileNotFoundError if it does not exist."""
    uri = f"{store_address(store)}/{key}"
    with errors_as_unusable(uri):
        return with_retries(lambda: bytes(obstore.get(store, key).bytes()), uri)


def stream_object(store: ObjectStore, key: str) -> Iterator[bytes]:
    """Yields the object in pieces. Raises FileNotFoundError if it does not exist."""
    uri = f"{store_address(store)}/{key}"
    with errors_as_unusable(uri):
        start, size = 0, with_retries(lambda: obstore.head(store, key)["size"], uri)
        while start < size:
            length = min(PIECE, size - start)
            yield bytes(with_retries(partial(obstore.get_range, store, key, start=start, length=length), uri))
            start += length


def list_keys(store: ObjectStore, prefix: str | None = None) -> Iterator[str]:
    """Yields every key below ``prefix``, in the store's order."""
    with errors_as_unusable(store_address(store)):
        yield from (meta["path"] for meta in list_objects(store, prefix, store_address(store)))


@contextmanager
def errors_as_unusable(uri: str) -> Iterator[None]:
    """Raises StoreUnusable in place of an OSError over an object of the run's own store, which ends the run.

    FileNotFoundError and FileExistsError pass unchanged.
    """
    try:
        with translated_errors(uri):
            yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        raise StoreUnusable(f"{error.filename}: {error.strerror}.") from error
