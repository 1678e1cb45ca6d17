"""Tests of gradients at sampled inputs against hand-written references: noisy copies, and integrated gradients'
path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from saliency_core.methods.samplers import Batch, Noise, Path, Sampler, noise_for
from tests.support.method_nets import ROWS, close, draws, explain, images_of, net
from tests.support.references import noisy_gradients, of_class, out_of_place
from tests.support.subjects import SMALL, distance

pytestmark = pytest.mark.usefixtures("one_thread")


def test_noise_depends_on_seed_row_and_draw_alone() -> None:
    rows, shape = [5, 2**40, 0, 77], (3, 6, 7)
    noise = noise_for(rows, 3, shape, seed=9, device="cpu")
    assert noise.shape == (4, *shape) and noise.dtype == torch.float32
    state = torch.get_rng_state()
    assert torch.equal(noise_for(rows[::-1], 3, shape, seed=9, device="cpu"), noise.flip(0))
    for i, row in enumerate(rows):
        assert torch.equal(noise_for([row], 3, shape, seed=9, device="cpu")[0], noise[i])
    assert torch.equal(torch.get_rng_state(), state)
    others = [noise_for(rows, 4, shape, seed=9, device="cpu"), noise_for(rows, 3, shape, seed=8, device="cpu")]
    for other in [*others, noise.roll(1, 0)]:
        assert not (other == noise).any()
    many = noise_for(list(range(40)), 0, (3, 32, 32), seed=0, device="cpu").double()
    assert abs(many.mean()) < 0.01 and abs(many.var() - 1) < 0.02 and abs((many**4).mean() - 3) < 0.1
    assert abs(torch.corrcoef(many.flatten(1)).triu(1)).max() < 0.1


@pytest.mark.parametrize("sampler", [Noise(7, 0.2), Path(7)])
def test_draws_do_not_depend_on_how_many_fit_into_a_pass(sampler: Sampler) -> None:
    """Values and order are identical; a pass exceeds the requested size only if one draw of each image does."""
    batch = Batch(images_of(3), rows=[4, 0, 99], seed=1)

    def drawn(most: int) -> tuple[list[int], list[Tensor]]:
        samples = list(sampler.samples(batch, most=most))
        whole = [torch.cat([getattr(one, part) for one in samples]) for part in ("inputs", "displacement")]
        weights = torch.tensor([weight for one in samples for weight in one.weights], dtype=torch.float64)
        return [len(one.inputs) for one in samples], [*whole, weights]

    sizes, whole = drawn(21)
    assert sizes == [21] and len(whole[2]) == 7 and abs(whole[2].sum() - 1) < 1e-12
    for most, expected in ((1, [3] * 7), (3, [3] * 7), (8, [6, 6, 6, 3]), (9, [9, 9, 3]), (100, [21])):
        sizes, parts = drawn(most)
        assert sizes == expected
        assert all(torch.equal(one, two) for one, two in zip(parts, whole, strict=True))


def test_smoothgrad_and_its_relatives_are_loops() -> None:
    """The maps are the mean, the mean of squares and the population variance over the same draws, for the clean image's
    class."""
    module, images, n, spread = net(), images_of(), 6, 0.8
    score = of_class(module(images).argmax(1))
    gradients = noisy_gradients(out_of_place(module), images, score, draws(ROWS, n, images, seed=3), spread=spread)
    names = ("smoothgrad", "smoothgrad_squared", "vargrad")
    found = explain(
        module, images, *(f"{name}(n={n}, spread={spread}, reduction=none)" for name in names), rows=ROWS, seed=3
    ).maps
    mean, squares, variance = found.values()
    close(mean, gradients.mean(0))
    close(squares, gradients.square().mean(0))
    close(variance, gradients.var(0, correction=0))
    default = explain(module, images, f"smoothgrad(n={n}, spread={spread})", rows=ROWS, seed=3)
    close(*default.maps.values(), gradients.mean(0).abs().amax(1))  # the absolute value after the mean
    assert distance(gradients.abs().mean(0).amax(1), gradients.mean(0).abs().amax(1)).min() > 1e-3


def test_the_class_of_noisy_copies_is_the_clean_images() -> None:
    module, images = net(), images_of()
    classes = module(images).argmax(1)
    sigma = 3 * (images.flatten(1).amax(1) - images.flatten(1).amin(1)).view(-1, 1, 1, 1)
    noises = draws(ROWS, 5, images)
    assert any((module(images + sigma * noise).argmax(1) != classes).any() for noise in noises)
    expected = noisy_gradients(out_of_place(module), images, of_class(classes), noises, spread=3).mean(0)
    found = explain(module, images, "smoothgrad(n=5, spread=3, reduction=none)", rows=ROWS)
    assert torch.equal(found.classes, classes)
    close(*found.maps.values(), expected)


def test_smoothing_with_a_spread_of_zero_changes_nothing() -> None:
    module, images = net(), images_of()
    found = explain(
        module, images, "gradient", "fullgrad", "a=smoothgrad(spread=0, n=3)", "b=vargrad(spread=0, n=3)",
        "c=smooth_fullgrad(spread=0, n=3)", "d=smoothgrad_squared(spread=0, n=3, reduction=none)",
    ).maps  # fmt: skip
    close(found["a"], found["gradient"])
    assert found["b"].abs().max() <= 1e-15
    close(found["c"], found["fullgrad"])
    close(found["d"].sqrt().amax(1), found["gradient"])


def test_the_seed_is_that_of_the_explainer() -> None:
    module, images = net(), images_of(2)
    first, again, other = (explain(module, images, "smoothgrad(n=2)", seed=seed) for seed in (1, 1, 2))
    (one,), (two,), (three,) = (found.maps.values() for found in (first, again, other))
    assert torch.equal(one, two) and distance(three, one).min() > 1e-3


class Power(nn.Module):
    """A model with scores S_c = Σ w_c x^power, for which gradients and their integrals have closed forms."""

    def __init__(self, power: int, weight: Tensor) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", x**self.power, self.weight)


def power(exponent: int, images: Tensor) -> Power:
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(4, *images.shape[1:], dtype=torch.float64, generator=generator)
    return Power(exponent, weight.sign() * (0.5 + weight.abs()))


@pytest.mark.parametrize(("exponent", "n"), [(1, 1), (1, 2), (1, 50), (2, 1), (2, 7), (4, 2), (5, 3), (6, 3)])
def test_integrated_gradients_integrate_polynomials(exponent: int, n: int) -> None:
    """Gauss–Legendre quadrature with n nodes is exact for gradients of degree up to 2n − 1."""
    images = images_of(3)
    module = power(exponent, images)
    found = explain(module, images, f"ig=integrated_gradients(n={n}, reduction=none)", target="class:1")
    close(found.maps["ig"], module.weight[1] * images**exponent)
    assert found.residuals["ig"].max() <= 1e-12


def test_integrated_gradients_are_signed_and_additive() -> None:
    module, images = net(), images_of()
    found = explain(module, images, "integrated_gradients(n=300)", "none=integrated_gradients(n=300, reduction=none)")
    maps, channels = found.maps.values()
    close(maps, channels.sum(1))
    assert (maps < 0).any()
    chosen = of_class(found.classes)
    difference = chosen(module(images)) - chosen(module(torch.zeros_like(images)))
    torch.testing.assert_close(maps.flatten(1).sum(1), difference, rtol=0.02, atol=0.02)


def test_the_residual_of_integrated_gradients() -> None:
    """The residual is |S(x) − S(x₀) − Σ| ÷ Σ|terms|; the net has kinks, and the nodes are too few."""
    module, images = net(), images_of()
    found = explain(module, images, "ig=integrated_gradients(n=2, reduction=none)")
    chosen = of_class(found.classes)
    difference = chosen(module(images)) - chosen(module(torch.zeros_like(images)))
    terms = found.maps["ig"].flatten(1)
    expected = (difference - terms.sum(1)).abs() / terms.abs().sum(1)
    assert expected.min() > 1e-5
    torch.testing.assert_close(found.residuals["ig"], expected, rtol=1e-6, atol=1e-12)


def baselines(name: str, images: Tensor, *, rows: Tensor = ROWS, seed: int = 0) -> Tensor:
    """Returns the baselines x₀, solved from the map (x − x₀) ⊙ w of a linear model."""
    module = power(1, images)
    spec = f"ig=integrated_gradients(n=2, baseline={name}, reduction=none)"
    found = explain(module, images, spec, target="class:0", rows=rows, seed=seed)
    return images - found.maps["ig"] / module.weight[0]


def test_baselines() -> None:
    images = images_of() + 0.7
    close(baselines("zero", images), torch.zeros_like(images))
    # black pixels, in the model's space: (0 − mean) ÷ std
    close(baselines("black", images), torch.full_like(images, -SMALL.mean[0] / SMALL.std[0]))
    close(baselines("mean", images), images.mean((2, 3), keepdim=True).expand_as(images))
    blurred = baselines("blur", images)
    assert (blurred.flatten(1).std(1) < 0.7 * images.flatten(1).std(1)).all()
    torch.testing.assert_close(blurred.mean((2, 3)), images.mean((2, 3)), rtol=0, atol=0.3)
    noise = baselines("noise", images)
    assert (baselines("noise", images, seed=1) - noise).abs().amax((1, 2, 3)).min() > 0.1
    order = torch.tensor([4, 2, 0, 1, 3])
    for name, whole in (("blur", blurred), ("noise", noise)):
        close(baselines(name, images[order], rows=ROWS[order]), whole[order])
        close(baselines(name, images[2:3], rows=ROWS[2:3]), whole[2:3])
