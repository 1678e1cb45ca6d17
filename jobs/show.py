"""A picture of some rows of a store: each image, its maps, and the maps on the image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from numpy.typing import NDArray
from PIL import Image

from jobs.index import OK
from jobs.reader import Store, open_store
from jobs.record import ArraySpec
from jobs.reject import Rejected
from jobs.rows import choose_rows
from saliency_core.errors import Refused
from saliency_core.picture import DIVERGING, SEQUENTIAL, colour, normalise, overlay

FONT = "DejaVu Sans"  # comes with matplotlib, so the picture is the same everywhere
DPI = 150
CELL, GAP, MARGIN, HEADING = 2.3, 0.14, 0.25, 0.34  # inches
TEXT_LINE, CHARACTER = 0.19, 0.08  # inches: the height of a line of text, and the width that a character may take
LARGEST = 30_000  # pixels of an edge; Agg draws at most 65,536, and few viewers open that
PERCENTILE = 99.5  # a few outlying pixels would leave the rest of a gradient map black

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Line:
    """One row: its name, what is known of it, and its cells from left to right: pixels, or the words in their place.

    ``facts`` and ``reason`` are wrapped; where there is a reason there are no cells.
    """

    name: str
    facts: list[str]
    cells: list[Pixels | str]
    reason: list[str]

    @property
    def text_height(self) -> float:
        """Inches."""
        return (1 + len(self.facts) + len(self.reason)) * TEXT_LINE + 0.06

    @property
    def picture_height(self) -> float:
        """Inches: as the tallest picture wants it, within limits that keep panoramas and towers readable."""
        if not self.cells:
            return 0
        tallest = max((cell.shape[0] / cell.shape[1] for cell in self.cells if not isinstance(cell, str)), default=0.5)
        return CELL * min(max(tallest, 0.45), 1.4)

    @property
    def height(self) -> float:
        """Inches, with the space below."""
        return self.text_height + self.picture_height + 2 * GAP


def show(
    out: str,
    *,
    output: Path,
    rows: list[int] | None = None,
    class_: str | None = None,
    highest: str | None = None,
    lowest: str | None = None,
    n: int = 6,
    arrays: list[str] | None = None,
) -> Path:
    """Draws rows of the store ``out`` into the image file ``output`` (.png, .pdf, .svg, .jpg …), and returns it.

    ``rows``: these, in this order. Otherwise the first ``n`` committed ones, of ``class_`` (number or name of the class
    that was explained) where given, sorted where ``highest`` or ``lowest`` names an index column. ``arrays``: all by
    default; the target of the first is the one that ``class_`` means.

    Refused, with nothing written, for what cannot be shown.
    """
    _refuse_unwritable(output)
    store = open_store(out)
    specs = [store.array(path).spec for path in arrays or store.arrays]
    chosen = choose_rows(store, target=specs[0].target, rows=rows, class_=class_, highest=highest, lowest=lowest, n=n)
    columns = 1 + 2 * len(specs)
    width = 2 * MARGIN + columns * CELL + (columns - 1) * GAP
    # Before anything is read: no row takes less than three lines of text.
    _refuse_too_large(width, len(chosen) * 3 * TEXT_LINE, rows=len(chosen), arrays=len(specs))
    index = store.lines(chosen).to_pylist()
    drawn = [_line(store, line, specs, characters=int((width - 2 * MARGIN) / CHARACTER)) for line in index]
    height = 2 * MARGIN + HEADING + sum(line.height for line in drawn)
    _refuse_too_large(width, height, rows=len(chosen), arrays=len(specs))
    kind = _format(output)
    # Maps are noise to a compressor: its higher levels take seconds and gain nothing.
    options: dict[str, Any] = {"pil_kwargs": {"compress_level": 3}} if kind == "png" else {}
    try:
        _draw(drawn, specs, width=width, height=height).savefig(output, dpi=DPI, format=kind, **options)
    except OSError as error:
        raise Refused(f"-o {output} cannot be written ({error.strerror or error}): give another path.") from error
    return output


def _refuse_unwritable(output: Path) -> None:
    known = sorted(FigureCanvasAgg.get_supported_filetypes())
    if _format(output) not in known:
        raise Refused(f"-o {output}: {output.suffix!r} is no kind of picture; take one of {', '.join(known)}.")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise Refused(f"-o {output} cannot be written: it is a directory, or lies in none. Give a file's path.")


def _format(output: Path) -> str:
    return output.suffix.removeprefix(".").lower() or "png"


def _refuse_too_large(width: float, height: float, *, rows: int, arrays: int) -> None:
    if max(width, height) * DPI > LARGEST:
        raise Refused(
            f"{rows} rows of {arrays} arrays make {width * DPI:.0f}×{height * DPI:.0f} pixels, and no edge may be over "
            f"{LARGEST}: show fewer rows, or fewer arrays."
        )


# -- which rows -----------------------------------------------------------------------------------------------


# -- what is drawn ---------------------------------------------------------------------------------------------


def _line(store: Store, line: dict[str, Any], specs: list[ArraySpec], *, characters: int) -> Line:
    name = f"row {line['row']}    {_printable(line['sample_id'], most=min(60, characters - 20))}"
    facts = [f"labelled {_class(store, line['label'], None)}" if line["label"] is not None else "no label"]
    facts += filter(None, (_explained(store, line, target) for target in dict.fromkeys(spec.target for spec in specs)))
    told = _filled(facts, characters)
    shown = [spec for spec in specs if line[f"{spec.target}__status"] == OK]
    if not shown:
        reason = line["error"] or line[f"{specs[0].target}__status"]
        text = _printable(f"{line['status']}: {reason}", most=4 * characters)
        return Line(name, told, [], wrap(text, characters))
    image = store.original(line["row"])
    unreadable = _printable(f"not to be had: {image.reason}", most=160) if isinstance(image, Rejected) else None
    cells: list[Pixels | str] = [_fit(image) if isinstance(image, Image.Image) else unreadable or ""]
    for spec in specs:
        if spec in shown:
            cells += _map_cells(store, line["row"], spec, image)
        else:
            cells += [_printable(f"no map: {line[f'{spec.target}__status']}", most=160), ""]
    return Line(name, told, cells, [])


def _filled(facts: list[str], characters: int) -> list[str]:
    """Facts side by side, as many on a line as fit; a fact is broken only where it is longer than a line."""
    lines: list[str] = []
    for fact in facts:
        if lines and len(lines[-1]) + len(fact) + 7 <= characters:
            lines[-1] += f"   ·   {fact}"
        else:
            lines += wrap(fact, characters)
    return lines


def _explained(store: Store, line: dict[str, Any], target: str) -> str:
    """``predicted: tabby (p 0.93, score 12.1)``: what was explained, and how sure the model was; "" where nothing."""
    if line[f"{target}__status"] != OK:
        return ""
    name = _class(store, line[f"{target}__class"], line[f"{target}__class_name"])
    probability, score = line[f"{target}__probability"], line[f"{target}__score"]
    sure = f"p {probability:.2f}, " if probability is not None else ""
    return f"{target}: {name} ({sure}score {score:.3g})"


def _class(store: Store, number: int | None, name: str | None) -> str:
    names = store.run.class_names
    if name is None and names is not None and number is not None and 0 <= number < len(names):
        name = names[number]
    if name is not None:
        return _printable(name, most=36)
    return "none" if number is None else str(number)


def _map_cells(store: Store, row: int, spec: ArraySpec, image: Image.Image | Rejected) -> list[Pixels | str]:
    """The map, and the map on the image."""
    values = store.maps(spec.path, [row])[0]
    signed = not spec.nonnegative
    if values.ndim == 3:  # of kept channels, the strongest
        values, signed = np.abs(values).max(axis=0), False
    scaled = normalise(values, percentile=PERCENTILE, signed=signed)
    colormap = DIVERGING if signed else SEQUENTIAL
    heat = colour(scaled, colormap=colormap)
    if isinstance(image, Rejected):
        return [heat, ""]
    placed = store.place(scaled, row)
    if placed.shape != (image.height, image.width):
        was = f"{placed.shape[1]}×{placed.shape[0]}"
        return [heat, f"the image has {image.width}×{image.height} pixels now, and had {was}"]
    laid = overlay(np.asarray(image), placed, colormap=colormap, signed=signed)
    return [heat, _fit(Image.fromarray(laid))]


def _fit(image: Image.Image) -> Pixels:
    """No larger than it is drawn: a hundred photographs at full size would fill the memory."""
    image = image.copy()
    most = round(1.4 * CELL * DPI)
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return np.asarray(image)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


def _printable(text: str, *, most: int) -> str:
    """Cut in the middle to ``most`` characters; what the font lacks, or would not show, as ``\\u4e2d``."""
    safe = "".join(
        one if one.isprintable() and ord(one) in _glyphs() else one.encode("unicode_escape", "surrogatepass").decode()
        for one in text
    )
    return safe if len(safe) <= most else f"{safe[: most // 2]}…{safe[-(most - most // 2 - 1) :]}"


# -- drawing ---------------------------------------------------------------------------------------------------


def _draw(lines: list[Line], specs: list[ArraySpec], *, width: float, height: float) -> Figure:
    """All places are in inches from the top left, so that nothing is moved, and nothing cut off, by a layout engine."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def write(
        text: str, x: float, y: float, *, room: float, size: float, colour: str = "dimgrey", weight: str = "normal"
    ) -> None:
        written = figure.text(
            x / width, 1 - y / height, text, fontsize=size, color=colour, weight=weight, va="top", family=FONT,
            parse_math=False, usetex=False, linespacing=1.25,
        )  # fmt: skip
        # Lines are wrapped by a character's usual width; WWW is wider.
        written.set_fontsize(size * min(1, room * DPI / max(1, written.get_window_extent().width)))

    def left(column: int) -> float:
        return MARGIN + column * (CELL + GAP)

    headings = ["image", *(text for spec in specs for text in (spec.path, "on the image"))]
    for column, heading in enumerate(headings):
        write("\n".join(wrap(heading, 34)[:2]), left(column), MARGIN - 0.05, room=CELL, size=8)
    y, whole = MARGIN + HEADING, width - 2 * MARGIN
    for line in lines:
        write(line.name, MARGIN, y, room=whole, size=9, colour="black", weight="bold")
        told = [(text, "dimgrey") for text in line.facts] + [(text, "firebrick") for text in line.reason]
        for number, (text, shade) in enumerate(told, start=1):
            write(text, MARGIN, y + number * TEXT_LINE, room=whole, size=9, colour=shade)
        y += line.text_height
        for column, cell in enumerate(line.cells):
            if isinstance(cell, str):
                write("\n".join(wrap(cell, 30)), left(column), y, room=CELL, size=8, colour="firebrick")
                continue
            bottom = 1 - (y + line.picture_height) / height
            axes = figure.add_axes(
                (left(column) / width, bottom, CELL / width, line.picture_height / height), anchor="NW"
            )
            axes.imshow(cell, interpolation="nearest" if max(cell.shape) < 64 else "antialiased")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color="silver", linewidth=0.5)  # a white map would have no edge
        y += line.picture_height + 2 * GAP
    return figure
