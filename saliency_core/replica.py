"""The replica: the model as the Explainer runs it, a frozen copy that computes the same, faster."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from saliency_core.cam import AUTO, find_layer
from saliency_core.folding import fold_batch_norms
from saliency_core.models import Model
from saliency_core.softmax import bypass_softmax


@dataclass(frozen=True)
class Replica:
    """``model`` runs. ``places``: where the activations that were asked for come from, a module or a call by its name;
    ``notes``: what its user should know."""

    model: Model
    places: Mapping[str, str]
    notes: tuple[str, ...]
    source: tuple[object, ...]

    def is_of(self, model: Model, images: Tensor) -> bool:
        """Whether it was made of the model as it is now, for images like these."""
        return self.source == _source(model, images)


def make_replica(
    model: Model,
    images: Tensor,
    *,
    dtype: torch.dtype,
    activations: Collection[str] = (),
    live: Collection[str] = (),
    fold_biased: bool = True,
    channels_last: bool = False,
) -> Replica:
    """Of ``model``, for images like ``images`` [n, C, H, W], on their device.

    ``activations`` and ``live``: layers that somebody will read, which are left as they are; ``auto`` among the former
    is found. ``fold_biased``: fold batch norms also into convolutions with a bias of their own.
    """
    # What is found out must not depend on the images, or replicas of one run would differ: a picture of noise.
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, *images.shape[1:], generator=generator).to(images.device, dtype)
    module = copy_frozen(model.module, device=images.device, dtype=dtype)
    copied = replace(model, module=module)
    notes = bypass_softmax(copied, probe)
    fold_batch_norms(module, probe, biased=fold_biased, keep={*activations, *live})
    if channels_last:
        module.to(memory_format=torch.channels_last)
    places = {name: name for name in activations}
    if AUTO in places:
        found = find_layer(copied, probe)
        places[AUTO] = found.name
    return Replica(copied, places, notes, _source(model, images))


def _source(model: Model, images: Tensor) -> tuple[object, ...]:
    """Changes when a weight is edited or replaced (not through ``.data``, which torch itself does not see)."""
    values = [*model.module.parameters(), *model.module.buffers()]
    return images.shape[1:], images.device, *((value.data_ptr(), value._version) for value in values)


def copy_frozen(module: nn.Module, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy of its own on ``device``, in eval mode, that builds no graph for its weights.

    A TorchScript module is moved, not copied: its graph is fixed anyway.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return module.to(device, dtype)
    with torch.no_grad():
        replica = copy.deepcopy(module).to(device, dtype)
    return replica.requires_grad_(False)
