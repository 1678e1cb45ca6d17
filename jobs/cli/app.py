"""The commands: flags in, exit codes out; no logic, and nothing heavy imported before it is needed."""

from __future__ import annotations

import functools
import inspect
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.logging import RichHandler

from jobs.config.classes_config import ClassesConfig
from jobs.config.explain_config import REPEATED, Config, flag_of, read_config
from jobs.config.flag_names import use_flag_names
from jobs.config.job_config import JobConfig
from jobs.util.console import PlainFormatter, print_text
from jobs.util.environment import (
    ensure_user,
    force_agg_backend,
    refuse_missing_working_directory,
    reset_warning_filters,
    restart_in_utf8,
)
from jobs.util.exit_codes import DONE, INTERRUPTED, NOT_FINISHED, REFUSED
from jobs.util.hidden_modules import describe_hidden_module
from jobs.util.job_errors import JobStopped, StoreMissing
from saliency_core.errors import InvalidRequestError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console()
errors = Console(stderr=True)

GOES_ON = "What was committed is safe. To go on from there, run the same command again."

AllowQuarantined = Annotated[
    bool,
    typer.Option("--allow-quarantined", help="exit code 0, not 3, if only quarantined or partial rows lack"),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with these keys; flags win")]
AcceptVersions = Annotated[
    bool,
    typer.Option(
        "--accept-versions", help="go on with other packages, arithmetic or code than the store was begun with"
    ),
]
Out = Annotated[str, typer.Argument(help="a store that explain made", metavar="OUT")]


def main() -> None:
    """Runs a command; its troubles become a message and an exit code (see README)."""
    restart_in_utf8()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? for what it lacks
    force_agg_backend()
    reset_warning_filters()
    ensure_user()
    told = RichHandler(console=errors, show_path=False)
    told.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[told])
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it makes a cache elsewhere if HOME cannot be written
    app()


def _command(function: Callable[..., int]) -> Callable[..., int]:
    """Registers a command that returns its exit code."""

    @app.command()
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        raise typer.Exit(_exit_code(functools.partial(function, *args, **kwargs)))

    return function


def _exit_code(function: Callable[[], int]) -> int:
    try:
        refuse_missing_working_directory()
        return function()
    except InvalidRequestError as error:
        _tell("refused", str(error))
        return REFUSED
    except KeyboardInterrupt:
        _tell("interrupted", GOES_ON)
        return INTERRUPTED
    except JobStopped as error:
        if "SALIENCY_TRACEBACK" in os.environ:
            raise
        _tell("stopped", str(error) if isinstance(error, StoreMissing) else f"{error}\n{GOES_ON}")
        return NOT_FINISHED
    except Exception as error:
        if "SALIENCY_TRACEBACK" in os.environ:
            raise
        if hides := describe_hidden_module(error):
            _tell("refused", hides)
            return REFUSED
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        _tell(
            "failed",
            f"{type(error).__name__}: {error}{notes}\n{GOES_ON} With SALIENCY_TRACEBACK=1 in the environment it "
            "tells where it failed.",
        )
        return NOT_FINISHED


def _tell(what: str, text: str) -> None:
    print_text(errors, f"{what}: {use_flag_names(text)}")


def _with_flags_of(kind: type[JobConfig], command: Callable[..., int]) -> Callable[..., int]:
    """Gives ``command(flags, …)`` one option per field of a configuration, the only place where flags are defined."""
    own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name != "flags"]
    options = []
    # What must be given comes first.
    for key, field in sorted(kind.model_fields.items(), key=lambda one: not one[1].is_required()):
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = "" if field.is_required() or field.default is None else f" [default: {_told(field.default)}]"
        choices = [str(one) for one in get_args(field.annotation) if isinstance(one, str)]
        option = typer.Option(
            f"{flag_of(key)}/{flag_of(f'no_{key}')}" if field.annotation is bool else flag_of(key),
            help=f"{field.description}{default}",
            show_default=False,
            rich_help_panel=str(extra["group"]),
            metavar=None if field.annotation is bool else "|".join(choices) if len(choices) > 1 else "VALUE",
        )
        type_: Any = list[str] | None if key in REPEATED else bool | None if field.annotation is bool else str | None
        options.append(
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[type_, option])
        )

    def wrapped(**values: Any) -> int:
        flags = {key: values.pop(key) for key in kind.model_fields}
        return command({key: value for key, value in flags.items() if value not in (None, [])}, **values)

    functools.update_wrapper(wrapped, command, assigned=("__doc__", "__name__"))
    vars(wrapped).pop("__wrapped__")  # typer would look through it
    signature = inspect.Signature([*options, *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own)])
    wrapped.__signature__ = signature  # type: ignore[attr-defined]
    wrapped.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
    return wrapped


