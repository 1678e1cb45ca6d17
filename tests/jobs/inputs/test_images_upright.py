"""Tests that images of any orientation, mode and depth, with alpha or animated, become upright 8-bit RGB."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.inputs.decode_image import DecodedImage, decode, make_canonical
from tests.support.image_files import CAP, PHOTO, SMALL, encode, orientation_exif, png, read


def png16(values: NDArray[np.uint16], *chunks: tuple[bytes, bytes]) -> bytes:
    """uint16 [H, W] or [H, W, 3] → a PNG of 16 bits."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, 2 if values.ndim == 3 else 0, rows, *chunks)


# The rotation or flip of the stored pixels for each EXIF orientation.
ORIENTATIONS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_gives_the_upright_pixels(format_: str, orientation: int) -> None:
    undo = ORIENTATIONS[{6: 8, 8: 6}.get(orientation, orientation)]
    stored = np.ascontiguousarray(undo(PHOTO))
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encode(stored, format_, exif=orientation_exif(orientation), **options)
    np.testing.assert_array_equal(read(data), PHOTO)
    result = decode(data, SMALL, max_pixels=CAP)
    assert isinstance(result, DecodedImage)
    assert (result.width, result.height) == (41, 31), "of the upright picture"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_of_a_jpeg_rotates_its_pixels(orientation: int) -> None:
    plain, turned = encode(PHOTO, "JPEG"), encode(PHOTO, "JPEG", exif=orientation_exif(orientation))
    np.testing.assert_array_equal(read(turned), ORIENTATIONS[orientation](read(plain)))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0junk that is no TIFF header",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + bytes(7),
        bytes(40),
        orientation_exif(99).tobytes(),
    ],
)
def test_broken_exif_is_ignored(exif: bytes) -> None:
    np.testing.assert_array_equal(read(encode(PHOTO, "PNG", exif=exif)), PHOTO)
    np.testing.assert_array_equal(read(encode(PHOTO, "JPEG", exif=exif)), read(encode(PHOTO, "JPEG")))


def test_cmyk_is_converted() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert (read(encode(ink, "TIFF")) == (255, 0, 0)).all()
    assert np.abs(read(encode(ink, "JPEG")).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colour_spaces_are_converted(mode: str) -> None:
    back = read(encode(Image.fromarray(PHOTO).convert(mode), "TIFF"))
    assert np.abs(back.astype(int) - PHOTO).mean() < 3


def test_16_bits_keep_their_high_byte_in_grey_as_in_rgb() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (31, 41, 3), dtype=np.uint16)
    values[0, :3] = [[0, 255, 256], [32767, 32768, 65279], [65280, 65535, 1]]
    np.testing.assert_array_equal(read(png16(values)), values >> 8)
    grey = values[..., 0]
    high = (grey >> 8)[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(read(png16(grey)), high)
    np.testing.assert_array_equal(read(encode(grey, "PNG")), high)
    np.testing.assert_array_equal(read(encode(grey, "TIFF")), high)
    pgm = b"P5 41 31 65535\n" + grey.astype(">u2").tobytes()
    np.testing.assert_array_equal(read(pgm), high)


def test_16_bit_grey_is_rotated_too() -> None:
    grey = np.arange(6, dtype=np.uint16).reshape(2, 3) << 8
    data = encode(grey, "PNG", exif=orientation_exif(6))
    np.testing.assert_array_equal(read(data)[..., 0], [[3, 0], [4, 1], [5, 2]])


def test_the_transparent_value_of_16_bit_grey_is_compared_exactly() -> None:
    grey = np.array([[0x1200, 0x1234, 0x12FF]], np.uint16)
    data = png16(grey, (b"tRNS", struct.pack(">H", 0x1234)))
    assert read(data)[0, :, 0].tolist() == [0x12, 255, 0x12]


def test_1_bit() -> None:
    bits = PHOTO[..., 0] > 128
    for format_ in ("PNG", "TIFF", "BMP", "PPM"):
        data = encode(Image.fromarray(bits), format_)
        np.testing.assert_array_equal(read(data), np.where(bits, 255, 0)[..., None].repeat(3, axis=2))


def over_white(colour: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    part = alpha[..., None] / 255
    return colour * part + 255 * (1 - part)


ALPHA = np.linspace(0, 255, 31 * 41).astype(np.uint8).reshape(31, 41)


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_over_white(format_: str) -> None:
    options = {"lossless": True, "exact": True} if format_ == "WEBP" else {}
    data = encode(np.dstack([PHOTO, ALPHA]), format_, **options)
    np.testing.assert_allclose(read(data), over_white(PHOTO, ALPHA), atol=1)


def test_grey_with_alpha() -> None:
    grey = PHOTO[..., 0]
    image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(ALPHA)])
    expected = over_white(grey[..., None].repeat(3, axis=2), ALPHA)
    np.testing.assert_allclose(read(encode(image, "PNG")), expected, atol=1)
    np.testing.assert_allclose(np.asarray(make_canonical(image.convert("La"))), expected, atol=8)


