"""Tests of identities that hold for every method: batches, precisions, names and shared passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from saliency_core import Explainer, InvalidRequestError
from tests.support.method_nets import LABELS, METHODS, ROWS, Net, close, explain, images_of, net
from tests.support.references import CAMS, built
from tests.support.subjects import distance, own

pytestmark = pytest.mark.usefixtures("one_thread")


def test_batch_equals_single_equals_shuffled() -> None:
    images, targets = images_of(), ["predicted", "label", "contrast", "class:2"]
    explainer = Explainer(own(net()), methods=METHODS, targets=targets, precision="float64")
    whole = explainer(images, labels=LABELS, rows=ROWS)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = explainer(images[order], labels=LABELS[order], rows=ROWS[order])
    alone = [explainer(images[i : i + 1], labels=LABELS[i : i + 1], rows=ROWS[i : i + 1]) for i in range(5)]
    assert whole.keys() == {"predicted", "label", "contrast", "class_2"}
    for slug, one in whole.items():
        assert one.maps.keys() == set(METHODS)
        for name, maps in one.maps.items():
            assert maps.shape == (5, 11, 18) and maps.dtype == torch.float64 and not maps.requires_grad
            assert maps.isfinite().all()
            close(shuffled[slug].maps[name], maps[order])
            for i in range(5):
                close(alone[i][slug].maps[name][0], maps[i])
        for name, residuals in one.residuals.items():
            assert residuals.shape == (5,) and (residuals >= 0).all(), name
        assert {"fullgrad", "integrated_gradients"} <= one.residuals.keys() < set(METHODS)


def test_a_rolled_batch_rolls_the_maps() -> None:
    explainer = Explainer(own(net()), methods=METHODS, precision="float64")
    images = images_of()
    maps = explainer(images, rows=ROWS)["predicted"].maps
    rolled = explainer(images.roll(2, 0), rows=ROWS.roll(2))["predicted"].maps
    for name in METHODS:
        assert (maps[name] - maps[name].roll(2, 0)).any()  # the maps of different images differ
        close(rolled[name], maps[name].roll(2, 0))


@pytest.mark.parametrize("method", METHODS)
def test_float32_maps_are_float32_and_close_to_float64(method: str) -> None:
    module, images = net(), images_of(height=9, width=9)
    exact = explain(module, images, method, rows=ROWS).maps[method]
    single = Explainer(own(module.float()), methods=[method])(images.float(), rows=ROWS)["predicted"].maps[method]
    assert single.dtype == torch.float32
    some = exact.flatten(1).any(1)  # a CAM may be zero everywhere
    assert some.sum() >= 2 and torch.equal(single.flatten(1).any(1), some)
    assert distance(single[some], exact[some]).median() < 1e-2


def test_methods_alone_are_methods_together() -> None:
    """A method gives the same map if it shares passes with other methods."""
    module, images = net(), images_of(3)
    together = explain(module, images, *METHODS, rows=ROWS[:3]).maps
    for method in METHODS:
        close(explain(module, images, method, rows=ROWS[:3]).maps[method], together[method])


def test_slugs_and_named_specs() -> None:
    specs = {
        "smoothgrad_n3_spread0.1": "smoothgrad(n=3, spread=0.1)",
        "smoothgrad": "smoothgrad(spread=0.15, n=25)",
        "integrated_gradients_none": "integrated_gradients(reduction=none)",
        "gradient": "gradient(reduction=abs_max)",
        "mine": "mine=vargrad(n=2)",
    }
    found = explain(net(), images_of(2), *specs.values()).maps
    assert list(found) == list(specs)
    assert found["integrated_gradients_none"].shape == (2, 3, 11, 18)


@pytest.mark.parametrize(
    "spec",
    ["smoothgrad(n=0)", "smoothgrad(n=1.5)", "smoothgrad(spread=-1)", "gradcam(layer=no)", "smoothgrad(m=3)",
     "integrated_gradients(baseline=pink)", "gradient(n=2)"],
)  # fmt: skip
def test_arguments_that_cannot_work_are_refused(spec: str) -> None:
    with pytest.raises(InvalidRequestError):
        explain(net(), images_of(2), spec)


class Counted(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, above):
        Counted.calls += 1
        return above


class Counting(nn.Module):
    forwards = 0

    def __init__(self) -> None:
        super().__init__()
        self.inner = Net()

    def forward(self, x: Tensor) -> Tensor:
        Counting.forwards += 1
        return self.inner(Counted.apply(x))


def count(images: Tensor, *methods: str) -> tuple[int, int]:
    """Returns the numbers of forwards and backwards of a second call; a pass over several draws counts once."""
    explainer = Explainer(own(built(Counting)), methods=methods, precision="float64")
    explainer(images)
    Counted.calls = Counting.forwards = 0
    explainer(images)
    return Counting.forwards, Counted.calls


def test_methods_share_passes() -> None:
    images = images_of(2)
    assert count(images, "gradient", "input_x_gradient", "fullgrad", "simple_fullgrad", *CAMS) == (1, 1)
    noisy = ["smoothgrad", "smoothgrad_squared", "vargrad", "smooth_fullgrad"]
    assert count(images, *noisy) == count(images, "smoothgrad")
