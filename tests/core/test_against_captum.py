"""Tests against captum: equal in float64 to 1e-9, and in float32 no further from float64 than captum is.

Captum's rules need ReLUs that are modules and do not write in place: it gets copies of the nets with such ReLUs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor, nn
from torchvision import models

from saliency_core import Explainer
from saliency_core.methods.samplers import noise_for
from tests.support.references import built, gated, gradient, integrated, noisy_gradients, of_class, out_of_place
from tests.support.subjects import GEOMETRY, distance, network, own, photographs

pytestmark = pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")

N, SPREAD, SEED = 5, 0.2, 3
FEW = 2  # with more passes, rounding in float32 would flip a ReLU's gate in most maps


def plain_methods(n: int) -> dict[str, str]:
    return {
        "gradient": "gradient(reduction=none)",
        "input_x_gradient": "input_x_gradient(reduction=none)",
        "integrated_gradients": f"integrated_gradients(n={n}, reduction=none)",
        "smoothgrad": f"smoothgrad(n={n}, spread={SPREAD}, reduction=none)",
    }


PLAIN = plain_methods(N)
RULES = {name: f"{name}(reduction=none)" for name in ("guided_backprop", "deconvnet")}


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sets one thread: a second one makes small nets slower, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if request.node.get_closest_marker("slow") else 1)
    yield
    torch.set_num_threads(threads)


class Small(nn.Module):
    """A net of a convolution, a residual block that reuses its ReLU, as in ResNets, and a linear head."""

    def __init__(self, *, functional: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.relu = nn.ReLU(inplace=True)
        self.one = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8 * 4 * 4, 6)
        self.functional = functional

    def act(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True) if self.functional else self.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.act(self.stem(x)), 2)
        y = self.two(self.act(self.one(x)))
        y = self.act(y + x)
        return self.head(F.adaptive_avg_pool2d(y, 4).flatten(1))


class ModuleReluDenseNet(nn.Module):
    """torchvision's DenseNet with a module as its last ReLU, because captum's rules do not apply to a functional
    one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.features, self.classifier, self.last = net.features, net.classifier, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.last(self.features(x)).mean((2, 3)))


def small_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=6
    )


def images_of(number: int, height: int, width: int) -> Tensor:
    """Returns images that differ in range, because σ and ψ are computed per image."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(number, 3, height, width, dtype=torch.float64, generator=generator)
    return images * torch.linspace(0.5, 2, number, dtype=torch.float64).view(-1, 1, 1, 1)


def by_captum(
    module: nn.Module, images: Tensor, classes: Tensor, names: Iterable[str], *, n: int = N
) -> dict[str, Tensor]:
    """Returns captum's signals [n, C, H, W]; methods with several passes use ``n``."""
    return {name: _by_captum(module, images.clone().requires_grad_(), classes, name, n).detach() for name in names}


