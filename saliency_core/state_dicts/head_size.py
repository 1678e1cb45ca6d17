"""Reads the number of classes that a state dict was trained with from the shapes of its heads."""

from __future__ import annotations

from saliency_core.state_dicts.state_fitting import Fit


def differing_class_count(fit: Fit) -> int | None:
    """Returns the file's number of classes if nothing else keeps its tensors from fitting; otherwise None.

    Tensors of another shape may differ only in their first axis, which holds the classes of a head, and all of them by
    the same two numbers: the weight and bias of a head, and those of auxiliary heads.
    """
    if fit.missing or fit.unexpected or fit.ambiguous or not fit.shapes:
        return None
    counts = set()
    for file, own in fit.shapes.values():
        if not file or not own or file[1:] != own[1:]:
            return None
        counts.add((file[0], own[0]))
    return counts.pop()[0] if len(counts) == 1 else None
