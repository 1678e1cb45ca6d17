"""A FUSE file system that leaves some requests unanswered, as a dead network mount does. It needs root."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, OPENDIR, READDIR, BATCH_FORGET = (
    1, 2, 3, 14, 15, 18, 25, 26, 27, 28, 42
)  # fmt: skip
STUCK = {LOOKUP: "lookup", OPEN: "open", READ: "read"}
"""Request → the prefix of the file names for which it stays unanswered."""
MNT_FORCE, MNT_DETACH = 1, 2
LONG = 3600
PARALLEL = 1 << 18  # a lookup that hangs does not block lookups of other names


@contextmanager
def stuck_mount(where: Path, data: bytes) -> Iterator[None]:
    """Mounts a folder at ``where`` in which every name is a file with content ``data``.

    Files named ``lookup…``, ``open…`` and ``read…`` hang at that request. Raises OSError if this process may not mount.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        where.mkdir(exist_ok=True)
        options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
        if libc.mount(b"stuck", bytes(where), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), "cannot mount")
        Thread(target=_serve, args=(device, data), daemon=True).start()
        try:
            yield
        finally:
            libc.umount2(bytes(where), MNT_FORCE | MNT_DETACH)  # requests that hang get an error
    finally:
        os.close(device)


def _serve(device: int, data: bytes) -> None:
    names = {1: ""}
    with suppress(OSError):  # unmounted
        while True:
            request = os.read(device, 1 << 20)
            _, code, unique, node = struct.unpack_from("<IIQQ", request)
            if code in (FORGET, BATCH_FORGET):
                continue
            if code == LOOKUP:
                name = request[40:].rstrip(b"\0").decode()
                node = len(names) + 1
                names[node] = name
            if code in STUCK and names[node].startswith(STUCK[code]):
                continue
            answer = _answer(code, node, request[40:], data)
            error = 0 if answer is not None else -38  # ENOSYS
            os.write(device, struct.pack("<IiQ", 16 + len(answer or b""), error, unique) + (answer or b""))


def _answer(code: int, node: int, question: bytes, data: bytes) -> bytes | None:
    if code == INIT:
        return struct.pack("<IIIIHHIIHHI", 7, 31, 65536, PARALLEL, 12, 9, 65536, 1, 0, 0, 0).ljust(64, b"\0")
    if code == LOOKUP:
        return struct.pack("<QQQQII", node, 0, LONG, LONG, 0, 0) + _attributes(node, len(data))
    if code == GETATTR:
        return struct.pack("<QII", LONG, 0, 0) + _attributes(node, len(data))
    if code in (OPEN, OPENDIR):
        return struct.pack("<QII", node, 0, 0)
    if code == READ:
        _, offset, size = struct.unpack_from("<QQI", question)
        return data[offset : offset + size]
    return b"" if code in (FLUSH, RELEASE, READDIR) else None


def _attributes(node: int, size: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644
    return struct.pack("<6Q10I", node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
