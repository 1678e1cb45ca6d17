"""Tests listing of folders and globs: images, order, names, labels, and invalid sources."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.inputs.entry import SourceError
from jobs.inputs.globs import expand_glob
from jobs.inputs.sources import list_entries, open_sources
from jobs.storage.files import read, stat
from jobs.storage.uris import local_path
from tests.support.input_files import write, write_tar
from tests.support.listed_inputs import PNG, ids, labels, listed, one

# -- folders -------------------------------------------------------------------------------------------------


def test_a_folder_is_listed_in_byte_order_of_its_keys(tmp_path: Path) -> None:
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


def test_files_that_are_not_images_are_counted_also_if_listed_twice(tmp_path: Path) -> None:
    for key in ("x.png", ".DS_Store", "._x.png", ".ipynb_checkpoints/x.png", "notes.TXT", "Makefile"):
        write(tmp_path / key, PNG)
    source = one(tmp_path)
    for _ in range(2):
        assert [entry.sample_id for entry in source.entries()] == ["x.png"]
        assert source.ignored == Counter({"(hidden)": 3, ".txt": 1, "(none)": 1})
    assert source.class_names() is None  # the hidden directory is not a class


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


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "data/a/1.png", PNG)
    write(tmp_path / "other/2.png", PNG)
    (tmp_path / "data/b").symlink_to(tmp_path / "other")
    (tmp_path / "data/a/3.png").symlink_to(tmp_path / "other/2.png")
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/a/up2").symlink_to(tmp_path / "data")
    (tmp_path / "data/self").symlink_to(tmp_path / "data/self")
    assert ids(tmp_path / "data") == ["a/1.png", "a/3.png", "b/2.png"]
    assert [info.uri for info in expand_glob(f"{tmp_path}/data/**/2.png")] == [f"{tmp_path}/data/b/2.png"]


def test_a_dangling_link_keeps_its_place(tmp_path: Path) -> None:
    write(tmp_path / "a.png", PNG)
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
    first, second = listed(tmp_path)
    assert (first.sample_id, second.sample_id) == ("a.png", "b.png")
    assert first.etag is not None and second.etag is None


def test_relative_paths_and_file_uris_mean_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d/a/1.png", PNG)
    monkeypatch.chdir(tmp_path)
    expected = listed(tmp_path / "d")
    assert listed("d") == listed("d/") == listed("./d") == listed(f"file://{tmp_path}/d") == expected
    assert expected[0].uri == f"{tmp_path}/d/a/1.png"


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


def test_an_existing_path_that_looks_like_a_glob_is_not_expanded(tmp_path: Path) -> None:
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
    with pytest.raises(SourceError, match=r"holds no images, only other files \(1 \.txt\)"):
        listed(tmp_path / "a.tar")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_directories_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a/x.png", PNG)
    (tmp_path / "a").chmod(0)
    with pytest.raises(SourceError, match="cannot be read"):
        one(tmp_path)
    (tmp_path / "a").chmod(0o700)
