"""The end of the model: a softmax there is passed by, or told of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from nets import METHODS, ROWS, Net, close, explain, images_of
from references import built, gradient, of_class
from subjects import own
from torch import Tensor, nn

from saliency_core import Explainer
from saliency_core.errors import Told

pytestmark = pytest.mark.usefixtures("one_thread")


class Ending(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.end = Net(), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x))


class Attending(nn.Module):
    """A softmax inside, which is no end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.softmax, self.fc = nn.Conv2d(3, 6, 3), nn.Softmax(dim=1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.softmax(self.conv(x)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore::saliency_core.errors.Told")
@pytest.mark.parametrize("end", [nn.Softmax(dim=1), nn.Softmax(dim=-1), nn.LogSoftmax(dim=1)])
def test_a_softmax_at_the_end_is_passed_by_and_recorded(end: nn.Module) -> None:
    module, images = built(lambda: Ending(end)), images_of()
    bare = explain(module.body, images, *METHODS, rows=ROWS)
    for whole in (module, nn.Sequential(module.body, end)):
        explainer = Explainer(own(whole), methods=METHODS, precision="float64")
        found = explainer(images, rows=ROWS)["predicted"]
        assert any("softmax" in note for note in explainer.notes)
        close(found.scores, module.body(images).amax(1))
        close(found.probabilities, module.body(images).softmax(1).amax(1))
        for name in METHODS:
            close(found.maps[name], bare.maps[name])
        assert any(part is end for part in whole.modules())  # the user's model is not edited


class Twice(Attending):
    """The same softmax inside and at the end."""

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(super().forward(x))


@pytest.mark.filterwarnings("ignore::saliency_core.errors.Told")
def test_a_softmax_used_inside_too_is_passed_by_at_the_end_alone() -> None:
    module, images = built(Twice), images_of()
    found = explain(module, images, "gradient(reduction=none)")
    inner = Attending.forward
    close(found.scores, inner(module, images).amax(1))
    x = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(inner(module, x).amax(1).sum(), x)
    close(found.maps["gradient_none"], expected)


@pytest.mark.parametrize("end", [lambda x: F.softmax(x, dim=1), lambda x: x.log_softmax(1)])
def test_a_functional_softmax_is_told_of(end: Callable[[Tensor], Tensor]) -> None:
    module = built(lambda: Ending(end))
    with pytest.warns(Told, match="softmax"):
        found = explain(module, images_of(), "gradient")
    assert found.maps["gradient"].isfinite().all()


def test_a_softmax_inside_stays() -> None:
    module, images = built(Attending), images_of()
    found = explain(module, images, "gradient(reduction=none)").maps["gradient_none"]
    close(found, gradient(module, images, of_class(module(images).argmax(1))))
