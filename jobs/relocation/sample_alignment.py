"""Find samples again by content, in a file in which a sample's name is only its position."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise


def align(
    known: Sequence[str | None], present: Sequence[str | None], *, repairable: Sequence[bool]
) -> list[int | None]:
    """Where each old sample is now.

    A sample whose hash is present is there, wherever that is. A sample whose hash is not known, or not present
    though it is ``repairable``, is placed only if the samples around it prove its position: the nearest samples
    before and after it whose content occurs once (else the ends of the file) moved by the same number of positions,
    every other known sample in between is where that puts it, and none came in from elsewhere. All else has no place.

    Args:
        known: The hash that each of the n old samples had; None if its bytes were never read.
        present: The hash at each of the m positions now; None if its bytes cannot be read.
        repairable: For each old sample, whether other bytes may stand in its place: it was never explained.

    Returns:
        For each of the n old samples a position below m, or None.
    """
    positions: defaultdict[str, list[int]] = defaultdict(list)
    for position, digest in enumerate(present):
        if digest is not None:
            positions[digest].append(position)
    times: Counter[str] = Counter()
    places: list[int | None] = [None] * len(known)
    for index, digest in enumerate(known):
        if digest is not None and digest in positions:
            stays = index < len(present) and present[index] == digest
            among = positions[digest]
            places[index] = index if stays else among[min(times[digest], len(among) - 1)]
        if digest is not None:
            times[digest] += 1
    # Equal images are the same image to us, but no landmark: which of them moved where cannot be seen.
    landmarks = [
        index for index, digest in enumerate(known) if digest and times[digest] == 1 and len(positions[digest]) == 1
    ]
    missing = {index for index, place in enumerate(places) if place is None and repairable[index]}
    taken = {positions[digest][0] for digest in (known[index] for index in landmarks) if digest}
    for before, after, shift in _gaps(landmarks, places, n=len(known), m=len(present)):
        between = range(before + 1, after)
        if all(
            index + shift not in taken if index in missing else present[index + shift] == known[index]
            for index in between
        ):
            for index in missing.intersection(between):
                places[index] = index + shift
    return places


def _gaps(landmarks: list[int], places: list[int | None], *, n: int, m: int) -> list[tuple[int, int, int]]:
    """Pairs of successive landmarks that moved by the same number of positions, and that number."""
    ends = [(-1, -1), *((index, places[index]) for index in landmarks), (n, m)]
    return [
        (before, after, to - before)
        for (before, to), (after, until) in pairwise(ends)
        if to is not None and until is not None and to - before == until - after
    ]
