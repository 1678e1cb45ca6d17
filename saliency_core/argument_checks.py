"""Checks and converts the arguments of the public API: models, specs, devices, images, labels and rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import Model
from saliency_core.targets.class_targets import NO_LABEL

_PRINTED_MODULE = re.compile(r"[=:]\s*[A-Z]\w*\(")  # as in "gradcam(layer=Conv2d(3, 8, …))"

Values = Tensor | np.ndarray | Sequence[Any]


def as_model(model: object) -> Model:
    """Returns a ``Model``. A bare module becomes one without preprocessing and class names.

    Raises InvalidRequestError if ``model`` is neither a ``Model`` nor a ``torch.nn.Module``.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, nn.Module):
        return Model(type(model).__name__, model)
    advice = " Call it, and pass what it returns." if callable(model) else ""
    raise InvalidRequestError(f"model is a {type(model).__name__}: expected a torch.nn.Module or a Model.{advice}")


def as_method_specs(methods: object) -> list[str]:
    """Returns the specs of methods. A single string is one spec. Raises InvalidRequestError if one is not a string."""
    return [_text(spec, "methods", "smoothgrad(n=50)") for spec in _several(methods, "methods")]


def as_target_specs(targets: object, module: nn.Module) -> list[str]:
    """Returns the specs of targets. An integer is a class, and a module of the model is that layer.

    Raises InvalidRequestError if a target is something else, or a module outside ``module``.
    """
    return [_target(target, module) for target in _several(targets, "targets")]


def as_device(device: object) -> torch.device:
    """Returns the device. Raises InvalidRequestError if it does not exist, which torch checks only with the first
    tensor."""
    try:
        chosen = torch.device(device)  # type: ignore[call-overload]
    except (RuntimeError, TypeError) as error:
        raise InvalidRequestError(f"device {device!r} does not exist: {str(error).splitlines()[0]}") from error
    assert isinstance(chosen, torch.device)
    if chosen.type == "meta":
        raise InvalidRequestError(
            "device 'meta' holds no values, so there is nothing to explain there. Take device='cpu'."
        )
    if chosen.type == "cpu":
        return chosen
    count = torch.cuda.device_count() if chosen.type == "cuda" else _count_devices(chosen)
    if (chosen.index or 0) >= count:
        have = f"only {count} of them" if count else "none"
        raise InvalidRequestError(f"device {str(device)!r}: torch sees {have} on this machine. Take device='cpu'.")
    return chosen


