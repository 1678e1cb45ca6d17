"""Tests that FullGrad of a batch is that of its images, and that its parts add up, also if several sizes are equal."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_core import Explainer, InvalidRequestError
from saliency_core.autograd.spatial_axes import ImageAxis
from saliency_core.errors import SaliencyWarning
from saliency_core.fullgrad_decomposition import decompose
from saliency_core.replica.image_axes import find_image_axes
from tests.support.bias_nets import images_of
from tests.support.references import built
from tests.support.subjects import own

pytestmark = pytest.mark.usefixtures("one_thread")


class Tokens(nn.Module):
    """A net of four patches with four channels, each a token; ``mix`` maps [n, 4, 4] to [n, 4, 4]."""

    def __init__(self, mix: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(3, 4, 4, stride=4), mix(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class SequenceFirst(nn.Module):
    """A layer with the layout [tokens, n, C] inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class ChannelsFirst(nn.Module):
    """A layer with the layout [C, tokens, n] inside."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(2, 1, 0)
        y = torch.einsum("oc,ctn->otn", self.weight, y) + 0.3
        return F.silu(y).permute(2, 1, 0)


class Attends(nn.Module):
    """Hand-written attention with heads and images on one axis; with ``strided``, images are the inner index."""

    def __init__(self, *, strided: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.strided = nn.Linear(4, 12), nn.Linear(4, 4), strided

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        order = (2, 3, 0, 1, 4) if self.strided else (2, 0, 3, 1, 4)
        q, k, v = (one.reshape(2 * n, 4, 2) for one in self.qkv(x).view(n, 4, 3, 2, 2).permute(order))
        y = F.gelu((q @ k.transpose(1, 2)).softmax(2) @ v)
        y = y.view(2, n, 4, 2).permute(1, 2, 0, 3) if self.strided else y.view(n, 2, 4, 2).permute(0, 2, 1, 3)
        return self.out(y.reshape(n, 4, 4))


class Unfolded(nn.Module):
    """A layer as in MobileViT: pixels of a patch and images share an axis, and patches are the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        y = x.reshape(n, 2, 2, 4).transpose(1, 2).reshape(2 * n, 2, 4)
        y = y + self.two(F.silu(self.one(self.norm(y))))
        return y.reshape(n, 2, 2, 4).transpose(1, 2).reshape(n, 4, 4)


class Windows(nn.Module):
    """A net as Swin: windows and images share an axis; with ``strided``, images are the inner index."""

    def __init__(self, *, strided: bool) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 4), nn.Linear(4, 5)
        self.strided = strided

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x).permute(0, 2, 3, 1)
        n = len(y)
        y = y.view(n, 2, 2, 2, 2, 4).permute((1, 3, 0, 2, 4, 5) if self.strided else (0, 1, 3, 2, 4, 5))
        y = F.gelu(self.two(y.reshape(4 * n, 2, 2, 4))).flatten(1, 2).mean(1)
        y = y.view(4, n, 4).mean(0) if self.strided else y.view(n, 4, 4).mean(1)
        return self.head(y)


class Plain(nn.Module):
    """A net with a given number of channels, which may equal the number of images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, channels, 2, stride=2), nn.Conv2d(channels, channels, 1)
        self.norm, self.head = nn.GroupNorm(1, channels), nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.norm(self.two(self.one(x).relu()))).mean((2, 3)))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.two(self.one(x).permute(0, 2, 3, 1))).mean((1, 2)))


class Over1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.one(x.transpose(1, 2))).transpose(1, 2)


class Stacked(nn.Module):
    """A net over each image and its mirror image; ``joined`` combines the two outputs. A mirror image follows its
    image or, with ``strided``, all images."""

    def __init__(self, joined: Callable[[Tensor, Tensor], Tensor], *, strided: bool, blank: bool = False) -> None:
        super().__init__()
        self.body, self.joined, self.strided, self.blank = Plain(4), joined, strided, blank

    def forward(self, x: Tensor) -> Tensor:
        other = torch.zeros_like(x) if self.blank else 0.9 * x.flip(3)
        if self.strided:
            y = self.body(torch.cat([x, other]))
            return self.joined(y[: len(x)], y[len(x) :])
        y = self.body(torch.stack([x, other], 1).flatten(0, 1))
        return self.joined(y[::2], y[1::2])


def first_of(one: Tensor, other: Tensor) -> Tensor:
    return one


NETS = {
    **{
        f"stacked, {join.__name__}{', strided' * strided}{', blank' * blank}": lambda options=(join, strided, blank): (
            Stacked(options[0], strided=options[1], blank=options[2])
        )
        for join in (torch.minimum, torch.add, first_of)
        for strided in (False, True)
        for blank in (False, True)
    },
    "tokens": lambda: Tokens(lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)),
    "sequence first": lambda: Tokens(SequenceFirst),
    "channels first": lambda: Tokens(ChannelsFirst),
    "heads": lambda: Tokens(lambda: Attends(strided=False)),
    "heads, strided": lambda: Tokens(lambda: Attends(strided=True)),
    "unfolded": lambda: Tokens(Unfolded),
    "windows": lambda: Windows(strided=False),
    "windows, strided": lambda: Windows(strided=True),
    "over tokens": lambda: Tokens(Over1d),
    "channels last": ChannelsLast,
    **{f"{channels} channels": lambda channels=channels: Plain(channels) for channels in (1, 2, 3, 4)},
}


@pytest.mark.parametrize("name", NETS)
def test_maps_of_a_batch_are_those_of_its_images(name: str) -> None:
    module, images = built(NETS[name]), images_of(5, 8, 8)
    explainer = Explainer(own(module), methods=["fullgrad", "simple_fullgrad"], precision="float64")
    alone = [explainer(image[None])["predicted"].maps for image in images]
    for n in range(1, 6):
        found = explainer(images[:n])["predicted"]
        assert found.residuals["fullgrad"].max() <= 1e-12
        for method, maps in found.maps.items():
            torch.testing.assert_close(maps, torch.cat([one[method] for one in alone[:n]]), rtol=1e-9, atol=1e-12)
    parts = decompose(own(module), images[:4], precision="float64")
    assert parts.residual.max() <= 1e-12 and all(len(layer.term) == 4 for layer in parts.layers)


class Loops(nn.Module):
    """A net that loops over images: a convolution, ``batched`` or not, or a linear layer only."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.one, self.two, self.head, self.kind = nn.Conv2d(3, 3, 2), nn.Linear(3, 3), nn.Linear(3, 5), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "linear":
            return self.head(torch.stack([F.silu(self.two(one)) for one in self.one(x).mean((2, 3))]))
        made = [F.silu(self.one(image[None] if self.kind == "batched" else image)).flatten(-2).mean(-1) for image in x]
        return self.head(torch.cat(made) if self.kind == "batched" else torch.stack(made))


