"""Defines the commands. Each reads its flags, imports the module that does the work, and returns an exit code."""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from jobs.cli.exit_handling import error_console, run_command
from jobs.cli.flags import (
    AcceptVersions,
    AllowQuarantined,
    ConfigFile,
    Out,
    Runner,
    config_options,
    map_style_options,
    row_options,
    with_options,
)
from jobs.config.classes_config import ClassesConfig
from jobs.config.explain_config import ExplainConfig, read_config
from jobs.config.requested_rows import RowSelection
from jobs.util.console import PlainFormatter, print_text
from jobs.util.environment import ensure_user, force_agg_backend, reset_warning_filters, restart_in_utf8
from jobs.util.exit_codes import DONE
from saliency_core.visualization.map_style import MapStyle

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console()


def main() -> None:
    """Runs the command line; errors become a message and an exit code (see README)."""
    restart_in_utf8()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? for unknown characters
    force_agg_backend()
    reset_warning_filters()
    ensure_user()
    handler = RichHandler(console=error_console, show_path=False)
    handler.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns if HOME is not writable
    app()


def _register(function: Callable[..., int]) -> Callable[..., int]:
    """Registers a command that returns its exit code."""

    @app.command()
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        raise typer.Exit(run_command(functools.partial(function, *args, **kwargs)))

    return function


@_register
@with_options(flags=config_options(ExplainConfig))
def explain(
    flags: dict[str, Any],
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    accept_versions: AcceptVersions = False,
) -> int:
    """Explain every image: write maps and an index to a store. Resumes an unfinished store."""
    job_config = read_config(ExplainConfig, flags, file=config)
    from jobs.explain import explain_command

    return explain_command.explain(job_config, console, dry_run=dry_run, accept_versions=accept_versions)


@_register
@with_options(flags=config_options(ClassesConfig))
def classes(flags: dict[str, Any], config: ConfigFile = None, accept_versions: AcceptVersions = False) -> int:
    """Generate, for each class, an image that the model scores highly for that class, by gradient ascent."""
    job_config = read_config(ClassesConfig, flags, file=config)
    from jobs.classes import classes_command

    return classes_command.visualise(job_config, console, accept_versions=accept_versions)


@_register
def status(out: Out) -> int:
    """Show how far a run is, what went wrong, and what to run next."""
    from jobs.inspect.status import print_status

    return print_status(out, console)


@_register
def verify(
    out: Out,
    recompute: Annotated[
        int, typer.Option(min=0, help="number of random rows to explain again and compare, for example 20")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="seed of the random choice of rows")] = 0,
) -> int:
    """Prove that plan, index, arrays and hashes of a store agree; list what does not."""
    from jobs.verify import verify_command

    return verify_command.verify(out, console, recompute=recompute, seed=seed)


_AS_EXPLAIN = "[default: as for explain]"


