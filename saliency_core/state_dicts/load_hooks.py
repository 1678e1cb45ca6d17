"""Loads a state dict with the module's own hooks, which may update names of an older form."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

from torch import nn

from saliency_core.state_dicts.state_fitting import Fit


def load_by_own_hooks(module: nn.Module, fits: Iterable[Fit]) -> Fit | None:
    """Loads the first of ``fits`` that torch's strict load accepts completely into ``module``, and returns it.

    Returns None if there is no such fit. Names alone do not show whether a module can load a state dict: weight_norm,
    torchvision's vision transformer and a module's own hooks rename tensors during loading. Each fit is tried on a copy
    of ``module``.
    """
    for fit in fits:
        # For a scalar, torch would load the first number of a vector; for tied tensors, it would load the last one.
        unsound = any(not own and file != (1,) for file, own in fit.shapes.values())
        if fit.ambiguous or fit.contradicted or unsound or not fit.state:
            continue
        try:
            if _loads_completely(deepcopy(module), fit):
                module.load_state_dict(fit.state)
                return fit
        except Exception:  # noqa: BLE001, S112 copying the module or its hooks may raise anything: this fit fails
            continue
    return None


def _loads_completely(module: nn.Module, fit: Fit) -> bool:
    """Whether a strict load writes every tensor of ``module``; a hook may make it skip missing tensors."""
    before = {name: (value, value._version) for name, value in module.state_dict(keep_vars=True).items()}
    module.load_state_dict(fit.state)
    after = module.state_dict(keep_vars=True)
    return all(
        name not in after or after[name] is not value or value._version > version
        for name, (value, version) in before.items()
    )
