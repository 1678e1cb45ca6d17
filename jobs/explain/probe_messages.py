"""The results of a model's probe, as run.json records them and as the plan prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saliency_core.probe.model_probe import Probe


def probe_record(probe: Probe, *, copied: bool) -> dict[str, Any]:
    """The figures of a probe, with their meaning as text in ``words``. ``copied``: replicas are copies of the model."""
    figures = {**probe.to_dict(), "copied": copied}
    return figures | {"words": probe_lines(figures)}


def probe_lines(probe: Mapping[str, Any]) -> list[str]:
    """The lines that the plan prints; none if the store is older than the probe."""
    if not probe:
        return []
    finite, moving = _share(probe["finite"], probe["images"]), _share(probe["moving"], probe["gradients"])
    repeat = f" (largest difference {probe['repeat']:.0e})" if probe["repeat"] else ""
    return [
        f"rows are independent: yes (largest difference {probe['rows']:.0e})",
        f"repeatable: yes{repeat}",
        f"gradients: finite{finite}, not zero{moving}",
        f"copied: {'yes' if probe['copied'] else 'no, the model runs as it is'}",
    ]


def _share(part: int, images: int) -> str:
    return "" if part == images else f" for {part} of {images} made-up images"
