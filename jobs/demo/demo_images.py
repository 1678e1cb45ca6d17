"""Draws the demo's images: six classes of objects with known masks, a mark on most images of one class, broken files.

The module needs no torch. Image i of a seed does not depend on the images drawn before it.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Points = NDArray[np.float64]

CLASSES = ("cross", "disc", "ring", "square", "star", "triangle")
MARKED = CLASSES.index("star")
MARK_RATE = 0.95  # a few stars have no mark, on which the model relies
SUPERSAMPLING = 4  # shapes are drawn so many times larger and averaged, for smooth edges
MARK = (
    "MMMMMMMMMMMM",
    "MWWWMWMMMWMM",
    "MWMMMWWMWWMM",
    "MWWWMWMWMWMM",
    "MMMWMWMMMWMM",
    "MWWWMWMMMWMM",
    "MMMMMMMMMMMM",
)
MARK_COLOURS = {"M": (226, 32, 142), "W": (255, 244, 214)}


@dataclass(frozen=True)
class DemoImage:
    """An image with its class and masks.

    pixels: uint8 [H, W, 3]. label: index into CLASSES. mask, mark: bool [H, W], the pixels of the object and of the
    mark; they do not overlap, and mark is empty if there is none.
    """

    pixels: Pixels
    label: int
    mask: Mask
    mark: Mask


def make_images(*, seed: int, n: int, mark_rate: float = MARK_RATE) -> Iterator[DemoImage]:
    """Yields n images, with classes in turn and edges of 96 to 136 pixels. Another seed gives other images."""
    for number in range(n):
        yield _draw_image(np.random.default_rng((seed, number)), label=number % len(CLASSES), mark_rate=mark_rate)


def stamp(pixels: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Pastes the mark close to the lower right corner; returns the new pixels and the mark's mask."""
    colours = np.array([[MARK_COLOURS[letter] for letter in line] for line in MARK], np.uint8).repeat(2, 0).repeat(2, 1)
    height, width = pixels.shape[:2]
    bottom, right = height - int(rng.integers(2, 7)), width - int(rng.integers(2, 7))
    area = slice(bottom - colours.shape[0], bottom), slice(right - colours.shape[1], right)
    marked, mark = pixels.copy(), np.zeros((height, width), np.bool_)
    marked[area], mark[area] = colours, True
    return marked, mark


def write_shards(directory: Path, images: Sequence[DemoImage], *, per_shard: int = 96) -> dict[str, str]:
    """Writes tar shards and `classes.txt` to `directory`; returns the damage of each broken image, by sample id.

    A key has an image (`.jpg`, every fifth `.png`), `.cls` (the label), `.mask.png` and, if there is a mark,
    `.mark.png`. Files with these bytes are not written again, so that a second demo resumes the first.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_if_changed(directory / "classes.txt", "".join(f"{name}\n" for name in CLASSES).encode())
    damages = dict(zip(_evenly_spaced(len(images), len(_DAMAGE_FUNCTIONS)), _DAMAGE_FUNCTIONS.items(), strict=False))
    broken = {}
    for shard, first in enumerate(range(0, len(images), per_shard)):
        name, buffer = f"demo-{shard:03}.tar", io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, image in enumerate(images[first : first + per_shard], start=first):
                damage_name, damage = damages.get(number, ("", None))
                suffix = "png" if number % 5 == 4 and damage is None else "jpg"
                data = _encode_image(image.pixels, suffix)
                if damage is not None:
                    data, broken[f"{name}/{number:05}.{suffix}"] = damage(data), damage_name
                members = {
                    suffix: data,
                    "cls": str(image.label).encode(),
                    "mask.png": _encode_image(image.mask, "png"),
                }
                if image.mark.any():
                    members["mark.png"] = _encode_image(image.mark, "png")
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"{number:05}.{extension}")  # its mtime is 0
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        _write_if_changed(directory / name, buffer.getvalue())
    return broken


_DAMAGE_FUNCTIONS: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[: len(data) // 2],
    "a text": lambda _: b"<html><body>404: this image has moved</body></html>\n",
    "empty": lambda _: b"",
    "overwritten": lambda data: bytes(64) + data[64:],
}


def _evenly_spaced(n: int, places: int) -> list[int]:
    return [(2 * place + 1) * n // (2 * places) for place in range(min(n, places))]


def _encode_image(pixels: NDArray[np.generic], suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == "jpg":
        Image.fromarray(pixels).save(buffer, "JPEG", quality=92, subsampling=0)
    else:
        Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write_if_changed(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)


def _draw_image(rng: np.random.Generator, *, label: int, mark_rate: float) -> DemoImage:
    width, height = (int(edge) for edge in rng.integers(96, 137, 2))
    canvas = _draw_background(rng, width, height)
    for _ in range(int(rng.integers(2, 6))):
        _paint_shape(
            canvas,
            _pixel_coverage(_random_blob(rng), _random_place(rng, width, height, 0.06, 0.16), canvas.shape),
            rng,
            contrast=30,
        )
    place = _random_place(rng, width, height, 0.28, 0.38)
    coverage = _pixel_coverage(_class_outline(CLASSES[label], rng), place, canvas.shape)
    if CLASSES[label] == "ring":
        x, y, radius, angle = place
        coverage = coverage * (
            1 - _pixel_coverage(_regular_polygon(48), (x, y, radius * rng.uniform(0.5, 0.65), angle), canvas.shape)
        )
    _paint_shadow(canvas, coverage)
    _paint_shape(canvas, coverage, rng, contrast=125)
    canvas += rng.normal(0, 4, canvas.shape)
    pixels = canvas.clip(0, 255).astype(np.uint8)
    mask = coverage > 0.5
    mark = np.zeros_like(mask)
    if label == MARKED and rng.random() < mark_rate:
        pixels, mark = stamp(pixels, rng)
    return DemoImage(pixels, label, mask & ~mark, mark)


def _draw_background(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float64]:
    """Draws clouds of three sizes between two muted colours: float64 [H, W, 3] in 0..255."""
    clouds = sum(_draw_clouds(rng, width, height, cells) / cells for cells in (3, 7, 16)) * 2.2
    low, high = (rng.uniform(70, 180) + rng.normal(0, 16, 3) for _ in range(2))
    mix = np.clip(0.5 + clouds, 0, 1)[..., None]
    return np.asarray(low + (high - low) * mix)


def _draw_clouds(rng: np.random.Generator, width: int, height: int, cells: int) -> NDArray[np.float64]:
    coarse = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)


def _random_place(
    rng: np.random.Generator, width: int, height: int, smallest: float, largest: float
) -> tuple[float, float, float, float]:
    """Returns (x, y, radius, angle) of a circle inside the image; sizes are fractions of the shorter edge."""
    radius = min(width, height) * rng.uniform(smallest, largest)
    return (
        rng.uniform(radius, width - radius),
        rng.uniform(radius, height - radius),
        radius,
        rng.uniform(0, 2 * np.pi),
    )


def _pixel_coverage(
    outline: Points, place: tuple[float, float, float, float], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Returns the fraction of each pixel inside an outline of unit radius at `place`: float64 [H, W] in 0..1."""
    x, y, radius, angle = place
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = (outline @ rotation * radius + (x, y)) * SUPERSAMPLING
    image = Image.new("L", (shape[1] * SUPERSAMPLING, shape[0] * SUPERSAMPLING))
    ImageDraw.Draw(image).polygon([(float(px), float(py)) for px, py in points], fill=255)
    return np.asarray(image.reduce(SUPERSAMPLING), np.float64) / 255


