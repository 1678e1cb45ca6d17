"""Detects a model's head: how its scores become probabilities. The scores before a softmax or a sigmoid are explained.

Gradients of probabilities vanish if the model is confident, and a softmax couples all classes. So the calls at the
model's end that squash its scores are bypassed, whether they are modules or functions. A single logit z is the score
of class 1, and −z that of class 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from saliency_core.autograd.eager import eagerly
from saliency_core.autograd.output_calls import LOGIT, SIGMOID, SOFTMAX, Ending, Trace, find_ending
from saliency_core.autograd.torchscript_output import scripted_ending
from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import AUTO, Model, select_output

_TOLERANCE = 1e-2  # relative to the largest; probabilities may be clamped or rounded
_NO_LOGIT = (
    "{spec} gives one value for an image, the result of {name}, which is not a logit: let it return the scores before "
    "that call, or declare them logits with `head` sigmoid."
)
_SCALES = (1, -1, 10, -10, 100, -100)


@dataclass(frozen=True)
class Head:
    """The function that turns scores into probabilities.

    ``kind``: softmax, sigmoid (of each class by itself), or logit (a single one, for two classes). ``squash``: the
    softmax or sigmoid that is bypassed at the model's end; empty if none is. ``legacy``: the scores are the same as in
    stores that were written before heads were recorded.
    """

    kind: str = SOFTMAX
    squash: str = ""
    legacy: bool = True

    def note(self, n_classes: int) -> str:
        """The line that describes the head in the plan of a run."""
        description = {
            SOFTMAX: f"softmax over {n_classes:,} classes",
            SIGMOID: f"sigmoid over {n_classes:,} labels",
            LOGIT: "one logit, two classes",
        }[self.kind]
        ending = "it" if self.squash == self.kind else f"the model's {self.squash}"
        return f"head: {description}" + (f" (the scores in front of {ending} are explained)" if self.squash else "")

    @property
    def key(self) -> str:
        """The head's part of a store's fingerprint; empty if ``legacy``, so that older stores keep theirs."""
        squash = f", in front of {self.squash}" if self.squash else ""
        return "" if self.legacy else self.kind + squash


def to_probabilities(scores: Tensor, kind: str) -> Tensor:
    """Turns scores [n, classes] into probabilities [n, classes]; the scores of a single logit z are −z and z."""
    return scores.softmax(dim=1) if kind == SOFTMAX else scores.sigmoid()


class SettledModel(NamedTuple):
    """A model whose head is known: its ``logits`` bypass the calls that squash them.

    ``notes`` describe that to the user. ``columns`` [n, columns] are the model's columns for the probe images.
    """

    model: Model
    head: Head
    notes: tuple[str, ...]
    columns: Tensor


def settle_head(model: Model, images: Tensor) -> SettledModel:
    """Detects how the model's scores become probabilities, and bypasses the call that squashes them.

    Args:
        model: A private copy, which may be changed. Its ``head`` is the requested one.
        images: A probe to run it on, float [1, C, H, W].

    Returns:
        The model with its head.

    Raises:
        InvalidRequestError: The model returns a single value that a softmax or a hard sigmoid computed. Such a value
            does not distinguish two classes.
    """
    ending, bypassing, outputs = _bypass_ending(model, images)
    squash, columns = "", outputs
    notes: list[str] = []
    if ending is not None:
        scores = _scores_before_ending(bypassing, images, ending.kind, outputs)
        if scores is not None:
            model, squash, columns = bypassing, ending.kind, scores
            if ending.inner or _is_distribution(scores):
                notes.append("the scores before the model's last softmax or sigmoid were already squashed before it.")
        else:
            notes.append(
                f"the model ends in {ending.name}, which does not compute a probability of each class, so its outputs "
                "are used as scores. Let it return the values before that call, or choose another `output`."
            )
            if outputs.shape[1] == 1 and ending.name != "tanh" and model.head == AUTO:
                raise InvalidRequestError(_NO_LOGIT.format(spec=model.spec, name=ending.name))
    elif _looks_squashed(model, images, outputs):
        notes.append(
            "the model's scores look like probabilities, or their logarithms: the result of a softmax or a sigmoid "
            "that was not found in the forward. Gradients of probabilities vanish if the model is confident, and a "
            "softmax or sigmoid would be applied to them a second time. Choose the `output` before it, or let the "
            "model return that; `head` does not undo it."
        )
    kind = _head_kind(model, outputs.shape[1], squash)
    head = Head(
        kind, squash, legacy=kind == SOFTMAX and (not squash or (ending is not None and ending.is_final_module))
    )
    if squash or kind != SOFTMAX:
        notes.insert(0, head.note(outputs.shape[1]))
    return SettledModel(replace(model, head=head.kind), head, tuple(notes), columns)


def _head_kind(model: Model, columns: int, squash: str) -> str:
    if columns == 1:
        if model.head == SOFTMAX:
            raise InvalidRequestError(
                f"`head` softmax: {model.spec} gives one score, and the softmax of one score is always 1. Leave `head` "
                "out: one logit is two classes."
            )
        if squash == SOFTMAX and model.head == AUTO:
            raise InvalidRequestError(_NO_LOGIT.format(spec=model.spec, name="a softmax over one value"))
        return LOGIT
    return model.head if model.head != AUTO else squash or SOFTMAX


def _bypass_ending(model: Model, images: Tensor) -> tuple[Ending | None, Model, Tensor]:
    """Returns the model's ending, the model that bypasses it, and the columns [1, columns] with the ending."""
    with torch.no_grad():
        if isinstance(model.module, torch.jit.ScriptModule):
            ending, edited = scripted_ending(model.module)
            return ending, replace(model, module=edited), model.columns(images.clone())
        with eagerly(), Trace() as trace:
            outputs = model.module(images.clone())
        ending = find_ending(trace.calls, id(select_output(outputs, model.output)))
        bypassing = model if ending is None else replace(model, passing=trace.passing(ending))
        return ending, bypassing, model.as_columns(outputs, images)


