"""Tests thousands of mutated images and tars in the whole job: none stops it, none is lost, no other map changes."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.inputs.entry import Entry, SourceError
from jobs.inputs.fetch import fetch
from jobs.inputs.sources import list_entries, open_sources
from jobs.store.arrays import open_array
from jobs.store.store_access import open_run
from tests.conftest import run_inline
from tests.support.input_files import write_tar

FORMS = {
    "jpg": ("JPEG", {}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "palette.png": ("PNG", {"bits": 4}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "lzw.tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "jpeg.tiff": ("TIFF", {"compression": "jpeg"}),
    "bmp": ("BMP", {}),
}
KEYS = {"unit_size": 256, "batch_size": 32, "max_pixels": 10**7, "max_seconds": 30}


def encoded(draw: np.random.Generator, name: str) -> bytes:
    """An encoded small image, half of it smooth and half noise."""
    form, options = FORMS[name]
    height, width = draw.integers(8, 48, 2)
    pixels = draw.integers(0, 256, (height, width, 3)).astype(np.uint8)
    pixels[: height // 2] = pixels[0, 0]
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.quantize(16) if "palette" in name else image).save(buffer, form, **options)
    return buffer.getvalue()


def mutated(draw: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Flips bits, truncates, or splices in a piece of ``other``; half of the changes are in the first 100 bytes."""

    def place(length: int) -> int:
        return int(draw.integers(length if draw.random() < 0.5 else min(length, 100)))

    changed = bytearray(data)
    match draw.integers(3):
        case 0:
            for _ in range(draw.integers(1, 9)):
                changed[place(len(changed))] ^= 1 << int(draw.integers(8))
        case 1:
            del changed[place(len(changed)) :]
        case _:
            at, start = place(len(changed)), place(len(other))
            piece = other[start : start + int(draw.integers(1, 65))]
            changed[at : at + (len(piece) if draw.random() < 0.5 else 0)] = piece
    return bytes(changed)


def victims(draw: np.random.Generator, number: int) -> Iterator[tuple[str, bytes]]:
    """Mutated images of each format in turn; the source of a splice has any format."""
    names = list(FORMS)
    for i in range(number):
        name = names[i % len(names)]
        yield f"{i:05d}.{name}", mutated(draw, encoded(draw, name), encoded(draw, names[draw.integers(len(names))]))


def explained(out: Path) -> tuple[list[dict[str, object]], NDArray[np.float32]]:
    """The index lines and the maps. Asserts that they agree for every row."""
    lines = pq.read_table(out / "index.parquet").to_pylist()
    maps = open_array(open_run(str(out))[0], "predicted/gradient")[:]
    assert [line["row"] for line in lines] == list(range(len(maps)))
    for line, values in zip(lines, maps, strict=True):
        if line["status"] == "quarantined":
            assert line["error"] and np.isnan(values).all()
        else:
            assert line["predicted__status"] == "ok" and line["error"] is None and np.isfinite(values).all()
    return lines, maps


@pytest.mark.slow
def test_mutated_images(tmp_path: Path) -> None:
    """A folder of 10,000 mutated images, with a sound image after every tenth."""
    draw = np.random.default_rng(11)
    sound, mixed = tmp_path / "sound", tmp_path / "mixed"
    for folder in (sound, mixed):
        folder.mkdir()
    for i, (name, data) in enumerate(victims(draw, 10_000)):
        (mixed / name).write_bytes(data)
        if i % 10 == 0:
            form = list(FORMS)[i // 10 % len(FORMS)]
            for folder in (sound, mixed):
                (folder / f"{i:05d}-sound.{form}").write_bytes(encoded(np.random.default_rng(i), form))
    assert run_inline(images=str(sound), out=str(tmp_path / "a"), **KEYS)[0] == 0
    code, output = run_inline(images=str(mixed), out=str(tmp_path / "b"), **KEYS)
    assert code == 3, output
    lines, maps = explained(tmp_path / "b")
    assert {line["sample_id"] for line in lines} == {path.name for path in mixed.iterdir()}
    print(Counter(line["status"] for line in lines))
    rows = {line["sample_id"]: line["row"] for line in lines}
    for line, values in zip(*explained(tmp_path / "a"), strict=True):
        np.testing.assert_array_equal(maps[rows[line["sample_id"]]], values, err_msg=line["sample_id"])


@pytest.mark.slow
def test_mutated_tars(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """300 tars, mutated anywhere or only in their headers. Each loss is reported by a row or a warning.

    Unchanged members have the same maps as in the original tars.
    """
    draw = np.random.default_rng(12)
    for folder in ("tars", "whole"):
        (tmp_path / folder).mkdir()
    for i in range(300):
        members = [(f"{k}.{name}", encoded(draw, name)) for k, name in enumerate(draw.permutation(list(FORMS))[:6])]
        form = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)[i % 3]
        if form != tarfile.USTAR_FORMAT:
            members.append((f"{'long ' * 30}.png", encoded(draw, "png")))
        path = write_tar(tmp_path / f"tars/{i:03d}.tar", members, form=form)
        data = path.read_bytes()
        (tmp_path / "whole" / path.name).write_bytes(data)
        path.write_bytes(hit_headers(draw, data) if i % 2 else mutated(draw, data, data))
        hold_tar(path, [data for _, data in members], caplog)
    write_tar(tmp_path / "tars/sound.tar", [("0.png", encoded(draw, "png"))])
    code, output = run_inline(images=str(tmp_path / "tars"), out=str(tmp_path / "s"), **KEYS)
    assert code == 3, output
    lines, maps = explained(tmp_path / "s")
    print(Counter(line["status"] for line in lines))
    assert len(lines) == sum(len(listed(path)[0]) for path in (tmp_path / "tars").iterdir())
    assert run_inline(images=str(tmp_path / "whole"), out=str(tmp_path / "w"), **KEYS)[0] == 0
    whole = {line["sha256"]: values for line, values in zip(*explained(tmp_path / "w"), strict=True)}
    unharmed = [(line, values) for line, values in zip(lines, maps, strict=True) if line["sha256"] in whole]
    assert len(unharmed) > 1000
    for line, values in unharmed:
        np.testing.assert_array_equal(values, whole[line["sha256"]], err_msg=line["sample_id"])


def listed(path: Path) -> tuple[list[Entry], int]:
    """The entries of a tar and its number of ignored members; a refused tar without entries counts as one."""
    try:
        sources = open_sources([str(path)])
        entries = list(list_entries(sources))
        return entries, sum(source.ignored.total() for source in sources)
    except SourceError:
        return [], 1


def hold_tar(path: Path, members: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    """Asserts that every member is unchanged, or that a row, a count or a warning reports a loss."""
    caplog.clear()
    entries, ignored = listed(path)
    fetched = fetch(entries, max_bytes=2**20)
    unharmed = sum(data in members for data in fetched)
    reported = sum(data not in members for data in fetched) + ignored + ("cut off" in caplog.text)
    assert unharmed == len(members) or reported, path


def hit_headers(draw: np.random.Generator, data: bytes) -> bytes:
    """Flips bits in headers only; headers are found at multiples of 512 bytes."""
    changed = bytearray(data)
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(draw.integers(1, 4)):
        changed[int(draw.choice(headers)) + int(draw.integers(512))] ^= 1 << int(draw.integers(8))
    return bytes(changed)
