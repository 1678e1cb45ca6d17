"""Implements ``saliency methods``, which lists methods, targets and reductions."""

from __future__ import annotations

from rich.console import Console

from jobs.util.console import print_text
from jobs.util.exit_codes import DONE
from saliency_core.methods.reductions import REDUCTIONS
from saliency_core.methods.registry import REGISTRY, parse_method
from saliency_core.targets.target_parsing import TARGETS


def print_methods(console: Console) -> int:
    """Prints methods (arguments, default reduction, cost, source), targets and reductions."""
    lines = ["methods, as NAME or NAME(argument=value, …); each also takes reduction=…:"]
    for name, entry in REGISTRY.items():
        method = parse_method(name)
        arguments = ", ".join(f"{key}={value}" for key, value in entry.arguments.items())
        passes = "1 pass" if method.passes == 1 else f"{method.passes} passes"
        lines.append(f"  {name}({arguments})" if arguments else f"  {name}")
        lines.append(f"      {entry.about}; {passes} per image, reduction {method.reduction.name}. {entry.source}")
    lines += [
        "methods with the same sampler share forward passes; with the same rule, they also share backward passes.",
        "",
    ]
    lines += [
        "targets; each adds one backward pass:",
        *(f"  {name}\n      {about}" for name, about in TARGETS.items()),
        "",
    ]
    lines += ["reductions of channels to one map:", "  " + ", ".join(REDUCTIONS)]
    print_text(console, "\n".join(lines))
    return DONE
