"""Tests how samples without names are found again: a letter is a content; ``.`` was never read; small letters may be
repaired."""

from __future__ import annotations

import pytest

from jobs.relocation.sample_alignment import align


@pytest.mark.parametrize(
    "planned, present, expected",
    [
        ("ABCD", "ABCD", "0123"),
        ("ABCD", "DCBA", "3210"),
        ("ABCD", "BCD", "-012"),
        ("ABCD", "NABCD", "1234"),
        ("ABCD", "WXYZ", "----"),
        ("", "XY", ""),
        ("AB", "", "--"),
        ("A.CD", "AXCD", "0123"),  # repaired at its place
        ("A.CD", "AACD", "0123"),  # repaired by a copy of another
        ("A.CD", "NAXCD", "1234"),  # behind an inserted sample
        ("A.CD", "AXNCD", "0-34"),  # ambiguous: the repaired or the inserted sample
        ("A.CD", "ACD", "0-12"),
        ("A.CD", "XCD", "--12"),
        (".BCD", "XBCD", "0123"),
        (".BCD", "BCD", "-012"),
        ("ABC.", "ABCX", "0123"),
        ("ABC.", "NABC", "123-"),
        ("ABC.", "XBCA", "312-"),  # another known sample is at that place
        ("A..D", "AXYD", "0123"),
        ("A..D", "AXD", "0--2"),
        ("...", "XYZ", "012"),  # no evidence against equal positions
        ("...", "XY", "---"),
        ("A.C", "X.Z", "---"),  # another file of the same length
        ("A.CD", "XABD", "1--3"),
        ("aBCD", "XBCD", "0123"),  # read but never explained
        ("aBCD", "BaCD", "1023"),
        ("D.D.D", "DXD", "0-2-2"),  # equal images are not landmarks
        ("D.DB", "XDDB", "1-23"),
        ("DD", "DD", "01"),
        ("DD", "D", "00"),
        ("A.B.C", "AYBXC", "01234"),  # two unknown samples exchanged: only labels could show it
    ],
)
def test_align_finds_the_present_positions_of_samples(planned: str, present: str, expected: str) -> None:
    positions = align(
        [None if digest == "." else digest for digest in planned],
        [None if digest == "." else digest for digest in present],
        repairable=[digest == "." or digest.islower() for digest in planned],
    )
    assert "".join("-" if position is None else str(position) for position in positions) == expected
