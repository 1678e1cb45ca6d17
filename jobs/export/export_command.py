"""``saliency export``: rows of a store into files that other tools open, part after part; a kill costs one part."""

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
from jobs.storage.files import is_remote, local_path
from jobs.store.open import refuse_inside
from jobs.store.store_reader import open_store
from jobs.util.console import print_text
from jobs.util.exit_codes import DONE, imperfect
from jobs.util.failure_reasons import without_names
from jobs.util.formatting import duration
from saliency_core.errors import InvalidRequestError
from saliency_core.visualization.map_style import MapStyle

FORMAT_VERSION = 1
FORMAT_NAMES = ("virelay", "quantus", "webdataset", "png")
DEFAULT_VIEWS = ("map", "overlay")
MAX_REASONS, ROWS_PER_REASON = 10, 3  # reasons in the summary, and rows that it names for each


@dataclass
class _RowMeter:
    """Rows that were gone through; ``done``: in this session."""

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
    """Exports rows of the store ``out`` to the local directory ``output``, or goes on with it → exit code.

    Rows and arrays as ``show`` takes them, all by default. ``views`` and ``style`` are for png, ``originals`` for
    webdataset. ``rows_per_part``: rows in one file, where a file holds several. ``allow_quarantined``: 0 is returned,
    not 3, if all rows that are left out are quarantined or partial. InvalidRequestError, with nothing written, for
    what cannot be exported.
    """
    if to not in FORMAT_NAMES:
        raise InvalidRequestError(f"--to {to!r} is unknown: take one of {', '.join(FORMAT_NAMES)}.")
    if rows_per_part is not None and rows_per_part < 1:
        raise InvalidRequestError(f"--rows-per-part {rows_per_part} holds nothing: give at least 1.")
    store = open_store(out)
    folder = ExportFolder(_output_path(out, output))
    content = select_rows(store, selection, arrays=arrays)
    options = _format_options(to, views=views, style=style, originals=originals)
    format_ = _make_format(to, content, folder, **options)
    size = rows_per_part or format_.rows_per_part
    recorded = dict(options)
    if isinstance(style_ := recorded.pop("style", None), MapStyle):
        recorded["look"] = asdict(style_)
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
    return imperfect(allow_quarantined and left_out <= content.imperfect_rows()) if left_out else DONE


def _output_path(out: str, output: str) -> Path:
    if is_remote(output):
        raise InvalidRequestError(
            f"--output {output} is on an object store, and other tools open local files: give a directory."
        )
    refuse_inside(output, out)
    return local_path(output)


def _format_options(to: str, *, views: Sequence[str] | None, style: MapStyle | None, originals: bool) -> dict[str, Any]:
    """Those of the format. Raises InvalidRequestError where others are given, for they would do nothing."""
    if to != "png" and (views or (style is not None and style != MapStyle())):
        raise InvalidRequestError(
            f"--view, --cmap, --clip, --invert, --blur and --alpha are for --to png: {to} has no pictures."
        )
    if to != "webdataset" and originals:
        raise InvalidRequestError(f"--originals is for --to webdataset: {to} does without.")
    if to == "png":
        return {"views": list(views or DEFAULT_VIEWS), "style": style or MapStyle()}
    return {"originals": originals} if to == "webdataset" else {}


def _make_format(to: str, content: ExportSelection, folder: ExportFolder, **options: Any) -> Format:
    """Only the format that is asked for is imported, with what it needs."""
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
    """Says what is not among the files, by reason, with the first rows of each → the rows."""
    reasons: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    rows: set[int] = set()
    for commit in commits:
        for entry in commit.left_out:
            rows.add(entry.row)
            reason = without_names(entry.reason, (entry.uri, entry.sample_id))
            reason = reason if entry.what == WHOLE_ROW else f"{entry.what}: {reason}"
            reasons[reason] += 1
            if len(examples.setdefault(reason, [])) < ROWS_PER_REASON:
                examples[reason].append(f"{entry.row} ({entry.sample_id!r})")
    arrays = ", ".join(array.path for array in content.arrays)
    print_text(console, f"export: {folder.path}, {len(content.rows):,} rows of {arrays}")
    if not rows:
        return rows
    quarantined = content.count_quarantined()
    print_text(console, f"{len(rows):,} rows are left out, in part or as a whole ({quarantined:,} quarantined):")
    for reason, count in reasons.most_common(MAX_REASONS):
        more = ", …" if count > len(examples[reason]) else ""
        print_text(console, f"  {count:,} × {reason}: rows {', '.join(examples[reason])}{more}")
    more_reasons = f"  {len(reasons) - MAX_REASONS:,} more reasons; " if len(reasons) > MAX_REASONS else ""
    print_text(console, f"{more_reasons}{folder.path / LEFT_OUT_CSV} lists them all.")
    return rows
