"""What the examination of a class begins with and ends with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saliency_core.map_measures import Floats

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """The rows of one class: ``rows`` [n], ascending; ``small`` [n, h, w], their small maps.

    ``correct`` [n]: 1, 0, or NaN where that is not known. ``probability`` [n] of the class, ``sure`` [n] of what is
    predicted: NaN where there is none. ``measures``: MEASURES and ON_OBJECT, each [n]; NaN where there is none.
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
    """A sample of all the store's rows: ``small`` [m, h, w], and ``classes`` [m]."""

    small: Floats
    classes: Integers


@dataclass(frozen=True)
class Examined:
    """``line``: of ``class_schema``, but for its rank; ``clusters``: lines of ``cluster_schema``.

    Of each of the group's rows: ``cluster`` [n], −1 for none; ``outlier`` [n]; ``embedding`` [n, 2].
    """

    line: dict[str, Any]
    clusters: list[dict[str, Any]]
    cluster: Integers
    outlier: Floats
    embedding: Floats