@_register
def retry(
    out: Out,
    workers: Annotated[
        str, typer.Option(help="number of model replicas, or auto: one per GPU, else per core")
    ] = "auto",
    runner: Runner = "ray",
    max_pixels: Annotated[int | None, typer.Option(help=f"largest image, in pixels {_AS_EXPLAIN}")] = None,
    max_bytes: Annotated[int | None, typer.Option(help=f"largest image, in encoded bytes {_AS_EXPLAIN}")] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help=f"longest decoding of an image, in seconds {_AS_EXPLAIN}")
    ] = None,
    accept_versions: AcceptVersions = False,
    allow_quarantined: AllowQuarantined = False,
) -> int:
    """Explain the units with quarantined rows again. Their inputs are listed again first."""
    from jobs.explain import retry_command

    return retry_command.retry(
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


@_register
@with_options(selection=row_options(n=6), style=map_style_options())
def show(
    out: Out,
    output: Annotated[Path, typer.Option("-o", "--output", help="image file to write: .png, .pdf, .svg or .jpg")],
    *,
    selection: RowSelection,
    array: Annotated[
        list[str] | None,
        typer.Option(help="array to draw, for example predicted/gradient; repeatable [default: all if at most 6]"),
    ] = None,
    view: Annotated[
        list[str] | None,
        typer.Option(help="what to draw of a map; repeatable [default: map, overlay]", metavar="map|overlay|mask"),
    ] = None,
    style: MapStyle,
) -> int:
    """Draw rows: the image, its maps, and the maps on the image at its original size."""
    from jobs.inspect import show as show_command

    path = show_command.show(out, selection, output=output, arrays=array, views=view or ("map", "overlay"), style=style)
    print_text(console, str(path))
    return DONE


@_register
def audit(
    out: Out,
    array: Annotated[
        str | None,
        typer.Option(help="array to audit, for example predicted/gradient [default: the first]", show_default=False),
    ] = None,
    objects: Annotated[
        str | None,
        typer.Option(help="Parquet or CSV of sample_id and x0, y0, x1, y1 (a box) or mask (an image's path)"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="seed of the random samples")] = 0,
    runner: Runner = "ray",
    report: Annotated[bool, typer.Option("--report/--no-report", help="write an HTML report to OUT/report")] = True,
    allow_quarantined: AllowQuarantined = False,
) -> int:
    """Find what the model looks at, class by class, and which classes are suspicious; write a report."""
    from jobs.audit import audit_command

    return audit_command.audit(
        out,
        console,
        array=array,
        objects=objects,
        seed=seed,
        runner=runner,
        report=report,
        allow_quarantined=allow_quarantined,
    )


@_register
def compare(
    a: Annotated[str, typer.Argument(help="path or address of a store", metavar="A")],
    b: Annotated[str, typer.Argument(help="another store, of the same images", metavar="B")],
    output: Annotated[str, typer.Option(help="new directory for the report and its tables")],
    array: Annotated[
        str | None, typer.Option(help="array to compare, for example predicted/gradient [default: the first of both]")
    ] = None,
    array_b: Annotated[str | None, typer.Option(help="array of B [default: that of --array]")] = None,
    top: Annotated[float, typer.Option(help="fraction of a map's pixels that is its top region")] = 0.1,
    runner: Runner = "ray",
    allow_quarantined: AllowQuarantined = False,
) -> int:
    """Compare two models, methods or releases: which rows changed class, which maps moved, and where to."""
    from jobs.compare import compare_command

    return compare_command.compare(
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


@_register
@with_options(selection=row_options(n=None), style=map_style_options(prefix="png: "))
def export(
    out: Out,
    to: Annotated[str, typer.Option(help="format to write", metavar="virelay|quantus|webdataset|png")],
    output: Annotated[str, typer.Option("-o", "--output", help="local directory: new, or of the same export")],
    *,
    array: Annotated[
        list[str] | None,
        typer.Option(help="array to export, for example predicted/gradient; repeatable [default: all]"),
    ] = None,
    selection: RowSelection,
    rows_per_part: Annotated[int | None, typer.Option(help="rows in a part [default: 64 to 1,024, by format]")] = None,
    originals: Annotated[bool, typer.Option("--originals", help="webdataset: also write the images, as .jpg")] = False,
    view: Annotated[
        list[str] | None,
        typer.Option(help="png: what to draw of a map; repeatable [default: map, overlay]", metavar="map|overlay|mask"),
    ] = None,
    style: MapStyle,
    allow_quarantined: AllowQuarantined = False,
) -> int:
    """Write rows of a store to files for other tools. Resumes an interrupted export."""
    from jobs.export import export_command

    return export_command.export(
        out,
        console,
        to=to,
        output=output,
        selection=selection,
        arrays=array,
        views=view,
        style=style,
        originals=originals,
        rows_per_part=rows_per_part,
        allow_quarantined=allow_quarantined,
    )


@_register
def methods() -> int:
    """List the methods, targets and reductions of explain."""
    from jobs.inspect.list_methods import print_methods

    return print_methods(console)


@_register
def demo(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="directory for images, model, store and picture, for example out")
    ] = Path("saliency-demo"),
    runner: Runner = "ray",
) -> int:
    """Draw images with a planted artefact, train a small model, explain, verify, draw maps, audit."""
    # On shared cores, training threads that spin while they wait are 6 times as slow. Torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from jobs.demo.demo_command import run_demo

    return run_demo(directory, console, runner=runner)
