"""Defines the demo's classifier, a small CNN, and trains it within seconds on two cores.

Its model spec is `python:jobs.demo.demo_model:make`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from jobs.demo.demo_images import CLASSES, DemoImage
from saliency_core.model.preprocessing import Preprocessing

# Resized without a crop, because the mark is in a corner.
PREPROCESSING = Preprocessing((96, 96), None, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 3)
TRAIN_IMAGES = 1500
EPOCHS = 12
BATCH = 32
HELD_OUT_EVERY = 6  # every sixth round of the classes is held out
MAX_NOISE = 0.15  # in normalised pixels; training with noise gives less noisy gradients
THREADS = 2  # sums, and so the weights, depend on it


def make() -> nn.Module:
    """Makes the model, float [n, 3, 96, 96] → scores [n, 6] before softmax, always with the same initial weights.

    Pooling windows overlap and convolutions have stride 1, because the gradients would else show a lattice. The max
    pooling at the end selects one place of the image.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            _halving_pool(),
            *_convolution_block(3, 16, kernel=5),
            _halving_pool(),
            *_convolution_block(16, 32),
            _halving_pool(),
            *_convolution_block(32, 64),
            *_convolution_block(64, 96),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(96, len(CLASSES)),
        )


def prepare(images: Iterable[DemoImage]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns the model's inputs before normalisation, uint8 [n, 96, 96, 3], and the labels, int64 [n]."""
    pairs = [(PREPROCESSING.apply(Image.fromarray(image.pixels)), image.label) for image in images]
    return np.stack([pixels for pixels, _ in pairs]), np.array([label for _, label in pairs], np.int64)


def train(
    model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], *, seed: int, epochs: int = EPOCHS
) -> float:
    """Trains `model` in place and leaves it in eval mode; returns its accuracy on the sixth that is held out.

    `images` uint8 [n, 96, 96, 3] and `labels` int64 [n] are those of `prepare`. The same arguments give the same
    weights on one machine. Raises ValueError if there are too few images to split.
    """
    held_out = torch.arange(len(labels)) // len(CLASSES) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if not held_out.any():
        least = len(CLASSES) * HELD_OUT_EVERY
        raise ValueError(f"{len(labels)} images leave none for measuring the accuracy: give at least {least}")
    with _limited_threads(THREADS):
        x = PREPROCESSING.normalise(torch.from_numpy(images), torch.float32)
        y = torch.from_numpy(labels)
        _fit_weights(model, x[~held_out], y[~held_out], generator=torch.Generator().manual_seed(seed), epochs=epochs)
        return float((predict(model, images[held_out.numpy()]) == labels[held_out.numpy()]).mean())


def predict(model: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Predicts classes, int64 [n], of images uint8 [n, 96, 96, 3]. Puts the model into eval mode."""
    model.eval()
    with torch.inference_mode():
        x = PREPROCESSING.normalise(torch.from_numpy(images), torch.float32)
        return np.asarray(torch.cat([model(batch).argmax(1) for batch in torch.split(x, 128)]).numpy())


def _convolution_block(channels: int, out: int, *, kernel: int = 3) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(out), nn.ReLU()


def _halving_pool() -> nn.Module:
    return nn.AvgPool2d(4, stride=2, padding=1)


def _fit_weights(model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator, epochs: int) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(x), generator=generator), BATCH):
            loss = functional.cross_entropy(model(_augment(x[batch], generator)), y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotates a batch by quarter turns, mirrors it, and adds noise of a random strength to each image."""
    turns, mirror = torch.randint(0, 4, (2,), generator=generator).tolist()
    x = x.rot90(turns, (2, 3))
    if mirror % 2:
        x = x.flip(3)
    amount = MAX_NOISE * torch.rand(len(x), 1, 1, 1, generator=generator)
    return x + amount * torch.randn(x.shape, generator=generator)


@contextmanager
def _limited_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
