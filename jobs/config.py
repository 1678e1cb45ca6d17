"""The one configuration: typed, validated, the same as a YAML file, as flags, and in run.json.

Each field is a flag (``unit_size`` ↔ ``--unit-size``; the description is its help) and a key of ``--config``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from saliency_core.errors import Refused
from saliency_core.preprocessing import Preprocessing

MapDtype = Literal["float32", "float16", "uint8", "int8"]


def _size(value: object) -> object:
    """``"256"`` → 256; ``"224x224"`` → (224, 224)."""
    if not isinstance(value, str):
        return value
    parts = value.lower().split("x")
    if not all(part.isdigit() for part in parts) or len(parts) > 2:
        raise ValueError("is no size: write 256, or HEIGHTxWIDTH as 224x224")
    return int(parts[0]) if len(parts) == 1 else tuple(int(part) for part in parts)


def _pair(value: object) -> object:
    """A crop given as one number is square."""
    sized = _size(value)
    return (sized, sized) if isinstance(sized, int) else sized


def _numbers(value: object) -> object:
    if isinstance(value, str):
        return tuple(float(part) for part in value.split(","))
    return (value,) if isinstance(value, int | float) else value


def _number_or_name(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdigit() else value


Size = Annotated[int | tuple[int, int], BeforeValidator(_size)]
Pair = Annotated[tuple[int, int], BeforeValidator(_pair)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_numbers)]
AutoOrCount = Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], BeforeValidator(_number_or_name)]


def _key(default: Any, help_text: str, *, group: str, flag: str | None = None, **limits: Any) -> Any:
    return Field(default, description=help_text, json_schema_extra={"group": group, "flag": flag}, **limits)


class Config(BaseModel):
    """What a run is. Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: tuple[str, ...] = _key(
        ...,
        "folder, glob, .tar, .parquet or .csv list; local, s3://, gs:// or az://; may be repeated",
        group="Input",
        min_length=1,
    )
    model: str = _key(..., "torchvision:NAME, timm:NAME, python:package.module:factory or file:PATH", group="Model")
    out: str = _key(..., "the store: a new or our own directory, local or on an object store", group="Output")

    image_column: str | None = _key(
        None, "Parquet column with the image bytes (default: the only one that fits)", group="Input"
    )
    uri_column: str | None = _key(
        None, "column with the URIs of a list (default: uri, path, image, file or filename)", group="Input"
    )
    label_column: str | None = _key(
        None, "column, or .json key, with the labels (default: label, cls or class)", group="Input"
    )
    folder_labels: Literal["name", "order"] = _key(
        "name",
        "folder labels: by class name, or by the folders' sorted order (ImageNet's n01440764 …)",
        group="Input",
    )
    class_names: str | None = _key(None, "text file with one class name a line, in the model's order", group="Input")
    max_pixels: int = _key(100_000_000, "images with more pixels are quarantined, undecoded", group="Input", ge=1)
    max_bytes: int = _key(256 * 2**20, "images with more encoded bytes are quarantined, unread", group="Input", ge=1)

    weights: str | None = _key(
        None, "state dict or .safetensors file, or the name of a torchvision preset", group="Model"
    )
    num_classes: int | None = _key(
        None, "outputs of the head, where the weights have another number", group="Model", ge=1
    )
    output: Annotated[int | str | None, BeforeValidator(_number_or_name)] = _key(
        None, "which of several outputs holds the scores: a position or a name", group="Model"
    )
    precision: Literal["float32", "tf32", "bf16", "fp16"] = _key("float32", "arithmetic of the model", group="Model")

    preset: str | None = _key(
        None, "torchvision preset whose preprocessing goes with local weights", group="Preprocessing"
    )
    resize: Size | None = _key(
        None, "256: the shorter edge; 224x224: exactly, the aspect is not kept", group="Preprocessing"
    )
    crop: Pair | None = _key(None, "centre crop, 224 or HEIGHTxWIDTH", group="Preprocessing")
    interpolation: str | None = _key(
        None, "of the resize: nearest, bilinear (default), bicubic, lanczos, box, hamming", group="Preprocessing"
    )
    mean: Numbers | None = _key(None, "per channel, of values in 0..1: 0.485,0.456,0.406", group="Preprocessing")
    std: Numbers | None = _key(None, "per channel: 0.229,0.224,0.225", group="Preprocessing")
    channels: Literal[1, 3] | None = _key(None, "of the model's input: 3, or 1 for grey models", group="Preprocessing")

    methods: tuple[str, ...] = _key(
        ("gradient",),
        "map to make, as NAME or NAME(argument=value); may be repeated",
        group="Maps",
        flag="method",
        min_length=1,
    )
    targets: tuple[str, ...] = _key(
        ("predicted",),
        "score to explain: predicted, label, class:K; may be repeated",
        group="Maps",
        flag="target",
        min_length=1,
    )
    map_dtype: MapDtype = _key("float32", "on disk; the others than float32 are scaled per map", group="Maps")
    seed: int = _key(0, "of methods that draw noise", group="Maps", ge=0)

    runner: Literal["ray", "inline"] = _key("ray", "ray, or inline: the same stages in this process", group="Work")
    workers: AutoOrCount = _key("auto", "model replicas (auto: one per GPU, else per core)", group="Work")
    device: Literal["auto", "cpu", "cuda"] = _key(
        "auto", "where the model runs (auto: cuda where there is one)", group="Work"
    )
    gpus_per_worker: float = _key(1.0, "below 1, replicas share a GPU", group="Work", gt=0)
    threads: int = _key(1, "CPU threads of each replica; part of what the bytes depend on", group="Work", ge=1)
    batch_size: AutoOrCount = _key(
        "auto", "images in one forward (micro-batch), fixed for the store's life", group="Work"
    )
    unit_size: AutoOrCount = _key(
        "auto", "rows per unit (auto: 256, scaled so that a shard is 16 to 128 MB)", group="Work"
    )
    limit: int | None = _key(
        None,
        "commit only the first units that hold this many rows; go on later without it",
        group="Work",
        ge=1,
    )

    @field_validator("images", "methods", "targets", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("images", "out")
    @classmethod
    def _no_credentials(cls, value: tuple[str, ...] | str) -> tuple[str, ...] | str:
        for uri in (value,) if isinstance(value, str) else value:
            if "://" in uri and "@" in urlsplit(uri).netloc:
                raise ValueError("holds credentials, which would end up in run.json; put them in the environment")
        return value

    @field_validator("images")
    @classmethod
    def _full_images(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_full, value))

    @field_validator("out", "class_names", "weights")
    @classmethod
    def _full_path(cls, value: str | None, about: ValidationInfo) -> str | None:
        """Local paths in full: a store knows its inputs wherever it is worked on from."""
        name_of_preset = about.field_name == "weights" and value and not (Path(value).suffix or Path(value).exists())
        return value if value is None or name_of_preset else _full(value)

    @field_validator("channels", mode="before")
    @classmethod
    def _channels(cls, value: object) -> object:
        return _number_or_name(value)

    @model_validator(mode="after")
    def _whole_preprocessing(self) -> Config:
        self.preprocessing()
        return self

    def preprocessing(self) -> Preprocessing | None:
        """The explicit one; None where no key of it is given. ValueError where it is half given."""
        given = {
            "resize": self.resize,
            "crop": self.crop,
            "mean": self.mean,
            "std": self.std,
            "channels": self.channels,
            "interpolation": self.interpolation,
        }
        if all(value is None for value in given.values()):
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


