"""Tests that the probe refuses models whose maps would be meaningless, names the cause, and accepts all others."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from unsound_nets import CHANCE, DEPENDENT, GENERATOR, SOUND, UNMOVED, Within

from saliency_core import InvalidRequestError, Model, Preprocessing
from saliency_core.probe.model_probe import Probe, probe_model
from saliency_core.replica.model_copies import frozen

SMALL = Preprocessing((16, 16), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:.*dropout2d.*:UserWarning", "ignore:.*quantiz.*", "ignore:.*torch.jit.*:FutureWarning"
    ),
]


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Seeds all generators, so that nets that draw rarely do so in every run of the tests."""
    torch.manual_seed(0)
    GENERATOR.manual_seed(0)


def probed(build: Callable[[], nn.Module]) -> Probe:
    first, again = (Model("own", frozen(build()), SMALL) for _ in range(2))
    return probe_model(first, again=again)[0]


@pytest.mark.parametrize("name", DEPENDENT)
def test_images_that_depend_on_each_other(name: str) -> None:
    build, cause = DEPENDENT[name]
    with pytest.raises(InvalidRequestError, match=r"images of a batch depend on each other.*differ by") as refused:
        probed(build)
    assert cause in str(refused.value)


@pytest.mark.parametrize("name", CHANCE)
def test_runs_that_differ(name: str) -> None:
    build, cause = CHANCE[name]
    with pytest.raises(InvalidRequestError, match=r"each time for the same images.*relative difference") as refused:
        probed(build)
    assert cause in str(refused.value)


@pytest.mark.parametrize("name", UNMOVED)
def test_scores_without_gradient(name: str) -> None:
    build, cause = UNMOVED[name]
    with pytest.raises(InvalidRequestError, match="all maps would be zero") as refused:
        probed(build)
    assert cause in str(refused.value)


def test_draws_of_other_threads_are_not_the_models() -> None:
    """Ray starts in a thread beside the probe, and draws random numbers there."""
    ended = threading.Event()

    def draw() -> None:
        while not ended.wait(0.02):
            random.random()

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        assert not probed(Within).draws
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("name", SOUND)
def test_sound_models_are_accepted(name: str) -> None:
    probe = probed(SOUND[name])
    assert probe.finite == probe.images
    assert probe.draws == (name in ("noise that does not matter", "shuffled and back"))
