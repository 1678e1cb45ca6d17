"""What one forward gives to targets: logits, and the layers that they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from saliency_core.autograd.output_calls import SOFTMAX


@dataclass(frozen=True)
class Outputs:
    """Of one forward: ``logits`` [n, classes] before ``head``, by name the ``layers`` [n, …] that a target reads."""

    logits: Tensor
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    head: str = SOFTMAX
