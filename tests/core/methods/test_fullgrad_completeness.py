"""Tests that FullGrad's decomposition is complete for nets of many kinds of operations.

The tests sum the parts again in float64, and compare the reported residual with this sum.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from saliency_core import Explainer
from saliency_core.fullgrad_decomposition import decompose
from tests.support.bias_nets import Odd, explain, images_of, parts_of, saturating
from tests.support.references import biased_outputs, built, full_gradient, of_class, out_of_place, residual
from tests.support.subjects import own

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_complete(module: nn.Module, images: Tensor, *, most: float, precision: str) -> None:
    """Asserts that the parts of every image sum to its score, and that the reported residual is correct."""
    found = decompose(own(module), images, precision=precision)
    mine = residual(found.scores, parts_of(found))
    print(f"{len(found.layers)} layers, residual {mine.max():.1e}, told {found.residual.max():.1e}")
    assert found.scores.shape == found.residual.shape == images.shape[:1]
    assert mine.max() <= most
    assert found.residual.max() <= most
    with torch.no_grad():
        scores = module.double()(images.double()).amax(1)
    tolerance = 1e-9 if precision == "float64" else 1e-3
    torch.testing.assert_close(found.scores.double(), scores, rtol=tolerance, atol=tolerance)
    # The input's term alone is not the score: the biases matter in these nets.
    assert residual(found.scores, parts_of(found)[:1]).min() > 1e-4


def written(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, 1] = 0.5
    return x


def summed(x: Tensor) -> Tensor:
    x = x.clone()
    x += 0.25
    return x.mul_(2).sub_(0.1)


def summed_in_part(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :3].add_(1).mul_(2)
    return x


# Ways in which a net can add a constant without a layer that has a bias.
CONSTANTS = {
    "a sum": lambda x: x + 0.5,
    "from the left": lambda x: 1 - x,
    "torch.sub": lambda x: torch.sub(x, 2, alpha=0.5),
    "in place": summed,
    "in place, into a part": summed_in_part,
    "written into it": written,
    "masked": lambda x: x.masked_fill(torch.arange(x.shape[-1]) < 2, 3.0),
    "where": lambda x: torch.where(torch.arange(x.shape[-1]) < 2, x, 0.7),
    "padding": lambda x: F.pad(x, (1, 1, 1, 1), value=0.3),
    "joined": lambda x: torch.cat([x, torch.ones_like(x[:, :, :1])], 2),
    "addcmul": lambda x: torch.addcmul(x, torch.tensor(2.0), torch.tensor(0.5), value=0.5),
    "a gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "a normalisation": lambda x: x / (x.square().mean((2, 3), keepdim=True) + 1).sqrt(),
    "hardsigmoid": lambda x: x * F.hardsigmoid(x),
    "softplus": F.softplus,
    "prelu": lambda x: F.prelu(x, torch.tensor(0.3, dtype=x.dtype)),
    "clamped on both sides": lambda x: x.clamp(-0.4, 0.3),
    "maximum": lambda x: torch.maximum(x, torch.tensor(0.2, dtype=x.dtype)),
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "matmul with itself": lambda x: x @ x.transpose(2, 3),
}


class Constant(nn.Module):
    def __init__(self, act) -> None:
        super().__init__()
        self.one, self.two, self.head, self.act = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 6), act

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.act(self.one(x))).relu().mean((2, 3)))


@pytest.mark.parametrize("way", CONSTANTS)
def test_no_constant_is_missed(way: str) -> None:
    module, images = built(lambda: Constant(CONSTANTS[way])), images_of(3, 9, 9)
    assert_complete(module, images, most=1e-12, precision="float64")
    # without the constants the sum is not complete
    plain = out_of_place(module)
    scores, by_input, _, terms = full_gradient(plain, images, of_class(plain(images).argmax(1)))
    if way != "prelu":
        assert residual(scores, [by_input, *terms]).min() > 1e-6


# -- completeness --------------------------------------------------------------------------------------------


def assert_saturates(module: nn.Module, images: Tensor) -> None:
    """Asserts that each image saturates some ReLU6, and that the sum without the saturated parts is not the score."""
    sixes = torch.zeros(len(images))

    def see(part: nn.Module, inputs: object, output: Tensor) -> None:
        sixes.add_((output == 6).flatten(1).sum(1))

    handles = [part.register_forward_hook(see) for part in module.modules() if isinstance(part, nn.ReLU6)]
    with torch.no_grad():
        module(images)
    for handle in handles:
        handle.remove()
    assert handles and (sixes > 0).all()
    plain = out_of_place(module)
    x = images.clone().requires_grad_()
    with biased_outputs(plain) as seen:
        scores = plain(x).amax(1)
    affine = [(output, bias) for output, bias in seen if bias.dim() != output.dim()]  # all but those of ReLU6
    assert len(affine) < len(seen)
    grads = torch.autograd.grad(scores.sum(), [x, *(output for output, _ in affine)])
    terms = [grads[0] * images, *(g * bias for g, (_, bias) in zip(grads[1:], affine, strict=True))]
    assert residual(scores.detach(), terms).min() > 1e-4


def settled(module: nn.Module, size: int) -> nn.Module:
    """Returns the net with batch norm statistics drawn around those of some images: with unrelated statistics, the
    scores of an untrained deep net depend on its biases alone."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    module(images_of(8, size, size))
    generator = torch.Generator().manual_seed(3)
    for norm in norms:
        norm.eval()
        draws = torch.rand(2, norm.num_features, generator=generator, dtype=torch.float64)
        norm.running_mean.add_(norm.running_var.sqrt() * (draws[0] - 0.5))
        norm.running_var.mul_(0.5 + draws[1])
    return module


