"""What the plan tells of the probe of a model, from the figures in the run's record."""

from __future__ import annotations

from jobs.record import Record


def probe_lines(run: Record) -> list[tuple[str, str]]:
    """Pairs of a question and its answer; none of a store that was made before there was a probe."""
    probe = run.probe
    if not probe:
        return []
    images, finite, moving = probe["images"], probe["finite"], probe["moving"]
    repeat = f" (largest difference {probe['repeat']:.0e})" if probe["repeat"] else ""
    return [
        ("rows are independent", f"yes (largest difference {probe['rows']:.0e})"),
        ("repeatable", f"yes{repeat}"),
        (
            "gradients",
            f"{'finite' if finite == images else f'finite for {finite} of {images} made-up images'}, "
            f"{'not zero' if moving == images else f'not zero for {moving} of {images} made-up images'}",
        ),
        ("copied", "yes" if probe["copied"] else "no, the model runs as it is"),
    ]
