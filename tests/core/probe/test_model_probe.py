"""The probe refuses models whose maps would mean nothing, names what is to blame, and lets all others pass."""

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
    """What a net draws seldom, it might draw at no run of the probe: the test shall not depend on that."""
    torch.manual_seed(0)
    GENERATOR.manual_seed(0)


def probed(made: Callable[[], nn.Module]) -> Probe:
    first, again = (Model("own", frozen(made()), SMALL) for _ in range(2))
    return probe_model(first, again=again)[0]


@pytest.mark.parametrize("name", DEPENDENT)
def test_images_that_depend_on_each_other(name: str) -> None:
    made, blamed = DEPENDENT[name]
    with pytest.raises(InvalidRequestError, match=r"images of a batch depend on each other.*differ by") as refused:
        probed(made)
    assert blamed in str(refused.value)


@pytest.mark.parametrize("name", CHANCE)
def test_runs_that_differ(name: str) -> None:
    made, blamed = CHANCE[name]
    with pytest.raises(InvalidRequestError, match=r"each time for the same images.*relative difference") as refused:
        probed(made)
    assert blamed in str(refused.value)


@pytest.mark.parametrize("name", UNMOVED)
def test_scores_without_gradient(name: str) -> None:
    made, blamed = UNMOVED[name]
    with pytest.raises(InvalidRequestError, match="all maps would be zero") as refused:
        probed(made)
    assert blamed in str(refused.value)


def test_what_other_threads_draw_is_not_the_models() -> None:
    """As Ray does, which starts in a thread beside the probe."""
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
def test_nothing_sound_is_refused(name: str) -> None:
    probe = probed(SOUND[name])
    assert probe.finite == probe.images
    assert probe.draws == (name in ("noise that does not matter", "shuffled and back"))