def net(name: str) -> nn.Module:
    options = {"num_classes": 10}
    if name in ("googlenet", "inception_v3"):  # as torchvision builds them for their weights
        options |= {"transform_input": True, "init_weights": False}
    module = settled(built(lambda: models.get_model(name, weights=None, **options)), SIZES[name])
    if name == "mobilenet_v2":
        for part in (module.features[0][1], module.features[5].conv[0][1], module.features[14].conv[1][1]):
            part.weight.mul_(6)
    return module


SIZES = {
    "alexnet": 64, "vgg11": 48, "vgg11_bn": 48, "squeezenet1_1": 64, "resnet18": 64, "resnet50": 64, "densenet121": 64,
    "mobilenet_v2": 64, "shufflenet_v2_x1_0": 64, "mnasnet0_5": 64, "googlenet": 64, "inception_v3": 96,
    "efficientnet_b0": 64, "convnext_tiny": 64, "swin_t": 64,
}  # fmt: skip
PIECEWISE_LINEAR = list(SIZES)[:12]
QUICK = ["squeezenet1_1", "mobilenet_v2", "shufflenet_v2_x1_0", "googlenet"]
BOUNDS = {"float32": 1e-4, "float64": 1e-9}


def test_small_nets_are_complete() -> None:
    for module in (built(Odd), saturating()):
        assert_complete(module, images_of(5, 12, 18), most=1e-12, precision="float64")
        assert_complete(module, images_of(5, 12, 18, dtype=torch.float32), most=1e-5, precision="float32")
    assert_saturates(saturating(), images_of(5, 12, 18))


@pytest.mark.parametrize("name", QUICK)
def test_nets_are_complete_in_float64(name: str) -> None:
    module, images = net(name), images_of(2, SIZES[name], SIZES[name])
    if name == "mobilenet_v2":
        assert_saturates(module, images)
    assert_complete(module, images, most=1e-9, precision="float64")


@pytest.mark.slow
@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_torchvision_nets_are_complete(name: str, precision: str) -> None:
    module, images = net(name), images_of(3, SIZES[name], SIZES[name])
    if name == "mobilenet_v2":
        assert_saturates(module, images)
    dtype, most = getattr(torch, precision), BOUNDS[precision]
    many = images_of(16, SIZES[name], SIZES[name]).to(dtype) if precision == "float32" else images.to(dtype)
    explainer = Explainer(own(module.to(dtype)), methods=["fullgrad"], precision=precision)
    told = explainer(many)["predicted"].residuals["fullgrad"]  # the value in the index, summed during the pass
    print(f"in the index: {told.max():.1e}")
    assert told.max() <= most
    assert_complete(module, images.to(dtype), most=most, precision=precision)


# Smooth gates, normalisation and attention are not piecewise linear. The remainder of each operation, y − J·u,
# telescopes to the score in any network; with these remainders, the sum is complete here, too.
def small_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
    )


class Gating(nn.Module):
    """A net with SiLU, hard activations, squeeze and excitation, GroupNorm and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.squeeze, self.norm, self.head = nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.one(x))
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        return self.head(F.silu(self.norm(F.gelu(self.two(x)))).mean((2, 3)))


@pytest.mark.parametrize("name", ["gating", "vit"])
def test_smooth_nets_report_their_residual(name: str) -> None:
    module, images = built(Gating if name == "gating" else small_vit), images_of(3, 32, 32)
    found = explain(module, images, "fullgrad")
    assert found.maps["fullgrad"].shape == (3, 32, 32) and found.maps["fullgrad"].isfinite().all()
    assert found.residuals["fullgrad"].isfinite().all()
    parts = decompose(own(module), images, precision="float64")
    assert residual(parts.scores, parts_of(parts)).max() <= 1e-6  # stretch


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SIZES)[12:])
def test_torchvisions_smooth_nets(name: str) -> None:
    module, images = net(name), images_of(2, SIZES[name], SIZES[name])
    found = explain(module, images, "fullgrad")
    assert found.maps["fullgrad"].shape == (2, 64, 64) and found.maps["fullgrad"].isfinite().all()
    parts = decompose(own(module), images, precision="float64")
    mine = residual(parts.scores, parts_of(parts))
    print(f"{name}: residual {mine.max():.1e}")
    assert mine.max() <= 1e-6  # stretch
