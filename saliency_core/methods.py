"""Methods: names → rule × sampler × readout, then a reduction. The registry."""

from __future__ import annotations

from dataclasses import dataclass

from saliency_core.errors import Refused
from saliency_core.readouts import Gradient, InputXGradient, Readout
from saliency_core.reduce import Reduction, parse_reduction
from saliency_core.rules import Plain, Rule
from saliency_core.samplers import Once, Sampler
from saliency_core.specs import call_slug, call_spec, parse_call, split_name


@dataclass(frozen=True)
class Method:
    """One map: which gradient, taken where, read how, reduced how."""

    spec: str
    slug: str
    rule: Rule
    sampler: Sampler
    readout: Readout
    reduction: Reduction


REGISTRY: dict[str, tuple[Rule, Sampler, Readout]] = {
    "gradient": (Plain(), Once(), Gradient()),
    "input_x_gradient": (Plain(), Once(), InputXGradient()),
}


def parse_method(spec: str) -> Method:
    """``gradient``, ``gradient(reduction=l2)``, or ``name=spec``; Refused where there is no such method."""
    name, body = split_name(spec)
    head, arguments = parse_call(body)
    if head not in REGISTRY:
        raise Refused(f"method {spec!r} does not exist: choose one of {', '.join(REGISTRY)}.")
    rule, sampler, readout = REGISTRY[head]
    unknown = sorted(set(arguments) - {"reduction"})
    if unknown:
        raise Refused(f"method {spec!r}: {head} has no argument {', '.join(unknown)}; it takes reduction.")
    reduction = parse_reduction(str(arguments.get("reduction", readout.reduction)))
    # Arguments that equal the defaults say nothing: both spellings are the same array.
    told = {key: value for key, value in arguments.items() if (key, value) != ("reduction", readout.reduction)}
    return Method(call_spec(head, told), name or call_slug(head, told), rule, sampler, readout, reduction)
