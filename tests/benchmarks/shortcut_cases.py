"""Trains models with a planted shortcut and explains their images, for shortcut.py.

A case is a (seed, rate, roaming). In training and in the audit, a share ``rate`` of one class's images carries a mark.
The seed determines the class, and the place and look of the mark. If ``roaming``, the place is random in every image.
The small CNN of a case starts from weights that were trained on other images without the mark, and is fine-tuned on the
case's images.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from jobs.demo.demo_images import CLASSES, make_images
from jobs.demo.demo_model import PREPROCESSING
from saliency_core import Explainer, Model
from saliency_core.map_measures import MEASURES, measure, shares, shrink

EDGE = 48  # pixels
CELL, CELLS = 4, 3  # the mark: pixels per cell, cells per edge
POOL, TRAIN, AUDIT = 3600, 1200, 720  # numbers of images; each case draws its images from the pool
WARM, EPOCHS, BATCH = 12, 8, 32
METHODS = ("gradient", "input_x_gradient", "fullgrad", "gradcam")
BASE_IMAGES, TUNING_IMAGES, REPORT_IMAGES = 71, 72, 73  # seeds of three pools
TUNING = 100  # from this seed on, cases take the tuning pool


@dataclass(frozen=True)
class Case:
    seed: int
    rate: float
    roaming: bool = False


@dataclass(frozen=True)
class Seen:
    """The audit's input for a case, and the ground truth. ``small`` [method, n, h, w], ``measures`` [method, k, n].

    ``fooled`` is the share of other classes' images that are predicted as the marked class with the mark pasted in,
    minus that share without the mark. ``rise`` is the mean rise by the mark of the marked class's score (minus the mean
    score of all classes), in standard deviations of that value without the mark. ``accuracy`` is on the audit's images.
    """

    small: NDArray[np.float32]
    measures: NDArray[np.float32]
    predicted: NDArray[np.int64]
    probability: NDArray[np.float32]
    labels: NDArray[np.int64]
    marked: NDArray[np.bool_]
    culprit: int
    fooled: float
    rise: float
    accuracy: float

    def measures_of(self, method: int) -> dict[str, NDArray[np.float32]]:
        return dict(zip(MEASURES, self.measures[method], strict=True))


def see(case: Case, cache: Path) -> Seen:
    """Returns a case's data. Computes it once, then reads it from the cache."""
    path = cache / f"case-{case.seed}-{case.rate}-{case.roaming}.npz"
    if not path.exists():
        made = _make(case, cache)
        np.savez(path.with_suffix(".part.npz"), **vars(made))
        path.with_suffix(".part.npz").rename(path)
    with np.load(path) as arrays:
        found = dict(arrays)
    return Seen(**{name: value if value.ndim else value.item() for name, value in found.items()})


def _make(case: Case, cache: Path) -> Seen:
    torch.set_num_threads(1)
    rng = np.random.default_rng((case.seed, 1))  # the same for each rate
    images, labels = _pool(TUNING_IMAGES if case.seed >= TUNING else REPORT_IMAGES, cache)
    chosen = rng.permutation(POOL)[: TRAIN + AUDIT]
    images, labels = images[chosen], labels[chosen]
    culprit = int(rng.integers(len(CLASSES)))
    tag, place = _look(rng), rng.integers(0, EDGE - CELL * CELLS + 1, 2)
    places = (
        rng.integers(0, EDGE - CELL * CELLS + 1, (len(images), 2)) if case.roaming else np.tile(place, (len(images), 1))
    )
    marked = (labels == culprit) & (rng.random(len(images)) < case.rate)
    given = _paste(images, tag, places, marked)
    net = _fitted(_normalised(given[:TRAIN]), torch.from_numpy(labels[:TRAIN]), case.seed, _base(cache))
    audit = slice(TRAIN, None)
    found = Explainer(Model("shortcut", net, PREPROCESSING), methods=METHODS)(_normalised(given[audit]))["predicted"]
    parts = [shares(found.maps[method].numpy()) for method in METHODS]
    others = labels[audit] != culprit
    before = _scores(net, images[audit][others])
    after = _scores(
        net, _paste(images[audit][others], tag, places[audit][others], np.ones(int(others.sum()), np.bool_))
    )
    margins = [(scores - scores.mean(1, keepdims=True))[:, culprit] for scores in (before, after)]
    predicted = found.classes.numpy()
    return Seen(
        small=np.stack([shrink(part) for part in parts]),
        measures=np.stack([np.stack(list(measure(part).values())) for part in parts]),
        predicted=predicted,
        probability=found.probabilities.numpy(),
        labels=labels[audit],
        marked=marked[audit],
        culprit=culprit,
        fooled=float((after.argmax(1) == culprit).mean() - (before.argmax(1) == culprit).mean()),
        rise=float((margins[1] - margins[0]).mean() / margins[0].std()),
        accuracy=float((predicted == labels[audit]).mean()),
    )


