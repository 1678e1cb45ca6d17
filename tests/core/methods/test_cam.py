"""Tests that class activation maps equal their formulas on any layer and grid, and on tokens."""

from __future__ import annotations

import warnings
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from factories import tiny
from torch import Tensor, nn
from torchvision import models

from saliency_core.errors import InvalidRequestError, SaliencyWarning
from tests.support.method_nets import Net, close, explain, images_of, net
from tests.support.references import CAMS, built, captured, of_class, out_of_place, upsampled

pytestmark = pytest.mark.usefixtures("one_thread")


def steep() -> nn.Module:
    """Returns a net with gradients far above the small constants that CAMs add to denominators."""
    module = net()
    module.fc.weight.mul_(5e3)
    return module


@pytest.mark.parametrize(
    ("name", "layer"),
    # The other two methods divide by sums of activations, which are certainly positive only behind a ReLU.
    [*product(CAMS, ("relu1", "relu2")), *product(("gradcam", "hirescam", "layercam"), ("one", "two"))],
)
def test_cams_are_their_formulas(name: str, layer: str) -> None:
    """The layers include a convolution before an in-place ReLU, and one that a batch norm could be folded into."""
    module, images = steep(), images_of()
    a, g = captured(out_of_place(module), layer, images, of_class(module(images).argmax(1)))
    expected = upsampled(CAMS[name](a, g), images)
    assert expected.flatten(1).amax(1).gt(0).sum() >= 3
    found = explain(module, images, f"cam={name}(layer={layer})").maps["cam"]
    assert found.shape == (5, 11, 18)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * expected.max().item())
    if name in ("gradcam", "hirescam", "layercam"):
        close(found, expected)


class Unpadded(nn.Module):
    """A net with grids that are not halvings of the image: strides without padding, rounding up, a crop, a resize."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.pool, self.two = (
            nn.Conv2d(3, 8, 3, stride=2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(8, 8, 2),
        )
        self.norm, self.last, self.fc = nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.pool(self.one(x).relu()))
        x = F.interpolate(x[:, :, 1:], scale_factor=1.5)
        return self.fc(self.last(self.norm(x)).mean((2, 3)))


@pytest.mark.parametrize("layer", ["one", "pool", "two", "norm", "last"])
def test_cams_of_any_grid(layer: str) -> None:
    module, images = built(Unpadded), images_of(4, 35, 29)
    a, g = captured(module, layer, images, of_class(module(images).argmax(1)))
    expected = upsampled(CAMS["hirescam"](a, g), images)
    assert expected.any()
    close(explain(module, images, f"cam=hirescam(layer={layer})").maps["cam"], expected)


def test_cams_of_dead_channels_are_finite() -> None:
    module, images = net(), images_of(3)
    module.two.bias[:6] = -1e3
    for maps in explain(module, images, *(f"{name}(layer=relu2)" for name in CAMS)).maps.values():
        assert maps.isfinite().all()
    module.two.bias[:] = -1e3
    for maps in explain(module, images, *(f"{name}(layer=relu2)" for name in CAMS)).maps.values():
        assert maps.eq(0).all()


class Reordered(nn.Module):
    """A net that defines the module of its last spatial activation first; the module defined last is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.fc, self.net = nn.ReLU(), nn.Linear(12, 5), Net()
        self.never = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        return self.fc(self.late(net.two(net.relu1(net.norm(net.one(x))))).mean((2, 3)))


@pytest.mark.parametrize(
    ("factory", "layer", "size"),
    [
        (Net, "relu2", (11, 18)),
        (Reordered, "late", (11, 18)),
        (tiny, "5", (11, 18)),
        (lambda: models.resnet18(weights=None, num_classes=5), "layer4", (64, 48)),
        (lambda: models.mobilenet_v3_small(weights=None, num_classes=5), "features", (64, 64)),
    ],
)
def test_the_default_layer_is_the_last_spatial_one_before_the_head(factory, layer: str, size: tuple[int, int]) -> None:
    module, images = built(factory), images_of(2, *size)
    default, named = explain(module, images, "gradcam", f"named=gradcam(layer={layer})").maps.values()
    assert default.any()
    close(default, named)


@pytest.mark.parametrize(
    ("method", "target", "message"),
    [
        ("gradcam(layer=never)", "predicted", "layer 'never' exists, but the model never calls it"),
        ("m=guided_gradcam(layer=relu#99)", "predicted", r"layer 'relu#99': the model calls relu \d+ times"),
        ("m=gradcam(layer=reul#1)", "predicted", "the model calls reul 0 times"),
        ("gradient", "unit=layer:never[1]", "layer 'never' exists, but the model never calls it"),
    ],
)
def test_a_layer_that_is_never_called_is_refused(method: str, target: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        explain(built(Reordered), images_of(2), method, target=target)


def test_guided_gradcam_is_a_product() -> None:
    """The Grad-CAM factor is computed with the plain gradient, not the guided one."""
    module, images = net(), images_of()
    specs = ["guided_gradcam(reduction=none)", "guided_backprop(reduction=none)", "gradcam"]
    both, guided, cam = explain(module, images, *specs).maps.values()
    close(both, guided * cam[:, None])
    assert both.abs().amax((1, 2, 3)).gt(0).any()


def small_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )


def test_cams_of_tokens() -> None:
    """Tokens other than the class token are placed on their grid. The default layer is one whose patch tokens the head
    reads: of the last block's output it reads the class token alone, so the CAM of that output would be zero."""
    module, images = built(small_vit), images_of(4, 32, 32)
    layer = "encoder.layers.encoder_layer_1.ln_1"
    found = explain(module, images, *CAMS, f"named=gradcam(layer={layer})").maps
    for maps in found.values():
        assert maps.shape == (4, 32, 32) and maps.isfinite().all()
    assert found["gradcam"].flatten(1).amax(1).gt(0).any()
    a, g = captured(module, layer, images, of_class(module(images).argmax(1)))
    a, g = (tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for tokens in (a, g))
    expected = upsampled(CAMS["gradcam"](a, g), images)
    assert expected.any()
    close(found["named"], expected)


@pytest.mark.slow
def test_cams_of_swin() -> None:
    """The layout of Swin's tokens is [n, h, w, channels]."""
    module, images = built(lambda: models.swin_t(weights=None, num_classes=5)), images_of(2, 64, 96)
    found = explain(module, images, "gradcam", "named=gradcam(layer=features.5)").maps
    assert found["gradcam"].shape == (2, 64, 96) and found["gradcam"].any()
    a, g = captured(module, "features.5", images, of_class(module(images).argmax(1)))
    close(found["named"], upsampled(CAMS["gradcam"](a.permute(0, 3, 1, 2), g.permute(0, 3, 1, 2)), images))


def test_a_cam_of_a_layer_that_the_target_does_not_read_is_zero_and_warns() -> None:
    module, images = net(), images_of()
    with pytest.warns(
        SaliencyWarning, match=r"'layer:one\[2\]' does not depend on layer 'relu2', so the CAM .* zero everywhere"
    ):
        found = explain(module, images, "cam=gradcam(layer=relu2)", target="unit=layer:one[2]").maps["cam"]
    assert not found.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert explain(module, images, "cam=gradcam(layer=one)", target="unit=layer:one[2]").maps["cam"].any()
