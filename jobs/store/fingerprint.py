"""The fingerprint of a run: all that the bytes of its store depend on, but for the software.

Two runs that agree in it may share a store. It is built in one place, from the record that holds it, and compared in
one place; records store it as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from saliency_core.class_visualization.ascent_recipe import Recipe
from saliency_core.errors import InvalidRequestError

if TYPE_CHECKING:
    from jobs.config.job_config import JobConfig
    from jobs.store.class_record import ClassRun
    from jobs.store.run_record import Record, Run

SOFTMAX = "softmax"  # the head of all stores that were made before it was recorded
_SAMPLES = re.compile(r"(\d+) images, sha256 of their ids ([0-9a-f]+)")


class Samples(NamedTuple):
    """Which images a run has: their number, and a digest of their sample ids in row order."""

    rows: int
    digest: str

    def __str__(self) -> str:
        return f"{self.rows} images, sha256 of their ids {self.digest}"


def _samples(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _SAMPLES.fullmatch(value)
    if match is None:
        raise ValueError("is not of the form `N images, sha256 of their ids DIGEST`")
    return Samples(int(match[1]), match[2])


class Fingerprint(BaseModel):
    """What the fingerprints of all jobs hold. ``model``: without its path if it is a file, which ``weights`` digests.
    ``head``: its kind, and what it is in front of, as ``Head.key`` has it.

    A field that has a default came after the first stores: it is left out of the JSON while it has that value, so that
    the fingerprint of a run that does not use it stays what it was. Unknown keys, of a later version, are kept.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    model: str
    output: int | str | None
    weights: str
    class_names: list[str] | None
    preprocessing: dict[str, Any]
    threads: int
    seed: int
    device: str
    head: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a record stores it."""
        data = self.model_dump(mode="json", by_alias=True)
        defaults = {name: field.default for name, field in type(self).model_fields.items() if not field.is_required()}
        return {key: value for key, value in data.items() if key not in defaults or value != defaults[key]}


class MapsFingerprint(Fingerprint):
    """The fingerprint of a run that explains images. ``labels_digest``: of all labels, in row order."""

    samples: Annotated[Samples, BeforeValidator(_samples), PlainSerializer(str)]
    labels_digest: str = Field(..., alias="labels")
    methods: dict[str, str]
    targets: dict[str, str]
    map_dtype: str
    precision: str
    unit_size: int
    micro_batch: int


class ClassesFingerprint(Fingerprint):
    """The fingerprint of a run that visualises classes; the fields of its ``Recipe`` are further keys."""

    classes: list[int]
    batch_size: int


def maps_fingerprint(run: Run, *, samples_digest: str, labels_digest: str, weights: str, head: str) -> MapsFingerprint:
    """The fingerprint of ``run``, from all that it holds beside it.

    Args:
        run: its own ``fingerprint`` is not read.
        samples_digest: of the sample ids, as ``manifest.Digests`` has it.
        labels_digest: of the labels, likewise.
        weights: ``model_digest`` of the model.
        head: ``key`` of its head.
    """
    return MapsFingerprint(
        **_common(run, weights, head),
        class_names=_listed(run.class_names),
        samples=Samples(run.rows, samples_digest),
        labels=labels_digest,
        seed=run.config.seed,
        methods={array.method: array.method_spec for array in run.arrays},
        targets=run.target_specs,
        map_dtype=run.config.map_dtype,
        precision=run.config.precision,
        unit_size=run.unit_size,
        micro_batch=run.micro_batch,
    )


def classes_fingerprint(run: ClassRun, *, weights: str, head: str) -> ClassesFingerprint:
    """The fingerprint of ``run``, from all that it holds beside it. ``weights``: ``model_digest`` of the model;
    ``head``: ``key`` of its head."""
    return ClassesFingerprint(
        **_common(run, weights, head),
        **run.config.model_dump(mode="json", include={field.name for field in fields(Recipe)}),
        class_names=_listed(run.class_names),
        seed=run.config.seed,
        classes=list(run.classes),
        batch_size=run.unit_size,
    )


def _common(run: Record, weights: str, head: str) -> dict[str, Any]:
    return {
        "model": _kind(run.config),
        "output": run.config.output,
        "weights": weights,
        "preprocessing": run.preprocessing_,
        "threads": run.config.threads,
        "device": run.device,
        "head": head,
    }


def _kind(config: JobConfig) -> str:
    """The model's name; of a file only that it is one, for it may lie anywhere."""
    return "file" if config.model.startswith("file:") else config.model


def _listed(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)


def read_samples(fingerprint: Mapping[str, Any]) -> Samples:
    """The samples of a stored fingerprint. Raises ValueError if they are not as a run writes them."""
    samples = _samples(fingerprint.get("samples"))
    if not isinstance(samples, Samples):
        raise ValueError("holds no samples")
    return samples


def contradictions(run: Run) -> list[str]:
    """The keys in which run.json says something else than its own fingerprint; what is digested there is taken from it.

    ``samples`` is among them if their number is not that of the rows.
    """
    stored = run.fingerprint
    try:
        digests = {"samples_digest": read_samples(stored).digest, "labels_digest": stored["labels"]}
        again = maps_fingerprint(run, **digests, weights=stored["weights"], head=_head(run))
    except (KeyError, ValueError):
        return [key for key in ("labels", "samples", "weights") if not isinstance(stored.get(key), str)] or ["samples"]
    # An array of another dtype than the configuration's would be read with the wrong scale.
    others = {"map_dtype"} if {array.dtype for array in run.arrays} - {run.config.map_dtype} else set()
    return sorted({*differing(stored, again.to_json()), *others})


def class_contradictions(run: ClassRun) -> list[str]:
    """``contradictions`` of classes.json."""
    weights = run.fingerprint.get("weights")
    if not isinstance(weights, str):
        return ["weights"]
    return differing(run.fingerprint, classes_fingerprint(run, weights=weights, head=_head(run)).to_json())


def _head(run: Run | ClassRun) -> str:
    """The head of the stored fingerprint if it is of the kind that the record names, else that kind alone."""
    stored = str(run.fingerprint.get("head", ""))
    return stored if (stored or SOFTMAX).partition(",")[0] == run.head else run.head


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two stored fingerprints differ, sorted."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def refuse_other_fingerprint(run: Record, fingerprint: Mapping[str, Any], *, where: str) -> None:
    """Raises InvalidRequestError, with the keys that differ, if the store was made by another run."""
    keys = differing(run.fingerprint, fingerprint)
    if not keys:
        return
    told = "\n  ".join(
        f"{key}: the store has {_short(_value(run.fingerprint, key))}, this run {_short(_value(fingerprint, key))}"
        for key in keys
    )
    raise InvalidRequestError(
        f"{where} holds another run, and what it made would not fit together with this:\n  {told}\n"
        f"Give another --out, or the configuration that the store was made with (its {run.KEY} has it)."
    )


def _value(fingerprint: Mapping[str, Any], key: str) -> object:
    """As it is told: the head that is left out is named."""
    return fingerprint.get(key, SOFTMAX if key == "head" else None)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:100] + "…"