def _told(default: object) -> str:
    return ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


@_command
@functools.partial(_with_flags_of, Config)
def explain(
    flags: dict[str, Any],
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    accept_versions: AcceptVersions = False,
) -> int:
    """Explain every image: maps and an index into a store. Goes on by itself where the store is unfinished."""
    made = read_config(Config, flags, file=config)
    from jobs.explain import explain_command as job

    return job.explain(made, console, dry_run=dry_run, accept_versions=accept_versions)


@_command
@functools.partial(_with_flags_of, ClassesConfig)
def classes(flags: dict[str, Any], config: ConfigFile = None, accept_versions: AcceptVersions = False) -> int:
    """Show what the model takes each class for: the image that its score is highest on."""
    made = read_config(ClassesConfig, flags, file=config)
    from jobs.classes import classes_command as job

    return job.visualise(made, console, accept_versions=accept_versions)


@_command
def status(out: Out) -> int:
    """How far a run is, and what went wrong so far."""
    from jobs.inspect import status as told

    return told.status(out, console)


@_command
def verify(
    out: Out,
    recompute: Annotated[int, typer.Option(min=0, help="also explain this many random rows again and compare")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="which random rows")] = 0,
) -> int:
    """Prove that plan, index, arrays and hashes agree; name what does not."""
    from jobs.verify import verify_command as proof

    return proof.verify(out, console, recompute=recompute, seed=seed)


@_command
def retry(
    out: Out,
    workers: Annotated[str, typer.Option(help="model replicas")] = "auto",
    runner: Annotated[str, typer.Option(help="ray or inline", metavar="ray|inline")] = "ray",
    max_pixels: Annotated[int | None, typer.Option(help="another cap than explain had")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="another cap than explain had")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="another cap than explain had")] = None,
    accept_versions: AcceptVersions = False,
    allow_quarantined: AllowQuarantined = False,
) -> int:
    """Explain again the units that hold quarantined rows; their inputs are listed again."""
    from jobs.explain import retry as again

    return again.retry(
        out,
        console,
        workers=workers,
        runner=runner,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        max_seconds=max_seconds,
        accept_versions=accept_versions,
        allow_quarantined=allow_quarantined,
    )


@_command
def show(
    out: Out,
    output: Annotated[Path, typer.Option("-o", "--output", help="the picture: .png, .pdf, .svg or .jpg")],
    rows: Annotated[str | None, typer.Option(help="row numbers, as 0,5,9")] = None,
    class_: Annotated[str | None, typer.Option("--class", help="only rows of this class, by number or name")] = None,
    highest: Annotated[str | None, typer.Option(help="rows with the highest values of this index column")] = None,
    lowest: Annotated[str | None, typer.Option(help="rows with the lowest values of this index column")] = None,
    n: Annotated[int, typer.Option("-n", help="how many rows")] = 6,
    array: Annotated[
        list[str] | None, typer.Option(help="as predicted/gradient; repeatable [default: all, where there are few]")
    ] = None,
    view: Annotated[
        list[str] | None, typer.Option(help="repeatable [default: map, overlay]", metavar="map|overlay|mask")
    ] = None,
    cmap: Annotated[
        str | None, typer.Option(help="a colour map of matplotlib's [default: hot, bwr for signed maps]")
    ] = None,
    clip: Annotated[float, typer.Option(help="percentile that gets the last colour; 100 clips nothing")] = 99.5,
    invert: Annotated[bool, typer.Option("--invert", help="draw 1 − map")] = False,
    blur: Annotated[float, typer.Option(help="Gaussian blur of the maps: sigma in their pixels")] = 0,
    alpha: Annotated[float, typer.Option(help="opacity of the strongest value on the image")] = 0.9,
) -> int:
    """Draw rows: the image, its maps, and the maps on the image at its original size."""
    from jobs.inspect import show as picture
    from jobs.store.row_selection import row_numbers
    from saliency_core.visualization.map_style import MapStyle

    made = picture.show(
        out,
        output=output,
        rows=None if rows is None else row_numbers(rows),
        class_=class_,
        highest=highest,
        lowest=lowest,
        n=n,
        arrays=array,
        views=view or ("map", "overlay"),
        look=MapStyle(cmap=cmap, clip=clip, invert=invert, blur=blur, alpha=alpha),
    )
    print_text(console, str(made))
    return DONE


