"""Image axes: along which axis of an activation the images of a batch lie, seen, not guessed from its sizes.

Tokens may be as many as images, so may channels and heads, and windows lie between the images of one axis. So the
forward is run with two images and with three: the axis is the one that grows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from saliency_core.captures import Capture, Captures
from saliency_core.layouts import ImageAxis
from saliency_core.models import Model
from saliency_core.passes import Forward


def find_image_axes(model: Model, image: Tensor) -> dict[str, ImageAxis]:
    """Of every call of the forward, by its name, in a batch of images like ``image`` [1, C, H, W]. A call that is not
    there holds no batch of images: the model loops over them, or chooses among them by their values."""
    images = torch.cat([image, image.flip(3), 2 * image])
    two, gradients = _calls(model, images[:2])
    three, _ = _calls(model, images)
    found = {}
    for name, call in two.items():
        axis = _growing(call.shape, three[name].shape) if name in three else None
        if axis is not None:
            found[name] = ImageAxis(axis, _is_strided(gradients[name], axis))
    return found


def _calls(model: Model, images: Tensor) -> tuple[dict[str, Capture], Mapping[str, Tensor]]:
    """The first output of every call, and the gradient by it of the first image's scores."""
    captures = Captures(model.module, (images.shape[2], images.shape[3]), everything=True)
    forward = Forward(model.logits, images, captures=captures, open_views=True)
    calls: dict[str, Capture] = {}
    for call in captures.calls:
        calls.setdefault(call.name, call)
    of_the_first = forward.outputs[:1].amax(1)
    return calls, dict(zip(calls, forward.gradients(of_the_first, list(calls.values())), strict=True))


def _growing(two: tuple[int, ...], three: tuple[int, ...]) -> int | None:
    if len(two) != len(three):
        return None
    axes = [axis for axis, (size, more) in enumerate(zip(two, three, strict=True)) if size != more]
    return axes[0] if len(axes) == 1 and 3 * two[axes[0]] == 2 * three[axes[0]] else None


def _is_strided(gradient: Tensor, axis: int) -> bool:
    """Whether the first of two images has every other place, and not the first half of them."""
    first_half, every_other = (ImageAxis(axis, strided).first(gradient, 2) for strided in (False, True))
    assert first_half is not None and every_other is not None
    return bool(first_half[1].any()) and not bool(every_other[1].any())
