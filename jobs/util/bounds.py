"""Upper limits of configuration values, each with its reason: beyond it a library fails, or a run never ends.

All limits are far above useful values, so that a value is refused only if it must be a mistake.
"""

from __future__ import annotations

YEAR = 31_536_000.0
"""Seconds. The system's timers overflow at about 292 years, and JSON has no infinite number."""
COUNT = 2**63 - 1
"""Limit of counts such as rows, which are int64. A run has at most as many workers as units, and a micro-batch lies
within one unit."""
SEED = 2**64 - 1
"""The largest seed of numpy's and torch's generators."""
CLASSES = 2**24
"""With so many classes, a head of 512 features has 32 GiB."""
THREADS = 1024
"""OpenMP ends the process if it cannot start so many threads."""
GPUS = 1024.0
"""GPUs of a single replica."""
PIXELS = 2**40
"""Pixels of one image. The decoder's memory limit, 64 bytes per pixel, must fit into 64 bits."""
BYTES = 2**42
"""Bytes of one encoded image. No object store accepts larger objects (5 TiB)."""
NORMALISED = 1e6
"""Limit of means, standard deviations and their inverses: float32 has six digits, and squares must not overflow."""