@_command
def audit(
    out: Out,
    array: Annotated[
        str | None, typer.Option(help="as predicted/gradient [default: the first]", show_default=False)
    ] = None,
    objects: Annotated[
        str | None, typer.Option(help="Parquet or CSV of sample_id and x0, y0, x1, y1 or mask: where objects are")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of what is drawn at random")] = 0,
    runner: Annotated[str, typer.Option(help="ray or inline", metavar="ray|inline")] = "ray",
    report: Annotated[bool, typer.Option("--report/--no-report", help="pages to look at, in OUT/report")] = True,
    allow_quarantined: AllowQuarantined = False,
) -> int:
    """Find what the model looks at, class by class, and what is suspicious about it; write a report."""
    from jobs.audit import audit_command as job

    return job.audit(
        out,
        console,
        array=array,
        objects=objects,
        seed=seed,
        runner=runner,
        report=report,
        allow_quarantined=allow_quarantined,
    )


@_command
def compare(
    a: Annotated[str, typer.Argument(help="a store that explain made", metavar="A")],
    b: Annotated[str, typer.Argument(help="another, of the same images", metavar="B")],
    output: Annotated[str, typer.Option(help="a new directory, for the report and its tables")],
    array: Annotated[str | None, typer.Option(help="as predicted/gradient [default: the first that both have]")] = None,
    array_b: Annotated[str | None, typer.Option(help="B's, where it is another")] = None,
    top: Annotated[float, typer.Option(help="the share of the pixels that is a map's top region")] = 0.1,
    runner: Annotated[str, typer.Option(help="ray or inline", metavar="ray|inline")] = "ray",
    allow_quarantined: AllowQuarantined = False,
) -> int:
    """Compare two models, methods or releases: whose class changed, whose maps moved, and where to."""
    from jobs.compare import compare_command as comparison

    return comparison.compare(
        a,
        b,
        console,
        output=output,
        array=array,
        array_b=array_b,
        top=top,
        runner=runner,
        allow_quarantined=allow_quarantined,
    )


@_command
def export(
    out: Out,
    to: Annotated[str, typer.Option(help="for which tool", metavar="virelay|quantus|webdataset|png")],
    output: Annotated[str, typer.Option("-o", "--output", help="a directory, new or of the same export")],
    array: Annotated[list[str] | None, typer.Option(help="as predicted/gradient; repeatable [default: all]")] = None,
    rows: Annotated[str | None, typer.Option(help="row numbers, as 0,5,9 [default: all]")] = None,
    class_: Annotated[str | None, typer.Option("--class", help="only rows of this class, by number or name")] = None,
    highest: Annotated[str | None, typer.Option(help="by the highest values of this index column")] = None,
    lowest: Annotated[str | None, typer.Option(help="by the lowest values of this index column")] = None,
    n: Annotated[int | None, typer.Option("-n", help="how many rows [default: all]")] = None,
    rows_per_part: Annotated[int | None, typer.Option(help="rows in a file, where it holds several")] = None,
    originals: Annotated[bool, typer.Option("--originals", help="webdataset: also the images, as .jpg")] = False,
    view: Annotated[
        list[str] | None, typer.Option(help="png: repeatable [default: map, overlay]", metavar="map|overlay|mask")
    ] = None,
    cmap: Annotated[str | None, typer.Option(help="png: as for show")] = None,
    clip: Annotated[float, typer.Option(help="png: as for show")] = 99.5,
    invert: Annotated[bool, typer.Option("--invert", help="png: as for show")] = False,
    blur: Annotated[float, typer.Option(help="png: as for show")] = 0,
    alpha: Annotated[float, typer.Option(help="png: as for show")] = 0.9,
    allow_quarantined: AllowQuarantined = False,
) -> int:
    """Hand rows of a store over to other tools. Goes on by itself where it was stopped."""
    from jobs.export import export_command as run
    from jobs.store.row_selection import row_numbers
    from saliency_core.visualization.map_style import MapStyle

    return run.export(
        out,
        console,
        to=to,
        output=output,
        arrays=array,
        rows=None if rows is None else row_numbers(rows),
        class_=class_,
        highest=highest,
        lowest=lowest,
        n=n,
        views=view,
        look=MapStyle(cmap=cmap, clip=clip, invert=invert, blur=blur, alpha=alpha),
        originals=originals,
        rows_per_part=rows_per_part,
        allow_quarantined=allow_quarantined,
    )


@_command
def methods() -> int:
    """The methods, targets and reductions that explain knows."""
    from jobs.inspect import list_methods as known

    return known.methods(console)


@_command
def demo(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="where everything goes")] = Path("saliency-demo"),
    runner: Annotated[str, typer.Option(help="ray or inline", metavar="ray|inline")] = "ray",
) -> int:
    """Make images with a planted artefact, train a small model, explain, verify, show a picture, audit, report."""
    # Training threads that wait by spinning crawl where cores are shared (6 times as slow). Torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from jobs.demo import demo_command as shown

    return shown.demo(directory, console, runner=runner)
