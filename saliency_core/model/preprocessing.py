"""Turns an RGB image into a model's input: resize, centre crop and normalisation.

The resize and the crop run in PIL on the CPU, bit for bit as torchvision's transforms do on a PIL image.
The normalisation runs on the batch's device. torch is imported only by functions that take tensors, so that a
decode worker starts fast and uses little memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saliency_core.model.geometry import Geometry

if TYPE_CHECKING:
    import torch

MAX_EDGE = 4096
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_EXPLICIT = "give the preprocessing by explicit keys: resize, crop, interpolation, mean, std, channels"


@dataclass(frozen=True)
class Preprocessing:
    """The steps that turn an RGB image into a model's input.

    Args:
        resize: The length of the shorter edge in pixels, keeping the aspect ratio; or the exact (height, width); or
            None for no resize.
        crop: The (height, width) cut from the centre, padded with black if the image is smaller; or None.
        interpolation: One of ``FILTERS``, which are PIL's (antialiased, except for nearest).
        mean: One number per channel, for pixels from 0 to 1.
        std: One number per channel, for pixels from 0 to 1.
        channels: 3 for RGB, 1 for grey.

    Raises:
        ValueError: The values contradict each other, or do not determine the input's size.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int

    def __post_init__(self) -> None:
        if isinstance(self.resize, tuple):
            _check_pair("resize", self.resize)
        elif self.resize is not None:
            _check_edge("resize", self.resize)
        if self.crop is not None:
            _check_pair("crop", self.crop)
        elif not isinstance(self.resize, tuple):
            raise ValueError(
                f"resize={self.resize} without a crop leaves the model's input size open, and all images of a batch "
                "need the same size: give crop=(height, width), or an exact resize=(height, width)"
            )
        if self.interpolation not in FILTERS:
            raise ValueError(f"interpolation={self.interpolation!r} is unknown: use {', '.join(FILTERS)}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels} is neither 1 (grey) nor 3 (RGB)")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name}={values} must be {self.channels} finite numbers, one per channel")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} divides the pixels, so each must be above 0")

    @property
    def input_size(self) -> tuple[int, int]:
        """The (H, W) of the model's input."""
        size = self.crop or self.resize
        assert isinstance(size, tuple)
        return size

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resizes and crops an RGB image, with the same result as torchvision.

        Args:
            image: A PIL image of mode RGB.

        Returns:
            The pixels, uint8 [H, W, C].

        Raises:
            ValueError: The image is not of mode RGB.
        """
        if image.mode != "RGB":
            raise ValueError(f"an image of mode {image.mode} cannot be preprocessed: convert it to RGB first")
        if self.channels == 1:
            image = image.convert("L")
        image = image.resize(self.resized_size(*image.size), FILTERS[self.interpolation])
        height, width = self.input_size
        left, top = _crop_start(image.width, width), _crop_start(image.height, height)
        image = image.crop((left, top, left + width, top + height))
        return np.array(image).reshape(height, width, self.channels)

    def normalise(self, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Computes (x / 255 − mean) / std.

        The computation is in float32 (in float64 if that is the dtype), and the result is rounded to a smaller dtype.

        Args:
            images: Pixels, uint8 [n, H, W, C].
            dtype: The dtype of the result.

        Returns:
            The model's input, dtype [n, C, H, W], contiguous, on the same device.
        """
        import torch

        work = torch.float64 if dtype == torch.float64 else torch.float32
        x = images.permute(0, 3, 1, 2).to(work, memory_format=torch.contiguous_format)
        # Divides by tensors, because CUDA divides by a number through its reciprocal, which rounds differently.
        x /= _constant((255,), work, x.device)
        x -= _constant(self.mean, work, x.device)
        x /= _constant(self.std, work, x.device)
        return x.to(dtype)

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Computes the size of an image after the resize and before the crop, with torchvision's rounding.

        Args:
            width: The image's width in pixels.
            height: The image's height in pixels.

        Returns:
            The resized (width, height).
        """
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        longer = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, longer) if width <= height else (longer, self.resize)

    def resize_pixels(self, width: int, height: int) -> int:
        """Computes the size of the largest intermediate image of `apply`, in which PIL resizes the width first.

        Check it before decoding: a line of 1 × 100,000 pixels is a tiny file, but if its shorter edge becomes 256, its
        longer one becomes 25,600,000.

        Args:
            width: The image's width in pixels.
            height: The image's height in pixels.

        Returns:
            The number of pixels.
        """
        new_width, new_height = self.resized_size(width, height)
        return new_width * max(height, new_height)

    def geometry(self, width: int, height: int) -> Geometry:
        """Computes the box that the model's input covers in an image.

        Args:
            width: The image's width in pixels, after its EXIF orientation.
            height: The image's height in pixels, after its EXIF orientation.

        Returns:
            The box, in the image's pixels.
        """
        new_width, new_height = self.resized_size(width, height)
        rows, columns = self.input_size
        left, top = _crop_start(new_width, columns), _crop_start(new_height, rows)
        return Geometry(
            left=left * width / new_width,
            top=top * height / new_height,
            right=(left + columns) * width / new_width,
            bottom=(top + rows) * height / new_height,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as plain JSON types, for run.json."""
        values = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Builds a Preprocessing from the result of `to_dict`.

        Args:
            values: The keys and values, all of them.

        Raises:
            ValueError: Keys are missing or unknown, or the values contradict each other.
        """
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            raise ValueError(
                f"preprocessing has the keys {sorted(values)} but needs exactly {sorted(expected)}: "
                "add the missing keys and remove the unknown ones"
            )
        keys: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**keys)

    @classmethod
    def from_torchvision(cls, transforms: object) -> Preprocessing:
        """Builds a Preprocessing from the `transforms()` of torchvision's classification weights.

        Args:
            transforms: The transforms.

        Raises:
            ValueError: The transforms are not an ``ImageClassification`` preset.
        """
        from torchvision.transforms._presets import ImageClassification

        if not isinstance(transforms, ImageClassification):
            raise ValueError(f"{type(transforms).__name__} is not an ImageClassification preset: {_EXPLICIT}")
        resize, crop = transforms.resize_size, transforms.crop_size
        return cls(
            resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]),
            crop=(crop[0], crop[-1]),
            interpolation=transforms.interpolation.value,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            channels=len(transforms.mean),
        )

    @classmethod
    def from_timm(cls, data_config: Mapping[str, Any]) -> Preprocessing:
        """Builds a Preprocessing from timm's `resolve_data_config`.

        Args:
            data_config: The config.

        Raises:
            ValueError: The config uses a crop mode, or crop border pixels, that these keys cannot express.
        """
        channels, height, width = data_config["input_size"]
        resized = tuple(math.floor(edge / data_config["crop_pct"]) for edge in (height, width))
        resize: int | tuple[int, int]
        match data_config["crop_mode"]:
            case "squash":
                resize = (resized[0], resized[1])
            case "center" if resized[0] == resized[1]:
                resize = resized[0]
            case mode:
                raise ValueError(f"timm's crop mode {mode!r} at {height}×{width} is not supported: {_EXPLICIT}")
        if data_config.get("crop_border_pixels"):
            raise ValueError(f"timm's crop_border_pixels is not supported: {_EXPLICIT}")
        return cls(
            resize=resize,
            crop=(height, width),
            interpolation=data_config["interpolation"],
            mean=tuple(data_config["mean"]),
            std=tuple(data_config["std"]),
            channels=channels,
        )


def _crop_start(size: int, crop: int) -> int:
    """Returns where a centre crop begins on one axis, with torchvision's rounding; negative if it pads."""
    return -((crop - size) // 2) if crop > size else round((size - crop) / 2)


@lru_cache(maxsize=16)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Returns the values as a tensor [values, 1, 1], created once on the device, because a copy would synchronise."""
    import torch

    with torch.inference_mode(False):  # the cached tensor must also work outside of the caller's inference mode
        return torch.stack([torch.full((1, 1), value, dtype=dtype, device=device) for value in values])


def _check_pair(name: str, pair: tuple[int, ...]) -> None:
    if len(pair) != 2:
        raise ValueError(f"{name}={pair} must be two numbers, (height, width)")
    for edge in pair:
        _check_edge(name, edge)


def _check_edge(name: str, edge: int) -> None:
    if type(edge) is not int or not 1 <= edge <= MAX_EDGE:
        raise ValueError(f"{name}={edge!r} must be whole pixels from 1 to {MAX_EDGE}")
