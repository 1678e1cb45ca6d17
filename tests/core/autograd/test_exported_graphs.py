"""Tests that exported graphs, whose calls are ATen overloads, give the maps of the module that they were exported from,
and that a bias is found however its layer is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from saliency_core import Explainer, load_model
from saliency_core.autograd.torch_calls import is_in_place
from saliency_core.fullgrad_decomposition import decompose
from tests.support.bias_nets import Odd, explain, images_of, parts_of
from tests.support.method_nets import Net, close
from tests.support.references import built, residual
from tests.support.subjects import SMALL, own

pytestmark = pytest.mark.usefixtures("one_thread")
METHODS = ("fullgrad", "simple_fullgrad", "gradcam", "guided_backprop")


def small_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("factory", [Net, Odd, small_vit])
def test_an_exported_graph_is_explained_as_its_module(factory, decomposed: bool, tmp_path: Path) -> None:
    module, images = built(factory), images_of(3, 32, 32)
    program = torch.export.export(module, (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program.run_decompositions() if decomposed else program, tmp_path / "graph.pt2")
    exported = load_model(f"file:{tmp_path / 'graph.pt2'}", preprocessing=SMALL)
    found, expected = (
        Explainer(model, methods=METHODS, precision="float64")(images)["predicted"] for model in (exported, own(module))
    )
    for name in METHODS:
        assert expected.maps[name].any()
        close(found.maps[name], expected.maps[name])
    if factory is not small_vit:  # the token order is not visible in an exported graph
        assert found.residuals["fullgrad"].max() <= 1e-12


class Named(nn.Module):
    """A net that passes the input as a keyword, and calls `torch.batch_norm`, whose argument order differs from F's."""

    def __init__(self, *, usual: bool) -> None:
        super().__init__()
        self.one, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 6)
        self.usual = usual

    def forward(self, x: Tensor) -> Tensor:
        if self.usual:
            return self.head(self.norm(self.one(x)).relu().mean((2, 3)))
        one, norm, head = self.one, self.norm, self.head
        x = F.conv2d(input=x, weight=one.weight, bias=one.bias)
        mean, variance = norm.running_mean, norm.running_var
        x = torch.batch_norm(x, norm.weight, norm.bias, mean, variance, False, 0.1, norm.eps, False)
        return F.linear(bias=head.bias, weight=head.weight, input=x.relu().mean((2, 3)))


def test_a_bias_is_found_however_its_layer_is_called() -> None:
    module, images = built(lambda: Named(usual=False)), images_of(3, 9, 12)
    usual = built(lambda: Named(usual=True))
    close(explain(module, images, "fullgrad").maps["fullgrad"], explain(usual, images, "fullgrad").maps["fullgrad"])
    found = decompose(own(module), images, precision="float64")
    assert [layer.explicit for layer in found.layers] == [True] * 3
    assert residual(found.scores, parts_of(found)).max() <= 1e-12


def test_in_place_calls_are_detected() -> None:
    aten = torch.ops.aten
    for func in (Tensor.add_, Tensor.__iadd__, Tensor.__setitem__, aten.add_.Tensor, aten.relu_.default):
        assert is_in_place(func, {})
    for func in (Tensor.add, Tensor.__invert__, Tensor.__add__, aten.add.Tensor, aten.relu.default):
        assert not is_in_place(func, {})
    assert is_in_place(F.relu, {"inplace": True})
