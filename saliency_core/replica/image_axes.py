"""Image axes: along which axis of an activation the images of a batch lie, seen, not guessed from its sizes.

Tokens may be as many as images, so may channels and heads, and windows lie between the images of one axis. So the
forward is run with two images and with three: the axis is the one that grows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from saliency_core.autograd.capture import Captures
from saliency_core.autograd.forward import Forward
from saliency_core.autograd.spatial_axes import ImageAxis
from saliency_core.errors import InvalidRequestError
from saliency_core.model.model_loading import Model

_NEAR = 1e-3  # relative to the largest value; the same kernels run on the same images in another order


def find_image_axes(model: Model, image: Tensor) -> dict[str, ImageAxis]:
    """Of every call of the forward, by its name, in a batch of images like ``image`` [1, C, H, W]. A call that is not
    there holds no batch of images: the model loops over them, or chooses among them by their values."""
    images = torch.cat([image, image.flip(3), 2 * image])
    two, three = _shapes(model, images[:2]), _shapes(model, images)
    axes = {name: _growing(shape, three.get(name, ())) for name, shape in two.items()}
    single = {name: axis for name, axis in axes.items() if axis is not None and two[name][axis] == 2}
    several = {name: axis for name, axis in axes.items() if axis is not None and name not in single}
    kept = _in_order(model, torch.cat([image, _unlike(image)]), single)
    found = {name: ImageAxis(axis) for name, axis in single.items() if name in kept}
    return found | (_laid_out(model, images[:2], several) if several else {})


def refuse_mixed_images(model: Model, image: Tensor, layers: Collection[str]) -> None:
    """Raises InvalidRequestError unless the rows of what ``layers`` give are the images of the batch, in their
    order."""
    if not layers:
        return
    images = torch.cat([image, _unlike(image), -image])
    rows = {name: 0 for name, value in _values(model, images, layers).items() if value.dim() and len(value) == 3}
    mixed = rows.keys() - _in_order(model, images, rows)
    if mixed:
        raise InvalidRequestError(
            f"layer {min(mixed)!r} holds the images of a batch in another order than they came in (does the model sort "
            "or choose among them?), so what it gives cannot be told to be of one image or another: choose another "
            "layer or method, or let the model keep their order."
        )


def _unlike(image: Tensor) -> Tensor:
    return 0.5 * image.flip(2) + 0.1


def _in_order(model: Model, images: Tensor, axes: Mapping[str, int]) -> set[str]:
    """The calls in which the places along these axes move as the images do: as they do not where a model sorts them."""
    if not axes:
        return set()
    values, rolled = _values(model, images, axes), _values(model, images.roll(1, 0), axes)
    return {
        name
        for name, axis in axes.items()
        if name in values and name in rolled and _near(values[name].roll(1, axis), rolled[name])
    }


def _near(value: Tensor, other: Tensor) -> bool:
    size = float(value.abs().nan_to_num(0, 0, 0).max())
    return value.shape == other.shape and torch.allclose(value, other, _NEAR, _NEAR * size, equal_nan=True)


def _shapes(model: Model, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Of the first output of every call."""
    captures = Captures(model.module, (images.shape[2], images.shape[3]), record_all=True)
    Forward(model.logits, images, captures=captures, open_views=True)
    shapes: dict[str, tuple[int, ...]] = {}
    for call in captures.calls:
        shapes.setdefault(call.name, call.shape)
    return shapes


def _growing(two: tuple[int, ...], three: tuple[int, ...]) -> int | None:
    if len(two) != len(three):
        return None
    axes = [axis for axis, (size, more) in enumerate(zip(two, three, strict=True)) if size != more]
    return axes[0] if len(axes) == 1 and 3 * two[axes[0]] == 2 * three[axes[0]] else None


def _laid_out(model: Model, images: Tensor, axes: Mapping[str, int]) -> dict[str, ImageAxis]:
    """Of calls with several places for each of two images: an image is changed, and its places are those that move."""
    values = _values(model, images, axes)
    other = 0.5 * images.flip(2) + 0.1
    moved = [
        {name: _moved(value, values[name], axes[name]) for name, value in _values(model, changed, axes).items()}
        for changed in (torch.stack([other[0], images[1]]), torch.stack([images[0], other[1]]))
    ]
    found = {}
    for name, axis in axes.items():
        for strided in (False, True):
            if not any(_places(by[name], 1 - row, strided).any() for row, by in enumerate(moved)):
                found[name] = ImageAxis(axis, strided)
                break
    return found


def _values(model: Model, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    size = (images.shape[2], images.shape[3])
    captures = Captures(model.module, size, activations={name: name for name in names})
    Forward(model.logits, images, captures=captures, open_views=True)
    return {name: call.value for name, call in captures.activations.items() if call.value is not None}


def _moved(value: Tensor, other: Tensor, axis: int) -> Tensor:
    """Bool [places]."""
    changed = (value != other) & ~(value.isnan() & other.isnan())
    return changed.movedim(axis, 0).flatten(1).any(1)


def _places(moved: Tensor, row: int, strided: bool) -> Tensor:
    """Of image ``row`` of two."""
    by_image = ImageAxis(0, strided).images_first(moved, 2)
    assert by_image is not None
    return by_image[row]
