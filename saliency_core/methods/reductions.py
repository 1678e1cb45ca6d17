"""Reductions make one map of a signal with channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saliency_core.errors import InvalidRequestError


@dataclass(frozen=True)
class Reduction:
    """``function`` takes a signal [n, C, H, W] to a map [n, H, W] ([n, C, H, W] for ``none``)."""

    name: str
    function: Callable[[Tensor], Tensor]
    nonnegative: bool

    def __call__(self, signal: Tensor) -> Tensor:
        return self.function(signal)


def _by_name(*reductions: Reduction) -> dict[str, Reduction]:
    return {reduction.name: reduction for reduction in reductions}


REDUCTIONS = _by_name(
    # |g|, then the largest channel: Simonyan, Vedaldi, Zisserman 2013, section 3.1
    Reduction("abs_max", lambda signal: signal.abs().amax(dim=1), nonnegative=True),
    Reduction("abs_sum", lambda signal: signal.abs().sum(dim=1), nonnegative=True),
    Reduction("l2", lambda signal: torch.linalg.vector_norm(signal, dim=1), nonnegative=True),
    Reduction("max", lambda signal: signal.amax(dim=1), nonnegative=False),
    # signed, so that maps stay additive
    Reduction("sum", lambda signal: signal.sum(dim=1), nonnegative=False),
    Reduction("relu_max", lambda signal: signal.clamp(min=0).amax(dim=1), nonnegative=True),
    Reduction("none", lambda signal: signal, nonnegative=False),
)


def parse_reduction(name: str) -> Reduction:
    """Returns the reduction of that name. Raises InvalidRequestError, with the list, if there is none."""
    if name not in REDUCTIONS:
        raise InvalidRequestError(f"reduction {name!r} does not exist: choose one of {', '.join(REDUCTIONS)}.")
    return REDUCTIONS[name]
