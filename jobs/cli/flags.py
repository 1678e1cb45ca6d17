"""The options of commands: a configuration's fields, groups of options that commands share, and single ones.

A group of options reaches the command as one argument, which is made of the options' values.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from jobs.config.explain_config import REPEATED, flag_of
from jobs.config.job_config import JobConfig
from jobs.config.requested_rows import RowSelection, parse_row_numbers
from saliency_core.visualization.map_style import MapStyle

# -- single options and arguments ------------------------------------------------------------------------------

Out = Annotated[str, typer.Argument(help="a store that explain made", metavar="OUT")]
Runner = Annotated[str, typer.Option(help="ray or inline", metavar="ray|inline")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with these keys; flags win")]
AcceptVersions = Annotated[
    bool,
    typer.Option(
        "--accept-versions", help="go on with other packages, arithmetic or code than the store was begun with"
    ),
]
AllowQuarantined = Annotated[
    bool,
    typer.Option("--allow-quarantined", help="exit code 0, not 3, if only quarantined or partial rows lack"),
]

# -- groups of options -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptionGroup:
    """Options of the command line, in the order of ``--help``; ``build`` makes one argument of their values."""

    options: tuple[inspect.Parameter, ...]
    build: Callable[..., object]


def with_options(**groups: OptionGroup) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A decorator that replaces each named parameter of a command by the options of its group, for typer to read."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        def wrapped(**values: Any) -> int:
            arguments = {
                name: group.build(**{option.name: values.pop(option.name) for option in group.options})
                for name, group in groups.items()
            }
            return command(**arguments, **values)

        functools.update_wrapper(wrapped, command, assigned=("__doc__", "__name__"))
        vars(wrapped).pop("__wrapped__")  # typer would read the signature of the command itself
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
    """One option for each field of a configuration, required fields first; builds the dict of those that are given."""
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


def row_options(*, n: int | None, help_texts: Mapping[str, str]) -> OptionGroup:
    """``--rows``, ``--class``, ``--highest``, ``--lowest``, ``-n``; builds a RowSelection. ``n``: its default."""
    return OptionGroup(
        (
            _option("rows", str | None, typer.Option(help=help_texts["rows"])),
            _option("class_", str | None, typer.Option("--class", help=help_texts["class_"])),
            _option("highest", str | None, typer.Option(help=help_texts["highest"])),
            _option("lowest", str | None, typer.Option(help=help_texts["lowest"])),
            _option("n", int | None, typer.Option("-n", help=help_texts["n"]), default=n),
        ),
        _row_selection,
    )


def _row_selection(*, rows: str | None, **others: Any) -> RowSelection:
    return RowSelection(rows=None if rows is None else parse_row_numbers(rows), **others)


# -- map style -------------------------------------------------------------------------------------------------

MAP_STYLE_HELP = {
    "cmap": "a colour map of matplotlib's [default: hot, bwr for signed maps]",
    "clip": "percentile that gets the last colour; 100 clips nothing",
    "invert": "draw 1 − map",
    "blur": "Gaussian blur of the maps: sigma in their pixels",
    "alpha": "opacity of the strongest value on the image",
}


def map_style_options(help_texts: Mapping[str, str]) -> OptionGroup:
    """One option for each field of MapStyle, with its default; builds a MapStyle."""
    types = get_type_hints(MapStyle)
    options = []
    for field in fields(MapStyle):
        flag = flag_of(field.name)  # named, or typer would add a --no- form to a switch
        option = typer.Option(flag, help=help_texts[field.name])
        options.append(_option(field.name, types[field.name], option, default=field.default))
    return OptionGroup(tuple(options), MapStyle)
