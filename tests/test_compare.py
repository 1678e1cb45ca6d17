"""Comparing two stores: what is the same is told to be, what differs by how much, and no row gets lost."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_inline
from PIL import Image
from rich.console import Console
from scipy.stats import spearmanr

from jobs.compare.common import CommonPart
from jobs.compare.compare import compare
from jobs.compare.findings import percent
from jobs.compare.likeness import centres, distance, overlap, rank_correlation
from jobs.compare.pairs import Side
from jobs.compare.places import direction, in_words
from jobs.compare.results import COMPARE_JSON, FIGURES, Comparison
from jobs.reader import open_store
from jobs.retry import retry
from jobs.stopped import Stopped
from saliency_core.errors import Refused
from saliency_core.preprocessing import Preprocessing

GRADIENT = "predicted/gradient"
SAME = {"unit_size": 8, "batch_size": 4}


def compared(a: Path, b: Path, output: Path, **options: Any) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = compare(str(a), str(b), console, output=str(output), **{"runner": "inline", **options})
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def found(output: Path) -> Comparison:
    return Comparison.model_validate_json((output / COMPARE_JSON).read_bytes())


def rows_of(output: Path) -> pa.Table:
    return pq.read_table(output / "rows.parquet")


def tables(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*.parquet"))}


@pytest.fixture(scope="module")
def other(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model's store of the same tree: its classes differ in most rows."""
    out = tmp_path_factory.mktemp("other") / "store"
    run_inline(images=str(tree), out=str(out), model="python:factories:tiny_again", **SAME)
    return out


@pytest.fixture(scope="module")
def moved(finished: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison of the two models."""
    output = tmp_path_factory.mktemp("moved") / "comparison"
    compared(finished, other, output)
    return output


@pytest.fixture(scope="module")
def still(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison of a store with itself."""
    output = tmp_path_factory.mktemp("still") / "comparison"
    compared(finished, finished, output)
    return output


# -- measures ------------------------------------------------------------------------------------------------


def test_rank_correlation_is_scipys_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    a = np.abs(rng.normal(size=(12, 9, 7))).astype(np.float32)
    b = (a + np.abs(rng.normal(size=a.shape))).astype(np.float32)
    a[:4], b[2:6] = np.round(a[:4]), np.round(3 * b[2:6]) / 3
    b[6], b[7] = a[6], a[7].max() - a[7]
    b[8, 0, 0], a[8, 1] = 100, 0
    expected = [spearmanr(one.ravel(), other.ravel()).statistic for one, other in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b), expected, atol=1e-12)
    assert rank_correlation(a, b)[6] == 1 and rank_correlation(a, b)[7] == pytest.approx(-1)


@pytest.mark.parametrize("value", [0.0, 7.0, float("nan"), float("inf")])
def test_a_map_without_an_order_has_no_rank_correlation(value: float) -> None:
    maps = np.random.default_rng(0).random((3, 4, 4), np.float32)
    flat = maps.copy()
    flat[1] = value
    for one, other in ((maps, flat), (flat, maps), (flat, flat)):
        assert np.isnan(rank_correlation(one, other)).tolist() == [False, True, False]
    flat[1, 0, 0], flat[1, 1, 1] = 1, 2
    assert np.isnan(rank_correlation(maps, flat)[1]) == (not np.isfinite(value))


def test_overlap_is_that_of_the_top_regions() -> None:
    a = np.arange(20, dtype=np.float32).reshape(1, 4, 5)
    assert overlap(a, a, top=0.1) == overlap(a, 7 * a, top=0.25) == 1
    assert overlap(a, a[:, ::-1, ::-1], top=0.5) == 0
    b = a.copy()
    b[0, 3, 4], b[0, 0, 0] = 0, 30  # the first pixel takes the place of the last
    assert overlap(a, b, top=0.2) == overlap(b, a, top=0.2) == 3 / 5


def test_ties_belong_to_the_top_region_and_zeros_never() -> None:
    a, b = np.zeros((2, 1, 4, 5), np.float32)
    a[0, 0, :3] = 1  # three pixels tie for the two places
    b[0, 0, :2] = 1  # the others are zero, and there are places left
    assert overlap(a, b, top=0.1) == 2 / 3 and overlap(a, b, top=0.9) == 2 / 3
    assert np.isnan(overlap(np.zeros_like(a), np.zeros_like(a), top=0.1))


