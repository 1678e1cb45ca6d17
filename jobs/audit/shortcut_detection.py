"""Whether a class is known by something that is always at one place: a watermark, a tag, a border.

Objects move about and differ; what was stamped on leaves the same pattern of relevance at the same place of many images
of one class and hardly of another's. So each place is looked at through a window: how many of the class' maps are alike
there, against how many of the other classes' maps are like them? A class has habits, too (rings bend at their top),
and they show at most places; what stands out over what is usual for the class is the score.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.special import betainc

from jobs.audit.group_types import Background
from saliency_core.map_measures import Floats

ALARM = 1.0
BARS = ((2e-3, 1.2), (1e-4, 2.7), (0.0, 10.0))
"""From how much fine detail on what raises an alarm. Smooth maps are alike by nature, the more so enlarged ones (CAMs).

Set so that at most one in twenty models that were taught no shortcut raises one: the tuning seeds of
tests/benchmarks/shortcut.py.
"""
WINDOW = 4  # its edges: the map's over this
LIKENESS = (0.4, 0.5, 0.6, 0.7)  # cosines from which two patterns count as alike: each tells of other marks
SAME = 0.45  # to the mean of those that are alike: rows of the finding
RIDGE = 0.03  # of the mean variance, added to each direction's
FAINT = 0.5  # of an even map's share: who has less in the window has no pattern there
DETAIL_STEP = 5  # every fifth window tells how much detail there is
USUAL = 0.75  # quantile over the windows: what is usual for a class
WHOLE = 0.8  # of a class' rows
FLOOR = 3.0  # decades of odds that are added to it
LEAST_ROWS, LEAST_ALIKE, LEAST_OTHERS = 8, 4, 40
MOST_ROWS, MOST_OTHERS = 300, 1000  # that are compared

Matrix = NDArray[np.float64]
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Suspicion:
    """``score``: of 1 and more, it is an alarm. ``rows`` bool [n]: those with the pattern. ``y``, ``x``: where, 0 to 1.

    ``share``, ``share_rest``, ``share_others``: of the relevance that lies in the window: of those rows, of the class'
    other rows, of other classes. ``like_others``: how many of the others have the pattern, as a part of all.
    """

    score: float
    alarm: bool
    rows: NDArray[np.bool_]
    y: float = 0.5
    x: float = 0.5
    share: float = 0.0
    share_rest: float = 0.0
    share_others: float = 0.0
    like_others: float = 0.0

    @property
    def of_the_class(self) -> bool:
        """Whether it is about the class as a whole: the few other rows are then no measure of anything."""
        return bool(self.rows.mean() > WHOLE)


def suspect(small: Floats, number: int, background: Background, *, seed: int) -> Suspicion:
    """``small`` [n, h, w], shares of the class ``number``. The score is NaN where there is too little to judge by."""
    usable = (background.classes != number) & np.isfinite(background.small).all(axis=(1, 2))
    others = background.small[usable]
    others = others[_sample(len(others), MOST_OTHERS, seed)]
    if len(small) < LEAST_ROWS or len(others) < LEAST_OTHERS:
        return Suspicion(np.nan, False, np.zeros(len(small), np.bool_))
    chosen = _sample(len(small), MOST_ROWS, seed)
    found = [(*_alike(small[chosen], others, window), window) for window in _windows(*small.shape[1:])]
    odds = np.array([decades for decades, _, _ in found])
    best = int(odds.argmax())
    tests = np.log10(len(np.unique(background.classes)))  # so many classes are looked at
    score = max(0.0, float((odds[best] - tests) / (FLOOR + np.quantile(odds, USUAL)))) / _bar(others)
    if not odds[best]:
        return Suspicion(0.0, False, np.zeros(len(small), np.bool_))
    _, alike, window = found[best]
    return _described(score, small, others, chosen[alike], window)


def _described(score: float, small: Floats, others: Floats, alike: NDArray[np.int64], window: Window) -> Suspicion:
    ours, foreign = _patterns(small, others, window)
    model = _unit(ours[alike].mean(axis=0, keepdims=True))[0]
    rows, like_others = ours @ model > SAME, float((foreign @ model > SAME).mean())
    y, x = _middle(small[rows].mean(axis=0) - others.mean(axis=0), window)
    inside = small[:, *window].sum(axis=(1, 2))
    return Suspicion(
        score=score,
        alarm=score >= ALARM and int(rows.sum()) >= LEAST_ALIKE,
        rows=rows,
        y=y,
        x=x,
        share=float(inside[rows].mean()),
        share_rest=float(inside[~rows].mean()) if not rows.all() else 0.0,
        share_others=float(others[:, *window].sum(axis=(1, 2)).mean()),
        like_others=like_others,
    )


def _alike(own: Floats, theirs: Floats, window: Window) -> tuple[float, NDArray[np.int64]]:
    """Of the row whose pattern the most of its class and the fewest of the others share: the odds against that by
    chance, in decades, mean over LIKENESS; and the places of the rows that share it."""
    ours, foreign = _patterns(own, theirs, window)
    near, far = ours @ ours.T, ours @ foreign.T
    odds = np.zeros(len(own))
    for cosine in LIKENESS:
        alike = (near > cosine).sum(axis=1) - 1  # but itself
        rate = ((far > cosine).sum(axis=1) + 1) / (len(theirs) + 2)
        odds += np.where(alike > 0, _decades(np.maximum(alike, 1), len(own) - 1, rate), 0)
    row = int(odds.argmax())
    return float(odds[row]) / len(LIKENESS), np.flatnonzero(near[row] > LIKENESS[1])


def _patterns(own: Floats, theirs: Floats, window: Window) -> tuple[Matrix, Matrix]:
    """What is seen through the window, in directions in which the others vary alike and of length 1; [n, k], [m, k].

    Zero where hardly any relevance is.
    """
    ours, foreign = (_roots(maps, window) for maps in (own, theirs))
    even = ours.shape[1] / own[0].size
    faint = [(patches**2).sum(axis=1) <= FAINT * even for patches in (ours, foreign)]
    centre = foreign.mean(axis=0)
    ours, foreign = ours - centre, foreign - centre
    covariance = foreign.T @ foreign / len(foreign)
    covariance += np.eye(len(covariance)) * max(RIDGE * np.trace(covariance) / len(covariance), 1e-12)
    root = cholesky(covariance, lower=True)
    ours, foreign = (_unit(solve_triangular(root, patches.T, lower=True).T) for patches in (ours, foreign))
    ours[faint[0]], foreign[faint[1]] = 0, 0
    return ours, foreign


def _decades(least: NDArray[np.int64], trials: int, rate: Matrix) -> Matrix:
    """−log₁₀ of the chance that of so many trials at least so many succeed."""
    found: Matrix = -np.log10(np.maximum(betainc(least, trials - least + 1, rate), 1e-300))
    return found


def _windows(height: int, width: int) -> Iterator[Window]:
    """Squares, as far as the map is one, each overlapping the next by half and more."""
    tall, wide = (min(length, max(3, length // WINDOW)) for length in (height, width))
    for top in range(0, height - tall + 1, max(1, tall // 2)):
        for left in range(0, width - wide + 1, max(1, wide // 2)):
            yield slice(top, top + tall), slice(left, left + wide)


def _middle(surplus: Floats, window: Window) -> tuple[float, float]:
    """Where in the window the surplus is, in parts of the map's height and width."""
    weight = np.maximum(surplus[window], 0).astype(np.float64) + 1e-12
    ys, xs = (np.arange(part.start, part.stop) + 0.5 for part in window)
    total = weight.sum()
    return float(weight.sum(1) @ ys / total / surplus.shape[0]), float(weight.sum(0) @ xs / total / surplus.shape[1])


def _bar(theirs: Floats) -> float:
    """What a score is measured by: of BARS, by the share of the variance in the weaker half of the directions."""
    windows = list(_windows(*theirs.shape[1:]))[::DETAIL_STEP]
    details = []
    for window in windows:
        variances = np.linalg.eigvalsh(np.cov(_roots(theirs, window), rowvar=False))
        details.append(variances[: len(variances) // 2].sum() / max(variances.sum(), 1e-300))
    detail = float(np.median(details))
    return next((bar for least, bar in BARS if detail >= least), BARS[-1][1])


def _roots(maps: Floats, window: Window) -> Matrix:
    """Of the shares in the window, [n, cells]: large shares vary more than small ones, their roots as much."""
    inside = maps[:, *window].reshape(len(maps), -1)
    return np.sqrt(np.maximum(inside, 0), dtype=np.float64)


def _unit(rows: Matrix) -> Matrix:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _sample(n: int, most: int, seed: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng((seed, n)).permutation(n)[:most])
