"""Implements ``saliency export``, which writes rows of a store to files for other tools, one part at a time.

A run that was killed resumes with the part that it was writing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from jobs.config.requested_rows import ALL_ROWS, RowSelection
from jobs.explain.progress import Display
from jobs.export.export_format import Format
from jobs.export.output_directory import LEFT_OUT_CSV, WHOLE_ROW, ExportFolder, PartCommit
from jobs.export.selection import ExportSelection, select_rows
from jobs.storage.uris import is_remote, local_path
from jobs.store.store_access import refuse_inside
from jobs.store.store_reader import open_store
from jobs.util.console import print_text
from jobs.util.exit_codes import DONE, imperfect_code
from jobs.util.failure_reasons import replace_names
from jobs.util.formatting import duration
from saliency_core.errors import InvalidRequestError
from saliency_core.visualization.map_style import MapStyle

FORMAT_VERSION = 1
FORMAT_NAMES = ("virelay", "quantus", "webdataset", "png")
DEFAULT_VIEWS = ("map", "overlay")
MAX_REASONS, ROWS_PER_REASON = 10, 3  # in the summary


@dataclass
class _RowMeter:
    """Counts processed rows; ``done``: in this session, ``done_before``: in earlier ones."""

    rows: int
    done_before: int = 0
    done: int = 0
    started: float = field(default_factory=monotonic)

    def line(self) -> str:
        counts = f"{self.done_before + self.done:,} of {self.rows:,} rows exported"
        if not self.done:
            return counts
        rate = self.done / (monotonic() - self.started)
        return f"{counts} · {rate:.1f}/s · {duration((self.rows - self.done_before - self.done) / rate)} to go"


def export(
    out: str,
    console: Console,
    *,
    to: str,
    output: str,
    selection: RowSelection = ALL_ROWS,
    arrays: list[str] | None = None,
    views: Sequence[str] | None = None,
    style: MapStyle | None = None,
    originals: bool = False,
    rows_per_part: int | None = None,
    allow_quarantined: bool = False,
) -> int:
    """Exports rows of the store ``out`` to the local directory ``output``, or resumes the export there.

    Returns the exit code. ``arrays``: their paths, by default all. ``views`` and ``style`` apply to png, ``originals``
    to webdataset. ``allow_quarantined``: return 0, not 3, if all rows that are left out are quarantined or partial.

    Raises `InvalidRequestError`, with nothing written, if the request cannot be fulfilled.
    """
    if to not in FORMAT_NAMES:
        raise InvalidRequestError(f"--to {to!r} is unknown: use one of {', '.join(FORMAT_NAMES)}.")
    if rows_per_part is not None and rows_per_part < 1:
        raise InvalidRequestError(f"--rows-per-part {rows_per_part} leaves a part empty: give at least 1.")
    store = open_store(out)
    folder = ExportFolder(_output_path(out, output))
    content = select_rows(store, selection, arrays=arrays)
    options = _format_options(to, views=views, style=style, originals=originals)
    format_ = _make_format(to, content, folder, **options)
    size = rows_per_part or format_.rows_per_part
    recorded = dict(options)
    if "style" in recorded:
        recorded["look"] = asdict(recorded.pop("style"))  # the name of this key in export.json
    recipe = {"format_version": FORMAT_VERSION, "to": to, **content.recipe(), **recorded, "rows_per_part": size}
    part_rows = [content.rows[start : start + size] for start in range(0, len(content.rows), size)]
    with folder.claim(recipe):
        pending = [part for part in range(len(part_rows)) if not folder.is_committed(part)]
        meter = _RowMeter(len(content.rows), len(content.rows) - sum(len(part_rows[part]) for part in pending))
        with Display(meter, console, at_first=meter.line()) as display:
            for part in pending:
                entries = format_.write(part, part_rows[part])
                folder.commit(part, PartCommit(rows=len(part_rows[part]), left_out=entries))
                meter.done += len(part_rows[part])
                display.update()
        format_.finish(len(part_rows))
        left_out = _print_summary(console, content, folder, folder.read_commits(len(part_rows)))
    return imperfect_code(allow_quarantined and left_out <= content.imperfect_rows()) if left_out else DONE


def _output_path(out: str, output: str) -> Path:
    if is_remote(output):
        raise InvalidRequestError(
            f"--output {output} is on an object store, but other tools open local files: give a local directory."
        )
    refuse_inside(output, out)
    return local_path(output)


def _format_options(to: str, *, views: Sequence[str] | None, style: MapStyle | None, originals: bool) -> dict[str, Any]:
    """Returns the options of the format. Raises `InvalidRequestError` if an option is given that it does not have."""
    if to != "png" and (views or (style is not None and style != MapStyle())):
        raise InvalidRequestError(
            f"--view, --cmap, --clip, --invert, --blur and --alpha are for --to png: {to} has no pictures. Remove them."
        )
    if to != "webdataset" and originals:
        raise InvalidRequestError(f"--originals is for --to webdataset: {to} does not use it. Remove it.")
    if to == "png":
        return {"views": list(views or DEFAULT_VIEWS), "style": style or MapStyle()}
    return {"originals": originals} if to == "webdataset" else {}


def _make_format(to: str, content: ExportSelection, folder: ExportFolder, **options: Any) -> Format:
    """Imports the requested format, and only its dependencies, and makes it."""
    if to == "png":
        from jobs.export.png import Png

        return Png(content, folder, **options)
    if to == "webdataset":
        from jobs.export.webdataset import WebDataset

        return WebDataset(content, folder, **options)
    if to == "quantus":
        from jobs.export.quantus import Quantus

        return Quantus(content, folder)
    try:
        from jobs.export.virelay import ViRelAy
    except ModuleNotFoundError as error:
        if error.name != "h5py":
            raise
        raise InvalidRequestError("--to virelay writes HDF5, and h5py is not installed: pip install h5py.") from None
    return ViRelAy(content, folder)


def _print_summary(
    console: Console, content: ExportSelection, folder: ExportFolder, commits: Iterable[PartCommit]
) -> set[int]:
    """Prints why rows are left out, with the first rows of each reason, and returns the numbers of these rows."""
    reasons: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    rows: set[int] = set()
    for commit in commits:
        for entry in commit.left_out:
            rows.add(entry.row)
            reason = replace_names(entry.reason, (entry.uri, entry.sample_id))
            reason = reason if entry.what == WHOLE_ROW else f"{entry.what}: {reason}"
            reasons[reason] += 1
            if len(examples.setdefault(reason, [])) < ROWS_PER_REASON:
                examples[reason].append(f"{entry.row} ({entry.sample_id!r})")
    arrays = ", ".join(array.path for array in content.arrays)
    print_text(console, f"export: {folder.path}, {len(content.rows):,} rows of {arrays}")
    if not rows:
        return rows
    quarantined = content.count_quarantined()
    print_text(console, f"{len(rows):,} rows are left out, partly or completely ({quarantined:,} quarantined):")
    for reason, count in reasons.most_common(MAX_REASONS):
        more = ", …" if count > len(examples[reason]) else ""
        print_text(console, f"  {count:,} × {reason}: rows {', '.join(examples[reason])}{more}")
    more_reasons = f"  {len(reasons) - MAX_REASONS:,} more reasons; " if len(reasons) > MAX_REASONS else ""
    print_text(console, f"{more_reasons}{folder.path / LEFT_OUT_CSV} lists them all.")
    return rows
