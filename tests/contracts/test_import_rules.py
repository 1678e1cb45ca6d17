"""Tests of the import rules: no import of a higher layer, one module alone for Ray and Zarr, and no heavy imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN_IN_CORE = ("ray", "zarr", "pyarrow", "obstore", "jobs")

# From the lowest layer to the highest, one layer a line. A module may import its own layer and those of earlier lines.
LAYERS = """
saliency_core.errors saliency_core.arithmetic_version saliency_core.spec_syntax saliency_core.map_measures
saliency_core.map_similarity
saliency_core.autograd
saliency_core.state_dicts
saliency_core.model
saliency_core.replica
saliency_core.probe
saliency_core.targets
saliency_core.methods
saliency_core.visualization
saliency_core.class_visualization
saliency_core.argument_checks saliency_core.pass_plan saliency_core.explanation saliency_core.explanation_notes
saliency_core.watched_replica
saliency_core.explainer
saliency_core.fullgrad_decomposition saliency_core.precision_agreement
saliency_core
jobs.util
jobs.storage
jobs.config
jobs.inputs
jobs.store
jobs.relocation
jobs.runners
jobs.explain
jobs.classes
jobs.verify
jobs.inspect
jobs.html
jobs.audit
jobs.compare
jobs.export
jobs.demo
jobs.cli
jobs
"""
RANKS = {name: rank for rank, line in enumerate(LAYERS.split("\n")) for name in line.split()}
# Files → higher layers that they still import.
UPWARD: dict[str, set[str]] = {}

FILES = sorted(path for package in ("saliency_core", "jobs") for path in (ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """Yields the modules that a file imports anywhere, also inside functions and for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def room(module: str) -> str:
    """Returns the longest name in ``LAYERS`` that is the module or contains it."""
    parts = module.split(".")
    return next(name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in RANKS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_goes_upward(path: Path) -> None:
    own = room(module_of(path))
    ours = {name for name in imports(path) if name.split(".")[0] in ("jobs", "saliency_core")}
    above = {room(name) for name in ours if RANKS[room(name)] > RANKS[own]}
    assert above == UPWARD.get(str(path.relative_to(ROOT)), set())


def test_every_package_is_in_a_layer() -> None:
    rooms = {room(name) for name in MODULES}
    assert rooms == set(RANKS), "LAYERS names a room that is gone"
    flat = {name for name in MODULES if name.count(".") == 1 and name.startswith("jobs.")}
    assert flat - set(RANKS) == {"jobs.__main__", "jobs.reader", "jobs.dataset"}, "a module of jobs lies in no room"


def test_no_import_cycles() -> None:
    """Imports for types are excluded, because they are not executed."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        tree = ast.parse(path.read_text())
        types = {
            id(inner)
            for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }  # fmt: skip
        found = graph.setdefault(module_of(path), set())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in types:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
                found |= (inner or {node.module}) & MODULES
    waiting = set(graph)
    while free := {name for name in waiting if not graph[name] & (waiting - {name})}:
        waiting -= free
    assert not waiting


@pytest.mark.parametrize("package, module", [("ray", "ray_data"), ("zarr", "arrays")])
def test_one_module_alone_imports_the_package(package: str, module: str) -> None:
    knowing = {
        path.stem
        for path in (ROOT / "jobs").rglob("*.py")
        if package in {name.split(".")[0] for name in imports(path)}
    }  # fmt: skip
    assert knowing == {module}


def test_core_imports_nothing_forbidden() -> None:
    for path in (ROOT / "saliency_core").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & set(FORBIDDEN_IN_CORE), path


def test_core_works_without_the_packages_of_jobs() -> None:
    """A process that cannot import those packages computes a map and imports every module of the core."""
    modules = sorted(name for name in MODULES if name.startswith("saliency_core"))
    script = f"""
import sys
for name in {FORBIDDEN_IN_CORE!r}:
    sys.modules[name] = None
import torch
from saliency_core import Explainer, Model, Preprocessing
geometry = Preprocessing(resize=(8, 8), crop=None, interpolation="bilinear", mean=(0.5,)*3, std=(0.5,)*3, channels=3)
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
found = Explainer(Model("own", net.requires_grad_(False), geometry))(torch.rand(2, 3, 8, 8))
assert found["predicted"].maps["gradient"].shape == (2, 8, 8)
for name in {modules!r}:
    __import__(name)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=120)


LIGHT = (
    "jobs.cli.app", "jobs.config.explain_config", "jobs.explain.decode_stage", "jobs.explain.write_stage",
    "saliency_core", "saliency_core.model.preprocessing",
)  # fmt: skip


@pytest.mark.parametrize("module", LIGHT)
def test_module_does_not_import_heavy_packages(module: str) -> None:
    """The command line, and workers that decode or write, do not import torch; the pipeline alone imports Ray."""
    script = f"import sys, {module}; assert not {{'torch', 'ray', 'matplotlib'}} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=120)


def test_file_names_are_unique() -> None:
    shown = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    names = [Path(line).name for line in shown.stdout.splitlines() if not line.endswith("__init__.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_top_level_has_the_agreed_files_alone() -> None:
    shown = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    top = {line.split("/")[0] for line in shown.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= {
        "jobs", "saliency_core", "tests", "cluster.yaml", "pyproject.toml", "README.md",
    }  # fmt: skip
