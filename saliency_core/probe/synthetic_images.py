"""Makes synthetic images, and runs a model on them: alone, in a batch, and in another order."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.nn.functional import interpolate

from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import Model
from saliency_core.model.preprocessing import Preprocessing
from saliency_core.probe.recorded_calls import ForwardObserver

_MAX_ERROR_CHARACTERS = 300  # of the message of an error that the user's model raised


def make_images(preprocessing: Preprocessing) -> Tensor:
    """Returns three preprocessed images, float32 [3, C, H, W]: a nearly flat one, noise, and a smooth one.

    Their values are in the range of real images, with different means near 0. There are three, so that a graph that was
    exported for a fixed number of images fails.
    """
    size, channels = preprocessing.input_size, preprocessing.channels
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float32)
    levels = torch.tensor([0.5, -0.5, 0.0], dtype=torch.float32)
    plain = levels[torch.arange(channels) % 3] if channels > 1 else levels[2:]
    # Not exactly flat, because a max pool would choose among equal values by rounding.
    flat = plain.view(-1, 1, 1) + 0.02 * draw(channels, *size)
    smooth = interpolate(draw(1, channels, 5, 5), size, mode="bicubic")[0]
    images = torch.stack([flat, 0.7 * draw(channels, *size), smooth])
    images[1:] -= images[1:].mean(dim=(2, 3), keepdim=True)
    images += torch.tensor([0.09, -0.06, 0.03], dtype=torch.float32).view(-1, 1, 1, 1)
    mean, std = (
        torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    return images.clamp(-mean / std, (1 - mean) / std)


def make_contrasting_batches(images: Tensor) -> list[Tensor]:
    """Returns batches of the three images with very different means and contrasts.

    A forward that branches on a value of the batch takes another branch for some of them.
    """
    flat, noise, smooth = images - images.mean(dim=(1, 2, 3), keepdim=True)
    return [
        torch.stack([noise + 0.4, smooth - 0.4, flat]),
        torch.stack([noise - 0.4, smooth + 0.4, flat]),
        torch.stack([noise * 1.3, noise * 0.3, smooth]),
        torch.stack([smooth * 0.3, noise * 1.3, flat]),
    ]


@dataclass(frozen=True)
class ModelRun:
    """The results of one run of a model.

    ``scores`` [n, classes]. ``gradient`` [n, C, H, W], of a weighted sum of all scores; zeros if there is none.
    ``own_gradient``: the gradient may differ from that of the scores, because the model has its own backward or hooks,
    or detaches tensors. ``branches``: the model may branch on a value that it reads. ``sizes``: it reads sizes of
    tensors. ``draws``: it draws from a generator of its own.
    """

    scores: Tensor
    gradient: Tensor
    own_gradient: bool = False
    branches: bool = False
    sizes: bool = False
    draws: bool = False


@dataclass(frozen=True)
class BatchComparison:
    """The runs of three images in three batches: all images, the last two in reverse order, and the second alone.

    ``scores`` and ``gradient``: the largest relative difference between the values of an image in two batches. For
    scores, a batch of nine images may be among them.
    """

    batch: ModelRun
    pair: ModelRun
    alone: ModelRun
    scores: float
    gradient: float


def run_model(model: Model, images: Tensor, *, backward: bool = True, graph: bool = True) -> ModelRun:
    """Runs a model on ``images``. Without a ``graph`` there is no backward, and the forward is faster.

    Raises InvalidRequestError if the model fails.
    """
    x, observer = images.detach().clone().requires_grad_(), ForwardObserver()
    try:
        with torch.set_grad_enabled(graph):
            with observer:
                outputs = model.outputs(x.clone())  # a model may write in place, which autograd forbids for a leaf
            scores = model.as_logits(outputs, images)
            _refuse_unreadable_scores(model, scores)
            own_gradient, gradient = observer.hooks or observer.cuts or _has_torchscript(model), None
            if backward and scores.requires_grad:
                own_gradient = own_gradient or _has_own_backward(scores)
                (gradient,) = torch.autograd.grad(weighted_sum(scores), x, allow_unused=True)
    except InvalidRequestError:
        raise
    except Exception as error:  # the user's model may raise anything
        raise InvalidRequestError(
            f"{model.spec} fails on a batch of {list(images.shape)}: {type(error).__name__}: {_shorten(error)}."
            f"{_hint(error)}"
        ) from error
    gradient = torch.zeros_like(images) if gradient is None else gradient
    return ModelRun(scores.detach(), gradient, own_gradient, observer.values, observer.sizes, observer.draws)


def _refuse_unreadable_scores(model: Model, scores: Tensor) -> None:
    if scores.layout != torch.strided or scores.is_complex() or scores.is_quantized:
        raise InvalidRequestError(
            f"{model.spec} gives scores of layout {scores.layout} and dtype {scores.dtype}, which cannot be explained: "
            "let it return dense real numbers (to_dense(), dequantize())."
        )


def _shorten(error: Exception) -> str:
    """Returns the error's message on one line, cut to a readable length."""
    text = " ".join(str(error).split())
    return (text if len(text) <= _MAX_ERROR_CHARACTERS else text[:_MAX_ERROR_CHARACTERS] + " …").rstrip(".")


