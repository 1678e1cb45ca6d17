"""The import rules: who may know whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN_IN_CORE = ("ray", "zarr", "pyarrow", "obstore", "jobs")


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package, module", [("ray", "ray_data"), ("zarr", "arrays")])
def test_one_module_alone_knows_it(package: str, module: str) -> None:
    knowing = {path.stem for path in (ROOT / "jobs").rglob("*.py") if package in imported(path)}
    assert knowing == {module}


def test_core_names_nothing_forbidden() -> None:
    for path in (ROOT / "saliency_core").rglob("*.py"):
        assert not imported(path) & set(FORBIDDEN_IN_CORE), path


def test_core_works_where_nothing_else_is_installed() -> None:
    """In a process in which those packages cannot be imported, a map is made."""
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
for name in ("model.model_loading", "visualization.colormap", "model.weights", "model.model_sources", "methods.registry"):
    __import__("saliency_core." + name)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize(
    "module",
    [
        "jobs.cli.app",
        "jobs.config.explain_config",
        "jobs.explain.decode_stage",
        "jobs.explain.write_stage",
        "saliency_core",
    ],
)
def test_stays_light(module: str) -> None:
    """Neither the command line nor a decode or write worker waits for torch; only the pipeline for Ray."""
    script = f"import sys, {module}; assert not {{'torch', 'ray', 'matplotlib'}} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=120)


def test_top_level_is_as_its_owner_drew_it() -> None:
    shown = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    top = {line.split("/")[0] for line in shown.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= {
        "jobs", "saliency_core", "tests", "cluster.yaml", "pyproject.toml", "README.md",
    }  # fmt: skip
