"""Baselines: the images at which a path to the explained image begins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from saliency_core.errors import InvalidRequestError
from saliency_core.model.preprocessing import Preprocessing

BASELINES = ("zero", "black", "mean", "blur", "noise")


def make_baseline(
    name: str, images: Tensor, preprocessing: Preprocessing | None, noise: Callable[[], Tensor]
) -> Tensor:
    """Returns the baselines [n, C, H, W] of ``images`` of that shape, in the model's space.

    ``zero`` is the data's mean colour there; ``black``: black pixels; ``mean``: each image's mean colour; ``blur``: the
    image under a Gaussian of a tenth of its size; ``noise``: standard normal noise.
    """
    if name == "zero":
        return torch.zeros_like(images)
    if name == "black":
        if preprocessing is None:
            raise InvalidRequestError("baseline=black needs the model's preprocessing, to compute what black is.")
        black = torch.zeros(1, *images.shape[2:], images.shape[1], dtype=torch.uint8, device=images.device)
        return preprocessing.normalise(black, images.dtype).expand_as(images)
    if name == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    if name == "blur":
        sizes = [max(1, size // 10) for size in images.shape[2:]]
        # An odd kernel of four sigmas, at most as wide as reflection at the border allows.
        kernel = [
            min(4 * size + 1, length - 1 + length % 2) for size, length in zip(sizes, images.shape[2:], strict=True)
        ]
        blurred: Tensor = gaussian_blur(images, kernel[::-1], [float(size) for size in sizes[::-1]])
        return blurred
    if name == "noise":
        return noise().to(images.dtype)
    raise InvalidRequestError(f"baseline {name!r} does not exist: choose one of {', '.join(BASELINES)}.")
