"""Detects classes that a model recognises by something that is always at the same place: a watermark, a tag, a border.

Objects move about and differ. A mark leaves the same pattern of relevance at the same place of many images of one
class, and of hardly any image of another class. Therefore each place is compared through a window: how many of the
class's maps have a similar pattern there, and how many maps of other classes have it, too? A class's maps also have
habits (rings bend at their top), which show at most places. The score is how far one place exceeds what is usual for
the class.
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

ALARM_SCORE = 1.0
SCORE_UNITS = ((2e-3, 1.2), (1e-4, 2.7), (0.0, 10.0))
"""Pairs: the least share of fine detail in the maps, and the ratio of evidence that then raises an alarm.

Smooth maps are more alike by nature, in particular enlarged ones (CAMs). The values are set so that at most one in
twenty models without a shortcut raises an alarm on the tuning seeds of tests/benchmarks/shortcut.py.
"""
WINDOW_FRACTION = 4  # the window's edges are the map's, divided by this
SIMILAR_COSINES = (
    0.4,
    0.5,
    0.6,
    0.7,
)  # from each of these cosines on, two patterns count as similar; odds are averaged
MEMBER_COSINE = 0.45  # a finding's rows have at least this cosine to their mean pattern
RIDGE_SHARE = 0.03  # of the mean variance, added to the variance of each direction
FAINT_SHARE = 0.5  # of an even map's share: a map with less in the window has no pattern there
DETAIL_STEP = 5  # every fifth window is used to measure the detail
USUAL_QUANTILE = 0.75  # quantile over the windows that is usual for a class
WHOLE_CLASS_SHARE = 0.8  # from more of a class's rows on, the finding is about the class
FLOOR_DECADES = 3.0  # added to what is usual, so that classes without habits raise no alarm at weak evidence
MIN_ROWS, MIN_PATTERN_ROWS, MIN_OTHERS = 8, 4, 40
MAX_ROWS, MAX_OTHERS = 300, 1000  # rows that are compared

Matrix = NDArray[np.float64]
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Suspicion:
    """The result of the detection for one class.

    ``score``: how suspicious the class is; NaN if there are too few maps. ``rows`` bool [n]: the rows that have the
    pattern. ``y``, ``x``: its position, 0 to 1. ``share``, ``share_rest``, ``share_others``: mean share of the
    relevance in the window of these rows, of the class's other rows, and of other classes. ``others_alike``: the part
    of the other classes' maps that have the pattern.
    """

    score: float
    alarm: bool
    rows: NDArray[np.bool_]
    y: float = 0.5
    x: float = 0.5
    share: float = 0.0
    share_rest: float = 0.0
    share_others: float = 0.0
    others_alike: float = 0.0

    @property
    def is_whole_class(self) -> bool:
        """Whether it is about the class as a whole; then too few other rows are left to compare with."""
        return bool(self.rows.mean() > WHOLE_CLASS_SHARE)


def detect_shortcut(small: Floats, number: int, background: Background, *, seed: int) -> Suspicion:
    """Compares the small maps [n, h, w] of the class ``number`` with those of other classes in ``background``."""
    usable = (background.classes != number) & np.isfinite(background.small).all(axis=(1, 2))
    other_maps = background.small[usable]
    other_maps = other_maps[_sample_indices(len(other_maps), MAX_OTHERS, seed)]
    if len(small) < MIN_ROWS or len(other_maps) < MIN_OTHERS:
        return Suspicion(np.nan, False, np.zeros(len(small), np.bool_))
    chosen = _sample_indices(len(small), MAX_ROWS, seed)
    windows = list(_list_windows(*small.shape[1:]))
    patterns = [_find_shared_pattern(small[chosen], other_maps, window) for window in windows]
    odds = np.array([decades for decades, _ in patterns])
    best = int(odds.argmax())
    tests = np.log10(len(np.unique(background.classes)))  # corrects for the number of classes that are tested
    usual = np.quantile(odds, USUAL_QUANTILE)
    score = max(0.0, float((odds[best] - tests) / (FLOOR_DECADES + usual))) / _score_unit(other_maps)
    if not odds[best]:
        return Suspicion(0.0, False, np.zeros(len(small), np.bool_))
    return _describe_pattern(score, small, other_maps, chosen[patterns[best][1]], windows[best])


def _describe_pattern(
    score: float, small: Floats, other_maps: Floats, alike: NDArray[np.int64], window: Window
) -> Suspicion:
    """Finds all rows that have the mean pattern of the rows ``alike``, and how much relevance the window holds."""
    own_patterns, other_patterns = _whitened_patterns(small, other_maps, window)
    model = _normalise_rows(own_patterns[alike].mean(axis=0, keepdims=True))[0]
    rows = own_patterns @ model > MEMBER_COSINE
    y, x = _weighted_centre(small[rows].mean(axis=0) - other_maps.mean(axis=0), window)
    inside = small[:, *window].sum(axis=(1, 2))
    return Suspicion(
        score=score,
        alarm=score >= ALARM_SCORE and int(rows.sum()) >= MIN_PATTERN_ROWS,
        rows=rows,
        y=y,
        x=x,
        share=float(inside[rows].mean()),
        share_rest=float(inside[~rows].mean()) if not rows.all() else 0.0,
        share_others=float(other_maps[:, *window].sum(axis=(1, 2)).mean()),
        others_alike=float((other_patterns @ model > MEMBER_COSINE).mean()),
    )


def _find_shared_pattern(own: Floats, other_maps: Floats, window: Window) -> tuple[float, NDArray[np.int64]]:
    """Finds the row whose pattern most rows of its class and fewest other rows share.

    Returns the odds against that by chance (in decades, mean over SIMILAR_COSINES) and the positions of the rows.
    """
    own_patterns, other_patterns = _whitened_patterns(own, other_maps, window)
    own_cosines, other_cosines = own_patterns @ own_patterns.T, own_patterns @ other_patterns.T
    odds = np.zeros(len(own))
    for cosine in SIMILAR_COSINES:
        alike = (own_cosines > cosine).sum(axis=1) - 1  # without the row itself
        rate = ((other_cosines > cosine).sum(axis=1) + 1) / (len(other_maps) + 2)
        odds += np.where(alike > 0, _tail_decades(np.maximum(alike, 1), len(own) - 1, rate), 0)
    row = int(odds.argmax())
    return float(odds[row]) / len(SIMILAR_COSINES), np.flatnonzero(own_cosines[row] > SIMILAR_COSINES[1])


def _whitened_patterns(own: Floats, other_maps: Floats, window: Window) -> tuple[Matrix, Matrix]:
    """Returns unit vectors [n, k] and [m, k] of the maps' content in the window, whitened by the other classes' maps.

    A map with hardly any relevance in the window has a zero vector.
    """
    own_roots, other_roots = (_root_shares(maps, window) for maps in (own, other_maps))
    even = own_roots.shape[1] / own[0].size
    faint = [(roots**2).sum(axis=1) <= FAINT_SHARE * even for roots in (own_roots, other_roots)]
    centre = other_roots.mean(axis=0)
    own_roots, other_roots = own_roots - centre, other_roots - centre
    covariance = other_roots.T @ other_roots / len(other_roots)
    covariance += np.eye(len(covariance)) * max(RIDGE_SHARE * np.trace(covariance) / len(covariance), 1e-12)
    factor = cholesky(covariance, lower=True)
    own_patterns, other_patterns = (
        _normalise_rows(solve_triangular(factor, roots.T, lower=True).T) for roots in (own_roots, other_roots)
    )
    own_patterns[faint[0]], other_patterns[faint[1]] = 0, 0
    return own_patterns, other_patterns


def _tail_decades(successes: NDArray[np.int64], trials: int, rate: Matrix) -> Matrix:
    """Returns −log₁₀ of the probability of at least ``successes`` in ``trials`` (binomial)."""
    decades: Matrix = -np.log10(np.maximum(betainc(successes, trials - successes + 1, rate), 1e-300))
    return decades


def _list_windows(height: int, width: int) -> Iterator[Window]:
    """Yields windows that cover the map; each overlaps the next by at least half."""
    tall, wide = (min(length, max(3, length // WINDOW_FRACTION)) for length in (height, width))
    for top in range(0, height - tall + 1, max(1, tall // 2)):
        for left in range(0, width - wide + 1, max(1, wide // 2)):
            yield slice(top, top + tall), slice(left, left + wide)


def _weighted_centre(surplus: Floats, window: Window) -> tuple[float, float]:
    """Returns the centre of the surplus in the window, as parts of the map's height and width."""
    weight = np.maximum(surplus[window], 0).astype(np.float64) + 1e-12
    ys, xs = (np.arange(part.start, part.stop) + 0.5 for part in window)
    total = weight.sum()
    return float(weight.sum(1) @ ys / total / surplus.shape[0]), float(weight.sum(0) @ xs / total / surplus.shape[1])


def _score_unit(other_maps: Floats) -> float:
    """Returns the entry of SCORE_UNITS for these maps: their detail is the variance in the weaker half of
    directions."""
    windows = list(_list_windows(*other_maps.shape[1:]))[::DETAIL_STEP]
    details = []
    for window in windows:
        variances = np.linalg.eigvalsh(np.cov(_root_shares(other_maps, window), rowvar=False))
        details.append(variances[: len(variances) // 2].sum() / max(variances.sum(), 1e-300))
    detail = float(np.median(details))
    return next((unit for least, unit in SCORE_UNITS if detail >= least), SCORE_UNITS[-1][1])


def _root_shares(maps: Floats, window: Window) -> Matrix:
    """Returns square roots of the shares in the window, [n, cells]: roots vary alike, whether shares are large or
    small."""
    inside = maps[:, *window].reshape(len(maps), -1)
    return np.sqrt(np.maximum(inside, 0), dtype=np.float64)


def _normalise_rows(rows: Matrix) -> Matrix:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _sample_indices(n: int, most: int, seed: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng((seed, n)).permutation(n)[:most])
