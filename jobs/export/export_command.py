"""``saliency export``: rows of a store into files that other tools open, part after part; a kill costs one part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from jobs.explain.progress import Display
from jobs.export.export_format import Format
from jobs.export.output_directory import LEFT_OUT, WHOLE, Commit, Folder
from jobs.export.selection import Selection, select
from jobs.storage.files import is_remote, local_path
from jobs.store.store_access import refuse_inside
from jobs.store.store_reader import open_store
from jobs.util.console import print_text
from jobs.util.exit_codes import DONE, imperfect
from jobs.util.failure_reasons import without_names
from jobs.util.formatting import duration
from saliency_core.errors import InvalidRequestError
from saliency_core.visualization.map_style import MapStyle

FORMAT_VERSION = 1
TO = ("virelay", "quantus", "webdataset", "png")
VIEWS = ("map", "overlay")
TOLD, NAMED = 10, 3  # reasons in the summary, and rows that it names for each


@dataclass
class _Meter:
    """Rows that were gone through; ``done``: in this session."""

    rows: int
    done_before: int = 0
    done: int = 0
    begun: float = field(default_factory=monotonic)

    def line(self) -> str:
        told = f"{self.done_before + self.done:,} of {self.rows:,} rows exported"
        if not self.done:
            return told
        rate = self.done / (monotonic() - self.begun)
        return f"{told} · {rate:.1f}/s · {duration((self.rows - self.done_before - self.done) / rate)} to go"


def export(
    out: str,
    console: Console,
    *,
    to: str,
    output: str,
    arrays: list[str] | None = None,
    rows: list[int] | None = None,
    class_: str | None = None,
    highest: str | None = None,
    lowest: str | None = None,
    n: int | None = None,
    views: Sequence[str] | None = None,
    look: MapStyle | None = None,
    originals: bool = False,
    rows_per_part: int | None = None,
    allow_quarantined: bool = False,
) -> int:
    """Exports rows of the store ``out`` to the local directory ``output``, or goes on with it → exit code.

    Rows and arrays as ``show`` takes them, all by default. ``views`` and ``look`` are for png, ``originals`` for
    webdataset. ``rows_per_part``: rows in one file, where a file holds several. ``allow_quarantined``: 0 is returned,
    not 3, if all rows that are left out are quarantined or partial. InvalidRequestError, with nothing written, for
    what cannot be exported.
    """
    if to not in TO:
        raise InvalidRequestError(f"--to {to!r} is unknown: take one of {', '.join(TO)}.")
    if rows_per_part is not None and rows_per_part < 1:
        raise InvalidRequestError(f"--rows-per-part {rows_per_part} holds nothing: give at least 1.")
    store = open_store(out)
    folder = Folder(_directory(out, output))
    selection = select(store, arrays=arrays, rows=rows, class_=class_, highest=highest, lowest=lowest, n=n)
    options = _options(to, views=views, look=look, originals=originals)
    format_ = _format(to, selection, folder, **options)
    size = rows_per_part or format_.rows_per_part
    told = {name: asdict(value) if isinstance(value, MapStyle) else value for name, value in options.items()}
    recipe = {"format_version": FORMAT_VERSION, "to": to, **selection.recipe(), **told, "rows_per_part": size}
    cuts = [selection.rows[start : start + size] for start in range(0, len(selection.rows), size)]
    with folder.claimed(recipe):
        pending = [part for part in range(len(cuts)) if not folder.is_committed(part)]
        meter = _Meter(len(selection.rows), len(selection.rows) - sum(len(cuts[part]) for part in pending))
        with Display(meter, console, at_first=meter.line()) as display:
            for part in pending:
                lacking = format_.write(part, cuts[part])
                folder.commit(part, Commit(rows=len(cuts[part]), left_out=lacking))
                meter.done += len(cuts[part])
                display.update()
        format_.finish(len(cuts))
        left_out = _summary(console, selection, folder, folder.commits(len(cuts)))
    return imperfect(allow_quarantined and left_out <= selection.imperfect()) if left_out else DONE


def _directory(out: str, output: str) -> Path:
    if is_remote(output):
        raise InvalidRequestError(
            f"--output {output} is on an object store, and other tools open local files: give a directory."
        )
    refuse_inside(output, out)
    return local_path(output)


def _options(to: str, *, views: Sequence[str] | None, look: MapStyle | None, originals: bool) -> dict[str, Any]:
    """Those of the format. Raises InvalidRequestError where others are given, for they would do nothing."""
    if to != "png" and (views or (look is not None and look != MapStyle())):
        raise InvalidRequestError(
            f"--view, --cmap, --clip, --invert, --blur and --alpha are for --to png: {to} has no pictures."
        )
    if to != "webdataset" and originals:
        raise InvalidRequestError(f"--originals is for --to webdataset: {to} does without.")
    if to == "png":
        return {"views": list(views or VIEWS), "look": look or MapStyle()}
    return {"originals": originals} if to == "webdataset" else {}


def _format(to: str, selection: Selection, folder: Folder, **options: Any) -> Format:
    """Only the format that is asked for is imported, with what it needs."""
    if to == "png":
        from jobs.export.png import Png

        return Png(selection, folder, **options)
    if to == "webdataset":
        from jobs.export.webdataset import WebDataset

        return WebDataset(selection, folder, **options)
    if to == "quantus":
        from jobs.export.quantus import Quantus

        return Quantus(selection, folder)
    try:
        from jobs.export.virelay import ViRelAy
    except ModuleNotFoundError as error:
        if error.name != "h5py":
            raise
        raise InvalidRequestError("--to virelay writes HDF5, and h5py is not installed: pip install h5py.") from None
    return ViRelAy(selection, folder)


def _summary(console: Console, selection: Selection, folder: Folder, commits: Iterable[Commit]) -> set[int]:
    """Says what is not among the files, by reason, with the first rows of each → the rows."""
    reasons: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    rows: set[int] = set()
    for commit in commits:
        for one in commit.left_out:
            rows.add(one.row)
            reason = without_names(one.reason, (one.uri, one.sample_id))
            reason = reason if one.what == WHOLE else f"{one.what}: {reason}"
            reasons[reason] += 1
            if len(examples.setdefault(reason, [])) < NAMED:
                examples[reason].append(f"{one.row} ({one.sample_id!r})")
    arrays = ", ".join(array.path for array in selection.arrays)
    print_text(console, f"export: {folder.path}, {len(selection.rows):,} rows of {arrays}")
    if not rows:
        return rows
    quarantined = selection.quarantined()
    print_text(console, f"{len(rows):,} rows are left out, in part or as a whole ({quarantined:,} quarantined):")
    for reason, count in reasons.most_common(TOLD):
        more = ", …" if count > len(examples[reason]) else ""
        print_text(console, f"  {count:,} × {reason}: rows {', '.join(examples[reason])}{more}")
    others = f"  {len(reasons) - TOLD:,} more reasons; " if len(reasons) > TOLD else ""
    print_text(console, f"{others}{folder.path / LEFT_OUT} lists them all.")
    return rows
