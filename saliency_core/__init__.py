"""Computes saliency maps of image classifiers with torch, from shared passes. Does not import ``jobs``.

Names are imported on first use (PEP 562), so that a process that only decodes images does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saliency_core.errors import InvalidRequestError, Refused, SaliencyWarning, Told
    from saliency_core.explainer import Explainer
    from saliency_core.explanation import Explanation
    from saliency_core.fullgrad_decomposition import Decomposition, decompose
    from saliency_core.model.classifier import Model
    from saliency_core.model.model_loading import load_model
    from saliency_core.model.preprocessing import Preprocessing
    from saliency_core.probe.model_probe import probe_model

__all__ = [
    "Decomposition",
    "Explainer",
    "Explanation",
    "InvalidRequestError",
    "Model",
    "Preprocessing",
    "Refused",
    "SaliencyWarning",
    "Told",
    "decompose",
    "load_model",
    "probe_model",
]

_HOME = {
    "Decomposition": "fullgrad_decomposition",
    "Explainer": "explainer",
    "Explanation": "explanation",
    "InvalidRequestError": "errors",
    "Model": "model.classifier",
    "Preprocessing": "model.preprocessing",
    "Refused": "errors",
    "SaliencyWarning": "errors",
    "Told": "errors",
    "decompose": "fullgrad_decomposition",
    "load_model": "model.model_loading",
    "probe_model": "probe.model_probe",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'saliency_core' has no attribute {name!r}")
    return getattr(import_module(f"saliency_core.{_HOME[name]}"), name)