def _hint(error: Exception) -> str:
    if not any(word in str(error).lower() for word in ("size", "shape", "channel", "dimension")):
        return ""
    return " Check that the preprocessing fits the model (size, channels), and that it accepts batches of any size."


def _has_torchscript(model: Model) -> bool:
    """Whether the model has TorchScript parts, whose calls cannot be observed."""
    scripts = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
    return any(isinstance(value, scripts) for part in model.module.modules() for value in (part, *vars(part).values()))


def _has_own_backward(scores: Tensor) -> bool:
    """Whether the graph of the scores contains a ``torch.autograd.Function`` of the model's own."""
    nodes, visited = [scores.grad_fn], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        if isinstance(node, BackwardCFunction):
            return True
        visited.add(node)
        nodes += [following for following, _ in node.next_functions]
    return False


def weighted_sum(scores: Tensor) -> Tensor:
    """Returns a sum of all scores with different weights, because the plain sum of a softmax is always 1.

    Masked classes, at −inf, are left out.
    """
    weights = torch.linspace(1, 2, scores.shape[1], dtype=scores.dtype, device=scores.device)
    return (torch.where(scores.isneginf(), 0, scores) * weights).sum()


def compare_batches(
    model: Model, images: Tensor, *, again: Model | None = None, graph: bool = True, larger: bool = True
) -> BatchComparison:
    """Runs three images in several batches, and compares the results of each image.

    ``again``: the model that runs the pair; None: ``model`` itself. ``graph``: False compares gradients only if the
    model defines its own. ``larger``: a model that reads sizes also runs a batch of nine images; a failure there, for
    example because memory is short, is ignored.
    """
    batch = run_model(model, images, backward=False, graph=graph)
    alone = run_model(model, images[1:2])
    graph = graph or alone.own_gradient
    pair = run_model(again or model, images[[2, 1]], backward=graph, graph=graph)
    scores = [(alone.scores, batch.scores[1:2]), (pair.scores, batch.scores[[2, 1]]), (alone.scores, pair.scores[1:])]
    if larger and alone.sizes:
        with suppress(InvalidRequestError):
            nine = run_model(model, images.repeat(3, 1, 1, 1), backward=False, graph=False)
            scores.append((nine.scores, batch.scores.repeat(3, 1)))
    largest = max(relative_difference(*both) for both in scores)
    gradient = relative_difference(alone.gradient, pair.gradient[1:]) if graph else 0.0
    return BatchComparison(batch, pair, alone, largest, gradient)


def relative_difference(values: Tensor, expected: Tensor) -> float:
    """Returns the largest difference of two tensors [n, …], relative to the largest value of the image.

    Values that are not finite in both count as equal.
    """
    if values.shape != expected.shape:
        return float("inf")
    values, expected = values.flatten(1).double(), expected.flatten(1).double()
    same = (values == expected) | (~values.isfinite() & ~expected.isfinite())
    differences = torch.where(same, 0, (values - expected).abs())
    size = expected.nan_to_num(0, 0, 0).abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return float((differences / size).nan_to_num(torch.inf).max())
