"""Tests that `saliency show` draws images, maps and values, and that nothing is cut off."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from jobs.config.requested_rows import RowSelection
from jobs.inspect import show as module
from jobs.inspect.show import show
from jobs.store.store_reader import Store, open_store
from saliency_core.visualization.deprocess import deprocess_signal
from saliency_core.visualization.map_style import MapStyle, draw_map
from saliency_core.visualization.picture_text import printable
from tests.conftest import run_inline

SCALE = (1, 257, 3)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The list of figures that are drawn."""
    drawn: list[Figure] = []
    draw = module.draw_contact_sheet

    def record(*args: Any, **kwargs: Any) -> Figure:
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(module, "draw_contact_sheet", record)
    return drawn


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.axes[0].texts)


def all_pictures(figure: Figure) -> list[NDArray[np.uint8]]:
    """All pictures in the order of drawing, with the colour scales."""
    return [np.asarray(image.get_array()) for image in figure.axes[0].images]


def pictures(figure: Figure) -> list[NDArray[np.uint8]]:
    return [picture for picture in all_pictures(figure) if picture.shape != SCALE]


def scales(figure: Figure) -> list[NDArray[np.uint8]]:
    return [picture for picture in all_pictures(figure) if picture.shape == SCALE]


def assert_nothing_is_cut_off(figure: Figure) -> None:
    width, height = figure.get_size_inches() * figure.dpi
    drawn = [*figure.axes[0].texts, *figure.axes[0].images]
    boxes = [artist.get_window_extent() for artist in drawn]
    for box in boxes:
        assert min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height
    for (first, box), (second, other) in combinations(zip(drawn, boxes, strict=True), 2):
        across = min(box.x1, other.x1) - max(box.x0, other.x0)
        down = min(box.y1, other.y1) - max(box.y0, other.y0)
        assert min(across, down) <= 1, f"{first} lies on {second}"


def test_a_panel_holds_the_image_and_each_map_twice(finished: Path, tmp_path: Path, figures: list[Figure]) -> None:
    out = show(str(finished), RowSelection(rows=[0, 5, 9]), output=tmp_path / "grid.png")
    with Image.open(out) as picture:
        assert picture.format == "PNG" and min(picture.size) > 500
    (figure,) = figures
    assert len(pictures(figure)) == 3 * (1 + 2 * 4) and len(scales(figure)) == 3 * 4
    for text in ("row 0 ", "row 5 ", "row 9 ", "predicted/gradient", "label/input_x_gradient", "labelled ant"):
        assert text in texts(figure)
    assert_nothing_is_cut_off(figure)


def test_the_first_cell_is_the_image_and_the_second_its_map(
    finished: Path, store: Store, tmp_path: Path, figures: list[Figure]
) -> None:
    show(str(finished), RowSelection(rows=[6]), arrays=["predicted/gradient"], output=tmp_path / "grid.png")
    image, heat, laid = pictures(figures[0])
    np.testing.assert_array_equal(image, np.asarray(store.original(6)))
    brightest = np.unravel_index(store.maps("predicted/gradient", [6])[0].argmax(), (16, 16))
    assert heat.shape == (16, 16, 3) and heat.sum(axis=2)[brightest] == heat.sum(axis=2).max()
    assert laid.shape == image.shape


def test_the_range_of_a_map_is_drawn_below_it(
    finished: Path, store: Store, tmp_path: Path, figures: list[Figure]
) -> None:
    arrays = ["predicted/gradient", "predicted/input_x_gradient"]
    show(str(finished), RowSelection(rows=[6]), arrays=arrays, output=tmp_path / "grid.png", style=MapStyle(clip=100))
    gradient, signed = (store.maps(path, [6])[0] for path in arrays)
    drawn_text = texts(figures[0]).split("\n")
    largest = np.abs(signed).max()
    for value in (gradient.min(), gradient.max(), -largest, 0, largest):
        assert f"{value:.3g}" in drawn_text
    hot, diverging = scales(figures[0])
    assert (hot[0, 0] < 20).all() and (hot[0, -1] == 255).all()
    np.testing.assert_array_equal(diverging[0, [0, 128, -1]], [[0, 0, 255], [255, 255, 255], [255, 0, 0]])


