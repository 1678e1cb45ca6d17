"""Tests that the parts of FullGrad equal those found with plain module hooks, for nets of many kinds of operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from saliency_core.errors import InvalidRequestError, SaliencyWarning
from saliency_core.fullgrad_decomposition import decompose
from tests.support.bias_nets import Odd, explain, images_of, parts_of, saturating, twin
from tests.support.references import built, full_gradient, gradient, of_class, residual
from tests.support.subjects import distance, own

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("inplace", [False, True])
def test_parts_are_those_of_plain_hooks(inplace: bool) -> None:
    module, images = built(lambda: Odd(inplace=inplace)), images_of(4, 12, 18)
    plain = twin(module)
    scores, by_input, _, terms = full_gradient(plain, images, of_class(plain(images).argmax(1)))
    assert residual(scores, [by_input, *terms]).max() <= 1e-13  # the reference itself is complete
    found = decompose(own(module), images, precision="float64")
    torch.testing.assert_close(found.scores, scores, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.inputs, images)
    torch.testing.assert_close(
        found.input_gradient, gradient(plain, images, of_class(plain(images).argmax(1))), rtol=1e-9, atol=1e-13
    )
    for layer in found.layers:
        assert isinstance(layer.name, str) and layer.name
        assert layer.gradient.shape == layer.term.shape and len(layer.term) == len(images)
        assert not layer.term.requires_grad
    # the same terms in any order: first, norm, twice, twice, bare, hidden, head
    assert len(terms) == 7 == sum(bool(layer.term.any()) for layer in found.layers)
    for term in terms:
        same = [layer for layer in found.layers if layer.term.shape == term.shape]
        assert min(distance(layer.term, term).max() for layer in same) <= 1e-9


def test_a_bias_times_its_gradient_is_the_term() -> None:
    found = decompose(own(saturating()), images_of(3, 10, 12), precision="float64")
    for layer in found.layers:
        bias = layer.bias
        if bias.dim() == 1:
            bias = bias.view(-1, *[1] * (layer.gradient.dim() - 2))
        torch.testing.assert_close(layer.gradient * bias, layer.term, rtol=1e-12, atol=1e-15)


def test_parts_of_other_targets() -> None:
    module, images = built(Odd), images_of(4, 12, 12)
    plain, labels = twin(module), torch.tensor([5, 0, 2, 3])
    for target, classes in (("class:2", torch.full((4,), 2)), ("label", labels)):
        found = decompose(own(module), images, target=target, labels=labels, precision="float64")
        scores, by_input, _, _ = full_gradient(plain, images, of_class(classes))
        torch.testing.assert_close(found.scores, scores, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.input_gradient * found.inputs, by_input, rtol=1e-9, atol=1e-13)
        assert residual(found.scores, parts_of(found)).max() <= 1e-12


class Square(torch.autograd.Function):
    """A square as a custom autograd function: it has a gradient, but y − J·u, its part of the score, cannot be seen."""

    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return values * values

    @staticmethod
    def backward(ctx, above):
        return 2 * ctx.saved_tensors[0] * above


class Hiding(Odd):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Square.apply(x) + x)


def test_residuals_are_as_defined_and_go_with_the_map() -> None:
    """The residual is |S − Σ| ÷ Σ|terms|, also if the decomposition is incomplete."""
    module, images = built(Hiding), images_of(5, 12, 16)
    found = decompose(own(module), images, precision="float64")
    mine = residual(found.scores, parts_of(found))
    assert mine.min() > 1e-3
    torch.testing.assert_close(found.residual.double(), mine, rtol=1e-6, atol=0)
    with pytest.warns(SaliencyWarning, match="does not add up"):
        told = explain(module, images, "fullgrad").residuals["fullgrad"]
    torch.testing.assert_close(told.double(), mine, rtol=1e-6, atol=0)
    complete = explain(built(Odd), images, "fullgrad").residuals["fullgrad"]
    assert complete.shape == (5,) and (complete >= 0).all() and complete.max() <= 1e-12
    single = explain(built(Odd), images.float(), "fullgrad", precision="float32").residuals["fullgrad"]
    assert single.max() <= 1e-5


class Distances(nn.Module):
    """A net of distances between rows (`torch.cdist`), for which torch has no forward-mode differentiation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x).mean((1, 2, 3))[:, None].expand(-1, 6)


def test_a_call_without_forward_mode_differentiation_is_named() -> None:
    module, images = built(Distances), images_of(2, 12, 16)
    with pytest.raises(InvalidRequestError, match="cdist: torch has no forward-mode differentiation of it"):
        explain(module, images, "fullgrad")
    assert explain(module, images, "gradient").maps["gradient"].any()


def test_parts_of_a_batch_are_those_of_its_images() -> None:
    module, images = built(Odd), images_of(4, 12, 18)
    whole = decompose(own(module), images, precision="float64")
    for i in range(4):
        one = decompose(own(module), images[i : i + 1], precision="float64")
        for layer, alone in zip(whole.layers, one.layers, strict=True):
            assert layer.name == alone.name
            torch.testing.assert_close(alone.term[0], layer.term[i], rtol=1e-9, atol=1e-14)
