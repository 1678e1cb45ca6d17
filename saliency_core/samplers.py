"""Samplers: at which inputs the gradient is taken, and with which weights the readings are summed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """``inputs`` float [n, C, H, W], and the weight of its reading in the sum."""

    inputs: Tensor
    weight: float


class Sampler(ABC):
    """Samplers compare by value: methods with an equal rule and sampler share their passes."""

    passes: int
    """How many passes one image costs."""

    starts_clean: bool
    """Whether the first sample is the image itself, so that targets may be chosen from its forward pass."""

    @abstractmethod
    def samples(self, images: Tensor, rows: Tensor) -> Iterator[Sample]:
        """``images`` [n, C, H, W] and ``rows`` int64 [n], the images' permanent numbers (they key randomness)."""


@dataclass(frozen=True)
class Once(Sampler):
    """At the image itself."""

    passes = 1
    starts_clean = True

    def samples(self, images: Tensor, rows: Tensor) -> Iterator[Sample]:
        del rows
        yield Sample(images, 1.0)
