"""Tests that the job refuses invalid configurations, names the key, and writes nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.config.explain_config import make_config
from jobs.runners.engine import Engine
from jobs.runners.stage import Node
from saliency_core.errors import InvalidRequestError
from tests.conftest import TINY, run_inline

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
    ({"model": "resnet18"}, "does not have a known form"),
    ({"methods": "gradeint"}, "gradeint"),
    ({"methods": ("gradient", "gradient(reduction=abs_max)")}, "name"),
    ({"methods": "gradient(reduction=loud)"}, "loud"),
    ({"methods": "gradient(n=3)"}, "no argument n"),
    ({"methods": "../up=gradient"}, "cannot name"),
    ({"targets": "class:9"}, "class:9"),
    ({"targets": "class:yak"}, "yak"),
    ({"targets": "loudest"}, "loudest"),
    (
        {"targets": "bad=loss:tests.core.targets.test_targets:fails"},
        "TypeError.*raised in target 'loss:tests.core.targets.test_targets:fails'",
    ),
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
def test_an_invalid_request_is_refused_and_nothing_is_written(
    tree: Path, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    keys = {"images": str(tree), "out": str(tmp_path / "out"), **change}
    with pytest.raises(InvalidRequestError, match=named):
        run_inline(**keys)
    assert not (tmp_path / "out").exists()


def test_folder_labels_that_are_no_class_are_refused(tree: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\nemu\n")
    keys = {"images": str(tree), "out": str(tmp_path / "out"), "class_names": str(names)}
    with pytest.raises(InvalidRequestError, match=r"1 of 5 folders.*'elk'"):
        run_inline(**keys, targets="label")
    assert not (tmp_path / "out").exists()
    code, _ = run_inline(**keys, targets="label", folder_labels="order")
    assert code == 3
    names.write_text("ant\nbee\n")
    with pytest.raises(InvalidRequestError, match="2 names"):
        run_inline(**keys)


def test_foreign_directory_is_left_alone(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InvalidRequestError, match=r"thesis\.tex"):
        run_inline(images=str(tree), out=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_out_that_cannot_be_created_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(InvalidRequestError, match="director"):
            run_inline(images=str(tree), out=str(out))


def test_dry_run_prints_an_estimate_and_writes_nothing(tree: Path, tmp_path: Path, saliency) -> None:
    from tests.conftest import flags

    process = saliency("explain", *flags(images=tree, out=tmp_path / "out", unit_size=8), "--dry-run")
    assert process.returncode == 0, process.stderr
    assert not (tmp_path / "out").exists()
    for text in ("rows            43", "6 of 8 rows", "predicted/gradient", "device memory", "shards          6"):
        assert text in process.stdout


def test_refused_plan_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    listed, out = tmp_path / "list.csv", tmp_path / "s"
    for label in (-1, 5000):
        listed.write_text("uri,label\n" + "".join(f"{path},{label}\n" for path in sorted(tree.rglob("*.png"))[:9]))
        with pytest.raises(InvalidRequestError, match="no image has a usable label"):
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
def test_options_without_effect_or_in_conflict_are_refused(
    tree: Path, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    if change == {"device": "cuda"} and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InvalidRequestError, match=named):
        run_inline(**{"images": str(tree), "out": str(tmp_path / "out"), **change})
    assert not (tmp_path / "out").exists()


def test_more_workers_than_fit_are_refused_without_waiting() -> None:
    engine = Engine(lambda items, stages: iter(()), list, [Node(2.0, 0.0)])
    config = {**TINY, "images": "a", "out": "b", "runner": "ray"}
    assert engine.workers(make_config(config), "cpu") == 2
    for change in ({"workers": 3}, {"threads": 3}, {"device": "cuda"}):
        changed = make_config({**config, **change})
        with pytest.raises(InvalidRequestError, match="at most"):
            engine.workers(changed, engine.device(changed))
    assert replace(engine, grows=True).workers(make_config({**config, "workers": 9}), "cpu") == 9
    shared = make_config({**config, "gpus_per_worker": 0.5})
    assert replace(engine, nodes=[Node(16.0, 4.0)]).workers(shared, "cuda") == 8


def test_out_inside_the_images_is_refused(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "tree")
    with pytest.raises(InvalidRequestError, match="inside"):
        run_inline(images=str(tmp_path / "tree"), out=str(tmp_path / "tree/maps"))
