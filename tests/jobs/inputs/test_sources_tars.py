"""Tests listing of tars: labels and names of members, and the remaining members of damaged tars."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from jobs.inputs.sources import list_entries, open_sources
from jobs.storage.files import read
from tests.support.input_files import FOUR, offsets, overwrite, picture, write, write_tar
from tests.support.listed_inputs import PNG, ids, labels, listed, one


def test_labels_of_keys_that_are_not_adjacent(tmp_path: Path) -> None:
    members = [("a.cls", b"3"), ("b.PNG", PNG), ("d/c.jpg", PNG), ("a.png", PNG), ("b.cls", b" cat\n")]
    members += [("d/c.json", b'{"cls": 7, "other": 1}'), ("e.png", PNG), ("c.cls", b"9")]
    members += [("f.png", PNG), ("f.cls", b"")]
    tar = write_tar(tmp_path / "x.tar", members)
    assert [(entry.sample_id, entry.label) for entry in listed(tar)] == [
        ("x.tar/b.PNG", "cat"),
        ("x.tar/d/c.jpg", 7),
        ("x.tar/a.png", 3),
        ("x.tar/e.png", None),
        ("x.tar/f.png", None),
    ]
    assert listed(tar)[0].member == "b.PNG"
    assert labels(tar, label_column="other") == [None, 1, None, None, None]


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"label": 4, "cls": 5}, 4),
        ({"class": "dog"}, "dog"),
        ({"label": None}, None),
        ({"label": 2.0}, 2),
        ({"label": True}, None),
        ({"label": [1]}, None),
        ([1, 2], None),
        ("broken", None),
    ],
)
def test_json_labels(tmp_path: Path, values: object, label: int | str | None) -> None:
    text = b"{oh" if values == "broken" else json.dumps(values).encode()
    assert labels(write_tar(tmp_path / "x.tar", [("a.png", PNG), ("a.json", text)])) == [label]


def test_labels_that_are_too_large_or_no_text_are_none(tmp_path: Path) -> None:
    members = [("a.png", PNG), ("b.png", PNG), ("c.png", PNG)]
    members += [("a.cls", b"1" * (1 << 20 | 1)), ("b.cls", b"\xff\xfe"), ("c.json", b"[" * 100_000)]
    assert labels(write_tar(tmp_path / "x.tar", members)) == [None] * 3


def test_exact_extensions_win_over_compound_ones(tmp_path: Path) -> None:
    names = ["a.mask.png", "a.jpg", "b.left.png", "b.right.png", "c.txt"]
    members = [(name, PNG) for name in names]
    source = one(write_tar(tmp_path / "x.tar", members))
    assert [entry.member for entry in source.entries()] == ["a.jpg", "b.left.png", "b.right.png"]
    assert source.ignored == Counter({".mask.png": 1, ".txt": 1})


def test_two_members_of_one_name_are_two_rows_with_their_own_labels(tmp_path: Path) -> None:
    members = [("a.png", picture(1)), ("a.cls", b"1"), ("a.png", picture(2)), ("a.cls", b"2")]
    members += [("a.png", picture(3))]
    tar = write_tar(tmp_path / "x.tar", members)
    assert [(entry.sample_id, entry.label) for entry in listed(tar)] == [
        ("x.tar/a.png", 1),
        ("x.tar/a.png~2", 2),
        ("x.tar/a.png~3", None),
    ]


def test_members_that_are_not_files_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("x.png")
            info.type = kind
            tar.addfile(info)
        for name in ("./._a.png", "./a.png", "README"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            tar.addfile(info, io.BytesIO(PNG))
    source = one(tmp_path / "x.tar")
    assert [entry.sample_id for entry in source.entries()] == ["x.tar/./a.png"]
    assert source.ignored == Counter({"(link or device)": 2, "(hidden)": 1, "(none)": 1})


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_non_ascii_names(tmp_path: Path, form: int) -> None:
    names = ["d" * 90 + "/" + "é" * 90 + ".png", "short.png", "x" * 300 + "/y.png"]
    tar = write_tar(tmp_path / "x.tar", [(name, PNG) for name in names], form=form)
    assert [entry.member for entry in listed(tar)] == names


def test_member_names_that_are_not_utf8(tmp_path: Path) -> None:
    members = [("a\udcff.png", PNG), ("a\udcff.cls", b"5")]
    tar = write_tar(tmp_path / "x.tar", members, form=tarfile.GNU_FORMAT)
    (entry,) = listed(tar)
    assert (entry.sample_id, entry.member, entry.label) == (r"x.tar/a\xff.png", r"a\xff.png", 5)


def test_tars_in_folders_and_globs_keep_their_order(tmp_path: Path) -> None:
    for i in reversed(range(40)):
        write_tar(tmp_path / f"train/{i:03}.tar", [("a.png", PNG), ("b.png", PNG)])
    write(tmp_path / "train/index.json", b"{}")
    expected = [f"{i:03}.tar/{name}.png" for i in range(40) for name in "ab"]
    sources = open_sources([str(tmp_path / "train")], threads=3)
    assert [entry.sample_id for entry in list_entries(sources)] == expected
    assert sources[0].ignored == Counter({".json": 1})
    assert ids(f"{tmp_path}/train/*.tar") == expected
    assert ids(f"{tmp_path}/*/*.tar") == [f"train/{key}" for key in expected]


@pytest.mark.parametrize("garbage", [b"\xa5" * 512, bytes(512), b"\xa5" * 40], ids=["noise", "zeros", "some"])
def test_a_broken_header_in_the_middle_loses_one_image(tmp_path: Path, garbage: bytes) -> None:
    tar = write_tar(tmp_path / "x.tar", FOUR, form=tarfile.GNU_FORMAT)
    where, after = offsets(tar)["b.png"][0], offsets(tar)["c.png"][0]
    overwrite(tar, where, garbage)
    entries = listed(tar)
    assert [e.sample_id for e in entries] == ["x.tar/a.png", f"x.tar/@{where}", "x.tar/c.png", "x.tar/d.png"]
    assert entries[1].error is not None and f"bytes {where} to {after}" in entries[1].error
    assert [entry.error for entry in entries if entry.member] == [None] * 3
    contents = [read(entry.uri, entry.offset or 0, entry.length) for entry in entries if entry.member]
    assert contents == [data for name, data in FOUR if name != "b.png"]


@pytest.mark.parametrize("garbage", [b"\xa5" * 512, bytes(512)], ids=["noise", "zeros"])
def test_the_first_or_last_header_broken(tmp_path: Path, garbage: bytes) -> None:
    tar = write_tar(tmp_path / "x.tar", FOUR)
    last = offsets(tar)["d.png"][0]
    overwrite(tar, 0, garbage)
    overwrite(tar, last, garbage)
    assert ids(tar) == ["x.tar/@0", "x.tar/b.png", "x.tar/c.png", f"x.tar/@{last}"]


def test_a_broken_long_name_is_reported(tmp_path: Path) -> None:
    long = "n" * 200 + ".png"
    tar = write_tar(tmp_path / "x.tar", [FOUR[0], (long, PNG), FOUR[2]], form=tarfile.PAX_FORMAT)
    where = offsets(tar)[long][0]
    overwrite(tar, where, b"\xa5" * 512)
    entries = listed(tar)
    assert entries[0].sample_id == "x.tar/a.png" and entries[-1].sample_id == "x.tar/c.png"
    assert f"x.tar/@{where}" in [entry.sample_id for entry in entries if entry.error]


def test_a_negative_size_does_not_loop(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", FOUR, form=tarfile.GNU_FORMAT)
    where = offsets(tar)["b.png"][0]
    header = bytearray(tar.read_bytes()[where : where + 512])
    header[124:136] = b"\xff" * 10 + b"\xf0\x00"  # -4096 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    overwrite(tar, where, bytes(header))
    assert ids(tar) == ["x.tar/a.png", f"x.tar/@{where}", "x.tar/c.png", "x.tar/d.png"]


def test_a_truncated_tar(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", FOUR)
    header, data = offsets(tar)["c.png"]
    whole = tar.read_bytes()
    tar.write_bytes(whole[: data + 20])  # truncated inside the data
    entries = listed(tar)
    assert [entry.sample_id for entry in entries] == ["x.tar/a.png", "x.tar/b.png", "x.tar/c.png"]
    assert [entry.error is None for entry in entries] == [True, True, False]
    assert entries[2].error is not None and "cut off inside c.png" in entries[2].error
    tar.write_bytes(whole[: header + 100])  # truncated inside the header
    assert ids(tar) == ["x.tar/a.png", "x.tar/b.png", f"x.tar/@{header}"]


def test_a_tar_truncated_in_a_member_that_is_not_an_image_is_reported(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("a.png", PNG), ("a.txt", b"t" * 900), ("b.png", PNG)])
    header, data = offsets(tar)["a.txt"]
    tar.write_bytes(tar.read_bytes()[: data + 20])
    assert ids(tar) == ["x.tar/a.png", f"x.tar/@{header}"]


def test_a_tar_without_end_mark_is_whole_but_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar = write_tar(tmp_path / "x.tar", FOUR)
    end = offsets(tar)["d.png"][1] + 512
    tar.write_bytes(tar.read_bytes()[:end])
    assert [entry.error for entry in listed(tar)] == [None] * 4
    assert "end-of-archive" in caplog.text


def test_concatenated_tars_are_both_read(tmp_path: Path) -> None:
    first, second = (write_tar(tmp_path / f"{i}.tar", FOUR[2 * i : 2 * i + 2]).read_bytes() for i in range(2))
    both = write(tmp_path / "both/x.tar", first + second)
    assert ids(both) == [f"x.tar/{name}.png" for name in "abcd"]


def test_padding_after_the_end_mark_is_not_reported_as_a_loss(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", FOUR)
    tar.write_bytes(tar.read_bytes() + b"\xa5" * 5000)
    assert ids(tar) == [f"x.tar/{name}.png" for name in "abcd"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"\x1f\x8b\x08...", "gzip"),
        (b"\x28\xb5\x2f\xfd.", "zstd"),
        (PNG * 40, "damaged"),
        (b"hi", "damaged"),
    ],
)
def test_a_file_that_is_not_a_tar_is_one_entry_with_an_error(tmp_path: Path, data: bytes, says: str) -> None:
    write(tmp_path / "x.tar", data)
    write_tar(tmp_path / "y.tar", FOUR[:1])
    broken, good = listed(tmp_path)
    assert (broken.sample_id, good.sample_id) == ("x.tar/@0", "y.tar/a.png")
    assert broken.error is not None and says in broken.error
    assert broken.size == len(data)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_to_be_long_does_not_fill_the_memory(tmp_path: Path, kind: bytes) -> None:
    tar = write_tar(tmp_path / "x.tar", FOUR)
    claim = tarfile.TarInfo("long")
    claim.type, claim.size = kind, 200 << 20
    where = offsets(tar)["c.png"][0]
    tar.write_bytes(tar.read_bytes()[:where] + claim.tobuf(tarfile.GNU_FORMAT))
    with tar.open("r+b") as file:
        file.truncate(256 << 20)  # a sparse file of the claimed size
    tracemalloc.start()
    entries = listed(tar)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [entry.sample_id for entry in entries] == ["x.tar/a.png", "x.tar/b.png", f"x.tar/@{where}"]
    assert most < 32 << 20


def test_only_the_label_of_a_json_member_is_kept(tmp_path: Path) -> None:
    """JSON members often contain captions and embeddings, too."""
    beside = json.dumps({"class": 3, "embedding": [0.5] * 20_000}).encode()
    tar = write_tar(
        tmp_path / "x.tar", [member for i in range(50) for member in ((f"{i}.png", PNG), (f"{i}.json", beside))]
    )
    tracemalloc.start()
    entries = listed(tar)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [entry.label for entry in entries] == [3] * 50
    assert most < 4 << 20
