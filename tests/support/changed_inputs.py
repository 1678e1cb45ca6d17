"""Makes stores whose inputs change afterwards: images of known content, in every kind of container."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.store.store_reader import open_store
from tests.conftest import run_inline
from tests.support.input_files import write_parquet, write_tar

UNIT, ROWS, BROKEN = 4, 8, 2
MADE = {"unit_size": UNIT, "batch_size": UNIT, "methods": ("gradient",), "targets": ("predicted",)}


def picture(number: int) -> bytes:
    """Returns a BMP with a colour that depends on ``number``. All have the same number of bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 9 % 256, 255 - number * 7 % 256, number * 31 % 256)).save(buffer, "BMP")
    return buffer.getvalue()


@dataclass(frozen=True)
class Item:
    """A sample of the inputs; ``label`` is the number of the image that belongs to the name."""

    name: str
    data: bytes
    label: int


def items() -> list[Item]:
    """Returns eight samples, of which one is broken."""
    return [
        Item(f"{i}.bmp", b"no image" if i == BROKEN else picture(i), i) for i in range(ROWS)
    ]  # fmt: skip


def write(kind: str, root: Path, samples: Sequence[Item], *, group: int = 4) -> Path:
    """Writes the samples into a container of the given kind. Returns the path for ``--images``."""
    if root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True)
    data, labels = [sample.data for sample in samples], [sample.label for sample in samples]
    if kind == "parquet":
        return write_parquet(root / "a.parquet", {"image": data, "label": labels}, row_group_size=group)
    if kind == "struct":
        column = pa.array([{"bytes": each, "path": None} for each in data])
        return write_parquet(root / "a.parquet", {"image": column, "label": labels}, row_group_size=group)
    if kind in ("tar", "tar of one name"):
        names = [sample.name if kind == "tar" else "x.bmp" for sample in samples]
        members = [
            member
            for name, sample in zip(names, samples, strict=True)
            for member in ((name, sample.data), (f"{name[:-4]}.cls", str(sample.label).encode()))
        ]
        return write_tar(root / "a.tar", members)
    for sample in samples:
        (root / sample.name).write_bytes(sample.data)
    names = [sample.name for sample in samples]
    if kind == "csv":
        lines = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
        (root / "list.csv").write_text("\n".join(["uri,label", *lines]) + "\n")
        return root / "list.csv"
    if kind == "list":
        pq.write_table(pa.table({"uri": names, "label": labels}), root / "list.parquet")
        return root / "list.parquet"
    return root


@dataclass(frozen=True)
class Made:
    """A finished store, its inputs (``images``), a copy of the unchanged inputs (``before``), and the expected maps."""

    kind: str
    root: Path
    images: Path
    maps: dict[int, np.ndarray]

    def again(self, out: Path) -> Path:
        """Restores the unchanged inputs, and copies the store to ``out``."""
        shutil.rmtree(self.root / "images")
        shutil.copytree(self.root / "before", self.root / "images")
        return Path(shutil.copytree(self.root / "store", out))

    def change(self, edit: Callable[[list[Item]], list[Item]], **options: int) -> None:
        write(self.kind, self.root / "images", edit(items()), **options)

    def statuses(self, out: Path) -> str:
        """Returns ``o`` (ok) or ``q`` (quarantined) for each row.

        Asserts before that no row has the map, checksum or label of another image.
        """
        store = open_store(str(out))
        maps, statuses = store.maps("predicted/gradient", slice(None)), ""
        for line in store.lines().to_pylist():
            row = line["row"]
            statuses += line["status"][0]
            assert self.kind == "folder" or line["label"] == row
            if line["status"] == "ok":
                assert line["sha256"] == hashlib.sha256(picture(row)).hexdigest(), f"row {row} is of another image"
                np.testing.assert_array_equal(maps[row], self.maps[row], err_msg=f"row {row}")
            else:
                assert line["error"]
                assert np.isnan(maps[row]).all()
        return statuses


def make(kind: str, root: Path, *, broken: bool = True) -> Made:
    """Explains the eight samples, one of them broken if ``broken``. The expected maps are from eight valid images."""
    whole = [Item(f"{i}.bmp", picture(i), i) for i in range(ROWS)]
    reference = write("parquet", root / "reference", whole)
    assert run_inline(images=str(reference), out=str(root / "whole"), **MADE)[0] == 0
    maps = open_store(str(root / "whole")).maps("predicted/gradient", slice(None))
    images = write(kind, root / "images", items() if broken else whole)
    shutil.copytree(root / "images", root / "before")
    code, told = run_inline(images=str(images), out=str(root / "store"), **MADE)
    assert code == (3 if broken else 0), told
    return Made(kind, root, images, dict(enumerate(maps)))