def test_palette_with_alpha() -> None:
    image = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(1, 4)).convert("P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    partly = encode(image, "PNG", transparency=bytes([0, 128, 255]))
    expected = over_white(
        np.array([[[200, 0, 0], [0, 200, 0], [0, 0, 200], [9, 9, 9]]], np.uint8),
        np.array([[0, 128, 255, 255]], np.uint8),
    )
    np.testing.assert_allclose(read(partly), expected, atol=1)
    data = encode(image, "PNG", transparency=2)
    assert read(data)[0].tolist() == [[200, 0, 0], [0, 200, 0], [255, 255, 255], [9, 9, 9]]
    assert read(encode(image, "PNG"))[0].tolist() == [[200, 0, 0], [0, 200, 0], [0, 0, 200], [9, 9, 9]]


@pytest.mark.parametrize(("mode", "clear"), [("L", 7), ("RGB", (7, 7, 7)), ("1", 0)], ids=["grey", "colour", "bit"])
def test_a_transparent_colour_is_composited_over_white(mode: str, clear: object) -> None:
    image = Image.fromarray(np.array([[7, 200]], np.uint8)).convert(mode)
    before = np.asarray(image.convert("RGB"))
    expected = np.where(before == (7 if mode != "1" else 0), 255, before)
    np.testing.assert_array_equal(read(encode(image, "PNG", transparency=clear)), expected)


@pytest.mark.parametrize("clear", [0, 1, 2, 3])
@pytest.mark.parametrize("depth", [2, 4])
def test_a_transparent_grey_of_few_bits_is_scaled_like_the_pixels(depth: int, clear: int) -> None:
    values = np.arange(4, dtype=np.uint8)
    packed = np.packbits((values[:, None] >> np.arange(depth - 1, -1, -1)) & 1).tobytes()
    pixels = read(png(4, 1, depth, 0, b"\0" + packed, (b"tRNS", struct.pack(">H", clear))))
    expected = np.where(values == clear, 255, values * (255 // (2**depth - 1)))
    np.testing.assert_array_equal(pixels[0, :, 0], expected)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(PHOTO).quantize(256), Image.new("P", (41, 31), 3)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read(data), np.asarray(frames[0].convert("RGB")))
    colours = [Image.fromarray(PHOTO), Image.new("RGB", (41, 31))]
    for format_, options in [("PNG", {}), ("WEBP", {"lossless": True})]:
        data = encode(colours[0], format_, save_all=True, append_images=colours[1:], **options)
        np.testing.assert_array_equal(read(data), PHOTO)


def test_one_pixel() -> None:
    result = decode(encode(PHOTO[:1, :1]), SMALL, max_pixels=CAP)
    assert isinstance(result, DecodedImage)
    assert (result.pixels == PHOTO[0, 0]).all()
    assert (result.width, result.height) == (1, 1)
