"""Holds the parameters of the gradient ascent. It does not import torch, so that the command line starts fast."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

MAX_FLOAT = sys.float_info.max  # a weight whose ascent diverges is reported for each class


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The parameters of a gradient ascent.

    It maximises S_c(I) − l2 · ‖I‖² − w · Σ|I|ᵖ − total_variation · TV(I), and starts from I = 0, the mean image. Sums
    run over the pixels and channels of the preprocessed image, whose unit is about one standard deviation.

    ``steps``: the number of steps. ``learning_rate``: the root mean square of the image's change in the first step; it
    falls linearly to zero, and does not depend on the size of the gradient. ``lp``: (p, w). ``jitter``: in each step
    the image is shifted, and wrapped around, by up to that many pixels along both axes. ``blur_every``: the number of
    steps after which the image is blurred by a Gaussian of ``blur_sigma`` pixels; 0: never.

    Raises ValueError if a value is out of range.
    """

    steps: int = 256
    learning_rate: float = 0.05
    l2: float = 1e-3
    lp: tuple[float, float] = (6.0, 0.0)
    total_variation: float = 0.0
    jitter: int = 4
    blur_every: int = 4
    blur_sigma: float = 0.5

    def __post_init__(self) -> None:
        # Beyond these bounds an ascent takes too long, overflows float32, or fills the memory with its kernel.
        for name, most in (
            ("steps", 1e6),
            ("l2", MAX_FLOAT),
            ("total_variation", MAX_FLOAT),
            ("jitter", 4096),
            ("blur_every", 1e6),
        ):
            _check(name, getattr(self, name), least=0, most=most)
        for name, most in (("learning_rate", 1e6), ("blur_sigma", 100)):
            _check(name, getattr(self, name), above=0, most=most)
        if len(self.lp) != 2:
            raise ValueError(f"lp={self.lp} is not a power and its weight: give both, for example 6,0.001")
        # Below 1 the gradient is infinite at the zero image, from which the ascent starts.
        _check("lp's power", self.lp[0], least=1, most=100)
        _check("lp's weight", self.lp[1], least=0, most=MAX_FLOAT)


def _check(name: str, value: float, *, most: float, least: float = -math.inf, above: float = -math.inf) -> None:
    # isfinite fails for an integer of 400 digits.
    if not (value >= least and value > above and value <= most):
        bound = f"at least {least:g}" if least > -math.inf else f"above {above:g}"
        raise ValueError(f"{name}={value} is out of range: it must be a finite number, {bound} and at most {most:g}")
