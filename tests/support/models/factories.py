"""Models that tests name as ``python:factories:NAME``, with weights from a fixed seed."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn


def _seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def tiny(seed: int = 0) -> nn.Module:
    """Returns a small model: 5 classes, RGB, any size."""
    return _seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Dropout(), nn.Linear(16, 5),
        ),
        seed,
    )  # fmt: skip


def tiny_again() -> nn.Module:
    """Returns ``tiny`` with other weights."""
    return tiny(1)


def overflows() -> nn.Module:
    """Returns ``tiny`` with weights that overflow float16."""
    net = tiny()
    net[-1].weight.data *= 1e6
    return net


def grey() -> nn.Module:
    """Returns a model with 4 classes and one input channel."""
    return _seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4))
    )


class Spoils(nn.Module):
    """Like ``tiny``, but takes a square root of zero for every black image, so that its map is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, images: Tensor) -> Tensor:
        darkness = (images + 1).square().sum(dim=(1, 2, 3)).sqrt()
        return self.body(images) + darkness[:, None]


def spoils() -> nn.Module:
    return Spoils()


def random_weights() -> nn.Module:
    """Returns a model with different weights at each call."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))


class Several(nn.Module):
    """Returns two outputs, so that the job must be given ``--output``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.body(images)
        return {"logits": logits, "doubled": 2 * logits}


def several() -> nn.Module:
    return Several()


class NoGradient(nn.Module):
    """A model whose scores have no autograd path to the input."""

    def forward(self, images: Tensor) -> Tensor:
        return images.detach().mean(dim=(2, 3))


def no_gradient() -> nn.Module:
    return NoGradient()


class NoClasses(nn.Module):
    """A model without classes: its output is [n, 0]."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))[:, :0]


def no_classes() -> nn.Module:
    return NoClasses()


def wrong_shape() -> nn.Module:
    """Returns a segmentation net: its output is [n, C, H, W]."""
    return nn.Conv2d(3, 2, 3)


class Greedy(nn.Module):
    """Like ``tiny``, but raises an out-of-memory error for more than three images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError("device is full")
        return self.body(images)


def greedy() -> nn.Module:
    return Greedy()


def _well() -> bool:
    """Returns True if ``WELL`` is set: the models of this module then stop failing."""
    return "WELL" in os.environ


class Raises(nn.Module):
    """Like ``tiny``, but raises if ``|told(images)|`` exceeds 0.1 and ``WELL`` is not set."""

    def __init__(self, told: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = tiny()
        self.told = told

    def forward(self, images: Tensor) -> Tensor:
        if not _well() and self.told(images.detach()).abs() > 0.1:
            raise RuntimeError("too bright")
        return self.body(images)


def raises() -> nn.Module:
    """Returns a model that raises on bright and on dark images, but not on noise."""
    return Raises(torch.mean)


def raises_on_noise() -> nn.Module:
    return Raises(torch.std)


class Bright(nn.Module):
    """Like ``tiny``, but calls ``happens`` on bright or dark images (not on noise) if ``WELL`` is not set."""

    def __init__(self, happens: Callable[[], None]) -> None:
        super().__init__()
        self.body = tiny()
        self.happens = happens

    def forward(self, images: Tensor) -> Tensor:
        if not _well() and (images.detach().mean(dim=(1, 2, 3)).abs() > 0.5).any():
            self.happens()
        return self.body(images)


def hangs() -> nn.Module:
    return Bright(partial(time.sleep, 3600))


def hungry() -> nn.Module:
    """Returns a model that raises an out-of-memory error for a single bright or dark image, too."""
    return Bright(_full)


def _full() -> None:
    raise torch.OutOfMemoryError("device is full")


def dies() -> nn.Module:
    return Bright(partial(os.kill, os.getpid(), signal.SIGKILL))


def by_process() -> nn.Module:
    """Returns a model whose weights differ between processes, but not within one."""
    return _seeded(lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)), seed=os.getpid())


def slow() -> nn.Module:
    """Returns a model that sleeps for 0.1 s in each forward."""
    return Slow()


class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.1)
        return self.body(images)


class OwnExit(BaseException):
    """An exception that ``except Exception`` does not catch."""


def _raise(error: BaseException) -> None:
    raise error


WAYS_TO_QUIT: dict[str, Callable[[], None]] = {
    "sys.exit(0)": lambda: sys.exit(0),
    "SystemExit": lambda: _raise(SystemExit("enough")),
    "os._exit(0)": lambda: os._exit(0),
    "own BaseException": lambda: _raise(OwnExit("mine")),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "StopIteration": lambda: _raise(StopIteration(3)),
}


def quits() -> nn.Module:
    """Like ``tiny``, but ends the program if ``WELL`` is not set: in the way ``HOW``, in the pass ``WHERE`` (forward,
    hook or backward), on bright or dark images, or on all images if ``WHEN`` is always."""
    always, bright = os.environ.get("WHEN") == "always", False
    ends = WAYS_TO_QUIT[os.environ["HOW"]]

    def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal bright
        bright = not _well() and (always or bool((inputs[0].detach().mean(dim=(1, 2, 3)).abs() > 0.5).any()))

    def end(*_: object) -> None:
        if bright:
            ends()

    class Ends(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            end()
            return images

    net = tiny()
    match os.environ.get("WHERE", "forward"):
        case "hook":
            net[0].register_forward_hook(end)
        case "backward":
            net[-1].register_full_backward_hook(end)
        case _:
            net = nn.Sequential(Ends(), net)
    net.register_forward_pre_hook(look)
    return net


WATCHED: tuple[Path, Callable[[Path], object]] | None = None  # of ``meddles``: a store, and what happens to it


def meddles() -> nn.Module:
    """Like ``tiny``, but changes a store once two of its units are committed, or once it has a ``classes.json``:
    calls the function in ``WATCHED`` with the store, or removes the store that the variable ``MEDDLE`` names."""
    net, happened = tiny(), False

    def look(*_: object) -> None:
        nonlocal happened
        out, happens = WATCHED or (Path(os.environ.get("MEDDLE", "/nowhere")), shutil.rmtree)
        due = len([*out.glob("index/unit-*")]) == 2 or (out / "classes.json").exists()
        if due and not happened and not _well():
            happened = True
            happens(out)

    net.register_forward_pre_hook(look)
    return net


_BUILT: list[nn.Module] = []


def sleeps() -> nn.Module:
    """Like ``tiny``, but prints ``asleep`` and hangs in C, where Python handles no signal. ``ASLEEP`` names the place:
    ``build`` or ``forward``, with `` of a replica`` only in the third build of a process (the plan makes two)."""
    net = tiny()
    _BUILT.append(net)

    def sleep(*_: object) -> None:
        print("asleep", flush=True)
        mutex = ctypes.create_string_buffer(64)  # zeros: a mutex that is not locked
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(mutex)

    place, _, of_replica = os.environ.get("ASLEEP", "").partition(" of a ")
    due = not of_replica or len(_BUILT) == 3
    if due and place == "build":
        sleep()
    if due and place == "forward":
        net[0].register_forward_pre_hook(sleep)
    return net


def quits_built() -> nn.Module:
    """Ends the program in the way ``HOW`` instead of returning a model."""
    WAYS_TO_QUIT[os.environ["HOW"]]()
    return tiny()
