"""Tests runs into an existing store: they resume, retry, or are refused if they are another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from factories import tiny

from jobs.store.arrays import open_array
from jobs.store.index import withdraw
from jobs.store.store_access import open_run
from jobs.verify import verify_command
from saliency_core.errors import InvalidRequestError
from tests.conftest import SAME, content, run_inline, said


def test_finished_store_has_nothing_to_do(tree: Path, finished: Path) -> None:
    before = content(finished)
    code, output = run_inline(images=str(tree), out=str(finished), **SAME)
    assert code == 3 and "nothing was pending" in output
    assert content(finished) == before


def test_a_resumed_run_makes_the_missing_units(tree: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    shutil.copytree(finished, out)
    whole = content(finished)
    store, _ = open_run(str(out))
    withdraw(store, [1, 4])
    (out / "maps.zarr/predicted/gradient/c/1/0/0").unlink()
    (out / "index.parquet").unlink()
    code, _ = run_inline(images=str(tree), out=str(out), **SAME)
    assert code == 3
    assert content(out) == whole


def test_limit_chooses_units_and_a_later_run_goes_on(tree: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    code, output = run_inline(images=str(tree), out=str(out), limit=10, **SAME)
    assert code == 3 and "10 of 10 asked for (--limit 10): 15 ok, 0 partial, 1 quarantined" in output
    assert sorted(path.name for path in (out / "index").iterdir()) == [f"unit-{unit:08d}.parquet" for unit in (0, 1)]
    code, output = said(verify_command.verify, str(out))
    assert code == 1 and "run the same explain command again, without --limit" in output
    code, _ = run_inline(images=str(tree), out=str(out), **SAME)
    assert code == 3
    assert content(out) == content(finished)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"methods": "gradient"}, "methods"),
        ({"map_dtype": "float16"}, "map_dtype"),
        ({"batch_size": 8}, "micro_batch"),
        ({"unit_size": 16}, "unit_size"),
        ({"mean": "0.4,0.5,0.5"}, "preprocessing"),
        ({"model": "python:factories:spoils"}, "weights"),
        ({"seed": 7}, "seed"),
        ({"threads": 2}, "threads"),
        ({"precision": "bf16"}, "precision"),
    ],
)
def test_another_run_is_refused_by_name(tree: Path, finished: Path, change: dict[str, object], named: str) -> None:
    before = content(finished)
    with pytest.raises(InvalidRequestError, match=named):
        run_inline(images=str(tree), out=str(finished), **{**SAME, **change})
    assert content(finished) == before


def test_other_inputs_are_refused(tree: Path, finished: Path, tmp_path: Path) -> None:
    more = tmp_path / "tree"
    shutil.copytree(tree, more)
    shutil.copy(more / "ant/000.png", more / "ant/000b.png")
    with pytest.raises(InvalidRequestError, match="samples"):
        run_inline(images=str(more), out=str(finished), **SAME)


def test_moved_data_and_moved_store_keep_their_identity(tree: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "elsewhere")
    shutil.copytree(finished, tmp_path / "store")
    code, output = run_inline(images=str(tmp_path / "elsewhere"), out=str(tmp_path / "store"), **SAME)
    assert code == 3 and "nothing was pending" in output


def test_image_changed_since_the_manifest_is_quarantined(tree: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "tree", tmp_path / "store"
    shutil.copytree(tree, images)
    run_inline(images=str(images), out=str(out), limit=8, **SAME)
    last = sorted(images.rglob("*.png"))[-1]
    last.write_bytes((images / "ant/000.png").read_bytes())
    run_inline(images=str(images), out=str(out), **SAME)
    line = pq.read_table(out / "index.parquet").to_pylist()[-1]
    assert line["status"] == "quarantined" and "changed" in line["error"]


def test_retry_finds_the_repaired_image_at_its_new_path(tree: Path, tmp_path: Path, saliency) -> None:
    images, out = tmp_path / "tree", tmp_path / "store"
    shutil.copytree(tree, images)
    run_inline(images=str(images), out=str(out), **SAME)
    before = {key: data for key, data in content(out).items() if "/c/" in key}
    shutil.copy(images / "ant/000.png", images / "ant/broken.jpg")
    process = saliency("retry", out, "--runner", "inline")
    assert process.returncode == 3, process.stderr
    index = {line["sample_id"]: line for line in pq.read_table(out / "index.parquet").to_pylist()}
    assert index["ant/broken.jpg"]["status"] == "ok"
    assert sum(line["status"] == "quarantined" for line in index.values()) == 2
    unit = index["ant/broken.jpg"]["unit"]
    store, _ = open_run(str(out))
    maps = open_array(store, "predicted/gradient")
    np.testing.assert_array_equal(maps[index["ant/broken.jpg"]["row"]], maps[index["ant/000.png"]["row"]])
    changed = {key for key, data in content(out).items() if "/c/" in key and before[key] != data}
    assert changed and all(f"/c/{unit}/" in key for key in changed)
    assert saliency("verify", out).returncode == 0


def test_moved_data_are_found_at_their_new_path(tree: Path, tmp_path: Path) -> None:
    """A resumed run finds moved images: the identity of an image is its sample id, not its path."""
    shutil.copytree(tree, tmp_path / "before")
    run_inline(images=str(tmp_path / "before"), out=str(tmp_path / "s"), limit=16, **SAME)
    (tmp_path / "before").rename(tmp_path / "after")
    changed = tmp_path / "after/elk/039.png"
    changed.write_bytes(changed.read_bytes() + b"more")
    code, _ = run_inline(images=str(tmp_path / "after"), out=str(tmp_path / "s"), **SAME)
    assert code == 3
    lines = pq.read_table(tmp_path / "s/index.parquet").to_pylist()
    assert [line["sample_id"] for line in lines if line["status"] == "quarantined" and "changed" in line["error"]] == [
        "elk/039.png"
    ]
    assert sum(line["status"] == "ok" for line in lines) == 39


def test_retry_that_is_refused_touches_nothing(tree: Path, tmp_path: Path, saliency) -> None:
    weights, out = tmp_path / "w.pt", tmp_path / "s"
    torch.save(tiny().state_dict(), weights)
    run_inline(images=str(tree), out=str(out), weights=str(weights))
    before = {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    torch.save({key: value + 1 for key, value in tiny().state_dict().items()}, weights)
    process = saliency("retry", out, "--runner", "inline")
    assert process.returncode == 2 and "other weights" in process.stderr
    assert {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_out_may_be_a_file_uri(tree: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "a place"
    for _ in range(2):
        assert run_inline(images=str(tree), out=out.as_uri(), **SAME)[0] == 3
    assert content(out) == content(finished)


def test_a_damaged_index_part_is_named_with_the_remedy(tree: Path, finished: Path, tmp_path: Path, saliency) -> None:
    out = tmp_path / "s"
    shutil.copytree(finished, out)
    part = out / "index/unit-00000001.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    process = saliency("status", out)
    assert (
        process.returncode == 1
        and "unit-00000001.parquet is damaged" in process.stderr
        and "Delete it" in process.stderr
    )
    part.unlink()
    assert run_inline(images=str(tree), out=str(out), **SAME)[0] == 3
    assert content(out) == content(finished)


def test_totals_of_the_last_session_survive_a_session_without_work(tree: Path, tmp_path: Path) -> None:
    for _ in range(2):
        run_inline(images=str(tree), out=str(tmp_path / "s"))
        assert json.loads((tmp_path / "s/run.json").read_text())["totals"]["last_session"]["rows"] == 43
