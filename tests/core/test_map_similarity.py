"""Tests of measures of the similarity of two maps, and of the region of an image that is in both models' inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from jobs.compare.common_grid import CommonRegion
from jobs.compare.location_text import find_shift, shift_text
from saliency_core.map_similarity import centres, distance, overlap, rank_correlation
from saliency_core.model.preprocessing import Preprocessing
from tests.conftest import run_inline
from tests.support.comparisons import SAME, read_comparison, rows_of, run_compare

# -- measures ------------------------------------------------------------------------------------------------


def test_rank_correlation_is_scipys_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    a = np.abs(rng.normal(size=(12, 9, 7))).astype(np.float32)
    b = (a + np.abs(rng.normal(size=a.shape))).astype(np.float32)
    a[:4], b[2:6] = np.round(a[:4]), np.round(3 * b[2:6]) / 3
    b[6], b[7] = a[6], a[7].max() - a[7]
    b[8, 0, 0], a[8, 1] = 100, 0
    expected = [spearmanr(one.ravel(), other.ravel()).statistic for one, other in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b), expected, atol=1e-12)
    assert rank_correlation(a, b)[6] == 1 and rank_correlation(a, b)[7] == pytest.approx(-1)


@pytest.mark.parametrize("value", [0.0, 7.0, float("nan"), float("inf")])
def test_a_map_without_an_order_has_no_rank_correlation(value: float) -> None:
    maps = np.random.default_rng(0).random((3, 4, 4), np.float32)
    flat = maps.copy()
    flat[1] = value
    for one, other in ((maps, flat), (flat, maps), (flat, flat)):
        assert np.isnan(rank_correlation(one, other)).tolist() == [False, True, False]
    flat[1, 0, 0], flat[1, 1, 1] = 1, 2
    assert np.isnan(rank_correlation(maps, flat)[1]) == (not np.isfinite(value))


def test_overlap_is_that_of_the_top_regions() -> None:
    a = np.arange(20, dtype=np.float32).reshape(1, 4, 5)
    assert overlap(a, a, top=0.1) == overlap(a, 7 * a, top=0.25) == 1
    assert overlap(a, a[:, ::-1, ::-1], top=0.5) == 0
    b = a.copy()
    b[0, 3, 4], b[0, 0, 0] = 0, 30  # the first pixel replaces the last one in the region
    assert overlap(a, b, top=0.2) == overlap(b, a, top=0.2) == 3 / 5


def test_ties_belong_to_the_top_region_and_zeros_never() -> None:
    a, b = np.zeros((2, 1, 4, 5), np.float32)
    a[0, 0, :3] = 1  # three pixels are tied for a region of two
    b[0, 0, :2] = 1  # zeros are excluded, also from a region of more pixels
    assert overlap(a, b, top=0.1) == 2 / 3 and overlap(a, b, top=0.9) == 2 / 3
    assert np.isnan(overlap(np.zeros_like(a), np.zeros_like(a), top=0.1))


def test_distance_is_the_share_of_relevance_in_other_pixels() -> None:
    a, b, c = np.zeros((3, 1, 2, 2), np.float32)
    a[0, 0], b[0, 0, 0], c[0, 1] = 0.5, 1, 0.5
    assert [float(distance(a, one)[0]) for one in (a, b, c)] == [0, 0.5, 1]


def test_centres_and_the_description_of_a_shift() -> None:
    corner, middle = np.zeros((2, 1, 9, 9), np.float32)
    corner[0, 8, 8], middle[0, 4, 4] = 1, 1
    assert [float(one[0]) for one in centres(corner)] == pytest.approx([17 / 18, 17 / 18])
    assert shift_text(*find_shift(corner[0], middle[0])) == "from the lower right corner to the centre"
    assert find_shift(corner[0], corner[0]) == (None, None)
    assert shift_text(*find_shift(np.array([[1.0, 0]]), np.array([[0, 1.0]]))) == "from the left edge to the right edge"
    assert shift_text(*find_shift(np.full((9, 9), 1 / 81), corner[0])) == (
        "from the upper left corner to the lower right corner"
    )


# -- maps of other sizes and crops -----------------------------------------------------------------------------


def geometry(resize: Any, crop: Any) -> Preprocessing:
    return Preprocessing(resize=resize, crop=crop, interpolation="bilinear", mean=(0,), std=(1,), channels=1)


class Fake:
    """A stand-in for a run and its array, with the attributes that `CommonRegion` reads."""

    def __init__(self, resize: Any, crop: Any) -> None:
        self.preprocessing = geometry(resize, crop)
        self.item_shape = self.preprocessing.input_size

    def maps(self, sizes: list[tuple[int, int]]) -> np.ndarray:
        """Returns a smooth function of the images' own coordinates, sampled at the pixels of this model's input."""
        rows, columns = self.item_shape
        found = []
        for width, height in sizes:
            box = self.preprocessing.geometry(width, height)
            x = (box.left + (np.arange(columns) + 0.5) / columns * (box.right - box.left)) / width
            y = (box.top + (np.arange(rows) + 0.5) / rows * (box.bottom - box.top)) / height
            found.append(3 + np.sin(2.5 * x)[None] + np.cos(3 * y)[:, None] + x[None] * y[:, None])
        return np.array(found, np.float32)


SIZES = [(40, 40), (40, 64), (100, 57), (33, 32)]


@pytest.mark.parametrize("b", [
    Fake((48, 48), None), Fake((32, 24), None), Fake(40, (32, 32)), Fake(36, (20, 28)), Fake(30, (36, 30)),
])  # fmt: skip
def test_the_common_region_of_two_crops_is_compared(b: Fake) -> None:
    a = Fake((32, 32), None)
    common = CommonRegion(a, a, b, b)  # type: ignore[arg-type]
    widths, heights = (np.array(one, np.int32) for one in zip(*SIZES, strict=True))
    placed_a, placed_b = common(a.maps(SIZES), b.maps(SIZES), widths, heights)
    assert placed_a.shape == placed_b.shape == (4, min(32, b.item_shape[0]), min(32, b.item_shape[1]))
    # Half a cell at the edges is repeated; elsewhere bilinear resampling follows so smooth a landscape.
    np.testing.assert_allclose(placed_a[:, 2:-2, 2:-2], placed_b[:, 2:-2, 2:-2], atol=0.03)
    assert rank_correlation(placed_a, placed_b).min() > 0.998


def test_maps_of_the_same_region_are_not_resampled() -> None:
    a, b = Fake((16, 16), None), Fake((16, 16), (16, 16))
    maps = np.random.default_rng(0).random((4, 16, 16), np.float32)
    widths, heights = (np.array(one, np.int32) for one in zip(*SIZES, strict=True))
    placed = CommonRegion(a, a, b, b)(maps, 2 * maps, widths, heights)  # type: ignore[arg-type]
    np.testing.assert_array_equal(placed[0], maps)
    np.testing.assert_array_equal(placed[1], 2 * maps)


def test_stores_of_other_sizes_and_crops_compare(tree: Path, tmp_path: Path) -> None:
    """Maps of the same model on larger images are similar; maps of a crop are compared with its region of the image."""
    for name, keys in (("whole", {}), ("larger", {"resize": "30x30"}), ("cropped", {"crop": "20x20"})):
        run_inline(images=str(tree), out=str(tmp_path / name), targets="class:0", **SAME, **{"resize": "24x24", **keys})
    for name, cells in (("larger", 24), ("cropped", 20)):
        run_compare(tmp_path / "whole", tmp_path / name, tmp_path / f"to-{name}")
        told = read_comparison(tmp_path / f"to-{name}")
        assert told.resampled and told.pairs == 40 and told.cells == (cells, cells)
    # The cropped input has the same pixels, except those at the edges.
    assert told.overall["median_rank_correlation"] > 0.5
    assert told.overall["median_distance"] < 0.8 * rows_median(tmp_path / "to-cropped", "to_next")


def rows_median(output: Path, column: str) -> float:
    return float(np.nanmedian(rows_of(output)[column].to_numpy(zero_copy_only=False)))
