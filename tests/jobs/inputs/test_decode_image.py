"""Tests that odd and hostile files are decoded to upright 8-bit RGB or rejected with a reason."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, features
from skimage import data as photographs

from jobs.inputs.decode_image import DecodedImage, decode, load_canonical
from jobs.inputs.rejected import RejectedImage
from saliency_core.model.preprocessing import Preprocessing
from tests.support.image_files import CAP, PHOTO, SMALL, encode, orientation_exif, png, read


def reason(data: bytes, *, max_pixels: int = CAP) -> str:
    result = decode(data, SMALL, max_pixels=max_pixels)
    assert isinstance(result, RejectedImage), result
    assert load_canonical(data, max_pixels=max_pixels) == result
    return result.reason


def test_decodes_to_the_model_input_with_the_size_of_the_original() -> None:
    result = decode(encode(PHOTO), SMALL, max_pixels=CAP)
    assert isinstance(result, DecodedImage)
    assert (result.width, result.height) == (41, 31)
    np.testing.assert_array_equal(result.pixels, SMALL.apply(Image.fromarray(PHOTO)))


def test_a_grey_model_gets_one_channel() -> None:
    grey = Preprocessing((31, 41), None, "bilinear", (0.5,), (0.5,), 1)
    values = PHOTO[..., 0]
    result = decode(encode(values), grey, max_pixels=CAP)
    assert isinstance(result, DecodedImage)
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


# --- files without usable pixels -----------------------------------------------------------------------


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
def test_data_that_is_not_an_image_is_rejected_with_a_reason(data: bytes) -> None:
    assert "not an image that Pillow reads" in reason(data)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_file_is_rejected_with_the_message_of_pillow(format_: str) -> None:
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
    assert isinstance(decode(data, SMALL, max_pixels=41 * 31), DecodedImage)
    assert "41×31" in reason(data, max_pixels=41 * 31 - 1)


def test_the_cap_replaces_the_limit_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert isinstance(load_canonical(encode(PHOTO), max_pixels=CAP), Image.Image)
    assert isinstance(load_canonical(b"junk", max_pixels=CAP), RejectedImage)
    assert Image.MAX_IMAGE_PIXELS == 100, "as found"


def test_a_narrow_image_that_the_resize_would_enlarge_too_much_is_rejected() -> None:
    for shape in [(1, 100_000, 3), (100_000, 1, 3)]:
        data = encode(np.zeros(shape, np.uint8))
        result = decode(data, SMALL, max_pixels=CAP)
        assert isinstance(result, RejectedImage)
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
        if isinstance(result, RejectedImage):
            assert result.reason
            result.reason.encode()  # must be encodable for Parquet: no lone surrogates
        else:
            assert result.pixels.shape == (16, 16, 3)
            assert result.width * result.height <= CAP


def test_decode_workers_do_not_import_torch() -> None:
    code = "import sys, jobs.inputs.decode_image; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0
