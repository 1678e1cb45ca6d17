"""An S3 server (moto) in this process, used over HTTP."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from jobs.storage import object_store

BUCKET = "pictures"


@contextmanager
def server(monkeypatch: pytest.MonkeyPatch, address: str = "127.0.0.1", *, secret: str = "SECRET") -> Iterator[str]:
    """Starts the server, points the usual environment variables at it, and yields the URI of an empty bucket."""
    with warnings.catch_warnings():  # from modules that moto imports
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    object_store._bucket.cache_clear()
    try:
        _client().create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"
    finally:
        urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # its state is global
        moto.stop()
        object_store._bucket.cache_clear()


def upload(root: Path, prefix: str) -> str:
    """Uploads the files below `root` under `prefix`. Returns the URI of the prefix."""
    client = _client()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            put(f"{prefix}/{path.relative_to(root)}", path.read_bytes(), client)
    return f"s3://{BUCKET}/{prefix}"


def put(key: str, data: bytes, client: object = None) -> None:
    (client or _client()).put_object(Bucket=BUCKET, Key=key, Body=data)  # type: ignore[attr-defined]


def objects(prefix: str) -> dict[str, bytes]:
    """Returns the objects under a prefix, by the rest of their key."""
    client = _client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")  # type: ignore[attr-defined]
    keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
    return {
        key.removeprefix(f"{prefix}/"): client.get_object(Bucket=BUCKET, Key=key)["Body"].read()  # type: ignore[attr-defined]
        for key in keys
    }


def _client() -> object:
    import boto3

    return boto3.client("s3")  # type: ignore[no-any-return]
