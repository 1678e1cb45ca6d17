"""Measures what the plan needs of the model before any worker starts, by one trial on the driver's CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jobs.config.explain_config import ExplainConfig, MapDtype
from jobs.config.flag_names import plan_notes
from jobs.explain.model_building import blank_images, try_model
from jobs.explain.probe_messages import probe_record
from jobs.store.run_record import ArraySpec
from jobs.store.software_versions import Software
from saliency_core.errors import InvalidRequestError, SaliencyWarning
from saliency_core.explainer import LESS_EXACT, Explainer
from saliency_core.explanation import Explanation
from saliency_core.model.classifier import Model
from saliency_core.model.heads import Head
from saliency_core.model.preprocessing import Preprocessing
from saliency_core.precision_agreement import agreement
from saliency_core.replica.last_spatial_layer import AUTO
from saliency_core.replica.prepare import Replica


@dataclass(frozen=True)
class ModelProfile:
    """The properties of a model with the methods and targets of a run.

    ``parameter_bytes`` of a replica; ``image_bytes`` that one image of a micro-batch keeps between forward and
    backward; ``passes``: forwards and backwards for one image; ``notes`` for the user; ``agreement`` of a faster
    precision with float32; ``needs_labels``: whether a target needs labels; ``head``: turns scores into probabilities;
    ``probe``: what was measured on made-up images, and whether replicas are copies of the model.
    """

    preprocessing: Preprocessing
    n_classes: int
    class_names: tuple[str, ...] | None
    weights: str
    software: Software
    target_specs: dict[str, str]
    method_specs: dict[str, str]
    arrays: tuple[ArraySpec, ...]
    parameter_bytes: int
    image_bytes: int
    passes: float
    notes: tuple[str, ...]
    agreement: dict[str, float]
    needs_labels: bool
    head: Head
    probe: dict[str, Any]


def profile_model(config: ExplainConfig, *, folders: Sequence[str] | None, device: Callable[[], str]) -> ModelProfile:
    """Builds the model and explains blank images with it. ``folders``: the sources' class folders, sorted; ``device``
    returns the run's device, cpu or cuda, and is called only if that matters, because it may have to wait for Ray.

    Raises InvalidRequestError if the model, a method or a target cannot work, or if replicas would not be the same.
    """
    tried = try_model(config, folders=folders)
    model, blank = tried.model, blank_images(tried.model)
    explainer = Explainer(
        model,
        methods=config.methods,
        targets=config.targets,
        precision=config.precision,
        seed=config.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SaliencyWarning)  # the notes contain them
        explanations = _explain_blank(explainer, blank)
    replica = explainer.replica(blank)
    image_bytes = _saved_bytes(replica.model, blank) // len(blank)
    agreed, agreement_note = _agreement(model, config.precision, device)
    arrays = tuple(
        ArraySpec(
            target=target.slug,
            method=method.slug,
            target_spec=target.spec,
            method_spec=method.spec,
            dtype=_dtype(config, method.spec, nonnegative=method.nonnegative),
            item_shape=tuple(explanations[target.slug].maps[method.slug].shape[1:]),
            nonnegative=method.nonnegative,
            residual=method.slug in explanations[target.slug].residuals,
        )
        for target in explainer.targets
        for method in explainer.methods
    )
    scales = {array.scale_path for array in arrays if array.scaled}
    for array in arrays:
        if array.path in scales:
            raise InvalidRequestError(
                f"{array.path!r} is also the name of another map's scales: give that method another name, name=spec."
            )
    return ModelProfile(
        preprocessing=model.geometry,
        n_classes=tried.n_classes,
        class_names=model.class_names,
        weights=tried.digest,
        software=tried.software,
        target_specs={target.slug: target.spec for target in explainer.targets},
        method_specs={method.slug: method.spec for method in explainer.methods},
        arrays=arrays,
        parameter_bytes=sum(
            value.numel() * value.element_size()
            for value in model.module.state_dict().values()
            if isinstance(value, Tensor)
        ),
        image_bytes=image_bytes,
        passes=explainer.passes,
        notes=plan_notes(
            *model.notes,
            *_scale_note(model.geometry),
            replica.head.note(tried.n_classes),
            *tried.probe.notes,
            *explainer.notes,
            *_layer_note(explainer, replica),
            *agreement_note,
        ),
        agreement=agreed,
        needs_labels=any(target.needs_labels for target in explainer.targets),
        head=replica.head,
        probe=probe_record(tried.probe, copied=replica.copied),
    )


def _scale_note(geometry: Preprocessing) -> list[str]:
    """A note about a mean that no pixel has."""
    if max(geometry.mean) <= 1:
        return []
    return [
        f"preprocessing: the mean {geometry.mean} is subtracted from pixels between 0 and 1: if `mean` and `std` are "
        "meant for pixels up to 255, divide both by 255"
    ]


def _layer_note(explainer: Explainer, replica: Replica) -> list[str]:
    """A note with the layer that CAMs without a given layer read."""
    cams = [
        method.slug for method in explainer.methods if any(signal.readout.layer == AUTO for signal in method.signals)
    ]
    return [f"{', '.join(cams)}: layer auto is {replica.auto_layer}."] if cams else []


def _agreement(model: Model, precision: str, device: Callable[[], str]) -> tuple[dict[str, float], list[str]]:
    """The agreement of a faster precision with float32, on the run's device if this machine has it, with notes."""
    if precision not in LESS_EXACT:
        return {}, []
    planned = device()
    here = planned if planned == "cpu" or torch.cuda.is_available() else "cpu"
    if precision == "tf32" and here != planned:  # on a CPU TF32 is float32
        return {}, ["tf32: the agreement of its maps with float32's was not measured, because this machine has no GPU."]
    agreed = agreement(model, precision, device=here)
    if here == "cuda":
        torch.cuda.empty_cache()  # a replica may need the memory
    where = "GPU" if here == "cuda" else "processor" if here == planned else "processor, not on the run's GPUs"
    notes = []
    if (finite := agreed.get("finite", 1.0)) < 1:
        notes.append(
            f"{precision}: {1 - finite:.0%} of a few made-up images have no finite gradient map on this machine's "
            f"{where}, and such images are quarantined: use another --precision if they are many."
        )
    if not finite:
        return agreed, notes
    notes.append(
        f"{precision}: gradient maps have a cosine of {agreed['cosine']:.3f} and a rank correlation of "
        f"{agreed['rank']:.3f} with float32's, and {agreed['same_class']:.0%} the same class (a few made-up images, "
        f"on this machine's {where})."
    )
    return agreed, notes


