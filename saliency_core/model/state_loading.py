"""Loads a state dict into a module, which its library may have to rebuild with another number of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from saliency_core.errors import InvalidRequestError
from saliency_core.model.inference_mode import refuse_meta_tensors
from saliency_core.model.model_sources import BuiltModel
from saliency_core.state_dicts.head_size import differing_class_count
from saliency_core.state_dicts.load_hooks import load_by_own_hooks
from saliency_core.state_dicts.renaming import rename_old_densenet
from saliency_core.state_dicts.state_fitting import Fit, fit_state, fit_unchanged, fits_for_hooks
from saliency_core.state_dicts.tensor_dtypes import note_integer_tensors


def load_state(
    built: BuiltModel,
    state: Mapping[str, Any],
    *,
    spec: str,
    path: Path,
    num_classes: int | None,
    build: Callable[[int | None], BuiltModel],
) -> BuiltModel:
    """Returns ``built`` with the weights of ``state``, and notes on the changes that made them fit.

    ``build`` builds the model with a given number of classes. It is called for models of torchvision and timm if the
    file has another number of classes than the model, and ``num_classes`` is None. Raises InvalidRequestError if the
    state dict does not fit.
    """
    refuse_meta_tensors(built.module, spec)
    library = spec.startswith(("torchvision:", "timm:"))
    notes: tuple[str, ...] = ()
    renamed = rename_old_densenet(state)
    if renamed is not None and not fit_unchanged(built.module, state).whole:
        state = renamed
        notes = (f"weights: DenseNet's older names in {path.name} are changed to today's (norm.1 to norm1).",)
    fit, tried = fit_state(built.module, state)
    count = differing_class_count(fit) if library else None
    if count is not None and num_classes is None:
        built = build(count)
        fit, tried = fit_state(built.module, state)
        notes += (f"{spec} has {count} classes, as the head in {path.name} has.",)
    if fit.whole:
        notes += note_integer_tensors(fit.state, built.module, path)
        try:
            built.module.load_state_dict(fit.state)
        except Exception as error:  # the model's own hooks may raise anything
            reason = " ".join(str(error).split())[:300]
            raise InvalidRequestError(
                f"{path} cannot be loaded into {spec} ({type(error).__name__}: {reason})."
            ) from error
    else:
        hooked = load_by_own_hooks(built.module, (*fits_for_hooks(built.module, state), fit))
        if hooked is None:
            raise InvalidRequestError(
                _describe_mismatch(fit, tried, state, spec=spec, path=path, num_classes=num_classes, count=count)
            )
        fit = hooked
        notes += note_integer_tensors(fit.state, built.module, path)
        notes += (f"weights: the names in {path.name} are of an older form, which {spec} itself updates.",)
    if fit.change:
        notes += (f"weights: the names in {path.name} are changed to fit: {fit.change}.",)
    if fit.passed_over:
        names = ", ".join(fit.passed_over[:3]) + (f" and {len(fit.passed_over) - 3} more" * (len(fit.passed_over) > 3))
        notes += (f"weights: {path.name} also holds {names}, which {spec} does not have and which are not used.",)
    return replace(built, loaded=True, notes=(*built.notes, *notes))


def _describe_mismatch(
    fit: Fit,
    tried: tuple[str, ...],
    state: Mapping[str, Any],
    *,
    spec: str,
    path: Path,
    num_classes: int | None,
    count: int | None,
) -> str:
    """Describes what does not fit, the file's names, the changes that were tried, and the remedy for this kind of
    model."""
    parts = [f"{path} does not fit {spec}: {fit.describe()}."]
    if state:
        names = f"The file's {len(state)} names begin with {', '.join(sorted(state)[:3])}"
        parts.append(f"{names}; changes tried: {'; '.join(tried[:5]) or 'none'}.")
    else:
        parts.append("The file's state dict is empty: save that of the trained model.")
    if count is not None and num_classes is not None:
        parts.append(f"`num_classes` {num_classes} contradicts the file, whose head has {count} classes: drop it.")
    elif fit.shapes and spec.startswith("python:"):
        parts.append("If only the number of classes differs, let the factory use the file's number.")
    return " ".join(parts)