def _full(path: str) -> str:
    if not path.strip():
        raise ValueError("is empty")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8, and run.json could not name it: rename it, or take the folder above") from None
    return path if "://" in path else str(Path(path).absolute())


def make_config(flags: dict[str, Any], *, file: Path | None = None) -> Config:
    """Flags over the keys of a YAML file, over the defaults. Refused with every trouble named."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(file.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise Refused(f"--config {file} cannot be read: {error}") from error
        if not isinstance(loaded, dict):
            raise Refused(f"--config {file} is not a YAML mapping of keys to values.")
        values.update({_key_of(str(key)): value for key, value in loaded.items()})
    values.update(flags)
    try:
        return Config(**values)
    except ValidationError as error:
        # Of a union, pydantic tells the trouble of each alternative; the flag is what the user wrote.
        troubles: dict[str, list[str]] = {}
        for one in error.errors():
            troubles.setdefault(_flag(one["loc"]), []).append(_words(one))
        lines = [f"{flag}: {', or '.join(dict.fromkeys(told))}" for flag, told in troubles.items()]
        raise Refused("the configuration cannot work:\n  " + "\n  ".join(lines)) from error


def _flag(location: tuple[int | str, ...]) -> str:
    return flag_of(str(location[0])) if location else "configuration"


def _key_of(name: str) -> str:
    """A key as YAML may spell it: also as its flag."""
    names = {flag_of(key).removeprefix("--"): key for key in Config.model_fields}
    return names.get(name.replace("_", "-"), name)


def flag_of(key: str) -> str:
    """``unit_size`` → ``--unit-size``."""
    field = Config.model_fields.get(key)
    extra = field.json_schema_extra if field is not None and isinstance(field.json_schema_extra, dict) else {}
    return "--" + (str(extra.get("flag") or key)).replace("_", "-")


def _words(error: Any) -> str:
    given = "" if error["type"] == "missing" else f" (given: {error['input']!r})"
    return f"{error['msg'].removeprefix('Value error, ')}{given if len(given) < 120 else ''}"
