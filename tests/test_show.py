"""`saliency show`: which rows are drawn, that nothing is cut off, and what is refused."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, run_inline
from matplotlib.figure import Figure
from PIL import Image

from jobs import show as module
from jobs.reader import Store, open_store
from jobs.rows import choose_rows
from jobs.show import show
from saliency_core.errors import Refused


@pytest.fixture(scope="module")
def store(finished: Path) -> Store:
    return open_store(str(finished))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn, still whole."""
    drawn: list[Figure] = []
    draw = module._draw

    def keeping(*args: object, **kwargs: object) -> Figure:
        drawn.append(draw(*args, **kwargs))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(module, "_draw", keeping)
    return drawn


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def assert_nothing_is_cut_off(figure: Figure) -> None:
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [text.get_window_extent() for text in figure.texts] + [axes.get_window_extent() for axes in figure.axes]
    for box in boxes:
        assert min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height
    for one, other in combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        down = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(across, down) <= 1, "one lies on the other"


def test_a_line_holds_the_image_and_each_map_twice(finished: Path, tmp_path: Path, figures: list[Figure]) -> None:
    out = show(str(finished), rows=[0, 5, 9], output=tmp_path / "grid.png")
    with Image.open(out) as picture:
        assert picture.format == "PNG" and min(picture.size) > 500
    (figure,) = figures
    assert len(figure.axes) == 3 * (1 + 2 * 4)
    for told in ("row 0 ", "row 5 ", "row 9 ", "predicted/gradient", "label/input_x_gradient", "labelled ant"):
        assert told in texts(figure)
    assert_nothing_is_cut_off(figure)


def test_the_first_cell_is_the_image_and_the_second_its_map(
    finished: Path, store: Store, tmp_path: Path, figures: list[Figure]
) -> None:
    show(str(finished), rows=[6], arrays=["predicted/gradient"], output=tmp_path / "grid.png")
    image, heat, laid = (np.asarray(axes.images[0].get_array()) for axes in figures[0].axes)
    np.testing.assert_array_equal(image, np.asarray(store.original(6)))
    brightest = np.unravel_index(store.maps("predicted/gradient", [6])[0].argmax(), (16, 16))
    assert heat.shape == (16, 16, 3) and heat.sum(axis=2)[brightest] == heat.sum(axis=2).max()
    assert laid.shape == image.shape


def test_a_quarantined_row_shows_its_reason(
    finished: Path, store: Store, tmp_path: Path, figures: list[Figure]
) -> None:
    lines = store.lines().to_pylist()
    row = next(line["row"] for line in lines if line["status"] == "quarantined")
    show(str(finished), rows=[row], output=tmp_path / "grid.png")
    assert not figures[0].axes
    assert lines[row]["error"].split(":")[0][:40] in texts(figures[0]).replace("\n", " ")
    assert_nothing_is_cut_off(figures[0])


def test_a_partial_row_says_what_it_lacks(tmp_path: Path, figures: list[Figure]) -> None:
    (tmp_path / "in").mkdir()
    for i in range(2):
        Image.new("RGB", (20, 20), (90 * i, 10, 200)).save(tmp_path / f"in/{i}.png")
    (tmp_path / "list.csv").write_text(f"uri,label\n{tmp_path}/in/0.png,\n{tmp_path}/in/1.png,3\n")
    out = str(tmp_path / "store")
    run_inline(images=str(tmp_path / "list.csv"), out=out, targets=("predicted", "label"))
    show(out, output=tmp_path / "grid.png")
    assert len(figures[0].axes) == 3 + 5
    assert "no map: no label" in texts(figures[0])


def test_a_lost_image_still_has_its_map(tmp_path: Path, figures: list[Figure]) -> None:
    (tmp_path / "in").mkdir()
    for i in range(2):
        Image.new("RGB", (20, 20), (90 * i, 10, 200)).save(tmp_path / f"in/{i}.png")
    run_inline(images=str(tmp_path / "in"), out=str(tmp_path / "store"))
    (tmp_path / "in/0.png").unlink()
    show(str(tmp_path / "store"), output=tmp_path / "grid.png")
    assert len(figures[0].axes) == 1 + 3
    assert "missing" in texts(figures[0]).replace("\n", " ")
    assert_nothing_is_cut_off(figures[0])


