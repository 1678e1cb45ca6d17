"""The job as a whole, in one process: what a store holds, what resumes, what is refused, which exit code."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CLASSES, TINY, content, run_inline
from factories import tiny
from PIL import Image

from jobs.config import make_config
from jobs.engine import Engine
from jobs.index import read_part, withdraw
from jobs.output import open_run
from jobs.stages import Node
from jobs.store import open_array
from saliency_core.errors import Refused
from saliency_core.preprocessing import Preprocessing

SAME = {"unit_size": 8, "batch_size": 4, "methods": ("gradient", "input_x_gradient"), "targets": ("predicted", "label")}
GEOMETRY = Preprocessing((16, 16), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3)


def loop(path: Path, target: int | None = None) -> tuple[np.ndarray, int]:
    """What the job has to say of one image, in the fewest lines: gradient, absolute value, largest channel."""
    net = tiny().eval()
    with Image.open(path) as image:
        x = GEOMETRY.normalise(torch.from_numpy(GEOMETRY.apply(image.convert("RGB")))[None], torch.float32)
    x.requires_grad_()
    out = net(x)
    chosen = int(out.argmax()) if target is None else target
    (gradient,) = torch.autograd.grad(out[0, chosen], x)
    return gradient.abs().amax(1)[0].numpy(), chosen


def test_line_i_is_map_i_is_image_i(tree: Path, finished: Path) -> None:
    store, run = open_run(str(finished))
    index = pq.read_table(finished / "index.parquet").to_pylist()
    files = sorted(str(path.relative_to(tree)) for path in tree.rglob("*.*"))
    assert [line["sample_id"] for line in index] == files
    assert [line["row"] for line in index] == list(range(43))
    maps = open_array(store, "predicted/gradient")[:]
    by_label = open_array(store, "label/gradient")[:]
    for line in index:
        if line["status"] == "quarantined":
            assert line["error"] and line["predicted__class"] is None
            assert np.isnan(maps[line["row"]]).all()
            continue
        path = tree / line["sample_id"]
        expected, chosen = loop(path)
        assert line["predicted__class"] == chosen
        assert line["predicted__class_name"] == CLASSES[chosen]
        assert line["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        with Image.open(path) as image:
            assert (line["width"], line["height"]) == image.size
        assert line["label"] == CLASSES.index(path.parent.name)
        np.testing.assert_allclose(maps[line["row"]], expected, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(by_label[line["row"]], loop(path, line["label"])[0], rtol=1e-4, atol=1e-7)
        assert line["predicted__gradient__max"] == maps[line["row"]].max()
        assert line["predicted__gradient__l1"] == pytest.approx(float(np.abs(maps[line["row"]]).sum()), rel=1e-5)
    assert run.state == "finished"


def test_totals_tell_of_broken_images(finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert run["totals"]["statuses"] == {"ok": 40, "quarantined": 3}
    assert sum(run["totals"]["errors"].values()) == 3
    assert run["totals"]["last_session"]["rows"] == 43


def test_finished_store_has_nothing_to_do(tree: Path, finished: Path) -> None:
    before = content(finished)
    code, told = run_inline(images=str(tree), out=str(finished), **SAME)
    assert code == 3 and "nothing was pending" in told
    assert content(finished) == before


def test_sums_prove_every_object(finished: Path) -> None:
    lines = (finished / "SHA256SUMS").read_text().splitlines()
    sums = {line.split("  ")[1]: line.split("  ")[0] for line in lines}
    objects = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert set(sums) == objects
    assert all(hashlib.sha256((finished / key).read_bytes()).hexdigest() == digest for key, digest in sums.items())


def test_commit_knows_its_shards(finished: Path) -> None:
    store, run = open_run(str(finished))
    for unit in range(run.units):
        _, commit = read_part(store, unit)
        assert len(commit.shards) == 4
        for shard in commit.shards:
            data = (finished / shard.key).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.length, shard.sha256)


def test_goes_on_where_units_are_missing(tree: Path, finished: Path, tmp_path: Path) -> None:
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
    code, told = run_inline(images=str(tree), out=str(out), limit=10, **SAME)
    assert code == 1 and "--limit" in told
    assert sorted(path.name for path in (out / "index").iterdir()) == [f"unit-{unit:08d}.parquet" for unit in (0, 1)]
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
    with pytest.raises(Refused, match=named):
        run_inline(images=str(tree), out=str(finished), **{**SAME, **change})
    assert content(finished) == before


def test_other_inputs_are_refused(tree: Path, finished: Path, tmp_path: Path) -> None:
    more = tmp_path / "tree"
    shutil.copytree(tree, more)
    shutil.copy(more / "ant/000.png", more / "ant/000b.png")
    with pytest.raises(Refused, match="samples"):
        run_inline(images=str(more), out=str(finished), **SAME)


def test_moved_data_and_moved_store_keep_their_identity(tree: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "elsewhere")
    shutil.copytree(finished, tmp_path / "store")
    code, told = run_inline(images=str(tmp_path / "elsewhere"), out=str(tmp_path / "store"), **SAME)
    assert code == 3 and "nothing was pending" in told


def test_image_changed_since_the_manifest_is_quarantined(tree: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "tree", tmp_path / "store"
    shutil.copytree(tree, images)
    run_inline(images=str(images), out=str(out), limit=8, **SAME)
    last = sorted(images.rglob("*.png"))[-1]
    last.write_bytes((images / "ant/000.png").read_bytes())
    run_inline(images=str(images), out=str(out), **SAME)
    line = pq.read_table(out / "index.parquet").to_pylist()[-1]
    assert line["status"] == "quarantined" and "changed" in line["error"]


def test_nan_gradients_quarantine_their_row_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(1)
    for i in range(6):
        pixels = np.zeros((16, 16, 3), np.uint8) if i == 3 else rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    keys = {
        "images": str(tmp_path / "images"),
        "model": "python:factories:spoils",
        "mean": "0.5,0.5,0.5",
        "std": "0.5,0.5,0.5",
    }
    code, _ = run_inline(**keys, out=str(tmp_path / "store"))
    assert code == 3
    index = pq.read_table(tmp_path / "store/index.parquet").to_pylist()
    assert [line["status"] for line in index] == ["ok"] * 3 + ["quarantined"] + ["ok"] * 2
    assert "not finite" in index[3]["error"]
    maps = open_array(open_run(str(tmp_path / "store"))[0], "predicted/gradient")[:]
    assert np.isnan(maps[3]).all() and np.isfinite(np.delete(maps, 3, axis=0)).all()


def test_labels_outside_the_classes_make_rows_partial(tree: Path, tmp_path: Path) -> None:
    rows = [
        ("ant/000.png", "0"),
        ("ant/005.png", "77"),
        ("bee/001.png", ""),
        ("cat/002.png", "cat"),
        ("dog/003.png", "yak"),
    ]
    listed = tmp_path / "list.csv"
    listed.write_text("uri,label\n" + "".join(f"{tree / name},{label}\n" for name, label in rows))
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    code, _ = run_inline(
        images=str(listed),
        out=str(tmp_path / "store"),
        targets=("predicted", "label"),
        class_names=str(tmp_path / "names.txt"),
    )
    assert code == 3
    index = pq.read_table(tmp_path / "store/index.parquet").to_pylist()
    assert [line["status"] for line in index] == ["ok", "partial", "partial", "ok", "partial"]
    told = [line["label__status"] for line in index]
    assert told[0] == told[3] == "ok" and "77" in told[1] and told[2] == "no label" and "'yak'" in told[4]
    assert [line["label__class"] for line in index] == [0, None, None, 2, None]
    assert all(line["predicted__status"] == "ok" for line in index)


@pytest.mark.parametrize("dtype, tolerance", [("float16", 1e-3), ("uint8", 3e-3), ("int8", 6e-3)])
def test_scaled_dtypes_undo_to_the_map(
    tree: Path, finished: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    methods = "gradient" if dtype == "uint8" else ("gradient", "input_x_gradient")
    run_inline(images=str(tree), out=str(tmp_path / "s"), **{**SAME, "methods": methods}, map_dtype=dtype)
    store, run = open_run(str(tmp_path / "s"))
    exact = open_run(str(finished))[0]
    for array in run.arrays:
        stored = open_array(store, array.path)
        scales = open_array(store, f"{array.path}_scale")[:]
        assert stored.dtype == dtype
        maps = stored[:].astype(np.float32) * scales[:, None, None]
        expected = open_array(exact, array.path)[:]
        np.testing.assert_array_equal(np.isnan(scales), np.isnan(expected[:, 0, 0]))
        largest = np.abs(expected).max(axis=(1, 2), keepdims=True)
        shown = ~np.isnan(scales)
        assert (np.abs(maps - expected) <= tolerance * largest)[shown].all()
        column = pq.read_table(tmp_path / "s/index.parquet")[f"{array.column}__scale"].to_numpy()
        np.testing.assert_array_equal(column, scales)
    if dtype == "uint8":
        with pytest.raises(Refused, match="uint8"):
            run_inline(images=str(tree), out=str(tmp_path / "t"), methods="input_x_gradient", map_dtype="uint8")


def test_kept_channels_and_grey_models(tree: Path, tmp_path: Path) -> None:
    keys = {"model": "python:factories:grey", "mean": "0.5", "std": "0.25", "resize": "20x12"}
    run_inline(
        images=str(tree),
        out=str(tmp_path / "s"),
        methods=("gradient(reduction=none)", "mine=gradient(reduction=l2)"),
        **keys,
    )
    store, _ = open_run(str(tmp_path / "s"))
    kept, mine = open_array(store, "predicted/gradient_none"), open_array(store, "predicted/mine")
    assert kept.shape == (43, 1, 20, 12) and kept.metadata.dimension_names == ("row", "channel", "y", "x")
    np.testing.assert_array_equal(np.abs(kept[:, 0]), mine[:])


def test_out_of_memory_halves_the_micro_batch_and_goes_on(tree: Path, finished: Path, tmp_path: Path) -> None:
    run_inline(images=str(tree), out=str(tmp_path / "s"), model="python:factories:greedy", unit_size=8, batch_size=2)
    run_inline(images=str(tree), out=str(tmp_path / "t"), model="python:factories:greedy", unit_size=8, batch_size=8)
    small, store = open_run(str(tmp_path / "s"))[0], open_run(str(tmp_path / "t"))[0]
    np.testing.assert_array_equal(
        open_array(store, "predicted/gradient")[:], open_array(small, "predicted/gradient")[:]
    )
    assert read_part(store, 0)[1].micro_batches == [4, 2] and read_part(small, 0)[1].micro_batches == []
    assert json.loads((tmp_path / "t/run.json").read_text())["totals"]["units_with_halved_micro_batch"] == 6


def test_retry_finds_the_repaired_image_where_it_is_now(tree: Path, tmp_path: Path, saliency) -> None:
    images, out = tmp_path / "tree", tmp_path / "store"
    shutil.copytree(tree, images)
    run_inline(images=str(images), out=str(out), **SAME)
    others = {key: data for key, data in content(out).items() if "/c/" in key}
    shutil.copy(images / "ant/000.png", images / "ant/broken.jpg")
    told = saliency("retry", out, "--runner", "inline")
    assert told.returncode == 3, told.stderr
    index = {line["sample_id"]: line for line in pq.read_table(out / "index.parquet").to_pylist()}
    assert index["ant/broken.jpg"]["status"] == "ok"
    assert sum(line["status"] == "quarantined" for line in index.values()) == 2
    unit = index["ant/broken.jpg"]["unit"]
    store, _ = open_run(str(out))
    maps = open_array(store, "predicted/gradient")
    np.testing.assert_array_equal(maps[index["ant/broken.jpg"]["row"]], maps[index["ant/000.png"]["row"]])
    changed = {key for key, data in content(out).items() if "/c/" in key and others[key] != data}
    assert changed and all(f"/c/{unit}/" in key for key in changed)
    assert saliency("verify", out).returncode == 0


REFUSALS = [
    ({"images": "/nowhere/at/all"}, "nowhere"),
    ({"model": "torchvision:resnet999"}, "resnet999"),
    ({"model": "python:factories:nothing"}, "nothing"),
    ({"model": "python:factories:random_weights", "resize": "8x8"}, "every replica"),
    ({"model": "python:factories:several"}, "logits, doubled"),
    ({"model": "python:factories:no_gradient"}, "gradient"),
    ({"model": "python:factories:no_classes", "resize": "8x8"}, "output"),
    ({"model": "python:factories:wrong_shape"}, "shape"),
    ({"model": "python:factories:grey"}, "fails on a batch"),
    ({"model": "resnet18"}, "not understood"),
    ({"methods": "gradeint"}, "gradeint"),
    ({"methods": ("gradient", "gradient(reduction=abs_max)")}, "name"),
    ({"methods": "gradient(reduction=loud)"}, "loud"),
    ({"methods": "gradient(n=3)"}, "no argument n"),
    ({"methods": "../up=gradient"}, "cannot name"),
    ({"targets": "class:9"}, "class:9"),
    ({"targets": "class:yak"}, "yak"),
    ({"targets": "loudest"}, "loudest"),
    ({"mean": None}, "mean"),
    ({"crop": "0"}, "crop"),
    ({"resize": "16"}, "size"),
    ({"unit_size": 0}, "unit-size"),
    ({"precision": "int4"}, "precision"),
    ({"weights": "nothing.pt"}, "nothing.pt"),
    ({"unit_size": 10_000_000}, "record"),
    ({"images": "s3://key:secret@bucket/x"}, "credentials"),
    ({"max_pixels": "many"}, "max-pixels"),
]


@pytest.mark.parametrize("change, named", REFUSALS, ids=[str(change) for change, _ in REFUSALS])
def test_what_cannot_work_is_refused_and_nothing_touched(
    tree: Path, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    keys = {"images": str(tree), "out": str(tmp_path / "out"), **change}
    with pytest.raises(Refused, match=named):
        run_inline(**keys)
    assert not (tmp_path / "out").exists()


def test_folder_labels_that_are_no_class_are_refused(tree: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\nemu\n")
    keys = {"images": str(tree), "out": str(tmp_path / "out"), "class_names": str(names)}
    with pytest.raises(Refused, match=r"1 of 5 folders.*'elk'"):
        run_inline(**keys, targets="label")
    assert not (tmp_path / "out").exists()
    code, _ = run_inline(**keys, targets="label", folder_labels="order")
    assert code == 3
    names.write_text("ant\nbee\n")
    with pytest.raises(Refused, match="2 names"):
        run_inline(**keys)


def test_foreign_directory_is_left_alone(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(Refused, match=r"thesis\.tex"):
        run_inline(images=str(tree), out=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_out_that_cannot_be_made_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(Refused, match="director"):
            run_inline(images=str(tree), out=str(out))


def test_dry_run_prices_and_touches_nothing(tree: Path, tmp_path: Path, saliency) -> None:
    from conftest import flags

    told = saliency("explain", *flags(images=tree, out=tmp_path / "out", unit_size=8), "--dry-run")
    assert told.returncode == 0, told.stderr
    assert not (tmp_path / "out").exists()
    for text in ("rows            43", "6 of 8 rows", "predicted/gradient", "device memory", "shards          6"):
        assert text in told.stdout


def test_run_json_has_the_whole_configuration(tree: Path, finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    again = make_config({**run["config"]})
    assert again == make_config({**TINY, "images": str(tree), "out": str(finished), **SAME})


def test_moved_data_are_found_where_they_are_now(tree: Path, finished: Path, tmp_path: Path) -> None:
    """Also by a run that is resumed: identity is the sample id, not the path."""
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
    told = saliency("retry", out, "--runner", "inline")
    assert told.returncode == 2 and "other weights" in told.stderr
    assert {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_refused_plan_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    listed, out = tmp_path / "list.csv", tmp_path / "s"
    for label in (-1, 5000):
        listed.write_text("uri,label\n" + "".join(f"{path},{label}\n" for path in sorted(tree.rglob("*.png"))[:9]))
        with pytest.raises(Refused, match="no image has a usable label"):
            run_inline(images=str(listed), out=str(out), targets="label", unit_size=1)
        assert not out.exists()


@pytest.mark.parametrize(
    "change, named",
    [
        ({"methods": "zarr.json=gradient"}, "cannot name"),
        ({"methods": "_b=gradient"}, "cannot name"),
        ({"methods": ("gradient", "gradient_scale=input_x_gradient"), "map_dtype": "float16"}, "scales"),
        ({"num_classes": 7}, "no effect"),
        ({"preset": "IMAGENET1K_V1"}, "preset"),
        ({"device": "cuda"}, "GPU"),
        ({"images": " "}, "empty"),
    ],
    ids=str,
)
def test_what_would_have_no_effect_or_collide_is_refused(
    tree: Path, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    if change == {"device": "cuda"} and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(Refused, match=named):
        run_inline(**{"images": str(tree), "out": str(tmp_path / "out"), **change})
    assert not (tmp_path / "out").exists()


def test_more_workers_than_fit_are_refused_not_waited_for() -> None:
    engine = Engine(lambda items, stages: iter(()), list, [Node(2.0, 0.0)])
    config = {**TINY, "images": "a", "out": "b", "runner": "ray"}
    assert engine.workers(make_config(config), "cpu") == 2
    for change in ({"workers": 3}, {"threads": 3}, {"device": "cuda"}):
        made = make_config({**config, **change})
        with pytest.raises(Refused, match="at most"):
            engine.workers(made, engine.device(made))
    assert replace(engine, grows=True).workers(make_config({**config, "workers": 9}), "cpu") == 9
    shared = make_config({**config, "gpus_per_worker": 0.5})
    assert replace(engine, nodes=[Node(16.0, 4.0)]).workers(shared, "cuda") == 8


def test_out_inside_the_images_is_refused(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "tree")
    with pytest.raises(Refused, match="inside"):
        run_inline(images=str(tmp_path / "tree"), out=str(tmp_path / "tree/maps"))


def test_out_may_be_a_file_uri(tree: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "a place"
    for _ in range(2):
        assert run_inline(images=str(tree), out=out.as_uri(), **SAME)[0] == 3
    assert content(out) == content(finished)


def test_damaged_index_part_is_named_with_what_to_do(tree: Path, finished: Path, tmp_path: Path, saliency) -> None:
    out = tmp_path / "s"
    shutil.copytree(finished, out)
    part = out / "index/unit-00000001.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    told = saliency("status", out)
    assert told.returncode == 1 and "unit-00000001.parquet is damaged" in told.stderr and "Delete it" in told.stderr
    part.unlink()
    assert run_inline(images=str(tree), out=str(out), **SAME)[0] == 3
    assert content(out) == content(finished)


def test_equal_troubles_are_counted_together(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(5):
        (tmp_path / f"images/{i}.png").write_bytes(b"")
    (tmp_path / "list.csv").write_text("uri\n" + "".join(f"images/{i}.png\n" for i in range(5)) + '""\n')
    run_inline(images=str(tmp_path / "list.csv"), out=str(tmp_path / "s"))
    errors = json.loads((tmp_path / "s/run.json").read_text())["totals"]["errors"]
    assert sorted(errors.values()) == [1, 5] and all("the file" not in error or len(error) < 200 for error in errors)


def test_figures_of_the_work_outlive_a_session_without_work(tree: Path, tmp_path: Path) -> None:
    for _ in range(2):
        run_inline(images=str(tree), out=str(tmp_path / "s"))
        assert json.loads((tmp_path / "s/run.json").read_text())["totals"]["last_session"]["rows"] == 43