def exactly(module: nn.Module, images: Tensor, classes: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Returns captum's signals, but integrated gradients by a loop in float64: captum rounds its weights to float32."""
    found = by_captum(module, images, classes, names)
    theirs = found["integrated_gradients"]
    found["integrated_gradients"] = integrated(module, images, of_class(classes), n=N)
    assert distance(theirs, found["integrated_gradients"]).max() <= 1e-7
    return found


def _by_captum(module: nn.Module, images: Tensor, classes: Tensor, name: str, n: int) -> Tensor:
    if name == "gradient":
        return captum.attr.Saliency(module).attribute(images, target=classes, abs=False)
    if name == "integrated_gradients":
        return captum.attr.IntegratedGradients(module).attribute(
            images, target=classes, n_steps=n, method="gausslegendre", internal_batch_size=len(images)
        )
    if name == "smoothgrad":  # captum's gradient in a loop, with our draws injected
        images = images.detach()
        sigma = SPREAD * (images.flatten(1).amax(1) - images.flatten(1).amin(1)).view(-1, 1, 1, 1)
        total = torch.zeros_like(images)
        for draw in range(n):
            noise = noise_for(list(range(len(images))), draw, images.shape[1:], seed=SEED, device="cpu")
            total += _by_captum(module, (images + sigma * noise).requires_grad_(), classes, "gradient", n)
        return total / n
    kind = {"input_x_gradient": "InputXGradient", "guided_backprop": "GuidedBackprop", "deconvnet": "Deconvolution"}
    return getattr(captum.attr, kind[name])(module).attribute(images, target=classes)


def cam_by_captum(module: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    attribution = LayerGradCam(module, module.get_submodule(layer))
    found = attribution.attribute(images.clone().requires_grad_(), target=classes, relu_attributions=True)
    return LayerAttribution.interpolate(found, tuple(images.shape[2:]), interpolate_mode="bilinear")[:, 0].detach()


def ours(module: nn.Module, images: Tensor, methods: dict[str, str]) -> tuple[dict[str, Tensor], Tensor]:
    """Returns our maps, by the keys of ``methods``, and the classes."""
    specs = [f"m{i}={spec}" for i, spec in enumerate(methods.values())]
    explainer = Explainer(own(module, GEOMETRY), methods=specs, precision="float64", seed=SEED)
    found = explainer(images)["predicted"]
    return {name: found.maps[f"m{i}"] for i, name in enumerate(methods)}, found.classes


def assert_equal(found: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert found.keys() == reference.keys()
    for name, signal in reference.items():
        assert signal.flatten(1).norm(dim=1).min() > 0, f"{name}: a zero reference proves nothing"
        assert distance(found[name], signal).max() <= 1e-9, name


@pytest.mark.parametrize("functional", [False, True])
def test_small_net(functional: bool) -> None:
    """One Explainer runs all methods. If our net has functional ReLUs, captum gets the net with modules."""
    module, images = built(Small), images_of(5, 13, 18)
    found, classes = ours(functional_twin(module) if functional else module, images, PLAIN | RULES)
    reference = exactly(out_of_place(module), images, classes, PLAIN | RULES)
    assert_equal(found, reference)
    assert distance(reference["guided_backprop"], reference["gradient"]).min() > 0.01


def functional_twin(module: nn.Module) -> nn.Module:
    twin = Small(functional=True).double()
    twin.load_state_dict(module.state_dict())
    return twin


def test_the_references_agree() -> None:
    """Captum's rules and SmoothGrad equal the hand-written ones, so that both can serve as references."""
    module, images = out_of_place(built(Small)), images_of(4, 12, 17)
    classes = module(images).argmax(1)
    reference, score = by_captum(module, images, classes, PLAIN | RULES), of_class(classes)
    for rule, name in (("plain", "gradient"), ("guided", "guided_backprop"), ("deconvnet", "deconvnet")):
        assert distance(gradient(gated(module, rule), images, score), reference[name]).max() <= 1e-12
    noises = [noise_for([0, 1, 2, 3], draw, (3, 12, 17), seed=SEED, device="cpu") for draw in range(N)]
    smooth = noisy_gradients(module, images, score, noises, spread=SPREAD).mean(0)
    assert distance(smooth, reference["smoothgrad"]).max() <= 1e-12


def test_small_vit() -> None:
    module, images = built(small_vit), images_of(3, 32, 32)
    found, classes = ours(module, images, PLAIN)
    assert_equal(found, exactly(module, images, classes, PLAIN))


@pytest.mark.parametrize("layer", ["stem", "stem.0", "one.1", "two", "two.0"])
def test_gradcam_of_a_named_layer(layer: str) -> None:
    """The layers include one that a batch norm is folded into, and one that an in-place ReLU overwrites."""
    module, images = built(Small), images_of(4, 14, 20)
    found, classes = ours(
        module, images, {"cam": f"gradcam(layer={layer})", "guided": f"guided_gradcam(layer={layer}, reduction=none)"}
    )
    plain = out_of_place(module)
    cam = cam_by_captum(plain, layer, images, classes)
    assert cam.flatten(1).amax(1).gt(0).sum() >= 2
    torch.testing.assert_close(found["cam"], cam, rtol=1e-9, atol=1e-12)
    guided = captum.attr.GuidedGradCam(plain, plain.get_submodule(layer)).attribute(
        images.clone().requires_grad_(), target=classes, interpolate_mode="bilinear"
    )
    torch.testing.assert_close(found["guided"], guided.detach(), rtol=1e-9, atol=1e-12)


# -- torchvision's nets --------------------------------------------------------------------------------------

BIG = {
    "squeezenet1_1": (72, "features.12"),
    "resnet18": (72, "layer3.0.bn2"),
    "vgg11_bn": (64, "features.22"),
    "densenet121": (64, "features.denseblock3"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BIG)
def test_torchvision_nets(name: str) -> None:
    size, layer = BIG[name]
    module, images = built(lambda: models.get_model(name, weights=None, num_classes=10)), images_of(3, size, size)
    found, classes = ours(module, images, PLAIN | RULES | {"gradcam": f"gradcam(layer={layer})"})
    plain = out_of_place(module)
    if name == "densenet121":
        plain = ModuleReluDenseNet(plain)
    torch.testing.assert_close(plain(images), module(images))
    reference = exactly(plain, images, classes, PLAIN | RULES)
    assert_equal(found, reference | {"gradcam": cam_by_captum(plain, layer, images, classes)})


@pytest.mark.slow
@pytest.mark.timeout(1800)  # float64, and 45 passes
def test_vit_b_16() -> None:
    module, images = built(lambda: models.vit_b_16(weights=None, num_classes=10)), images_of(2, 224, 224)
    found, classes = ours(module, images, PLAIN)
    assert_equal(found, exactly(module, images, classes, PLAIN))


FOUR = ("gradient", "input_x_gradient", "integrated_gradients", "guided_backprop")


@pytest.mark.slow
@pytest.mark.timeout(3600)  # up to 60 passes over each photograph, a third of them in float64
@pytest.mark.parametrize(
    ("name", "side", "n", "only"),
    [
        ("squeezenet1_1", 224, N, FOUR),
        ("resnet18", 224, N, FOUR),
        *((name, 64, FEW, None) for name in BIG),
        ("vit", 112, FEW, None),
    ],
)
def test_float32_is_no_further_from_float64_than_captum_is(
    name: str, side: int, n: int, only: tuple[str, ...] | None, tmp_path: Path
) -> None:
    """The distances are medians over 32 crops of photographs, because rounding flips ReLU gates of single images. If
    all methods are compared, crops are small and passes few: otherwise most maps, and so the medians, have a flipped
    gate. A ViT has neither ReLUs nor a layer for which captum computes a CAM."""
    module = photographed_vit() if name == "vit" else models.get_model(name, weights=None)
    if name != "vit":
        module.load_state_dict(torch.load(network(name, tmp_path), weights_only=True))
    module = module.eval().requires_grad_(False)
    plain = out_of_place(module)
    if name == "densenet121":
        plain = ModuleReluDenseNet(plain).eval()
    exact = copy.deepcopy(plain).double()
    signals, cam = plain_methods(n), {}
    if name != "vit":
        signals, cam = signals | RULES, {"gradcam": f"gradcam(layer={BIG[name][1]})"}
    if only is not None:
        signals, cam = {key: signals[key] for key in only}, {}
    methods = signals | cam
    explainer = Explainer(
        own(copy.deepcopy(module), GEOMETRY), methods=[f"{key}={spec}" for key, spec in methods.items()], seed=SEED
    )
    mine: dict[str, list[Tensor]] = {key: [] for key in methods}
    theirs: dict[str, list[Tensor]] = {key: [] for key in methods}
    cut = slice(112 - side // 2, 112 + side // 2)
    for pixels in photographs(32)[:, cut, cut].split(8):
        in32, in64 = GEOMETRY.normalise(pixels, torch.float32), GEOMETRY.normalise(pixels, torch.float64)
        found = explainer(in32)["predicted"]
        assert torch.equal(found.classes, plain(in32).argmax(1))
        captum32, captum64 = (
            by_captum(net, images, found.classes, signals, n=n)
            | {key: cam_by_captum(net, BIG[name][1], images, found.classes) for key in cam}
            for net, images in ((plain, in32), (exact, in64))
        )
        for key in methods:
            some = captum64[key].flatten(1).any(1) if key in cam else slice(None)  # a CAM may be zero everywhere
            mine[key].append(distance(found.maps[key][some], captum64[key][some]))
            theirs[key].append(distance(captum32[key][some], captum64[key][some]))
    medians = {key: (torch.cat(mine[key]).median(), torch.cat(theirs[key]).median()) for key in methods}
    for key, (we, they) in medians.items():
        print(f"{name} {key}: captum {they:.2e}, ours ÷ captum {we / they:.3f} of {len(torch.cat(mine[key]))} images")
    for key, (we, they) in medians.items():
        assert len(torch.cat(mine[key])) >= 16 and we / they <= 1.2, key


def photographed_vit() -> nn.Module:
    """Returns a ViT of usual proportions, with a random head: torchvision's initial head is zero, and so are its
    gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = models.VisionTransformer(
            image_size=112, patch_size=16, num_layers=6, num_heads=4, hidden_dim=256, mlp_dim=1024
        )
        nn.init.normal_(made.heads.head.weight, std=0.02)
    return made
