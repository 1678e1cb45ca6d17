"""What the configurations of all jobs share: typed, validated, the same as a YAML file, as flags, and in run.json.

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
    """``"256"`` → 256; ``"224x224"`` → (224, 224)."""
    if not isinstance(value, str):
        return value
    parts = value.lower().split("x")
    if not all(part.isdigit() for part in parts) or len(parts) > 2:
        raise ValueError("is no size: write 256, or HEIGHTxWIDTH as 224x224")
    return int(parts[0]) if len(parts) == 1 else tuple(int(part) for part in parts)


def _parse_pair(value: object) -> object:
    """A crop given as one number is square."""
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
    """A field of a configuration; ``group``: under which heading its flag is."""
    return Field(default, description=help_text, json_schema_extra={"group": group}, **limits)


class JobConfig(BaseModel):
    """What every job must be told: the model, what its images look like, where the work is done and where it goes.

    Frozen; unknown keys are refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: str = config_field(
        ..., "torchvision:NAME, timm:NAME, python:package.module:factory or file:PATH", group="Model"
    )
    out: str = config_field(..., "the store: a new or our own directory, local or on an object store", group="Output")

    class_names: str | None = config_field(
        None, "text file with one class name a line, in the model's order", group="Input"
    )

    weights: str | None = config_field(
        None, "state dict or .safetensors file, or the name of a torchvision preset", group="Model"
    )
    weights_key: str | None = config_field(
        None,
        "which entry of the weights' file is loaded, as state_dict_ema (dotted if nested), or the prefix of its names",
        group="Model",
    )
    num_classes: int | None = config_field(
        None, "outputs of the head, where the weights have another number", group="Model", ge=1, le=bounds.CLASSES
    )
    output: Annotated[int | str | None, BeforeValidator(_parse_number_or_name)] = config_field(
        None, "which of several outputs holds the scores: a position or a name", group="Model"
    )

    head: Literal["auto", "softmax", "sigmoid"] = config_field(
        "auto",
        "what makes probabilities of scores: softmax, or sigmoid for labels that exclude no other (auto: as the model "
        "ends, else softmax; of one logit sigmoid)",
        group="Model",
    )

    preset: str | None = config_field(
        None, "torchvision preset whose preprocessing goes with local weights", group="Preprocessing"
    )
    resize: Size | None = config_field(
        None, "256: the shorter edge; 224x224: exactly, the aspect is not kept", group="Preprocessing"
    )
    crop: Pair | None = config_field(None, "centre crop, 224 or HEIGHTxWIDTH", group="Preprocessing")
    interpolation: str | None = config_field(
        None, "of the resize: nearest, bilinear (default), bicubic, lanczos, box, hamming", group="Preprocessing"
    )
    mean: Means | None = config_field(None, "per channel, of values in 0..1: 0.485,0.456,0.406", group="Preprocessing")
    std: Deviations | None = config_field(None, "per channel: 0.229,0.224,0.225", group="Preprocessing")
    channels: Literal[1, 3] | None = config_field(
        None, "of the model's input: 3, or 1 for grey models", group="Preprocessing"
    )

    runner: Literal["ray", "inline"] = config_field(
        "ray", "ray, or inline: the same stages in this process", group="Work"
    )
    workers: AutoOrCount = config_field("auto", "model replicas (auto: one per GPU, else per core)", group="Work")
    device: Literal["auto", "cpu", "cuda"] = config_field(
        "auto", "where the model runs (auto: cuda where there is one)", group="Work"
    )
    gpus_per_worker: float = config_field(
        1.0, "below 1, replicas share a GPU", group="Work", ge=1 / bounds.GPUS, le=bounds.GPUS
    )
    threads: int = config_field(
        1, "CPU threads of each replica; part of what the bytes depend on", group="Work", ge=1, le=bounds.THREADS
    )
    batch_size: AutoOrCount = config_field(
        "auto", "images in one forward (micro-batch), fixed for the store's life", group="Work"
    )
    unit_seconds: float = config_field(
        3600.0, "how long the model may take for a unit; then the run stops", group="Work", gt=0, le=bounds.YEAR
    )
    stall_seconds: float = config_field(
        7200.0,
        "the run stops, and tells what hangs, when nothing was committed for so long",
        group="Work",
        gt=0,
        le=bounds.YEAR,
    )
    allow_quarantined: bool = config_field(
        False, "exit code 0, not 3, when rows are quarantined or partial and all else is done", group="Work"
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
        """Local paths in full: a store knows its inputs wherever it is worked on from."""
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
        """The explicit one; None where no key of it is given. ValueError where it is half given."""
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
                "explicit preprocessing needs mean and std beside resize or crop, or every image is fed wrongly"
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
    """Raises ValueError if the address holds credentials, and is not the name of a local file."""
    if holds_credentials(address) and not os.path.exists(address):  # noqa: PTH110 - Path raises for what is no path
        raise ValueError("holds credentials, which would end up in run.json; put them in the environment")


def full_path(path: str) -> str:
    """A path of the command line or of a configuration: absolute, or the address that it is. Raises ValueError."""
    if not path.strip():
        raise ValueError("is empty")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8, and run.json could not name it: rename it, or take the folder above") from None
    path = plain_scheme(path)
    return path if "://" in path and not path.startswith("file://") else normalize_uri(path)
