"""Tests of how the values of a map become colours, and of pixels made from model inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saliency_core import Preprocessing
from saliency_core.errors import InvalidRequestError
from saliency_core.visualization.colormap import (
    DIVERGING,
    SEQUENTIAL,
    blur,
    colour,
    invert,
    is_signed,
    limits,
    mask,
    normalise,
    overlay,
    strength,
)
from saliency_core.visualization.deprocess import deprocess, deprocess_signal
from saliency_core.visualization.map_style import MapStyle, draw_map

RNG = np.random.default_rng(0)
MAP = RNG.normal(size=(7, 5)).astype(np.float32)
IMAGE = RNG.integers(0, 256, (7, 5, 3), np.uint8)


# -- values ----------------------------------------------------------------------------------------------------


def test_a_map_runs_from_its_minimum_to_its_maximum() -> None:
    result = normalise(MAP)
    assert result.dtype == np.float32 and result.min() == 0 and result.max() == 1
    np.testing.assert_array_equal(np.argsort(result, axis=None), np.argsort(MAP, axis=None))


def test_percentile_100_is_the_whole_range() -> None:
    assert limits(MAP, percentile=100) == (MAP.min(), MAP.max())
    assert limits(MAP, percentile=100, signed=True) == (-np.abs(MAP).max(), np.abs(MAP).max())
    expected = (MAP - MAP.min()) / (MAP.max() - MAP.min())
    np.testing.assert_allclose(normalise(MAP, percentile=100), expected, atol=1e-6)


def test_the_picture_does_not_depend_on_the_unit_of_a_map() -> None:
    for scale in (1e-30, 1.0, 1e30):
        for signed in (False, True):
            result = normalise(MAP * np.float32(scale), signed=signed)
            np.testing.assert_allclose(result, normalise(MAP, signed=signed), atol=1e-6)


def test_zero_of_a_signed_map_is_the_middle() -> None:
    values = np.array([[-1.0, 0.0, 0.5, 4.0]])
    np.testing.assert_allclose(normalise(values, signed=True), [[0.375, 0.5, 0.5625, 1.0]])
    np.testing.assert_allclose(normalise(-values, signed=True), invert(normalise(values, signed=True)))


@pytest.mark.parametrize("constant", [0.0, 3.0, -3.0, 1e-40, 3e38])
def test_a_constant_map_divides_by_nothing(constant: float) -> None:
    values = np.full((4, 4), constant, np.float32)
    np.testing.assert_array_equal(normalise(values), np.zeros((4, 4)))
    np.testing.assert_array_equal(normalise(values, signed=True), np.full((4, 4), 0.5 + 0.5 * np.sign(constant)))
    for signed in (None, False, True):
        assert len(np.unique(draw_map(values, MapStyle(blur=1), signed=signed).reshape(-1, 3), axis=0)) == 1


def test_maps_may_span_the_range_of_float32() -> None:
    np.testing.assert_array_equal(normalise(np.array([[-3e38, 0, 3e38]], np.float32)), [[0, 0.5, 1]])


def test_nan_stays_nan_and_changes_nothing_else() -> None:
    holed = MAP.copy()
    holed[2:4, 1] = np.nan
    whole = normalise(np.where(np.isnan(holed), MAP[0, 0], holed))
    np.testing.assert_array_equal(normalise(holed), np.where(np.isnan(holed), np.nan, whole))
    for signed in (False, True):
        assert np.isnan(normalise(np.full((3, 3), np.nan), signed=signed)).all()
    assert normalise(np.empty((0, 5), np.float32)).shape == (0, 5)


def test_infinity_takes_the_end_of_the_range() -> None:
    np.testing.assert_array_equal(normalise(np.array([[-np.inf, 0, 1, np.inf]])), [[0, 0, 1, 1]])


def test_percentile_cuts_outliers_at_both_ends() -> None:
    values = np.arange(101.0)[None]
    values[0, -1] = 1e6
    result = normalise(values, percentile=99)
    assert result[0, 0] == result[0, 1] == 0 and result[0, 99] == result[0, 100] == 1
    assert result[0, 50] == 0.5
    for wrong in (0, 50, 101, float("nan")):
        with pytest.raises(ValueError, match="percentile"):
            normalise(values, percentile=wrong)


@pytest.mark.parametrize("signed", [False, True])
def test_outliers_are_not_cut_from_an_otherwise_constant_map(signed: bool) -> None:
    values = np.zeros((50, 50), np.float32)
    values[3, 4] = 2
    result = normalise(values, percentile=99.5, signed=signed)
    assert result[3, 4] == 1 and result[0, 0] == (0.5 if signed else 0)


def test_each_map_of_a_batch_is_scaled_by_itself() -> None:
    maps = np.stack([MAP, 1000 * MAP, np.zeros_like(MAP)])
    for signed in (False, True):
        np.testing.assert_array_equal(normalise(maps, signed=signed), [normalise(map_, signed=signed) for map_ in maps])
    channels = np.stack([maps, maps + 1])
    assert normalise(channels).shape == channels.shape and normalise(maps[:0]).shape == (0, 7, 5)
    np.testing.assert_array_equal(blur(channels, 1.5)[1, 2], blur(channels[1, 2], 1.5))


def test_inverted_twice_is_the_same() -> None:
    np.testing.assert_allclose(invert(invert(normalise(MAP))), normalise(MAP), atol=1e-7)
    grey, inverted = (
        draw_map(MAP, MapStyle(cmap="gray", invert=inverts), signed=False).astype(int) for inverts in (False, True)
    )
    np.testing.assert_allclose(grey + inverted, 255, atol=1)


def test_a_map_is_signed_when_it_has_a_negative_value() -> None:
    assert is_signed(MAP) and not is_signed(np.abs(MAP)) and not is_signed(np.array([[0, np.nan]]))
    np.testing.assert_array_equal(strength(np.array([0, 0.5, 0.75, 1]), signed=True), [1, 0, 0.5, 1])


# -- blur ------------------------------------------------------------------------------------------------------


def test_a_blur_keeps_the_sum_and_a_width_of_zero_changes_nothing() -> None:
    for sigma in (0.4, 2, 30):
        np.testing.assert_allclose(blur(MAP, sigma).sum(), MAP.sum(), rtol=1e-5)
    np.testing.assert_array_equal(blur(MAP, 0), MAP)
    assert blur(MAP, 2).std() < blur(MAP, 1).std() < MAP.std()
    np.testing.assert_allclose(blur(np.full((4, 4), 3, np.float32), 1.5), 3, rtol=1e-6)


def test_a_blur_does_not_change_or_spread_values_that_are_not_finite() -> None:
    holed = np.where(np.arange(5) == 2, np.nan, np.float32(3)) * np.ones((7, 1), np.float32)
    holed[0, 0] = np.inf
    result = blur(holed, 1.5)
    np.testing.assert_array_equal(np.isfinite(result), np.isfinite(holed))
    np.testing.assert_allclose(result[np.isfinite(result)], 3, rtol=1e-6)
    assert result[0, 0] == np.inf
    for wrong in (-1, float("nan"), 1e9):
        with pytest.raises(ValueError, match="blur"):
            blur(MAP, wrong)


# -- colours ---------------------------------------------------------------------------------------------------


def test_colours_are_matplotlibs_and_nan_is_grey() -> None:
    import matplotlib

    values = np.array([[0.0, 0.3, 1.0, np.nan]])
    result = colour(values, colormap="hot")
    assert result.dtype == np.uint8 and result.shape == (1, 4, 3)
    expected = [np.round(np.array(matplotlib.colormaps["hot"](x)[:3]) * 255) for x in (0.0, 0.3, 1.0)]
    np.testing.assert_allclose(result[0, :3], expected, atol=3)
    assert len(set(result[0, 3].tolist())) == 1
    with pytest.raises(InvalidRequestError, match="seizmic"):
        colour(values, colormap="seizmic")


def test_zero_has_the_middle_colour_and_signs_are_symmetric() -> None:
    assert (draw_map(np.array([[-1.0, 0, 3]]))[0, 1] == 255).all()
    result = draw_map(np.stack([MAP[0], -MAP[0]]), MapStyle(clip=100))
    np.testing.assert_array_equal(result[0], result[1][:, ::-1])  # red for blue


def test_colours_follow_the_sign_unless_chosen() -> None:
    np.testing.assert_array_equal(draw_map(MAP), draw_map(MAP, MapStyle(cmap=DIVERGING), signed=True))
    np.testing.assert_array_equal(draw_map(np.abs(MAP)), draw_map(np.abs(MAP), MapStyle(cmap=SEQUENTIAL), signed=False))
    assert (draw_map(np.abs(MAP), signed=True) != draw_map(np.abs(MAP))).any()


def test_a_scale_shows_the_colours_of_its_limits() -> None:
    for style in (MapStyle(), MapStyle(invert=True), MapStyle(cmap="viridis", clip=90), MapStyle(blur=1)):
        for signed in (False, True):
            low, high = style.limits(MAP, signed=signed)
            drawn, scale = draw_map(MAP, style, signed=signed), style.scale(signed=signed)
            blurred = blur(MAP, style.blur)
            for extreme, end in ((blurred <= low, scale[0, 0]), (blurred >= high, scale[0, -1])):
                np.testing.assert_array_equal(drawn[extreme], np.broadcast_to(end, drawn[extreme].shape))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"clip": 50}, "clip=50.*over 50"),
        ({"clip": float("nan")}, "clip=nan"),
        ({"clip": 100.1}, "clip=100.1"),
        ({"blur": -1}, "blur=-1"),
        ({"blur": float("inf")}, "blur=inf"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"cmap": "hott"}, "'hott'"),
        ({"cmap": ""}, "colour map ''"),
    ],
)
def test_a_style_that_shows_nothing_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        MapStyle(**wrong)  # type: ignore[arg-type]


# -- on the image ----------------------------------------------------------------------------------------------


def test_an_overlay_keeps_the_image_where_the_map_is_zero() -> None:
    np.testing.assert_array_equal(overlay(IMAGE, np.zeros((7, 5))), IMAGE)
    np.testing.assert_array_equal(overlay(IMAGE, np.full((7, 5), 0.5), signed=True), IMAGE)
    np.testing.assert_array_equal(overlay(IMAGE, np.ones((7, 5)), alpha=1), colour(np.ones((7, 5))))
    np.testing.assert_array_equal(overlay(IMAGE, normalise(MAP), alpha=0), IMAGE)


def test_an_overlay_dims_pixels_outside_of_the_models_input() -> None:
    image = np.full((4, 4, 3), 200, np.uint8)
    values = np.zeros((4, 4))
    values[0] = np.nan
    result = overlay(image, values)
    assert (result[0] == 100).all() and (result[1:] == 200).all()
    hidden = mask(image, values)
    assert len(np.unique(hidden[0])) == 1 and hidden[0, 0, 0] not in (0, 200) and (hidden[1:] == 0).all()


def test_a_mask_keeps_the_image_where_the_map_is_strong() -> None:
    np.testing.assert_array_equal(mask(IMAGE, np.ones((7, 5))), IMAGE)
    assert not mask(IMAGE, np.zeros((7, 5))).any()
    np.testing.assert_array_equal(mask(IMAGE, np.full((7, 5), 0.5)), np.rint(IMAGE / 2))
    signed = np.array([[0, 0.5, 1]])
    strong = MapStyle().mask(IMAGE[:1, :3], signed, signed=True)
    weak = MapStyle(invert=True).mask(IMAGE[:1, :3], invert(signed.astype(np.float32)), signed=True)
    np.testing.assert_array_equal(strong[0], IMAGE[0, :3] * [[1], [0], [1]])
    np.testing.assert_array_equal(strong + weak, IMAGE[:1, :3])


def test_an_overlay_has_the_size_of_the_original() -> None:
    """The model's input is a square from the middle of a panorama; the picture shows the whole panorama."""
    preprocessing = Preprocessing(
        resize=8, crop=(8, 8), interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3, channels=3
    )
    image = RNG.integers(0, 256, (20, 50, 3), np.uint8)
    placed = preprocessing.geometry(50, 20).place(normalise(RNG.random((8, 8))), width=50, height=20)
    for result in (overlay(image, placed), mask(image, placed)):
        assert result.shape == image.shape and result.dtype == np.uint8
    np.testing.assert_array_equal(overlay(image, placed)[:, :15], np.rint(image[:, :15] / 2))