def test_names_of_any_script_and_shape(tmp_path: Path, figures: list[Figure]) -> None:
    """A glyph that the font lacks, mathematics to matplotlib, a line break, 200 wide letters; towers and panoramas."""
    names = ["日本語", "$x^2$ \\frac{", "new\nline", "W" * 200, "שלום", "a🙂b"]
    sizes = [(20, 20), (400, 20), (20, 400), (30, 25), (1, 1), (700, 900)]
    (tmp_path / "in").mkdir()
    for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
        Image.new("RGB", size, (40 * i, 10, 200)).save(tmp_path / f"in/{name}.png")
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(["Ä$", "貓", "W" * 99, "d", "e"]))
    run_inline(images=str(tmp_path / "in"), out=str(tmp_path / "store"), class_names=str(classes))
    show(str(tmp_path / "store"), output=tmp_path / "grid.png")
    assert len(figures[0].axes) == 6 * 3
    told = texts(figures[0])
    for expected in ("\\u65e5\\u672c\\u8a9e", "$x^2$ \\frac{", "new\\nline", "WWW…WWW", "a\\U0001f642b"):
        assert expected in told
    assert_nothing_is_cut_off(figures[0])


@pytest.mark.parametrize("kind", ["png", "pdf", "svg", "jpg", "PNG"])
def test_the_suffix_chooses_the_format(finished: Path, tmp_path: Path, kind: str) -> None:
    output = show(str(finished), rows=[0], arrays=["predicted/gradient"], output=tmp_path / f"one.{kind}")
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "jpg": b"\xff\xd8"}[kind.lower()]
    assert output.read_bytes().startswith(start)


# -- which rows ------------------------------------------------------------------------------------------------


def test_without_a_choice_the_first_rows(store: Store) -> None:
    assert choose_rows(store, target="predicted") == [0, 1, 2, 3, 4, 5]
    assert choose_rows(store, target="predicted", n=100) == list(range(43))
    assert choose_rows(store, target="predicted", rows=[9, 0, 9]) == [9, 0, 9]


@pytest.mark.parametrize("target", ["predicted", "label"])
def test_rows_of_a_class_by_number_or_name(store: Store, target: str) -> None:
    classes = store.lines(columns=[f"{target}__class"])[0].to_pylist()
    for number in set(classes) - {None}:
        expected = [row for row, found in enumerate(classes) if found == number]
        assert choose_rows(store, target=target, class_=str(number), n=99) == expected
        assert choose_rows(store, target=target, class_=CLASSES[number], n=99) == expected


def test_rows_by_a_column(store: Store) -> None:
    values = np.array(store.lines(columns=["predicted__gradient__l1"])[0].to_pylist(), float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known])].tolist()
    assert choose_rows(store, target="predicted", lowest="predicted__gradient__l1", n=99) == order
    assert choose_rows(store, target="predicted", highest="predicted__gradient__l1", n=4) == order[::-1][:4]
    # Equal values stand in row order, at both ends.
    assert choose_rows(store, target="predicted", highest="unit", n=3) == [40, 41, 42]
    assert choose_rows(store, target="predicted", lowest="unit", n=3) == [0, 1, 2]
    bees = choose_rows(store, target="label", class_="bee", n=99)
    assert choose_rows(store, target="label", class_="bee", highest="row", n=99) == bees[::-1]


def test_an_unfinished_store_shows_what_is_committed(tree: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "store")
    run_inline(images=str(tree), out=out, unit_size=8, limit=8)
    assert choose_rows(open_store(out), target="predicted", highest="row", n=2) == [7, 6]
    assert show(out, n=2, output=tmp_path / "grid.png").exists()
    with pytest.raises(Refused, match="not finished"):
        show(out, rows=[20], output=tmp_path / "other.png")


@pytest.mark.parametrize(
    "asked, told",
    [
        ({"rows": [43]}, "row 43.*0 to 42"),
        ({"rows": [-1]}, "row -1"),
        ({"rows": []}, "at least one"),
        ({"rows": [1], "class_": "ant"}, "drop it"),
        ({"highest": "row", "lowest": "row"}, "exclude"),
        ({"highest": "nope"}, "'nope'.*predicted__score"),
        ({"lowest": "sample_id"}, "no numbers"),
        ({"class_": "unicorn"}, "'unicorn' is no class"),
        ({"class_": "5"}, "class 5.*5 classes"),
        ({"arrays": ["predicted/nope"]}, "predicted/gradient"),
        ({"n": 0}, "at least 1"),
        ({"rows": [0] * 5000}, "fewer rows"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_nothing_written(
    finished: Path, tmp_path: Path, asked: dict[str, object], told: str
) -> None:
    with pytest.raises(Refused, match=told):
        show(str(finished), output=tmp_path / "grid.png", **asked)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, told", [("grid.xyz", "kind of picture"), ("none/grid.png", "cannot be written"), (".", "writ|kind")]
)
def test_an_output_that_cannot_be_is_refused(finished: Path, tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(Refused, match=told):
        show(str(finished), rows=[0], output=tmp_path / name)
