"""Tests that README and the other documents are short, linked and complete, and that their code runs or is checked."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image

from jobs.cli.app import app
from jobs.config.classes_config import ClassesConfig
from jobs.config.explain_config import ExplainConfig, read_config
from jobs.demo.demo_images import CLASSES, make_images, write_shards
from jobs.demo.demo_model import make
from jobs.explain.explain_command import explain
from jobs.inspect.list_methods import print_methods
from jobs.util.exit_codes import IMPERFECT
from saliency_core.methods.reductions import REDUCTIONS
from saliency_core.methods.registry import REGISTRY
from saliency_core.targets.target_parsing import TARGETS
from tests.conftest import said
from tests.support.documents import README, ROOT, Block, all_blocks, block, blocks, documents, read_document

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
CONFIGS = {"explain": ExplainConfig, "classes": ClassesConfig}
LANGUAGES = {"sh", "python", "yaml", "sql", "text", ""}
# Third-party programs that blocks call.
PROGRAMS = {"[", "eval", "export", "mypy", "pip", "pre-commit", "pytest", "python3", "ray", "ruff", "sh", ".ci/run"}
NOT_HERE = {"fiftyone", "quantus"}  # test_export_tools.py installs them
# --help, which all commands have, and flags of Ray and the AWS CLI.
OTHER_FLAGS = {
    "--help", "--address", "--format", "--generate", "--max-worker-port", "--min-worker-port", "--node-ip-address",
    "--node-manager-port", "--object-manager-port", "--port",
}  # fmt: skip


def options(command: str) -> set[str]:
    """Returns every spelling of a command's flags."""
    found: set[str] = set()
    for parameter in COMMANDS[command].params:
        found |= {name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("-")}
    return found


# -- shape ------------------------------------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert len((ROOT / README).read_text().splitlines()) <= 200


@pytest.mark.parametrize("path", documents())
def test_links_resolve(path: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / path).read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / path).parent / file if file else ROOT / path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub makes from headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", documents())
def test_named_files_exist(path: str) -> None:
    for name in re.findall(r"`((?:jobs|saliency_core|tests)/[\w/.*-]+\.\w+)`", (ROOT / path).read_text()):
        assert list(ROOT.glob(name)), name


def test_every_command_and_flag_is_described() -> None:
    text = "\n".join((ROOT / path).read_text() for path in documents())
    for command in COMMANDS:
        assert f"`saliency {command}" in text, command
        for flag in options(command) - {"--help"}:
            assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text), f"{command} {flag}"


@pytest.mark.parametrize("path", [path for path in documents() if path == README or path.startswith("jobs/")])
def test_every_flag_that_is_described_exists(path: str) -> None:
    known = OTHER_FLAGS.union(*map(options, COMMANDS))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", (ROOT / path).read_text())) <= known


def test_every_method_target_and_reduction_is_described() -> None:
    text = read_document("methods.md")
    assert not [name for name in [*REGISTRY, *REDUCTIONS] if f"`{name}" not in text]
    readme = (ROOT / README).read_text()
    assert not [name for name in REGISTRY if f"`{name}" not in readme]
    for target in TARGETS:
        head = re.sub("^NAME=", "", target).partition(":")[0]
        assert re.search(rf"[`=]{head}\b", text) and re.search(rf"[`=]{head}\b", readme), target
    assert said(print_methods)[0] == 0


# -- commands ---------------------------------------------------------------------------------------------------------


def test_blocks_have_a_known_language() -> None:
    assert {one.language for one in all_blocks()} == LANGUAGES
    for one in all_blocks():
        if one.language in ("", "text"):
            assert not re.search(r"^(saliency|import|from|pip|ray) ", one.text, re.MULTILINE), str(one)


def commands(text: str) -> Iterator[list[str]]:
    """The programs that shell text calls, each with its arguments, without variables; also those in quotes."""
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word in ("&&", "||", ";", "--"):
                if words:
                    yield words
                words = []
            elif " " in word and re.search(r"\bsaliency \w", word):
                yield from commands(word)
            elif words or not re.fullmatch(r"\w+=.*", word):
                words.append(word)


@pytest.mark.parametrize("one", [one for one in all_blocks() if one.language == "sh"], ids=str)
def test_shell_blocks_are_commands_that_exist(one: Block) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = list(commands(one.text))
    assert found
    for program, *arguments in found:
        name = program.removeprefix(".venv/bin/")
        if name == "saliency":
            parsed(*arguments)
            continue
        assert name in PROGRAMS, program
        for argument in arguments:
            if match := re.fullmatch(r"\.\[([\w,]+)\]", argument):
                assert set(match[1].split(",")) <= set(extras), argument
            if argument.endswith((".py", ".yaml")):
                assert (ROOT / argument).exists(), argument


def parsed(command: str, *arguments: str) -> None:
    """Raises if the command would refuse these arguments at once."""
    context = COMMANDS[command].make_context(command, list(arguments))
    kind = CONFIGS.get(command)
    if kind is not None and context.params["config"] is None:
        read_config(kind, {key: context.params[key] for key in kind.model_fields if context.params[key]})


def test_an_unknown_flag_in_a_shell_block_is_found() -> None:
    text = "RAY_ADDRESS=auto ray exec c.yaml 'X=1 saliency explain --imagess a \\\n --model b --out c'"
    (program, *arguments), ray = commands(text)
    assert ray == ["ray", "exec", "c.yaml"]
    assert program == "saliency"
    with pytest.raises(Exception, match="imagess"):
        parsed(*arguments)


