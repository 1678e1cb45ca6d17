"""The number of classes that a state dict was trained with, read from the shapes of its heads."""

from __future__ import annotations

from saliency_core.state_dicts.state_fitting import Fit


def differing_class_count(fit: Fit) -> int | None:
    """The file's number of classes if that alone keeps its tensors from fitting; else None.

    Every tensor of another shape must differ in its first axis only, which holds the classes of a head, and all of
    them by the same two numbers: a head's weight and bias, and those of auxiliary heads.
    """
    if fit.missing or fit.unexpected or fit.ambiguous or not fit.shapes:
        return None
    counts = set()
    for file, own in fit.shapes.values():
        if not file or not own or file[1:] != own[1:]:
            return None
        counts.add((file[0], own[0]))
    return counts.pop()[0] if len(counts) == 1 else None
