"""Notes for the user of an Explainer: warnings about maps that are computed, but may not be what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from saliency_core.autograd.forward import BackwardResult
from saliency_core.explanation import Explanation
from saliency_core.methods.registry import Method
from saliency_core.methods.relu_rules import Rule
from saliency_core.targets.class_targets import Target

INCOMPLETE = 0.05  # of the sum of the parts' sizes; float32 leaves 1e-6, half precision within 1e-2


def no_relu_note(rule: Rule) -> str:
    """Returns the note that the rule changes nothing in a model without ReLUs."""
    return f"the model has no ReLU, so {type(rule).__name__.lower()} is the plain gradient."


def unreached_layer_notes(target: Target, result: BackwardResult, layers: Mapping[str, str]) -> Iterator[str]:
    """Yields a note for each layer that the target's score does not depend on. ``layers``: the call that each is."""
    for name, layer in result.activations.items():
        if not layer.reached:
            yield (
                f"target {target.spec!r} does not depend on layer {layers[name]!r}, so the CAM of that "
                "layer is zero everywhere: name one in front of what the target reads with layer=…."
            )


def incompleteness_note(explanations: Iterable[Explanation], methods: Sequence[Method]) -> str | None:
    """Returns a note if FullGrad's parts do not add up to a score, or else None. Waits for the device."""
    complete = [
        method.slug
        for method in methods
        if all(signal.readout.reads_bias_terms and not signal.rule.hooks_relus for signal in method.signals)
    ]
    residuals = [
        explanation.residuals[slug]
        for explanation in explanations
        for slug in complete
        if slug in explanation.residuals
    ]
    if not residuals or not bool((torch.stack(residuals) > INCOMPLETE).any()):
        return None
    return (
        "what FullGrad's maps are made of does not add up to the score (it is off by up to more than "
        f"{INCOMPLETE:.0%}): the target is a loss, which is not linear in the scores, or a bias is not recorded, "
        "as in other threads and vmap, or the model defines its own gradient. The column `residual` holds the "
        "difference of each map."
    )
