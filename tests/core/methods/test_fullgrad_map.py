"""Tests that FullGrad's map equals that of plain module hooks: any grid, saturation, smoothing, edited biases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from saliency_core import Explainer
from saliency_core.methods.samplers import noise_for
from tests.support.bias_nets import Odd, explain, images_of, saturating, twin
from tests.support.references import built, full_gradient, fullgrad_map, noisy, of_class, out_of_place, psi, residual
from tests.support.subjects import distance, own

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("simple", [False, True])
def test_map_is_that_of_plain_hooks(inplace: bool, simple: bool) -> None:
    """The net reuses modules, writes in place, and calls modules in another order than defined; the reference upsamples
    each channel by itself."""
    module, images = built(lambda: Odd(inplace=inplace)), images_of(5, 12, 18)
    plain = twin(module)
    _, by_input, gradients, terms = full_gradient(plain, images, of_class(plain(images).argmax(1)))
    found = explain(module, images, "simple_fullgrad" if simple else "fullgrad")
    expected = fullgrad_map(by_input, gradients if simple else terms)
    assert distance(found.maps["simple_fullgrad" if simple else "fullgrad"], expected).max() <= 1e-9


class Regridded(nn.Module):
    """A net with biases on grids other than a convolution's: after a crop, after a resize, and of a single position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Linear(8, 6)
        self.cropped, self.resized, self.squeezed = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.cropped(self.conv(x)[:, :, 1:, 1:-2]))
        x = self.relu(self.resized(F.interpolate(x, size=(7, 5))))
        return self.head(self.relu(self.squeezed(x.mean((2, 3), keepdim=True))).flatten(1))


def test_map_of_layers_on_any_grid() -> None:
    """Each layer with a 4-D output contributes to the map."""
    module, images = built(Regridded), images_of(3, 23, 26)
    _, by_input, gradients, terms = full_gradient(module, images, of_class(module(images).argmax(1)))
    assert sum(term.dim() == 4 for term in terms) == 4
    found = explain(module, images, "fullgrad", "simple_fullgrad").maps
    assert distance(found["fullgrad"], fullgrad_map(by_input, terms)).max() <= 1e-9
    assert distance(found["simple_fullgrad"], fullgrad_map(by_input, gradients)).max() <= 1e-9


def test_map_of_a_saturated_net() -> None:
    """The constants of a saturated ReLU6 are in the sum of the parts but, as in idiap's code, not in the map."""
    module, images = saturating(), images_of(4, 11, 19)
    plain = out_of_place(module)
    scores, by_input, _, terms = full_gradient(plain, images, of_class(plain(images).argmax(1)))
    assert residual(scores, [by_input, *terms]).max() <= 1e-13
    found = explain(module, images, "fullgrad")
    assert len(terms) == 5  # convolution, ReLU6, norm, ReLU6, linear
    assert distance(found.maps["fullgrad"], fullgrad_map(by_input, [terms[0], terms[2]])).max() <= 1e-9
    assert found.residuals["fullgrad"].max() <= 1e-12


def test_map_of_resnet18() -> None:
    module, images = built(lambda: models.resnet18(weights=None, num_classes=7)), images_of(2, 64, 48)
    plain = out_of_place(module)  # its in-place sums overwrite batch norms' outputs, so their hooks hold clones
    _, by_input, _, terms = full_gradient(Cloning(plain), images, of_class(plain(images).argmax(1)))
    assert distance(explain(module, images, "fullgrad").maps["fullgrad"], fullgrad_map(by_input, terms)).max() <= 1e-9


class Cloning(nn.Module):
    """A wrapper whose batch norms return a clone, so that the in-place operations that follow write into the clone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        norms = [part for part in self.net.modules() if isinstance(part, nn.BatchNorm2d)]
        handles = [norm.register_forward_hook(lambda part, inputs, output: output.clone()) for norm in norms]
        outputs = self.net(x)
        for handle in handles:
            handle.remove()
        return outputs


def test_smooth_fullgrad_averages_the_parts_of_noisy_images() -> None:
    """The parts are averaged over the draws, for the clean image's class, before ψ is applied."""
    module, images = built(Odd), images_of(3, 12, 14)
    plain, n, spread = twin(module), 4, 0.3
    score = of_class(plain(images).argmax(1))
    noises = [noise_for([0, 1, 2], draw, (3, 12, 14), seed=5, device="cpu") for draw in range(n)]
    draws = [full_gradient(plain, x, score) for x in noisy(images, noises, spread=spread)]
    by_input = torch.stack([draw[1] for draw in draws]).mean(0)
    terms = [torch.stack(layer).mean(0) for layer in zip(*(draw[3] for draw in draws), strict=True)]
    found = explain(module, images, f"s=smooth_fullgrad(n={n}, spread={spread})", seed=5)
    assert distance(found.maps["s"], fullgrad_map(by_input, terms)).max() <= 1e-9


def test_biases_edited_after_the_explainer_was_made() -> None:
    module, images = built(Odd), images_of(3, 12, 12)
    explainer = Explainer(own(module), methods=["fullgrad"], precision="float64")
    before = explainer(images)["predicted"].maps["fullgrad"]
    module.twice.bias.add_(0.5)
    module.norm.running_mean.sub_(0.5)
    module.bare_norm.bias.mul_(-1)
    after = explainer(images)["predicted"]
    plain = twin(module)
    _, by_input, _, terms = full_gradient(plain, images, of_class(after.classes))
    assert distance(after.maps["fullgrad"], fullgrad_map(by_input, terms)).max() <= 1e-9
    assert distance(after.maps["fullgrad"], before).min() > 1e-3
    assert after.residuals["fullgrad"].max() <= 1e-12


def test_constant_terms_do_not_divide_by_zero() -> None:
    """The image is black, so its input term is zero everywhere."""
    images = torch.zeros(2, 3, 12, 12, dtype=torch.float64)
    images[1] = 1
    found = explain(built(Odd), images, "fullgrad", "simple_fullgrad")
    assert all(maps.isfinite().all() for maps in found.maps.values())
    assert psi(images)[0].eq(0).all()