def test_views_and_colours_can_be_selected(finished: Path, store: Store, tmp_path: Path, figures: list[Figure]) -> None:
    def drawn(**keys: Any) -> list[NDArray[np.uint8]]:
        show(str(finished), RowSelection(rows=[6]), arrays=["predicted/gradient"], output=tmp_path / "grid.png", **keys)
        assert_nothing_is_cut_off(figures[-1])
        return pictures(figures[-1])

    image, heat, laid = drawn()
    _, masked, also_laid, also_heat = drawn(views=["mask", "overlay", "map"])
    np.testing.assert_array_equal(also_heat, heat)
    np.testing.assert_array_equal(also_laid, laid)
    assert (masked <= image).all() and "predicted/gradient, image × map" in texts(figures[-1]).replace("\n", " ")
    np.testing.assert_array_equal(drawn(style=MapStyle(alpha=0))[2], image)
    values = store.maps("predicted/gradient", [6])[0]
    for style in (MapStyle(), MapStyle(clip=90), MapStyle(blur=2), MapStyle(invert=True), MapStyle(cmap="viridis")):
        np.testing.assert_array_equal(drawn(style=style)[1], draw_map(values, style))
    drawn(style=MapStyle(clip=100))
    assert "percentile" not in texts(figures[-1]) and "1 of 4 arrays" in texts(figures[-1])


def test_only_the_first_targets_of_many_arrays_are_drawn(tree: Path, tmp_path: Path, figures: list[Figure]) -> None:
    out = str(tmp_path / "store")
    reductions = ("abs_max", "abs_sum", "l2", "relu_max")
    run_inline(
        images=str(tree / "ant"), out=out, targets=("predicted", "class:1"),
        methods=tuple(f"gradient(reduction={name})" for name in reductions),
    )  # fmt: skip
    show(out, RowSelection(n=1), output=tmp_path / "grid.png")
    assert len(pictures(figures[0])) == 1 + 2 * 4
    assert "class_1" not in texts(figures[0]) and "4 of 8 arrays" in texts(figures[0])


@pytest.mark.parametrize("model, channels", [("tiny", 3), ("grey", 1)])
def test_kept_channels_are_one_picture(
    tree: Path, tmp_path: Path, figures: list[Figure], model: str, channels: int
) -> None:
    out = str(tmp_path / "store")
    run_inline(
        images=str(tree / "ant"), out=out, methods=("gradient(reduction=none)",), model=f"python:factories:{model}",
        mean=",".join(["0.5"] * channels), std=",".join(["0.5"] * channels), channels=channels,
    )  # fmt: skip
    show(out, RowSelection(rows=[0]), output=tmp_path / "grid.png")
    show(out, RowSelection(rows=[0]), output=tmp_path / "grid.png", style=MapStyle(cmap="viridis", invert=True))
    for figure in figures:
        assert len(pictures(figure)) == 3 and len(scales(figure)) == 1
        assert_nothing_is_cut_off(figure)
    values = open_store(out).maps("predicted/gradient_none", [0])[0]
    if channels == 3:
        np.testing.assert_array_equal(pictures(figures[0])[1], deprocess_signal(values))
    else:
        np.testing.assert_array_equal(pictures(figures[0])[1], draw_map(values[0], signed=True))


def test_a_quarantined_row_shows_its_reason(
    finished: Path, store: Store, tmp_path: Path, figures: list[Figure]
) -> None:
    lines = store.lines().to_pylist()
    row = next(line["row"] for line in lines if line["status"] == "quarantined")
    show(str(finished), RowSelection(rows=[row]), output=tmp_path / "grid.png")
    assert not pictures(figures[0])
    assert lines[row]["error"].split(":")[0][:40] in texts(figures[0]).replace("\n", " ")
    assert_nothing_is_cut_off(figures[0])


def test_a_partial_row_has_the_reason_for_a_missing_map(tmp_path: Path, figures: list[Figure]) -> None:
    (tmp_path / "in").mkdir()
    for i in range(2):
        Image.new("RGB", (20, 20), (90 * i, 10, 200)).save(tmp_path / f"in/{i}.png")
    (tmp_path / "list.csv").write_text(f"uri,label\n{tmp_path}/in/0.png,\n{tmp_path}/in/1.png,3\n")
    out = str(tmp_path / "store")
    run_inline(images=str(tmp_path / "list.csv"), out=out, targets=("predicted", "label"))
    show(out, RowSelection(n=6), output=tmp_path / "grid.png")
    assert len(pictures(figures[0])) == 3 + 5
    assert "no map: no label" in texts(figures[0])


def test_a_lost_image_still_has_its_map(tmp_path: Path, figures: list[Figure]) -> None:
    (tmp_path / "in").mkdir()
    for i in range(2):
        Image.new("RGB", (20, 20), (90 * i, 10, 200)).save(tmp_path / f"in/{i}.png")
    run_inline(images=str(tmp_path / "in"), out=str(tmp_path / "store"))
    (tmp_path / "in/0.png").unlink()
    show(str(tmp_path / "store"), RowSelection(n=6), output=tmp_path / "grid.png")
    assert len(pictures(figures[0])) == 1 + 3
    assert "missing" in texts(figures[0]).replace("\n", " ")
    assert_nothing_is_cut_off(figures[0])


