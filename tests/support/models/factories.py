"""Models that tests name as ``python:factories:NAME``; weights are drawn once and for all from a fixed seed."""

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
    """5 classes, RGB, any size."""
    return _seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Dropout(), nn.Linear(16, 5),
        ),
        seed,
    )  # fmt: skip


def tiny_again() -> nn.Module:
    """``tiny`` with other weights."""
    return tiny(1)


def overflows() -> nn.Module:
    """``tiny`` with weights that float16 does not hold."""
    net = tiny()
    net[-1].weight.data *= 1e6
    return net


def grey() -> nn.Module:
    """4 classes, one channel."""
    return _seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4))
    )


class Spoils(nn.Module):
    """Like ``tiny``, but a square root of zero lies under the gradient of every black image: its map is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, images: Tensor) -> Tensor:
        darkness = (images + 1).square().sum(dim=(1, 2, 3)).sqrt()
        return self.body(images) + darkness[:, None]


def spoils() -> nn.Module:
    return Spoils()


def random_weights() -> nn.Module:
    """Another model at each call."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))


class Several(nn.Module):
    """Two outputs; which one is meant must be said."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.body(images)
        return {"logits": logits, "doubled": 2 * logits}


def several() -> nn.Module:
    return Several()


class NoGradient(nn.Module):
    """Its scores do not depend on the input by any path that autograd sees."""

    def forward(self, images: Tensor) -> Tensor:
        return images.detach().mean(dim=(2, 3))


def no_gradient() -> nn.Module:
    return NoGradient()


class NoClasses(nn.Module):
    """[n, 0]."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))[:, :0]


def no_classes() -> nn.Module:
    return NoClasses()


def wrong_shape() -> nn.Module:
    """A segmentation net: [n, C, H, W]."""
    return nn.Conv2d(3, 2, 3)


class Greedy(nn.Module):
    """Like ``tiny``, on a device that holds three images at a time."""

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
    """Whether the trouble that a model makes has been mended since."""
    return "WELL" in os.environ


class Raises(nn.Module):
    """Like ``tiny``, but gives up on images whose pixels ``told`` brings to more than a tenth, until it is ``WELL``."""

    def __init__(self, told: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = tiny()
        self.told = told

    def forward(self, images: Tensor) -> Tensor:
        if not _well() and self.told(images.detach()).abs() > 0.1:
            raise RuntimeError("too bright")
        return self.body(images)


def raises() -> nn.Module:
    """On bright and dark ones; noise is neither."""
    return Raises(torch.mean)


def raises_on_noise() -> nn.Module:
    return Raises(torch.std)


class Bright(nn.Module):
    """Like ``tiny``, but until it is ``WELL`` something happens on images that are bright or dark (noise is not)."""

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
    """One of these fills its device, as many do."""
    return Bright(_full)


def _full() -> None:
    raise torch.OutOfMemoryError("device is full")


def dies() -> nn.Module:
    return Bright(partial(os.kill, os.getpid(), signal.SIGKILL))


def by_process() -> nn.Module:
    """Other weights in every process, the same within one."""
    return _seeded(lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)), seed=os.getpid())


def slow() -> nn.Module:
    """Takes a tenth of a second for a micro-batch, which costs no processor."""
    return Slow()


class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.1)
        return self.body(images)


class OwnExit(BaseException):
    """What no ``except Exception`` catches."""


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
    """Like ``tiny``, but until it is ``WELL`` it ends the program in the way ``HOW``, in the pass ``WHERE`` (forward,
    hook or backward): on bright images as ``Bright`` has it, or on any if ``WHEN`` is always."""
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
    """Like ``tiny``; when two units of the store ``WATCHED`` are committed, that happens to it. The environment's
    ``MEDDLE`` names a store that is removed. Of class models it happens when the store is there."""
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
    """Like ``tiny``, but it says so and then hangs in C, where no signal reaches Python, if ``ASLEEP`` is the place:
    ``build``, ``forward``, or one of a replica (the third build of a process: two are of the plan)."""
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
    """Ends the program in the way ``HOW``, instead of making a model."""
    WAYS_TO_QUIT[os.environ["HOW"]]()
    return tiny()
