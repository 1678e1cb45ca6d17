"""Makes stores whose classes and files have hostile names, reports of them, and reads the pages."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from jobs.audit.audit_command import audit
from jobs.audit.report.build_report import make_report
from jobs.html.components import Tile
from jobs.html.sprite_sheet import SpriteSheet
from jobs.util.exit_codes import IMPERFECT
from tests.conftest import run_inline
from tests.support.audited_stores import write_audit

ARRAY = "label/gradient"
SCRIPT = "<script>alert(1)</script>"
NAMES = (  # names of classes and of their folders, by class number
    "\"quotes' & &amp; {{ 7*7 }} <title>",
    "<img src=x onerror=alert(1)>",
    "line\nbreak\x07\x1b[31m",
    "x" * 200,
    "שלום\u202eevil\u2066",
)
LONG = 'a class of 500 "letters" <b> ' + "W" * 471
OVER = {0: LONG, 1: SCRIPT}  # class names that are invalid for folders; only the made-up audit uses them


def make_images(root: Path, *, per_class: int = 12) -> Path:
    """Writes images of noise into folders with hostile names; some files have such names, too, and one is broken."""
    rng = np.random.default_rng(0)
    for number, folder in enumerate(NAMES):
        for i in range(per_class):
            name = f"{i:02d}{'<b onclick=alert(1)> ' + chr(0x202E) if i == 3 else ''}.png"
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 200, (20 + number, 24, 3), np.uint8)
            pixels[-5:, -5:] = 255 * (i % 2)
            Image.fromarray(pixels).save(path)
    (root / "line\nbreak\x07\x1b[31m" / "99 <i>broken.png").write_bytes(b"no image")
    return root


def make_store(root: Path, out: Path) -> Path:
    code, printed = run_inline(
        images=str(root), out=str(out), unit_size=16, batch_size=4,
        methods=("gradient", "input_x_gradient(reduction=sum)"), targets=("predicted", "label"),
    )  # fmt: skip
    assert code == 3, printed
    return out


def make_test_report(out: Path | str, array: str = ARRAY, *, alarms: int = 3, **options: int) -> Path:
    """Makes up an audit with that many alarms and writes its report. Returns the report's folder."""
    write_audit(str(out), array, alarms=alarms, names=OVER)
    make_report(str(out), array, Console(file=io.StringIO()), **options)
    return Path(out) / "report"


def make_audit_and_report(store: Path, out: Path) -> Path:
    """Runs ``saliency audit`` on a copy of the store, ``out``. Returns the report's folder."""
    shutil.copytree(store, out, ignore=shutil.ignore_patterns("audit", "report"))
    console = Console(file=io.StringIO(), width=200)
    assert audit(str(out), console, array=ARRAY, runner="inline") == IMPERFECT  # one image is broken
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.replace("\n", "").isprintable(), "a hostile name reaches the terminal unescaped"
    return out / "report"


@dataclass
class Page(HTMLParser):
    """The tags and the text of a page."""

    path: Path
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def links(self) -> list[str]:
        """Returns all addresses that the page refers to."""
        return [
            value
            for _, attributes in self.tags
            for name, value in attributes.items()
            if name in ("href", "src", "srcset", "action", "data", "poster") and value != "data:,"
        ]


def pages(folder: Path) -> list[Page]:
    return [Page(path) for path in sorted(folder.rglob("*.html"))]


class Recorder(SpriteSheet):
    """A sprite sheet that also records its pictures unchanged."""

    def __init__(self) -> None:
        super().__init__("recorded")
        self.pictures: list[np.ndarray] = []

    def add(self, picture: np.ndarray, alt: str) -> Tile:
        self.pictures.append(picture)
        return super().add(picture, alt)
