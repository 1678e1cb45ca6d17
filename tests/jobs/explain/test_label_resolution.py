"""The plan and run.json list labels that match no class of the model, whatever the target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import CLASSES, run_inline
from tests.support.input_files import picture, write, write_parquet, write_tar


def folders(*names: str):
    def make(root: Path) -> Path:
        for i, name in enumerate(names):
            write(root / f"in/{name}/{i}.png", picture(i))
        return root / "in"

    return make


def tar(*labels: str):
    def make(root: Path) -> Path:
        members = [
            pair for i, label in enumerate(labels) for pair in ((f"{i}.png", picture(i)), (f"{i}.cls", label.encode()))
        ]
        return write_tar(root / "in.tar", members)

    return make


def a_list(*labels: str):
    def make(root: Path) -> Path:
        lines = [f"{write(root / f'{i}.png', picture(i))},{label}" for i, label in enumerate(labels)]
        return write(root / "in.csv", "\n".join(["uri,label", *lines]).encode())

    return make


def parquet(*labels: object):
    return lambda root: write_parquet(
        root / "in.parquet", {"image": [picture(i) for i in range(len(labels))], "label": list(labels)}
    )


# inputs, further keys, parts of the note (None: no note)
CASES = {
    "folders of other names": (folders("x", "y"), {}, ["2 of 2 images", "2 of 2 folders", "'x', 'y'", "--class-names"]),
    "some of the folders": (folders("ant", "bee", "Cat"), {}, ["1 of 3 images", "1 of 3 folders", "'Cat'"]),
    "many folders": (folders(*"pqrstu"), {}, ["6 of 6 folders", "'p', 'q', 'r' …"]),
    "folders in order": (folders("x", "y"), {"folder_labels": "order"}, None),
    "more folders than classes": (
        folders(*"pqrstuv"), {"folder_labels": "order"}, ["2 of 7 images", "2 of 7 folders", "'u', 'v'", "leave out"],
    ),
    "folders that are classes": (folders("ant", "bee"), {}, None),
    "a tar's names": (tar("ant", "wasp", "wasp"), {}, ["2 of 3 images", "the first is 'wasp'"]),
    "a tar's numbers": (tar("0", "5", "-1"), {}, ["2 of 3 images", "the first is '5'"]),
    "a list's names": (a_list("ant", "", "hornet"), {}, ["1 of 3 images", "'hornet'", "--label-column"]),
    "a list's numbers": (a_list("4", "99"), {}, ["1 of 2 images", "'99'"]),
    "Parquet's names": (parquet("ant", "fly", None), {}, ["1 of 3 images", "'fly'"]),
    "Parquet's numbers": (parquet(0, 7, None), {}, ["1 of 3 images", "'7'"]),
    "no labels": (a_list("", ""), {}, None),
    "a name of two classes": (folders("crane", "ant"), {"names": "crane ant crane dog elk"}, ["'crane'", "2 classes"]),
    "no names are known": (folders("ant", "bee"), {"names": ""}, ["2 of 2 folders", "names are not known"]),
    "names that do not match": (folders("ant", "bee"), {"names": "a b c d e"}, ["2 of 2 folders", "'ant', 'bee'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_labels_that_match_no_class_are_noted(case: str, tmp_path: Path) -> None:
    make, keys, parts = CASES[case]
    names = keys.get("names", " ".join(CLASSES))
    keys = {key: value for key, value in keys.items() if key != "names"}
    if names:
        keys["class_names"] = str(write(tmp_path / "names.txt", names.replace(" ", "\n").encode()))
    code, output = run_inline(images=str(make(tmp_path)), out=str(tmp_path / "out"), **keys)
    assert code == 0, output
    notes = [
        note for note in json.loads((tmp_path / "out/run.json").read_text())["notes"] if note.startswith("labels: ")
    ]
    assert bool(notes) == (parts is not None)
    for part in parts or ():
        assert part in notes[0]
        assert f"note: {notes[0]}" in output


def test_a_long_label_is_shortened_in_the_note(tmp_path: Path) -> None:
    code, output = run_inline(images=str(a_list("x" * 5000, "1")(tmp_path)), out=str(tmp_path / "s"))
    assert code == 0 and "(5,000 characters)" in output
    assert "x" * 100 not in output + (tmp_path / "s/run.json").read_text()