def _scores_before_ending(bypassing: Model, images: Tensor, kind: str, outputs: Tensor) -> Tensor | None:
    """Returns the scores [1, columns] of ``bypassing`` if ``kind`` turns them into the outputs, or into their exp."""
    try:
        with torch.no_grad():
            scores = bypassing.columns(images.clone())
    except Exception:  # noqa: BLE001 - a model that checks its probabilities may raise; it then runs unchanged
        return None
    if not kind or scores.shape != outputs.shape:
        return None
    probabilities = to_probabilities(scores, kind).double()
    matches = [
        bool(((probabilities - values).abs() <= _TOLERANCE * values.abs().max()).all())
        for values in (outputs.double(), outputs.double().exp())
    ]
    return scores if any(matches) else None


def _is_distribution(values: Tensor) -> bool:
    sums = values.double().sum(dim=1)
    return values.shape[1] > 1 and bool((values >= 0).all() and ((sums - 1).abs() < 1e-3).all())


def _looks_squashed(model: Model, images: Tensor, outputs: Tensor) -> bool:
    """Whether outputs [1, columns] look like probabilities or their logarithms.

    They do if they are a distribution, or if the outputs for scaled images keep their sum, stay between 0 and 1, or
    approach 0 from below, as logarithms of probabilities do.
    """
    if _is_distribution(outputs) or _is_distribution(outputs.exp()):
        return True
    if not (bool((outputs >= 0).all()) or outputs.max() <= 0):
        return False
    try:
        with torch.no_grad():
            values = torch.cat([model.columns(scale * images) for scale in _SCALES])
    except Exception:  # noqa: BLE001 - a model may refuse such images
        return False
    if _is_distribution(values / outputs.sum(dim=1, keepdim=True)):  # for example percentages
        return True
    return _in_unit_interval(values) or bool(values[-2:].max() > -1e-3 and values.max() <= 0)


def _in_unit_interval(values: Tensor) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())
