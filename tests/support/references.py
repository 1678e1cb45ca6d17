"""Independent reference implementations of the methods, with plain autograd and module hooks.

They need nets without in-place operations whose ReLUs are modules, so that hooks see every activation. They use nothing
of saliency_core.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Score = Callable[[Tensor], Tensor]


def built(factory: Callable[[], nn.Module], *, seed: int = 0) -> nn.Module:
    """Builds a net in eval mode and float64, with seeded random weights and batch-norm statistics.

    Parameters that are constant after initialisation (biases, scales, a head of zeros) get noise, because a test with
    constants would prove little.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        module = factory().double()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 1.5)
        for value in module.parameters():
            if value.dim() == 1 or value.amin() == value.amax():
                value.add_(torch.randn_like(value), alpha=0.2)
    return module.eval().requires_grad_(False)


def out_of_place(module: nn.Module) -> nn.Module:
    """Returns a copy without in-place activations, as hooks (captum's, too) require."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        if isinstance(part, nn.ReLU | nn.ReLU6):
            part.inplace = False
    return copied


def of_class(classes: Tensor) -> Score:
    return lambda outputs: outputs.gather(1, classes[:, None])[:, 0]


def gradient(module: nn.Module, images: Tensor, score: Score) -> Tensor:
    """Returns ∂S/∂x [n, C, H, W]."""
    x = images.clone().requires_grad_()
    return torch.autograd.grad(score(module(x)).sum(), x)[0]


# -- rules ---------------------------------------------------------------------------------------------------


class Gated(torch.autograd.Function):
    """A ReLU with an explicit backward for each rule."""

    @staticmethod
    def forward(ctx, values, rule):
        ctx.save_for_backward(values)
        ctx.rule = rule
        return values.clamp(min=0)

    @staticmethod
    def backward(ctx, above):
        (values,) = ctx.saved_tensors
        by_input, by_gradient = values > 0, above > 0
        gate = {"plain": by_input, "guided": by_input & by_gradient, "deconvnet": by_gradient}[ctx.rule]
        return above * gate, None


class Gate(nn.Module):
    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        return Gated.apply(x, self.rule)


def gated(module: nn.Module, rule: str) -> nn.Module:
    """Returns a copy in which ``Gate(rule)`` replaces every ``nn.ReLU``."""
    copied = copy.deepcopy(module)
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, Gate(rule))
    return copied


# -- samplers ------------------------------------------------------------------------------------------------


def noisy(images: Tensor, noises: Iterable[Tensor], *, spread: float) -> Iterator[Tensor]:
    """Yields x + σ·ε for each ε in ``noises`` (standard normal), with σ = spread · (max − min) of each image."""
    for noise in noises:
        copies = []
        for image, draw in zip(images, noise, strict=True):
            copies.append(image + spread * (image.max() - image.min()) * draw.to(image.dtype))
        yield torch.stack(copies)


def noisy_gradients(
    module: nn.Module, images: Tensor, score: Score, noises: Iterable[Tensor], *, spread: float
) -> Tensor:
    """Returns the gradients at the noisy images [draws, n, C, H, W]."""
    return torch.stack([gradient(module, x, score) for x in noisy(images, noises, spread=spread)])


def integrated(module: nn.Module, images: Tensor, score: Score, *, n: int) -> Tensor:
    """Returns x ⊙ ∫₀¹ g(a·x) da, integrated with n Gauss–Legendre nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    total = torch.zeros_like(images)
    for node, weight in zip(nodes, weights, strict=True):
        total += weight / 2 * gradient(module, images * (1 + node) / 2, score)
    return images * total


# -- CAMs ----------------------------------------------------------------------------------------------------


