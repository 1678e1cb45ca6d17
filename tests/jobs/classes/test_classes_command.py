"""Tests ``saliency classes``: the contents of its store, resumed runs, invalid requests and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import xarray
import yaml
from factories import tiny
from PIL import Image

from jobs.classes.class_contact_sheet import page_rows
from jobs.classes.classes_command import visualise
from jobs.classes.classes_stages import VisualiseError
from jobs.config.classes_config import ClassesConfig
from jobs.config.explain_config import flag_of, read_config
from jobs.storage.object_store import list_keys, open_output, read_object
from saliency_core.class_visualization.ascent import visualise_classes
from saliency_core.class_visualization.ascent_recipe import Recipe
from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import Model
from saliency_core.model.preprocessing import Preprocessing
from tests.conftest import CLASSES, TINY, said
from tests.support.faults import s3

KEYS = {**TINY, "resize": "12x10", "steps": 4, "jitter": 1, "blur_every": 2, "batch_size": 2, "seed": 3}
GEOMETRY = Preprocessing((12, 10), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3)


def run(out: Path | str, **keys: object) -> tuple[int, str]:
    """Runs the command in this process → exit code and printed text."""
    return said(visualise, read_config(ClassesConfig, {**KEYS, "out": str(out), **keys}))


def as_flags(**keys: object) -> list[str]:
    return [text for key, value in {**KEYS, **keys}.items() for text in (flag_of(key), str(value))]


def content(out: Path) -> dict[str, bytes]:
    """The bytes of every object except classes.json, which contains paths and versions, and SHA256SUMS."""
    objects = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    del objects["classes.json"], objects["SHA256SUMS"]
    return objects


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("\n".join(CLASSES))
    return path


@pytest.fixture(scope="module")
def finished(names: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of five classes in batches of two. Tests must copy it before they change it."""
    out = tmp_path_factory.mktemp("finished") / "store"
    code, output = run(out, class_names=str(names))
    assert code == 0 and "5 of 5 classes committed" in output
    return out


def test_line_i_and_image_i_are_of_class_i(finished: Path) -> None:
    data = xarray.open_zarr(finished / "classes.zarr", consolidated=False)
    assert data["image"].dims == ("class", "channel", "y", "x") and data["image"].dtype == np.float32
    lines = pq.read_table(finished / "classes.parquet").to_pylist()
    assert [(line["class"], line["class_name"], line["error"]) for line in lines] == [
        (number, name, None) for number, name in enumerate(CLASSES)
    ]
    model = Model("own", tiny().eval(), GEOMETRY)
    recipe = Recipe(steps=4, jitter=1, blur_every=2)
    for number, line in enumerate(lines):
        result = visualise_classes(model, [number], recipe=recipe, seed=3)
        np.testing.assert_allclose(data["image"].sel({"class": number})[:], result.images[0], rtol=1e-3, atol=1e-4)
        assert line["score"] == pytest.approx(float(result.scores[0]), rel=1e-4)
        assert line["probability"] == pytest.approx(float(result.probabilities[0]), rel=1e-4)
        assert line["score"] == data["score"].sel({"class": number})
    with Image.open(finished / "classes.png") as picture:
        assert picture.format == "PNG" and len(picture.getcolors(1 << 20) or ()) > 100


@pytest.mark.slow
def test_ray_equals_inline(finished: Path, names: Path, tmp_path: Path, saliency) -> None:
    out = tmp_path / "store"
    process = saliency("classes", *as_flags(out=out, class_names=names, runner="ray", workers=2))
    assert process.returncode == 0, process.stdout + process.stderr
    assert content(out) == content(finished)
    assert "5 of 5 classes committed" in process.stdout
    assert "WARNING" not in process.stderr and "Traceback" not in process.stderr


