"""Tests that the replica computes what the model computes, with batch norms folded or not, and does not change
the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from saliency_core import Explainer, InvalidRequestError
from saliency_core.explainer import PRECISIONS
from saliency_core.replica.batch_norm_folding import fold_batch_norms
from saliency_core.replica.model_copies import copy_frozen
from tests.support.subjects import own


def conv(channels: int = 3, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, 4, 3, padding=1, bias=bias)


def randomised(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for value, mean in ((part.weight, 1.0), (part.bias, 0.0), (part.running_mean, 0.0)):
                if value is not None:
                    nn.init.normal_(value, mean, 0.2)
            if part.running_var is not None:
                part.running_var.uniform_(0.5, 1.5)
    return module.eval()


class Head(nn.Module):
    """A net of any body and a linear head."""

    def __init__(self, body: nn.Module, channels: int = 4) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().mean((2, 3)))


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.norm = conv(), conv(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.conv(self.first(x))))


class NormOfBoth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = conv(), conv(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.one(x)) * self.norm(self.two(x))


class OutOfOrder(nn.Module):
    """A body that defines its modules in another order than it calls them, with a bias and an in-place ReLU at its
    end."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.relu, self.conv = nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


class ReadElsewhere(nn.Module):
    """A net that also returns the convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = conv(), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.conv(x)
        return {"logits": self.head(self.norm(y).mean((2, 3))), "inside": y}


class Doubling(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


BODIES = {
    "plain": (nn.Sequential(conv(), nn.BatchNorm2d(4)), 1),
    "affine off": (nn.Sequential(conv(), nn.BatchNorm2d(4, affine=False)), 1),
    "no statistics": (nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)), 0),
    "out of order": (OutOfOrder(), 1),
    "read twice": (ReadTwice(), 0),
    "called twice": (CalledTwice(), 0),
    "norm of both": (NormOfBoth(), 0),
    "something between": (nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4)), 0),
    "a kind of its own": (nn.Sequential(Doubling(3, 4, 3), nn.BatchNorm2d(4)), 0),
}


@pytest.mark.parametrize("name", BODIES)
def test_folds_if_the_batch_norm_alone_reads_the_convolution(name: str) -> None:
    body, expected = BODIES[name]
    model = randomised(Head(body)).double()
    images = torch.randn(3, 3, 9, 11, dtype=torch.float64)
    replica = copy_frozen(model, device=torch.device("cpu"), dtype=torch.float64)
    assert len(fold_batch_norms(replica, images[:1])) == expected
    torch.testing.assert_close(replica(images), model(images), rtol=1e-12, atol=1e-12)
    assert not any(parameter.requires_grad for parameter in replica.parameters())
    assert all(not part._forward_hooks for part in replica.modules())


def test_a_convolution_that_is_an_output_is_not_folded() -> None:
    model = randomised(ReadElsewhere()).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    replica = copy_frozen(model, device=torch.device("cpu"), dtype=torch.float64)
    assert fold_batch_norms(replica, images) == ()
    torch.testing.assert_close(replica(images)["inside"], model(images)["inside"])


def test_folding_is_optional() -> None:
    images = torch.randn(2, 3, 8, 8)
    for options in ({"biased": False}, {"keep": {"body.conv"}}):
        assert fold_batch_norms(randomised(Head(OutOfOrder())), images, **options) == ()


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "densenet121",
        "mobilenet_v2",
        "googlenet",
        pytest.param("vgg11_bn", marks=pytest.mark.slow),
        "efficientnet_b0",
    ],
)
def test_torchvision_nets_keep_their_outputs(name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    model = randomised(models.get_model(name, weights=None, num_classes=7, **options)).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    replica = copy_frozen(model, device=torch.device("cpu"), dtype=torch.float64)
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    folded = len(fold_batch_norms(replica, images[:1]))
    # DenseNet has batch norms before convolutions and after concatenations; GoogLeNet's other heads are for training.
    assert folded == {"densenet121": 59, "googlenet": norms - 2}.get(name, norms)
    with torch.no_grad():
        torch.testing.assert_close(replica(images), model(images), rtol=1e-10, atol=1e-10)


def test_the_model_is_not_changed_and_later_edits_take_effect() -> None:
    model = own(randomised(Head(OutOfOrder())))
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    images = torch.randn(2, 3, 8, 8)
    explainer = Explainer(model)
    first = explainer(images)["predicted"].scores
    assert model.module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    with torch.no_grad():
        model.module.head.weight.mul_(2)
        model.module.head.bias.mul_(2)
    torch.testing.assert_close(explainer(images, labels=None)["predicted"].scores, 2 * first)


def test_tf32_is_close_to_float32() -> None:
    model = own(randomised(models.resnet18(num_classes=5)))
    images = torch.randn(2, 3, 64, 64)
    exact, coarse = (Explainer(model, precision=precision)(images)["predicted"] for precision in ("float32", "tf32"))
    torch.testing.assert_close(coarse.scores, exact.scores, rtol=1e-3, atol=1e-4)
    assert torch.equal(coarse.classes, exact.classes)


def test_maps_do_not_depend_on_the_layout_of_the_images() -> None:
    images = torch.randn(2, 3, 32, 32)
    explainer = Explainer(own(randomised(models.mobilenet_v2(num_classes=5))))
    one, other = (
        explainer(images.contiguous(memory_format=layout))["predicted"].maps["gradient"]
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_folds_in_every_precision(precision: str) -> None:
    explainer = Explainer(own(randomised(models.resnet18(num_classes=5))), precision=precision)
    explainer(torch.randn(1, 3, 64, 64))
    replica = explainer.replica(torch.randn(1, 3, 64, 64)).model.module
    assert not any(isinstance(part, nn.BatchNorm2d) for part in replica.modules())
    stem = replica.conv1(torch.randn(1, 3, 64, 64, dtype=explainer.dtype))
    faster = precision != "float64"
    assert ("forward" in vars(replica.conv1)) == faster
    assert stem.is_contiguous(memory_format=torch.channels_last) == faster  # up to the pool, or the whole net


class WrittenInto(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, :, 0] = 0
        return self.norm(y)


class WeightsReadElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + nn.functional.conv2d(x, self.conv.weight, padding=1) * self.norm.weight.mean()


@pytest.mark.parametrize("body", [WrittenInto, WeightsReadElsewhere])
def test_a_convolution_is_not_folded_if_that_would_change_the_scores(body: type[nn.Module]) -> None:
    model = own(randomised(Head(body())))
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(Explainer(model)(images)["predicted"].scores, model.module(images).amax(1))


def test_a_target_layer_that_ends_between_convolution_and_norm() -> None:
    body = nn.Sequential(nn.Sequential(conv()), nn.BatchNorm2d(4))
    model, images = own(randomised(Head(body))), torch.randn(2, 3, 8, 8)
    found = Explainer(model, targets=["layer:body.0[2]"])(images)["layer_body.0_2"].scores
    torch.testing.assert_close(found, body[0](images)[:, 2].mean((1, 2)))


def test_the_copy_is_in_eval_mode() -> None:
    model, images = (
        own(randomised(Head(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout())))),
        torch.randn(2, 3, 8, 8),
    )
    expected = Explainer(model)(images)["predicted"].maps["gradient"]
    model.module.train()
    assert torch.equal(Explainer(model)(images)["predicted"].maps["gradient"], expected)
    assert model.module.training


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_copied_and_its_layers_are_refused() -> None:
    images = torch.randn(2, 3, 8, 8)
    script = own(torch.jit.trace(randomised(Head(nn.Sequential(conv(), nn.BatchNorm2d(4)))), images))
    assert Explainer(script, precision="float64")(images)["predicted"].maps["gradient"].dtype == torch.float64
    assert all(value.dtype == torch.float32 for value in script.module.parameters())
    for spec in ("fullgrad", "gradcam"):
        with pytest.raises(InvalidRequestError, match="TorchScript"):
            Explainer(script, methods=[spec])(images)
