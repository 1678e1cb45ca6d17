"""Tests comparisons of two stores: results, repeated and resumed comparisons, and invalid requests."""

from __future__ import annotations

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
from scipy.stats import spearmanr

from jobs.compare.compare_schema import COMPARE_JSON, PAIR_MEASURES
from jobs.store.index import DamagedError
from jobs.store.store_reader import open_store
from jobs.util.formatting import percent
from jobs.util.job_errors import JobStopped
from saliency_core.errors import InvalidRequestError
from tests.conftest import run_inline
from tests.support.comparisons import GRADIENT, SAME, read_comparison, rows_of, run_compare, tables


@pytest.fixture(scope="module")
def other(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the same tree by another model, which predicts other classes for most rows."""
    out = tmp_path_factory.mktemp("other") / "store"
    run_inline(images=str(tree), out=str(out), model="python:factories:tiny_again", **SAME)
    return out


@pytest.fixture(scope="module")
def moved(finished: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison of the two models."""
    output = tmp_path_factory.mktemp("moved") / "comparison"
    run_compare(finished, other, output)
    return output


@pytest.fixture(scope="module")
def still(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison of a store with itself."""
    output = tmp_path_factory.mktemp("still") / "comparison"
    run_compare(finished, finished, output)
    return output


# -- stores ----------------------------------------------------------------------------------------------------


def test_a_store_compared_with_itself_has_not_changed(still: Path) -> None:
    rows, comparison = rows_of(still), read_comparison(still)
    ok = rows.filter(pa.compute.equal(rows["status"], "ok"))
    assert len(rows) == 43 and len(ok) == comparison.pairs == 40
    assert ok["rank_correlation"].to_pylist() == ok["overlap"].to_pylist() == [1] * 40
    assert ok["distance"].to_pylist() == ok["score_change"].to_pylist() == [0] * 40
    assert ok["changed"].to_pylist() == [False] * 40
    assert (
        comparison.summary[0]
        == "The predicted class changed in none of 40 rows; the accuracy is 20 % in A and 20 % in B."
    )
    assert comparison.summary[1] == "The maps did not change: all 40 pairs are equal."
    assert min(ok["to_next"].to_pylist()) > 0 and not comparison.resampled
    classes = pq.read_table(still / "classes.parquet")
    assert sum(classes["pairs"].to_pylist()) == 40 and sum(classes["count"].to_pylist()) == 43
    for line in classes.to_pylist():
        assert line["mean_map_a"] == line["mean_map_b"] and (line["place_from"], line["place_to"]) == (None, None)


def test_quarantined_rows_are_counted_and_named(still: Path) -> None:
    comparison = read_comparison(still)
    assert comparison.statuses == {"ok": 40, "quarantined in both": 3}
    assert sorted(comparison.examples["quarantined in both"]) == ["ant/broken.jpg", "cat/empty.png", "dog/torn.png"]
    assert "Not compared: 3 rows, quarantined in both." in comparison.summary
    rows = rows_of(still)
    left_out = rows.filter(pa.compute.not_equal(rows["status"], "ok"))
    assert all(left_out[name].null_count == 3 for name in PAIR_MEASURES)


def test_measures_are_those_of_the_maps(moved: Path, finished: Path, other: Path) -> None:
    a, b = open_store(str(finished)), open_store(str(other))
    for line in rows_of(moved).to_pylist():
        if line["status"] != "ok":
            continue
        index_a, index_b = (store.lines([line["row_a"]]).to_pylist()[0] for store in (a, b))
        map_a, map_b = (np.abs(store.maps(GRADIENT, [line["row_a"]])[0]).ravel() for store in (a, b))
        assert line["rank_correlation"] == pytest.approx(spearmanr(map_a, map_b).statistic, abs=1e-6)
        assert line["distance"] == pytest.approx(np.abs(map_a / map_a.sum() - map_b / map_b.sum()).sum() / 2, abs=1e-5)
        top_a, top_b = ({*np.argsort(map_)[-26:].tolist()} for map_ in (map_a, map_b))
        assert line["overlap"] == pytest.approx(len(top_a & top_b) / len(top_a | top_b))
        assert line["changed"] == (index_a["predicted__class"] != index_b["predicted__class"])
        for name in ("score", "probability"):
            assert line[f"{name}_change"] == pytest.approx(
                index_b[f"predicted__{name}"] - index_a[f"predicted__{name}"], abs=1e-6
            )


def test_values_of_classes_are_those_of_their_rows(moved: Path) -> None:
    rows = [line for line in rows_of(moved).to_pylist() if line["row_a"] is not None]
    classes = pq.read_table(moved / "classes.parquet").to_pylist()
    assert {line["class"] for line in classes} == {line["class"] for line in rows}
    for line in classes:
        own = [row for row in rows if row["class"] == line["class"]]
        compared_rows = [row for row in own if row["distance"] is not None]
        assert (line["count"], line["pairs"]) == (len(own), len(compared_rows))
        if not compared_rows:
            continue
        for name in PAIR_MEASURES:
            values = [row[name] for row in compared_rows]
            assert line[f"median_{name}"] == pytest.approx(np.median(values))
            assert line[f"mean_{name}"] == pytest.approx(np.mean(values))
        changed = [row for row in own if row["changed"]]
        assert line["changed"] == pytest.approx(len(changed) / len(compared_rows))
        if changed:
            most = Counter(row["predicted_name_b"] for row in changed).most_common(1)[0][1]
            assert (
                line["mostly_rows"] == most
                and line["finding"].count(f"changed class, most often to {line['mostly_to']}") == 1
            )
        furthest = sorted(compared_rows, key=lambda row: -row["distance"])
        assert line["rows"] == [row["row_a"] for row in furthest[:12]]
        assert sum(line["mean_map_a"]) == pytest.approx(1, abs=1e-4)
    medians = [line["median_distance"] for line in classes if line["pairs"] >= 5]
    assert medians == sorted(medians, reverse=True) and read_comparison(moved).overall["changed"] > 0


def test_the_summary_has_the_share_of_changed_predictions(moved: Path) -> None:
    rows = [line for line in rows_of(moved).to_pylist() if line["status"] == "ok"]
    changed = sum(line["changed"] for line in rows)
    right = [percent(sum(line[f"correct_{side}"] for line in rows) / 40) for side in "ab"]
    assert read_comparison(moved).summary[0] == (
        f"The predicted class changed in {percent(changed / 40)} of the rows ({changed} of 40); "
        f"the accuracy is {right[0]} in A and {right[1]} in B."
    )


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_scaled_maps_are_nearly_equal_to_the_originals(tree: Path, finished: Path, tmp_path: Path, dtype: str) -> None:
    run_inline(images=str(tree), out=str(tmp_path / "scaled"), map_dtype=dtype, **SAME)
    run_compare(finished, tmp_path / "scaled", tmp_path / "c")
    rows = rows_of(tmp_path / "c")
    assert min(rows["rank_correlation"].drop_null().to_pylist()) > 0.999
    assert max(rows["distance"].drop_null().to_pylist()) < 0.005
    assert read_comparison(tmp_path / "c").overall["changed"] == 0


def test_unit_sizes_change_no_row(tree: Path, other: Path, moved: Path, tmp_path: Path) -> None:
    for name, model, unit_size in (("a", "tiny", 12), ("b", "tiny_again", 4)):
        model = f"python:factories:{model}"
        run_inline(images=str(tree), out=str(tmp_path / name), model=model, unit_size=unit_size, batch_size=4)
    run_compare(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert rows_of(tmp_path / "c").equals(rows_of(moved))


def test_two_comparisons_are_the_same_to_the_byte(finished: Path, other: Path, moved: Path, tmp_path: Path) -> None:
    run_compare(finished, other, tmp_path / "again")
    assert tables(tmp_path / "again") == tables(moved)


def test_an_interrupted_comparison_resumes(finished: Path, other: Path, moved: Path, tmp_path: Path) -> None:
    output = tmp_path / "c"
    shutil.copytree(moved, output)
    for name in ("units/unit-00000003.parquet", "units/maps-00000001.parquet", "rows.parquet", "classes.parquet"):
        (output / name).unlink()
    (output / "units/unit-00000001.parquet").unlink()
    written = (output / "units/unit-00000000.parquet").stat().st_mtime_ns
    printed = run_compare(finished, other, output)[1]
    assert "40 of 40 pairs compared" in printed and tables(output) == tables(moved)
    assert (output / "units/unit-00000000.parquet").stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["unit", "maps"])
def test_damage_is_reported_and_its_remedy_works(
    finished: Path, other: Path, moved: Path, tmp_path: Path, name: str
) -> None:
    output = Path(shutil.copytree(moved, tmp_path / "c"))
    part = output / f"units/{name}-00000002.parquet"
    data = bytearray(part.read_bytes())
    data[-40] ^= 1  # in the footer, which has no checksum
    part.write_bytes(data)
    with pytest.raises(DamagedError, match=f"{part.name}.*is damaged") as raised:
        run_compare(finished, other, output)
    assert "Delete it, and run the same command again" in str(raised.value)
    part.unlink()
    run_compare(finished, other, output)
    assert tables(output) == tables(moved)


def test_lost_maps_end_the_comparison(finished: Path, other: Path, tmp_path: Path) -> None:
    shutil.copytree(other, tmp_path / "b")
    (tmp_path / "b/maps.zarr/predicted/gradient/c/2/0/0").unlink()
    with pytest.raises((InvalidRequestError, JobStopped), match="lost"):
        run_compare(finished, tmp_path / "b", tmp_path / "c")
    assert read_comparison(tmp_path / "c").state == "running"


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, message", [
    ({"array": "predicted/none"}, "has no array 'predicted/none'"),
    ({"array_b": GRADIENT}, "give A's too"),
    ({"array": "label/gradient"}, "has no array 'label/gradient'"),
    ({"top": 0.0}, "between 0 and 1"),
    ({"top": 10.0}, "between 0 and 1"),
    ({"runner": "dask"}, "take ray or inline"),
])  # fmt: skip
def test_stores_that_cannot_be_compared_are_refused(
    finished: Path, other: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        run_compare(finished, other, tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()


def test_nothing_is_overwritten(finished: Path, other: Path, moved: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    before = tables(moved)
    for output, message in ((tmp_path, "no comparison"), (finished, "lies in the store"), (moved, "differs in b, top")):
        with pytest.raises(InvalidRequestError, match=message):
            run_compare(finished, finished, output, top=0.2)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequestError, match=r"--output .*file cannot be written"):
        run_compare(finished, other, tmp_path / "file")
    assert (tmp_path / "notes.txt").read_text() == "mine" and tables(moved) == before


def test_the_command_compares(finished: Path, other: Path, tmp_path: Path, saliency: Callable[..., Any]) -> None:
    result = saliency("compare", finished, other, "--output", tmp_path / "c", "--runner", "inline")
    assert result.returncode == 3, result.stderr
    assert "The predicted class changed in" in result.stdout and (tmp_path / "c/compare.json").exists()
    result = saliency("compare", finished, tmp_path, "--output", tmp_path / "d")
    assert result.returncode == 2 and "not a saliency store" in result.stderr


@pytest.mark.slow
def test_ray_equals_inline(
    finished: Path, other: Path, moved: Path, tmp_path: Path, saliency: Callable[..., Any]
) -> None:
    result = saliency("compare", finished, other, "--output", tmp_path / "c")
    assert result.returncode == 3, result.stderr
    assert tables(tmp_path / "c") == tables(moved)
    volatile = {"seconds", "a", "b"}
    contents = [
        {key: value for key, value in json.loads((folder / COMPARE_JSON).read_text()).items() if key not in volatile}
        for folder in (tmp_path / "c", moved)
    ]
    assert contents[0] == contents[1]