def test_an_object_store_holds_the_same(finished: Path, names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.server(monkeypatch) as uri:
        for _ in range(2):
            assert run(f"{uri}/some/classes", class_names=str(names))[0] == 0
        store = open_output(f"{uri}/some/classes")
        objects = {key: read_object(store, key) for key in sorted(list_keys(store))}
        del objects["classes.json"], objects["SHA256SUMS"]
    assert objects == content(finished)


def test_a_resumed_run_makes_the_missing_unit(finished: Path, names: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    shutil.copytree(finished, out)
    for key in ("index/unit-00000001.parquet", "classes.zarr/image/c/1/0/0/0", "classes.parquet", "classes.png"):
        (out / key).unlink()
    (out / "classes.zarr/score/c/1").write_bytes(b"torn")
    code, output = run(out, class_names=str(names))
    assert code == 0 and "5 of 5 classes committed" in output and "3 of 5" not in output
    assert content(out) == content(finished)


def test_a_run_killed_while_planning_is_resumed(finished: Path, names: Path, tmp_path: Path) -> None:
    """classes.json is written first, so it may be the only object."""
    out = tmp_path / "store"
    out.mkdir()
    shutil.copy(finished / "classes.json", out)
    assert run(out, class_names=str(names))[0] == 0
    assert content(out) == content(finished)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"steps": 5}, "steps"),
        ({"l2": 0.1}, "l2"),
        ({"lp": "2,0.1"}, "lp"),
        ({"jitter": 0}, "jitter"),
        ({"seed": 4}, "seed"),
        ({"classes": "0,1"}, "classes"),
        ({"batch_size": 4}, "batch_size"),
        ({"threads": 2}, "threads"),
        ({"mean": "0.4,0.5,0.5"}, "preprocessing"),
        ({"model": "python:factories:spoils"}, "weights"),
    ],
)
def test_another_run_is_refused_by_name(finished: Path, names: Path, change: dict[str, object], named: str) -> None:
    before = content(finished)
    with pytest.raises(InvalidRequestError, match=rf"{named}: the store has(.|\n)*classes\.json"):
        run(finished, class_names=str(names), **change)
    assert content(finished) == before


@pytest.mark.parametrize(
    "change, named",
    [
        ({"classes": "5"}, "class 5 does not exist"),
        ({"classes": "-1"}, "'-1'"),
        ({"classes": "ant"}, "names are not known"),
        ({"classes": " "}, "class"),
        ({"steps": -1}, "steps=-1"),
        ({"lp": "6"}, "--lp"),
        ({"blur_sigma": 0}, "blur_sigma"),
        ({"methods": "gradient"}, "--method"),
        ({"model": "python:factories:no_gradient"}, "gradient"),
        ({"model": "python:factories:random_weights", "resize": "8x8"}, "every replica"),
        ({"model": "python:factories:several"}, "logits, doubled"),
        ({"model": "python:factories:grey"}, "fails on a batch"),
        ({"model": "python:factories:raises_on_noise"}, "too bright"),
        ({"mean": None}, "mean"),
    ],
    ids=str,
)
def test_an_invalid_request_is_refused_and_nothing_is_written(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        run(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_credentials_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="--out: holds credentials"):
        read_config(ClassesConfig, {**KEYS, "out": "s3://key:secret@bucket/x"})


def test_an_unknown_class_or_a_wrong_number_of_names_is_refused(names: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="'yak'"):
        run(tmp_path / "out", class_names=str(names), classes="ant,yak")
    (tmp_path / "two.txt").write_text("ant\nbee\n")
    with pytest.raises(InvalidRequestError, match="2 names"):
        run(tmp_path / "out", class_names=str(tmp_path / "two.txt"))
    assert not (tmp_path / "out").exists()


def test_foreign_directories_and_other_stores_are_left_alone(finished: Path, tmp_path: Path, saliency) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    process = saliency("classes", *as_flags(out=tmp_path))
    assert process.returncode == 2 and "thesis.tex" in process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InvalidRequestError, match=r"run\.json"):
        run(tmp_path)
    before = content(finished)
    for command in (["status", finished], ["explain", "--images", tmp_path, "--model", "x", "--out", finished]):
        process = saliency(*command)
        assert process.returncode == 2 and "a store of `saliency classes`" in " ".join(process.stderr.split())
    assert content(finished) == before


