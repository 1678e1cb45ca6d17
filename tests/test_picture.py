"""Pictures: what a value becomes on its way to a colour."""

from __future__ import annotations

import numpy as np
import pytest

from saliency_core.errors import Refused
from saliency_core.picture import colour, invert, normalise, overlay

RNG = np.random.default_rng(0)
MAP = RNG.normal(size=(7, 5)).astype(np.float32)


def test_a_map_runs_from_its_minimum_to_its_maximum() -> None:
    found = normalise(MAP)
    assert found.dtype == np.float32 and found.min() == 0 and found.max() == 1
    np.testing.assert_array_equal(np.argsort(found, axis=None), np.argsort(MAP, axis=None))


def test_the_picture_does_not_depend_on_the_unit_of_a_map() -> None:
    for scale in (1e-30, 1.0, 1e30):
        for signed in (False, True):
            found = normalise(MAP * np.float32(scale), signed=signed)
            np.testing.assert_allclose(found, normalise(MAP, signed=signed), atol=1e-6)


def test_zero_of_a_signed_map_is_the_middle() -> None:
    values = np.array([[-1.0, 0.0, 0.5, 4.0]])
    np.testing.assert_allclose(normalise(values, signed=True), [[0.375, 0.5, 0.5625, 1.0]])
    np.testing.assert_allclose(normalise(-values, signed=True), invert(normalise(values, signed=True)))


@pytest.mark.parametrize("constant", [0.0, 3.0, -3.0, 1e-40, 3e38])
def test_a_constant_map_divides_by_nothing(constant: float) -> None:
    values = np.full((4, 4), constant, np.float32)
    np.testing.assert_array_equal(normalise(values), np.zeros((4, 4)))
    np.testing.assert_array_equal(normalise(values, signed=True), np.full((4, 4), 0.5 + 0.5 * np.sign(constant)))


def test_the_range_of_float32_is_no_limit() -> None:
    np.testing.assert_array_equal(normalise(np.array([[-3e38, 0, 3e38]], np.float32)), [[0, 0.5, 1]])


def test_nan_stays_nan_and_changes_nothing_else() -> None:
    holed = MAP.copy()
    holed[2:4, 1] = np.nan
    whole = normalise(np.where(np.isnan(holed), MAP[0, 0], holed))
    np.testing.assert_array_equal(normalise(holed), np.where(np.isnan(holed), np.nan, whole))
    assert np.isnan(normalise(np.full((3, 3), np.nan))).all()


def test_infinity_takes_the_end_of_the_range() -> None:
    np.testing.assert_array_equal(normalise(np.array([[-np.inf, 0, 1, np.inf]])), [[0, 0, 1, 1]])


def test_percentile_cuts_outliers_at_both_ends() -> None:
    values = np.arange(101.0)[None]
    values[0, -1] = 1e6
    found = normalise(values, percentile=99)
    assert found[0, 0] == found[0, 1] == 0 and found[0, 99] == found[0, 100] == 1
    assert found[0, 50] == 0.5
    for wrong in (0, 50, 101, float("nan")):
        with pytest.raises(ValueError, match="percentile"):
            normalise(values, percentile=wrong)


def test_colours_are_matplotlibs_and_nan_is_grey() -> None:
    import matplotlib

    values = np.array([[0.0, 0.3, 1.0, np.nan]])
    found = colour(values, colormap="hot")
    assert found.dtype == np.uint8 and found.shape == (1, 4, 3)
    expected = [np.round(np.array(matplotlib.colormaps["hot"](x)[:3]) * 255) for x in (0.0, 0.3, 1.0)]
    np.testing.assert_allclose(found[0, :3], expected, atol=1)
    assert len(set(found[0, 3].tolist())) == 1
    with pytest.raises(Refused, match="seizmic"):
        colour(values, colormap="seizmic")


def test_an_overlay_leaves_the_image_where_the_map_says_nothing() -> None:
    image = RNG.integers(0, 256, (7, 5, 3), np.uint8)
    np.testing.assert_array_equal(overlay(image, np.zeros((7, 5))), image)
    np.testing.assert_array_equal(overlay(image, np.full((7, 5), 0.5), signed=True, colormap="seismic"), image)
    np.testing.assert_array_equal(overlay(image, np.ones((7, 5)), alpha=1), colour(np.ones((7, 5))))
    np.testing.assert_array_equal(overlay(image, normalise(MAP), alpha=0), image)


def test_an_overlay_dims_what_the_model_never_saw() -> None:
    image = np.full((4, 4, 3), 200, np.uint8)
    values = np.zeros((4, 4))
    values[0] = np.nan
    found = overlay(image, values)
    assert (found[0] == 100).all() and (found[1:] == 200).all()


def test_an_overlay_refuses_another_size() -> None:
    with pytest.raises(ValueError, match="place the map"):
        overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5)))
