"""The largest values that a configuration takes, each with the reason. Beyond them something breaks, or never ends.

All are far above what serves: a value is refused only if it could not have been meant.
"""

from __future__ import annotations

YEAR = 31_536_000.0
"""Seconds. The system's timers overflow at some 292 years, and JSON knows no infinite number."""
COUNT = 2**63 - 1
"""Of what is counted, as rows are: int64. There are no more workers than units, and a micro-batch is within one."""
SEED = 2**64 - 1
"""What the generators of numpy and torch take."""
CLASSES = 2**24
"""A head of 512 features then has 32 GiB, and each image as many scores as it has bytes."""
THREADS = 1024
"""OpenMP ends the process if it cannot start so many threads."""
GPUS = 1024.0
"""Of a single replica."""
PIXELS = 2**40
"""Of one image. The decoder's limit of memory, 64 bytes for each, must fit into 64 bits."""
BYTES = 2**42
"""Of one encoded image: no object store takes larger objects (5 TiB)."""
NORMALISED = 1e6
"""Of a mean, a deviation and its inverse: float32 keeps some six digits, and squares must not overflow."""
