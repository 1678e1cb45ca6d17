"""Draws the rows of a class as a scatter plot: rows with similar maps lie close together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

WIDTH, HEIGHT, MARGIN = 480, 320, 14
MAX_DOTS = 3000  # more dots cover each other and make the page large
_SHAPES = (  # SVG path commands, relative to the dot's left edge
    "a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0",
    "m0,-3.5h7v7h-7z",
    "m-.5,3 4,-7 4,7z",
    "l3.5,-4.5 3.5,4.5 -3.5,4.5z",
)
_LEFT = -3.5
_DOT = "m2.5,0a1,1 0 1,0 2,0a1,1 0 1,0 -2,0"
_CROSS = "m-2,-5.5 11,11m0,-11 -11,11"


@dataclass(frozen=True)
class Layer:
    """Dots of one kind. ``path``: the ``d`` of an SVG path; ``key_path``: the same for one dot, for the key."""

    label: str
    path: str
    key_path: str
    suspect: bool = False


@dataclass(frozen=True)
class Scatter:
    """A layer for each cluster, one for rows in no cluster, and one of crosses over wrong predictions.

    ``drawn``: how many of the class's ``rows`` are drawn.
    """

    layers: list[Layer]
    drawn: int
    rows: int
    width: int = WIDTH
    height: int = HEIGHT


def draw_scatter(members: pa.Table, *, suspect: int) -> Scatter | None:
    """Draws a class's lines of rows.parquet. Returns None if fewer than three have an embedding."""
    embedding = np.stack([np.asarray(members[name], np.float64) for name in ("embed_x", "embed_y")], axis=1)
    embedded = np.flatnonzero(np.isfinite(embedding).all(axis=1))
    if len(embedded) < 3:
        return None
    chosen = embedded[np.linspace(0, len(embedded) - 1, min(MAX_DOTS, len(embedded))).round().astype(np.int64)]
    points = _fit_into_picture(embedding[chosen])
    cluster = np.asarray(members["cluster"].fill_null(-1))[chosen]
    wrong = ~np.asarray(members["correct"].fill_null(True)).astype(np.bool_)[chosen]
    layers = []
    for number in np.unique(cluster).tolist():
        name = "in no cluster" if number < 0 else f"cluster {number}"
        shape = _DOT if number < 0 else _SHAPES[number % len(_SHAPES)]
        layers.append(_make_layer(name, points[cluster == number], shape, suspect=number == suspect >= 0))
    if wrong.any():
        layers.append(_make_layer("wrong prediction", points[wrong], _CROSS))
    return Scatter(layers, len(chosen), len(members))


def _make_layer(name: str, points: NDArray[np.float64], shape: str, *, suspect: bool = False) -> Layer:
    label = f"{name}, {len(points):,} {'row' if len(points) == 1 else 'rows'}{', suspected' if suspect else ''}"
    return Layer(label, _path(points, shape), _path(np.array([[8.0, 8.0]]), shape), suspect)


def _fit_into_picture(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales points [n, 2] into the picture, both axes by the same factor."""
    low, high = points.min(axis=0), points.max(axis=0)
    extent = np.where(high > low, high - low, 1.0)
    room = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN])
    scale = float((room / extent).min())
    return np.asarray((points - (low + high) / 2) * scale + np.array([WIDTH, HEIGHT]) / 2)


def _path(points: NDArray[np.float64], shape: str) -> str:
    return "".join(f"M{x + _LEFT:.4g},{y:.4g}{shape}" for x, y in points.tolist())
