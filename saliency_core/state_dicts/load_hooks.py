"""A state dict loaded by the module's own hooks, which may bring names of an older form up to date."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

from torch import nn

from saliency_core.state_dicts.state_fitting import Fit


def load_by_own_hooks(module: nn.Module, fits: Iterable[Fit]) -> Fit | None:
    """The first of ``fits`` that torch's strict load takes whole, now loaded into ``module``; None if none is.

    Names alone do not tell whether the module can load a state dict: weight_norm, torchvision's vision transformer and
    a module's own hooks rename tensors while they load. Each fit is tried on a copy of ``module``.
    """
    for fit in fits:
        # torch takes the first number of a row for a single one, and the last of tensors that are one in the module.
        unsound = any(not own and file != (1,) for file, own in fit.shapes.values())
        if fit.ambiguous or fit.contradicted or unsound or not fit.state:
            continue
        try:
            if _loads_completely(deepcopy(module), fit):
                module.load_state_dict(fit.state)
                return fit
        except Exception:  # noqa: BLE001, S112 whatever copying the module, or its hooks, raise: this fit is none
            continue
    return None


def _loads_completely(module: nn.Module, fit: Fit) -> bool:
    """Whether a strict load writes every tensor of ``module``; a hook may let it pass over those that it misses."""
    before = {name: (value, value._version) for name, value in module.state_dict(keep_vars=True).items()}
    module.load_state_dict(fit.state)
    after = module.state_dict(keep_vars=True)
    return all(
        name not in after or after[name] is not value or value._version > version
        for name, (value, version) in before.items()
    )
