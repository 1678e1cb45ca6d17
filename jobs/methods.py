"""``saliency methods``: what can be asked for."""

from __future__ import annotations

from rich.console import Console

from jobs.console import say
from jobs.exits import DONE
from saliency_core.methods import REGISTRY
from saliency_core.reduce import REDUCTIONS

TARGETS = {
    "predicted": "the arg-max class, from the same forward pass",
    "label": "the class of the manifest; rows without one become partial",
    "class:K": "one class for every image, by number or name",
}


def methods(console: Console) -> int:
    """Prints methods with their definition and default reduction, targets, and reductions."""
    lines = ["methods (any takes reduction=…):"]
    for name, (_, sampler, readout) in REGISTRY.items():
        about = (type(readout).__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name:<18}{about} Passes per image: {sampler.passes}; reduction {readout.reduction}.")
    lines += ["targets:", *(f"  {name:<18}{about}" for name, about in TARGETS.items())]
    lines += ["reductions:", "  " + ", ".join(REDUCTIONS)]
    say(console, "\n".join(lines))
    return DONE