def test_classes_by_name_and_number_each_once_in_order(finished: Path, names: Path, tmp_path: Path) -> None:
    code, _ = run(tmp_path / "store", class_names=str(names), classes="3, bee ,1")
    assert code == 0
    lines = pq.read_table(tmp_path / "store/classes.parquet").to_pylist()
    assert [line["class_name"] for line in lines] == ["bee", "dog"]
    some, all_ = (xarray.open_zarr(out / "classes.zarr", consolidated=False) for out in (tmp_path / "store", finished))
    assert some["class"].values.tolist() == [1, 3]
    np.testing.assert_allclose(some["image"].sel({"class": 3}), all_["image"].sel({"class": 3}), rtol=1e-3, atol=1e-4)


def test_yaml_equals_flags(tmp_path: Path) -> None:
    config = read_config(ClassesConfig, {**KEYS, "out": "o", "classes": "0,bee", "lp": "6,0.5"})
    for text in (
        yaml.safe_dump(json.loads(config.model_dump_json())),
        yaml.safe_dump({**KEYS, "classes": [0, "bee"], "lp": [6, 0.5]}),
    ):
        (tmp_path / "run.yaml").write_text(text)
        assert read_config(ClassesConfig, {"out": "o"}, file=tmp_path / "run.yaml") == config


def test_every_key_is_a_flag(saliency) -> None:
    output = saliency("classes", "--help").stdout
    assert all(f"{flag_of(key)} " in output for key in ClassesConfig.model_fields)


def test_a_class_without_an_image_keeps_its_place_with_a_reason(tmp_path: Path) -> None:
    code, output = run(tmp_path / "store", l2=1e300)
    assert code == 3 and "5 of 5 classes have no image" in output
    lines = pq.read_table(tmp_path / "store/classes.parquet").to_pylist()
    assert all("--l2" in line["error"] and line["score"] is None and line["probability"] is None for line in lines)
    assert np.isnan(xarray.open_zarr(tmp_path / "store/classes.zarr", consolidated=False)["image"]).all()
    with Image.open(tmp_path / "store/classes.png") as picture:
        picture.load()


def test_an_error_of_the_model_names_the_classes(tmp_path: Path) -> None:
    with pytest.raises(VisualiseError, match=r"classes \(0, 1, 2, 3\)(.|\n)*device is full(.|\n)*--batch-size"):
        run(tmp_path / "store", model="python:factories:greedy", batch_size=4)


def test_other_weights_than_planned_end_the_job(tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "w.pt")
    run(tmp_path / "store", weights=str(tmp_path / "w.pt"))
    torch.save({key: value + 1 for key, value in tiny().state_dict().items()}, tmp_path / "w.pt")
    with pytest.raises(InvalidRequestError, match="weights"):
        run(tmp_path / "store", weights=str(tmp_path / "w.pt"))


def test_pages_hold_a_hundred() -> None:
    assert page_rows(100) == {"classes.png": range(100)}
    assert page_rows(101) == {"classes-1.png": range(100), "classes-2.png": range(100, 101)}
    assert sorted(page_rows(1000)) == list(page_rows(1000)) == [f"classes-{page:02d}.png" for page in range(1, 11)]


def test_the_pictures_of_a_grey_model_are_grey(tmp_path: Path) -> None:
    code, _ = run(tmp_path / "store", model="python:factories:grey", mean="0.5", std="0.25", steps=1)
    assert code == 0
    with Image.open(tmp_path / "store/classes.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert (np.abs(pixels - pixels.mean(axis=2, keepdims=True)) < 2).all()
