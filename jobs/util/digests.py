"""SHA-256 digests as the project writes them."""

from __future__ import annotations

import hashlib


def sha256_of(data: bytes) -> str:
    """The SHA-256 of ``data``, 64 hexadecimal digits: of objects, images and commits."""
    return hashlib.sha256(data).hexdigest()


def short_digest(data: bytes) -> str:
    """The first 16 digits of the SHA-256 of ``data``: of code and software, which people compare by eye."""
    return sha256_of(data)[:16]