def _explain_blank(explainer: Explainer, blank: Tensor) -> dict[str, Explanation]:
    try:
        return explainer(blank, labels=torch.zeros(len(blank), dtype=torch.int64), trial=True)
    except InvalidRequestError:
        raise
    except Exception as error:  # the user's model or loss may raise anything
        where = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        raise InvalidRequestError(
            f"{explainer.model.spec} could not be explained on made-up images, so the run would fail, too: "
            f"{type(error).__name__}: {error}.{where}"
        ) from error


def _dtype(config: ExplainConfig, method: str, *, nonnegative: bool) -> MapDtype:
    if config.map_dtype == "uint8" and not nonnegative:
        raise InvalidRequestError(
            f"--map-dtype uint8 cannot store negative values, which {method} has: use int8, float16 or float32."
        )
    return config.map_dtype


def _saved_bytes(model: Model, blank: Tensor) -> int:
    """The bytes that one forward keeps for its backward, for a single pass."""
    saved = _SavedBytes(model.module)
    with saved, torch.enable_grad():
        outputs = model.logits(blank.clone().requires_grad_())  # kept alive, so that no storage address is reused
    del outputs
    return saved.total


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd saves for the backward pass, without the module's own tensors."""

    def __init__(self, module: nn.Module) -> None:
        self.total = 0
        self._counted = {
            value.untyped_storage().data_ptr()
            for value in module.state_dict().values()
            if isinstance(value, Tensor) and value.layout == torch.strided  # other layouts have no storage
        }
        super().__init__(self._count, lambda saved: saved)

    def _count(self, saved: Tensor) -> Tensor:
        if saved.layout != torch.strided:
            return saved
        storage = saved.untyped_storage()
        if storage.data_ptr() not in self._counted:
            self._counted.add(storage.data_ptr())
            self.total += storage.nbytes()
        return saved
