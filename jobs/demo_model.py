"""The demo's classifier: a small CNN, and how it learns within seconds on two cores.

`python:jobs.demo_model:make` is its model spec.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from jobs.demo_data import CLASSES, DemoImage
from saliency_core.preprocessing import Preprocessing

# Squeezed, not cropped: the mark is in a corner.
PREPROCESSING = Preprocessing((96, 96), None, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 3)
HELD_OUT = 6  # every sixth group of classes is kept from the training
POOL = 0
LR = 6e-3
SMOOTH = 0.0
ARCH = 0
BATCH = 48
THREADS = 2  # sums depend on it, hence the weights too
NOISE = 0.25  # standard deviation; a net that saw noise has gradients with less of it


def make() -> nn.Module:
    """float [n, 3, 96, 96] → scores [n, 6] before softmax. The same initial weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *_body(),
            [nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d][POOL](1),
            nn.Flatten(),
            nn.Linear(96, len(CLASSES)),
        )


def _pool(): return nn.AvgPool2d(4, 2, 1)
def _body():
    if ARCH == 0:
        return [_pool(), *_stage(3,16,kernel=5), _pool(), *_stage(16,32), _pool(), *_stage(32,64), *_stage(64,96)]
    if ARCH == 1:
        return [_pool(), *_stage(3,16,kernel=5), _pool(), *_stage(16,32), _pool(), *_stage(32,64), *_stage(64,64), *_stage(64,96)]
    if ARCH == 2:
        return [_pool(), *_stage(3,16,kernel=5), _pool(), *_stage(16,32), _pool(), *_stage(32,64), _pool(), *_stage(64,96)]
    return [*_stage(3,16,kernel=6,stride=2), _pool(), *_stage(16,32), _pool(), *_stage(32,64), *_stage(64,96)]


def _stage(channels: int, out: int, *, kernel: int = 3, stride: int = 1) -> Iterator[nn.Module]:
    yield nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, bias=False)
    yield nn.BatchNorm2d(out)
    yield nn.ReLU()


def prepare(images: Iterable[DemoImage]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The model's inputs, uint8 [n, 96, 96, 3], not yet normalised, and the labels, int64 [n]."""
    from PIL import Image

    pairs = [(PREPROCESSING.apply(Image.fromarray(image.pixels)), image.label) for image in images]
    return np.stack([pixels for pixels, _ in pairs]), np.array([label for _, label in pairs], np.int64)


def train(
    model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], *, seed: int, epochs: int = 14
) -> float:
    """Trains `model` in place and leaves it in eval mode; returns its accuracy on the images it kept aside.

    `images` uint8 [n, 96, 96, 3]; `labels` int64 [n]. The same arguments give the same weights on one machine.
    """
    kept = (np.arange(len(labels)) // len(CLASSES)) % HELD_OUT == HELD_OUT - 1
    if kept.all() or not kept.any():
        raise ValueError(f"{len(labels)} images cannot be split: give at least {HELD_OUT * len(CLASSES)}")
    with _threads(THREADS):
        x = PREPROCESSING.normalise(torch.from_numpy(images), torch.float32)
        y = torch.from_numpy(labels)
        known, unknown = torch.from_numpy(~kept), torch.from_numpy(kept)
        _fit(model, x[known], y[known], generator=torch.Generator().manual_seed(seed), epochs=epochs)
        return float((predict(model, x[unknown]) == y[unknown]).double().mean())


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """float [n, 3, 96, 96], normalised → the classes, int64 [n]; the model is put into eval mode."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(128)])


def _fit(model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator, epochs: int) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=epochs * steps)
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=generator).split(BATCH):
            batch = _vary(x[part], generator)
            loss = functional.cross_entropy(model(batch), y[part], label_smoothing=SMOOTH)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _vary(x: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight ways to lay a square down, for the whole batch, and noise for each pixel."""
    turns, mirror = (
        torch.randint(0, 4, (1,), generator=generator),
        torch.randint(0, 2, (1,), generator=generator),
    )
    x = x.rot90(int(turns), (2, 3))
    x = x.flip(3) if mirror else x
    return x + NOISE * torch.rand((len(x), 1, 1, 1), generator=generator) * torch.randn(x.shape, generator=generator)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
