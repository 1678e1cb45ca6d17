"""Tests that `saliency show` draws the selected rows and refuses invalid requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.config.requested_rows import RowSelection
from jobs.inspect.show import show
from jobs.store.row_selection import choose_rows
from jobs.store.store_reader import Store, open_store
from saliency_core.errors import InvalidRequestError
from tests.conftest import CLASSES, run_inline


def test_without_a_selection_the_first_rows_are_drawn(store: Store) -> None:
    assert choose_rows(store, RowSelection(n=6), target="predicted") == [0, 1, 2, 3, 4, 5]
    assert choose_rows(store, RowSelection(n=100), target="predicted") == list(range(43))
    assert choose_rows(store, RowSelection(rows=[9, 0, 9]), target="predicted") == [9, 0, 9]


@pytest.mark.parametrize("target", ["predicted", "label"])
def test_rows_of_a_class_are_selected_by_number_or_name(store: Store, target: str) -> None:
    classes = store.lines(columns=[f"{target}__class"])[0].to_pylist()
    for number in set(classes) - {None}:
        expected = [row for row, class_ in enumerate(classes) if class_ == number]
        assert choose_rows(store, RowSelection(class_=str(number), n=99), target=target) == expected
        assert choose_rows(store, RowSelection(class_=CLASSES[number], n=99), target=target) == expected


def test_rows_are_ordered_by_a_column(store: Store) -> None:
    values = np.array(store.lines(columns=["predicted__gradient__l1"])[0].to_pylist(), float)
    valued = np.flatnonzero(~np.isnan(values))
    order = valued[np.argsort(values[valued])].tolist()
    assert choose_rows(store, RowSelection(lowest="predicted__gradient__l1", n=99), target="predicted") == order
    assert (
        choose_rows(store, RowSelection(highest="predicted__gradient__l1", n=4), target="predicted") == order[::-1][:4]
    )
    # Rows of equal values: the order follows the row number.
    assert choose_rows(store, RowSelection(highest="unit", n=3), target="predicted") == [40, 41, 42]
    assert choose_rows(store, RowSelection(lowest="unit", n=3), target="predicted") == [0, 1, 2]
    bees = choose_rows(store, RowSelection(class_="bee", n=99), target="label")
    assert choose_rows(store, RowSelection(class_="bee", highest="row", n=99), target="label") == bees[::-1]


def test_committed_rows_of_an_unfinished_store_are_drawn(tree: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "store")
    run_inline(images=str(tree), out=out, unit_size=8, limit=8)
    assert choose_rows(open_store(out), RowSelection(highest="row", n=2), target="predicted") == [7, 6]
    assert show(out, RowSelection(n=2), output=tmp_path / "grid.png").exists()
    with pytest.raises(InvalidRequestError, match="not finished"):
        show(out, RowSelection(rows=[20]), output=tmp_path / "other.png")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rows": [43]}, "row 43.*0 to 42"),
        ({"rows": [-1]}, "row -1"),
        ({"rows": []}, "at least one"),
        ({"rows": [1], "class_": "ant"}, "drop it"),
        ({"highest": "row", "lowest": "row"}, "exclude"),
        ({"highest": "nope"}, "'nope'.*predicted__score"),
        ({"lowest": "sample_id"}, "no numbers"),
        ({"class_": "unicorn"}, "class 'unicorn' is not a class of this model"),
        ({"class_": "5"}, "class 5.*5 classes"),
        ({"arrays": ["predicted/nope"]}, "predicted/gradient"),
        ({"n": 0}, "at least 1"),
        ({"views": []}, "without a view"),
        ({"views": ["map", "maps"]}, "'maps'.*map, overlay, mask"),
        ({"rows": [0] * 5000}, "fewer rows"),
    ],
)
def test_invalid_requests_are_refused_and_nothing_is_written(
    finished: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    drawing = {name: arguments[name] for name in ("arrays", "views") if name in arguments}
    with pytest.raises(InvalidRequestError, match=message):
        selection = RowSelection(**{name: value for name, value in arguments.items() if name not in drawing})
        show(str(finished), selection, output=tmp_path / "grid.png", **drawing)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, message",
    [("grid.xyz", "supported image format"), ("none/grid.png", "cannot be written"), (".", "writ|format")],
)
def test_an_impossible_output_path_is_refused(finished: Path, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        show(str(finished), RowSelection(rows=[0]), output=tmp_path / name)
