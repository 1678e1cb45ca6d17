"""The part of the configuration that all jobs share. It has the same form in YAML, as flags, and in run.json.

Each field is a flag (``batch_size`` ↔ ``--batch-size``; the description is its help) and a key of ``--config``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from jobs.storage.uris import normalize_uri
from jobs.util import bounds
from jobs.util.redaction import holds_credentials, plain_scheme
from saliency_core.model.preprocessing import Preprocessing


def _parse_size(value: object) -> object:
    """Parses a size: ``"256"`` → 256; ``"224x224"`` → (224, 224)."""
    if not isinstance(value, str):
        return value
    parts = value.lower().split("x")
    if not all(part.isdigit() for part in parts) or len(parts) > 2:
        raise ValueError("expected 256 or HEIGHTxWIDTH, for example 224x224")
    return int(parts[0]) if len(parts) == 1 else tuple(int(part) for part in parts)


def _parse_pair(value: object) -> object:
    """Parses a crop. One number gives a square."""
    size = _parse_size(value)
    return (size, size) if isinstance(size, int) else size


def parse_numbers(value: object) -> object:
    if isinstance(value, str):
        return tuple(float(part) for part in value.split(","))
    return (value,) if isinstance(value, int | float) else value


def _parse_number_or_name(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdigit() else value


Size = Annotated[int | tuple[int, int], BeforeValidator(_parse_size)]
Pair = Annotated[tuple[int, int], BeforeValidator(_parse_pair)]
Means = Annotated[
    tuple[Annotated[float, Field(ge=-bounds.NORMALISED, le=bounds.NORMALISED)], ...], BeforeValidator(parse_numbers)
]
Deviations = Annotated[
    tuple[Annotated[float, Field(ge=1 / bounds.NORMALISED, le=bounds.NORMALISED)], ...], BeforeValidator(parse_numbers)
]

AutoOrCount = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=1, le=bounds.COUNT)], BeforeValidator(_parse_number_or_name)
]


def config_field(default: Any, help_text: str, *, group: str, **limits: Any) -> Any:
    """Returns a field of a configuration. ``group``: the heading of its flag in the help."""
    return Field(default, description=help_text, json_schema_extra={"group": group}, **limits)


class JobConfig(BaseModel):
    """The model, its preprocessing, the resources and the output of a job.

    Frozen. Unknown keys are refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: str = config_field(
        ..., "model: torchvision:NAME, timm:NAME, python:package.module:factory or file:PATH", group="Model"
    )
    out: str = config_field(
        ..., "directory of the store, local or on an object store: new, or one that this program made", group="Output"
    )

    class_names: str | None = config_field(
        None, "text file with one class name per line, in the order of the model's outputs", group="Input"
    )

    weights: str | None = config_field(
        None, "state dict or .safetensors file, or the name of a torchvision preset", group="Model"
    )
    weights_key: str | None = config_field(
        None,
        "entry of the weights' file to load, as state_dict_ema (dotted if nested), or the prefix of its names",
        group="Model",
    )
    num_classes: int | None = config_field(
        None,
        "number of outputs of the head, if the weights have another number than the model",
        group="Model",
        ge=1,
        le=bounds.CLASSES,
    )
    output: Annotated[int | str | None, BeforeValidator(_parse_number_or_name)] = config_field(
        None, "position or name of the output with the scores, if the model has several outputs", group="Model"
    )

    head: Literal["auto", "softmax", "sigmoid"] = config_field(
        "auto",
        "function from scores to probabilities: softmax, or sigmoid if labels do not exclude each other (auto: the "
        "function at the model's end, else softmax, or sigmoid for one logit)",
        group="Model",
    )

    preset: str | None = config_field(
        None, "torchvision preset whose preprocessing is used for local weights", group="Preprocessing"
    )
    resize: Size | None = config_field(
        None,
        "size after the resize: 256 for the shorter edge, or HEIGHTxWIDTH (224x224), which does not keep the aspect",
        group="Preprocessing",
    )
    crop: Pair | None = config_field(None, "size of the centre crop: 224 or HEIGHTxWIDTH", group="Preprocessing")
    interpolation: str | None = config_field(
        None,
        "interpolation of the resize: nearest, bilinear (default), bicubic, lanczos, box or hamming",
        group="Preprocessing",
    )
    mean: Means | None = config_field(
        None, "mean of each channel, for values in 0..1, separated by commas: 0.485,0.456,0.406", group="Preprocessing"
    )
    std: Deviations | None = config_field(
        None, "standard deviation of each channel, separated by commas: 0.229,0.224,0.225", group="Preprocessing"
    )
    channels: Literal[1, 3] | None = config_field(
        None, "number of channels of the model's input: 3, or 1 for grey images", group="Preprocessing"
    )

    runner: Literal["ray", "inline"] = config_field(
        "ray", "ray, or inline, which runs the same stages in this process", group="Work"
    )
    workers: AutoOrCount = config_field(
        "auto", "number of model replicas, or auto (one per GPU, else one per core)", group="Work"
    )
    device: Literal["auto", "cpu", "cuda"] = config_field(
        "auto", "device of the model (auto: cuda if there is a GPU)", group="Work"
    )
    gpus_per_worker: float = config_field(
        1.0, "GPUs of each replica; below 1, replicas share a GPU", group="Work", ge=1 / bounds.GPUS, le=bounds.GPUS
    )
    threads: int = config_field(
        1, "CPU threads of each replica; the bytes of the maps depend on it", group="Work", ge=1, le=bounds.THREADS
    )
    batch_size: AutoOrCount = config_field(
        "auto", "images per forward pass (micro-batch), or auto; it cannot change for a store", group="Work"
    )
    unit_seconds: float = config_field(
        3600.0,
        "longest time of the model for a unit, in seconds; then the run stops",
        group="Work",
        gt=0,
        le=bounds.YEAR,
    )
    stall_seconds: float = config_field(
        7200.0,
        "longest time without a commit, in seconds; then the run stops and prints what each stage is doing",
        group="Work",
        gt=0,
        le=bounds.YEAR,
    )
    allow_quarantined: bool = config_field(
        False,
        "exit with code 0 instead of 3 if some rows are quarantined or partial and the rest is done",
        group="Work",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_credentials(cls, value: object) -> object:
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str):
                refuse_credentials(text)
        return value

    @field_validator("out", "class_names", "weights")
    @classmethod
    def _full_path(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Makes local paths absolute, so that a store's record does not depend on the working directory."""
        is_preset_name = info.field_name == "weights" and value and not (Path(value).suffix or Path(value).exists())
        return value if value is None or is_preset_name else full_path(value)

    @field_validator("model")
    @classmethod
    def _full_file(cls, value: str) -> str:
        kind, _, path = value.partition(":")
        return f"file:{full_path(path)}" if kind == "file" and path else value

    @field_validator("channels", mode="before")
    @classmethod
    def _channels(cls, value: object) -> object:
        return _parse_number_or_name(value)

    @model_validator(mode="after")
    def _whole_preprocessing(self) -> Self:
        self.preprocessing()
        return self

    def preprocessing(self) -> Preprocessing | None:
        """Returns the preprocessing that the keys give; None if none of them is set. Raises ValueError if it is
        incomplete."""
        values = {
            "resize": self.resize,
            "crop": self.crop,
            "mean": self.mean,
            "std": self.std,
            "channels": self.channels,
            "interpolation": self.interpolation,
        }
        if all(value is None for value in values.values()):
            return None
        if self.mean is None or self.std is None:
            raise ValueError(
                "explicit preprocessing needs mean and std beside resize or crop, or the model gets wrong inputs"
            )
        if self.preset is not None:
            raise ValueError("preset and explicit preprocessing exclude each other: give one")
        return Preprocessing(
            resize=self.resize,
            crop=self.crop,
            interpolation=self.interpolation or "bilinear",
            mean=self.mean,
            std=self.std,
            channels=self.channels or len(self.mean),
        )


def refuse_credentials(address: str) -> None:
    """Raises ValueError if the address contains credentials and is not the name of a local file."""
    if holds_credentials(address) and not os.path.exists(address):  # noqa: PTH110 - Path raises if it is not a path
        raise ValueError("holds credentials, which would end up in run.json; put them in the environment")


def full_path(path: str) -> str:
    """Returns a path of a configuration as absolute path, or as the address that it is. Raises ValueError."""
    if not path.strip():
        raise ValueError("is empty")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8, and run.json could not name it: rename it, or take the folder above") from None
    path = plain_scheme(path)
    return path if "://" in path and not path.startswith("file://") else normalize_uri(path)
