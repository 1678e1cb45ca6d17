"""A picture of some rows of a store: each image, its maps, the maps on the image, and what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from jobs.inputs.rejected import RejectedImage
from jobs.store.index import OK
from jobs.store.row_selection import choose_rows
from jobs.store.run_record import ArraySpec
from jobs.store.store_reader import Store, open_store
from jobs.util.failure_reasons import reword_for_explained
from saliency_core.errors import InvalidRequestError
from saliency_core.model.preprocessing import Geometry
from saliency_core.visualization.canvas import DPI
from saliency_core.visualization.contact_sheet import CELL, Cell, Panel, draw, refuse_too_many
from saliency_core.visualization.map_style import MapStyle
from saliency_core.visualization.picture_text import printable
from saliency_core.visualization.views import Photograph, refuse_unknown, view_cells

MOST_ARRAYS = 6  # that are drawn unasked
MOST_BESIDE = 5  # cells; where there would be more, the views of an array stand below each other


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
    views: Sequence[str] = ("map", "overlay"),
    look: MapStyle | None = None,
) -> Path:
    """Draws rows of the store ``out`` into the image file ``output`` (.png, .pdf, .svg, .jpg …), and returns it.

    ``rows``: these, in this order. Otherwise the first ``n`` committed ones, of ``class_`` (number or name of the class
    that was explained) where given, sorted where ``highest`` or ``lowest`` names an index column. ``arrays``: by
    default all, or some of the first target's where these are too many; the target of the first is the one that
    ``class_`` means. ``views``: what is drawn of each, of ``saliency_core.visualization.views.VIEWS``. ``look``: in
    which colours.

    InvalidRequestError, with nothing written, for what cannot be shown.
    """
    look = look or MapStyle()
    refuse_unknown(views)
    _refuse_unwritable(output)
    store = open_store(out)
    specs = [store.array(path).spec for path in arrays] if arrays else _few(list(store.arrays.values()))
    chosen = choose_rows(store, target=specs[0].target, rows=rows, class_=class_, highest=highest, lowest=lowest, n=n)
    beside = 1 + len(specs) * len(views) <= MOST_BESIDE
    refuse_too_many(len(chosen), columns=1 + len(specs) * (len(views) if beside else 1))
    index = store.lines(chosen).to_pylist()
    maps = [store.maps(spec.path, chosen) for spec in specs]
    panels = []
    for line, *own in zip(index, *maps, strict=True):
        cells = _cells(store, line, list(zip(specs, own, strict=True)), views, look)
        panels.append(_panel(store, line, specs, _beside(cells) if beside else _stacked(cells)))
    footer = _footer(look, drawn=len(specs), of=len(store.arrays)) if any(panel.tiers for panel in panels) else ""
    _save(draw(panels, footer=footer), output)
    return output


def _few(specs: list[ArraySpec]) -> list[ArraySpec]:
    if len(specs) <= MOST_ARRAYS:
        return specs
    return [spec for spec in specs if spec.target == specs[0].target][:MOST_ARRAYS]


def _footer(look: MapStyle, *, drawn: int, of: int) -> str:
    told = ["Each map is coloured by itself, over the range that stands below it"]
    told += [f"values past percentile {look.clip:g} take the end's colour"] if look.clip < 100 else []
    told += [f"blurred by a Gaussian of {look.blur:g} pixels"] if look.blur else []
    told += ["inverted (1 − map)"] if look.invert else []
    told += [f"{drawn} of {of} arrays (--array names others)"] if drawn < of else []
    return "; ".join(told) + "."


# -- one row ---------------------------------------------------------------------------------------------------


def _panel(store: Store, line: dict[str, Any], specs: list[ArraySpec], tiers: list[list[Cell | None]]) -> Panel:
    title = f"row {line['row']}    {printable(line['sample_id'], most=60)}"
    facts = [f"labelled {_class(store, line['label'], None)}" if line["label"] is not None else "no label"]
    facts += filter(None, (_explained(store, line, target) for target in dict.fromkeys(spec.target for spec in specs)))
    reason = "" if tiers else f"{line['status']}: {line['error'] or line[f'{specs[0].target}__status']}"
    return Panel(title, facts, tiers, reason=printable(reason, most=400))


def _explained(store: Store, line: dict[str, Any], target: str) -> str:
    """``predicted: tabby (p 0.93, score 12.1)``: what was explained, and how sure the model was; "" where nothing."""
    if line[f"{target}__status"] != OK:
        return ""
    if line[f"{target}__class"] is None:  # it is no class: a difference, a loss, a unit
        return f"{target} (score {line[f'{target}__score']:.3g})"
    name = _class(store, line[f"{target}__class"], line[f"{target}__class_name"])
    probability, score = line[f"{target}__probability"], line[f"{target}__score"]
    sure = f"p {probability:.2f}, " if probability is not None else ""
    return f"{target}: {name} ({sure}score {score:.3g})"


def _class(store: Store, number: int | None, name: str | None) -> str:
    names = store.run.class_names
    if name is None and names is not None and number is not None and 0 <= number < len(names):
        name = names[number]
    if name is not None:
        return printable(name, most=36)
    return "none" if number is None else str(number)


def _cells(
    store: Store,
    line: dict[str, Any],
    maps: list[tuple[ArraySpec, NDArray[np.float32]]],
    views: Sequence[str],
    look: MapStyle,
) -> list[list[Cell | None]]:
    """The image, then the views of each array, the first of which takes the words where there is no map."""
    if all(line[f"{spec.target}__status"] != OK for spec, _ in maps):
        return []
    photograph = _photograph(store, line)
    cells: list[list[Cell | None]] = [[photograph.cell()]]
    for spec, values in maps:
        status = line[f"{spec.target}__status"]
        if status == OK:
            signed = not spec.nonnegative
            cells.append([*view_cells(spec.path, values, photograph, signed=signed, views=views, look=look)])
        else:
            cells.append([Cell(spec.path, printable(f"no map: {status}", most=160)), *[None] * (len(views) - 1)])
    return cells


def _beside(cells: list[list[Cell | None]]) -> list[list[Cell | None]]:
    """One tier."""
    return [[one for own in cells for one in own]] if cells else []


def _stacked(cells: list[list[Cell | None]]) -> list[list[Cell | None]]:
    """A tier for each view, an array's below each other."""
    return [list(tier) for tier in zip_longest(*cells)]


