"""Builds the model of a configuration, the same way on the driver and in every replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from jobs.config.job_config import JobConfig
from jobs.storage.uris import local_path
from jobs.store.class_record import ClassRun
from jobs.store.run_record import Record, Run
from jobs.store.software_versions import Software, current_software, refuse_other_worker
from jobs.util.exit_guard import refuse_exit
from jobs.util.interruptible_wait import call_interruptibly
from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import Model
from saliency_core.model.model_digest import model_digest
from saliency_core.model.model_loading import load_model
from saliency_core.probe.model_probe import Probe, probe_model
from saliency_core.replica.cpu import keep_freed_memory


def build_model(config: JobConfig, *, class_names: Sequence[str] | None) -> Model:
    """Loads the model in a thread that Ctrl-C abandons, whatever the model's factory is doing.

    Raises InvalidRequestError if the model, its weights or its preprocessing cannot be loaded, or its code tries to end
    the process.
    """

    def load() -> Model:
        with refuse_exit(config.model):
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

    return call_interruptibly(load, name="model")


def refuse_other_weights(run: Record, model: Model) -> None:
    """Raises InvalidRequestError if ``model`` has other weights than the run was planned with."""
    if model_digest(model) != run.fingerprint["weights"]:
        raise InvalidRequestError(
            f"{run.config.model} has other weights here than when the run was planned, so its results would not fit "
            "into the store. Restore the weights that it had (does its factory draw them at random?), or use a new "
            "--out."
        )


def build_replica(run: Run | ClassRun, *, any_software: bool = False) -> tuple[Model, Software]:
    """Builds the model of a planned run in a worker → the model, and the software of this process.

    Raises InvalidRequestError if its weights are not those that the run was planned with, or the software is not the
    session's (unless ``any_software``).
    """
    torch.set_num_threads(run.config.threads)
    if run.device == "cpu":
        keep_freed_memory()
    model = build_model(run.config, class_names=run.class_names)
    refuse_other_weights(run, model)
    software = current_software(run.config, model.module)
    if not any_software:
        refuse_other_worker(run.session, software)
    if not run.probe.get("copied", True):
        model.module.to(run.device)  # the replica is the model itself, so it is moved in the worker only
    return model, software


def read_class_names(path: str) -> tuple[str, ...]:
    """Reads a file with one class name per line; the number of the line is the class."""
    try:
        text = local_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--class-names {path} cannot be read: {error}") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


@dataclass(frozen=True)
class TriedModel:
    """``model`` with its class names, if they are known; ``digest`` of its weights; ``software`` that it was built
    with; ``probe``: what was measured on it."""

    model: Model
    digest: str
    software: Software
    n_classes: int
    probe: Probe


def try_model(config: JobConfig, *, folders: Sequence[str] | None = None) -> TriedModel:
    """Builds the model and probes it with made-up images, on the CPU. ``folders``: the sources' class folders, sorted.

    Raises InvalidRequestError if the model cannot be explained, if replicas would not be the same, or if the numbers of
    class names and classes differ.
    """
    class_names = read_class_names(config.class_names) if config.class_names else None
    model = build_model(config, class_names=class_names)
    digest, software = model_digest(model), current_software(config, model.module)
    again = build_model(config, class_names=class_names) if config.model.startswith("python:") else None
    if again is not None and model_digest(again) != digest:
        raise InvalidRequestError(
            f"{config.model} makes other weights at each call, so every replica would be another model. "
            "Save the weights once (torch.save(model.state_dict(), path)) and give --weights."
        )
    probe, scores = probe_model(model, again=again)
    n_classes = scores.shape[1]
    if class_names is not None and len(class_names) != n_classes:
        raise InvalidRequestError(
            f"--class-names {config.class_names} has {len(class_names)} names, {config.model} {n_classes} classes: "
            "the numbers must be equal."
        )
    names = model.class_names if model.class_names is not None and len(model.class_names) == n_classes else None
    if names is None and folders is not None and len(folders) == n_classes:
        names = tuple(folders)  # the convention of ImageFolder, with which such models are trained
    return TriedModel(replace(model, class_names=names), digest, software, n_classes, probe)


def blank_images(model: Model) -> torch.Tensor:
    """Three black images, float [3, C, H, W]. A graph that was exported for another number of images fails on them."""
    height, width = model.geometry.input_size
    return torch.zeros(3, model.geometry.channels, height, width, dtype=torch.float32, device="cpu")
