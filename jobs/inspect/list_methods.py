"""``saliency methods``: what can be asked for."""

from __future__ import annotations

from rich.console import Console

from jobs.util.console import print_text
from jobs.util.exit_codes import DONE
from saliency_core.methods.reductions import REDUCTIONS
from saliency_core.methods.registry import REGISTRY, parse_method
from saliency_core.targets.target_parsing import TARGETS


def print_methods(console: Console) -> int:
    """Prints the methods with their arguments, default reduction, cost and source; the targets; the reductions."""
    lines = ["methods, as NAME or NAME(argument=value, …); any takes reduction=… too:"]
    for name, entry in REGISTRY.items():
        method = parse_method(name)
        arguments = ", ".join(f"{key}={value}" for key, value in entry.arguments.items())
        passes = "1 pass" if method.passes == 1 else f"{method.passes} passes"
        lines.append(f"  {name}({arguments})" if arguments else f"  {name}")
        lines.append(f"      {entry.about}; {passes} per image, reduction {method.reduction.name}. {entry.source}")
    lines += ["methods with the same sampler share their forwards, those with the same rule too their backwards.", ""]
    lines += ["targets, each one more backward:", *(f"  {name}\n      {about}" for name, about in TARGETS.items()), ""]
    lines += ["reductions, from channels to one map:", "  " + ", ".join(REDUCTIONS)]
    print_text(console, "\n".join(lines))
    return DONE
