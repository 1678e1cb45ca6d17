"""Keys that an object store holds and obstore cannot ask for cost their own rows; the others are read."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3
from conftest import run_inline
from helpers import picture, write, write_tar

from jobs.objects import walk
from jobs.sources import list_entries, open_sources
from jobs.stopped import Unusable
from jobs.stores import list_keys, open_output

ODD = (
    "a//b.png",
    "a//c.png",
    "//d.png",
    "./e.png",
    "f/../g.png",
    "../h.png",
    "i\x01.png",
    "j\x7f.png",
    "k/\t.png",
    "l/./m.png",
)
SOUND = ("0.png", "a/0.png", "f/g.png", "m%2Fn.png", "o p+q.png", "r?s=1&t#u@v.png", "größe – 大きさ.png", "w\\x.png",
         "y*[z].png", "~.png", "%00.png", "a...png")  # fmt: skip


def put_all(*names: str) -> None:
    for i, name in enumerate(names):
        s3.put(f"p/{name}", picture(i))


@pytest.mark.parametrize("odd", ODD)
def test_one_odd_key_is_one_row(odd: str, bucket: str, tmp_path: Path) -> None:
    put_all("0.png", odd, "z.png")
    code, told = run_inline(images=f"{bucket}/p", out=str(tmp_path / "out"))
    assert code == 3, told
    index = {line["sample_id"]: line for line in pq.read_table(tmp_path / "out/index.parquet").to_pylist()}
    assert len(index) == 3 and index["0.png"]["status"] == index["z.png"]["status"] == "ok"
    ((name, line),) = [(name, line) for name, line in index.items() if line["status"] != "ok"]
    assert name == odd.lstrip("/") and line["uri"] == f"{bucket}/p/{odd}"
    assert f"{bucket}/p/{odd}" in line["error"] and "cannot be asked for: rename it" in line["error"]


def test_all_of_them_beside_sound_ones(bucket: str, tmp_path: Path) -> None:
    put_all(*ODD, *SOUND)
    code, told = run_inline(images=f"{bucket}/p", out=str(tmp_path / "out"))
    assert code == 3, told
    status = {line["uri"]: line["status"] for line in pq.read_table(tmp_path / "out/index.parquet").to_pylist()}
    assert status == {f"{bucket}/p/{name}": "ok" if name in SOUND else "quarantined" for name in (*ODD, *SOUND)}


def test_both_ways_of_listing_agree(bucket: str) -> None:
    put_all(*SOUND)
    s3.put("p/folder/", b"")
    s3.put("p.png", b"another")
    sound = list(walk(f"{bucket}/p"))
    s3.put("p/zz//odd.png", b"")
    again = {(one.uri, one.size, one.etag) for one in walk(f"{bucket}/p")}
    ((odd, _, _),) = again - {(one.uri, one.size, one.etag) for one in sound}
    assert odd == f"{bucket}/p/zz//odd.png" and len(again) == len(sound) + 1


def test_odd_shards_and_odd_lines_of_a_list_are_rows_too(bucket: str, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("x.png", picture(1))]).read_bytes()
    for name in ("t/a//odd.tar", "t/sound.tar"):
        s3.put(name, tar)
    odd, sound = sorted(list_entries(open_sources([f"{bucket}/t"])), key=lambda entry: entry.error is None)
    assert "rename it" in (odd.error or "") and sound.error is None
    s3.put("sound.png", picture(1))
    listed = write(tmp_path / "l.csv", f"uri\n{bucket}/a//b.png\n{bucket}/sound.png\n{bucket}/./c.png\n".encode())
    code, told = run_inline(images=str(listed), out=str(tmp_path / "out"))
    assert code == 3, told
    statuses = pq.read_table(tmp_path / "out/index.parquet")["status"].to_pylist()
    assert statuses == ["quarantined", "ok", "quarantined"]


@pytest.mark.parametrize("signed", [True, False])
def test_several_pages_are_listed(signed: bool, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a//b.png", *(f"{i}.png" for i in range(7)), "z//b.png"]
    put_all(*names)
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    if not signed:
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert [info.uri for info in walk(f"{bucket}/p")] == sorted(f"{bucket}/p/{name}" for name in names)


def test_a_store_of_ours_names_the_odd_key(bucket: str) -> None:
    put_all("0.png", "a//b.png")
    with pytest.raises(Unusable, match=r"a//b\.png.*rename it"):
        list(list_keys(open_output(f"{bucket}/p")))
