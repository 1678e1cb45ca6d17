"""Digests of the user's own code: the modules that a factory or a loss consists of.

Modules are found by their import statements, so those that are imported by a computed name are missing. So is what
the code reads at run time: environment variables, configuration files, other data.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from jobs.util.digests import short_digest

PROJECT_PACKAGES = ("jobs", "saliency_core")  # the arithmetic version represents them
_STDLIB = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}


def code_digests(roots: Iterable[str]) -> dict[str, str | None]:
    """Digests of the modules ``roots``, and of the user's own modules that these import, directly or not.

    A module is the user's own if it is of the root's top-level package, or in the folder of that package; a folder of
    installed packages does not count. Packages are digested with their modules, since
    importing these runs ``__init__``. Comments, docstrings and layout do not change a digest.

    Returns:
        Module name → digest; None for a root that has no file (built in, or typed into a notebook).
    """
    digests: dict[str, str | None] = {}
    for root in roots:
        waiting = [*_with_packages(root)]
        folder = _package_folder(root)
        while waiting:
            name = waiting.pop()
            if name in digests or (name != root and not _is_own(name, root, folder)):
                continue
            path = _module_file(name)
            if path is None:
                if name == root:
                    digests[name] = None
                continue
            data = path.read_bytes()
            tree = _parse(data) if path.suffix == ".py" else None
            digests[name] = short_digest(data if tree is None else _canonical_form(tree))
            if tree is not None:
                waiting += _imported_modules(tree, name, is_package=path.name == "__init__.py")
    return dict(sorted(digests.items()))


def is_installed(module: str) -> bool:
    """Whether a module lies among installed packages or the standard library, or has no file."""
    path = _module_file(module)
    return path is None or any(map(_is_shared_folder, path.resolve().parents))


def _is_shared_folder(folder: Path) -> bool:
    return folder.name in ("site-packages", "dist-packages") or folder in _STDLIB


def _is_own(name: str, root: str, folder: Path | None) -> bool:
    top = name.partition(".")[0]
    if top in PROJECT_PACKAGES or top in sys.stdlib_module_names:
        return False
    return top == root.partition(".")[0] or (folder is not None and _package_folder(name) == folder)


def _package_folder(name: str) -> Path | None:
    """The folder that holds the module's top-level package, or module; None if installed packages share it."""
    top = name.partition(".")[0]
    spec = _find_spec(top)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = Path(places[0]) if places else _module_file(top)
    if path is None:
        return None
    folder = path.parent.resolve()
    return None if _is_shared_folder(folder) else folder


def _module_file(name: str) -> Path | None:
    """The file of a module, found without importing it; None if there is none."""
    spec = _find_spec(name)
    origin = spec.origin if spec is not None else getattr(sys.modules.get(name), "__file__", None)
    path = Path(origin) if origin else None
    return path if path is not None and path.is_file() else None


def _find_spec(name: str) -> ModuleSpec | None:
    """The spec of a module, like ``importlib.util.find_spec``, but without importing the packages above."""
    if name in sys.modules:
        spec = getattr(sys.modules[name], "__spec__", None)
        return spec if isinstance(spec, ModuleSpec) else None
    above = name.rpartition(".")[0]
    path = None
    if above:
        package = _find_spec(above)
        if package is None or package.submodule_search_locations is None:
            return None
        path = list(package.submodule_search_locations)
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        try:
            spec = find(name, path) if find is not None else None
        except KeyError:  # a folder without __init__.py in another such folder
            spec = _namespace_spec(name, path or [])
        if spec is not None:
            return spec if isinstance(spec, ModuleSpec) else None
    return None


def _namespace_spec(name: str, path: Sequence[str]) -> ModuleSpec:
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(Path(folder, name.rpartition(".")[2])) for folder in path]
    return spec


def _parse(data: bytes) -> ast.Module | None:
    try:
        return ast.parse(data)
    except (SyntaxError, ValueError):  # code for another version of Python
        return None


def _imported_modules(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[str]:
    """The names of the modules that a module's statements may import, with those of the packages above."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - (node.level - 1)]
                base = ".".join([*above, *([base] if base else [])])
            if base:
                yield from _with_packages(base)
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _with_packages(name: str) -> Iterator[str]:
    """``a.b.c`` → ``a``, ``a.b``, ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


def _canonical_form(tree: ast.Module) -> bytes:
    """A form of the code that is equal in every version of Python.

    Empty fields, spelling (such as the prefix of a string) and statements without effect (docstrings) are left out.
    """
    lines: list[str] = []
    waiting: list[object] = [tree]  # a list instead of recursion, because the depth of generated code is unbounded
    while waiting:
        item = waiting.pop()
        if isinstance(item, ast.AST):
            lines.append(type(item).__name__)
            for field, value in reversed(list(ast.iter_fields(item))):
                field_value = _with_effect(value) if isinstance(value, list) else value
                if (
                    field_value is not None
                    and field_value != []
                    and (field != "kind" or not isinstance(item, ast.Constant))
                ):
                    waiting += [field_value, _Word(f".{field}")]
        elif isinstance(item, list):
            waiting += [_Word("]"), *reversed(item), _Word("[")]
        else:
            lines.append(item if isinstance(item, _Word) else repr(item))
    return "\n".join(lines).encode(errors="surrogatepass")


def _with_effect(items: list[object]) -> list[object]:
    return [item for item in items if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))]


class _Word(str):
    """A word of the canonical form, as opposed to a string of the code."""