def test_distance_is_the_share_that_lies_elsewhere() -> None:
    a, b, c = np.zeros((3, 1, 2, 2), np.float32)
    a[0, 0], b[0, 0, 0], c[0, 1] = 0.5, 1, 0.5
    assert [float(distance(a, one)[0]) for one in (a, b, c)] == [0, 0.5, 1]


def test_centres_and_the_words_for_where_relevance_went() -> None:
    corner, middle = np.zeros((2, 1, 9, 9), np.float32)
    corner[0, 8, 8], middle[0, 4, 4] = 1, 1
    assert [float(one[0]) for one in centres(corner)] == pytest.approx([17 / 18, 17 / 18])
    assert in_words(*direction(corner[0], middle[0])) == "from the lower right corner to the centre"
    assert direction(corner[0], corner[0]) == (None, None)
    assert in_words(*direction(np.array([[1.0, 0]]), np.array([[0, 1.0]]))) == "from the left edge to the right edge"
    assert in_words(*direction(np.full((9, 9), 1 / 81), corner[0])) == (
        "from the upper left corner to the lower right corner"
    )


# -- maps of other sizes and crops -----------------------------------------------------------------------------


def geometry(resize: Any, crop: Any) -> Preprocessing:
    return Preprocessing(resize=resize, crop=crop, interpolation="bilinear", mean=(0,), std=(1,), channels=1)


class Fake:
    """As much of a run, and of an array, as the common part asks for."""

    def __init__(self, resize: Any, crop: Any) -> None:
        self.preprocessing = geometry(resize, crop)
        self.item_shape = self.preprocessing.input_size

    def maps(self, sizes: list[tuple[int, int]]) -> np.ndarray:
        """A landscape in the images' own coordinates, as a model with this crop would see it."""
        rows, columns = self.item_shape
        found = []
        for width, height in sizes:
            box = self.preprocessing.geometry(width, height)
            x = (box.left + (np.arange(columns) + 0.5) / columns * (box.right - box.left)) / width
            y = (box.top + (np.arange(rows) + 0.5) / rows * (box.bottom - box.top)) / height
            found.append(3 + np.sin(2.5 * x)[None] + np.cos(3 * y)[:, None] + x[None] * y[:, None])
        return np.array(found, np.float32)


SIZES = [(40, 40), (40, 64), (100, 57), (33, 32)]


@pytest.mark.parametrize("b", [
    Fake((48, 48), None), Fake((32, 24), None), Fake(40, (32, 32)), Fake(36, (20, 28)), Fake(30, (36, 30)),
])  # fmt: skip
def test_what_both_models_saw_is_compared_wherever_their_crops_lie(b: Fake) -> None:
    a = Fake((32, 32), None)
    common = CommonPart(a, a, b, b)  # type: ignore[arg-type]
    widths, heights = (np.array(one, np.int32) for one in zip(*SIZES, strict=True))
    placed_a, placed_b = common(a.maps(SIZES), b.maps(SIZES), widths, heights)
    assert placed_a.shape == placed_b.shape == (4, min(32, b.item_shape[0]), min(32, b.item_shape[1]))
    # Half a cell at the edges is repeated; elsewhere bilinear resampling follows so smooth a landscape.
    np.testing.assert_allclose(placed_a[:, 2:-2, 2:-2], placed_b[:, 2:-2, 2:-2], atol=0.03)
    assert rank_correlation(placed_a, placed_b).min() > 0.998


def test_maps_of_the_same_part_stay_as_they_are() -> None:
    a, b = Fake((16, 16), None), Fake((16, 16), (16, 16))
    maps = np.random.default_rng(0).random((4, 16, 16), np.float32)
    widths, heights = (np.array(one, np.int32) for one in zip(*SIZES, strict=True))
    placed = CommonPart(a, a, b, b)(maps, 2 * maps, widths, heights)  # type: ignore[arg-type]
    np.testing.assert_array_equal(placed[0], maps)
    np.testing.assert_array_equal(placed[1], 2 * maps)