@pytest.mark.parametrize("kind", ["batched", "not batched", "linear"])
def test_loops_over_images(kind: str) -> None:
    """The calls in the loop have no batch, so their maps cannot be assigned to images; their shares of the score can be
    summed over all images."""
    module, images = built(lambda: Loops(kind)), images_of(3, 8, 8)
    explainer = Explainer(own(module), methods=["fullgrad"], precision="float64")
    assert explainer(images[:1])["predicted"].residuals["fullgrad"].max() <= 1e-12
    if kind == "linear":
        assert explainer(images)["predicted"].residuals["fullgrad"].max() <= 1e-12
    else:
        with pytest.raises(
            InvalidRequestError, match=r"conv2d#\d holds no batch .*loop over them.*choose another method"
        ):
            explainer(images)
    with pytest.raises(InvalidRequestError, match="one image at a time"):
        decompose(own(module), images, precision="float64")


class Reorders(nn.Module):
    """A net that sorts images by brightness, or splits, mirrors or pads the batch, and undoes that at the end."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.body, self.way = Plain(4), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "sorted":
            order = x.detach().mean((1, 2, 3)).argsort()
            return self.body(x[order])[order.argsort()]
        if self.way == "chunks":
            return torch.cat([self.body(part) for part in x.split(2)])
        if self.way == "views":
            return self.body(torch.cat([x, x.flip(3)])).view(2, len(x), 5).mean(0)
        return self.body(F.pad(x, (0, 0, 0, 0, 0, 0, 0, -len(x) % 4)))[: len(x)]


@pytest.mark.parametrize("way", ["sorted", "chunks", "views", "padded"])
@pytest.mark.parametrize("method", ["gradcam", "layercam(layer=body.one)", "guided_gradcam(layer=body.two)"])
def test_a_cam_of_a_layer_with_images_in_another_order_is_refused(way: str, method: str) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"layer '(relu|body|silu).*(in another order|which part of it belongs to)"
    ):
        Explainer(own(built(lambda: Reorders(way))), methods=[method], precision="float64")(images_of(5, 8, 8))


def test_fullgrad_and_layer_targets_of_sorted_images_are_refused() -> None:
    module, images = own(built(lambda: Reorders("sorted"))), images_of(3, 8, 8)
    with pytest.raises(InvalidRequestError, match=r"choose among them\?\), so its map"):
        Explainer(module, methods=["fullgrad"], precision="float64")(images)
    with pytest.raises(InvalidRequestError, match=r"'body\.one' holds the images of a batch in another order"):
        Explainer(module, targets=["layer:body.one[2]"], precision="float64")(images)
    assert Explainer(module, precision="float64")(images)["predicted"].maps["gradient"].isfinite().all()


class Elsewhere(nn.Module):
    """A net that runs its body in another thread, in which calls are not captured."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Plain(4)

    def forward(self, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.body, x).result()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_part_in_torchscript_is_named() -> None:
    module = built(ChannelsLast)
    module.two = torch.jit.trace(module.two, torch.zeros(1, 4).double())
    with pytest.raises(InvalidRequestError, match=r"part 'two' of own is TorchScript.*Gradient methods"):
        Explainer(own(module), methods=["gradcam"], precision="float64")(images_of(2, 8, 8))


def test_an_incomplete_sum_causes_a_warning() -> None:
    explainer = Explainer(own(built(Elsewhere)), methods=["fullgrad"], precision="float64")
    with pytest.warns(SaliencyWarning, match="does not add up"):
        assert explainer(images_of(2, 8, 8))["predicted"].residuals["fullgrad"].max() > 0.05


def test_image_axes_are_found() -> None:
    names = ("heads", "heads, strided", "sequence first", "windows, strided")
    found = {name: find_image_axes(own(built(NETS[name])), images_of(1, 8, 8)) for name in names}
    assert found["heads"]["softmax#1"] == ImageAxis(0) and found["heads, strided"]["softmax#1"] == ImageAxis(0, True)
    assert found["sequence first"]["linear#1"] == ImageAxis(1)
    assert found["windows, strided"]["gelu#1"] == ImageAxis(0, True)
    assert found["windows, strided"]["linear#2"] == ImageAxis(0)
