"""Class model visualisation: finds, by gradient ascent, the image for which the score of a class is highest.

K. Simonyan, A. Vedaldi, A. Zisserman: Deep Inside Convolutional Networks (2013), section 2. Total variation and the
Lᵖ norm as regularisers: A. Mahendran, A. Vedaldi (2015); jitter: A. Mordvintsev et al. (2015); blur: J. Yosinski et
al. (2015).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from saliency_core.autograd.forward import Forward
from saliency_core.autograd.precision import computing_in
from saliency_core.class_visualization.ascent_recipe import Recipe
from saliency_core.errors import InvalidRequestError, SaliencyWarning
from saliency_core.methods.samplers import noise_for
from saliency_core.model.classifier import Model
from saliency_core.model.heads import Head, to_probabilities
from saliency_core.model.preprocessing import Preprocessing
from saliency_core.replica.prepare import make_replica
from saliency_core.visualization.deprocess import deprocess

_SMOOTH = 1e-8  # under the root of the total variation, whose gradient would be infinite in flat regions
_SMALLEST = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class ClassModels:
    """The images that visualise classes.

    ``images`` float32 [n, C, H, W] are preprocessed: zero is the mean image. ``scores`` float32 [n] are the scores of
    the classes for their images, without penalties. ``head`` turns them into ``probabilities`` float32 [n]. ``notes``:
    messages for the user on the model; ``copied``: whether a copy of it ran.

    An ascent that diverges leaves NaN or infinities only in its own image and score.
    """

    images: Tensor
    scores: Tensor
    probabilities: Tensor
    notes: tuple[str, ...] = ()
    head: Head = field(default_factory=Head)
    copied: bool = True


def visualise_classes(
    model: Model, classes: Sequence[int], *, recipe: Recipe | None = None, seed: int = 0,
    device: str | torch.device = "cpu",
) -> ClassModels:  # fmt: skip
    """Finds the images of ``classes`` (numbers in any order) in one batch; they do not depend on each other.

    Random numbers are keyed by (seed, class, step). The model is not changed. Raises InvalidRequestError if ``classes``
    is empty, if the model lacks one of them, or if the scores have no gradient. Warns with SaliencyWarning.
    """
    recipe, device = recipe or Recipe(), torch.device(device)
    # cuDNN may otherwise choose algorithms that sum in a different order each time.
    cudnn = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False)
    with cudnn, computing_in("float32", device):
        result = _ascend(model, classes, recipe, seed, device)
    for note in result.notes:
        warnings.warn(note, SaliencyWarning, stacklevel=2)
    return result


def _ascend(model: Model, classes: Sequence[int], recipe: Recipe, seed: int, device: torch.device) -> ClassModels:
    shape = (model.geometry.channels, *model.geometry.input_size)
    images = torch.zeros(len(classes), *shape, dtype=torch.float32, device=device)
    replica = make_replica(model, images, dtype=torch.float32)
    _refuse_invalid_classes(replica.model, images, classes)
    chosen = torch.tensor(classes, dtype=torch.int64, device=device)[:, None]
    shifts = [_draw_shifts(recipe, seed, number) for number in classes]
    for step in range(recipe.steps):
        forward = Forward(partial(_penalised_scores, replica.model, recipe, [shift[step] for shift in shifts]), images)
        scores = forward.outputs.gather(1, chosen)[:, 0]
        direction = _normalise(forward.backward(scores).input_gradient)
        for row in (~direction.flatten(1).any(dim=1)).nonzero()[:, 0].tolist():
            # The gradient of a model may vanish for a flat image. A random step leads away from it.
            direction[row] = noise_for([classes[row]], step, shape, seed=seed, device=device)[0]
        images = images + recipe.learning_rate * (1 - step / recipe.steps) * direction
        if recipe.blur_every and (step + 1) % recipe.blur_every == 0:
            images = blur(images, recipe.blur_sigma)
    with torch.no_grad():
        outputs = replica.model.logits(images)
    both = (outputs, to_probabilities(outputs, replica.head.kind))
    scores, probabilities = (values.gather(1, chosen)[:, 0] for values in both)
    return ClassModels(images, scores, probabilities, replica.notes, replica.head, replica.copied)


def penalty(images: Tensor, recipe: Recipe) -> Tensor:
    """Returns the penalties [n] that the recipe subtracts from the scores of images [n, C, H, W]."""
    flat = images.flatten(1)
    total = recipe.l2 * flat.square().sum(1)
    power, weight = recipe.lp
    if weight:
        total = total + weight * flat.abs().pow(power).sum(1)
    if recipe.total_variation:
        total = total + recipe.total_variation * total_variation(images)
    return total


def total_variation(images: Tensor) -> Tensor:
    """Returns the total variation [n] of images [n, C, H, W]: the length of the vector of differences to the right and
    downward neighbours, summed over pixels and channels, and smoothed below 1e-4."""
    down = functional.pad(images.diff(dim=2), (0, 0, 0, 1))
    right = functional.pad(images.diff(dim=3), (0, 1, 0, 0))
    return ((down.square() + right.square() + _SMOOTH).sqrt() - math.sqrt(_SMOOTH)).flatten(1).sum(1)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blurs images [n, C, H, W] with a Gaussian of ``sigma`` pixels, and repeats the pixels at the border."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = (weights / weights.sum()).to(images.dtype)
    planes = functional.pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    planes = functional.conv2d(functional.conv2d(planes, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return planes.view(images.shape)


def as_pictures(images: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Turns preprocessed images [n, C, H, W] into pixels, uint8 [n, H, W, C], clipped to the range of colours."""
    return deprocess(images.detach().cpu().numpy(), mean=preprocessing.mean, std=preprocessing.std)


