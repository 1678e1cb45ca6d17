"""Class model visualisation: the image that a class scores highest on.

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
from saliency_core.model.heads import Head, to_probabilities
from saliency_core.model.model_loading import Model
from saliency_core.model.preprocessing import Preprocessing
from saliency_core.replica.prepare import make_replica
from saliency_core.visualization.deprocess import deprocess

_SMOOTH = 1e-8  # under the root of the total variation, whose slope would be infinite where the image is flat
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class ClassModels:
    """``images`` float32 [n, C, H, W], preprocessed: zero is the mean image. ``scores`` float32 [n]: each class's own
    on its image, without penalties, and before the ``head``, of which ``probabilities`` float32 [n] come. ``notes``:
    what the user should know of the model; ``copied``: whether a copy of it ran.

    An ascent that went astray leaves NaN or infinities in its own image and score, and in no other.
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
    """The images of ``classes`` (numbers, in any order), sought side by side: none depends on another.

    What is random is keyed by (seed, class, step). The model is left as it is.
    Raises InvalidRequestError for no class or one that the model does not have, and where scores have no gradient;
    warns with SaliencyWarning.
    """
    recipe, device = recipe or Recipe(), torch.device(device)
    # cuDNN chooses among algorithms that add up in another order each time.
    cudnn = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False)
    with cudnn, computing_in("float32", device):
        found = _ascend(model, classes, recipe, seed, device)
    for note in found.notes:
        warnings.warn(note, SaliencyWarning, stacklevel=2)
    return found


def _ascend(model: Model, classes: Sequence[int], recipe: Recipe, seed: int, device: torch.device) -> ClassModels:
    shape = (model.geometry.channels, *model.geometry.input_size)
    images = torch.zeros(len(classes), *shape, dtype=torch.float32, device=device)
    made = make_replica(model, images, dtype=torch.float32)
    replica = made.model
    _refuse_hopeless(replica, images, classes)
    chosen = torch.tensor(classes, dtype=torch.int64, device=device)[:, None]
    shifts = [_shifts(recipe, seed, number) for number in classes]
    for step in range(recipe.steps):
        forward = Forward(partial(_penalised, replica, recipe, [shift[step] for shift in shifts]), images)
        scores = forward.outputs.gather(1, chosen)[:, 0]
        direction = _normed(forward.backward(scores).input_gradient)
        for row in (~direction.flatten(1).any(dim=1)).nonzero()[:, 0].tolist():
            # No slope at all: a net may be blind to plain images. A random step leads away from there.
            direction[row] = noise_for([classes[row]], step, shape, seed=seed, device=device)[0]
        images = images + recipe.learning_rate * (1 - step / recipe.steps) * direction
        if recipe.blur_every and (step + 1) % recipe.blur_every == 0:
            images = blur(images, recipe.blur_sigma)
    with torch.no_grad():
        outputs = replica.logits(images)
    both = (outputs, to_probabilities(outputs, made.head.kind))
    scores, probabilities = (values.gather(1, chosen)[:, 0] for values in both)
    return ClassModels(images, scores, probabilities, made.notes, made.head, made.copied)


def penalty(images: Tensor, recipe: Recipe) -> Tensor:
    """[n, C, H, W] → [n]: what the recipe takes off each image's score."""
    flat = images.flatten(1)
    total = recipe.l2 * flat.square().sum(1)
    power, weight = recipe.lp
    if weight:
        total = total + weight * flat.abs().pow(power).sum(1)
    if recipe.total_variation:
        total = total + recipe.total_variation * total_variation(images)
    return total


def total_variation(images: Tensor) -> Tensor:
    """[n, C, H, W] → [n]: the length of (step to the right, step down) at every pixel, summed over pixels and
    channels; rounded off below 1e-4."""
    down = functional.pad(images.diff(dim=2), (0, 0, 0, 1))
    right = functional.pad(images.diff(dim=3), (0, 1, 0, 0))
    return ((down.square() + right.square() + _SMOOTH).sqrt() - math.sqrt(_SMOOTH)).flatten(1).sum(1)


def blur(images: Tensor, sigma: float) -> Tensor:
    """[n, C, H, W] under a Gaussian of ``sigma`` pixels; beyond the border its own pixels go on."""
    reach = math.ceil(3 * sigma)
    places = torch.arange(-reach, reach + 1, dtype=torch.float32, device=images.device)
    weights = torch.exp(-0.5 * (places / sigma).square())
    kernel = (weights / weights.sum()).to(images.dtype)
    planes = functional.pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    planes = functional.conv2d(functional.conv2d(planes, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return planes.view(images.shape)


def as_pictures(images: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Preprocessed [n, C, H, W] → uint8 [n, H, W, C]: the mean image added back, clamped to what can be shown."""
    return deprocess(images.detach().cpu().numpy(), mean=preprocessing.mean, std=preprocessing.std)


def _penalised(model: Model, recipe: Recipe, shifts: Sequence[tuple[int, int]], images: Tensor) -> Tensor:
    """A model like any other, [n, C, H, W] → [n, classes]: scores of the shifted images, less their penalties."""
    moved = [image.roll(shift, (1, 2)) for image, shift in zip(images, shifts, strict=True)]
    return model.logits(torch.stack(moved)) - penalty(images, recipe)[:, None]


def _normed(gradient: Tensor) -> Tensor:
    """Each image's gradient [n, C, H, W] at a root mean square of 1, or 0 where it vanishes: models differ by orders
    of magnitude in the size of theirs, and would each need a learning rate of their own."""
    size = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
    # Divided first: the inverse of a tiny size is infinite.
    scaled: Tensor = gradient / size.clamp_min(_TINY) * math.sqrt(gradient[0].numel())
    return scaled.to(gradient.dtype)


def _shifts(recipe: Recipe, seed: int, number: int) -> list[tuple[int, int]]:
    """At each step, down and to the right."""
    key = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(key, "little", signed=True))
    reach = recipe.jitter
    drawn = torch.randint(-reach, reach + 1, (recipe.steps, 2), generator=generator, device="cpu")
    return [(down, right) for down, right in drawn.tolist()]


def _refuse_hopeless(model: Model, images: Tensor, classes: Sequence[int]) -> None:
    if not classes:
        raise InvalidRequestError("no class was named, so there is nothing to visualise: give at least one.")
    outputs = model.logits(images.detach().requires_grad_().clone())
    n_classes = outputs.shape[1]
    unknown = [number for number in classes if not 0 <= number < n_classes]
    if unknown:
        raise InvalidRequestError(f"class {unknown[0]} does not exist: {model.spec} has {n_classes} classes, from 0.")
    if not outputs.requires_grad:
        raise InvalidRequestError(
            f"{model.spec} gives no gradient of its scores by its input: no class of it can be visualised."
        )
