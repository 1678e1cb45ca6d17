"""Tests many kinds of bad inputs in one job: each image is explained or quarantined with a reason; no row shifts."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.store.arrays import open_array
from jobs.store.index import QUARANTINED
from jobs.store.store_access import open_run
from tests.conftest import CLASSES, flags, run_inline
from tests.support.input_files import write_tar

RNG = np.random.default_rng(5)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, shape, np.uint8)


def bomb() -> bytes:
    """A PNG whose header claims 40,000 × 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def odd_images() -> dict[str, tuple[bytes, str | None]]:
    """Name → bytes, and a word of the reason if the image is quarantined (None if it is explained)."""
    photo = Image.fromarray(noise(40, 30, 3))
    jpeg = encode(photo, "JPEG")
    palette = photo.quantize(16)
    exif = Image.Exif()
    exif[274] = 6
    frames = [Image.fromarray(noise(20, 20, 3)) for _ in range(3)]
    return {
        "empty.jpg": (b"", "empty"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "text.jpg": (b"Dear sir or madam,", "not an image"),
        "bomb.png": (bomb(), "40000×40000"),
        "cmyk.jpg": (encode(photo.convert("CMYK"), "JPEG"), None),
        "deep.png": (encode(Image.fromarray(RNG.integers(0, 65536, (20, 20)).astype(np.uint16)), "PNG"), None),
        "palette.png": (encode(palette, "PNG", transparency=3), None),
        "moving.gif": (encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), None),
        "dot.png": (encode(Image.fromarray(noise(1, 1, 3)), "PNG"), None),
        "turned.jpg": (encode(photo, "JPEG", exif=exif), None),
        "größe – 大きさ.png": (encode(photo, "PNG"), None),
        "plain.png": (encode(photo, "PNG"), None),
    }


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    odd = odd_images()
    (root / "folder").mkdir()
    for name, (data, _) in odd.items():
        (root / "folder" / name).write_bytes(data)
    (root / "tars").mkdir()
    members = [(name, data) for name, (data, _) in odd.items()]
    write_tar(root / "tars/a.tar", [*members, ("notes.txt", b"hello"), ("dot.cls", b"4"), ("plain.cls", b"99")])
    good = [(f"{i}.png", encode(Image.fromarray(noise(16, 16, 3)), "PNG")) for i in range(4)]
    whole = write_tar(root / "tars/torn.tar", good).read_bytes()
    (root / "tars/torn.tar").write_bytes(whole[:2600])
    broken = bytearray(write_tar(root / "tars/hole.tar", good).read_bytes())
    for offset in range(0, len(broken), 512):
        if broken[offset : offset + 5] == b"1.png":
            broken[offset + 148 : offset + 156] = b"notanum\0"
    (root / "tars/hole.tar").write_bytes(bytes(broken))
    write_tar(root / "tars/twice.tar", [good[0], good[1], good[0]])
    table = pa.table({"image": [good[0][1], None, good[1][1], b""], "label": [0, 1, 77, None]})
    pq.write_table(table, root / "rows.parquet")
    return root


def test_each_is_explained_or_quarantined_with_a_reason(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    code, output = run_inline(
        images=(str(zoo / "folder"), str(zoo / "tars/*.tar"), str(zoo / "rows.parquet")), out=str(tmp_path / "s"),
        targets=("predicted", "label"), class_names=str(tmp_path / "names.txt"), unit_size=8, batch_size=4,
    )  # fmt: skip
    assert code == 3, output
    index = pq.read_table(tmp_path / "s/index.parquet").to_pylist()
    assert [line["row"] for line in index] == list(range(len(index)))
    assert len({line["sample_id"] for line in index}) == len(index)
    lines = {line["sample_id"]: line for line in index}
    for prefix in ("0/", "1/a.tar/"):
        for name, (_, reason) in odd_images().items():
            line = lines[prefix + name]
            if reason is None:
                assert line["predicted__status"] == "ok", (name, line["error"])
            else:
                assert line["status"] == QUARANTINED and reason in line["error"], (name, line["error"])
    assert lines["1/a.tar/dot.png"]["label"] == 4 and lines["1/a.tar/dot.png"]["status"] == "ok"
    assert "99" in lines["1/a.tar/plain.png"]["label__status"]
    assert lines["0/turned.jpg"]["width"] == 40 and lines["0/turned.jpg"]["height"] == 30
    torn = [line for name, line in lines.items() if name.startswith("1/torn.tar")]
    assert [line["status"] for line in torn].count(QUARANTINED) == 1 and len(torn) >= 2
    hole = [line for name, line in lines.items() if name.startswith("1/hole.tar")]
    assert any("@" in line["sample_id"] and line["status"] == QUARANTINED for line in hole)
    assert lines["1/hole.tar/3.png"]["predicted__status"] == "ok"
    assert lines["1/twice.tar/0.png"]["sha256"] == lines["1/twice.tar/0.png~2"]["sha256"]
    assert [lines[f"2/rows.parquet#{i}"]["status"] for i in range(4)] == ["ok", QUARANTINED, "partial", QUARANTINED]
    assert "ignored" in output

    # The same bytes give the same map at any position and with any other file, so no row has shifted.
    maps = open_array(open_run(str(tmp_path / "s"))[0], "predicted/gradient")[:]
    for name, (_, reason) in odd_images().items():
        first, second = maps[lines[f"0/{name}"]["row"]], maps[lines[f"1/a.tar/{name}"]["row"]]
        np.testing.assert_array_equal(first, second)
        assert np.isnan(first).all() == (reason is not None)


def test_a_broken_image_does_not_change_the_maps_of_other_images(zoo: Path, tmp_path: Path) -> None:
    """Without the broken files, the maps of the other images are bitwise equal, at other rows."""
    sound = tmp_path / "sound"
    sound.mkdir()
    for name, (_, reason) in odd_images().items():
        if reason is None:
            (sound / name).write_bytes((zoo / "folder" / name).read_bytes())
    run_inline(images=str(zoo / "folder"), out=str(tmp_path / "a"), batch_size=4)
    run_inline(images=str(sound), out=str(tmp_path / "b"), batch_size=4)
    maps_by_run = []
    for out in ("a", "b"):
        rows = {line["sample_id"]: line["row"] for line in pq.read_table(tmp_path / out / "index.parquet").to_pylist()}
        maps = open_array(open_run(str(tmp_path / out))[0], "predicted/gradient")[:]
        maps_by_run.append({name: maps[rows[name]] for name, (_, reason) in odd_images().items() if reason is None})
    for name, values in maps_by_run[0].items():
        np.testing.assert_array_equal(values, maps_by_run[1][name])


@pytest.mark.parametrize("what", ["nothing", "only text", "only broken"])
def test_inputs_without_a_sound_image(what: str, tmp_path: Path, saliency) -> None:
    images = tmp_path / "images"
    images.mkdir()
    if what == "only text":
        (images / "readme.txt").write_text("no images here")
    if what == "only broken":
        (images / "broken.png").write_bytes(b"broken")
    output = saliency("explain", *flags(images=images, out=tmp_path / "s"))
    if what == "only broken":
        assert output.returncode == 3 and "1 quarantined" in output.stdout
    else:
        assert output.returncode == 2 and "refused" in output.stderr and "images" in output.stderr, output.stderr
        assert not (tmp_path / "s").exists()
