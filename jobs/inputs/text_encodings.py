"""Recognises files that are not UTF-8 text, by their first bytes: another encoding, or an archive."""

from __future__ import annotations

SAMPLE_BYTES = 256
_BOMS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_ARCHIVES = (
    (b"\x1f\x8b", "compressed with gzip"),
    *((b"BZh%d1AY&SY" % level, "compressed with bzip2") for level in range(1, 10)),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet, such as .xlsx"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a spreadsheet, such as .xls"),
    (b"PAR1\x15", "Parquet"),
)
_WIDTHS = ((4, "UTF-32"), (2, "UTF-16"))


def describe_non_text(beginning: bytes) -> str | None:
    """Returns the predicate of an error message, with the remedy, or None if the file may be UTF-8.

    Args:
        beginning: The first ``SAMPLE_BYTES`` bytes of the file, or all of them.
    """
    for magic, name in _ARCHIVES:
        if beginning.startswith(magic):
            how = "name it .parquet" if name == "Parquet" else "unpack it, or export it, to a CSV file in UTF-8"
            return f"{name}, not text: {how}"
    encoding = next((name for bom, name in _BOMS if beginning.startswith(bom)), None) or _encoding_by_zeros(beginning)
    return encoding and f"{encoding}, not UTF-8: write it as UTF-8 (`iconv -f {encoding} -t UTF-8`, or save it so)"


def _encoding_by_zeros(beginning: bytes) -> str | None:
    """An encoding without a byte order mark, recognised by zeros in the same byte of each of the first letters."""
    for width, name in _WIDTHS:
        letters = [beginning[place : place + width] for place in range(0, min(len(beginning), 32), width)]
        for own, order in ((width - 1, "BE"), (0, "LE")):
            if len(letters) > 1 and all(_is_letter(each, own, width) for each in letters):
                return f"{name}{order}"
    return None


def _is_letter(code: bytes, own: int, width: int) -> bool:
    return len(code) == width and code[own] != 0 and not any(code[:own] + code[own + 1 :])
