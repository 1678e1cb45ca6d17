"""Makes damaged tars, Parquet files and lists, by seeded mutations that respect the format's structure."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.input_files import picture

EXTREMES = (0, 1, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**40, 2**63 - 1)
KINDS = ("tar", "parquet", "list.parquet", "csv")
Draw = np.random.Generator


def sound(kind: str, shade: int) -> bytes:
    """Returns a small valid file of the given kind: four images, or four URIs of images."""
    if kind == "csv":
        return b"uri,label,caption\n" + b"".join(b's3://b/%d-%d.png,%d,"a, b"\n' % (shade, i, i) for i in range(4))
    buffer = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w", format=(tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)[shade % 2]) as tar:
            for i in range(4):
                for name, data in ((f"{'long ' * 30 * (i == 2)}{i}.png", picture(shade)), (f"{i}.cls", b"%d" % i)):
                    info = tarfile.TarInfo(name)
                    info.size, info.mtime = len(data), 1.5
                    tar.addfile(info, io.BytesIO(data))
        return buffer.getvalue()
    images = {"image": [picture(shade + i) for i in range(4)]}
    places = {"uri": [f"s3://b/{shade}-{i}.png" for i in range(4)]}
    columns = (images if kind == "parquet" else places) | {"label": [["cat", "dog"][i % 2] for i in range(4)]}
    codec = ("snappy", "zstd", "gzip", "brotli", "none")[shade % 5]
    pq.write_table(pa.table(columns), buffer, row_group_size=2, compression=codec, use_dictionary=shade % 2 == 0)
    return buffer.getvalue()


def mutant(kind: str, draw: Draw) -> bytes:
    """Returns a valid file with one to three mutations."""
    data = bytearray(sound(kind, int(draw.integers(200))))
    own: dict[str, Callable[[Draw, bytearray], None]] = {"tar": _tar, "csv": _csv}
    for _ in range(draw.integers(1, 4)):
        if not data:
            break
        hit = own.get(kind, _parquet) if draw.random() < 0.7 else _anywhere
        hit(draw, data)
    return bytes(data)


def write_mutants(folder: Path, kind: str, draw: Draw, number: int) -> list[str]:
    """Writes ``number`` mutants and three valid files among them. Returns the names of the valid files."""
    folder.mkdir(parents=True)
    names = [f"{i:04}.{kind}" for i in range(number + 3)]
    good = [names[0], names[number // 2], names[-1]]
    for i, name in enumerate(names):
        (folder / name).write_bytes(sound(kind, i % 200) if name in good else mutant(kind, draw))
    return good


def _anywhere(draw: Draw, data: bytearray) -> None:
    at = int(draw.integers(len(data)))
    match draw.integers(4):
        case 0:
            data[at] ^= 1 << int(draw.integers(8))
        case 1:
            del data[at:]
        case 2:
            data[at : at + int(draw.integers(40))] = draw.bytes(int(draw.integers(40)))
        case _:
            start = int(draw.integers(len(data)))
            data[at:at] = data[start : start + int(draw.integers(1, 2000))]


def _tar(draw: Draw, data: bytearray) -> None:
    """Mutates a field of a header, or the records of a PAX header, and corrects the header's checksum."""
    headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return
    at = int(draw.choice(headers))
    value = int(draw.choice(EXTREMES))
    match draw.integers(6):
        case 0:  # size, in base 256
            data[at + 124 : at + 136] = bytes([draw.choice([0x80, 0xFF])]) + int(value).to_bytes(11, "big")
        case 1:  # size, in octal
            data[at + 124 : at + 136] = b"%011o\0" % min(value, 8**11 - 1)
        case 2:  # type
            data[at + 156] = int(draw.choice(list(b"0157xgXLKSDMNV\0\xff")))
        case 3:  # owner, time, prefix, the map of a sparse file
            start = int(draw.choice([108, 116, 136, 345, 386, 482]))
            data[at + start : at + start + 8] = draw.bytes(8)
        case 4:  # an extension header in front, one of many
            kind = [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK]
            info = tarfile.TarInfo("x")
            info.type = kind[draw.integers(4)]
            record = [b"20 size=99999999999\n", b"13 path=\xff\xfe\0\n", b"999999 size=1\n", b"0 =\n", draw.bytes(30)]
            payload = record[draw.integers(5)] * int(draw.integers(1, 20))
            info.size = len(payload)
            block = info.tobuf(tarfile.GNU_FORMAT)[:512] + payload + bytes(-len(payload) % 512)
            data[at:at] = block * int(draw.choice([1, 2, 20, 400]))
            return
        case _:  # a PAX record's length
            where = data.find(b" mtime=", at)
            if where > 2:
                data[where - 2 : where] = b"%02d" % draw.integers(100)
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def _parquet(draw: Draw, data: bytearray) -> None:
    """Mutates a number in the footer or in a page's header, or the length of the footer."""
    if len(data) < 20:
        return
    length = min(int.from_bytes(data[-8:-4], "little"), len(data) - 12)
    begin = len(data) - 8 - length
    match draw.integers(4):
        case 0:
            data[-8:-4] = int(draw.choice(EXTREMES) % 2**32).to_bytes(4, "little")
            return
        case 1:  # the header of the first page follows the magic
            at, end = 4, min(40, begin)
        case 2:
            at, end = 4, begin
        case _:
            at, end = begin, len(data) - 8
    if end <= at:
        return
    at = int(draw.integers(at, end))
    if draw.random() < 0.5:
        data[at] = int(draw.integers(256))
        return
    number, digits = int(draw.choice(EXTREMES)), bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    before = len(data)
    data[at : at + 1] = bytes([*digits, number])
    if at >= begin:  # the footer is longer now
        data[-8:-4] = (length + len(data) - before).to_bytes(4, "little")


def _csv(draw: Draw, data: bytearray) -> None:
    """Inserts quotation marks, line ends, bytes that are not UTF-8, or very long fields and rows."""
    pieces = [b'"', b'"' * 7, b"\r", b"\n", b"\0", b"\xff\xfe", b"," * 5000, b"x" * 200_000]
    pieces.append(b'"' + (b"y" * 500 + b"\n") * 300)
    pieces += [b"1" * 5000, b"\xef\xbb\xbf", b"s3://[", b"file://", b"../" * 2000, b"\xed\xa0\x80", b"nan", b"~2"]
    at = int(draw.integers(len(data)))
    data[at:at] = pieces[draw.integers(len(pieces))]