def captured(module: nn.Module, layer: str, images: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    """Returns a layer's output, and ∂S/∂output."""
    seen: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_hook(lambda part, inputs, output: seen.append(output))
    outputs = module(images.clone().requires_grad_())
    handle.remove()
    (activation,) = seen
    return activation.detach(), torch.autograd.grad(score(outputs).sum(), activation)[0]


def cam_gradcam(a: Tensor, g: Tensor) -> Tensor:
    return (g.mean((2, 3), keepdim=True) * a).sum(1).relu()


def cam_hirescam(a: Tensor, g: Tensor) -> Tensor:
    return (g * a).sum(1).relu()


def cam_layercam(a: Tensor, g: Tensor) -> Tensor:
    return (g.relu() * a).sum(1).relu()


def cam_xgradcam(a: Tensor, g: Tensor) -> Tensor:
    total = a.sum((2, 3), keepdim=True)
    weight = torch.where(total == 0, 0.0, (g * a).sum((2, 3), keepdim=True) / total)
    return (weight * a).sum(1).relu()


def cam_gradcampp(a: Tensor, g: Tensor) -> Tensor:
    """Implements equations 5, 7 and 19 of arXiv:1710.11063."""
    below = 2 * g**2 + a.sum((2, 3), keepdim=True) * g**3
    alpha = torch.where(below == 0, 0.0, g**2 / below)
    return ((alpha * g.relu()).sum((2, 3), keepdim=True) * a).sum(1).relu()


CAMS = {
    "gradcam": cam_gradcam,
    "gradcam++": cam_gradcampp,
    "hirescam": cam_hirescam,
    "layercam": cam_layercam,
    "xgradcam": cam_xgradcam,
}


def upsampled(cam: Tensor, images: Tensor) -> Tensor:
    """Resizes CAMs [n, h, w] to the images' size: [n, H, W]."""
    return F.interpolate(cam[:, None], size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]


# -- FullGrad ------------------------------------------------------------------------------------------------


def bias_of(part: nn.Module, output: Tensor) -> Tensor | None:
    """Returns the term that a layer adds to a linear map of its input, broadcastable over its output."""
    if isinstance(part, nn.BatchNorm2d):
        bias = part.bias - part.running_mean * part.weight / torch.sqrt(part.running_var + part.eps)
        return bias.view(-1, 1, 1)
    if isinstance(part, nn.Conv2d) and part.bias is not None:
        return part.bias.view(-1, 1, 1)
    if isinstance(part, nn.Linear) and part.bias is not None:
        return part.bias
    if isinstance(part, nn.ReLU6):  # the output is constant if it is saturated
        return 6.0 * (output.detach() >= 6)
    return None


@contextmanager
def biased_outputs(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Registers hooks for the context. Each forward appends every layer call's output and bias to the yielded list."""
    found: list[tuple[Tensor, Tensor]] = []

    def see(part: nn.Module, inputs: object, output: Tensor) -> None:
        bias = bias_of(part, output)
        if bias is not None:
            found.append((output, bias))

    handles = [part.register_forward_hook(see) for part in module.modules() if not list(part.children())]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def full_gradient(module: nn.Module, images: Tensor, score: Score) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Returns the scores [n], g ⊙ x, and for each layer g_l and g_l ⊙ b_l."""
    x = images.clone().requires_grad_()
    with biased_outputs(module) as found:
        scores = score(module(x))
    by_input, *by_layer = torch.autograd.grad(scores.sum(), [x, *(output for output, _ in found)])
    terms = [g * bias for g, (_, bias) in zip(by_layer, found, strict=True)]
    return scores.detach(), by_input * images, by_layer, terms


def psi(term: Tensor) -> Tensor:
    term = term.abs()
    term = term - term.flatten(1).amin(1).view(-1, 1, 1, 1)
    return term / (term.flatten(1).amax(1).view(-1, 1, 1, 1) + 1e-6)


def fullgrad_map(input_term: Tensor, layers: list[Tensor]) -> Tensor:
    """Upsamples every channel of every term, and sums them → [n, H, W]."""
    total = psi(input_term).sum(1)
    for term in layers:
        if term.dim() == 4:
            size = input_term.shape[2:]
            total += F.interpolate(psi(term), size=size, mode="bilinear", align_corners=True).sum(1)
    return total


def residual(scores: Tensor, terms: Iterable[Tensor]) -> Tensor:
    """Returns |S − Σ| ÷ Σ|terms| for each image [n], in float64.

    A term is the sum over one layer. With single elements as terms, which cancel each other, Σ|terms| would be greater
    and the residual smaller.
    """
    shares = torch.stack([term.double().flatten(1).sum(1) for term in terms])
    return (scores.double() - shares.sum(0)).abs() / shares.abs().sum(0)
