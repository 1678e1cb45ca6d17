"""FullGrad: the decomposition is complete, whatever the net is made of, and the map is that of plain module hooks.

Completeness is summed here again, in float64, from the parts: what the code says of itself is compared with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from references import (
    biased_outputs,
    built,
    full_gradient,
    fullgrad_map,
    gradient,
    noisy,
    of_class,
    out_of_place,
    psi,
    residual,
)
from test_core import distance, own
from torch import Tensor, nn
from torchvision import models

from saliency_core import Explainer
from saliency_core.decompose import decompose
from saliency_core.samplers import noise_for


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Images this small only wait for a second one, above all on a machine that has other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Odd(nn.Module):
    """Defined in another order than executed; a convolution called twice; biased convolutions under batch norms;
    in-place ReLUs that overwrite what a bias was just added to, and an in-place sum, as in torchvision's ResNets."""

    def __init__(self, *, inplace: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(8, 6)
        self.bare, self.bare_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.hidden = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.twice(x))
        x = F.max_pool2d(x, 2)
        y = self.bare_norm(self.bare(self.relu(self.twice(x))))
        if self.relu.inplace:
            y += x
        else:
            y = y + x
        y = self.relu(y)
        return self.head(self.relu(self.hidden(y.mean((2, 3)))))


class Simple(nn.Sequential):
    """A layer of each kind, and ReLU6, one of them functional, that meets values far above six."""

    def __init__(self, *, inplace: bool = True) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(inplace), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, bias=False),
            nn.BatchNorm2d(8), nn.ReLU6(inplace), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6),
        )  # fmt: skip


def saturating() -> nn.Module:
    """Values far above six under every ReLU6."""
    module = built(Simple)
    module[0].weight.mul_(12)
    module[4].weight.mul_(12)
    return module


