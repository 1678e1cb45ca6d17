"""URIs of files and objects: conversion to and from local paths, and names relative to a root."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from jobs.util.plain_path import plain_path
from saliency_core.errors import InvalidRequestError

REMOTE = ("s3://", "gs://", "az://")


def is_remote(uri: str) -> bool:
    return uri.startswith(REMOTE)


def local_path(uri: str | Path) -> Path:
    """Returns the path of a plain path, or of a percent-encoded `file://` URI.

    Raises InvalidRequestError if the URI names another host.
    """
    if isinstance(uri, str) and uri.startswith("file://"):
        host, slash, path = uri.removeprefix("file://").partition("/")
        if host.lower() not in ("", "localhost") or not slash:
            raise InvalidRequestError(
                f"{uri} has {host or 'nothing'} in the place of the host, and files of other hosts are not read: write "
                "the whole path, with or without file:// before its first slash"
            )
        return Path(os.fsdecode(unquote_to_bytes(f"/{path}")))
    return Path(uri)


def uri_of(path: Path) -> str:
    """Returns the absolute path; if it is not UTF-8, percent-encoded as `file://`, so that any string can hold it."""
    return uri_of_bytes(os.fsencode(path.absolute()))


def uri_of_bytes(path: bytes) -> str:
    """``uri_of`` for an absolute path in bytes."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return f"file://{quote_from_bytes(path)}"


def normalize_uri(uri: str) -> str:
    """Returns the URI as listings write it: absolute, without `..`, without a slash at the end."""
    return uri.rstrip("/") if is_remote(uri) else uri_of(plain_path(local_path(uri)))


def parent_uri(uri: str) -> str:
    return uri.rpartition("/")[0] if is_remote(uri) else uri_of(local_path(uri).absolute().parent)


def relative_key(root: str, uri: str) -> str:
    """Returns the name of `uri`, which a listing wrote, relative to `root`. Bytes that are not UTF-8 become `\\xff`."""
    if is_remote(uri):
        return uri.removeprefix(normalize_uri(root)).removeprefix("/")  # a second slash belongs to the key
    # A listing has millions of these, and building a Path would take most of the time.
    path = unquote_to_bytes(uri.removeprefix("file://")) if uri.startswith("file://") else os.fsencode(uri)
    return path.removeprefix(_absolute(root)).lstrip(b"/").decode("utf-8", "backslashreplace")


@lru_cache(maxsize=64)
def _absolute(root: str) -> bytes:
    return os.fsencode(local_path(root).absolute())
