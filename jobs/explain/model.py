"""The configuration's model, the same on the driver and in every replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from jobs.config.job_config import JobConfig
from jobs.storage.files import local_path
from jobs.store.run_record import Record
from jobs.store.software_versions import Software, current_software
from jobs.util.exit_guard import refuse_quitting
from jobs.util.interruptible_wait import abandonable
from saliency_core.errors import InvalidRequestError
from saliency_core.model.model_loading import Model, load_model, model_digest
from saliency_core.probe.model_probe import Probe, probe_model


def build_model(config: JobConfig, *, class_names: Sequence[str] | None) -> Model:
    """Loads the model in a thread that Ctrl-C leaves behind, whatever its factory is at.

    Raises InvalidRequestError if the model, its weights or its preprocessing cannot be had, or its code tries to end
    the process.
    """

    def built() -> Model:
        with refuse_quitting(config.model):
            return load_model(
                config.model,
                weights=config.weights,
                weights_key=config.weights_key,
                num_classes=config.num_classes,
                output=config.output,
                preset=config.preset,
                preprocessing=config.preprocessing(),
                class_names=class_names,
                head=config.head,
            )

    return abandonable(built, name="model")


def refuse_other_weights(run: Record, model: Model) -> None:
    """Raises InvalidRequestError where ``model`` is not the one that the run was planned with."""
    if model_digest(model) != run.fingerprint["weights"]:
        raise InvalidRequestError(
            f"{run.config.model} has other weights here than when the run was planned, and what it makes would not "
            "fit. Bring back the weights that it had (does its factory draw them at random?), or take a new --out."
        )


def read_class_names(path: str) -> tuple[str, ...]:
    """One name a line; the number of the line is the class."""
    try:
        text = local_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--class-names {path} cannot be read: {error}") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


@dataclass(frozen=True)
class TriedModel:
    """``model`` with its class names, where anybody told them; ``digest``: which weights it has; ``software``: with
    which it was built; ``probe``: what was measured of it."""

    model: Model
    digest: str
    software: Software
    n_classes: int
    probe: Probe


def try_model(config: JobConfig, *, folders: Sequence[str] | None = None) -> TriedModel:
    """Builds the model and probes it with made-up images, on the CPU. ``folders``: the sources' class folders, sorted.

    Raises InvalidRequestError where it cannot work, where replicas would not be the same, or class names are not as
    many as classes.
    """
    given = read_class_names(config.class_names) if config.class_names else None
    model = build_model(config, class_names=given)
    digest, software = model_digest(model), current_software(config, model.module)
    again = build_model(config, class_names=given) if config.model.startswith("python:") else None
    if again is not None and model_digest(again) != digest:
        raise InvalidRequestError(
            f"{config.model} makes other weights at each call, so every replica would be another model. "
            "Save them once (torch.save(model.state_dict(), path)) and give --weights."
        )
    probe, scores = probe_model(model, again=again)
    n_classes = scores.shape[1]
    if given is not None and len(given) != n_classes:
        raise InvalidRequestError(
            f"--class-names {config.class_names} has {len(given)} names, {config.model} {n_classes} classes: "
            "they must be as many."
        )
    names = model.class_names if model.class_names is not None and len(model.class_names) == n_classes else None
    if names is None and folders is not None and len(folders) == n_classes:
        names = tuple(folders)  # the convention of ImageFolder, with which such models are trained
    return TriedModel(replace(model, class_names=names), digest, software, n_classes, probe)


def blank_images(model: Model) -> torch.Tensor:
    """float [3, C, H, W]. Three: a graph that was exported for one number of images shows it here."""
    height, width = model.geometry.input_size
    return torch.zeros(3, model.geometry.channels, height, width, dtype=torch.float32, device="cpu")
