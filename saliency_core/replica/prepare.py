"""Makes the replica: the frozen copy of a model that the Explainer runs, which computes the same, faster."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saliency_core.autograd.spatial_axes import ImageAxis
from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import Model
from saliency_core.model.heads import Head, settle_head
from saliency_core.replica.batch_norm_folding import fold_batch_norms
from saliency_core.replica.checked_change import change_if_equal
from saliency_core.replica.cpu import optimise_for_cpu
from saliency_core.replica.image_axes import find_image_axes, refuse_mixed_images
from saliency_core.replica.last_spatial_layer import AUTO, find_layer
from saliency_core.replica.model_copies import Borrowed, copy_model


@dataclass(frozen=True)
class Replica:
    """A ``model`` that runs in place of the user's.

    ``layers``: the module or call that each requested layer is. ``auto_layer``: the call that ``auto`` among them is,
    and
    the module that makes it. ``notes``: messages for the user. ``head``: how scores become probabilities. ``copied``:
    whether it is a copy, and not the user's module. ``image_axes`` of its calls, if bias terms are read.
    """

    model: Model
    layers: Mapping[str, str]
    notes: tuple[str, ...]
    source: tuple[object, ...]
    auto_layer: str = ""
    head: Head = field(default_factory=Head)
    copied: bool = True
    image_axes: Mapping[str, ImageAxis] = field(default_factory=dict)

    def is_of(self, model: Model, images: Tensor) -> bool:
        """Returns whether the replica was made of the model with its current weights, for images like these."""
        return self.source == _source(model, images)


def make_replica(
    model: Model,
    images: Tensor,
    *,
    dtype: torch.dtype,
    layers: Collection[str] = (),
    target_layers: Collection[str] = (),
    fold_biased: bool = True,
    channels_last: bool = False,
) -> Replica:
    """Makes a replica of ``model`` for images like ``images`` [n, C, H, W], on their device.

    ``layers`` and ``target_layers``: layers that readouts and targets read, which are not changed; ``auto`` among the
    former is resolved. ``fold_biased``: also fold batch norms into convolutions with a bias; False if bias terms are
    read.
    """
    # Noise, not the images, so that all replicas of a run get the same form.
    # The dtype and the device are explicit, because the process may have other defaults.
    generator = torch.Generator("cpu").manual_seed(0)
    probe = torch.randn(1, *images.shape[1:], generator=generator, dtype=torch.float32, device="cpu")
    probe = probe.to(images.device, dtype)
    copy = copy_model(model, probe, dtype=dtype)
    borrowed = isinstance(copy.model.module, Borrowed)
    running, head, notes, _ = settle_head(copy.model, probe)
    module = running.module
    if borrowed:
        notes = (*notes, f"the model runs as it is, as it cannot be copied: {copy.trouble}.")
    watched = bool(layers or target_layers or not fold_biased)
    scripted = next((name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)), None)
    if watched and scripted is not None:
        part = f"part {scripted!r} of " if scripted else ""
        raise InvalidRequestError(
            f"{part}{model.spec} is TorchScript, whose layers cannot be watched: FullGrad, CAMs and layer "
            "targets need the model itself (python:package.module:factory). Gradient methods and rules work."
        )
    if not borrowed:  # the changes below are in place
        running = _faster(
            running, probe, dtype, fold_biased, keep={*layers, *target_layers}, channels_last=channels_last
        )
    locations = {name: name for name in layers}
    auto_layer = ""
    if AUTO in locations:
        capture = find_layer(running, probe)
        locations[AUTO] = capture.name
        auto_layer = capture.location
    refuse_mixed_images(running, probe, {*locations.values(), *target_layers})
    axes = {} if fold_biased else find_image_axes(running, probe)
    return Replica(running, locations, notes, _source(model, images), auto_layer, head, not borrowed, axes)


def _faster(
    model: Model, probe: Tensor, dtype: torch.dtype, fold_biased: bool, *, keep: Collection[str], channels_last: bool
) -> Model:
    """Gives ``model`` forms that compute the same in less time, if its logits stay what they were."""
    model = change_if_equal(
        model, probe, lambda model: fold_batch_norms(model.module, probe, biased=fold_biased, keep=keep)
    )
    if probe.device.type == "cpu" and dtype != torch.float64:
        model = optimise_for_cpu(model, probe, channels_last=channels_last)
    if channels_last:
        model.module.to(memory_format=torch.channels_last)
    return model


def _source(model: Model, images: Tensor) -> tuple[object, ...]:
    """Returns a key that changes if a weight is edited or replaced (but not through ``.data``, which torch does not
    record)."""
    values = [*model.module.parameters(), *model.module.buffers()]
    return images.shape[1:], images.device, *((_location(value), _version(value)) for value in values)


def _location(value: Tensor) -> int:
    return value.data_ptr() if value.layout == torch.strided else id(value)  # a sparse tensor has no storage


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version  # a tensor made in inference mode has no version
