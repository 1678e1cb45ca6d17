"""Finds the axis of each activation along which the images of a batch lie, by running the model.

Sizes alone are not enough: there may be as many tokens, channels or heads as images, and windows may lie between the
images along one axis. So the forward runs with two images and with three: the axis is the one that grows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from saliency_core.autograd.capture import Captures
from saliency_core.autograd.forward import Forward
from saliency_core.autograd.spatial_axes import ImageAxis
from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import Model

_NEAR = 1e-3  # relative to the largest value; the same kernels run on the same images in another order


def find_image_axes(model: Model, image: Tensor) -> dict[str, ImageAxis]:
    """Returns the image axis of each call, by its name, in a batch of images like ``image`` [1, C, H, W].

    A call without an entry does not hold a batch: the model loops over the images, or selects them by their values.
    """
    images = torch.cat([image, image.flip(3), 2 * image])
    two, three = _shapes(model, images[:2]), _shapes(model, images)
    axes = {name: _growing_axis(shape, three.get(name, ())) for name, shape in two.items()}
    single = {name: axis for name, axis in axes.items() if axis is not None and two[name][axis] == 2}
    several = {name: axis for name, axis in axes.items() if axis is not None and name not in single}
    ordered = _calls_in_order(model, torch.cat([image, _different_image(image)]), single)
    axes_of_images = {name: ImageAxis(axis) for name, axis in single.items() if name in ordered}
    return axes_of_images | (_axes_with_entries(model, images[:2], several) if several else {})


def refuse_mixed_images(model: Model, image: Tensor, layers: Collection[str]) -> None:
    """Raises InvalidRequestError unless the rows of the outputs of ``layers`` are the images of the batch, in order."""
    if not layers:
        return
    images = torch.cat([image, _different_image(image), -image])
    rows = {name: 0 for name, value in _values(model, images, layers).items() if value.dim() and len(value) == 3}
    mixed = rows.keys() - _calls_in_order(model, images, rows)
    if mixed:
        raise InvalidRequestError(
            f"layer {min(mixed)!r} holds the images of a batch in another order than they came in (does the model sort "
            "or choose among them?), so its output cannot be assigned to images: choose another "
            "layer or method, or let the model keep their order."
        )


def _different_image(image: Tensor) -> Tensor:
    return 0.5 * image.flip(2) + 0.1


def _calls_in_order(model: Model, images: Tensor, axes: Mapping[str, int]) -> set[str]:
    """Returns the calls whose entries along these axes move as the images do. If a model sorts images, they do not."""
    if not axes:
        return set()
    values, rolled = _values(model, images, axes), _values(model, images.roll(1, 0), axes)
    return {
        name
        for name, axis in axes.items()
        if name in values and name in rolled and _nearly_equal(values[name].roll(1, axis), rolled[name])
    }


def _nearly_equal(value: Tensor, other: Tensor) -> bool:
    size = float(value.abs().nan_to_num(0, 0, 0).max())
    return value.shape == other.shape and torch.allclose(value, other, _NEAR, _NEAR * size, equal_nan=True)


def _shapes(model: Model, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Returns the shape of the first output of every call."""
    captures = Captures(model.module, (images.shape[2], images.shape[3]), record_all=True)
    Forward(model.logits, images, captures=captures, open_views=True)
    shapes: dict[str, tuple[int, ...]] = {}
    for call in captures.calls:
        shapes.setdefault(call.name, call.shape)
    return shapes


def _growing_axis(two: tuple[int, ...], three: tuple[int, ...]) -> int | None:
    if len(two) != len(three):
        return None
    axes = [axis for axis, (size, more) in enumerate(zip(two, three, strict=True)) if size != more]
    return axes[0] if len(axes) == 1 and 3 * two[axes[0]] == 2 * three[axes[0]] else None


def _axes_with_entries(model: Model, images: Tensor, axes: Mapping[str, int]) -> dict[str, ImageAxis]:
    """Returns the axes of calls with several entries for each of two images.

    An image is changed: its entries are those that change.
    """
    values = _values(model, images, axes)
    other = 0.5 * images.flip(2) + 0.1
    changes = [
        {
            name: _changed_entries(value, values[name], axes[name])
            for name, value in _values(model, changed, axes).items()
        }
        for changed in (torch.stack([other[0], images[1]]), torch.stack([images[0], other[1]]))
    ]
    image_axes = {}
    for name, axis in axes.items():
        for strided in (False, True):
            if not any(_entries_of(change[name], 1 - row, strided).any() for row, change in enumerate(changes)):
                image_axes[name] = ImageAxis(axis, strided)
                break
    return image_axes


def _values(model: Model, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    size = (images.shape[2], images.shape[3])
    captures = Captures(model.module, size, activations={name: name for name in names})
    Forward(model.logits, images, captures=captures, open_views=True)
    return {name: call.value for name, call in captures.activations.items() if call.value is not None}


def _changed_entries(value: Tensor, other: Tensor, axis: int) -> Tensor:
    """Returns which entries along ``axis`` differ, bool [entries]."""
    changed = (value != other) & ~(value.isnan() & other.isnan())
    return changed.movedim(axis, 0).flatten(1).any(1)


def _entries_of(changed: Tensor, row: int, strided: bool) -> Tensor:
    """Returns the entries of image ``row`` of two."""
    by_image = ImageAxis(0, strided).images_first(changed, 2)
    assert by_image is not None
    return by_image[row]
