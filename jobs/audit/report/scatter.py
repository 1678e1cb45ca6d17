"""The rows of a class as a picture of dots: those whose maps are alike lie together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

WIDTH, HEIGHT, MARGIN = 480, 320, 14
MOST = 3000  # dots; a picture of more is a blot, and large
_SHAPES = (  # around the origin
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
    """Dots of one kind, as the ``d`` of an SVG path, and one of them by itself for the key."""

    told: str
    path: str
    sample: str
    suspect: bool = False


@dataclass(frozen=True)
class Scatter:
    """``layers``: of each cluster, of rows in none, and of crosses over wrong predictions; ``drawn`` of ``of`` rows."""

    layers: list[Layer]
    drawn: int
    of: int
    width: int = WIDTH
    height: int = HEIGHT


def scatter(members: pa.Table, *, suspect: int) -> Scatter | None:
    """Lines of rows.parquet, of one class; None where fewer than three have a place."""
    places = np.stack([np.asarray(members[name], np.float64) for name in ("embed_x", "embed_y")], axis=1)
    known = np.flatnonzero(np.isfinite(places).all(axis=1))
    if len(known) < 3:
        return None
    taken = known[np.linspace(0, len(known) - 1, min(MOST, len(known))).round().astype(np.int64)]
    points = _fitted(places[taken])
    cluster = np.asarray(members["cluster"].fill_null(-1))[taken]
    wrong = ~np.asarray(members["correct"].fill_null(True)).astype(np.bool_)[taken]
    layers = []
    for number in np.unique(cluster).tolist():
        name = "in no cluster" if number < 0 else f"cluster {number}"
        shape = _DOT if number < 0 else _SHAPES[number % len(_SHAPES)]
        layers.append(_layer(name, points[cluster == number], shape, suspect=number == suspect >= 0))
    if wrong.any():
        layers.append(_layer("wrong prediction", points[wrong], _CROSS))
    return Scatter(layers, len(taken), len(members))


def _layer(name: str, points: NDArray[np.float64], shape: str, *, suspect: bool = False) -> Layer:
    told = f"{name}, {len(points):,} {'row' if len(points) == 1 else 'rows'}{', suspected' if suspect else ''}"
    return Layer(told, _path(points, shape), _path(np.array([[8.0, 8.0]]), shape), suspect)


def _fitted(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 2] into the picture, both axes in one scale."""
    low, high = places.min(axis=0), places.max(axis=0)
    extent = np.where(high > low, high - low, 1.0)
    room = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN])
    scale = float((room / extent).min())
    return np.asarray((places - (low + high) / 2) * scale + np.array([WIDTH, HEIGHT]) / 2)


def _path(points: NDArray[np.float64], shape: str) -> str:
    return "".join(f"M{x + _LEFT:.4g},{y:.4g}{shape}" for x, y in points.tolist())