def _penalised_scores(model: Model, recipe: Recipe, shifts: Sequence[tuple[int, int]], images: Tensor) -> Tensor:
    """Returns the scores [n, classes] of the shifted images [n, C, H, W], minus their penalties."""
    shifted = [image.roll(shift, (1, 2)) for image, shift in zip(images, shifts, strict=True)]
    return model.logits(torch.stack(shifted)) - penalty(images, recipe)[:, None]


def _normalise(gradient: Tensor) -> Tensor:
    """Scales the gradient [n, C, H, W] of each image to a root mean square of 1; a gradient of zero stays zero.

    The sizes of gradients differ between models by orders of magnitude, which would require different learning rates.
    """
    size = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
    # Divides first, because the inverse of a tiny size is infinite.
    scaled: Tensor = gradient / size.clamp_min(_SMALLEST) * math.sqrt(gradient[0].numel())
    return scaled.to(gradient.dtype)


def _draw_shifts(recipe: Recipe, seed: int, number: int) -> list[tuple[int, int]]:
    """Returns the shifts of the image of class ``number`` at each step, as (down, right)."""
    key = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(key, "little", signed=True))
    reach = recipe.jitter
    shifts = torch.randint(-reach, reach + 1, (recipe.steps, 2), generator=generator, device="cpu")
    return [(down, right) for down, right in shifts.tolist()]


def _refuse_invalid_classes(model: Model, images: Tensor, classes: Sequence[int]) -> None:
    if not classes:
        raise InvalidRequestError("no class was given, so there is nothing to visualise: give at least one.")
    outputs = model.logits(images.detach().requires_grad_().clone())
    n_classes = outputs.shape[1]
    unknown = [number for number in classes if not 0 <= number < n_classes]
    if unknown:
        raise InvalidRequestError(f"class {unknown[0]} does not exist: {model.spec} has {n_classes} classes, from 0.")
    if not outputs.requires_grad:
        raise InvalidRequestError(
            f"{model.spec} gives no gradient of its scores by its input, so none of its classes can be visualised: "
            "let its forward keep the autograd graph."
        )
