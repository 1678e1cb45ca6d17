"""Encodes image files, some byte by byte, and decodes them as the job does."""

import struct
import zlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data as photographs

from jobs.inputs.decode_image import load_canonical
from saliency_core.model.preprocessing import Preprocessing

CAP = 2_000_000
SMALL = Preprocessing(16, (16, 16), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 3)
# A corner of a cat, odd in both edges: 41 wide, 31 high.
PHOTO = np.ascontiguousarray(photographs.chelsea()[100:131, 200:241])


def encode(image: Image.Image | NDArray[np.generic], format_: str = "PNG", **options: object) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Builds a PNG that Pillow cannot write. Each row in `rows` starts with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def read(data: bytes) -> NDArray[np.uint8]:
    image = load_canonical(data, max_pixels=CAP)
    assert isinstance(image, Image.Image), image
    assert image.mode == "RGB"
    return np.asarray(image)


def orientation_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif
