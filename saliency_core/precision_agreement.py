"""Measures how near the maps of a faster precision are to those of float32, for one model on this machine."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity, interpolate

from saliency_core.explainer import Explainer
from saliency_core.map_similarity import rank_correlation
from saliency_core.model.classifier import Model

IMAGES = 4
GRID = 14


def agreement(model: Model, precision: str, *, device: str | torch.device = "cpu") -> dict[str, float]:
    """Compares the gradient maps of the predicted class in ``precision`` and in float32, on a few smooth noise images.

    Returns the medians of their ``cosine`` similarity and ``rank`` (Spearman) correlation, and the share of the images
    that get the ``same_class``. Images whose maps are not finite are left out: then ``finite`` is the share of the
    others, and is the only key if there are none. All values are finite.
    """
    height, width = model.geometry.input_size
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (IMAGES, model.geometry.channels, GRID, GRID)
    coarse = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    images = interpolate(coarse, (height, width), mode="bicubic")
    exact, faster = (
        Explainer(model, device=device, precision=each)(images)["predicted"] for each in ("float32", precision)
    )
    exact_maps, faster_maps = (explanation.maps["gradient"].cpu() for explanation in (exact, faster))
    finite = (exact_maps.isfinite() & faster_maps.isfinite()).flatten(1).all(dim=1)
    finite_share = {} if finite.all() else {"finite": float(finite.double().mean())}
    if not finite.any():
        return finite_share
    exact_maps, faster_maps = exact_maps[finite], faster_maps[finite]
    # NaN if a map is constant.
    ranks = torch.from_numpy(rank_correlation(exact_maps.numpy(), faster_maps.numpy())).nan_to_num(0)
    return finite_share | {
        "cosine": float(cosine_similarity(exact_maps.flatten(1).double(), faster_maps.flatten(1).double()).median()),
        "rank": float(ranks.median()),
        "same_class": float((exact.classes == faster.classes).cpu()[finite].double().mean()),
    }
