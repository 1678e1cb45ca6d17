"""Tests the checks of a cluster before a run, and the files that describe a cluster."""

from __future__ import annotations

import shlex
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli.app import app
from jobs.config.explain_config import make_config
from jobs.runners.cluster import refuse_unreachable, refuse_unshared
from jobs.runners.engine import Engine
from jobs.runners.stage import Node
from saliency_core.errors import InvalidRequestError
from tests.conftest import TINY, flags
from tests.support.documents import block, read_document

ROOT = Path(__file__).parents[3]


def config(**keys: object) -> Any:
    return make_config({**TINY, "images": "s3://a/b", "out": "s3://a/c", "runner": "ray", **keys})


# -- storage --------------------------------------------------------------------------------------------------


class Elsewhere:
    """Another node: its disk holds copies of some paths."""

    def __init__(self, *copies: Path) -> None:
        self.checked: dict[str, int | None] = {}
        self._copies = {str(path) for path in copies}

    def __call__(self, files: Any) -> dict[str, list[str]]:
        assert all(Path(path).exists() for path in files)
        self.checked.update(files)
        lacking = [path for path in files if path not in self._copies]
        return {"10.77.0.2 (h2)": lacking} if lacking else {}


@pytest.mark.parametrize("flag", ["images", "weights", "class_names", "out"])
def test_a_path_that_a_node_lacks_is_refused(tmp_path: Path, flag: str) -> None:
    path = tmp_path / "there" / "file.pt"
    path.parent.mkdir()
    if flag != "out":
        path.write_bytes(b"12345")
    with pytest.raises(
        InvalidRequestError, match=rf"--{flag.replace('_', '-')} {path} is not there.*10\.77\.0\.2 \(h2\)"
    ):
        refuse_unshared(config(**{flag: str(path)}), Elsewhere())
    assert not list(path.parent.glob(".*")), "the probe was left"
    assert path.exists() is (flag != "out")


def test_paths_that_all_nodes_have_are_accepted(tmp_path: Path) -> None:
    weights, images = tmp_path / "net.pt", tmp_path / "images"
    weights.write_bytes(b"12345")
    images.mkdir()
    (images / "a.tar").write_bytes(b"123")
    node = Elsewhere(weights, images, images / "a.tar")
    refuse_unshared(config(weights=str(weights), images=(str(images), str(images / "*.tar"))), node)
    assert node.checked == {str(weights): 5, str(images): None, str(images / "a.tar"): 3}


def test_object_stores_and_presets_are_not_searched_on_nodes() -> None:
    node = Elsewhere()
    refuse_unshared(config(weights="IMAGENET1K_V1"), node)
    assert not node.checked


# -- device and workers ----------------------------------------------------------------------------------------


def engine(*nodes: Node, grows: bool = True) -> Engine:
    return Engine(lambda items, stages: iter(()), list, nodes, grows=grows)


def test_a_cluster_without_gpus_needs_an_explicit_device() -> None:
    """Otherwise the bytes would depend on whether a GPU node was present at the start."""
    head = engine(Node(8, 0))
    with pytest.raises(InvalidRequestError, match="--device auto"):
        head.device(config())
    with pytest.raises(InvalidRequestError, match="--workers auto"):
        head.workers(config(device="cuda"), "cuda")
    assert head.workers(config(device="cuda", workers=8), head.device(config(device="cuda"))) == 8
    assert engine(Node(8, 0), Node(8, 1)).device(config()) == "cuda"
    assert engine(Node(8, 0), grows=False).device(config()) == "cpu"


def test_replicas_are_counted_node_by_node() -> None:
    """A replica of four threads does not span two nodes of three cores."""
    assert engine(*[Node(1, 0)] * 3).workers(config(), "cpu") == 3
    assert engine(*[Node(16, 2)] * 2).workers(config(gpus_per_worker=0.75), "cuda") == 4
    with pytest.raises(InvalidRequestError, match="at most 0"):
        engine(Node(2, 0), Node(2, 0), grows=False).workers(config(threads=3), "cpu")


# -- joining ----------------------------------------------------------------------------------------------------


def test_an_address_without_a_cluster_is_refused_at_once() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*closed.getsockname())
        with pytest.raises(InvalidRequestError, match=f"RAY_ADDRESS={address}: no cluster answers there"):
            refuse_unreachable(address)


def test_the_error_for_a_ray_client_address_names_job_submit() -> None:
    with pytest.raises(InvalidRequestError, match="ray job submit"):
        refuse_unreachable("ray://head:10001")


def test_missing_cluster_is_refused_by_the_program(tree: Path, tmp_path: Path, saliency) -> None:
    result = saliency("explain", *flags(images=tree, out=tmp_path / "s", runner="ray"), RAY_ADDRESS="127.0.0.1:1")
    assert result.returncode == 2 and "no cluster answers there" in result.stderr, result.stdout + result.stderr
    assert not (tmp_path / "s").exists()


# -- the files ----------------------------------------------------------------------------------------------------


def test_ray_up_accepts_cluster_yaml() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    written = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(written))
    gpu = written["available_node_types"]["gpu"]
    assert gpu["resources"]["GPU"] and gpu["max_workers"] > gpu["min_workers"] == 0
    assert f"ray[data,default]=={version('ray')}" in "\n".join(written["setup_commands"])


def test_the_kuberay_manifest_matches_the_installed_version_of_ray() -> None:
    manifest = yaml.safe_load(block("clusters.md", "apiVersion: ray.io/v1"))
    assert manifest["kind"] == "RayJob"
    cluster = manifest["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert f":{cluster['rayVersion']}-" in container["image"]
        assert container["resources"]["requests"].keys() <= container["resources"]["limits"].keys()
    assert f"FROM rayproject/ray:{cluster['rayVersion']}-py311-gpu" in read_document("clusters.md")
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    program, command, *arguments = shlex.split(manifest["spec"]["entrypoint"])
    assert program == "saliency" and command in {
        info.name or info.callback.__name__ for info in app.registered_commands
    }
    keys = {
        flag.removeprefix("--").replace("-", "_"): value
        for flag, value in zip(arguments[::2], arguments[1::2], strict=True)
    }
    assert make_config(keys).workers == workers["maxReplicas"]
