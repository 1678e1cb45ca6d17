"""Averages readings over a sampler's draws: their mean, the mean of their squares, or their variance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

MEAN, SQUARE, VARIANCE = "mean", "square", "variance"
MOMENTS = (MEAN, SQUARE, VARIANCE)


class MomentAccumulator:
    """Sums readings pass by pass. The weights of all draws must sum to one.

    Squares are summed in float64, because the (population) variance is a small difference of large numbers.
    """

    def __init__(self, moment: str) -> None:
        self._moment = moment
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, readings: Iterable[Tensor], weights: Sequence[float]) -> None:
        """Adds readings [draws · n, …], with the weight of each draw. The order changes the rounding."""
        for position, reading in enumerate(readings):
            draws = reading.reshape(len(weights), -1, *reading.shape[1:])
            for weight, draw in zip(weights, draws, strict=True):
                if self._moment == MEAN:
                    _add(self._sums, position, weight * draw)
                else:
                    _add(self._squares, position, weight * draw.double() ** 2)
                    if self._moment == VARIANCE:
                        _add(self._sums, position, weight * draw.double())

    def result(self) -> list[Tensor]:
        """Returns the moments [n, …], one for each reading."""
        if self._moment == MEAN:
            return self._sums
        if self._moment == SQUARE:
            return self._squares
        pairs = zip(self._squares, self._sums, strict=True)
        return [(square - mean**2).clamp(min=0) for square, mean in pairs]


def _add(sums: list[Tensor], position: int, value: Tensor) -> None:
    if position == len(sums):
        sums.append(value)
    else:
        sums[position] += value
