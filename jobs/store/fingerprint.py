"""The fingerprint of a run: all that the bytes of its store depend on, except the software.

Runs with equal fingerprints may share a store. Only this module builds and compares fingerprints; records store them
as JSON.
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

SOFTMAX = "softmax"  # the head of all stores that do not record one
_SAMPLES = re.compile(r"(\d+) images, sha256 of their ids ([0-9a-f]+)")


class Samples(NamedTuple):
    """Which images a run has: their number, and a digest of their sample ids in row order."""

    rows: int
    digest: str

    def __str__(self) -> str:
        return f"{self.rows} images, sha256 of their ids {self.digest}"


def _parse_samples(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _SAMPLES.fullmatch(value)
    if match is None:
        raise ValueError("is not of the form `N images, sha256 of their ids DIGEST`")
    return Samples(int(match[1]), match[2])


class Fingerprint(BaseModel):
    """The fields that the fingerprints of all jobs have.

    ``model`` is "file" for a model file, whose content ``weights`` digests. ``head`` is ``Head.key``: the kind of the
    head and the layer before it.

    A field with a default was added after the first stores. It is left out of the JSON while it has its default, so
    that the fingerprints of old stores stay equal. Unknown keys of a later version are kept.
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
        """The fingerprint as a record stores it."""
        data = self.model_dump(mode="json", by_alias=True)
        defaults = {name: field.default for name, field in type(self).model_fields.items() if not field.is_required()}
        return {key: value for key, value in data.items() if key not in defaults or value != defaults[key]}


class MapsFingerprint(Fingerprint):
    """The fingerprint of a run that explains images. ``labels_digest`` covers all labels, in row order."""

    samples: Annotated[Samples, BeforeValidator(_parse_samples), PlainSerializer(str)]
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
    """Builds the fingerprint of ``run``.

    Args:
        run: The record; its own ``fingerprint`` is not read.
        samples_digest: The digest of the sample ids, from ``manifest.ManifestDigests``.
        labels_digest: The digest of the labels, from there, too.
        weights: The model's ``model_digest``.
        head: The ``key`` of the model's head.
    """
    return MapsFingerprint(
        **_common_fields(run, weights, head),
        class_names=_as_list(run.class_names),
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
    """Builds the fingerprint of ``run``; ``weights`` and ``head`` are as for ``maps_fingerprint``."""
    return ClassesFingerprint(
        **_common_fields(run, weights, head),
        **run.config.model_dump(mode="json", include={field.name for field in fields(Recipe)}),
        class_names=_as_list(run.class_names),
        seed=run.config.seed,
        classes=list(run.classes),
        batch_size=run.unit_size,
    )


def _common_fields(run: Record, weights: str, head: str) -> dict[str, Any]:
    return {
        "model": _model_name(run.config),
        "output": run.config.output,
        "weights": weights,
        "preprocessing": run.preprocessing_,
        "threads": run.config.threads,
        "device": run.device,
        "head": head,
    }


def _model_name(config: JobConfig) -> str:
    """The model's name; "file" for a file, because its path does not matter."""
    return "file" if config.model.startswith("file:") else config.model


def _as_list(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)


def read_samples(fingerprint: Mapping[str, Any]) -> Samples:
    """The samples of a stored fingerprint. Raises ValueError if they are malformed."""
    samples = _parse_samples(fingerprint.get("samples"))
    if not isinstance(samples, Samples):
        raise ValueError("holds no samples")
    return samples


def contradictions(run: Run) -> list[str]:
    """The keys in which run.json contradicts its own fingerprint.

    Digests are taken from the fingerprint. ``samples`` is a contradiction if their number differs from the rows.
    """
    stored = run.fingerprint
    try:
        digests = {"samples_digest": read_samples(stored).digest, "labels_digest": stored["labels"]}
        again = maps_fingerprint(run, **digests, weights=stored["weights"], head=_consistent_head(run))
    except (KeyError, ValueError):
        return [key for key in ("labels", "samples", "weights") if not isinstance(stored.get(key), str)] or ["samples"]
    # An array whose dtype differs from the configuration's would be read with the wrong scale.
    dtype_keys = {"map_dtype"} if {array.dtype for array in run.arrays} - {run.config.map_dtype} else set()
    return sorted({*differing_keys(stored, again.to_json()), *dtype_keys})


def class_contradictions(run: ClassRun) -> list[str]:
    """The keys in which classes.json contradicts its own fingerprint."""
    weights = run.fingerprint.get("weights")
    if not isinstance(weights, str):
        return ["weights"]
    return differing_keys(
        run.fingerprint, classes_fingerprint(run, weights=weights, head=_consistent_head(run)).to_json()
    )


def _consistent_head(run: Run | ClassRun) -> str:
    """The head of the stored fingerprint, if its kind is the record's; otherwise the record's kind."""
    stored = str(run.fingerprint.get("head", ""))
    return stored if (stored or SOFTMAX).partition(",")[0] == run.head else run.head


def differing_keys(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The keys in which two stored fingerprints differ, sorted."""
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def refuse_other_fingerprint(run: Record, fingerprint: Mapping[str, Any], *, where: str) -> None:
    """Raises InvalidRequestError with the differing keys if the store has another fingerprint."""
    keys = differing_keys(run.fingerprint, fingerprint)
    if not keys:
        return
    stored_and_new = [
        (key, *(_shortened(_value_or_default(side, key)) for side in (run.fingerprint, fingerprint))) for key in keys
    ]
    differences = "\n  ".join(f"{key}: the store has {stored}, this run {new}" for key, stored, new in stored_and_new)
    raise InvalidRequestError(
        f"{where} holds another run, whose results cannot be combined with those of this run:\n  {differences}\n"
        f"Give another --out, or the configuration that the store was made with (it is in {run.KEY})."
    )


def _value_or_default(fingerprint: Mapping[str, Any], key: str) -> object:
    """The value for a message: a head that is left out is softmax."""
    return fingerprint.get(key, SOFTMAX if key == "head" else None)


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:100] + "…"