def test_names_of_any_script_and_shape(tmp_path: Path, figures: list[Figure]) -> None:
    """Names with missing glyphs, TeX, a line break or 200 wide letters; very tall and very wide images."""
    names = ["日本語", "$x^2$ \\frac{", "new\nline", "W" * 200, "שלום", "a🙂b"]
    sizes = [(20, 20), (400, 20), (20, 400), (30, 25), (1, 1), (700, 900)]
    (tmp_path / "in").mkdir()
    for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
        Image.new("RGB", size, (40 * i, 10, 200)).save(tmp_path / f"in/{name}.png")
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(["Ä$", "貓", "W" * 99, "d", "e"]))
    run_inline(images=str(tmp_path / "in"), out=str(tmp_path / "store"), class_names=str(classes))
    show(str(tmp_path / "store"), RowSelection(n=6), output=tmp_path / "grid.png")
    assert len(pictures(figures[0])) == 6 * 3
    drawn_text = texts(figures[0])
    for expected in ("\\u65e5\\u672c\\u8a9e", "$x^2$ \\frac{", "new\\nline", "WWW…WWW", "a\\U0001f642b"):
        assert expected in drawn_text
    assert_nothing_is_cut_off(figures[0])


@pytest.mark.parametrize("kind", ["png", "pdf", "svg", "jpg", "PNG"])
def test_the_suffix_chooses_the_format(finished: Path, tmp_path: Path, kind: str) -> None:
    output = show(str(finished), RowSelection(rows=[0]), arrays=["predicted/gradient"], output=tmp_path / f"one.{kind}")
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "jpg": b"\xff\xd8"}[kind.lower()]
    assert output.read_bytes().startswith(start)


def test_a_photograph_is_drawn_small_with_its_map_in_place(tmp_path: Path, figures: list[Figure]) -> None:
    """The part outside the crop is dimmed, also if the image is drawn smaller."""
    (tmp_path / "in").mkdir()
    Image.new("RGB", (3000, 1000), (200, 200, 200)).save(tmp_path / "in/0.png")
    out = str(tmp_path / "store")
    run_inline(images=str(tmp_path / "in"), out=out, resize="16", crop="16x16")
    show(out, RowSelection(n=6), output=tmp_path / "grid.png", style=MapStyle(alpha=0))
    image, _, laid = pictures(figures[0])
    assert max(image.shape) < 600 and laid.shape == image.shape
    third = image.shape[1] / 3
    columns = np.flatnonzero((laid == 200).all(axis=(0, 2)))
    assert abs(columns[0] - third) <= 1 and abs(columns[-1] - 2 * third) <= 1
    assert (laid[:, : columns[0]] == 100).all()


@pytest.mark.parametrize(
    "text",
    ["plain", "日本語", "שלום", "مرحبا", "a\u202eb", "tab\tline\n", "🙂" * 50, "\ud800", "\x00", "$\\frac{$", "é́"],
)
def test_any_text_can_be_drawn(text: str) -> None:
    safe = printable(text)
    assert safe.isprintable() and printable(safe) == safe
    assert (safe == text) == (text in ("plain", "שלום", "مرحبا", "$\\frac{$", "é́"))
    for most in (1, 2, 5, 20):
        assert len(printable(text, most=most)) == min(most, len(safe))


def test_a_sheet_has_a_limited_height_and_every_row(finished: Path, tmp_path: Path, figures: list[Figure]) -> None:
    for rows in ([0], list(range(30))):
        show(str(finished), RowSelection(rows=rows), arrays=["predicted/gradient"], output=tmp_path / "grid.png")
        width, height = figures[-1].get_size_inches()
        assert height < 2.2 * width
        assert [f"row {row} " in texts(figures[-1]) for row in rows] == [True] * len(rows)


def test_the_command_takes_flags_and_refuses_requests_that_show_nothing(
    finished: Path, tmp_path: Path, saliency: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    output = tmp_path / "grid.png"
    command = ("show", finished, "-o", output, "--rows", "0", "--array", "label/input_x_gradient")
    refused = saliency(*command, "--cmap", "hott")
    assert refused.returncode == 2 and "'hott'" in refused.stderr and not output.exists()
    done = saliency(
        *command, "--cmap", "coolwarm", "--clip", 100, "--invert", "--blur", 1.5, "--alpha", 0.5,
        "--view", "mask", "--view", "map",
    )  # fmt: skip
    assert done.returncode == 0 and output.exists(), done.stderr