def _count_devices(device: torch.device) -> int:
    """Returns how many devices of a kind other than CUDA exist, as far as is known from this one."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return 0
    return (device.index or 0) + 1


def as_images(images: object, *, channels: int | None) -> Tensor:
    """Returns a batch of preprocessed images, floating point [n, C, H, W], n ≥ 1.

    ``images``: a tensor or an array, or a sequence of tensors or arrays [C, H, W] of one size. ``channels``: the number
    that the model takes, or None if it is unknown. Raises InvalidRequestError if the images are not such a batch.
    """
    batch = _stacked(images)
    shape = list(batch.shape)
    if batch.dim() == 3:
        raise InvalidRequestError(
            f"images have the shape {shape}: expected a batch [n, C, H, W]. For one image, pass images[None]."
        )
    if batch.dim() != 4:
        raise InvalidRequestError(f"images have the shape {shape}: expected a batch [n, C, H, W].")
    if batch.layout != torch.strided or batch.is_meta:
        what = "on device 'meta', without values" if batch.is_meta else f"{batch.layout}".removeprefix("torch.")
        raise InvalidRequestError(f"images are {what}: expected a dense tensor with values.")
    if not batch.is_floating_point():
        raise InvalidRequestError(
            f"images are {_kind(batch)}: expected floating point numbers, prepared as for the model itself, so "
            "scaled to 0 … 1, normalised, [n, C, H, W]. A model from load_model prepares uint8 pixels "
            "[n, H, W, C] with model.preprocessing.normalise(pixels, torch.float32)."
        )
    if not len(batch):
        raise InvalidRequestError("the batch holds no images: at least one is needed.")
    if channels is not None and batch.shape[1] != channels:
        last = " They seem to come channels last: images.permute(0, 3, 1, 2)." if batch.shape[3] == channels else ""
        raise InvalidRequestError(
            f"images have the shape {shape}, so {batch.shape[1]} channels, and the model takes {channels}.{last}"
        )
    return batch


def as_labels(labels: object, n: int) -> Tensor:
    """Returns class numbers int64 [n], −1 for an image without a label; all −1 if ``labels`` is None.

    They stay on their device. Raises InvalidRequestError if they are not ``n`` integers.
    """
    if labels is None:
        return torch.full((n,), NO_LABEL, dtype=torch.int64, device="cpu")
    if isinstance(labels, list | tuple) or (isinstance(labels, np.ndarray) and labels.dtype == object):
        labels = [NO_LABEL if label is None else label for label in labels]
    return _integers(labels, n, "labels", "class numbers, −1 for none")


def as_rows(rows: object, n: int) -> list[int]:
    """Returns the images' permanent numbers, by default 0 to n − 1. Raises InvalidRequestError unless ``n``
    integers."""
    return list(range(n)) if rows is None else _integers(rows, n, "rows", "the images' permanent numbers").tolist()


def _several(values: object, name: str) -> list[object]:
    if isinstance(values, str | bytes | int | nn.Module) or values is None or callable(values):
        values = [values]
    if isinstance(values, Tensor):
        values = values.tolist()
        values = values if isinstance(values, list) else [values]
    try:
        return list(values)  # type: ignore[call-overload,no-any-return]
    except TypeError:
        raise InvalidRequestError(f"{name} is a {type(values).__name__}: expected a sequence of specs.") from None


def _text(spec: object, name: str, example: str) -> str:
    if not isinstance(spec, str):
        raise InvalidRequestError(f"{name} holds a {type(spec).__name__}: expected a spec, a text as {example!r}.")
    if _PRINTED_MODULE.search(spec):
        raise InvalidRequestError(
            f"{name} holds {spec[:60]!r}, which has the printed form of a module in it: write the module's name, as "
            "model.named_modules() has it."
        )
    return spec


def _target(target: object, module: nn.Module) -> str:
    if isinstance(target, int | np.integer) and not isinstance(target, bool):
        if target < 0:
            raise InvalidRequestError(f"target {target}: classes are numbered from 0.")
        return f"class:{target}"
    if isinstance(target, nn.Module):
        name = next((name for name, part in module.named_modules() if part is target and name), None)
        if name is None:
            raise InvalidRequestError(f"targets holds a {type(target).__name__} that is not a layer of the model.")
        return f"layer:{name}"
    return _text(target, "targets", "class:3")


def _stacked(images: object) -> Tensor:
    if isinstance(images, list | tuple) and images and all(isinstance(image, Tensor | np.ndarray) for image in images):
        parts = [torch.as_tensor(image) for image in images]
        if len({part.shape for part in parts}) > 1:
            raise InvalidRequestError("images are of different shapes: expected one batch [n, C, H, W].")
        return torch.stack(parts)
    if isinstance(images, np.ndarray):
        return _from_array(images, "images")
    if isinstance(images, Tensor):
        return images
    raise InvalidRequestError(
        f"images is a {type(images).__name__}: expected a tensor or an array [n, C, H, W], preprocessed."
    )


def _integers(values: object, n: int, name: str, meaning: str) -> Tensor:
    try:
        numbers = values if isinstance(values, Tensor) else _from_array(np.asarray(values), name)
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(f"{name} cannot be read as {meaning}: {error}") from error
    if numbers.dim() == 1 and len(numbers) != n:
        raise InvalidRequestError(f"{n} images came with {len(numbers)} {name}: they must be as many.")
    if numbers.dim() != 1:
        raise InvalidRequestError(
            f"{n} images came with {name} of shape {list(numbers.shape)}: expected [{n}], {meaning}."
        )
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise InvalidRequestError(f"{name} are {_kind(numbers)}: expected integers, {meaning}.")
    return numbers.to(torch.int64)


def _from_array(array: np.ndarray, name: str) -> Tensor:
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise InvalidRequestError(f"{name} are {array.dtype}: expected numbers, of at most 64 bits.")
    # torch rejects negative strides, as of reversed views, and the byte order of other machines.
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _kind(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
