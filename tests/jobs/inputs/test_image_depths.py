"""Tests that the header defines white: each depth is scaled to 8 bits by it or refused, whatever the pixels are."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from jobs.inputs.decode_image import load_canonical
from jobs.inputs.rejected import RejectedImage
from tests.support.image_files import CAP, encode, png, read

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
WHITE = {"uint8": 255, "uint16": 65535, "int8": 127, "int16": 32767, "uint32": 2**32 - 1, "int32": 2**31 - 1}


def ramp(white: float, kind: str, *, channels: int = 0) -> NDArray[np.generic]:
    values = (RAMP * white).round().astype(kind)
    return np.repeat(values[..., None], channels, axis=-1) if channels else values


def tiff(values: NDArray[np.generic], **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def rgb_tiff(kind: str, **options: object) -> bytes:
    return tiff(ramp(WHITE[kind], kind, channels=3), photometric="rgb", **options)


def planes(kind: str) -> bytes:
    values = np.moveaxis(ramp(WHITE[kind], kind, channels=3), -1, 0)
    return tiff(values, photometric="rgb", planarconfig="separate")


def inks(kind: str) -> bytes:
    values = WHITE[kind] - ramp(WHITE[kind], kind, channels=4)
    values[..., 3] = 0
    return tiff(values.astype(kind), photometric="separated")


def pnm(white: int, magic: str) -> bytes:
    channels = 3 if magic in ("P3", "P6") else 0
    values = ramp(white, "u2" if white > 255 else "u1", channels=channels)
    head = f"{magic} 16 16 {white}\n".encode()
    if magic in ("P2", "P3"):
        return head + b" ".join(b"%d" % value for value in values.ravel())
    return head + values.astype(">u2" if white > 255 else "u1").tobytes()


def grey_png(depth: int) -> bytes:
    values = ramp(2**depth - 1, "u2")
    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(16, -1).astype(np.uint8), axis=1)
    return png(16, 16, depth, 0, b"".join(b"\0" + row.tobytes() for row in rows))


def palette_tiff(step: int = 257) -> bytes:
    colours = np.tile(np.arange(256, dtype=np.uint16) * step, (3, 1))
    return tiff(ramp(255, "u1"), photometric="palette", colormap=colours)


# file, and the depth's number of grey steps between black and white
SCALED = {
    **{f"{kind} TIFF": (tiff(ramp(WHITE[kind], kind)), WHITE[kind]) for kind in ("uint8", "uint16")},
    **{f"{kind} TIFF, big": (tiff(ramp(WHITE[kind], kind), byteorder=">"), 255) for kind in ("uint8", "uint16")},
    **{f"{kind} RGB TIFF": (rgb_tiff(kind), 255) for kind in ("uint8", "uint16")},
    **{f"{kind} RGB TIFF, big": (rgb_tiff(kind, byteorder=">"), 255) for kind in ("uint8", "uint16")},
    **{f"{kind} CMYK TIFF": (inks(kind), 255) for kind in ("uint8", "uint16")},
    "uint8 RGB TIFF, planes": (planes("uint8"), 255),
    "uint8 TIFF, white is 0": (tiff(255 - ramp(255, "u1"), photometric="miniswhite"), 255),
    "palette TIFF": (palette_tiff(), 255),
    "1-bit TIFF": (encode(Image.fromarray(RAMP >= 0.5), "TIFF"), 1),
    "YCbCr TIFF": (encode(Image.fromarray(ramp(255, "u1", channels=3)).convert("YCbCr"), "TIFF"), 255),
    **{f"{depth}-bit PNG": (grey_png(depth), 2**depth - 1) for depth in (1, 2, 4, 8, 16)},
    "16-bit JPEG 2000": (encode(ramp(65535, "u2"), "JPEG2000"), 255),
    **{f"{magic} {white}": (pnm(white, magic), white) for magic in ("P2", "P3", "P5", "P6")
       for white in (1, 3, 100, 255, 1023, 4095, 65535)},
    "GIF": (encode(ramp(255, "u1"), "GIF"), 255),
    "BMP": (encode(ramp(255, "u1"), "BMP"), 255),
}  # fmt: skip
REFUSED = {
    **{f"{kind} TIFF up to {white}{more.get('byteorder', '')}": (tiff(ramp(white, kind), **more), "no fixed white")
       for kind in ("int8", "int16", "int32", "uint32") for white in (100, WHITE[kind])
       for more in ({}, {"byteorder": ">"}, {"compression": "zlib"}) if (kind, more) != ("uint32", {"byteorder": ">"})},
    "uint32 TIFF up to 248": (tiff(ramp(248, "uint32")), "unsigned integers of 32 bits (here from 0 to 248)"),
    "int32 TIFF up to 65535": (encode(ramp(65535, "int32"), "TIFF"), "no fixed white"),
    "uint32 TIFF, big": (tiff(ramp(100, "uint32"), byteorder=">"), "not an image"),
    **{f"{kind} TIFF": (tiff(ramp(1, kind)), reason) for kind, reason in
       {"float16": "not an image", "float32": "float", "float64": "not an image"}.items()},
    **{f"{kind} TIFF": (tiff(ramp(100, kind)), "not an image") for kind in ("int64", "uint64")},
    **{f"{kind} RGB TIFF": (rgb_tiff(kind), "not an image") for kind in ("int8", "int16", "int32", "uint32")},
    "palette TIFF of 8-bit colours": (palette_tiff(1), "8-bit colours"),
    "uint16 RGB TIFF, planes": (planes("uint16"), "one after the other"),
    "uint16 TIFF, white is 0": (tiff(ramp(65535, "u2"), photometric="miniswhite"), "white as zero"),
    "5 bands": (tiff(ramp(255, "u1", channels=5), photometric="minisblack", planarconfig="contig"), "not an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_white_and_black_are_the_ends_of_every_depth(name: str) -> None:
    data, steps = SCALED[name]
    pixels = read(data).astype(float)
    assert pixels.min() <= 2 and pixels.max() >= 253
    assert np.abs(pixels - 255 * RAMP[..., None]).max() <= 255 / (2 * steps) + 2


@pytest.mark.parametrize("name", REFUSED)
def test_a_depth_without_a_fixed_white_is_refused(name: str) -> None:
    data, reason = REFUSED[name]
    result = load_canonical(data, max_pixels=CAP)
    assert isinstance(result, RejectedImage), result
    assert reason in result.reason


def test_a_dark_image_stays_dark() -> None:
    """A 16-bit image with small values stays dark, because the header defines white."""
    assert read(tiff(ramp(100, "uint16"))).max() == 0
    assert read(pnm(65535, "P5").replace(b"\xff", b"\x00")).max() < 255
