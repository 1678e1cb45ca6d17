"""The configuration's model, the same on the driver and in every replica."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.config import Config
from jobs.objects import local_path
from jobs.record import Run
from saliency_core.errors import Refused
from saliency_core.models import Model, load_model, model_digest


def build_model(config: Config, *, class_names: Sequence[str] | None) -> Model:
    """Refused where the model, its weights or its preprocessing cannot be had."""
    return load_model(
        config.model,
        weights=config.weights,
        num_classes=config.num_classes,
        output=config.output,
        preset=config.preset,
        preprocessing=config.preprocessing(),
        class_names=class_names,
    )


def refuse_other_weights(run: Run, model: Model) -> None:
    """Refused where ``model`` is not the one that the run was planned with."""
    if model_digest(model) != run.fingerprint["weights"]:
        raise Refused(
            f"{run.config.model} has other weights here than when the run was planned, and its maps would not fit. "
            "Bring back the weights that it had (does its factory draw them at random?), or explain into a new --out."
        )


def read_class_names(path: str) -> tuple[str, ...]:
    """One name a line; the number of the line is the class."""
    try:
        text = local_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"--class-names {path} cannot be read: {error}") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())
