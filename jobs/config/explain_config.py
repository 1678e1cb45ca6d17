"""The configuration of ``saliency explain``, and the reading of any job's configuration from flags and YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import ValidationError, field_validator

from jobs.config.job_config import AutoOrCount, JobConfig, config_field, full_path
from jobs.util import bounds
from jobs.util.redaction import scrubbed, scrubbed_text
from saliency_core.errors import InvalidRequestError

MapDtype = Literal["float32", "float16", "uint8", "int8"]
AnyConfig = TypeVar("AnyConfig", bound=JobConfig)

REPEATED = {"images": "images", "methods": "method", "targets": "target"}
"""Keys that hold several values → the flag for one of them, which may be repeated."""


class ExplainConfig(JobConfig):
    """The configuration of a run that explains images."""

    images: tuple[str, ...] = config_field(
        ...,
        "images to explain: a folder, glob, .tar, .parquet or .csv list; local, s3://, gs:// or az://; may be repeated",
        group="Input",
        min_length=1,
    )
    image_column: str | None = config_field(
        None, "Parquet column with the image bytes (default: the only column that fits)", group="Input"
    )
    uri_column: str | None = config_field(
        None, "column of a list with the images' URIs (default: uri, path, image, file or filename)", group="Input"
    )
    label_column: str | None = config_field(
        None, "column, or key of a .json file, with the labels (default: label, cls or class)", group="Input"
    )
    folder_labels: Literal["name", "order"] = config_field(
        "name",
        "how folders give labels: name (a folder has the name of its class), or order (the sorted folders are the "
        "classes in order, as ImageNet's n01440764 …)",
        group="Input",
    )
    max_pixels: int = config_field(
        100_000_000,
        "largest number of pixels of an image; a larger image is quarantined without being decoded",
        group="Input",
        ge=1,
        le=bounds.PIXELS,
    )
    max_bytes: int = config_field(
        256 * 2**20,
        "largest size of an encoded image in bytes; a larger image is quarantined without being read",
        group="Input",
        ge=1,
        le=bounds.BYTES,
    )
    max_seconds: float = config_field(
        60.0,
        "longest time to decode an image in seconds; a slower image is quarantined",
        group="Input",
        gt=0,
        le=bounds.YEAR,
    )

    precision: Literal["float32", "tf32", "bf16", "fp16"] = config_field(
        "float32", "floating-point precision of the model", group="Model"
    )

    methods: tuple[str, ...] = config_field(
        ("gradient",),
        "method that makes a map, as NAME or NAME(argument=value); may be repeated; `saliency methods` lists them",
        group="Maps",
        min_length=1,
    )
    targets: tuple[str, ...] = config_field(
        ("predicted",),
        "score to explain: predicted, label, class:K, top:K, …; may be repeated; `saliency methods` lists them",
        group="Maps",
        min_length=1,
    )
    map_dtype: MapDtype = config_field(
        "float32", "number type of the maps on disk; maps are scaled one by one, except for float32", group="Maps"
    )
    seed: int = config_field(0, "seed of methods that draw random numbers", group="Maps", ge=0, le=bounds.SEED)

    unit_size: AutoOrCount = config_field(
        "auto", "rows per unit, or auto (256, scaled so that a shard has 16 to 128 MB)", group="Work"
    )
    limit: int | None = config_field(
        None,
        "commit only the first units that hold this many rows; to continue, run again without it",
        group="Work",
        ge=1,
        le=bounds.COUNT,
    )

    @field_validator("images", "methods", "targets", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("images")
    @classmethod
    def _full_images(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(full_path(path) for path in value)


def make_config(flags: dict[str, Any], *, file: Path | None = None) -> ExplainConfig:
    """Reads the configuration of ``saliency explain``; see ``read_config``."""
    return read_config(ExplainConfig, flags, file=file)


def read_config(kind: type[AnyConfig], flags: dict[str, Any], *, file: Path | None = None) -> AnyConfig:
    """Reads a configuration: flags take precedence over keys of the YAML file, and these over defaults.

    Raises InvalidRequestError, which names every problem.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = yaml.load(file.read_text(), _UniqueKeyLoader)  # noqa: S506 - a SafeLoader
        except RecursionError:
            raise InvalidRequestError(f"--config {file} cannot be read: its values are nested too deeply.") from None
        except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: bad UTF-8, dates, numbers of 5,000 digits
            raise InvalidRequestError(f"--config {file} cannot be read: {scrubbed_text(str(error))}") from error
        if not isinstance(loaded, dict):
            raise InvalidRequestError(f"--config {file} is not a YAML mapping of keys to values.")
        nested = [str(name) for name, value in loaded.items() if _nests(value)]
        if nested:
            raise InvalidRequestError(
                f"--config {file}: {', '.join(nested)} holds a mapping, or a list of lists: write one value, or a list "
                "of values (a target or method that needs braces or brackets in quotes)."
            )
        for name, value in loaded.items():
            if (key := _key_of(str(name), kind)) in values:
                raise InvalidRequestError(
                    f"--config {file} gives {flag_of(key)} twice, the second time as {name}: keep one."
                )
            values[key] = value
        fields = kind.model_fields
        # pydantic accepts true for the number 1.
        booleans = {key for key in values.keys() & fields.keys() if _holds_boolean(values[key])}
        if wrong := sorted(flag_of(key) for key in booleans if fields[key].annotation is not bool):
            raise InvalidRequestError(f"--config {file}: {', '.join(wrong)} is true or false: write its value.")
    values.update(flags)
    try:
        return kind(**values)
    except ValidationError as error:
        # For a union, pydantic reports the problem of each alternative. They are grouped by flag.
        problems: dict[str, list[str]] = {}
        for detail in error.errors():
            problems.setdefault(_flag_of_location(detail["loc"]), []).append(_describe_error(detail))
        lines = [f"{flag}: {', or '.join(dict.fromkeys(texts))}" for flag, texts in problems.items()]
        raise InvalidRequestError(scrubbed_text("the configuration cannot work:\n  " + "\n  ".join(lines))) from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML and raises ValueError if a key is given twice; the base class would keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is given more than once: keep one")
        return super().construct_mapping(node, deep)


def _holds_boolean(value: object) -> bool:
    return any(isinstance(item, bool) for item in (value if isinstance(value, list) else [value]))


def _nests(value: object) -> bool:
    """Whether a YAML value is more than a scalar or a list of scalars.

    The value is not walked, because a few aliases may stand for billions of nodes.
    """
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, list | dict | set | tuple) for item in items)


def _flag_of_location(location: tuple[int | str, ...]) -> str:
    return flag_of(str(location[0])) if location else "configuration"


def _key_of(name: str, kind: type[JobConfig]) -> str:
    """Returns the key for a name in YAML, which may also be written as the flag."""
    names = {flag_of(key).removeprefix("--"): key for key in kind.model_fields}
    return names.get(name.replace("_", "-"), name)


def flag_of(name: str) -> str:
    """Returns the flag of a key: ``unit_size`` → ``--unit-size``."""
    return "--" + REPEATED.get(name, name).replace("_", "-")


def _describe_error(error: Any) -> str:
    value = "" if error["type"] == "missing" else f" (given: {_scrub_input(error['input'])!r})"
    return f"{error['msg'].removeprefix('Value error, ')}{value if len(value) < 120 else ''}"


def _scrub_input(value: object) -> object:
    if isinstance(value, list | tuple):
        return type(value)(map(_scrub_input, value))
    return scrubbed(value) if isinstance(value, str) else value
