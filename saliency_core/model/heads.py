"""Heads: how a model's scores become probabilities. The scores in front of a softmax or a sigmoid are explained.

Behind either, gradients vanish where the model is sure, and a softmax couples all classes. So the calls at the model's
end that squash its scores are passed by, module or function. A single logit z speaks for class 1, and −z for class 0.
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
from saliency_core.model.model_loading import AUTO, Model, select_output

_CLOSE = 1e-2  # of the largest: whether scores were found in front of probabilities, which may be clamped or rounded
_NO_LOGIT = (
    "{spec} gives one value for an image, the result of {name}, which is no logit: let it return the scores in front, "
    "or call them logits with `head` sigmoid."
)
_SCALES = (1, -1, 10, -10, 100, -100)


@dataclass(frozen=True)
class Head:
    """What makes probabilities of scores.

    ``kind``: softmax, sigmoid (of each class by itself), or logit (one, for two classes). ``squash``: which of softmax
    and sigmoid is passed by at the model's end; empty if none is. ``as_ever``: the scores are those of stores that were
    made before heads were recorded.
    """

    kind: str = SOFTMAX
    squash: str = ""
    as_ever: bool = True

    def note(self, n_classes: int) -> str:
        """What a plan says of it."""
        what = {
            SOFTMAX: f"softmax over {n_classes:,} classes",
            SIGMOID: f"sigmoid over {n_classes:,} labels",
            LOGIT: "one logit, two classes",
        }[self.kind]
        front = "it" if self.squash == self.kind else f"the model's {self.squash}"
        return f"head: {what}" + (f" (the scores in front of {front} are explained)" if self.squash else "")

    @property
    def key(self) -> str:
        """What a fingerprint holds of it: nothing, if stores that were made without it hold the same scores."""
        squash = f", in front of {self.squash}" if self.squash else ""
        return "" if self.as_ever else self.kind + squash


def to_probabilities(scores: Tensor, kind: str) -> Tensor:
    """Scores [n, classes] → probabilities [n, classes]. A logit's are the scores −z and z of its two classes."""
    return scores.softmax(dim=1) if kind == SOFTMAX else scores.sigmoid()


class Settled(NamedTuple):
    """``model`` with its ``head`` settled, whose ``logits`` pass by what squashes them; ``notes`` on that for the user;
    ``columns``: what it gives for the probe, [n, columns]."""

    model: Model
    head: Head
    notes: tuple[str, ...]
    columns: Tensor


def settle_head(model: Model, images: Tensor) -> Settled:
    """Finds out how scores become probabilities.

    Args:
        model: a copy of its own, which may be changed; its ``head`` is what was asked for.
        images: float [1, C, H, W], a probe to run it on.

    Raises:
        InvalidRequestError: there is one score, of which a softmax or a hard sigmoid was made: no class can be told
        from it.
    """
    ending, passing, outputs = _without_ending(model, images)
    squash, columns = "", outputs
    notes: list[str] = []
    if ending is not None:
        scores = _scores_in_front(passing, images, ending.kind, outputs)
        if scores is not None:
            model, squash, columns = passing, ending.kind, scores
            if ending.inner or _is_distribution(scores):
                notes.append("the scores in front of the model's last softmax or sigmoid were squashed before, too.")
        else:
            notes.append(
                f"the model ends in {ending.name}, which makes no probability of each class: what it returns is taken "
                "for scores. Let it return what is in front, or choose another `output`."
            )
            if outputs.shape[1] == 1 and ending.name != "tanh" and model.head == AUTO:
                raise InvalidRequestError(_NO_LOGIT.format(spec=model.spec, name=ending.name))
    elif _looks_squashed(model, images, outputs):
        notes.append(
            "the model's scores look like probabilities, or their logarithms: the result of a softmax or a sigmoid "
            "that cannot be seen. Gradients of probabilities vanish where the model is sure, and probabilities would "
            "be made of them once more. Choose the `output` before it, or let the model return that; `head` only "
            "tells what is made of the scores."
        )
    kind = _kind(model, outputs.shape[1], squash)
    head = Head(
        kind, squash, as_ever=kind == SOFTMAX and (not squash or (ending is not None and ending.is_final_module))
    )
    if squash or kind != SOFTMAX:
        notes.insert(0, head.note(outputs.shape[1]))
    return Settled(replace(model, head=head.kind), head, tuple(notes), columns)


def _kind(model: Model, columns: int, squash: str) -> str:
    if columns == 1:
        if model.head == SOFTMAX:
            raise InvalidRequestError(
                f"`head` softmax: {model.spec} gives one score, and a softmax of one is always 1. Leave it out: one "
                "logit is two classes."
            )
        if squash == SOFTMAX and model.head == AUTO:
            raise InvalidRequestError(_NO_LOGIT.format(spec=model.spec, name="a softmax over one value"))
        return LOGIT
    return model.head if model.head != AUTO else squash or SOFTMAX


def _without_ending(model: Model, images: Tensor) -> tuple[Ending | None, Model, Tensor]:
    """The model's ending; the model that passes it by; and what it gives with the ending [1, columns]."""
    with torch.no_grad():
        if isinstance(model.module, torch.jit.ScriptModule):
            ending, edited = scripted_ending(model.module)
            return ending, replace(model, module=edited), model.columns(images.clone())
        with eagerly(), Trace() as trace:
            outputs = model.module(images.clone())
        ending = find_ending(trace.calls, id(select_output(outputs, model.output)))
        passing = model if ending is None else replace(model, passing=trace.passing(ending))
        return ending, passing, model.as_columns(outputs, images)


def _scores_in_front(passing: Model, images: Tensor, kind: str, outputs: Tensor) -> Tensor | None:
    """What ``passing`` gives [1, columns], if softmax or sigmoid make the outputs of it, or their logarithms."""
    try:
        with torch.no_grad():
            scores = passing.columns(images.clone())
    except Exception:  # noqa: BLE001 - the model may check what it takes for probabilities; it runs as it is
        return None
    if not kind or scores.shape != outputs.shape:
        return None
    made = to_probabilities(scores, kind).double()
    near = [
        bool(((made - values).abs() <= _CLOSE * values.abs().max()).all())
        for values in (outputs.double(), outputs.double().exp())
    ]
    return scores if any(near) else None


def _is_distribution(values: Tensor) -> bool:
    sums = values.double().sum(dim=1)
    return values.shape[1] > 1 and bool((values >= 0).all() and ((sums - 1).abs() < 1e-3).all())


def _looks_squashed(model: Model, images: Tensor, outputs: Tensor) -> bool:
    """Whether outputs [1, columns] are a distribution, have the same sum or stay between 0 and 1 however strong the
    images are, or end at 0 as the logarithms of such outputs do."""
    if _is_distribution(outputs) or _is_distribution(outputs.exp()):
        return True
    if not (bool((outputs >= 0).all()) or outputs.max() <= 0):
        return False
    try:
        with torch.no_grad():
            values = torch.cat([model.columns(scale * images) for scale in _SCALES])
    except Exception:  # noqa: BLE001 - no model need take images like these
        return False
    if _is_distribution(values / outputs.sum(dim=1, keepdim=True)):  # as in percent
        return True
    return _in_unit_interval(values) or bool(values[-2:].max() > -1e-3 and values.max() <= 0)


def _in_unit_interval(values: Tensor) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())
