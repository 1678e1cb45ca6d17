"""Tests the probe: models that fail are refused before anything is written; measurements are printed and recorded."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jobs.classes.classes_command import visualise
from jobs.config.classes_config import ClassesConfig
from jobs.config.explain_config import read_config
from jobs.inspect.status import print_status
from jobs.store.store_reader import open_store
from saliency_core.errors import InvalidRequestError
from tests.conftest import TINY, flags, run_inline, said

REFUSED = {
    "batch_statistics": "depend on each other.*batch_norm in module 'body'.*running statistics",
    "noisy": "each time for the same images.*dropout in the forward",
    "rounded": "behind round in the forward.*all maps would be zero",
    "first_batch": "built once more.*depends on the first images",
    "unsaved": "built once more.*drawn at random",
    "all_nan": "not finite for each of 18 made-up images",
    "sparse": "layout torch.sparse_coo.*to_dense",
    "wordy": r"ValueError: one two three( wo?r?d?)+ …\.$",
}


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """Three dark images and two bright ones."""
    rng, root = np.random.default_rng(0), tmp_path / "images"
    root.mkdir()
    for i, level in enumerate((0, 0, 0, 130, 130)):
        Image.fromarray(rng.integers(level, level + 120, (16, 16, 3), np.uint8)).save(root / f"{i}.png")
    return root


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_the_plan(name: str, tree: Path, tmp_path: Path) -> None:
    model = f"python:unsound_nets:{name}"
    with pytest.raises(InvalidRequestError, match=REFUSED[name]):
        run_inline(images=str(tree), out=str(tmp_path / "s"), model=model)
    geometry = {key: TINY[key] for key in ("resize", "mean", "std", "runner")}
    config = read_config(ClassesConfig, {**geometry, "model": model, "out": str(tmp_path / "c"), "steps": 1})
    with pytest.raises(InvalidRequestError, match=REFUSED[name]):
        visualise(config, Console(file=io.StringIO()))
    assert not [*tmp_path.iterdir()]


def test_exit_code(saliency: Callable[..., CompletedProcess[str]], tree: Path, tmp_path: Path) -> None:
    process = saliency("explain", *flags(images=tree, out=tmp_path / "s", model="python:unsound_nets:noisy"))
    assert process.returncode == 2 and "dropout" in process.stderr and not (tmp_path / "s").exists()


def test_measurements_are_printed_and_recorded(tree: Path, tmp_path: Path) -> None:
    code, output = run_inline(images=str(tree), out=str(tmp_path / "s"))
    assert code == 3
    assert "rows are independent: yes (largest difference" in output and "repeatable: yes\n" in output
    assert "gradients: finite, not zero" in output and "copied: yes" in output
    probe = json.loads((tmp_path / "s/run.json").read_text())["probe"]
    assert all(line in output for line in probe["words"]) and probe["words"][0].startswith("rows are independent: yes")
    assert 0 <= probe["rows"] < 1e-5 and probe["repeat"] == 0 and probe["gradient_rows"] is None
    assert (
        probe["copied"]
        and probe["finite"] == probe["images"] == 3
        and probe["moving"] == probe["gradients"] == 1
        and not probe["draws"]
    )


def test_maps_that_are_all_zero_are_ok_and_counted(halves: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    code, output = run_inline(images=str(halves), out=str(out), model="python:unsound_nets:blind", unit_size=2)
    assert code == 0 and "gradients: finite, not zero for" in output
    assert "3 maps of predicted/gradient are zero everywhere" in output
    assert "3 maps of predicted/gradient are zero everywhere" in said(print_status, str(out))[1]
    totals = json.loads((out / "run.json").read_text())["totals"]
    assert totals["zero_maps"]["predicted/gradient"] == 3
    maps = open_store(str(out)).maps("predicted/gradient", slice(None))
    assert [bool(map_.any()) for map_ in maps] == [False] * 3 + [True] * 2


def test_an_overflow_for_some_images_is_noted(tree: Path, tmp_path: Path) -> None:
    code, _ = run_inline(images=str(tree), out=str(tmp_path / "s"), model="python:unsound_nets:overflowing")
    assert code == 3
    notes = json.loads((tmp_path / "s/run.json").read_text())["notes"]
    assert any("made-up images are not finite" in note for note in notes)


def test_draws_without_effect_are_noted(tree: Path, tmp_path: Path) -> None:
    code, output = run_inline(images=str(tree), out=str(tmp_path / "s"), model="python:unsound_nets:harmless")
    assert code == 3 and "note: the model draws random numbers in its forward" in output