def images_of(number: int, height: int, width: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(number, 3, height, width, dtype=torch.float64, generator=generator)
    return (images * torch.linspace(0.5, 2, number, dtype=torch.float64).view(-1, 1, 1, 1)).to(dtype)


def twin(module: nn.Module) -> nn.Module:
    """``Odd`` and out of place, with the same weights."""
    other = Odd(inplace=False).double().eval().requires_grad_(False)
    other.load_state_dict(module.state_dict())
    return other


def explain(module: nn.Module, images: Tensor, *methods: str, precision: str = "float64", seed: int = 0) -> object:
    return Explainer(own(module), methods=methods, precision=precision, seed=seed)(images)["predicted"]


def parts_of(found) -> list[Tensor]:
    assert all(len(layer.gradient) == len(layer.term) == len(found.scores) for layer in found.layers)
    return [found.input_gradient * found.inputs, *(layer.term for layer in found.layers)]


def assert_complete(module: nn.Module, images: Tensor, *, most: float, precision: str) -> None:
    """Of every image; and the parts say what they are."""
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
    # The input alone does not do it: the biases matter in these nets.
    assert residual(found.scores, parts_of(found)[:1]).min() > 1e-4


# -- the parts -----------------------------------------------------------------------------------------------


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
    # in some order, the same terms: first, norm, twice, twice, bare, hidden, head
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
    """What autograd knows of it is a gradient; what it leaves over its linearisation nobody can see."""

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
    """|S − Σ| ÷ Σ|terms|, also where the identity does not hold."""
    module, images = built(Hiding), images_of(5, 12, 16)
    found = decompose(own(module), images, precision="float64")
    mine = residual(found.scores, parts_of(found))
    assert mine.min() > 1e-3
    torch.testing.assert_close(found.residual.double(), mine, rtol=1e-6, atol=0)
    told = explain(module, images, "fullgrad").residuals["fullgrad"]
    torch.testing.assert_close(told.double(), mine, rtol=1e-6, atol=0)
    complete = explain(built(Odd), images, "fullgrad").residuals["fullgrad"]
    assert complete.shape == (5,) and (complete >= 0).all() and complete.max() <= 1e-12
    single = explain(built(Odd), images.float(), "fullgrad", precision="float32").residuals["fullgrad"]
    assert single.max() <= 1e-5


def test_a_batch_is_its_images() -> None:
    module, images = built(Odd), images_of(4, 12, 18)
    whole = decompose(own(module), images, precision="float64")
    for i in range(4):
        one = decompose(own(module), images[i : i + 1], precision="float64")
        for layer, alone in zip(whole.layers, one.layers, strict=True):
            assert layer.name == alone.name
            torch.testing.assert_close(alone.term[0], layer.term[i], rtol=1e-9, atol=1e-14)


# -- the map -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("simple", [False, True])
def test_map_is_that_of_plain_hooks(inplace: bool, simple: bool) -> None:
    """Reused and in-place modules, definition order; every channel upsampled on its own by the reference."""
    module, images = built(lambda: Odd(inplace=inplace)), images_of(5, 12, 18)
    plain = twin(module)
    _, by_input, gradients, terms = full_gradient(plain, images, of_class(plain(images).argmax(1)))
    found = explain(module, images, "simple_fullgrad" if simple else "fullgrad")
    expected = fullgrad_map(by_input, gradients if simple else terms)
    assert distance(found.maps["simple_fullgrad" if simple else "fullgrad"], expected).max() <= 1e-9


class Regridded(nn.Module):
    """Biases on grids that no convolution made: after a crop, a resize, and one that is a single place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Linear(8, 6)
        self.cropped, self.resized, self.squeezed = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.cropped(self.conv(x)[:, :, 1:, 1:-2]))
        x = self.relu(self.resized(F.interpolate(x, size=(7, 5))))
        return self.head(self.relu(self.squeezed(x.mean((2, 3), keepdim=True))).flatten(1))


def test_map_of_layers_on_any_grid() -> None:
    """Every layer with a 4-D output has its part."""
    module, images = built(Regridded), images_of(3, 23, 26)
    _, by_input, gradients, terms = full_gradient(module, images, of_class(module(images).argmax(1)))
    assert sum(term.dim() == 4 for term in terms) == 4
    found = explain(module, images, "fullgrad", "simple_fullgrad").maps
    assert distance(found["fullgrad"], fullgrad_map(by_input, terms)).max() <= 1e-9
    assert distance(found["simple_fullgrad"], fullgrad_map(by_input, gradients)).max() <= 1e-9


def test_map_of_a_saturated_net() -> None:
    """The constants of a saturated ReLU6 are in the sum, and, as in idiap's code, not in the map."""
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
    """A net each of whose batch norms gives a copy of its output to whoever writes into it."""

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
    """Over the draws, with the clean image's class; then ψ."""
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
    """A black image, whose input term is zero everywhere."""
    images = torch.zeros(2, 3, 12, 12, dtype=torch.float64)
    images[1] = 1
    found = explain(built(Odd), images, "fullgrad", "simple_fullgrad")
    assert all(maps.isfinite().all() for maps in found.maps.values())
    assert psi(images)[0].eq(0).all()


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


# Ways in which a constant comes into a net without a layer that has a bias.
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
    # which is not so without it
    plain = out_of_place(module)
    scores, by_input, _, terms = full_gradient(plain, images, of_class(plain(images).argmax(1)))
    if way != "prelu":
        assert residual(scores, [by_input, *terms]).min() > 1e-6


# -- completeness --------------------------------------------------------------------------------------------


def assert_saturates(module: nn.Module, images: Tensor) -> None:
    """Some ReLU6 meets more than six, in every image, and without that part the sum is not the score."""
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
    """Batch norms' statistics drawn around those of some images: with strange ones a fresh deep net forgets its
    input, and its scores are all bias."""
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
    if name in ("googlenet", "inception_v3"):  # as their weights' entry points build them
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
    dtype = getattr(torch, precision)
    assert_complete(module.to(dtype), images.to(dtype), most=BOUNDS[precision], precision=precision)


# Smooth gates, normalisation and attention are not piecewise linear. METHODS.md lets the residual say so; but what an
# operation leaves over, y − J·u, telescopes to the score in any network, and with it the sum is complete here too.
def small_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
    )


class Gating(nn.Module):
    """SiLU, hard activations, squeeze and excitation, GroupNorm, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.squeeze, self.norm, self.head = nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.one(x))
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        return self.head(F.silu(self.norm(F.gelu(self.two(x)))).mean((2, 3)))


@pytest.mark.parametrize("name", ["gating", "vit"])
def test_smooth_nets_leave_a_residual_on_record(name: str) -> None:
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