def test_commands_in_sentences_exist() -> None:
    for path in documents():
        text = (ROOT / path).read_text()
        for command, rest in re.findall(r"`(?:saliency|python -m jobs) ([a-z]+)([^`]*)`", text):
            assert command in COMMANDS, f"{path}: {command}"
            assert set(re.findall(r"(?<!\S)-{1,2}[a-z][\w-]*", rest)) <= options(command) | {"--help"}, (path, command)
        for script, rest in re.findall(r"`python (tests/[\w/]+\.py)([^`]*)`", text):
            source = (ROOT / script).read_text()
            assert all(f'"{flag}"' in source for flag in re.findall(r"--[\w-]+", rest)), f"{path}: {script}{rest}"


def test_the_configuration_file_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(block("operations.md", "methods: ["))
    config = read_config(ExplainConfig, {"limit": "1000"}, file=file)
    assert config.methods == ("gradient", "smoothgrad(n=50, spread=0.1)") and config.limit == 1000


# -- Python -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [one for one in all_blocks() if one.language == "python"], ids=str)
def test_python_blocks_compile_and_their_imports_exist(one: Block) -> None:
    for node in ast.walk(ast.parse(one.text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name in NOT_HERE or importlib.util.find_spec(alias.name), alias.name
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_yaml_blocks_are_yaml() -> None:
    for one in all_blocks():
        if one.language == "yaml":
            assert isinstance(yaml.safe_load(one.text), dict), str(one)


def test_hooks_and_ci_run_the_same_programs() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    for hook in repository["hooks"]:
        assert any(line.startswith(hook["entry"]) for line in ci), hook["entry"]


def test_extending_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every block in order; the loss function is written to a module, as its spec requires."""
    before = dict(REGISTRY)
    (tmp_path / "own_of_documents").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {"__name__": "extending"}
    maps = []
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for one in blocks("extending.md"):
                text = one.text.replace("mine.targets", "own_of_documents.targets")
                if text.startswith("def entropy"):
                    (tmp_path / "own_of_documents" / "targets.py").write_text(f"import torch\n\n\n{text}")
                exec(compile(text, str(one), "exec"), names)
                if "explanations" in names:
                    maps.append({f"{target}/{method}": made
                                 for target, explanation in names.pop("explanations").items()
                                 for method, made in explanation.maps.items()})  # fmt: skip
    finally:
        for name in set(REGISTRY) - set(before):
            del REGISTRY[name]
    made = {key: map_ for one in maps for key, map_ in one.items()}
    assert list(made) == [
        "predicted/absolute_backprop", "predicted/gradient", "predicted/dimmed_gradient",
        "predicted/sharpness_max", "predicted/sizecam", "entropy/gradient", "lowest/gradient",
    ]  # fmt: skip
    for key, map_ in made.items():
        assert map_.shape == (2, 16, 16) and map_.isfinite().all() and map_.any(), key
    assert not torch.equal(made["predicted/absolute_backprop"], made["predicted/gradient"])
    squares = names["explainer"].single_pass(names["images"])  # of the lowest class
    lowest = names["model"](names["images"]).argmin(dim=1)
    expected = names["model"](names["images"]).gather(1, lowest[:, None])[:, 0]
    torch.testing.assert_close(squares.scores, expected.detach())


def test_models_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every block with a smaller network and random weights, on the images of the block that prepares them."""
    from torchvision.models import resnet18

    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / "dog.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"images": torch.rand(1, 3, 64, 64)}
    for one in blocks("models.md"):
        if "keep_freed_memory" in one.text:  # it would change this whole process
            continue
        text = one.text.replace("resnet50", "resnet18").replace("IMAGENET1K_V2", "IMAGENET1K_V1")
        exec(compile(text, str(one), "exec"), names)
        names["images"] = names["images"][:, :, :64, :64]
    assert names["explanations"]["predicted"].maps["fullgrad"].shape == (1, 64, 64)
    assert names["parts"].residual.max() < 1e-3
    assert names["scores"].shape == (3, 1000)


# -- the README's run -------------------------------------------------------------------------------------------------


# xarray cannot know whether the metadata was consolidated, and warns.
@pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated:")
def test_the_real_run_and_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's run, over fewer images and with an untrained model, prints the same lines; its store is read."""
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "out" / "images"
    write_shards(images, list(make_images(seed=0, n=48)))
    assert (images / "classes.txt").read_text().split() == list(CLASSES)
    torch.save(make().state_dict(), tmp_path / "out" / "model.pt")
    run, printed, _ = blocks("README.md", "A real run")
    ((program, command, *arguments),) = commands(run.text)
    assert (program, command) == ("saliency", "explain")
    context = COMMANDS[command].make_context(command, arguments)
    config = read_config(
        ExplainConfig, {key: context.params[key] for key in ExplainConfig.model_fields if context.params[key]}
    )
    code, told = said(explain, config)
    assert code == IMPERFECT
    made = {figureless(line) for line in told.splitlines()}
    for line in printed.text.splitlines():
        if "rows committed" not in line and "busiest stage" not in line and "ok, " not in line and " × " not in line:
            assert figureless(line) in made, line
    names: dict[str, Any] = {}
    (reading,) = blocks("README.md", "Reading a store")
    exec(compile(reading.text, str(reading), "exec"), names)
    assert names["maps"].shape == (3, 96, 96) and names["heat"].ndim == 2 and len(names["surest"]) == 10
    assert [line["row"] for line in names["lines"]] == [0, 5, 9]
    assert set(names["lazy"].data_vars) == {"fullgrad", "gradcam"}


def figureless(line: str) -> str:
    """Returns a line without its numbers."""
    return re.sub(r"[\d.,e-]+|\(.*\)|×", "#", " ".join(line.split()))
