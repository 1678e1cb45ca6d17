"""Finds samples again by content, in a file in which a sample's id is only its position."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise


def align(
    planned: Sequence[str | None], present: Sequence[str | None], *, repairable: Sequence[bool]
) -> list[int | None]:
    """Finds the position of each old sample in the changed file.

    A sample whose hash is present is at the position of that hash. A sample without a hash, or one that is
    ``repairable`` and whose hash is absent, gets a position only if its neighbours prove it: the nearest samples before
    and after it whose content occurs once (or the ends of the file) moved by the same number of positions, every other
    sample with a hash in between moved by that number, too, and no other sample moved in. Any other sample gets None.

    Args:
        planned: The hash that each of the n old samples had; None if its bytes were never read.
        present: The hash at each of the m positions now; None if its bytes cannot be read.
        repairable: For each old sample, whether other bytes may replace it, because it was never explained.

    Returns:
        For each of the n old samples a position below m, or None.
    """
    positions: defaultdict[str, list[int]] = defaultdict(list)
    for position, digest in enumerate(present):
        if digest is not None:
            positions[digest].append(position)
    times: Counter[str] = Counter()
    positions_now: list[int | None] = [None] * len(planned)
    for index, digest in enumerate(planned):
        if digest is not None and digest in positions:
            stays = index < len(present) and present[index] == digest
            candidates = positions[digest]
            positions_now[index] = index if stays else candidates[min(times[digest], len(candidates) - 1)]
        if digest is not None:
            times[digest] += 1
    # Equal images cannot be told apart, so they are not landmarks.
    landmarks = [
        index for index, digest in enumerate(planned) if digest and times[digest] == 1 and len(positions[digest]) == 1
    ]
    missing = {index for index, position_now in enumerate(positions_now) if position_now is None and repairable[index]}
    claimed = {positions[digest][0] for digest in (planned[index] for index in landmarks) if digest}
    for before, after, shift in _gaps(landmarks, positions_now, n=len(planned), m=len(present)):
        between = range(before + 1, after)
        if all(
            index + shift not in claimed if index in missing else present[index + shift] == planned[index]
            for index in between
        ):
            for index in missing.intersection(between):
                positions_now[index] = index + shift
    return positions_now


def _gaps(landmarks: list[int], positions_now: list[int | None], *, n: int, m: int) -> list[tuple[int, int, int]]:
    """Pairs of successive landmarks that moved by the same number of positions, with that number."""
    ends = [(-1, -1), *((index, positions_now[index]) for index in landmarks), (n, m)]
    return [
        (before, after, to - before)
        for (before, to), (after, until) in pairwise(ends)
        if to is not None and until is not None and to - before == until - after
    ]
