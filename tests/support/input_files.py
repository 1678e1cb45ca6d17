"""Writes images, tars and Parquet tables for tests of the inputs."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Members = list[tuple[str, bytes]]


def picture(shade: int = 0, size: tuple[int, int] = (8, 6)) -> bytes:
    """Returns a small PNG. Its bytes depend on `shade` (0..255)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 255 - shade, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_tar(path: Path, members: Members, *, form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def extracted(path: Path) -> Members:
    """Returns each regular member of a tar with its bytes, as `tarfile` extracts them."""
    with tarfile.open(path) as tar:
        files = [(member.name, tar.extractfile(member)) for member in tar if member.isreg()]
        return [(name, file.read()) for name, file in files if file]


FOUR: Members = [(f"{name}.png", picture(i)) for i, name in enumerate("abcd")]


def offsets(tar: Path) -> dict[str, tuple[int, int]]:
    """Returns, for each member name, the offsets of its header and of its data."""
    with tarfile.open(tar) as opened:
        return {member.name: (member.offset, member.offset_data) for member in opened}


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def write_parquet(path: Path, columns: dict[str, object], **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path
