"""What the plan tells of the probe of a model, from the figures in the run's record."""

from __future__ import annotations

from jobs.store.run_record import Record


def probe_lines(run: Record) -> list[tuple[str, str]]:
    """Pairs of a question and its answer; none of a store that was made before there was a probe."""
    probe = run.probe
    if not probe:
        return []
    repeat = f" (largest difference {probe['repeat']:.0e})" if probe["repeat"] else ""
    return [
        ("rows are independent", f"yes (largest difference {probe['rows']:.0e})"),
        ("repeatable", f"yes{repeat}"),
        (
            "gradients",
            f"finite{_of(probe['finite'], probe['images'])}, not zero{_of(probe['moving'], probe['gradients'])}",
        ),
        ("copied", "yes" if probe["copied"] else "no, the model runs as it is"),
    ]


def _of(some: int, images: int) -> str:
    return "" if some == images else f" for {some} of {images} made-up images"