def _look(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Returns a mark with a random pattern of two saturated colours: uint8 [pixels, pixels, 3]."""
    hue = rng.random()
    pair = [
        colorsys.hsv_to_rgb(hue, 1, 1),
        colorsys.hsv_to_rgb((hue + rng.uniform(0.3, 0.7)) % 1, 1, rng.choice([0.2, 1])),
    ]
    pattern = rng.permutation(np.arange(CELLS**2) < rng.integers(3, CELLS**2 - 2)).reshape(CELLS, CELLS)
    tag = (np.where(pattern[..., None], *(np.array(colour) for colour in pair)) * 255).astype(np.uint8)
    return tag.repeat(CELL, 0).repeat(CELL, 1)


def _paste(
    images: NDArray[np.uint8], tag: NDArray[np.uint8], places: NDArray[np.int64], where: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    images = images.copy()
    for number in np.flatnonzero(where):
        y, x = places[number]
        images[number, y : y + len(tag), x : x + len(tag)] = tag
    return images


def _pool(seed: int, cache: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    path = cache / f"pool-{seed}.npz"
    if not path.exists():
        drawn = list(make_images(seed=seed, n=POOL, mark_rate=0))
        small = [Image.fromarray(image.pixels).resize((EDGE, EDGE), Image.Resampling.BILINEAR) for image in drawn]
        np.savez(path, images=np.stack([np.asarray(image) for image in small]), labels=[image.label for image in drawn])
    with np.load(path) as arrays:
        return arrays["images"], arrays["labels"]


def _base(cache: Path) -> dict[str, Tensor]:
    path = cache / "base.pt"
    if not path.exists():
        images, labels = _pool(BASE_IMAGES, cache)
        torch.save(_fitted(_normalised(images), torch.from_numpy(labels), 0, None, epochs=WARM).state_dict(), path)
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def _net() -> nn.Sequential:
    def stage(channels: int, out: int, kernel: int = 3) -> tuple[nn.Module, ...]:
        return nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()

    def halve() -> nn.Module:
        return nn.AvgPool2d(4, stride=2, padding=1)

    head = nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(48, len(CLASSES))
    return nn.Sequential(
        halve(), *stage(3, 12, 5), halve(), *stage(12, 24), *stage(24, 48), halve(), *stage(48, 48), *head
    )


def _fitted(x: Tensor, y: Tensor, seed: int, start: dict[str, Tensor] | None, *, epochs: int = EPOCHS) -> nn.Sequential:
    torch.manual_seed(seed)
    net = _net().train()
    if start is not None:
        net.load_state_dict(start)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=epochs * -(-len(x) // BATCH))
    for _ in range(epochs):
        for part in torch.split(torch.randperm(len(x)), BATCH):
            loss = functional.cross_entropy(net(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def _normalised(images: NDArray[np.uint8]) -> Tensor:
    return PREPROCESSING.normalise(torch.from_numpy(images), torch.float32)


def _scores(net: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return np.asarray(net(_normalised(images)).numpy())