def test_stores_of_other_sizes_and_crops_compare(tree: Path, tmp_path: Path) -> None:
    """The same model on larger images sees about the same; a crop is set against its own part of the image."""
    for name, keys in (("whole", {}), ("larger", {"resize": "30x30"}), ("cropped", {"crop": "20x20"})):
        run_inline(images=str(tree), out=str(tmp_path / name), targets="class:0", **SAME, **{"resize": "24x24", **keys})
    for name, cells in (("larger", 24), ("cropped", 20)):
        compared(tmp_path / "whole", tmp_path / name, tmp_path / f"to-{name}")
        told = found(tmp_path / f"to-{name}")
        assert told.resampled and told.pairs == 40 and told.cells == (cells, cells)
    # Cropped, the model saw the very same pixels, but for those at the edges.
    assert told.overall["median_rank_correlation"] > 0.5
    assert told.overall["median_distance"] < 0.8 * rows_median(tmp_path / "to-cropped", "to_next")


def rows_median(output: Path, column: str) -> float:
    return float(np.nanmedian(rows_of(output)[column].to_numpy(zero_copy_only=False)))


# -- stores ----------------------------------------------------------------------------------------------------


def test_a_store_beside_itself_has_not_moved(still: Path, finished: Path) -> None:
    rows, told = rows_of(still), found(still)
    ok = rows.filter(pa.compute.equal(rows["status"], "ok"))
    assert len(rows) == 43 and len(ok) == told.pairs == 40
    assert ok["rank_correlation"].to_pylist() == ok["overlap"].to_pylist() == [1] * 40
    assert ok["distance"].to_pylist() == ok["score_change"].to_pylist() == [0] * 40
    assert ok["changed"].to_pylist() == [False] * 40
    assert told.summary[0] == "No row changed its class, of 40; 20 % are right in A, 20 % in B."
    assert told.summary[1] == "Nothing moved: all 40 pairs of maps are the same."
    assert min(ok["to_next"].to_pylist()) > 0 and not told.resampled
    classes = pq.read_table(still / "classes.parquet")
    assert sum(classes["pairs"].to_pylist()) == 40 and sum(classes["count"].to_pylist()) == 43
    for line in classes.to_pylist():
        assert line["mean_map_a"] == line["mean_map_b"] and (line["place_from"], line["place_to"]) == (None, None)


def test_quarantined_rows_are_counted_and_named(still: Path, finished: Path) -> None:
    told = found(still)
    assert told.statuses == {"ok": 40, "quarantined in both": 3}
    assert sorted(told.examples["quarantined in both"]) == ["ant/broken.jpg", "cat/empty.png", "dog/torn.png"]
    assert "Not compared: 3 rows, quarantined in both." in told.summary
    rows = rows_of(still)
    left_out = rows.filter(pa.compute.not_equal(rows["status"], "ok"))
    assert all(left_out[name].null_count == 3 for name in FIGURES)


def test_the_figures_are_those_of_the_maps(moved: Path, finished: Path, other: Path) -> None:
    a, b = open_store(str(finished)), open_store(str(other))
    for line in rows_of(moved).to_pylist():
        if line["status"] != "ok":
            continue
        index_a, index_b = (store.lines([line["row_a"]]).to_pylist()[0] for store in (a, b))
        map_a, map_b = (np.abs(store.maps(GRADIENT, [line["row_a"]])[0]).ravel() for store in (a, b))
        assert line["rank_correlation"] == pytest.approx(spearmanr(map_a, map_b).statistic, abs=1e-6)
        assert line["distance"] == pytest.approx(np.abs(map_a / map_a.sum() - map_b / map_b.sum()).sum() / 2, abs=1e-5)
        top_a, top_b = ({*np.argsort(one)[-26:].tolist()} for one in (map_a, map_b))
        assert line["overlap"] == pytest.approx(len(top_a & top_b) / len(top_a | top_b))
        assert line["changed"] == (index_a["predicted__class"] != index_b["predicted__class"])
        for name in ("score", "probability"):
            assert line[f"{name}_change"] == pytest.approx(
                index_b[f"predicted__{name}"] - index_a[f"predicted__{name}"], abs=1e-6
            )


