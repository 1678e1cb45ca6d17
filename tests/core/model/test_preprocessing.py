"""Tests that preprocessing equals torchvision's and timm's bit for bit, and that its geometry places maps correctly."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from saliency_core.model.preprocessing import FILTERS, Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Real photographs, all shipped with their packages: nothing is downloaded.
PHOTOGRAPHS = [
    photographs.astronaut(),
    photographs.coffee(),
    photographs.chelsea(),
    *load_sample_images()["images"],
]
# (height, width): wide, tall, odd, at the crop's own size, smaller than the crop, and a single pixel.
SIZES = [(375, 400), (400, 90), (61, 400), (333, 299), (256, 257), (224, 224), (180, 223), (37, 20), (1, 1)]


def pictures() -> list[Image.Image]:
    whole = [Image.fromarray(photograph) for photograph in PHOTOGRAPHS]
    cuts = [PHOTOGRAPHS[i % len(PHOTOGRAPHS)][-h:, -w:] for i, (h, w) in enumerate(SIZES)]
    return whole + [Image.fromarray(np.ascontiguousarray(cut)) for cut in cuts]


def make(**changes: object) -> Preprocessing:
    usual = Preprocessing(256, (224, 224), "bilinear", MEAN, STD, 3)
    return dataclasses.replace(usual, **changes)


def as_model_input(preprocessing: Preprocessing, image: Image.Image) -> torch.Tensor:
    pixels = preprocessing.apply(image)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*preprocessing.input_size, preprocessing.channels)
    return preprocessing.normalise(torch.from_numpy(pixels)[None], torch.float32)[0]


@pytest.mark.parametrize(
    ("resize", "crop", "interpolation"),
    [
        (256, 224, InterpolationMode.BILINEAR),
        (232, 224, InterpolationMode.BILINEAR),
        (342, 299, InterpolationMode.BILINEAR),
        (384, 384, InterpolationMode.BICUBIC),
        (235, 224, InterpolationMode.BICUBIC),
        (200, 224, InterpolationMode.BILINEAR),
        (201, 224, InterpolationMode.LANCZOS),
        (256, 224, InterpolationMode.NEAREST),
    ],
)
def test_equals_torchvision_presets(resize: int, crop: int, interpolation: InterpolationMode) -> None:
    theirs = ImageClassification(resize_size=resize, crop_size=crop, interpolation=interpolation)
    ours = Preprocessing.from_torchvision(theirs)
    for image in pictures():
        assert torch.equal(as_model_input(ours, image), theirs(image)), image.size


def test_every_classification_preset_of_torchvision_is_supported() -> None:
    weights = [
        weight
        for name in torchvision.models.list_models(module=torchvision.models)
        for weight in torchvision.models.get_model_weights(name)
    ]
    presets = {repr(preset): preset for preset in (weight.transforms() for weight in weights)}
    assert len(presets) > 10
    image = Image.fromarray(photographs.chelsea())
    for theirs in presets.values():
        assert torch.equal(as_model_input(Preprocessing.from_torchvision(theirs), image), theirs(image))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("resize", "crop"),
    [(None, (100, 301)), ((200, 120), None), ((120, 200), (131, 90)), (64, (32, 96)), (97, (224, 60))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_torchvision_transforms(
    resize: int | tuple[int, int] | None, crop: tuple[int, int] | None, interpolation: str, channels: int
) -> None:
    mean, std = MEAN[:channels], STD[:channels]
    ours = Preprocessing(resize, crop, interpolation, mean, std, channels)
    steps = [
        *([transforms.Grayscale()] if channels == 1 else []),
        *([transforms.Resize(resize, InterpolationMode(interpolation))] if resize else []),
        *([transforms.CenterCrop(crop)] if crop else []),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    theirs = transforms.Compose(steps)
    for image in pictures()[2:]:
        assert torch.equal(as_model_input(ours, image), theirs(image)), image.size


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_pct": 0.95, "interpolation": "bicubic"},
        {"crop_pct": 0.9, "input_size": (3, 299, 299)},
        {"crop_pct": 1.0, "input_size": (3, 160, 160), "mean": (0.5,), "std": (0.5,)},
        {"crop_mode": "squash", "interpolation": "lanczos"},
        {"crop_mode": "squash", "crop_pct": 1.0, "input_size": (3, 192, 320)},
    ],
)
def test_equals_timm(changes: dict[str, object]) -> None:
    config = resolve_data_config({"interpolation": "bilinear", **changes})
    ours, theirs = Preprocessing.from_timm(config), create_transform(**config)
    for image in pictures():
        assert torch.equal(as_model_input(ours, image), theirs(image)), image.size


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_mode": "border"},
        {"input_size": (3, 192, 320)},
        {"interpolation": "random"},
    ],
)
def test_refuses_unsupported_configs_of_timm(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"explicit keys|use nearest"):
        Preprocessing.from_timm(resolve_data_config(changes))


def test_refuses_transforms_that_are_not_a_classification_preset() -> None:
    with pytest.raises(ValueError, match="explicit keys"):
        Preprocessing.from_torchvision(transforms.CenterCrop(224))


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3])
def test_normalises_every_value_as_torchvision_does(device: str, channels: int) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(channels, axis=3)
    ours = make(mean=MEAN[:channels], std=STD[:channels], channels=channels)
    images = torch.from_numpy(every).to(device)
    for dtype in (torch.float32, torch.float64):
        unit = transforms.functional.convert_image_dtype(torch.from_numpy(every).permute(0, 3, 1, 2), dtype)
        expected = transforms.functional.normalize(unit, ours.mean, ours.std)
        result = ours.normalise(images, dtype)
        assert result.dtype == dtype
        assert result.device.type == device
        assert result.is_contiguous()
        assert torch.equal(result.cpu(), expected)
    half = ours.normalise(images, torch.bfloat16)
    assert torch.equal(half, ours.normalise(images, torch.float32).to(torch.bfloat16))
    assert torch.equal(images.cpu(), torch.from_numpy(every)), "the input is left as it was"


@pytest.mark.parametrize(
    "preprocessing",
    [
        make(),
        make(resize=None),
        make(resize=(299, 320), crop=None),
        make(mean=(0.5,), std=(0.25,), channels=1, interpolation="lanczos"),
    ],
)
def test_round_trip_through_json(preprocessing: Preprocessing) -> None:
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_from_dict_names_the_keys_that_do_not_fit() -> None:
    values = make().to_dict()
    del values["std"]
    with pytest.raises(ValueError, match="std"):
        Preprocessing.from_dict(values)
    with pytest.raises(ValueError, match="antialias"):
        Preprocessing.from_dict({**make().to_dict(), "antialias": True})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": None}, "leaves the model's input size open"),
        ({"crop": None, "resize": None}, "leaves the model's input size open"),
        ({"crop": (224,)}, "two numbers"),
        ({"crop": (0, 224)}, "crop=0"),
        ({"resize": 4097}, "resize=4097"),
        ({"resize": 256.0}, "whole pixels"),
        ({"interpolation": "antialias"}, "use nearest"),
        ({"channels": 4}, "neither 1"),
        ({"channels": 1}, "one per channel"),
        ({"mean": (0.5,)}, "one per channel"),
        ({"std": (0.2, 0.2, float("nan"))}, "finite"),
        ({"std": (0.2, 0.0, 0.2)}, "above 0"),
    ],
)
def test_refuses_contradictions(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_apply_refuses_a_picture_that_is_not_rgb() -> None:
    with pytest.raises(ValueError, match="mode CMYK"):
        make().apply(Image.new("CMYK", (300, 300)))


PLACED = [
    make(),
    make(resize=(224, 224), crop=None),
    make(resize=None),
    make(resize=200),
    make(resize=(150, 400)),
]


@pytest.mark.parametrize("preprocessing", PLACED)
@pytest.mark.parametrize(("width", "height"), [(640, 427), (200, 500), (301, 299), (1000, 260), (60, 45), (24, 33)])
def test_a_bright_square_comes_back_to_its_place(preprocessing: Preprocessing, width: int, height: int) -> None:
    side = min(width, height) // 3
    left, top = (width - side) // 2 + side // 4, (height - side) // 2 - side // 4
    original = np.zeros((height, width, 3), np.uint8)
    original[top : top + side, left : left + side] = 255

    map_ = preprocessing.apply(Image.fromarray(original))[..., 0].astype(np.float32)
    geometry = preprocessing.geometry(width, height)
    placed = geometry.place(map_, width=width, height=height)

    assert placed.shape == (height, width)
    assert placed.dtype == np.float32
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    covered = np.outer((y >= geometry.top) & (y < geometry.bottom), (x >= geometry.left) & (x < geometry.right))
    np.testing.assert_array_equal(np.isfinite(placed), covered)
    bright = np.argwhere(np.nan_to_num(placed) > 127.5)
    # Half brightness lies at the square's edges, to within a pixel and a pixel of the model's input.
    slack = 1 + max((geometry.right - geometry.left) / map_.shape[1], (geometry.bottom - geometry.top) / map_.shape[0])
    assert np.abs(bright.min(axis=0) - (top, left)).max() <= slack
    assert np.abs(bright.max(axis=0) - (top + side - 1, left + side - 1)).max() <= slack


def test_placing_without_resize_is_the_crop_undone() -> None:
    preprocessing = make(resize=None, crop=(20, 31))
    for width, height in [(50, 60), (31, 20), (13, 40), (10, 8)]:
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        map_ = preprocessing.apply(Image.fromarray(picture))[..., 0].astype(np.float32)
        placed = preprocessing.geometry(width, height).place(map_, width=width, height=height)
        covered = np.isfinite(placed)
        assert covered.sum() == min(width, 31) * min(height, 20)
        np.testing.assert_array_equal(placed[covered], picture[..., 0][covered])


@pytest.mark.parametrize(("width", "height"), [(640, 427), (9, 30), (1, 1), (2, 900), (224, 224)])
def test_a_constant_map_stays_constant_to_the_edge_of_its_box(width: int, height: int) -> None:
    for preprocessing in PLACED:
        flat = np.full(preprocessing.input_size, 0.25, np.float32)
        placed = preprocessing.geometry(width, height).place(flat, width=width, height=height)
        np.testing.assert_allclose(placed[np.isfinite(placed)], 0.25, rtol=1e-6)


def test_the_largest_intermediate_image_is_computed_beforehand() -> None:
    assert make().resize_pixels(640, 480) == 341 * 480
    assert make().resize_pixels(1, 100_000) == 256 * 25_600_000
    assert make(resize=(224, 224)).resize_pixels(1, 100_000) == 224 * 100_000
    assert make(resize=None).resize_pixels(30, 20) == 600
