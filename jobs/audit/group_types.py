"""Defines the input and the result of a class's examination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saliency_core.map_measures import Floats

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ClassRows:
    """The rows of one class: ``rows`` [n], ascending; ``small`` [n, h, w], their small maps.

    ``correct`` [n]: 1, 0, or NaN if unknown. ``probability`` [n]: of the explained class; ``sure`` [n]: of the
    predicted class. ``measures``: MEASURES and OBJECT_MEASURES, each [n]. Missing values are NaN.
    """

    number: int
    name: str | None
    rows: Integers
    small: Floats
    correct: Floats
    probability: Floats
    sure: Floats
    measures: Mapping[str, Floats]


@dataclass(frozen=True)
class Background:
    """A sample of the store's rows of all classes: their small maps [m, h, w] and class numbers [m]."""

    small: Floats
    classes: Integers


@dataclass(frozen=True)
class ClassExamination:
    """The result for one class.

    ``line``: a line of ``class_schema`` without the rank. ``clusters``: lines of ``cluster_schema``. For each row of
    the class: ``cluster`` [n], −1 for none; ``outlier`` [n]; ``embedding`` [n, 2].
    """

    line: dict[str, Any]
    clusters: list[dict[str, Any]]
    cluster: Integers
    outlier: Floats
    embedding: Floats
