"""Parses target specs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from saliency_core.errors import InvalidRequestError
from saliency_core.model.import_path import import_attribute
from saliency_core.spec_syntax import checked_slug, split_name
from saliency_core.targets.class_targets import (
    MAX_DIGITS,
    FixedClass,
    LabelClass,
    PredictedClass,
    RankedClass,
    Target,
    parse_class,
)
from saliency_core.targets.score_targets import Contrast, LabelContrast, LayerUnit, Loss, WeightedScores

TARGETS = {
    "predicted": "the arg-max class, from the same forward pass",
    "label": "the class of the manifest; rows without one become partial",
    "class:K": "one class for every image, by number or name",
    "top:N": "the N highest classes, as targets top1, top2, … that share one forward",
    "contrast": "predicted minus runner-up; contrast:label, predicted minus label",
    "NAME=weighted:{K: W, …}": "a weighted sum of classes' scores",
    "NAME=loss:package.module:function": "any (logits, labels) → one value per image",
    "layer:MODULE[INDEX]": "the mean activation of a channel or unit of any layer, INDEX of its axes after the images' "
    "(channels first in a CNN, tokens first in a ViT's [n, tokens, C]); give NAME=… if that is not a valid name",
}

MAX_TOP = 1000
MAX_WEIGHT = 1e30  # a score with it would leave float32


def parse_targets(specs: Sequence[str], *, class_names: Sequence[str] | None = None) -> list[Target]:
    """Returns the targets of ``specs`` in order; ``top:3`` gives three.

    Raises InvalidRequestError if a spec is invalid.
    """
    return [target for spec in specs for target in _parse(spec, class_names)]


def _parse(spec: str, class_names: Sequence[str] | None) -> list[Target]:
    name, body = split_name(spec)
    head, _, rest = body.partition(":")
    if body == "predicted":
        return [PredictedClass(spec=body, slug=name or "predicted")]
    if body == "label":
        return [LabelClass(spec=body, slug=name or "label")]
    if head == "class" and rest:
        number = parse_class(rest, class_names)
        # Always the number: a class name may contain any character, and two classes may share one.
        return [FixedClass(number, spec=f"class:{number}", slug=name or checked_slug(f"class_{number}", body))]
    if head == "top" and re.fullmatch("[1-9][0-9]*", rest):
        if len(rest) > 4 or int(rest) > MAX_TOP:
            raise InvalidRequestError(
                f"target {spec[:60]!r} would be more than {MAX_TOP} targets, each with its own arrays: give fewer."
            )
        stem = name or "top"
        return [
            RankedClass(place, spec=f"top:{place} of {rest}", slug=checked_slug(f"{stem}{place}", spec))
            for place in range(1, int(rest) + 1)
        ]
    if body == "contrast":
        return [Contrast(spec=body, slug=name or "contrast")]
    if body == "contrast:label":
        return [LabelContrast(spec=body, slug=name or "contrast_label")]
    if head == "weighted" and rest:
        weights = _parse_weights(rest, spec, class_names)
        canonical = "weighted:{" + ", ".join(f"{number}: {weight}" for number, weight in sorted(weights.items())) + "}"
        return [WeightedScores(weights, spec=canonical, slug=_require_name(name, spec))]
    if head == "loss" and rest:
        return [Loss(_import_loss(rest, spec), spec=body, slug=_require_name(name, spec))]
    if head == "layer" and rest:
        return [_parse_layer(rest, body, name)]
    raise InvalidRequestError(f"target {spec!r} does not exist: choose {', '.join(TARGETS)}.")


def _require_name(name: str | None, spec: str) -> str:
    if name is None:
        raise InvalidRequestError(f"target {spec!r} needs a name, for its arrays and columns: NAME={spec}.")
    return name


def _parse_weights(text: str, spec: str, class_names: Sequence[str] | None) -> dict[int, float]:
    import yaml  # only needed for this target

    try:
        entries = yaml.safe_load(text)
        weights = {parse_class(str(key), class_names): float(value) for key, value in entries.items()}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        raise InvalidRequestError(
            f"target {spec!r}: write the weights as {{CLASS: WEIGHT, …}}, as in {{207: 1.0, 208: -0.5}}."
        ) from (error)
    if not weights or len(weights) != len(entries) or not all(abs(weight) <= MAX_WEIGHT for weight in weights.values()):
        raise InvalidRequestError(
            f"target {spec!r}: its weights are empty, not finite, beyond ±{MAX_WEIGHT:g}, or name a class twice: give "
            "one finite weight for each class."
        )
    return weights


def _import_loss(path: str, spec: str) -> Callable[..., Any]:
    try:
        function = import_attribute(path)
    except (ImportError, ValueError) as error:
        raise InvalidRequestError(
            f"target {spec!r} cannot be imported ({error}): write loss:package.module:function."
        ) from error
    if not callable(function):
        raise InvalidRequestError(
            f"target {spec!r}: {path!r} is a {type(function).__name__}, which cannot be called: name a function."
        )
    return function


def _parse_layer(rest: str, body: str, name: str | None) -> Target:
    number = rf"[0-9]{{1,{MAX_DIGITS}}}"
    match = re.fullmatch(rf"(?P<layer>[^\[\]]+)(?:\[(?P<index>{number}(?:\s*,\s*{number})*)\])?", rest)
    if match is None:
        raise InvalidRequestError(
            f"target {body!r}: write layer:MODULE, layer:MODULE[CHANNEL] or layer:MODULE[CHANNEL,Y,X]."
        )
    index = tuple(int(part) for part in (match["index"] or "").split(",") if part)
    slug = name or checked_slug("_".join(["layer", match["layer"].lower(), *map(str, index)]), body)
    return LayerUnit(match["layer"], index, spec=body, slug=slug)
