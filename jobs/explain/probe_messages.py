"""What a run's record and its plan tell of the probe of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saliency_core.probe.model_probe import Probe


def probe_record(probe: Probe, *, copied: bool) -> dict[str, Any]:
    """The figures of a probe, and in ``words`` what they mean. ``copied``: replicas are copies of the model."""
    figures = {**probe.to_dict(), "copied": copied}
    return figures | {"words": probe_lines(figures)}


def probe_lines(probe: Mapping[str, Any]) -> list[str]:
    """A question and its answer, each; none of a store that was made before there was a probe."""
    if not probe:
        return []
    repeat = f" (largest difference {probe['repeat']:.0e})" if probe["repeat"] else ""
    return [
        f"rows are independent: yes (largest difference {probe['rows']:.0e})",
        f"repeatable: yes{repeat}",
        f"gradients: finite{_of(probe['finite'], probe['images'])}, not zero{_of(probe['moving'], probe['gradients'])}",
        f"copied: {'yes' if probe['copied'] else 'no, the model runs as it is'}",
    ]


def _of(some: int, images: int) -> str:
    return "" if some == images else f" for {some} of {images} made-up images"
