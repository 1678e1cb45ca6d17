"""Tests of class model visualisation: the ascent finds known optima, and does not change the model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from factories import NoGradient, tiny
from torch import Tensor, nn

from saliency_core.class_visualization.ascent import as_pictures, blur, penalty, total_variation, visualise_classes
from saliency_core.class_visualization.ascent_recipe import Recipe
from saliency_core.errors import InvalidRequestError, SaliencyWarning
from saliency_core.model.classifier import Model
from saliency_core.model.preprocessing import Preprocessing

GEOMETRY = Preprocessing((6, 9), None, "bilinear", (0.5, 0.4, 0.3), (0.25, 0.2, 0.1), 3)
SHAPE = (3, 6, 9)
PLAIN = {"jitter": 0, "blur_every": 0}


def model_of(module: nn.Module) -> Model:
    return Model("own", module.eval(), GEOMETRY)


def linear() -> tuple[Model, Tensor]:
    """A linear model of 4 classes, and its weights as images [4, C, H, W]."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(math.prod(SHAPE), 4)
    return model_of(nn.Sequential(nn.Flatten(), layer)), layer.weight.detach().clone().view(4, *SHAPE)


def net() -> Model:
    """A smooth net of 5 classes, so that rounding errors do not grow."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_of(
            nn.Sequential(
                nn.Conv2d(3, 6, 3), nn.Softplus(), nn.Conv2d(6, 8, 3), nn.Softplus(), nn.Flatten(), nn.Linear(80, 5)
            )
        )


def test_the_image_of_a_linear_model_is_its_weights_over_two_lambda() -> None:
    model, weights = linear()
    result = visualise_classes(model, [2, 0, 3], recipe=Recipe(l2=0.05, steps=300, **PLAIN))
    assert result.images.dtype == torch.float32
    torch.testing.assert_close(result.images, weights[[2, 0, 3]] / (2 * 0.05), atol=2e-3, rtol=0)
    with torch.no_grad():
        outputs = model.logits(result.images)
    torch.testing.assert_close(result.scores, outputs[[0, 1, 2], [2, 0, 3]])
    torch.testing.assert_close(result.probabilities, outputs.softmax(1)[[0, 1, 2], [2, 0, 3]])


def test_the_optimum_with_a_power_as_penalty() -> None:
    model, weights = linear()
    result = visualise_classes(model, [1], recipe=Recipe(l2=0, lp=(3.0, 0.05), steps=300, **PLAIN))
    expected = weights[1:2].sign() * (weights[1:2].abs() / (3 * 0.05)).sqrt()
    torch.testing.assert_close(result.images, expected, atol=2e-2, rtol=0)


def test_the_size_of_the_gradient_does_not_matter() -> None:
    model, weights = linear()
    for scale in (1e-20, 1e15):
        with torch.no_grad():
            model.module[1].weight.copy_(weights.flatten(1) * scale)
        result = visualise_classes(model, [0], recipe=Recipe(l2=0.05 * scale, steps=300, **PLAIN))
        torch.testing.assert_close(result.images, weights[:1] / (2 * 0.05), atol=2e-3, rtol=0)


def test_no_step_leaves_the_zero_image() -> None:
    model = net()
    result = visualise_classes(model, [4, 1], recipe=Recipe(steps=0, **PLAIN))
    assert result.images.shape == (2, *SHAPE) and not result.images.any()
    with torch.no_grad():
        torch.testing.assert_close(result.scores, model.logits(torch.zeros(2, *SHAPE))[0, [4, 1]])


def test_scores_rise_above_that_of_the_zero_image() -> None:
    start, short, long = (
        visualise_classes(net(), range(5), recipe=Recipe(steps=steps, l2=1e-4, **PLAIN)) for steps in (0, 8, 64)
    )
    assert (short.scores > start.scores).all() and (long.scores > short.scores).all()


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    recipe = Recipe(steps=24, jitter=2, blur_every=5)
    together = visualise_classes(net(), [3, 0, 3, 4], recipe=recipe, seed=7)
    for row, number in enumerate([3, 0, 3, 4]):
        alone = visualise_classes(net(), [number], recipe=recipe, seed=7)
        torch.testing.assert_close(together.images[row : row + 1], alone.images, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.scores[row : row + 1], alone.scores, atol=1e-4, rtol=1e-4)


def test_an_image_that_diverges_does_not_affect_others() -> None:
    class Root(nn.Module):
        """The score of class 1 grows as images get darker, until it becomes the root of a negative sum."""

        def forward(self, images: Tensor) -> Tensor:
            total = images.flatten(1).sum(1)
            return torch.stack([total, -total], dim=1) + (total + 1).sqrt()[:, None]

    result = visualise_classes(model_of(Root()), [0, 1, 0], recipe=Recipe(steps=3))
    assert result.images[[0, 2]].isfinite().all() and torch.equal(result.images[1].isnan(), torch.ones(SHAPE).bool())
    assert result.scores[[0, 2]].isfinite().all() and result.scores[1].isnan()


def test_a_seed_repeats_and_only_jitter_draws() -> None:
    def images(seed: int, jitter: int) -> Tensor:
        return visualise_classes(net(), [1, 2], recipe=Recipe(steps=8, jitter=jitter), seed=seed).images

    assert torch.equal(images(0, 2), images(0, 2))
    assert not torch.equal(images(0, 2), images(1, 2))
    assert torch.equal(images(0, 0), images(1, 0))


def test_jitter_shifts_the_image_by_at_most_so_many_pixels() -> None:
    model, _ = linear()
    weight = torch.zeros(4, *SHAPE)
    weight[:, 0, 0, 4] = 1
    with torch.no_grad():
        model.module[1].weight.copy_(weight.flatten(1))
    image = visualise_classes(model, [0], recipe=Recipe(steps=100, jitter=1, blur_every=0)).images[0]
    # Shifts wrap around from the first row to the last.
    expected = torch.zeros(SHAPE, dtype=torch.bool)
    expected[0, [0, 1, 5], 3:6] = True
    assert torch.equal(image != 0, expected)


def test_a_random_step_leaves_a_flat_image_without_a_gradient() -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        layers[1].bias.fill_(-0.01)
        layers[3].weight.fill_(1)
    recipe = Recipe(steps=32, **PLAIN)
    result = visualise_classes(model_of(layers), [0, 1], recipe=recipe)
    start = visualise_classes(model_of(layers), [0, 1], recipe=Recipe(steps=0))
    assert (result.scores > start.scores).all()
    assert torch.equal(result.images[:1], visualise_classes(model_of(layers), [0], recipe=recipe).images)


def test_the_model_and_torch_are_unchanged_by_an_ascent() -> None:
    module = tiny().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():  # as a caller may do
        visualise_classes(Model("own", module, GEOMETRY), [0, 1], recipe=Recipe(steps=2))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(value.requires_grad and value.grad is None for value in module.parameters())
    assert not module.training and torch.equal(torch.get_rng_state(), state)


def test_a_model_that_normalises_in_place_works() -> None:
    class InPlace(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.sub_(0.5).flatten(1)[:, :4]

    assert (visualise_classes(model_of(InPlace()), [0], recipe=Recipe(steps=4)).scores > -0.5).all()


@pytest.mark.parametrize(
    "weak, strong",
    [
        (Recipe(l2=1e-3), Recipe(l2=1e-1)),
        (Recipe(l2=0, lp=(6.0, 1e-4)), Recipe(l2=0, lp=(6.0, 1e-2))),
        (Recipe(l2=1e-2), Recipe(l2=1e-2, total_variation=1e-2)),
    ],
    ids=["l2", "lp", "total variation"],
)
def test_a_penalty_reduces_its_own_quantity(weak: Recipe, strong: Recipe) -> None:
    def size(images: Tensor) -> Tensor:
        return penalty(images, strong)

    images = [visualise_classes(net(), range(5), recipe=recipe).images for recipe in (weak, strong)]
    assert (size(images[1]) < size(images[0])).all()


def test_total_variation_is_the_length_of_the_edges() -> None:
    images = torch.zeros(3, 2, 6, 9)
    images[1, 0, :, 4:] = 3.0
    images[2, 1, 2, 3] = 1.0
    torch.testing.assert_close(
        total_variation(images), torch.tensor([0, 6 * 3.0, 2 + math.sqrt(2)]), atol=1e-3, rtol=1e-4
    )


def test_blur_keeps_plain_images_and_spreads_a_point() -> None:
    torch.testing.assert_close(blur(torch.full((1, *SHAPE), 3.0), 2.5), torch.full((1, *SHAPE), 3.0))
    point = torch.zeros(2, 1, 21, 25)
    point[:, :, 10, 12] = 1
    spread = blur(point, 1.5)[0, 0]
    places = torch.arange(21) - 10.0
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    assert (spread.sum(1) * places**2).sum() == pytest.approx(1.5**2, rel=0.05)  # cut at three sigma
    torch.testing.assert_close(spread, spread.flip(0, 1))


def test_pictures_are_the_pixels_that_the_model_was_given() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 9, 3), np.uint8)
    images = GEOMETRY.normalise(torch.from_numpy(pixels), torch.float32)
    np.testing.assert_array_equal(as_pictures(images, GEOMETRY), pixels)
    mean = as_pictures(torch.zeros(1, *SHAPE), GEOMETRY)[0]
    assert (np.abs(mean - 255 * np.array(GEOMETRY.mean)) <= 0.5).all()
    assert (as_pictures(torch.full((1, *SHAPE), 1e9), GEOMETRY) == 255).all()


@pytest.mark.parametrize("classes, message", [([0, 4], "class 4"), ([-1], "class -1"), ([], "no class")])
def test_an_unknown_class_is_refused(classes: list[int], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        visualise_classes(linear()[0], classes)


def test_a_softmax_at_the_end_of_the_model_is_bypassed() -> None:
    model, _ = linear()
    ending = model_of(nn.Sequential(*model.module, nn.Softmax(dim=1)))
    recipe = Recipe(l2=0.05, steps=50, **PLAIN)
    with pytest.warns(SaliencyWarning, match="softmax"):
        result = visualise_classes(ending, [2], recipe=recipe)
    assert (
        torch.equal(result.images, visualise_classes(model, [2], recipe=recipe).images) and "softmax" in result.notes[0]
    )


def test_scores_without_a_gradient_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="gradient"):
        visualise_classes(model_of(NoGradient()), [0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": -1}, "steps=-1"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"l2": math.nan}, "l2"),
        ({"lp": (0.5, 1.0)}, "power"),
        ({"lp": (2.0,)}, "weight"),
        ({"lp": (2.0, -1.0)}, "weight"),
        ({"blur_sigma": math.inf}, "blur_sigma"),
    ],
)
def test_an_invalid_recipe_is_an_error(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**change)