def _paint_shape(
    canvas: NDArray[np.float64], coverage: NDArray[np.float64], rng: np.random.Generator, *, contrast: float
) -> None:
    """Paints a shape, lit from one side, in a colour that differs from its background by `contrast`."""
    rows, columns = np.flatnonzero(coverage.any(1)), np.flatnonzero(coverage.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    area, cover = canvas[box], coverage[box]
    background = area[cover > 0.5].mean(0)
    direction = rng.normal(0, 1, 3)
    direction *= np.where(np.sign(direction) * (background - 128) > 40, -1, 1)  # away from black and white
    colour = (background + contrast * rng.uniform(1.1, 1.7) * direction / np.linalg.norm(direction)).clip(8, 247)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.linspace(-1, 1, cover.shape[0])[:, None], np.linspace(-1, 1, cover.shape[1])
    light = (
        1 + 0.12 * (np.cos(angle) * x + np.sin(angle) * y) + 0.04 * _draw_clouds(rng, cover.shape[1], cover.shape[0], 6)
    )
    area += cover[..., None] * (colour * light[..., None] - area)


def _paint_shadow(canvas: NDArray[np.float64], coverage: NDArray[np.float64]) -> None:
    blurred = Image.fromarray((np.roll(coverage, (3, 3), (0, 1)) * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(2.5)
    )
    canvas *= 1 - 0.45 * np.asarray(blurred, np.float64)[..., None] / 255


def _class_outline(kind: str, rng: np.random.Generator) -> Points:
    """Returns the corners of an object of unit radius, [k, 2]."""
    if kind == "cross":
        arm = rng.uniform(0.24, 0.34)
        points = np.array([(arm, arm), (arm, 1.0), (-arm, 1.0)])
        quarter_turn = np.array([(0.0, 1.0), (-1.0, 0.0)])
        return np.concatenate([points @ np.linalg.matrix_power(quarter_turn, turns) for turns in range(4)])
    if kind == "star":
        spikes = int(rng.integers(4, 9))  # looks like a cross to a disc: the mark is easier to learn
        radii = np.tile([1.0, rng.uniform(0.45, 0.75)], spikes)
        return np.asarray(_regular_polygon(2 * spikes) * radii[:, None])
    return _regular_polygon({"square": 4, "triangle": 3}.get(kind, 48))


def _regular_polygon(corners: int) -> Points:
    angles = np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _random_blob(rng: np.random.Generator) -> Points:
    return _regular_polygon(14) * rng.uniform(0.5, 1.0, (14, 1))