@pytest.mark.parametrize("lay", [overlay, mask])
def test_an_overlay_refuses_another_size(lay: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="place the map"):
        lay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5)))


# -- back to pixels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deprocess_undoes_the_preprocessing(channels: int, dtype: torch.dtype) -> None:
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    preprocessing = Preprocessing(
        resize=(16, 16), crop=None, interpolation="bilinear", mean=mean, std=std, channels=channels
    )
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(channels, 2)
    images = np.stack([pixels, pixels[::-1]])
    result = deprocess(preprocessing.normalise(torch.from_numpy(images), dtype).numpy(), mean=mean, std=std)
    np.testing.assert_array_equal(result, images)
    np.testing.assert_array_equal(deprocess(np.full((channels, 1, 2), 1e9), mean=mean, std=std), 255)
    with pytest.raises(ValueError, match="one number for each channel"):
        deprocess(np.zeros((channels, 2, 2)), mean=(0, 0), std=(1, 1))


def signal(**holes: float) -> NDArray[np.float32]:
    values = RNG.normal(3, 7, (3, 40, 40)).astype(np.float32)
    values[0, 0, : len(holes)] = list(holes.values())
    return values


def test_a_signal_is_centred_with_a_small_spread() -> None:
    result = deprocess_signal(signal()) / 255
    assert result.shape == (40, 40, 3)
    np.testing.assert_allclose([result.mean(), result.std()], [0.5, 0.1], atol=2e-3)
    for scale in (1e-30, 1e30):
        values = signal()
        np.testing.assert_allclose(deprocess_signal(values * np.float32(scale)), deprocess_signal(values), atol=1)
    batch = np.stack([signal(), 1000 * signal()])
    np.testing.assert_array_equal(deprocess_signal(batch), [deprocess_signal(values) for values in batch])


@pytest.mark.parametrize("constant", [0, 0.1, -1e30])
def test_a_signal_without_a_spread_is_mid_grey(constant: float) -> None:
    assert (deprocess_signal(np.full((3, 5, 5), constant, np.float32)) == 128).all()


def test_values_of_a_signal_that_are_not_finite_are_grey_and_change_nothing_else() -> None:
    result = deprocess_signal(signal(a=np.nan, b=np.inf))
    np.testing.assert_array_equal(result[0, :2, 0], [160, 160])
    np.testing.assert_allclose(result[1:].mean() / 255, 0.5, atol=5e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (deprocess_signal(np.full((3, 2, 2), np.nan)) == 160).all()
        assert (deprocess(np.full((1, 2, 2), np.nan), mean=[0], std=[1]) == 160).all()
