"""The outputs of one forward that targets read: logits, and layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from saliency_core.autograd.output_calls import SOFTMAX


@dataclass(frozen=True)
class Outputs:
    """``logits`` [n, classes] before ``head``, and by name the ``layers`` [n, …] that targets read."""

    logits: Tensor
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    head: str = SOFTMAX
