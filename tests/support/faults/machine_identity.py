"""A fake of the EC2 metadata service, which gives a machine the credentials of its role."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

TOKEN = "a/token+of=this"
LASTING = "2099-01-01T00:00:00Z"


@contextmanager
def machine_identity(monkeypatch: pytest.MonkeyPatch, secret: str) -> Iterator[None]:
    """Removes the static credentials from the environment, and runs a metadata service that returns ``secret``."""
    answers = {"": "role", "role": json.dumps({"AccessKeyId": "MACHINE", "SecretAccessKey": secret, "Token": TOKEN,
                                               "Expiration": LASTING, "Code": "Success", "Type": "AWS-HMAC",
                                               "LastUpdated": "2026-01-01T00:00:00Z"})}  # fmt: skip

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers[self.path.rpartition("/")[2]].encode() if self.command == "GET" else b"session"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
