"""Tests that flags, YAML and run.json give the same configuration, and the files for a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from jobs.config.explain_config import ExplainConfig, flag_of, make_config
from saliency_core.errors import InvalidRequestError
from tests.conftest import TESTS, TINY, content, flags

WHOLE = {
    "images": ("a", "b/*.tar"),
    "model": "torchvision:resnet18",
    "out": "o",
    "weights": "w.pt",
    "weights_key": "state_dict_ema",
    "num_classes": 7,
    "output": "logits",
    "head": "sigmoid",
    "precision": "bf16",
    "resize": "232",
    "crop": "224x192",
    "interpolation": "bicubic",
    "mean": "0.5,0.4,0.3",
    "std": "0.2,0.2,0.2",
    "channels": 3,
    "methods": ("gradient", "mine=input_x_gradient(reduction=l2)"),
    "targets": ("predicted", "class:3"),
    "map_dtype": "int8",
    "seed": 3,
    "runner": "inline",
    "workers": 2,
    "device": "cpu",
    "gpus_per_worker": 0.5,
    "threads": 2,
    "batch_size": 8,
    "unit_size": 64,
    "limit": 100,
    "allow_quarantined": True,
    "unit_seconds": 60.5,
    "stall_seconds": 90.0,
    "folder_labels": "order",
    "class_names": "names.txt",
    "max_pixels": 1000,
    "max_bytes": 2000,
    "max_seconds": 1.5,
    "image_column": "i",
    "uri_column": "u",
    "label_column": "l",
}


def test_every_key_is_a_flag_and_back(saliency) -> None:
    assert WHOLE.keys() == ExplainConfig.model_fields.keys() - {"preset"}
    output = saliency("explain", "--help").stdout
    for key in ExplainConfig.model_fields:
        assert f"{flag_of(key)} " in output


def test_flags_yaml_and_run_json_give_the_same_configuration(tmp_path: Path) -> None:
    config = make_config({**WHOLE})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    assert make_config({}, file=tmp_path / "run.yaml") == config
    assert make_config({"seed": 9}, file=tmp_path / "run.yaml") == config.model_copy(update={"seed": 9})
    assert ExplainConfig.model_validate_json(config.model_dump_json()) == config


def test_a_run_from_yaml_is_the_run_from_flags(tree: Path, tmp_path: Path, saliency) -> None:
    keys = {**TINY, "images": str(tree), "out": str(tmp_path / "a"), "unit_size": 16}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys))
    assert saliency("explain", "--config", tmp_path / "run.yaml").returncode == 3
    assert saliency("explain", *flags(images=tree, out=tmp_path / "b", unit_size=16)).returncode == 3
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize(
    "text, named",
    [
        ("- a list", "mapping"),
        ("images: [a\n", "cannot be read"),
        ("imagse: a", "imagse"),
        ("crop: 3x", "crop"),
        (None, "cannot be read"),
    ],
)
def test_bad_yaml_is_refused(text: str | None, named: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InvalidRequestError, match=named):
        make_config({"images": "a", "model": "torchvision:resnet18", "out": "o"}, file=tmp_path / "run.yaml")


def test_markup_in_names_is_text(tmp_path: Path, saliency) -> None:
    result = saliency("status", tmp_path / "[red]x[/red]")
    assert result.returncode == 2 and "[red]x[/red]" in result.stderr


def test_ray_up_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((TESTS.parent / "cluster.yaml").read_text())))
