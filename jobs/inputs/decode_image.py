"""Bytes → uint8 pixels or a reason, never an exception.

Every picture is first made canonical (RGB, 8 bits, upright, no alpha, first frame), so that what a model
sees does not depend on how its file was written; then comes the model's own geometry. This module must not
import torch: decode workers are many.
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

# Raster formats that data sets consist of. Others widen what hostile bytes can reach: EPS starts Ghostscript.
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


@dataclass(frozen=True)  # without slots, with which each would be unpickled field by field, in Python
class DecodedImage:
    """pixels: uint8 [H, W, C] at the model's input size; width, height: of the canonical image."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


def decoding_memory(data: bytes, *, max_pixels: int) -> int:
    """Bytes with which any sound image of so many pixels can be decoded."""
    return 64 * max_pixels + 4 * len(data) + 2**28


# Of TIFF's SampleFormat and PlanarConfiguration.
SIGNED, SEPARATE = 2, 2


# Pillow's raw modes of grey PNGs → what it multiplies their values by.
_GREY_STEPS = {"L;2": 85, "L;4": 17}


class UnsupportedImageError(ValueError):
    """Pillow reads the file, but its values have no one 8-bit meaning."""


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
    """The canonical image at its full size, or why there is none."""
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
    # Pillow's plugins answer hostile bytes with whatever their parsing trips over: OSError, SyntaxError,
    # struct.error, IndexError, KeyError, ZeroDivisionError, MemoryError … One bad file must not stop a unit.
    except Exception as error:  # noqa: BLE001
        return RejectedImage(f"Pillow cannot decode it: {type(error).__name__}: {error}")


def make_canonical(image: Image.Image) -> Image.Image:
    """An opened image as upright 8-bit RGB; alpha lies over white.

    Raises UnsupportedImageError for floats, for signed integers and for those of more than 16 bits, whose white no
    header tells, for what Pillow misreads, and what Pillow raises on damage.
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
    """Scales the clear value of a PNG that is not loaded yet as Pillow scales the pixels, but not that value."""
    clear, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    if isinstance(clear, int) and tiles:
        image.info["transparency"] = clear * _GREY_STEPS.get(tiles[0].args, 1)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """What sets a loaded image upright. (Pillow's exif_transpose also rewrites the EXIF, which can fail.)"""
    try:
        return _TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001  a broken EXIF block counts as none: the pixels are sound
        return None


def _refuse_unknown_white(image: Image.Image) -> None:
    """Raises UnsupportedImageError for a TIFF whose header does not tell what white is, or that Pillow misreads.

    Other formats tell: by their bits, or by a maximum to which Pillow has scaled.
    """
    tags = getattr(image, "tag_v2", {})
    bits = max(_tag_values(tags, ExifTags.Base.BitsPerSample))
    signed = SIGNED in _tag_values(tags, ExifTags.Base.SampleFormat)
    if signed or bits > 16:
        values = np.asarray(image)
        if not signed:
            values = values.view(np.uint32)  # Pillow takes them for signed
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
    found = tags.get(key, 1)  # the default of these tags
    return found if isinstance(found, tuple) else (found,)


def _high_byte(image: Image.Image) -> Image.Image:
    """16 bits → 8 as Pillow does for 16-bit RGB; Image.convert would clip at 255 instead."""
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
    """Without Pillow's own pixel limit, whose error does not tell the size, and without warnings.

    Both are settings of the whole process, hence the lock: one image at a time is decoded in a process.
    """
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
