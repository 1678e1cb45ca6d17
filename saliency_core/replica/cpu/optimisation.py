"""All changes that make a model faster on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from saliency_core.model.classifier import Model
from saliency_core.replica.checked_change import change_if_equal
from saliency_core.replica.cpu.channels_last_stem import use_channels_last_stem
from saliency_core.replica.cpu.space_to_depth import use_space_to_depth


def optimise_for_cpu(model: Model, probe: Tensor, *, channels_last: bool = False) -> Model:
    """Gives the stem of ``model``, and its other strided convolutions of few channels, forms that are faster on a CPU.

    The logits of ``probe`` [1, C, H, W] must stay what they were, or the model is returned unchanged. Not for float64,
    which is for exact maps: there torch's own loops, not oneDNN's, sum equal windows to unequal values at the ends of
    their blocks. In another form these ends lie elsewhere, so a max pool would choose another one of equal values.
    """
    if not channels_last:
        pair = torch.cat([probe, 2 * probe])  # a model may do something else with one image
        model = change_if_equal(model, probe, lambda model: use_channels_last_stem(model, pair))
    return change_if_equal(model, probe, lambda model: use_space_to_depth(model.module))