def test_the_figures_of_classes_are_those_of_their_rows(moved: Path) -> None:
    rows = [line for line in rows_of(moved).to_pylist() if line["row_a"] is not None]
    classes = pq.read_table(moved / "classes.parquet").to_pylist()
    assert {line["class"] for line in classes} == {line["class"] for line in rows}
    for line in classes:
        own = [row for row in rows if row["class"] == line["class"]]
        with_figures = [row for row in own if row["distance"] is not None]
        assert (line["count"], line["pairs"]) == (len(own), len(with_figures))
        if not with_figures:
            continue
        for name in FIGURES:
            values = [row[name] for row in with_figures]
            assert line[f"median_{name}"] == pytest.approx(np.median(values))
            assert line[f"mean_{name}"] == pytest.approx(np.mean(values))
        changed = [row for row in own if row["changed"]]
        assert line["changed"] == pytest.approx(len(changed) / len(with_figures))
        if changed:
            most = Counter(row["predicted_name_b"] for row in changed).most_common(1)[0][1]
            assert (
                line["mostly_rows"] == most
                and line["finding"].count(f"changed class, most often to {line['mostly_to']}") == 1
            )
        furthest = sorted(with_figures, key=lambda row: -row["distance"])
        assert line["rows"] == [row["row_a"] for row in furthest[:12]]
        assert sum(line["mean_map_a"]) == pytest.approx(1, abs=1e-4)
    medians = [line["median_distance"] for line in classes if line["pairs"] >= 5]
    assert medians == sorted(medians, reverse=True) and found(moved).overall["changed"] > 0


def test_the_summary_tells_the_share_of_changed_classes(moved: Path) -> None:
    rows = [line for line in rows_of(moved).to_pylist() if line["status"] == "ok"]
    changed = sum(line["changed"] for line in rows)
    right = [percent(sum(line[f"correct_{side}"] for line in rows) / 40) for side in "ab"]
    assert found(moved).summary[0] == (
        f"In {percent(changed / 40)} of the rows the class changed ({changed} of 40); "
        f"{right[0]} are right in A, {right[1]} in B."
    )
    assert [percent(one) for one in (0, 0.003, 0.0949, 0.12, 1)] == ["0 %", "0.3 %", "9.5 %", "12 %", "100 %"]


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_scaled_maps_are_nearly_those_that_they_were_made_of(
    tree: Path, finished: Path, tmp_path: Path, dtype: str
) -> None:
    run_inline(images=str(tree), out=str(tmp_path / "scaled"), map_dtype=dtype, **SAME)
    compared(finished, tmp_path / "scaled", tmp_path / "c")
    rows = rows_of(tmp_path / "c")
    assert min(rows["rank_correlation"].drop_null().to_pylist()) > 0.999
    assert max(rows["distance"].drop_null().to_pylist()) < 0.005
    assert found(tmp_path / "c").overall["changed"] == 0


