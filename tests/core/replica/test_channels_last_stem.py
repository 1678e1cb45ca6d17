"""Tests that the stem uses the channels-last layout up to the pool and no further, and computes the same values."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from saliency_core import Explainer
from saliency_core.replica.cpu import optimise_for_cpu
from saliency_core.replica.cpu.channels_last_stem import use_channels_last_stem
from tests.support.references import built, gradient, of_class
from tests.support.subjects import own


class Net(nn.Module):
    """A net of a stem, a module between, a pool and a body."""

    def __init__(self, between: nn.Module | None = None, *, kernel: int = 3, beside: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, kernel, stride=2, padding=1)
        self.between, self.beside = between or nn.ReLU(), nn.Conv2d(8, 8, 1) if beside else None
        self.pool, self.body, self.head = nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(self.stem(x))
        x = self.body(self.pool(y)).relu().mean((2, 3))
        return self.head(x if self.beside is None else x + self.beside(y).mean((2, 3)))


class Viewed(nn.Module):
    """A ReLU that views its input as rows, which fails for a channels-last input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1).view(x.shape).relu()


class FunctionalPool(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x), inplace=True), 3, 2, 1)
        return self.head(self.body(x).relu().mean((2, 3)))


def scripted(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        return torch.jit.script(module)


LAID_OUT = {
    "small kernel": Net,
    "by phases": lambda: Net(kernel=7),
    "ReLU in place": lambda: Net(nn.ReLU(inplace=True)),
    "nothing between": lambda: Net(nn.Identity()),
}
AS_IT_IS = {
    "read by a convolution, too": lambda: Net(beside=True),
    "a convolution before the pool": lambda: Net(nn.Conv2d(8, 8, 3, padding=1)),
    "a view": lambda: Net(Viewed()),
    "a pool that is no module": FunctionalPool,
    "sums over channels": lambda: Net(nn.Softmax(dim=1)),
    "a script between": lambda: Net(scripted(nn.ReLU())),
}


def laid_out(module: nn.Module, images: Tensor) -> nn.Module:
    """Returns an optimised copy."""
    return optimise_for_cpu(own(copy.deepcopy(module)), images[:1]).module


def read_by_convolutions(module: nn.Module, images: Tensor) -> list[Tensor]:
    """Returns the inputs of all convolutions in a forward."""
    inputs: list[Tensor] = []
    handles = [
        part.register_forward_pre_hook(lambda part, given: inputs.append(given[0]))
        for part in module.modules()
        if isinstance(part, nn.Conv2d)
    ]
    module(images)
    for handle in handles:
        handle.remove()
    return inputs


def is_channels_last(value: Tensor) -> bool:
    return not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [*((factory, True) for factory in LAID_OUT.values()), *((factory, False) for factory in AS_IT_IS.values())],
    ids=[*LAID_OUT, *AS_IT_IS],
)
def test_channels_last_up_to_the_pool_or_not_at_all(factory: Callable[[], nn.Module], expected: bool) -> None:
    module = built(factory)
    images = torch.randn(3, 3, 26, 31, dtype=torch.float64)
    replica = laid_out(module, images)
    assert is_channels_last(replica.stem(images)) == expected
    inputs = read_by_convolutions(replica, images)
    assert inputs
    assert all(value.is_contiguous() for value in inputs)
    score = of_class(module(images).argmax(1))
    found, reference = (gradient(one, images, score) for one in (replica, module))
    torch.testing.assert_close(found, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_1", "googlenet"])
def test_torchvision_stems_are_laid_out(name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    module = built(lambda: models.get_model(name, weights=None, num_classes=7, **options))
    images = torch.randn(2, 3, 64, 64)
    replica = Explainer(own(module)).replica(images).model.module
    stem = next(part for part in replica.modules() if isinstance(part, nn.Conv2d))
    assert is_channels_last(stem(images))
    assert sum("forward" in vars(part) for part in replica.modules() if isinstance(part, nn.MaxPool2d)) == 1
    assert all(value.is_contiguous() for value in read_by_convolutions(replica, images))


def flat_pictures(dtype: torch.dtype) -> Tensor:
    """Returns images of one colour and of two, so that the values in most of the pool's windows are equal."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 1, 1, generator=generator, dtype=dtype).repeat(1, 1, 224, 224)
    images[2:, :, 40:90, 60:200] = torch.randn(2, 3, 1, 1, generator=generator, dtype=dtype)
    return images


@pytest.mark.parametrize("kernel", [3, 7])
def test_the_pool_chooses_the_same_of_equal_values(kernel: int) -> None:
    """Which of several equal values gets the gradient must not depend on the layout."""
    module, images = built(lambda: Net(nn.Identity(), kernel=kernel)).float(), flat_pictures(torch.float32)
    made = [one.stem(images) for one in (laid_out(module, images), module)]
    assert [is_channels_last(one) for one in made] == [True, False]
    assert torch.equal(*(F.max_pool2d(one, 3, 2, 1, return_indices=True)[1] for one in made))


@pytest.mark.parametrize("kernel", [3, 7])
def test_the_same_of_equal_values_gets_the_gradient_in_float64(kernel: int) -> None:
    module, images = built(lambda: Net(kernel=kernel)), flat_pictures(torch.float64)
    found = Explainer(own(module), methods=["gradient(reduction=none)"], precision="float64")(images)["predicted"]
    reference = gradient(module, images, of_class(found.classes))
    torch.testing.assert_close(found.maps["gradient_none"], reference, rtol=1e-10, atol=1e-12)


def test_gradients_reach_the_pool_in_its_own_layout() -> None:
    """In another layout, the pool's backward would copy its results, which costs more than the layout saves."""
    module = built(Net)
    images = torch.randn(2, 3, 26, 31, dtype=torch.float64)
    assert use_channels_last_stem(own(module), images)
    x = torch.randn(2, 8, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = module.pool(x)
    assert y.is_contiguous()
    seen: list[Tensor] = []
    y.grad_fn.next_functions[0][0].register_prehook(lambda gradients: seen.append(gradients[0]))
    (found,) = torch.autograd.grad(y, x, torch.randn(y.shape))
    assert is_channels_last(seen[0])
    assert is_channels_last(found)


def test_operations_on_several_images_alone_are_detected() -> None:
    """The net views rows only if the batch has several images, so a probe with one image is not enough."""

    class OfBatches(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.between(self.stem(x))
            y = y if len(x) == 1 else y.view(len(x), -1).view(y.shape)
            return self.head(self.body(self.pool(y)).relu().mean((2, 3)))

    images = torch.randn(3, 3, 26, 31, dtype=torch.float64)
    replica = laid_out(built(OfBatches), images)
    assert not is_channels_last(replica.stem(images))
