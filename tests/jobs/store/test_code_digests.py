"""Tests which changes of the user's code change the digests of a factory or a loss."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs.store.code_digests import code_digests, is_installed

FILES = {
    "menagerie/__init__.py": '"""Nets."""\n',
    "menagerie/zoo.py": (
        "from . import blocks\n"
        "from .more.deep import Deep\n"
        "import beside\n"
        "import torch\n"
        "def make():\n"
        "    from menagerie import lazily\n"
        "    return lazily.build(blocks.act, Deep)  # a net\n"
    ),
    "menagerie/blocks.py": "act = 'relu'\n",
    "menagerie/lazily.py": "def build(*parts):\n    return parts\n",
    "menagerie/more/__init__.py": "",
    "menagerie/more/deep.py": "class Deep:\n    width = 3\n",
    "menagerie/unused.py": "x = 1\n",
    "beside.py": "from far import away\n",
    "far/__init__.py": "away = 1\n",
    "unrelated.py": "x = 1\n",
    "site-packages/shared.py": "import neighbour\n",
    "site-packages/neighbour.py": "x = 1\n",
    "site-packages/wheel/__init__.py": "from wheel.part import x\n",
    "site-packages/wheel/part.py": "x = 1\n",
    "broken.py": "try:\n    import old\nexcept SyntaxError:\n    pass\n",
    "old.py": "print 'of another Python'\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder and a folder of installed packages, both in the path."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    return tmp_path


@pytest.mark.parametrize(
    "file, text",
    [
        ("menagerie/zoo.py", FILES["menagerie/zoo.py"].replace("Deep)", "None)")),
        ("menagerie/__init__.py", "import os\nos.environ['X'] = '1'\n"),
        ("menagerie/blocks.py", "act = 'gelu'\n"),
        ("menagerie/lazily.py", "def build(*parts):\n    return parts[::-1]\n"),
        ("menagerie/more/deep.py", "class Deep:\n    width = 4\n"),
        ("menagerie/more/__init__.py", "x = 1\n"),
        ("beside.py", "from far import away as gone\n"),
        ("far/__init__.py", "away = 2\n"),
    ],
)
def test_a_change_changes_the_digest_of_its_module(project: Path, file: str, text: str) -> None:
    before = code_digests(["menagerie.zoo"])
    (project / file).write_text(text)
    after = code_digests(["menagerie.zoo"])
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")}


@pytest.mark.parametrize(
    "file, text",
    [
        (
            "menagerie/zoo.py",
            FILES["menagerie/zoo.py"].replace("  # a net", "  # another comment").replace("\n", "\n\n"),
        ),
        ("menagerie/__init__.py", '"""Another docstring."""\n'),
        ("menagerie/__init__.py", ""),
        ("menagerie/blocks.py", 'act = "relu"\n'),
        ("menagerie/more/deep.py", 'class Deep:\n    """Of a width."""\n\n    width = 0x3\n'),
        ("menagerie/unused.py", "x = 2\n"),
        ("unrelated.py", "x = 2\n"),
        ("site-packages/neighbour.py", "x = 2\n"),
    ],
)
def test_a_change_without_effect_keeps_the_digests(project: Path, file: str, text: str) -> None:
    before = code_digests(["menagerie.zoo", "shared"])
    (project / file).write_text(text)
    assert code_digests(["menagerie.zoo", "shared"]) == before


def test_digests_cover_the_modules_that_the_code_uses(project: Path) -> None:
    assert list(code_digests(["menagerie.zoo"])) == [
        "beside", "far", "menagerie", "menagerie.blocks", "menagerie.lazily", "menagerie.more", "menagerie.more.deep",
        "menagerie.zoo",
    ]  # fmt: skip
    assert list(code_digests(["wheel"])) == ["wheel", "wheel.part"]  # for an installed package, only its own modules
    assert list(code_digests(["broken"])) == ["broken", "old"]


def test_digests_import_no_module(project: Path) -> None:
    code_digests(["menagerie.zoo", "broken"])
    assert not {"menagerie", "menagerie.zoo", "beside", "far", "broken", "old"} & sys.modules.keys()


@pytest.mark.parametrize("root", ["math", "_io", "typed_in", "absent.altogether"])
def test_a_root_without_a_file_has_no_digest(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if root == "typed_in":
        monkeypatch.setitem(sys.modules, root, type(sys)(root))
    if root != "math":
        assert code_digests([root])[root] is None
    assert root in code_digests([root])


def test_the_digest_of_a_compiled_module_is_of_its_bytes(project: Path) -> None:
    import _ctypes_test  # any compiled module that has a file

    name = Path(_ctypes_test.__file__).name.replace("_ctypes_test", "compiled")
    (project / name).write_bytes(Path(_ctypes_test.__file__).read_bytes())
    before = code_digests(["compiled"])["compiled"]
    (project / name).write_bytes(b"other")
    assert before is not None and code_digests(["compiled"])["compiled"] != before


def test_deep_code_has_a_digest(project: Path) -> None:
    """Generated code may be nested more deeply than functions may call each other."""
    (project / "deep.py").write_text("x = [" + "1, " * 50_000 + "]\n" + "\n".join(f"y{i} = x" for i in range(2000)))
    assert code_digests(["deep"])["deep"] is not None


@pytest.mark.parametrize(
    "module, installed",
    [("torch.nn", True), ("json", True), ("builtins", True), ("shared", True), ("menagerie.zoo", False)],
)
def test_installed_modules_are_distinguished_from_the_users_own(project: Path, module: str, installed: bool) -> None:
    assert is_installed(module) is installed


def test_folders_without_an_init_are_packages_too(project: Path) -> None:
    (project / "a/b/c").mkdir(parents=True)
    (project / "a/b/c/net.py").write_text("from a.b.c import part\n")
    (project / "a/b/c/part.py").write_text("x = 1\n")
    before = code_digests(["a.b.c.net"])
    assert set(before) == {"a.b.c.net", "a.b.c.part"}
    (project / "a/b/c/part.py").write_text("x = 2\n")
    after = code_digests(["a.b.c.net"])
    assert after["a.b.c.part"] != before["a.b.c.part"] and after["a.b.c.net"] == before["a.b.c.net"]
    assert "a" not in sys.modules
