"""An HTTP proxy in front of a store's server that fails as networks and stores do. It does not alter what it passes on.

Whether a request fails depends on a seed, the request, and the number of earlier requests for its path. It does not
depend on the order in which threads send requests.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("503", "500", "reset", "lost", "cut", "trickle")
"""The faults that ``seeded`` draws from by default.

- ``503``, ``500``: the proxy answers with this status.
- ``reset``: it resets the connection and does not pass the request on.
- ``lost``: it passes the request on, and resets the connection before the answer.
- ``cut``: it resets the connection in the middle of the answer's body.
- ``trickle``: it sends the answer's body slowly, in small pieces.

A script may also return ``late`` (passed on after a delay), ``hang`` (no answer while the proxy runs), or
``<status> <code>``, such as ``403 RequestTimeTooSkewed``.
"""

Script = Callable[[str, str, int], str | None]
"""A function: method, path with query, number of earlier requests for the path → a fault, or None."""


def seeded(share: float, faults: Sequence[str] = FAULTS, *, seed: int = 0) -> Script:
    """Returns a script that lets a random share of the requests fail."""

    def script(method: str, path: str, times: int) -> str | None:
        dice = random.Random(f"{seed} {method} {path} {times}")
        return dice.choice(faults) if dice.random() < share else None

    return script


class FaultProxy:
    """The proxy. It passes everything on until ``script`` is set.

    ``seen`` counts requests by method, ``failed`` by fault. ``most`` is the highest number of ``late`` requests that
    waited at the same time.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.script: Script | None = None
        self.seen: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.most = self._waiting = 0
        self.over = threading.Event()
        self._times: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._kept: socket.socket | None = None
        self._address = ("127.0.0.1", 0)
        self.up()

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self._address)

    def up(self) -> None:
        """Listens at the same address as before."""
        self._server = _Server(self._address, self)
        self._address = self._server.server_address[:2]
        self._release()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Refuses new connections, and resets the open ones."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            # Keeps the port reserved, because a client's outgoing connection could take it as its local port.
            self._kept = socket.socket()
            self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._kept.bind(self._address)
        for connection in list(self._open):
            reset(connection)

    def _release(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def forget(self) -> None:
        """Resets the numbers of earlier requests."""
        self._times.clear()

    def fault(self, method: str, path: str) -> str | None:
        with self._lock:
            self.seen[method] += 1
            asked = method, urlsplit(path).path  # each attempt of a multipart upload has another query
            times = self._times[asked]
            self._times[asked] += 1
            fault = self.script(method, path, times) if self.script else None
            if fault is not None:
                self.failed[fault] += 1
        return fault

    def keep_waiting(self) -> None:
        with self._lock:
            self._waiting += 1
            self.most = max(self.most, self._waiting)
        time.sleep(0.2)
        with self._lock:
            self._waiting -= 1

    def close(self) -> None:
        self.over.set()
        self.down()
        self._release()


@contextmanager
def faulty(upstream: str) -> Iterator[FaultProxy]:
    """Runs a proxy in front of ``upstream``."""
    proxy = FaultProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()


def reset(connection: socket.socket) -> None:
    """Closes the connection with RST, as a peer that crashes does."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it
    except OSError:
        pass  # the connection has already ended
    connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler)

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        self.proxy._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self.proxy._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints nothing: broken connections are the purpose of this server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.fault(self.command, self.path)
        if fault == "hang":
            proxy.over.wait()
        if fault == "late":
            proxy.keep_waiting()
        if fault in ("hang", "reset"):
            self._reset()
        elif fault is not None and fault[0].isdigit():
            status, _, code = fault.partition(" ")
            self._refuse(int(status), code or {"503": "SlowDown"}.get(status, "InternalError"))
        else:
            self._pass_on(body, fault)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Prints nothing."""

    def _reset(self) -> None:
        self.close_connection = True
        reset(self.connection)

    def _refuse(self, status: int, code: str) -> None:
        told = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as scripted</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(told)

    def _pass_on(self, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection(self.server.proxy.upstream, timeout=60)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers.items()))
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if fault == "lost" or (fault == "cut" and not data):
            return self._reset()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", (answer.getheader("Content-Length") if not data else None) or str(len(data)))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            time.sleep(0.05)  # a reset may discard bytes that were sent just before it
            return self._reset()
        pieces = max(1, len(data) // 8) if fault == "trickle" else max(1, len(data))
        for start in range(0, len(data), pieces):
            self.wfile.write(data[start : start + pieces])
            if fault == "trickle":
                self.wfile.flush()
                time.sleep(0.02)
        return None
