"""Tests which rows of two stores are matched, and that unmatched rows keep a line with the reason."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from rich.console import Console

from jobs.compare.compare_schema import PAIR_MEASURES
from jobs.compare.row_matching import Side
from jobs.explain.retry_command import retry
from jobs.store.store_reader import open_store
from saliency_core.errors import InvalidRequestError
from tests.conftest import run_inline
from tests.support.comparisons import GRADIENT, SAME, read_comparison, rows_of, run_compare


def listed(tree: Path, path: Path, names: list[str]) -> Path:
    path.write_text("uri\n" + "".join(f"{tree / name}\n" for name in names))
    return path


def test_rows_are_matched_by_sample_id_if_the_order_differs(tree: Path, tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*.png") if path.stat().st_size > 100)[:24]
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(24)]
    for name, chosen in (("a", names[:20]), ("b", shuffled)):
        images = listed(tree, tmp_path / f"{name}.csv", chosen)
        assert run_inline(images=str(images), out=str(tmp_path / name), batch_size=1)[0] in (0, 3)
    code, printed = run_compare(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    comparison, rows = read_comparison(tmp_path / "c"), rows_of(tmp_path / "c").to_pylist()
    assert code == 3 and "matched by sample id" in printed and (comparison.only_a, comparison.only_b) == (0, 4)
    assert len(rows) == 24 and [row["row_a"] for row in rows[:20]] == list(range(20))
    stores = [open_store(str(tmp_path / name)) for name in "ab"]
    for row in rows:
        ids = [
            store.lines([row[f"row_{side}"]], ["sample_id"])[0][0].as_py()
            for side, store in zip("ab", stores, strict=True)
            if row[f"row_{side}"] is not None
        ]
        assert {*ids} == {row["sample_id"]}
        if row["status"] == "ok":
            assert row["rank_correlation"] == 1 and row["distance"] == 0
    assert comparison.statuses["only in B"] == 4 and len(comparison.examples["only in B"]) == 4
    assert comparison.summary[1].startswith("The maps did not change")


def test_ids_that_occur_twice_are_not_matched(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, last in (("a", "elk/004.png"), ("b", "elk/009.png")):
        images = listed(tree, tmp_path / f"{name}.csv", ["ant/000.png", "bee/001.png", "dog/008.png", last])
        run_inline(images=str(images), out=str(tmp_path / name))
    lines = Side.lines

    def twice(side: Side) -> pa.Table:
        table = lines(side)
        ids = table["sample_id"].to_pylist()
        return table if side.name == "A" else table.set_column(1, "sample_id", pa.array([ids[1], *ids[1:]]))

    monkeypatch.setattr(Side, "lines", twice)
    printed = run_compare(tmp_path / "a", tmp_path / "b", tmp_path / "c")[1]
    assert "2 rows of B share their sample id with other rows" in printed
    assert read_comparison(tmp_path / "c").statuses == {"ok": 1, "only in A": 3, "only in B": 3}


def test_another_image_of_the_same_name_is_not_compared(tree: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "tree")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "tree/ant/000.png")
    run_inline(images=str(tmp_path / "tree"), out=str(tmp_path / "b"), **SAME)
    run_compare(finished, tmp_path / "b", tmp_path / "c")
    comparison = read_comparison(tmp_path / "c")
    assert comparison.examples["another image in B than in A"] == ["ant/000.png"] and comparison.pairs == 39


def test_blank_maps_have_no_measures_and_are_counted(tree: Path, tmp_path: Path) -> None:
    """Input × gradient of a black image is zero everywhere if normalisation maps black to zero."""
    shutil.copytree(tree / "ant", tmp_path / "tree/ant")
    Image.new("RGB", (16, 16)).save(tmp_path / "tree/ant/black.png")
    for name, mean in (("a", "0,0,0"), ("b", "0.5,0.5,0.5")):
        run_inline(images=str(tmp_path / "tree"), out=str(tmp_path / name), mean=mean, methods="input_x_gradient")
    run_compare(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    comparison = read_comparison(tmp_path / "c")
    assert comparison.examples["blank in A"] == ["ant/black.png"] and comparison.statuses["ok"] == comparison.pairs == 8
    blank = [row for row in rows_of(tmp_path / "c").to_pylist() if row["status"] == "blank in A"]
    assert len(blank) == 1 and all(blank[0][name] is None for name in PAIR_MEASURES) and blank[0]["score_a"] is not None


def test_a_comparison_without_pairs_states_it(tmp_path: Path) -> None:
    (tmp_path / "tree/ant").mkdir(parents=True)
    (tmp_path / "tree/ant/broken.png").write_bytes(b"no image")
    for name in ("a", "b"):
        run_inline(images=str(tmp_path / "tree"), out=str(tmp_path / name))
    code, printed = run_compare(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert code == 3 and "No pair of maps could be compared." in printed and "1 row, quarantined in both" in printed
    assert read_comparison(tmp_path / "c").pairs == 0 and len(rows_of(tmp_path / "c")) == 1


def test_two_arrays_of_one_store_are_compared(finished: Path, tmp_path: Path) -> None:
    run_compare(finished, finished, tmp_path / "c", array=GRADIENT, array_b="label/gradient")
    rows = rows_of(tmp_path / "c")
    index = open_store(str(finished)).lines(columns=["predicted__class", "label__class"]).to_pylist()
    for row in rows.to_pylist():
        if row["status"] == "ok":
            line = index[row["row_a"]]
            same = line["predicted__class"] == line["label__class"]
            assert not row["changed"] and row["correct_a"] == row["correct_b"] == same
            assert (row["rank_correlation"] == 1) == same


def test_without_predictions_the_summary_does_not_mention_them(tree: Path, tmp_path: Path) -> None:
    """The target ``label`` explains the same class with every model, so it shows no change of the prediction."""
    for name in ("tiny", "tiny_again"):
        run_inline(
            images=str(tree), out=str(tmp_path / name), model=f"python:factories:{name}", targets="label", **SAME
        )
    run_compare(tmp_path / "tiny", tmp_path / "tiny_again", tmp_path / "c")
    rows, comparison = rows_of(tmp_path / "c"), read_comparison(tmp_path / "c")
    assert rows["changed"].null_count == rows["correct_a"].null_count == len(rows) and comparison.pairs == 40
    assert comparison.summary[0].startswith("From A to B") and comparison.overall["changed"] is None


def test_committed_rows_of_an_unfinished_store_are_compared(tree: Path, finished: Path, tmp_path: Path) -> None:
    run_inline(images=str(tree), out=str(tmp_path / "part"), limit=16, **SAME)
    printed = run_compare(tmp_path / "part", finished, tmp_path / "c")[1]
    assert "A is not finished: 16 of its 43 rows" in printed
    comparison = read_comparison(tmp_path / "c")
    assert comparison.only_b == 27 and comparison.summary[1].startswith("The maps did not change")


def test_both_accuracies_use_the_same_rows(tree: Path, tmp_path: Path) -> None:
    """The same model on some of the images has the same accuracy; `top:1` counts as its prediction, too."""
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{name}\n" for name in sorted(path.name for path in tree.iterdir())))
    run_inline(images=str(tree), out=str(tmp_path / "b"), unit_size=8, batch_size=4, targets=("top:2", "label"))
    some = shutil.copytree(tree, tmp_path / "some")
    shutil.rmtree(some / "bee")
    run_inline(
        images=str(some), out=str(tmp_path / "a"), unit_size=8, batch_size=4, targets=("predicted", "label"),
        class_names=str(names),
    )  # fmt: skip
    run_compare(tmp_path / "a", tmp_path / "b", tmp_path / "c", array="label/gradient")
    rows = rows_of(tmp_path / "c")
    assert rows["changed"].null_count < len(rows)
    overall = read_comparison(tmp_path / "c").overall
    assert overall["accuracy_a"] == overall["accuracy_b"] is not None


def test_stores_without_a_common_row_are_refused(tree: Path, finished: Path, tmp_path: Path) -> None:
    run_inline(images=str(tree / "bee"), out=str(tmp_path / "b"))
    with pytest.raises(InvalidRequestError, match=r"no row in common.*'ant/.*'00"):
        run_compare(finished, tmp_path / "b", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_store_that_changed_needs_a_new_directory(tree: Path, tmp_path: Path) -> None:
    """An image was broken and has been repaired."""
    shutil.copytree(tree / "ant", tmp_path / "tree/ant")
    out = tmp_path / "store"
    run_inline(images=str(tmp_path / "tree"), out=str(out))
    run_compare(out, out, tmp_path / "c")
    shutil.copyfile(tree / "ant/000.png", tmp_path / "tree/ant/broken.jpg")
    assert retry(str(out), Console(file=io.StringIO()), workers="1", runner="inline") == 0
    with pytest.raises(InvalidRequestError, match="from before rows were added or changed"):
        run_compare(out, out, tmp_path / "c")
    run_compare(out, out, tmp_path / "d")
    assert read_comparison(tmp_path / "d").pairs == read_comparison(tmp_path / "c").pairs + 1
