"""A Google Cloud Storage bucket in this process: the part of its XML interface that lists objects, reads them and
checks credentials."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from jobs.storage import object_store

BUCKET = "pictures"
BEARER = "who-asks"
PAGE = 3  # keys


class GoogleBucket(ThreadingHTTPServer):
    """The server: ``objects`` by key; ``asked`` records how each listing with URL encoding was authenticated."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def service_account(self) -> str:
        pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return json.dumps({"client_email": "a@b.c", "private_key_id": "1", "private_key": pem.decode(),
                           "gcs_base_url": f"http://127.0.0.1:{self.server_port}"})  # fmt: skip


@contextmanager
def google(monkeypatch: pytest.MonkeyPatch, who: str) -> Iterator[GoogleBucket]:
    """Starts the server, and sets the usual variables. ``who``: the credentials, `token`, `nobody` or `account`."""
    with GoogleBucket() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
        if who == "account":
            monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", server.service_account())
        else:
            monkeypatch.setenv("GOOGLE_BASE_URL", f"http://127.0.0.1:{server.server_port}")
            monkeypatch.setenv(
                *{"token": ("GOOGLE_BEARER_TOKEN", BEARER), "nobody": ("GOOGLE_SKIP_SIGNATURE", "true")}[who]
            )
        object_store._bucket.cache_clear()
        yield server
        server.shutdown()
    object_store._bucket.cache_clear()


class _Request(BaseHTTPRequestHandler):
    server: GoogleBucket

    def do_GET(self) -> None:
        place, query = urlsplit(self.path), dict(parse_qsl(urlsplit(self.path).query))
        key = unquote(place.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        if "list-type" in query:
            self._answer(self._page(query))
        elif key in self.server.objects:
            data = self.server.objects[key]
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            self._answer(
                part,
                206 if "Range" in self.headers else 200,
                data,
                f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}",
            )
        else:
            self._answer(b"<Error><Code>NoSuchKey</Code></Error>", 404)

    do_HEAD = do_GET

    def _page(self, query: dict[str, str]) -> bytes:
        after = query.get("continuation-token") or query.get("start-after", "")
        keys = [key for key in sorted(self.server.objects) if key.startswith(query.get("prefix", "")) and key > after]
        url = query.get("encoding-type") == "url"
        if url:
            self.server.asked.append(self._who(query))
        lines = "".join(
            f"<Contents><Key>{quote(key) if url else escape(key)}</Key><Size>{len(data)}</Size>"
            f"<ETag>{_etag(data)}</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key, data in ((key, self.server.objects[key]) for key in keys[:PAGE])
        )
        lines += "<EncodingType>url</EncodingType>" if url else ""
        if len(keys) > PAGE:
            lines += f"<NextContinuationToken>{escape(keys[PAGE - 1])}</NextContinuationToken>"
        return f"<ListBucketResult xmlns='http://doc.s3.amazonaws.com/2006-03-01'>{lines}</ListBucketResult>".encode()

    def _who(self, query: dict[str, str]) -> str:
        if "X-Goog-Signature" not in query:
            return self.headers.get("Authorization", "nobody")
        signature = bytes.fromhex(query.pop("X-Goog-Signature"))
        asked = "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))
        lines = ["GET", urlsplit(self.path).path, asked, "host:storage.googleapis.com", "", "host", "UNSIGNED-PAYLOAD"]
        scope = query["X-Goog-Credential"].partition("/")[2]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        text = "\n".join(["GOOG4-RSA-SHA256", query["X-Goog-Date"], scope, digest])
        self.server.key.public_key().verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return "signed"

    def _answer(self, body: bytes, status: int = 200, whole: bytes = b"", content_range: str = "") -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "ETag": _etag(whole), "Last-Modified": formatdate(usegmt=True)}
        for name, value in (headers | ({"Content-Range": content_range} if status == 206 else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
