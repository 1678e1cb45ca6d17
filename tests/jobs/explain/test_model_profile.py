"""The profile of the model that the plan makes before any worker starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import tiny

from jobs.config.explain_config import make_config
from jobs.explain import model_profile
from jobs.explain.model_profile import ModelProfile, profile_model
from saliency_core.model.classifier import Model
from tests.conftest import TINY


def profile_of(device: str, **keys: object) -> ModelProfile:
    return profile_model(
        make_config({**TINY, "images": "x", "out": "y", **keys}),
        folders=None,
        device=lambda: device,
    )


def test_the_agreement_of_a_faster_precision_is_measured_on_the_runs_device(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    def agreement(model: Model, precision: str, *, device: str) -> dict[str, float]:
        requests.append((precision, device))
        return {"cosine": 0.5, "rank": 0.5, "same_class": 1.0}

    monkeypatch.setattr(model_profile, "agreement", agreement)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for precision in ("tf32", "bf16"):
        assert profile_of("cuda", precision=precision).notes[-1].endswith("on this machine's GPU).")
    assert profile_of("cpu", precision="bf16").notes[-1].endswith("on this machine's processor).")
    assert requests == [("tf32", "cuda"), ("bf16", "cuda"), ("bf16", "cpu")]


def test_a_driver_without_gpu_notes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has no TF32, so its agreement would be perfect and meaningless."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tf32 = profile_of("cuda", precision="tf32")
    assert tf32.agreement == {} and "was not measured" in tf32.notes[-1]
    bf16 = profile_of("cuda", precision="bf16")
    assert 0.5 < bf16.agreement["cosine"] < 1 and bf16.notes[-1].endswith("not on the run's GPUs).")


def test_maps_that_are_not_finite_at_a_precision_are_noted() -> None:
    profile = profile_of("cpu", precision="fp16", model="python:factories:overflows")
    assert profile.agreement == {"finite": 0.0}
    assert "fp16: 100% of a few made-up images have no finite gradient map" in profile.notes[-1]


def test_the_device_is_requested_only_if_it_matters() -> None:
    def unknown() -> str:
        raise AssertionError("the device is not needed")

    config = make_config({**TINY, "images": "x", "out": "y"})
    assert profile_model(config, folders=None, device=unknown).agreement == {}


def test_changes_of_the_weights_by_the_loader_are_noted(tmp_path: Path) -> None:
    """The configuration can select another entry of the file."""
    state = {f"module.{name}": value for name, value in tiny().state_dict().items()}
    other = {name: value + 1 for name, value in tiny().state_dict().items()}
    torch.save({"state_dict": state, "state_dict_ema": other}, tmp_path / "w.pt")
    plain = profile_of("cpu", weights=str(tmp_path / "w.pt"))
    assert "state_dict_ema" in plain.notes[0] and "'module.' cut" in plain.notes[1]
    averaged = profile_of("cpu", weights=str(tmp_path / "w.pt"), weights_key="state_dict_ema")
    assert averaged.weights != plain.weights and not any("weights" in note for note in averaged.notes)
