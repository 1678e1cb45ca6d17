"""Decodes bytes to uint8 pixels, or to a reason; never raises.

Every image is first made canonical (RGB, 8 bits, upright, no alpha, first frame), so that a model's input does not
depend on how the file was written. Then it gets the model's geometry. This module must not import torch, because there
are many decode workers.
"""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from jobs.inputs.rejected import RejectedImage
from saliency_core.model.preprocessing import Preprocessing

# Raster formats of data sets. Others would be an attack surface: EPS starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)  # without slots, which would be unpickled slowly, field by field, in Python
class DecodedImage:
    """Pixels, uint8 [H, W, C], at the model's input size, with the width and height of the canonical image."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


def decoding_memory(data: bytes, *, max_pixels: int) -> int:
    """The bytes of memory with which any valid image of ``max_pixels`` can be decoded."""
    return 64 * max_pixels + 4 * len(data) + 2**28


# Values of TIFF's tags SampleFormat and PlanarConfiguration.
SIGNED, SEPARATE = 2, 2


# Pillow's raw modes of grey PNGs, and the factor by which it multiplies their values.
_GREY_STEPS = {"L;2": 85, "L;4": 17}


class UnsupportedImageError(ValueError):
    """Pillow reads the file, but its values have no unique 8-bit meaning."""


def decode(data: bytes, preprocessing: Preprocessing, *, max_pixels: int) -> DecodedImage | RejectedImage:
    """The bytes of an image file at the model's input size, not yet normalised."""
    image = load_canonical(data, max_pixels=max_pixels)
    if isinstance(image, RejectedImage):
        return image
    width, height = image.size
    needed = preprocessing.resize_pixels(width, height)
    if needed > max_pixels:
        return RejectedImage(
            f"{width}×{height} pixels become {needed} while they are resized for the model, "
            f"over the cap of {max_pixels}: cut the image, or raise --max-pixels"
        )
    return DecodedImage(preprocessing.apply(image), width, height)


def load_canonical(data: bytes, *, max_pixels: int) -> Image.Image | RejectedImage:
    """The canonical image at its full size, or the reason why there is none."""
    if not data:
        return RejectedImage("empty file")
    try:
        with _pillow_unlimited_and_silent():
            image = Image.open(BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels:  # known from the header: no pixel is decoded yet
                return RejectedImage(
                    f"{width}×{height} pixels are over the cap of {max_pixels}: "
                    "if the image is sound, raise --max-pixels"
                )
            return make_canonical(image)
    except UnidentifiedImageError:
        return RejectedImage(f"not an image that Pillow reads (of {', '.join(FORMATS)})")
    except UnsupportedImageError as error:
        return RejectedImage(str(error))
    # Pillow's plugins raise many errors for damaged or hostile bytes: OSError, SyntaxError, struct.error, IndexError,
    # KeyError, ZeroDivisionError, MemoryError … A bad file must not stop its unit.
    except Exception as error:  # noqa: BLE001
        return RejectedImage(f"Pillow cannot decode it: {type(error).__name__}: {error}")


def make_canonical(image: Image.Image) -> Image.Image:
    """Converts an opened image to upright 8-bit RGB; alpha is composited over white.

    Raises UnsupportedImageError for floats, signed integers and integers of more than 16 bits, whose white is not in
    the header, and for what Pillow misreads. Pillow raises its own errors on damage.
    """
    _scale_clear_grey(image)
    image.load()
    turn = _orientation(image)
    if image.mode == "F":
        raise UnsupportedImageError("float pixels have no fixed white: save the image with 8 or 16 bits")
    _refuse_unknown_white(image)
    if image.mode.startswith("I"):
        image = _high_byte(image)
    if image.mode == "La":  # premultiplied grey, which Pillow converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _scale_clear_grey(image: Image.Image) -> None:
    """Scales the transparent value of a PNG that is not loaded yet, because Pillow scales only the pixels."""
    clear, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    if isinstance(clear, int) and tiles:
        image.info["transparency"] = clear * _GREY_STEPS.get(tiles[0].args, 1)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes a loaded image upright. Pillow's exif_transpose rewrites the EXIF, and may fail."""
    try:
        return _TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001  a broken EXIF block is ignored, because the pixels are valid
        return None


def _refuse_unknown_white(image: Image.Image) -> None:
    """Raises UnsupportedImageError for a TIFF whose header does not define white, or that Pillow misreads.

    Other formats define it by their bits, or by a maximum to which Pillow has scaled.
    """
    tags = getattr(image, "tag_v2", {})
    bits = max(_tag_values(tags, ExifTags.Base.BitsPerSample))
    signed = SIGNED in _tag_values(tags, ExifTags.Base.SampleFormat)
    if signed or bits > 16:
        values = np.asarray(image)
        if not signed:
            values = values.view(np.uint32)  # Pillow reads them as signed
        raise UnsupportedImageError(
            f"{'signed' if signed else 'unsigned'} integers of {bits} bits (here from {values.min()} to "
            f"{values.max()}) have no fixed white: save the image with 8 or 16 bits, unsigned"
        )
    if ExifTags.Base.ColorMap in tags and 0 < max(_tag_values(tags, ExifTags.Base.ColorMap)) < 256:
        raise UnsupportedImageError(
            "a TIFF with a palette of 8-bit colours, which TIFF has as 16 bits, so that Pillow reads them as black: "
            "save it again, as RGB"
        )
    if bits > 8 and SEPARATE in _tag_values(tags, ExifTags.Base.PlanarConfiguration) and len(image.getbands()) > 1:
        raise UnsupportedImageError(
            f"a TIFF of {bits} bits whose channels lie one after the other, which Pillow misreads: "
            "save it with interleaved channels"
        )


def _tag_values(tags: Mapping[int, Any], key: int) -> tuple[int, ...]:
    value = tags.get(key, 1)  # the default of these tags
    return value if isinstance(value, tuple) else (value,)


def _high_byte(image: Image.Image) -> Image.Image:
    """Reduces 16 bits to 8 as Pillow does for 16-bit RGB. Image.convert would clip at 255 instead."""
    tags = getattr(image, "tag_v2", None)
    bits, black = ExifTags.Base.BitsPerSample, ExifTags.Base.PhotometricInterpretation
    if tags is not None and (tags.get(bits) == (12,) or tags.get(black, 0) == 0):
        raise UnsupportedImageError(
            "a grey TIFF with 12 bits, or with 16 and white as zero, which Pillow reads unscaled: "
            "save it with 8 bits, or with 16 and black as zero"
        )
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if (clear := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


_PILLOW = threading.Lock()


@contextmanager
def _pillow_unlimited_and_silent() -> Iterator[None]:
    """Disables Pillow's own pixel limit, whose error does not contain the size, and all warnings.

    Both are settings of the process, so a lock admits one thread at a time.
    """
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
