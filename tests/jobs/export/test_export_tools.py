"""Tests that the tools open the exports, each tool in its own environment.

They cannot be installed in the tests' environment: ViRelAy needs an older Pillow; Quantus replaces the headless OpenCV
with one that needs a display's libraries; FiftyOne takes a gigabyte and needs a MongoDB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.audit.audit_schema import ROWS, audit_folder
from jobs.inputs.tables import open_parquet
from jobs.store.store_reader import open_store
from tests.conftest import TESTS
from tests.support.documents import block
from tests.support.exports import GRADIENT, audited, run
from tests.support.paths import PYTHONPATH

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def environment(where: Path, *packages: str, ours: bool) -> Path:
    """The Python of a new environment with these packages; if ``ours``, also with the packages of this environment.

    Skips the test if they cannot be installed, for example without a network.
    """
    venv.create(where, with_pip=True)
    python = where / "bin" / "python"
    if ours:
        site = where / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (site / "zz_ours.pth").write_text("\n".join(filter(None, {sysconfig.get_path("purelib"), *sys.path[1:]})))
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        pytest.skip(f"{' '.join(packages)} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return python


def answer(python: Path, *arguments: object, **variables: str) -> Any:
    """The JSON that a program prints."""
    done = subprocess.run(
        [python, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False, cwd=TESTS.parent,
        env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_virelay_opens_its_projects(finished: Path, tmp_path: Path) -> None:
    """ViRelAy's loader reads the projects, and its server serves every page and colour map, also of an analysis."""
    copy = audited(finished, tmp_path / "s")
    run(copy, "virelay", tmp_path / "e", rows_per_part=16)
    python = environment(tmp_path / "venv", "virelay", ours=False)
    projects = sorted((tmp_path / "e").glob("*.yaml"))
    assert len(projects) == 4
    loaded = answer(python, TESTS / "support/virelay_loader.py", *projects)
    assert all(set(codes) == {200} for codes in loaded["answers"])
    store = open_store(str(copy))
    lines = [line for line in store.lines().to_pylist() if line["status"] == "ok"]
    names = store.run.class_names
    assert names is not None
    for project in loaded["projects"]:
        assert project["labels"] == [names[line["label"]] for line in lines]
        maps = store.maps(project["name"], [line["row"] for line in lines])
        sums = np.array([project["attributions"][str(i)]["sum"] for i in range(40)], np.float32)
        np.testing.assert_array_equal(sums, maps)
        assert np.array(project["images"]).shape == (40, 16, 16, 3)
    by_name = {project["name"]: project for project in loaded["projects"]}
    with open_parquet(str(copy / audit_folder(GRADIENT) / ROWS)) as file:
        audit = {line["row"]: line for line in file.read().to_pylist()}
    analyses = by_name[GRADIENT]["analyses"]
    assert set(analyses) == {names[0], names[1]} and not by_name["label/gradient"]["analyses"]
    for name, analysis in analyses.items():
        own = [audit[lines[position]["row"]] for position in analysis["index"]]
        assert {line["class"] for line in own} == {names.index(name)}
        assert analysis["cluster"] == [line["cluster"] for line in own]
        assert analysis["embedding"] == [[line["embed_x"], line["embed_y"]] for line in own]


def test_quantus_measures_its_batches(finished: Path, tmp_path: Path) -> None:
    """Runs the loop of interop.md, and metrics that run the model."""
    run(finished, "quantus", tmp_path / "exported/quantus", arrays=[GRADIENT], rows_per_part=16)
    python = environment(tmp_path / "venv", "quantus", ours=True)
    script = tmp_path / "measure.py"
    script.write_text(
        "import json, os\n"
        "from factories import tiny\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "net = tiny().eval()\n"
        f"{block('interop.md', 'import quantus')}\n"
        "named = {name: part[name] for name in ('x_batch', 'y_batch', 'a_batch')}\n"
        "flipped = quantus.PixelFlipping(features_in_step=256)(model=net, **named)\n"
        "faithful = quantus.FaithfulnessCorrelation(nr_runs=10, subset_size=32)(model=net, **named)\n"
        "measured = scores, [values[0] for values in flipped], faithful\n"
        "print(json.dumps([list(map(float, values)) for values in measured]))\n"
    )
    sparse, flipped, faithful = answer(python, script, PYTHONPATH=PYTHONPATH)
    store = open_store(str(finished))
    maps = store.maps(GRADIENT, [line["row"] for line in store.lines().to_pylist() if line["status"] == "ok"])
    assert len(sparse) == len(maps) == 40 and all(np.isfinite(sparse)) and all(np.abs(faithful) <= 1)
    # Sparseness is the Gini index of |map|.
    values = np.sort(np.abs(maps.reshape(40, -1)).astype(np.float64), axis=1)
    n = values.shape[1]
    gini = (values * (2 * np.arange(1, n + 1) - n - 1)).sum(axis=1) / (n * values.sum(axis=1))
    np.testing.assert_allclose(sparse, gini, atol=1e-3)
    assert len(flipped) == 10 and all(0 <= score <= 1 for score in flipped)  # of the last file


def test_fiftyone_has_its_heat_maps(finished: Path, tmp_path: Path) -> None:
    """Runs the snippet of interop.md; without a MongoDB, it stops after it makes the samples."""
    python = environment(tmp_path / "venv", "fiftyone", ours=True)
    script = tmp_path / "snippet.py"
    script.write_text(
        "import json, os\n"
        f"os.chdir({str(tmp_path)!r})\n"
        f"text = {block('interop.md', 'import fiftyone')!r}\n"
        "names = {}\n"
        "stored = True\n"
        "try:\n"
        "    exec(text, names)\n"
        "except Exception as error:\n"
        "    if 'MongoDB' not in str(error):\n"
        "        raise\n"
        "    stored = False\n"
        "shapes = [list(sample['gradient'].map.shape) for sample in names['samples']]\n"
        "print(json.dumps([shapes, stored]))\n"
    )
    (tmp_path / "maps").symlink_to(finished)
    shapes, stored = answer(
        python, script, HOME=str(tmp_path), FIFTYONE_DO_NOT_TRACK="true", PYTHONPATH=str(TESTS.parent)
    )
    lines = [line for line in open_store(str(finished)).lines().to_pylist() if line["status"] == "ok"]
    assert shapes == [[line["height"], line["width"]] for line in lines]
    if not stored:
        pytest.skip("the samples are made, but there is no MongoDB to store them in")
