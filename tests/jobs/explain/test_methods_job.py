"""Tests every kind of method and target in the whole job: the index is correct, and bytes depend only on the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.store.store_reader import open_store
from saliency_core.methods.registry import REGISTRY
from saliency_core.spec_syntax import is_class_spec
from saliency_core.targets.target_parsing import parse_targets
from tests.conftest import content, flags, run_inline

METHODS = (
    "fullgrad",
    "gradcam(layer=3)",
    "smoothgrad(n=3)",
    "vargrad(n=3)",
    "integrated_gradients(n=4)",
    "guided_backprop(reduction=none)",
    "deep=compose(rule=guided, sampler=noise, readout=fullgrad, n=2)",
)
TARGETS = ("predicted", "top:2", "contrast", "label", "mix=weighted:{0: 1, 2: -0.5}", "unit=layer:4[3]")
SAME = {"unit_size": 8, "batch_size": 4, "methods": METHODS, "targets": TARGETS, "seed": 3}


@pytest.fixture(scope="module")
def many(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("many") / "store"
    code, output = run_inline(images=str(tree), out=str(out), **SAME)
    assert code == 3, output
    # Forwards: 1 clean, 3 and 2 noisy, 4 on the path and 1 at its start. Backwards, for each of 7 targets: 2 rules at
    # the image itself, 3 and 2 noisy, 4 on the path.
    assert f"of {(11 + 7 * 11) / 2:g} passes each" in output
    return out


def test_the_index_describes_each_target_and_method(many: Path) -> None:
    index = pq.read_table(many / "index.parquet").to_pylist()
    explained = [line for line in index if line["predicted__status"] == "ok"]
    assert explained
    for line in explained:
        assert line["top1__class"] == line["predicted__class"] != line["top2__class"]
        assert line["top1__score"] >= line["top2__score"]
        np.testing.assert_allclose(line["contrast__score"], line["top1__score"] - line["top2__score"], rtol=1e-4)
        assert line["contrast__class"] is None and line["contrast__probability"] is None
        assert line["mix__class_name"] is None and line["unit__class"] is None
        assert line["predicted__fullgrad__residual"] < 1e-4
        assert 0 <= line["predicted__integrated_gradients_n4__residual"] < 1
        assert "predicted__smoothgrad_n3__residual" not in line
        assert line["predicted__vargrad_n3__min"] >= 0 and line["predicted__gradcam_3__min"] >= 0
    unlabelled = [line for line in explained if line["label__status"] != "ok"]
    assert all(line["label__fullgrad__residual"] is None for line in unlabelled)
    maps = open_store(str(many)).maps("predicted/guided_backprop_none", [explained[0]["row"]])
    assert maps.shape[1] == 3


def test_ray_equals_inline(many: Path, tree: Path, tmp_path: Path, saliency) -> None:
    process = saliency("explain", *flags(images=tree, out=tmp_path / "store", workers=2, **{**SAME, "runner": "ray"}))
    assert process.returncode == 3, process.stdout + process.stderr
    assert content(tmp_path / "store") == content(many)
    index = pq.read_table(tmp_path / "store/index.parquet")
    assert index.equals(pq.read_table(many / "index.parquet"))
    assert "43 of 43 rows committed" in process.stdout and "busiest" in process.stdout
    assert "WARNING" not in process.stderr and "Traceback" not in process.stderr


def test_noise_does_not_depend_on_the_unit_size(tree: Path, tmp_path: Path) -> None:
    maps = []
    for unit_size in (8, 12):
        out = tmp_path / str(unit_size)
        run_inline(images=str(tree), out=str(out), methods=("smoothgrad(n=3)",), unit_size=unit_size, batch_size=4)
        maps.append(open_store(str(out)).maps("predicted/smoothgrad_n3", slice(None)))
    np.testing.assert_array_equal(*maps)


def test_another_argument_is_another_run(many: Path, tree: Path, saliency) -> None:
    other = {**SAME, "methods": ("smoothgrad(n=4)", *METHODS[1:])}
    process = saliency("explain", *flags(images=tree, out=many, **{**other, "runner": "inline"}))
    assert process.returncode == 2 and "methods" in process.stdout + process.stderr


def test_every_method_through_the_job(tree: Path, tmp_path: Path) -> None:
    """All methods in one run, each by its bare name."""
    names = tuple(name for name in REGISTRY if name != "compose")
    code, output = run_inline(images=str(tree / "bee"), out=str(tmp_path / "s"), methods=names, batch_size=4)
    assert code == 0, output
    store = open_store(str(tmp_path / "s"))
    assert [array.method for array in store.run.arrays] == list(names)
    for name in names:
        maps = store.maps(f"predicted/{name}", range(store.run.rows))
        assert maps.shape == (8, 16, 16) and np.isfinite(maps).all() and maps.any(), name


def test_run_json_names_the_layer_of_auto(tree: Path, tmp_path: Path) -> None:
    """The note names the call and its module, only if no layer was given. The fingerprint excludes it."""
    methods = ("gradcam", "guided_gradcam", "named=hirescam(layer=3)")
    run_inline(images=str(tree / "ant"), out=str(tmp_path / "s"), methods=methods)
    run = open_store(str(tmp_path / "s")).run
    assert "gradcam, guided_gradcam: layer auto is relu#2 (5)." in run.notes
    assert not any("named" in note for note in run.notes)
    assert "relu#2" not in str(run.fingerprint)


def test_recomputed_rows_are_the_same(many: Path, saliency) -> None:
    process = saliency("verify", many, "--recompute", 5)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "5 of them to the bit" in process.stdout


def test_specs_distinguish_targets_that_are_classes() -> None:
    """Readers of a store distinguish them without torch."""
    for target in parse_targets(
        ["predicted", "label", "class:1", "top:2", "contrast", "contrast:label", *TARGETS[-2:]]
    ):
        assert target.is_class == is_class_spec(target.spec)
