"""Tests ``retry`` with changed inputs: no row gets the map of another image, whatever changed in the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from jobs.explain.retry_command import retry
from jobs.store.index import DamagedError
from jobs.store.store_reader import open_store
from jobs.verify.verify_command import verify
from tests.conftest import content, run_inline, said
from tests.support.changed_inputs import BROKEN, MADE, Item, Made, make, picture
from tests.support.faults import s3

Items = list[Item]
Edit = Callable[[Items], Items]
again = partial(said, retry, runner="inline", workers="1")
POSITIONS = ("parquet", "tar of one name", "struct")
NAMES = ("tar", "folder", "csv", "list")
FEW = ("first dropped and repaired", "bytes of two swapped")  # for containers that share the code of another container


@pytest.fixture(scope="module")
def scenario(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(request.param, tmp_path_factory.mktemp("made"))


def repaired(samples: Items) -> Items:
    return [replace(each, data=picture(BROKEN)) if each.label == BROKEN else each for each in samples]


def put(samples: Items, place: int, **changes: object) -> Items:
    return [replace(each, **changes) if index == place else each for index, each in enumerate(samples)]


def swapped(samples: Items, first: int, second: int) -> Items:
    """Exchanges the bytes of two samples; names and labels stay."""
    return put(put(samples, first, data=samples[second].data), second, data=samples[first].data)


NEW = Item("99.bmp", picture(20), 5)
CHANGES: dict[str, tuple[Edit, str | None, str | None]] = {
    # change; statuses of the retried rows if ids are positions, and if they are names. None: not tested, because the
    # name alone identifies a file that was never explained.
    "touched": (lambda s: s, "ooqo", "ooqo"),
    "repaired": (repaired, "oooo", "oooo"),
    "first dropped": (lambda s: s[1:], "qoqo", "qoqo"),
    "first dropped and repaired": (lambda s: repaired(s)[1:], "qooo", "qooo"),
    "last dropped and repaired": (lambda s: repaired(s)[:-1], "oooo", "oooo"),
    "neighbour dropped and repaired": (lambda s: repaired(s[:1] + s[2:]), "oqqo", "oqoo"),
    "inserted in front": (lambda s: [NEW, *repaired(s)], "oooo", "oooo"),
    "inserted beside": (lambda s: [*repaired(s)[:2], NEW, *repaired(s)[2:]], "ooqo", "oooo"),
    "reversed": (lambda s: repaired(s)[::-1], "ooqo", "oooo"),
    "rotated": (lambda s: repaired(s)[3:] + repaired(s)[:3], "ooqo", "oooo"),
    "two rows in each other's place": (lambda s: [s[1], s[0], *repaired(s)[2:]], "ooqo", "oooo"),
    "bytes of two swapped": (lambda s: swapped(repaired(s), 0, 1), "ooqo", "qqoo"),
    "bytes swapped with another unit": (lambda s: swapped(repaired(s), 3, 6), "ooqo", "oooq"),
    "bytes swapped with the repaired": (lambda s: swapped(repaired(s), 2, 3), "ooqo", None),
    "explained one changed": (lambda s: put(repaired(s), 0, data=picture(20)), "qooo", "qooo"),
    "label changed": (lambda s: put(repaired(s), 1, label=4), "oooo", "oooo"),
    "label of the repaired changed": (lambda s: put(repaired(s), 2, label=4), "ooqo", "oooo"),
    "all replaced": (lambda s: [replace(each, data=picture(20 + each.label)) for each in s], "qqqq", None),
    "all but one gone": (lambda s: s[5:6], "qqqq", "qqqq"),
}  # fmt: skip


def cases() -> Iterator[tuple[str, str, str]]:
    """Container, change and the statuses of the retried rows."""
    for kinds, column in ((POSITIONS, 1), (NAMES, 2)):
        for kind in kinds:
            for change, row in CHANGES.items():
                if row[column] is not None and (kind not in ("struct", "list") or change in FEW):
                    yield kind, change, str(row[column])


@pytest.mark.parametrize("scenario, change, expected", [*cases()], indirect=["scenario"])
def test_every_row_has_the_map_of_its_own_image(scenario: Made, change: str, expected: str, tmp_path: Path) -> None:
    out = scenario.again(tmp_path / "store")
    scenario.change(CHANGES[change][0])
    code, output = again(str(out))
    assert scenario.statuses(out) == expected + "oooo", output
    assert code == (3 if "q" in expected else 0)
    assert said(verify, str(out))[0] == 0
    if scenario.kind != "folder" and "label" in change and expected == "oooo":
        assert "the inputs have other labels now for 1 of the rows" in output


def test_rewritten_row_groups(tmp_path: Path) -> None:
    """The rows are the same, at other positions inside other row groups."""
    scenario = make("parquet", tmp_path / "made")
    out = scenario.again(tmp_path / "store")
    scenario.change(repaired, group=3)
    code, output = again(str(out))
    assert (code, scenario.statuses(out)) == (0, "oooooooo")
    assert "a.parquet is not as it was planned: 8 images" in output


def test_a_changed_image_stays_quarantined_until_it_is_restored(tmp_path: Path) -> None:
    """A second retry keeps the recorded identity, also if the file was missing in between."""
    scenario = make("folder", tmp_path / "made")
    out = scenario.again(tmp_path / "store")
    changed = scenario.images / "0.bmp"
    changed.write_bytes(picture(20))
    assert again(str(out))[0] == 3 and scenario.statuses(out) == "qoqooooo"
    changed.unlink()
    assert again(str(out))[0] == 3 and scenario.statuses(out) == "qoqooooo"
    changed.write_bytes(picture(21))
    code, _ = again(str(out))
    assert scenario.statuses(out) == "qoqooooo"
    assert "changed since it was explained" in str(open_store(str(out)).lines([0])["error"][0])
    assert (out / "identity/unit-00000000.parquet").exists() and said(verify, str(out))[0] == 0
    changed.write_bytes(picture(0))
    (scenario.images / f"{BROKEN}.bmp").write_bytes(picture(BROKEN))
    code, _ = again(str(out))
    assert (code, scenario.statuses(out)) == (0, "oooooooo")
    assert not list(out.glob("identity/*")) and said(verify, str(out))[0] == 0


def test_a_changed_identity_is_reported_as_damage(tmp_path: Path) -> None:
    scenario = make("folder", tmp_path / "made")
    out = scenario.again(tmp_path / "store")
    (scenario.images / "0.bmp").write_bytes(picture(20))
    again(str(out))
    (previous,) = out.glob("identity/*")
    before, data = content(out), bytearray(previous.read_bytes())
    data[len(data) // 2] ^= 1
    previous.write_bytes(bytes(data))
    code, output = said(verify, str(out))
    assert code == 4 and "identity/unit-00000000.parquet" in output
    with pytest.raises(DamagedError, match="restore it"):
        again(str(out))
    previous.unlink()
    assert content(out).items() <= before.items()  # no other object changed
    assert said(verify, str(out))[0] == 4


def test_a_row_whose_line_was_removed_from_the_list_keeps_its_file(tmp_path: Path) -> None:
    """The URI identifies the image, also after its line was removed."""
    scenario = make("csv", tmp_path / "made")
    out = scenario.again(tmp_path / "store")
    lines = (scenario.images).read_text().splitlines()
    scenario.images.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    (scenario.images.parent / f"{BROKEN}.bmp").write_bytes(picture(BROKEN))
    assert again(str(out))[0] == 0
    assert scenario.statuses(out) == "oooooooo"


def test_rows_of_remote_files_are_found_by_content(bucket: str, tmp_path: Path) -> None:
    del bucket
    scenario = make("parquet", tmp_path / "made")
    images, out = s3.upload(scenario.images.parent, "images"), tmp_path / "store"
    assert run_inline(images=images, out=str(out), **MADE)[0] == 3
    scenario.change(CHANGES["first dropped and repaired"][0])
    s3.upload(scenario.images.parent, "images")
    code, output = again(str(out))
    assert (code, scenario.statuses(out)) == (3, "qooooooo"), output
    assert said(verify, str(out), recompute=8)[0] == 0


def test_changed_files_share_one_reason(tmp_path: Path) -> None:
    scenario = make("folder", tmp_path / "made")
    out = scenario.again(tmp_path / "store")
    for number in (0, 1):
        (scenario.images / f"{number}.bmp").write_bytes(picture(20 + number))
    code, output = again(str(out))
    assert code == 3 and "2 × the file changed since it was explained" in output, output
