"""How near a faster precision's maps are to float32's, for this model on this machine."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity, interpolate

from saliency_core.explainer import Explainer
from saliency_core.map_similarity import rank_correlation
from saliency_core.model.classifier import Model

IMAGES = 4
GRID = 14


def agreement(model: Model, precision: str, *, device: str | torch.device = "cpu") -> dict[str, float]:
    """``cosine`` and ``rank`` (Spearman) correlation of the gradient maps of the predicted class with float32's, the
    medians over a few smooth pictures of noise, and the part of them that gets the ``same_class``.

    Pictures whose maps are not finite are left out: then ``finite`` is the part of them that is left, and stands alone
    if there is none. All values are finite.
    """
    height, width = model.geometry.input_size
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (IMAGES, model.geometry.channels, GRID, GRID)
    coarse = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    images = interpolate(coarse, (height, width), mode="bicubic")
    exact, other = (
        Explainer(model, device=device, precision=each)(images)["predicted"] for each in ("float32", precision)
    )
    first, second = (each.maps["gradient"].cpu() for each in (exact, other))
    finite = (first.isfinite() & second.isfinite()).flatten(1).all(dim=1)
    part = {} if finite.all() else {"finite": float(finite.double().mean())}
    if not finite.any():
        return part
    first, second = first[finite], second[finite]
    ranks = torch.from_numpy(rank_correlation(first.numpy(), second.numpy())).nan_to_num(0)  # a flat map has no order
    return part | {
        "cosine": float(cosine_similarity(first.flatten(1).double(), second.flatten(1).double()).median()),
        "rank": float(ranks.median()),
        "same_class": float((exact.classes == other.classes).cpu()[finite].double().mean()),
    }
