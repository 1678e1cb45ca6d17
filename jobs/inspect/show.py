"""Implements ``saliency show``, which draws rows of a store: image, maps, maps on the image, and facts."""

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

from jobs.config.requested_rows import RowSelection
from jobs.inputs.rejected import RejectedImage
from jobs.store.index import OK
from jobs.store.row_selection import choose_rows
from jobs.store.run_record import ArraySpec
from jobs.store.store_reader import Store, open_store
from jobs.util.failure_reasons import reword_for_explained
from saliency_core.errors import InvalidRequestError
from saliency_core.model.geometry import Geometry
from saliency_core.visualization.canvas import DPI
from saliency_core.visualization.contact_sheet import CELL, Cell, Panel, draw_contact_sheet, refuse_too_many_panels
from saliency_core.visualization.map_style import MapStyle
from saliency_core.visualization.picture_text import printable
from saliency_core.visualization.views import Photograph, refuse_unknown_views, view_cells

MAX_DEFAULT_ARRAYS = 6  # arrays drawn if none are named
MAX_CELLS_PER_TIER = 5  # with more cells, the views of an array are drawn below each other


def show(
    out: str,
    selection: RowSelection,
    *,
    output: Path,
    arrays: list[str] | None = None,
    views: Sequence[str] = ("map", "overlay"),
    style: MapStyle | None = None,
) -> Path:
    """Draws rows of the store ``out`` into the image file ``output`` (.png, .pdf, .svg, .jpg …), and returns its path.

    ``selection`` applies to the committed rows; its class is a class of the first array's target. ``arrays``: by
    default all, or at most 6 of the first target if there are more. ``views``: names in
    ``saliency_core.visualization.views.VIEWS``, drawn of each array.

    Raises `InvalidRequestError`, with nothing written, if the rows cannot be drawn.
    """
    style = style or MapStyle()
    refuse_unknown_views(views)
    _refuse_unwritable(output)
    store = open_store(out)
    specs = [store.array(path).spec for path in arrays] if arrays else _default_arrays(list(store.arrays.values()))
    row_numbers = choose_rows(store, selection, target=specs[0].target)
    one_tier = 1 + len(specs) * len(views) <= MAX_CELLS_PER_TIER
    refuse_too_many_panels(len(row_numbers), columns=1 + len(specs) * (len(views) if one_tier else 1))
    index = store.lines(row_numbers).to_pylist()
    maps = [store.maps(spec.path, row_numbers) for spec in specs]
    panels = []
    for line, *row_maps in zip(index, *maps, strict=True):
        cells = _row_cells(store, line, list(zip(specs, row_maps, strict=True)), views, style)
        panels.append(_row_panel(store, line, specs, _single_tier(cells) if one_tier else _tier_per_view(cells)))
    footer = (
        _footer_text(style, drawn=len(specs), stored=len(store.arrays)) if any(panel.tiers for panel in panels) else ""
    )
    _save_figure(draw_contact_sheet(panels, footer=footer), output)
    return output


def _default_arrays(specs: list[ArraySpec]) -> list[ArraySpec]:
    if len(specs) <= MAX_DEFAULT_ARRAYS:
        return specs
    return [spec for spec in specs if spec.target == specs[0].target][:MAX_DEFAULT_ARRAYS]


def _footer_text(style: MapStyle, *, drawn: int, stored: int) -> str:
    clauses = ["Each map has its own colour scale, with its range printed below it"]
    clauses += [f"values past percentile {style.clip:g} have the last colour"] if style.clip < 100 else []
    clauses += [f"blurred by a Gaussian of {style.blur:g} pixels"] if style.blur else []
    clauses += ["inverted (1 − map)"] if style.invert else []
    clauses += [f"{drawn} of {stored} arrays (--array selects others)"] if drawn < stored else []
    return "; ".join(clauses) + "."


# -- one row ---------------------------------------------------------------------------------------------------


def _row_panel(store: Store, line: dict[str, Any], specs: list[ArraySpec], tiers: list[list[Cell | None]]) -> Panel:
    title = f"row {line['row']}    {printable(line['sample_id'], most=60)}"
    facts = [f"labelled {_class_text(store, line['label'], None)}" if line["label"] is not None else "no label"]
    facts += filter(
        None, (_target_text(store, line, target) for target in dict.fromkeys(spec.target for spec in specs))
    )
    reason = "" if tiers else f"{line['status']}: {line['error'] or line[f'{specs[0].target}__status']}"
    return Panel(title, facts, tiers, reason=printable(reason, most=400))


