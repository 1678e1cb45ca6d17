"""Tests that file names of samples and arrays in an export are safe and unique, even if the names are hostile."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.export.export_command import FORMAT_NAMES
from jobs.export.safe_names import array_name, sample_key
from jobs.store.store_reader import Store
from tests.conftest import run_inline
from tests.support.exports import GRADIENT, run, samples

HOSTILE = (
    "../../etc/passwd",
    "/root/.ssh",
    "a.b/c.tar.gz.png",
    "<b>&\"'`$(x)",
    "صورة.png",
    "x" * 300,
    "",
    "nul\0\n\x1b[2J",
)


def test_keys_are_safe_and_unique() -> None:
    keys = [sample_key(row, name) for row in (0, 7, 10**9) for name in HOSTILE]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{9,80}", key) for key in keys)
    assert len({sample_key(row, "same") for row in range(100)}) == 100
    assert sample_key(17, "ant/003.png") == "00000017_ant_003_png"


def test_names_of_arrays_stay_apart_and_in_their_folder(store: Store) -> None:
    spec = store.array(GRADIENT).spec
    assert array_name(spec) == "predicted__gradient"
    assert array_name(spec.model_copy(update={"method": "gradcam++"})) == "predicted__gradcam++"
    pairs = [(target, method) for target in (*HOSTILE, "..", "a%2Fb", "a/b") for method in ("x", "../x", ".")]
    names = [array_name(spec.model_copy(update={"target": target, "method": method})) for target, method in pairs]
    assert len(set(names)) == len(names)
    assert not any("/" in name or "\0" in name or name in (".", "..") for name in names)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("to", FORMAT_NAMES)
def test_hostile_names_stay_in_the_folder(tmp_path: Path, to: str) -> None:
    """Members of an archive may have any name; no name becomes a path."""
    names = [
        "../../up.png",
        "/up.png",
        "up..%2F..%2Fup.png",
        "a.b.c/d.e.png",
        "a b/<i>&'.png",
        "صورة/\u202eغلط.png",
        f"{'y' * 120}/{'x' * 200}.png",
    ]
    here = tmp_path / "here/and/deeper"
    here.mkdir(parents=True)
    with tarfile.open(here / "in.tar", "w") as tar:
        for number, name in enumerate(names):
            member, data = tarfile.TarInfo(name), png(number)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    run_inline(images=str(here / "in.tar"), out=str(here / "s"))
    before = set(tmp_path.rglob("*"))
    assert run(here / "s", to, here / "e")[0] == 0
    assert all(path.is_relative_to(here / "e") for path in set(tmp_path.rglob("*")) - before)
    assert not Path("/up.png").exists()
    ids = [f"in.tar/{name}" for name in names]
    if to == "webdataset":
        assert sorted(json.loads(sample["json"])["sample_id"] for sample in samples(here / "e").values()) == sorted(ids)
        with tarfile.open(here / "e/maps-00000.tar") as tar:
            assert all("/" not in member.name and ".." not in member.name for member in tar)
    if to == "png":
        with (here / "e/pictures.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        assert {line["sample_id"] for line in table} == set(ids)
        assert len({line["file"] for line in table}) == 2 * len(names)
