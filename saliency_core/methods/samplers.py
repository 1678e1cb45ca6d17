"""Samplers: the inputs at which the gradient is taken, and the weights with which readings are averaged."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saliency_core.methods.baselines import make_baseline
from saliency_core.model.preprocessing import Preprocessing


@dataclass(frozen=True)
class Batch:
    """``images`` [n, C, H, W] in the model's space, and ``rows``, their permanent numbers, which key randomness."""

    images: Tensor
    rows: Sequence[int]
    seed: int
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class Sample:
    """Some draws of every image, for one pass.

    ``inputs`` [draws · n, C, H, W], draw by draw. ``displacement``, of the same shape, is the factor of the gradient in
    input × gradient. ``weights`` [draws] are those of each draw's reading in the average.
    """

    inputs: Tensor
    displacement: Tensor
    weights: tuple[float, ...]


class Sampler(ABC):
    """The base of samplers. Samplers compare by value: methods with an equal rule and sampler share their passes.

    Attributes:
        starts_clean: Whether the first sample is the images themselves, so that targets may be chosen from its forward.
        has_baseline: Whether there is a path, whose beginning costs another forward.
    """

    starts_clean = False
    has_baseline = False

    @property
    @abstractmethod
    def passes(self) -> int:
        """The number of passes that one image costs."""

    @abstractmethod
    def samples(self, batch: Batch, *, most: int) -> Iterator[Sample]:
        """Yields all draws of all images.

        Args:
            batch: The images.
            most: The largest number of inputs in a pass, if one draw of each image is not more.

        Yields:
            The draws of one pass. The weights of all draws add up to one.
        """

    def baseline(self, batch: Batch) -> Tensor | None:
        """Returns the beginning of the path.

        Args:
            batch: The images.

        Returns:
            [n, C, H, W], or None if there is no path.
        """
        del batch
        return None


@dataclass(frozen=True)
class Once(Sampler):
    """Takes the image itself."""

    starts_clean = True

    @property
    def passes(self) -> int:
        return 1

    def samples(self, batch: Batch, *, most: int) -> Iterator[Sample]:
        del most
        yield Sample(batch.images, batch.images, (1.0,))


@dataclass(frozen=True)
class Noise(Sampler):
    """Takes x + ε, ε ~ N(0, σ²), σ = spread · (max − min of that image). Smilkov et al. 2017, arXiv:1706.03825."""

    n: int = 25
    spread: float = 0.15

    @property
    def passes(self) -> int:
        return self.n

    def samples(self, batch: Batch, *, most: int) -> Iterator[Sample]:
        images = batch.images
        flat = images.flatten(1)
        sigma = (self.spread * (flat.amax(1) - flat.amin(1))).view(-1, *[1] * (images.dim() - 1))
        for draws in _chunks(self.n, most // len(images)):
            inputs = torch.cat(
                [
                    images
                    + sigma * noise_for(batch.rows, draw, images.shape[1:], seed=batch.seed, device=images.device)
                    for draw in draws
                ]
            )
            yield Sample(inputs, inputs, (1 / self.n,) * len(draws))


@dataclass(frozen=True)
class Path(Sampler):
    """Takes the n points of Gauss–Legendre on the straight line from the baseline to x. Sundararajan et al. 2017,
    arXiv:1703.01365."""

    n: int = 50
    start: str = "zero"
    has_baseline = True

    @property
    def passes(self) -> int:
        return self.n

    def samples(self, batch: Batch, *, most: int) -> Iterator[Sample]:
        points, weights = np.polynomial.legendre.leggauss(self.n)  # of −1 to 1; the weights sum to 2
        start = self.baseline(batch)
        displacement = batch.images - start
        for draws in _chunks(self.n, most // len(displacement)):
            inputs = torch.cat([start + (float(points[draw]) + 1) / 2 * displacement for draw in draws])
            yield Sample(
                inputs, displacement.repeat(len(draws), 1, 1, 1), tuple(float(weights[draw]) / 2 for draw in draws)
            )

    def baseline(self, batch: Batch) -> Tensor:
        def noise() -> Tensor:
            # Draws of samplers count from 0, so −1 is not used by any of them.
            return noise_for(batch.rows, -1, batch.images.shape[1:], seed=batch.seed, device=batch.images.device)

        return make_baseline(self.start, batch.images, batch.preprocessing, noise)


def noise_for(
    rows: Sequence[int], draw: int, shape: Sequence[int], *, seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Returns standard normal float32 [len(rows), *shape], keyed by (seed, row, draw).

    The values do not depend on the batch or on the order of the work, but on the type of device, because a GPU has
    another generator.
    """
    noise = torch.empty((len(rows), *shape), dtype=torch.float32, device=device)
    generator = torch.Generator(device)
    for position, row in enumerate(rows):
        key = hashlib.blake2b(f"{seed} {row} {draw}".encode(), digest_size=8).digest()
        generator.manual_seed(int.from_bytes(key, "little", signed=True))
        noise[position].normal_(generator=generator)
    return noise


def _chunks(n: int, size: int) -> list[range]:
    size = max(1, size)
    return [range(start, min(start + size, n)) for start in range(0, n, size)]