def _target_text(store: Store, line: dict[str, Any], target: str) -> str:
    """Returns ``predicted: tabby (p 0.93, score 12.1)``, for example; "" if the target was not explained."""
    if line[f"{target}__status"] != OK:
        return ""
    if line[f"{target}__class"] is None:  # the target is not a class but a difference, a loss or a unit
        return f"{target} (score {line[f'{target}__score']:.3g})"
    name = _class_text(store, line[f"{target}__class"], line[f"{target}__class_name"])
    probability, score = line[f"{target}__probability"], line[f"{target}__score"]
    certainty = f"p {probability:.2f}, " if probability is not None else ""
    return f"{target}: {name} ({certainty}score {score:.3g})"


def _class_text(store: Store, number: int | None, name: str | None) -> str:
    names = store.run.class_names
    if name is None and names is not None and number is not None and 0 <= number < len(names):
        name = names[number]
    if name is not None:
        return printable(name, most=36)
    return "none" if number is None else str(number)


def _row_cells(
    store: Store,
    line: dict[str, Any],
    maps: list[tuple[ArraySpec, NDArray[np.float32]]],
    views: Sequence[str],
    style: MapStyle,
) -> list[list[Cell | None]]:
    """Returns the image's cell, then the cells of each array: its views, or one with the reason for a missing map."""
    if all(line[f"{spec.target}__status"] != OK for spec, _ in maps):
        return []
    photograph = _load_photograph(store, line)
    cells: list[list[Cell | None]] = [[photograph.cell()]]
    for spec, values in maps:
        status = line[f"{spec.target}__status"]
        if status == OK:
            signed = not spec.nonnegative
            cells.append([*view_cells(spec.path, values, photograph, signed=signed, views=views, style=style)])
        else:
            cells.append([Cell(spec.path, printable(f"no map: {status}", most=160)), *[None] * (len(views) - 1)])
    return cells


def _single_tier(cells: list[list[Cell | None]]) -> list[list[Cell | None]]:
    """Returns one tier with all cells."""
    return [[cell for array_cells in cells for cell in array_cells]] if cells else []


def _tier_per_view(cells: list[list[Cell | None]]) -> list[list[Cell | None]]:
    """Returns a tier for each view, so that the views of an array are below each other."""
    return [list(tier) for tier in zip_longest(*cells)]


def _load_photograph(store: Store, line: dict[str, Any]) -> Photograph:
    """Loads an image no larger than it is drawn; a hundred images at full size would fill the memory."""
    image = store.original(line["row"])
    if isinstance(image, RejectedImage):
        return Photograph(None, None, printable(f"not available: {reword_for_explained(image.reason)}", most=160))
    size, explained_size = (image.width, image.height), (line["width"], line["height"])
    longest = round(1.4 * CELL * DPI)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    if size != explained_size:
        width, height = explained_size
        problem = f"the image has {size[0]}×{size[1]} pixels now, but had {width}×{height}"
        return Photograph(np.asarray(image), None, problem)
    box = store.run.preprocessing.geometry(*explained_size)
    x, y = image.width / size[0], image.height / size[1]
    return Photograph(np.asarray(image), Geometry(box.left * x, box.top * y, box.right * x, box.bottom * y))


# -- the file --------------------------------------------------------------------------------------------------


def _refuse_unwritable(output: Path) -> None:
    formats = sorted(FigureCanvasAgg.get_supported_filetypes())
    if _file_format(output) not in formats:
        raise InvalidRequestError(
            f"-o {output}: {output.suffix!r} is not a supported image format: use one of {', '.join(formats)}."
        )
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise InvalidRequestError(
            f"-o {output} cannot be written: it is a directory, or its directory does not exist. Give "
            "the path of a file."
        )


def _file_format(output: Path) -> str:
    return output.suffix.removeprefix(".").lower() or "png"


def _save_figure(figure: Figure, output: Path) -> None:
    format_ = _file_format(output)
    # Maps hardly compress: higher levels take seconds and gain nothing.
    options: dict[str, Any] = {"pil_kwargs": {"compress_level": 3}} if format_ == "png" else {}
    try:
        figure.savefig(output, dpi=DPI, format=format_, **options)
    except OSError as error:
        raise InvalidRequestError(
            f"-o {output} cannot be written ({error.strerror or error}): give another path."
        ) from error
