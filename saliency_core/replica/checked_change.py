"""Changes of a model that are kept only if its logits stay what they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from saliency_core.model.classifier import Model
from saliency_core.replica.model_copies import copied


def change_if_equal(model: Model, probe: Tensor, change: Callable[[Model], object]) -> Model:
    """Returns the model with ``change`` if the logits of ``probe`` [1, C, H, W] stay equal, and else the model
    unchanged.

    ``change`` works in place, and returns something true if it changed the model. A model may read the weights of its
    parts by itself, or need parts of a certain type, so that a change breaks it.
    """
    if isinstance(model.module, torch.jit.ScriptModule):
        return model
    plain = replace(model, module=copied(model.module))
    # Not in half precision, in which any change shows.
    with torch.no_grad(), torch.autocast(probe.device.type, enabled=False):
        before = model.logits(probe.clone())
        try:
            if not change(model):
                return model
            after = model.logits(probe.clone())
        except Exception:  # noqa: BLE001 - the unchanged model just ran, so any error comes from the change
            return plain
    near = 1e-9 if before.dtype == torch.float64 else 1e-3
    largest = float(before[before.isfinite()].abs().max()) if before.isfinite().any() else 0.0  # a class may be masked
    return model if torch.allclose(before, after, rtol=near, atol=near * largest) else plain