def _photograph(store: Store, line: dict[str, Any]) -> Photograph:
    """No larger than it is drawn: a hundred photographs at full size would fill the memory, and take minutes."""
    image = store.original(line["row"])
    if isinstance(image, RejectedImage):
        return Photograph(None, None, printable(f"not to be had: {reword_for_explained(image.reason)}", most=160))
    now, then = (image.width, image.height), (line["width"], line["height"])
    most = round(1.4 * CELL * DPI)
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    if now != then:
        was = f"the image has {now[0]}×{now[1]} pixels now, and had {then[0]}×{then[1]}"
        return Photograph(np.asarray(image), None, was)
    box, x, y = store.run.preprocessing.geometry(*then), image.width / now[0], image.height / now[1]
    return Photograph(np.asarray(image), Geometry(box.left * x, box.top * y, box.right * x, box.bottom * y))


# -- the file --------------------------------------------------------------------------------------------------


def _refuse_unwritable(output: Path) -> None:
    known = sorted(FigureCanvasAgg.get_supported_filetypes())
    if _format(output) not in known:
        raise InvalidRequestError(
            f"-o {output}: {output.suffix!r} is no kind of picture; take one of {', '.join(known)}."
        )
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise InvalidRequestError(
            f"-o {output} cannot be written: it is a directory, or lies in none. Give a file's path."
        )


def _format(output: Path) -> str:
    return output.suffix.removeprefix(".").lower() or "png"


def _save(figure: Figure, output: Path) -> None:
    kind = _format(output)
    # Maps are noise to a compressor: its higher levels take seconds and gain nothing.
    options: dict[str, Any] = {"pil_kwargs": {"compress_level": 3}} if kind == "png" else {}
    try:
        figure.savefig(output, dpi=DPI, format=kind, **options)
    except OSError as error:
        raise InvalidRequestError(
            f"-o {output} cannot be written ({error.strerror or error}): give another path."
        ) from error
