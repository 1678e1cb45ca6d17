"""Defines options that commands share: single ones, and groups of options that a command receives as one argument."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from jobs.config.explain_config import REPEATED, flag_of
from jobs.config.job_config import JobConfig
from jobs.config.requested_rows import RowSelection, parse_row_numbers
from saliency_core.visualization.map_style import MapStyle

# -- single options and arguments ------------------------------------------------------------------------------

Out = Annotated[str, typer.Argument(help="path or address of a store, for example s3://bucket/maps", metavar="OUT")]
Runner = Annotated[str, typer.Option(help="ray, or inline: the same stages in this process", metavar="ray|inline")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file with these flags as keys, for example run.yaml; flags take precedence"),
]
AcceptVersions = Annotated[
    bool,
    typer.Option(
        "--accept-versions", help="resume even if packages, arithmetic or code differ from those that began the store"
    ),
]
AllowQuarantined = Annotated[
    bool,
    typer.Option("--allow-quarantined", help="exit with 0, not 3, if only quarantined or partial rows are missing"),
]

# -- groups of options -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptionGroup:
    """Options in the order of ``--help``, and ``build``, which makes one argument of their values."""

    options: tuple[inspect.Parameter, ...]
    build: Callable[..., object]


def with_options(**groups: OptionGroup) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Returns a decorator that replaces each named parameter of a command by the options of its group."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        def wrapped(**values: Any) -> int:
            arguments = {
                name: group.build(**{option.name: values.pop(option.name) for option in group.options})
                for name, group in groups.items()
            }
            return command(**arguments, **values)

        functools.update_wrapper(wrapped, command, assigned=("__doc__", "__name__"))
        vars(wrapped).pop("__wrapped__")  # or typer reads the signature of the command itself
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            group = groups.get(parameter.name)
            parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)] if group is None else group.options
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate


def _option(name: str, type_: Any, option: Any, default: object = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[type_, option])


# -- a configuration -------------------------------------------------------------------------------------------


def config_options(kind: type[JobConfig]) -> OptionGroup:
    """Makes an option of each field of a configuration, required fields first; builds the dict of the given values."""
    options = [
        _config_option(key, field)
        for key, field in sorted(kind.model_fields.items(), key=lambda item: not item[1].is_required())
    ]
    return OptionGroup(tuple(options), _given_values)


def _config_option(key: str, field: Any) -> inspect.Parameter:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = "" if field.is_required() or field.default is None else f" [default: {_default_text(field.default)}]"
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    option = typer.Option(
        f"{flag_of(key)}/{flag_of(f'no_{key}')}" if field.annotation is bool else flag_of(key),
        help=f"{field.description}{default}",
        show_default=False,
        rich_help_panel=str(extra["group"]),
        metavar=None if field.annotation is bool else "|".join(choices) if len(choices) > 1 else "VALUE",
    )
    type_: Any = list[str] | None if key in REPEATED else bool | None if field.annotation is bool else str | None
    return _option(key, type_, option)


def _default_text(default: object) -> str:
    return ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _given_values(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, [])}


# -- rows ------------------------------------------------------------------------------------------------------


def row_options(*, n: int | None) -> OptionGroup:
    """Options that select rows; builds a RowSelection. ``n``: the default number of rows, None for all."""
    default = " [default: all]" if n is None else ""
    texts = {
        "rows": f"row numbers, for example 0,5,9{default}",
        "class_": "only rows of this class, as a number or a name, for example 207 or tabby",
        "highest": "rows with the highest values of this index column, for example predicted__score",
        "lowest": "rows with the lowest values of this index column, for example predicted__probability",
        "n": f"number of rows, at most{default}",
    }
    return OptionGroup(
        (
            _option("rows", str | None, typer.Option(help=texts["rows"])),
            _option("class_", str | None, typer.Option("--class", help=texts["class_"])),
            _option("highest", str | None, typer.Option(help=texts["highest"])),
            _option("lowest", str | None, typer.Option(help=texts["lowest"])),
            _option("n", int | None, typer.Option("-n", help=texts["n"]), default=n),
        ),
        _row_selection,
    )


def _row_selection(*, rows: str | None, **values: Any) -> RowSelection:
    return RowSelection(rows=None if rows is None else parse_row_numbers(rows), **values)


# -- map style -------------------------------------------------------------------------------------------------

_MAP_STYLE_HELP = {
    "cmap": "matplotlib colour map, for example viridis [default: hot; bwr for signed maps]",
    "clip": "percentile of a map's values that gets the last colour, over 50; 100 clips nothing",
    "invert": "draw 1 − map",
    "blur": "sigma of a Gaussian blur, in the map's pixels; 0 blurs nothing",
    "alpha": "opacity of the map's strongest value on the image, 0 to 1",
}


def map_style_options(*, prefix: str = "") -> OptionGroup:
    """Makes an option of each field of MapStyle, with its default; builds a MapStyle. ``prefix``: of the help texts."""
    types = get_type_hints(MapStyle)
    options = []
    for field in fields(MapStyle):
        flag = flag_of(field.name)  # without it, typer adds --no-invert
        option = typer.Option(flag, help=f"{prefix}{_MAP_STYLE_HELP[field.name]}")
        options.append(_option(field.name, types[field.name], option, default=field.default))
    return OptionGroup(tuple(options), MapStyle)
