"""Bytes become upright 8-bit RGB or a reason: odd and hostile files, made here, read for real."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, features
from skimage import data as photographs

from jobs.images import Decoded, canonical, decode, load_canonical
from jobs.reject import Rejected
from saliency_core.preprocessing import Preprocessing

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
    """A PNG by hand, for what Pillow does not write. `rows`: each with its filter byte in front."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def png16(values: NDArray[np.uint16], *chunks: tuple[bytes, bytes]) -> bytes:
    """uint16 [H, W] or [H, W, 3] → a PNG of 16 bits."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, 2 if values.ndim == 3 else 0, rows, *chunks)


def read(data: bytes) -> NDArray[np.uint8]:
    image = load_canonical(data, max_pixels=CAP)
    assert isinstance(image, Image.Image), image
    assert image.mode == "RGB"
    return np.asarray(image)


def reason(data: bytes, *, max_pixels: int = CAP) -> str:
    result = decode(data, SMALL, max_pixels=max_pixels)
    assert isinstance(result, Rejected), result
    assert load_canonical(data, max_pixels=max_pixels) == result
    return result.reason


def test_decodes_to_the_model_input_with_the_size_of_the_original() -> None:
    result = decode(encode(PHOTO), SMALL, max_pixels=CAP)
    assert isinstance(result, Decoded)
    assert (result.width, result.height) == (41, 31)
    np.testing.assert_array_equal(result.pixels, SMALL.apply(Image.fromarray(PHOTO)))


def test_a_grey_model_gets_one_channel() -> None:
    grey = Preprocessing((31, 41), None, "bilinear", (0.5,), (0.5,), 1)
    values = PHOTO[..., 0]
    result = decode(encode(values), grey, max_pixels=CAP)
    assert isinstance(result, Decoded)
    np.testing.assert_array_equal(result.pixels, values[..., None])


@pytest.mark.parametrize("format_", ["PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP", "JPEG2000", "AVIF", "JPEG"])
def test_reads_every_format(format_: str) -> None:
    if format_ == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    result = read(encode(PHOTO, format_, **lossless.get(format_, {})))
    tolerance = {"GIF": 40, "AVIF": 8, "JPEG": 40}.get(format_, 0)
    assert np.abs(result.astype(int) - PHOTO).max() <= tolerance


def test_several_pictures_in_one_jpeg_give_the_first() -> None:
    first, second = Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1])
    data = encode(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read(data), read(encode(first, "JPEG")))


# --- what is not upright 8-bit RGB -------------------------------------------------------------------

# How a viewer turns the stored pixels, for each EXIF orientation.
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


def orientation_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_gives_the_upright_pixels(format_: str, orientation: int) -> None:
    undo = ORIENTATIONS[{6: 8, 8: 6}.get(orientation, orientation)]
    stored = np.ascontiguousarray(undo(PHOTO))
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encode(stored, format_, exif=orientation_exif(orientation), **options)
    np.testing.assert_array_equal(read(data), PHOTO)
    result = decode(data, SMALL, max_pixels=CAP)
    assert isinstance(result, Decoded)
    assert (result.width, result.height) == (41, 31), "of the upright picture"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_of_a_jpeg_turns_its_pixels(orientation: int) -> None:
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
def test_broken_exif_counts_as_none(exif: bytes) -> None:
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
    np.testing.assert_array_equal(read(encode(grey.astype(np.int32), "TIFF")), high)
    pgm = b"P5 41 31 65535\n" + grey.astype(">u2").tobytes()
    np.testing.assert_array_equal(read(pgm), high)


def test_16_bit_grey_turns_too() -> None:
    grey = np.arange(6, dtype=np.uint16).reshape(2, 3) << 8
    data = encode(grey, "PNG", exif=orientation_exif(6))
    np.testing.assert_array_equal(read(data)[..., 0], [[3, 0], [4, 1], [5, 2]])


def test_the_clear_value_of_16_bit_grey_is_exact() -> None:
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
def test_alpha_lies_over_white(format_: str) -> None:
    options = {"lossless": True, "exact": True} if format_ == "WEBP" else {}
    data = encode(np.dstack([PHOTO, ALPHA]), format_, **options)
    np.testing.assert_allclose(read(data), over_white(PHOTO, ALPHA), atol=1)


def test_grey_with_alpha() -> None:
    grey = PHOTO[..., 0]
    image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(ALPHA)])
    expected = over_white(grey[..., None].repeat(3, axis=2), ALPHA)
    np.testing.assert_allclose(read(encode(image, "PNG")), expected, atol=1)
    np.testing.assert_allclose(np.asarray(canonical(image.convert("La"))), expected, atol=8)


def test_palette_with_alpha() -> None:
    image = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(1, 4)).convert("P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    partly = encode(image, "PNG", transparency=bytes([0, 128, 255]))
    expected = over_white(
        np.array([[[200, 0, 0], [0, 200, 0], [0, 0, 200], [9, 9, 9]]], np.uint8),
        np.array([[0, 128, 255, 255]], np.uint8),
    )
    np.testing.assert_allclose(read(partly), expected, atol=1)
    one = encode(image, "PNG", transparency=2)
    assert read(one)[0].tolist() == [[200, 0, 0], [0, 200, 0], [255, 255, 255], [9, 9, 9]]
    assert read(encode(image, "PNG"))[0].tolist() == [[200, 0, 0], [0, 200, 0], [0, 0, 200], [9, 9, 9]]


@pytest.mark.parametrize(("mode", "clear"), [("L", 7), ("RGB", (7, 7, 7)), ("1", 0)], ids=["grey", "colour", "bit"])
def test_a_clear_colour_lies_over_white(mode: str, clear: object) -> None:
    image = Image.fromarray(np.array([[7, 200]], np.uint8)).convert(mode)
    before = np.asarray(image.convert("RGB"))
    expected = np.where(before == (7 if mode != "1" else 0), 255, before)
    np.testing.assert_array_equal(read(encode(image, "PNG", transparency=clear)), expected)


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
    assert isinstance(result, Decoded)
    assert (result.pixels == PHOTO[0, 0]).all()
    assert (result.width, result.height) == (1, 1)


# --- what has no pixels for us ------------------------------------------------------------------------


def test_empty_file() -> None:
    assert reason(b"") == "empty file"


@pytest.mark.parametrize(
    "data",
    [
        b"Not an image, whatever its name ends in.\n",
        b"\0",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\xff\xd8",
        b"RIFF",
    ],
)
def test_what_is_no_image_is_said_so(data: bytes) -> None:
    assert "not an image that Pillow reads" in reason(data)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_file_is_rejected_in_the_words_of_pillow(format_: str) -> None:
    data = encode(photographs.chelsea(), format_)
    why = reason(data[: len(data) * 2 // 3])
    assert "Pillow cannot decode it" in why or "not an image" in why
    if format_ == "JPEG":
        assert "truncated" in why


def test_float_pixels_are_rejected() -> None:
    assert "float" in reason(encode(PHOTO[..., 0].astype(np.float32), "TIFF"))
    assert "float" in reason(b"Pf 1 1 -1.0\n" + struct.pack("<f", 0.5))


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_beyond_16_bits_are_rejected(value: int) -> None:
    assert str(value) in reason(encode(np.full((2, 2), value, np.int32), "TIFF"))


def test_a_grey_tiff_that_pillow_does_not_scale_is_rejected_not_read_dark() -> None:
    white_is_zero = {262: 0}
    assert "white as zero" in reason(encode(np.ones((2, 2), np.uint16), "TIFF", tiffinfo=white_is_zero))


# --- limits ----------------------------------------------------------------------------------------------


def bomb(format_: str) -> bytes:
    """A tiny file whose header claims 40,000 × 40,000 pixels."""
    edge = 40_000
    if format_ == "PNG":
        return png(edge, edge, 8, 2, b"\0")
    data = bytearray(encode(np.zeros((8, 8, 3), np.uint8), format_))
    if format_ == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", edge, edge)
    elif format_ == "GIF":
        data[6:10] = struct.pack("<HH", edge, edge)
    elif format_ == "BMP":
        data[18:26] = struct.pack("<ii", edge, edge)
    return bytes(data)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "BMP"])
def test_a_bomb_is_rejected_by_its_header(format_: str) -> None:
    why = reason(bomb(format_), max_pixels=100_000_000)
    assert "40000×40000" in why
    assert "100000000" in why
    assert "--max-pixels" in why


def test_the_cap_is_the_last_size_that_passes() -> None:
    data = encode(PHOTO)
    assert isinstance(decode(data, SMALL, max_pixels=41 * 31), Decoded)
    assert "41×31" in reason(data, max_pixels=41 * 31 - 1)


def test_the_cap_alone_decides_not_the_limit_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert isinstance(load_canonical(encode(PHOTO), max_pixels=CAP), Image.Image)
    assert isinstance(load_canonical(b"junk", max_pixels=CAP), Rejected)
    assert Image.MAX_IMAGE_PIXELS == 100, "as found"


def test_a_line_that_the_resize_would_blow_up_is_rejected() -> None:
    for shape in [(1, 100_000, 3), (100_000, 1, 3)]:
        data = encode(np.zeros(shape, np.uint8))
        result = decode(data, SMALL, max_pixels=CAP)
        assert isinstance(result, Rejected)
        assert "--max-pixels" in result.reason
        assert "100000" in result.reason


def test_a_text_bomb_inside_a_png_is_rejected() -> None:
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000)))
    why = reason(png(1, 1, 8, 2, bytes(4), text))
    assert "too large" in why


def test_pillow_stays_strict_about_truncation() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


# --- hostile bytes ---------------------------------------------------------------------------------------


def victims() -> dict[str, bytes]:
    palette = Image.fromarray(PHOTO).quantize(16)
    exif = orientation_exif(6)
    return {
        "jpeg": encode(PHOTO, "JPEG", exif=exif),
        "progressive": encode(PHOTO, "JPEG", progressive=True),
        "png": encode(PHOTO, "PNG", exif=exif),
        "png-palette": encode(palette, "PNG", transparency=3),
        "png-16": encode(PHOTO[..., 0].astype(np.uint16) << 8, "PNG"),
        "gif": encode(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
        "webp": encode(PHOTO, "WEBP", exif=exif),
        "bmp": encode(palette, "BMP"),
        "tiff": encode(PHOTO, "TIFF", exif=exif),
        "tiff-lzw": encode(PHOTO, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": encode(PHOTO, "TIFF", compression="jpeg"),
        "ppm": encode(PHOTO, "PPM"),
        "jpeg2000": encode(PHOTO, "JPEG2000"),
    }


@pytest.mark.parametrize("name", victims())
def test_damage_gives_pixels_or_a_reason(name: str) -> None:
    """Warnings are errors in this suite, so this also shows that none leaks."""
    whole = victims()[name]
    random = np.random.default_rng(sum(name.encode()))
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(random.integers(0, 8)):
            # Half of the hits go to the first 200 bytes, where the headers are.
            reach = len(data) if random.random() < 0.5 else min(200, len(data))
            data[random.integers(reach)] ^= 1 << int(random.integers(8))
        if random.random() < 0.3:
            del data[random.integers(1, len(data)) :]
        result = decode(bytes(data), SMALL, max_pixels=CAP)
        if isinstance(result, Rejected):
            assert result.reason
            result.reason.encode()  # goes into Parquet: no lone surrogates
        else:
            assert result.pixels.shape == (16, 16, 3)
            assert result.width * result.height <= CAP


def test_decode_workers_do_not_import_torch() -> None:
    code = "import sys, jobs.images; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0
