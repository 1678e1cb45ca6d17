"""Listing: which images an input holds, in which order, with which names and labels; what is refused."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.globs import expand
from jobs.lookahead import map_ahead
from jobs.objects import is_remote, key_below, local_path, read, stat, uri_of, walk
from jobs.sources import Entry, Source, SourceError, list_entries, open_sources
from jobs.stores import open_output
from tests import s3
from tests.helpers import Members, picture, write, write_tar

PNG = picture()


def listed(*paths: Path | str, **columns: str) -> list[Entry]:
    return list(list_entries(open_sources([str(path) for path in paths], **columns)))


def ids(*paths: Path | str, **columns: str) -> list[str]:
    return [entry.sample_id for entry in listed(*paths, **columns)]


def labels(*paths: Path | str, **columns: str) -> list[int | str | None]:
    return [entry.label for entry in listed(*paths, **columns)]


def one(path: Path | str) -> Source:
    return open_sources([str(path)])[0]


# -- folders -------------------------------------------------------------------------------------------------


def test_a_folders_order_is_the_byte_order_of_the_keys_however_it_was_filled(tmp_path: Path) -> None:
    keys = ["a/z.png", "a!.png", "a.png", "a/b/c.png", "a0.png", "B.png", "é.png", "z.png", "a-b/x.png"]
    random.Random(0).shuffle(keys)
    for key in keys:
        write(tmp_path / "one" / key, PNG)
    for key in reversed(keys):
        write(tmp_path / "two" / key, PNG)
    assert ids(tmp_path / "one") == sorted(keys, key=str.encode)
    assert ids(tmp_path / "two") == ids(tmp_path / "one")


def test_an_image_folder_labels_by_first_directory(tmp_path: Path) -> None:
    for key in ("dog/1.png", "dog/more/2.JPG", "cat/3.webp"):
        write(tmp_path / key, PNG)
    write(tmp_path / "labels.csv", b"a,b\n")
    source = one(tmp_path)
    assert [(entry.sample_id, entry.label) for entry in source.entries()] == [
        ("cat/3.webp", "cat"),
        ("dog/1.png", "dog"),
        ("dog/more/2.JPG", "dog"),
    ]
    assert source.kind == "folder"
    assert source.class_names() == ["cat", "dog"]
    assert source.ignored == Counter({".csv": 1})


def test_images_directly_in_the_root_mean_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "dog/1.png", PNG)
    write(tmp_path / "2.png", PNG)
    assert one(tmp_path).class_names() is None
    assert labels(tmp_path) == [None, None]


def test_what_is_no_image_is_counted_also_when_listed_twice(tmp_path: Path) -> None:
    for key in ("x.png", ".DS_Store", "._x.png", ".ipynb_checkpoints/x.png", "notes.TXT", "Makefile"):
        write(tmp_path / key, PNG)
    source = one(tmp_path)
    for _ in range(2):
        assert [entry.sample_id for entry in source.entries()] == ["x.png"]
        assert source.ignored == Counter({"(hidden)": 3, ".txt": 1, "(none)": 1})
    assert source.class_names() is None  # the hidden directory is no class


ODD = ["a#1", "b%20c", "d e", "new\nline", "q?x", "[z]", "ü", "a\\b", "~t", "'", "x:y", "ab\t"]


@pytest.mark.parametrize("stem", ODD)
def test_odd_names_are_listed_and_read(tmp_path: Path, stem: str) -> None:
    name = f"{stem}.png"
    write(tmp_path / name, PNG)
    for path in (tmp_path, tmp_path / name):
        (entry,) = listed(path)
        assert entry.sample_id == name
        assert read(entry.uri) == PNG


def test_names_that_are_not_utf8_survive_a_string_column(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff 1%.png"))
    write(path, PNG)
    (entry,) = listed(tmp_path)
    assert entry.sample_id == r"\xff 1%.png"
    assert entry.uri.startswith("file:///")
    assert local_path(pa.array([entry.uri])[0].as_py()) == path
    assert read(entry.uri) == PNG
    assert stat(entry.uri).size == entry.size


def test_links_are_followed_but_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "data/a/1.png", PNG)
    write(tmp_path / "other/2.png", PNG)
    (tmp_path / "data/b").symlink_to(tmp_path / "other")
    (tmp_path / "data/a/3.png").symlink_to(tmp_path / "other/2.png")
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/a/up2").symlink_to(tmp_path / "data")
    (tmp_path / "data/self").symlink_to(tmp_path / "data/self")
    assert ids(tmp_path / "data") == ["a/1.png", "a/3.png", "b/2.png"]
    assert [info.uri for info in expand(f"{tmp_path}/data/**/2.png")] == [f"{tmp_path}/data/b/2.png"]


def test_a_dangling_link_keeps_its_place(tmp_path: Path) -> None:
    write(tmp_path / "a.png", PNG)
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
    first, second = listed(tmp_path)
    assert (first.sample_id, second.sample_id) == ("a.png", "b.png")
    assert first.etag is not None and second.etag is None


def test_relative_paths_and_file_uris_mean_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d/a/1.png", PNG)
    monkeypatch.chdir(tmp_path)
    wanted = listed(tmp_path / "d")
    assert listed("d") == listed("d/") == listed("./d") == listed(f"file://{tmp_path}/d") == wanted
    assert wanted[0].uri == f"{tmp_path}/d/a/1.png"


def test_entries_are_lazy(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.png", PNG)
    entries = list_entries(open_sources([str(tmp_path)]))
    assert next(entries).sample_id == "a.png"
    (tmp_path / "c.png").unlink()
    assert next(entries).sample_id == "b.png"


# -- globs and several sources -------------------------------------------------------------------------------


def test_globs(tmp_path: Path) -> None:
    for key in ("a/1.png", "a/2.jpg", "b/c/3.png", "4.png", ".hidden/5.png"):
        write(tmp_path / key, PNG)
    assert ids(f"{tmp_path}/*.png") == ["4.png"]
    assert ids(f"{tmp_path}/*/*.png") == ["a/1.png"]
    assert ids(f"{tmp_path}/**/*.png") == ["4.png", "a/1.png", "b/c/3.png"]
    assert ids(f"{tmp_path}/**") == ["4.png", "a/1.png", "a/2.jpg", "b/c/3.png"]
    assert ids(f"{tmp_path}/a/[12].*") == ["1.png", "2.jpg"]
    assert labels(f"{tmp_path}/[ab]/**/*.png") == ["a", "b"]
    with pytest.raises(SourceError, match="matches no file"):
        listed(f"{tmp_path}/*.gif")


def test_a_path_that_looks_like_a_glob_but_exists_is_itself(tmp_path: Path) -> None:
    write(tmp_path / "run[1]/x.png", PNG)
    assert ids(tmp_path / "run[1]") == ids(tmp_path / "run[1]/x.png") == ["x.png"]


def test_several_sources_have_distinct_ids(tmp_path: Path) -> None:
    write(tmp_path / "a/x.png", PNG)
    write_tar(tmp_path / "b.tar", [("x.png", PNG)])
    assert ids(tmp_path / "a", tmp_path / "b.tar", tmp_path / "a") == ["0/x.png", "1/b.tar/x.png", "2/x.png"]


# -- refusals ------------------------------------------------------------------------------------------------


def test_mixed_kinds_are_refused_with_counts(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.png", PNG)])
    write(tmp_path / "b.png", PNG)
    write(tmp_path / "d/c.png", PNG)
    with pytest.raises(SourceError, match=r"2 image, 1 tar.*glob"):
        one(tmp_path)
    assert ids(f"{tmp_path}/*.tar") == ["a.tar/x.png"]
    assert ids(f"{tmp_path}/**/*.png") == ["b.png", "d/c.png"]


@pytest.mark.parametrize("name", ["x.tar.gz", "x.TGZ", "x.tar.zst"])
def test_compressed_tars_are_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"\x1f\x8b...")
    for place in (path, tmp_path):
        with pytest.raises(SourceError, match="decompress"):
            one(place)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.txt", b"hi", "holds no images"),
        ("x.csv", b"a,b\n1,2\n", "name the file itself"),
        (".hidden.png", PNG, "holds no images"),
    ],
)
def test_folders_without_images_are_refused(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    write(tmp_path / name, data)
    with pytest.raises(SourceError, match=says):
        one(tmp_path)


def test_missing_empty_and_foreign_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere matches no file"):
        one(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="holds no images"):
        one(tmp_path)
    with pytest.raises(SourceError, match="no images given"):
        open_sources([])
    with pytest.raises(SourceError, match="scheme"):
        one("https://example.org/x.png")


def test_a_source_without_an_image_is_refused_after_listing(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.txt", b"1")])
    with pytest.raises(SourceError, match=r"a\.tar|holds no images.*1 \.txt"):
        listed(tmp_path / "a.tar")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_directories_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a/x.png", PNG)
    (tmp_path / "a").chmod(0)
    with pytest.raises(SourceError, match="cannot be read"):
        one(tmp_path)
    (tmp_path / "a").chmod(0o700)


# -- tars ----------------------------------------------------------------------------------------------------


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


def test_a_name_that_comes_twice_is_two_rows_with_their_own_labels(tmp_path: Path) -> None:
    members = [("a.png", picture(1)), ("a.cls", b"1"), ("a.png", picture(2)), ("a.cls", b"2")]
    members += [("a.png", picture(3))]
    tar = write_tar(tmp_path / "x.tar", members)
    assert [(entry.sample_id, entry.label) for entry in listed(tar)] == [
        ("x.tar/a.png", 1),
        ("x.tar/a.png~2", 2),
        ("x.tar/a.png~3", None),
    ]


def test_members_that_are_no_files_are_counted(tmp_path: Path) -> None:
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
    wanted = [f"{i:03}.tar/{name}.png" for i in range(40) for name in "ab"]
    sources = open_sources([str(tmp_path / "train")], threads=3)
    assert [entry.sample_id for entry in list_entries(sources)] == wanted
    assert sources[0].ignored == Counter({".json": 1})
    assert ids(f"{tmp_path}/train/*.tar") == wanted
    assert ids(f"{tmp_path}/*/*.tar") == [f"train/{key}" for key in wanted]


FOUR: Members = [(f"{name}.png", picture(i)) for i, name in enumerate("abcd")]


def offsets(tar: Path) -> dict[str, tuple[int, int]]:
    """Name → where the header and the data begin."""
    with tarfile.open(tar) as opened:
        return {member.name: (member.offset, member.offset_data) for member in opened}


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize("garbage", [b"\xa5" * 512, bytes(512), b"\xa5" * 40], ids=["noise", "zeros", "some"])
def test_a_broken_header_in_the_middle_loses_one_image(tmp_path: Path, garbage: bytes) -> None:
    tar = write_tar(tmp_path / "x.tar", FOUR, form=tarfile.GNU_FORMAT)
    where, after = offsets(tar)["b.png"][0], offsets(tar)["c.png"][0]
    overwrite(tar, where, garbage)
    entries = listed(tar)
    assert [e.sample_id for e in entries] == ["x.tar/a.png", f"x.tar/@{where}", "x.tar/c.png", "x.tar/d.png"]
    assert entries[1].error is not None and f"bytes {where} to {after}" in entries[1].error
    assert [entry.error for entry in entries if entry.member] == [None] * 3
    kept = [read(entry.uri, entry.offset or 0, entry.length) for entry in entries if entry.member]
    assert kept == [data for name, data in FOUR if name != "b.png"]


@pytest.mark.parametrize("garbage", [b"\xa5" * 512, bytes(512)], ids=["noise", "zeros"])
def test_the_first_or_last_header_broken(tmp_path: Path, garbage: bytes) -> None:
    tar = write_tar(tmp_path / "x.tar", FOUR)
    last = offsets(tar)["d.png"][0]
    overwrite(tar, 0, garbage)
    overwrite(tar, last, garbage)
    assert ids(tar) == ["x.tar/@0", "x.tar/b.png", "x.tar/c.png", f"x.tar/@{last}"]


def test_a_broken_long_name_loses_its_name_but_is_told(tmp_path: Path) -> None:
    long = "n" * 200 + ".png"
    tar = write_tar(tmp_path / "x.tar", [FOUR[0], (long, PNG), FOUR[2]], form=tarfile.PAX_FORMAT)
    where = offsets(tar)[long][0]
    overwrite(tar, where, b"\xa5" * 512)
    entries = listed(tar)
    assert entries[0].sample_id == "x.tar/a.png" and entries[-1].sample_id == "x.tar/c.png"
    assert f"x.tar/@{where}" in [entry.sample_id for entry in entries if entry.error]


def test_a_negative_size_does_not_go_round_for_ever(tmp_path: Path) -> None:
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
    tar.write_bytes(whole[: data + 20])  # inside the data
    entries = listed(tar)
    assert [entry.sample_id for entry in entries] == ["x.tar/a.png", "x.tar/b.png", "x.tar/c.png"]
    assert [entry.error is None for entry in entries] == [True, True, False]
    assert entries[2].error is not None and "cut off inside c.png" in entries[2].error
    tar.write_bytes(whole[: header + 100])  # inside the header
    assert ids(tar) == ["x.tar/a.png", "x.tar/b.png", f"x.tar/@{header}"]


def test_a_tar_cut_off_in_what_is_no_image_is_told_too(tmp_path: Path) -> None:
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


def test_tars_put_one_after_the_other_are_both_read(tmp_path: Path) -> None:
    first, second = (write_tar(tmp_path / f"{i}.tar", FOUR[2 * i : 2 * i + 2]).read_bytes() for i in range(2))
    both = write(tmp_path / "both/x.tar", first + second)
    assert ids(both) == [f"x.tar/{name}.png" for name in "abcd"]


def test_padding_after_the_end_mark_is_no_loss(tmp_path: Path) -> None:
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
def test_a_file_that_is_no_tar_is_one_entry_with_an_error(tmp_path: Path, data: bytes, says: str) -> None:
    write(tmp_path / "x.tar", data)
    write_tar(tmp_path / "y.tar", FOUR[:1])
    broken, good = listed(tmp_path)
    assert (broken.sample_id, good.sample_id) == ("x.tar/@0", "y.tar/a.png")
    assert broken.error is not None and says in broken.error
    assert broken.size == len(data)


# -- Parquet with images -------------------------------------------------------------------------------------


def write_parquet(path: Path, columns: dict[str, object], **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet_with_bytes(tmp_path: Path) -> None:
    columns = {"image": [PNG, None, PNG], "label": [3, 4, None]}
    path = write_parquet(tmp_path / "p.parquet", columns, row_group_size=2)
    entries = listed(path)
    assert [(e.sample_id, e.row_group, e.row_in_group, e.label) for e in entries] == [
        ("p.parquet#0", 0, 0, 3),
        ("p.parquet#1", 0, 1, 4),
        ("p.parquet#2", 1, 0, None),
    ]
    assert {e.member for e in entries} == {"image"}


def test_parquet_with_the_struct_of_hugging_face(tmp_path: Path) -> None:
    rows = [{"bytes": PNG, "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    for name in ("b", "a"):
        write_parquet(tmp_path / f"d/{name}.parquet", {"img": rows, "fine": ["x", "y"], "label": [1.0, None]})
    assert [(e.sample_id, e.member, e.label) for e in listed(tmp_path, label_column="fine")] == [
        (f"d/{name}.parquet#{row}", "img.bytes", "xy"[row]) for name in "ab" for row in range(2)
    ]
    assert labels(tmp_path) == [1, None, 1, None]


def test_parquet_columns_must_be_clear(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"left": [PNG], "right": [PNG], "n": [1]})
    with pytest.raises(SourceError, match=r"left, right.*image_column"):
        listed(path)
    assert listed(path, image_column="right")[0].member == "right"
    with pytest.raises(SourceError, match=r"no column 'up'.*left, right, n"):
        listed(path, image_column="up")
    with pytest.raises(SourceError, match="hold bytes"):
        listed(path, image_column="n")
    with pytest.raises(SourceError, match=r"label_column.*binary"):
        listed(path, image_column="left", label_column="right")
    with pytest.raises(SourceError, match="neither"):
        listed(write_parquet(tmp_path / "q.parquet", {"n": [1]}))


def test_labels_as_dictionary(tmp_path: Path) -> None:
    column = pa.array(["dog", "cat", None]).dictionary_encode()
    path = write_parquet(tmp_path / "p.parquet", {"image": [PNG] * 3, "label": column})
    assert labels(path) == ["dog", "cat", None]


@pytest.mark.parametrize("damage", ["empty", "noise", "footer", "cut"])
def test_an_unreadable_parquet_file_is_one_entry_with_an_error(tmp_path: Path, damage: str) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [PNG]})
    whole = write_parquet(tmp_path / "b.parquet", {"image": [PNG]}).read_bytes()
    footer = whole[:-60] + b"\xa5" * 52 + whole[-8:]
    data = {"empty": b"", "noise": b"hello" * 99, "footer": footer, "cut": whole[:-20]}[damage]
    write(tmp_path / "0.parquet", data)
    broken, *good = listed(tmp_path)
    assert broken.sample_id == "0.parquet#@0"
    assert broken.error is not None and "cannot be read" in broken.error
    assert [entry.sample_id for entry in good] == ["a.parquet#0", "b.parquet#0"]


# -- lists ---------------------------------------------------------------------------------------------------


def test_a_csv_list_is_relative_to_itself(tmp_path: Path) -> None:
    for key in ("a.png", "sub/b c#%20.png", "ü.png"):
        write(tmp_path / "data" / key, PNG)
    encoded = write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/data/\xff.png")), PNG)
    lines = ["Path,n,label", "a.png,1,3", '"sub/b c#%20.png",2,cat', "ü.png,3,", "../data/a.png,4,-1"]
    lines += [f"{tmp_path}/data/a.png,5,4", f"{uri_of(encoded)},6,5", "s3://bucket/x.png,7,6"]
    path = write(tmp_path / "data/list.csv", "\ufeff".encode() + "\r\n".join(lines).encode())
    entries = listed(path)
    written = ["a.png", "sub/b c#%20.png", "ü.png", "../data/a.png"]
    written += [f"{tmp_path}/data/a.png", uri_of(encoded), "s3://bucket/x.png"]
    assert [entry.sample_id for entry in entries] == written
    assert [entry.label for entry in entries] == [3, "cat", None, -1, 4, 5, 6]
    assert [entry.error for entry in entries] == [None] * 7
    assert all(read(entry.uri) == PNG and entry.size == len(PNG) for entry in entries[:6])
    assert (entries[6].uri, entries[6].size, entries[6].etag) == ("s3://bucket/x.png", None, None)
    assert labels(path, label_column="n") == [1, 2, 3, 4, 5, 6, 7]


def test_a_lists_faults_keep_their_places(tmp_path: Path) -> None:
    write(tmp_path / "a.png", PNG)
    told = [  # as written, the sample's id, the error
        ("a.png", "a.png", None),
        ("", "list.csv#1", "no URI"),
        ("gone.png", "gone.png", "no such file"),
        ("a.png", "a.png~2", None),
        ("https://x.org/a.png", "https://x.org/a.png", "scheme"),
        (".", ".", "regular file"),
        ("a.png", "a.png~3", None),
        ("a\0b.png", "a\0b.png", "null"),
    ]
    lines = [f"{uri},{label}" for label, (uri, _, _) in enumerate(told)]
    entries = listed(write(tmp_path / "list.csv", "\n".join(["uri,label", *lines]).encode()))
    assert [entry.label for entry in entries] == list(range(8))
    for entry, (_, sample_id, error) in zip(entries, told, strict=True):
        assert entry.sample_id == sample_id
        assert (entry.error is None) if error is None else (error in str(entry.error))


def test_a_list_without_a_uri_column_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", PNG)
    path = write(tmp_path / "list.csv", b"where,what\na.png,1\n")
    with pytest.raises(SourceError, match=r"where, what.*uri_column"):
        listed(path)
    assert ids(path, uri_column="where") == ["a.png"]
    assert labels(path, uri_column="where", label_column="what") == [1]


def test_a_long_list_keeps_its_order(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(1500)]
    entries = listed(write(tmp_path / "list.csv", ("uri\n" + "\n".join(names)).encode()))
    assert [entry.sample_id for entry in entries] == names
    assert all("no such file" in (entry.error or "") for entry in entries)


def test_a_parquet_list(tmp_path: Path) -> None:
    write(tmp_path / "a.png", PNG)
    path = write_parquet(tmp_path / "l.parquet", {"file": ["a.png", None, "b.png"], "cls": ["x", "y", None]})
    entries = listed(path)
    assert [entry.sample_id for entry in entries] == ["a.png", "l.parquet#1", "b.png"]
    assert [entry.label for entry in entries] == ["x", "y", None]
    assert [entry.error is None for entry in entries] == [True, False, False]
    thumbs = write_parquet(tmp_path / "m.parquet", {"file": ["a.png"], "thumb": [PNG]})
    assert ids(thumbs, uri_column="file") == ["a.png"]  # the user's word counts, whatever else is there


# -- the rest ------------------------------------------------------------------------------------------------


def test_map_ahead_keeps_order_looks_a_little_ahead_and_passes_errors_on() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i

    results = map_ahead(lambda i: i * i, numbers(), threads=4)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(taken) <= 3 + 8
    assert list(results) == [i * i for i in range(3, 1000)]
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda i: 1 // (i - 5), range(10), threads=2))


def test_uris() -> None:
    assert all(is_remote(uri) for uri in ("s3://b/k", "gs://b", "az://c/x"))
    assert not any(is_remote(uri) for uri in ("file:///x", "/x", "x", "s3/x"))
    assert key_below("s3://b/d", "s3://b/d/e/f#.png") == "e/f#.png"
    assert uri_of(Path("/a b#%.png")) == "/a b#%.png"


def test_open_output_makes_the_directory(tmp_path: Path) -> None:
    import obstore

    obstore.put(open_output(str(tmp_path / "new/out")), "a/b", b"1")
    assert (tmp_path / "new/out/a/b").read_bytes() == b"1"


# -- over the S3 protocol ------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3.server(monkeypatch) as uri:
        yield uri


def test_remote_sources_list_as_local_ones_do(tmp_path: Path, bucket: str) -> None:
    for key in ("dog/a#1.png", "dog/b%20 c.png", "cat!/ü.png", "cat/x/y.png", "cat/.hidden.png", "notes.txt"):
        write(tmp_path / "folder" / key, PNG)
    write_tar(tmp_path / "tars/1.tar", [*FOUR, ("a.cls", b"5")])
    write_tar(tmp_path / "tars/0.tar", FOUR)
    broken = write_tar(tmp_path / "tars/2.tar", FOUR)
    overwrite(broken, offsets(broken)["b.png"][0], b"\xa5" * 512)
    image = {"bytes": PNG, "path": None}
    write_parquet(tmp_path / "tables/p.parquet", {"image": [image] * 5, "label": range(5)})
    write(tmp_path / "lists/l.csv", b"uri,label\na.png,1\n../folder/dog/a#1.png,2\n")
    for kind in ("folder", "tars", "tables", "lists"):
        s3.upload(tmp_path / kind, f"deep/{kind}")
    for path in ("folder", "folder/*/*.png", "folder/**/*.png", "tars", "tars/1.tar", "tars/*.tar", "tables"):
        near, far = listed(tmp_path / path), listed(f"{bucket}/deep/{path}")
        assert [replace(entry, uri="", etag=None) for entry in far] == [
            replace(entry, uri="", etag=None) for entry in near
        ], path
        assert all(entry.etag == stat(entry.uri).etag for entry in far)
    assert one(f"{bucket}/deep/folder").class_names() == ["cat", "cat!", "dog"]
    first, second = listed(f"{bucket}/deep/lists/l.csv")
    assert (first.uri, second.uri) == (f"{bucket}/deep/lists/a.png", f"{bucket}/deep/folder/dog/a#1.png")
    assert read(second.uri) == read(second.uri, 0, 10_000) == PNG
    assert read(second.uri, 4, 5) == PNG[4:9]


def test_remote_failures_are_clear_and_keep_secrets(bucket: str) -> None:
    with pytest.raises(SourceError, match="matches no file"):
        one(f"{bucket}/nowhere")
    with pytest.raises(SourceError, match="NoSuchBucket") as refused:
        one("s3://no-such-bucket/x")
    assert "SECRET" not in str(refused.value)
    with pytest.raises(FileNotFoundError):
        stat(f"{bucket}/nowhere.png")
    s3.put("odd/a//b.png", PNG)
    with pytest.raises(SourceError, match="empty segment"):
        one(f"{bucket}/odd")


def test_a_prefix_is_a_directory_not_the_beginning_of_a_name(bucket: str) -> None:
    s3.put("d/a.png", PNG)
    s3.put("dx.png", PNG)
    assert ids(f"{bucket}/d") == ids(f"{bucket}/d/") == ["a.png"]
    assert ids(bucket) == ["d/a.png", "dx.png"]
    assert [info.uri for info in walk(f"{bucket}/d")] == [f"{bucket}/d/a.png"]


def test_repeats_are_told_apart_in_a_long_list(tmp_path: Path) -> None:
    """Longer than what is kept at once, and with a line that has the very name that a repeat would get."""
    names = [f"s3://bucket/{i}.jpg" for i in range(70_000)]
    listed = tmp_path / "list.csv"
    listed.write_text("uri\n" + "\n".join([*names, names[5], names[69_999], f"{names[5]}~2", names[5]]))
    found = [entry.sample_id for entry in list_entries(open_sources([str(listed)]))]
    assert found[:70_000] == names and len(set(found)) == len(found) == 70_004
    assert found[70_000:] == [f"{names[5]}~2", f"{names[69_999]}~2", f"{names[5]}~2~2", f"{names[5]}~3"]