def test_unit_sizes_change_no_row(tree: Path, finished: Path, other: Path, moved: Path, tmp_path: Path) -> None:
    for name, model, unit_size in (("a", "tiny", 12), ("b", "tiny_again", 4)):
        model = f"python:factories:{model}"
        run_inline(images=str(tree), out=str(tmp_path / name), model=model, unit_size=unit_size, batch_size=4)
    compared(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert rows_of(tmp_path / "c").equals(rows_of(moved))


def test_two_comparisons_are_the_same_to_the_byte(finished: Path, other: Path, moved: Path, tmp_path: Path) -> None:
    compared(finished, other, tmp_path / "again")
    assert tables(tmp_path / "again") == tables(moved)


def test_a_broken_off_comparison_goes_on(finished: Path, other: Path, moved: Path, tmp_path: Path) -> None:
    output = tmp_path / "c"
    shutil.copytree(moved, output)
    for name in ("units/unit-00000003.parquet", "units/maps-00000001.parquet", "rows.parquet", "classes.parquet"):
        (output / name).unlink()
    (output / "units/unit-00000001.parquet").unlink()
    kept = (output / "units/unit-00000000.parquet").stat().st_mtime_ns
    told = compared(finished, other, output)[1]
    assert "40 of 40 pairs compared" in told and tables(output) == tables(moved)
    assert (output / "units/unit-00000000.parquet").stat().st_mtime_ns == kept


def listed(tree: Path, path: Path, names: list[str]) -> Path:
    path.write_text("uri\n" + "".join(f"{tree / name}\n" for name in names))
    return path


def test_rows_are_matched_by_sample_id_where_the_order_differs(tree: Path, tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*.png") if path.stat().st_size > 100)[:24]
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(24)]
    for name, chosen in (("a", names[:20]), ("b", shuffled)):
        images = listed(tree, tmp_path / f"{name}.csv", chosen)
        assert run_inline(images=str(images), out=str(tmp_path / name), batch_size=1)[0] in (0, 3)
    code, told = compared(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    summary, rows = found(tmp_path / "c"), rows_of(tmp_path / "c").to_pylist()
    assert code == 3 and "matched by sample id" in told and (summary.only_a, summary.only_b) == (0, 4)
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
    assert summary.statuses["only in B"] == 4 and len(summary.examples["only in B"]) == 4
    assert summary.summary[1].startswith("Nothing moved")


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
    told = compared(tmp_path / "a", tmp_path / "b", tmp_path / "c")[1]
    assert "2 rows of B share their sample id with others" in told
    assert found(tmp_path / "c").statuses == {"ok": 1, "only in A": 3, "only in B": 3}


def test_another_image_of_the_same_name_is_not_compared(tree: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "tree")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "tree/ant/000.png")
    run_inline(images=str(tmp_path / "tree"), out=str(tmp_path / "b"), **SAME)
    compared(finished, tmp_path / "b", tmp_path / "c")
    told = found(tmp_path / "c")
    assert told.examples["another image in B than in A"] == ["ant/000.png"] and told.pairs == 39


def test_blank_maps_have_no_figures_and_are_counted(tree: Path, tmp_path: Path) -> None:
    """Input × gradient of a black image is zero everywhere, where black is zero."""
    shutil.copytree(tree / "ant", tmp_path / "tree/ant")
    Image.new("RGB", (16, 16)).save(tmp_path / "tree/ant/black.png")
    for name, mean in (("a", "0,0,0"), ("b", "0.5,0.5,0.5")):
        run_inline(images=str(tmp_path / "tree"), out=str(tmp_path / name), mean=mean, methods="input_x_gradient")
    compared(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    told = found(tmp_path / "c")
    assert told.examples["blank in A"] == ["ant/black.png"] and told.statuses["ok"] == told.pairs == 8
    blank = [row for row in rows_of(tmp_path / "c").to_pylist() if row["status"] == "blank in A"]
    assert len(blank) == 1 and all(blank[0][name] is None for name in FIGURES) and blank[0]["score_a"] is not None


def test_where_no_pair_of_maps_is_left_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "tree/ant").mkdir(parents=True)
    (tmp_path / "tree/ant/broken.png").write_bytes(b"no image")
    for name in ("a", "b"):
        run_inline(images=str(tmp_path / "tree"), out=str(tmp_path / name))
    code, told = compared(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert code == 3 and "No pair of maps could be compared." in told and "1 row, quarantined in both" in told
    assert found(tmp_path / "c").pairs == 0 and len(rows_of(tmp_path / "c")) == 1


def test_arrays_of_one_store_compare(finished: Path, tmp_path: Path) -> None:
    compared(finished, finished, tmp_path / "c", array=GRADIENT, array_b="label/gradient")
    rows = rows_of(tmp_path / "c")
    index = open_store(str(finished)).lines(columns=["predicted__class", "label__class"]).to_pylist()
    for row in rows.to_pylist():
        if row["status"] == "ok":
            line = index[row["row_a"]]
            same = line["predicted__class"] == line["label__class"]
            assert not row["changed"] and row["correct_a"] == row["correct_b"] == same
            assert (row["rank_correlation"] == 1) == same


def test_without_predictions_nothing_is_said_of_them(tree: Path, tmp_path: Path) -> None:
    """The class that a label's map explains is the label, with every model: that is no change to tell of."""
    for name in ("tiny", "tiny_again"):
        run_inline(
            images=str(tree), out=str(tmp_path / name), model=f"python:factories:{name}", targets="label", **SAME
        )
    compared(tmp_path / "tiny", tmp_path / "tiny_again", tmp_path / "c")
    rows, told = rows_of(tmp_path / "c"), found(tmp_path / "c")
    assert rows["changed"].null_count == rows["correct_a"].null_count == len(rows) and told.pairs == 40
    assert told.summary[0].startswith("On the median") and told.overall["changed"] is None


def test_of_an_unfinished_store_what_is_there_is_compared(tree: Path, finished: Path, tmp_path: Path) -> None:
    run_inline(images=str(tree), out=str(tmp_path / "part"), limit=16, **SAME)
    told = compared(tmp_path / "part", finished, tmp_path / "c")[1]
    assert "A is not finished: 16 of its 43 rows" in told
    assert found(tmp_path / "c").only_b == 27 and found(tmp_path / "c").summary[1].startswith("Nothing moved")


def test_lost_maps_end_it(finished: Path, other: Path, tmp_path: Path) -> None:
    shutil.copytree(other, tmp_path / "b")
    (tmp_path / "b/maps.zarr/predicted/gradient/c/2/0/0").unlink()
    with pytest.raises((Refused, Stopped), match="lost"):
        compared(finished, tmp_path / "b", tmp_path / "c")
    assert found(tmp_path / "c").state == "running"


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, told", [
    ({"array": "predicted/none"}, "has no array 'predicted/none'"),
    ({"array_b": GRADIENT}, "give A's too"),
    ({"array": "label/gradient"}, "has no array 'label/gradient'"),
    ({"top": 0.0}, "between 0 and 1"),
    ({"top": 10.0}, "between 0 and 1"),
    ({"runner": "dask"}, "take ray or inline"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    finished: Path, other: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(Refused, match=told):
        compared(finished, other, tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()


def test_accuracies_are_of_the_same_rows(tree: Path, finished: Path, tmp_path: Path) -> None:
    """The same model on some of the images: what it says of them is as right; `top:1` is its prediction, too."""
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{name}\n" for name in sorted(path.name for path in tree.iterdir())))
    run_inline(images=str(tree), out=str(tmp_path / "b"), unit_size=8, batch_size=4, targets=("top:2", "label"))
    some = shutil.copytree(tree, tmp_path / "some")
    shutil.rmtree(some / "bee")
    run_inline(
        images=str(some), out=str(tmp_path / "a"), unit_size=8, batch_size=4, targets=("predicted", "label"),
        class_names=str(names),
    )  # fmt: skip
    compared(tmp_path / "a", tmp_path / "b", tmp_path / "c", array="label/gradient")
    rows = rows_of(tmp_path / "c")
    assert rows["changed"].null_count < len(rows)
    overall = found(tmp_path / "c").overall
    assert overall["accuracy_a"] == overall["accuracy_b"] is not None


def test_stores_without_a_common_row_are_refused(tree: Path, finished: Path, tmp_path: Path) -> None:
    run_inline(images=str(tree / "bee"), out=str(tmp_path / "b"))
    with pytest.raises(Refused, match=r"no row in common.*'ant/.*'00"):
        compared(finished, tmp_path / "b", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_store_that_changed_since_is_compared_anew(tree: Path, tmp_path: Path) -> None:
    """An image of it was torn, and is whole now."""
    shutil.copytree(tree / "ant", tmp_path / "tree/ant")
    out = tmp_path / "store"
    run_inline(images=str(tmp_path / "tree"), out=str(out))
    compared(out, out, tmp_path / "c")
    shutil.copyfile(tree / "ant/000.png", tmp_path / "tree/ant/broken.jpg")
    assert retry(str(out), Console(file=io.StringIO()), workers="1", runner="inline") == 0
    with pytest.raises(Refused, match="as they were before rows came or changed"):
        compared(out, out, tmp_path / "c")
    compared(out, out, tmp_path / "d")
    assert found(tmp_path / "d").pairs == found(tmp_path / "c").pairs + 1


def test_nothing_of_anybodys_is_overwritten(finished: Path, other: Path, moved: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    before = tables(moved)
    for output, told in ((tmp_path, "no comparison"), (finished, "lies in the store"), (moved, "differ in b, top")):
        with pytest.raises(Refused, match=told):
            compared(finished, finished, output, top=0.2)
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"--output .*file cannot be written"):
        compared(finished, other, tmp_path / "file")
    assert (tmp_path / "notes.txt").read_text() == "mine" and tables(moved) == before


def test_the_command_compares(finished: Path, other: Path, tmp_path: Path, saliency: Callable[..., Any]) -> None:
    told = saliency("compare", finished, other, "--output", tmp_path / "c", "--runner", "inline")
    assert told.returncode == 3, told.stderr
    assert "of the rows the class changed" in told.stdout and (tmp_path / "c/compare.json").exists()
    told = saliency("compare", finished, tmp_path, "--output", tmp_path / "d")
    assert told.returncode == 2 and "not a store of ours" in told.stderr


@pytest.mark.slow
def test_ray_equals_inline(
    finished: Path, other: Path, moved: Path, tmp_path: Path, saliency: Callable[..., Any]
) -> None:
    told = saliency("compare", finished, other, "--output", tmp_path / "c")
    assert told.returncode == 3, told.stderr
    assert tables(tmp_path / "c") == tables(moved)
    volatile = {"seconds", "a", "b"}
    kept = [
        {key: value for key, value in json.loads((one / COMPARE_JSON).read_text()).items() if key not in volatile}
        for one in (tmp_path / "c", moved)
    ]
    assert kept[0] == kept[1]
