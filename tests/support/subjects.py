"""Networks with fixed weights and photographs for the core's tests, and the distance of maps from a reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data as skimage_data
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchvision import models

from saliency_core import Model, Preprocessing

GEOMETRY = Preprocessing(232, (224, 224), "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3)
SMALL = Preprocessing((16, 16), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3)


def photographs(number: int) -> Tensor:
    """Returns crops of real photographs: uint8 [number, 224, 224, 3]."""
    whole = [*load_sample_images().images, skimage_data.astronaut(), skimage_data.coffee(), skimage_data.chelsea()]
    rng = np.random.default_rng(0)
    cuts = []
    for i in range(number):
        image = whole[i % len(whole)]
        top, left = rng.integers(0, image.shape[0] // 3), rng.integers(0, image.shape[1] // 3)
        cut = image[top : top + rng.integers(150, 260), left : left + rng.integers(150, 260)]
        cuts.append(GEOMETRY.apply(Image.fromarray(cut)))
    return torch.from_numpy(np.stack(cuts))


def network(name: str, directory: Path) -> Path:
    """Writes a seeded random state dict. Batch-norm statistics are random, too: the initial ones would test little."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = models.get_model(name, weights=None)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
        torch.save(module.state_dict(), directory / f"{name}.pt")
    return directory / f"{name}.pt"


def own(module: nn.Module, geometry: Preprocessing = SMALL) -> Model:
    return Model("own", module.eval().requires_grad_(False), geometry)


def distance(maps: Tensor, reference: Tensor) -> Tensor:
    """Returns the relative L2 distance of each map → [n]."""
    difference = (maps.double() - reference.double()).flatten(1).norm(dim=1)
    return difference / reference.double().flatten(1).norm(dim=1)
