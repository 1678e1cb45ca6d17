"""Tests the bounds of a configuration's numbers: no accepted value makes a store unreadable or exhausts the machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs.config.classes_config import ClassesConfig
from jobs.config.explain_config import flag_of, make_config, read_config
from jobs.storage.retrying import VARIABLE, retry_seconds
from jobs.store.run_record import checked_json
from jobs.store.store_access import existing_run
from saliency_core.errors import InvalidRequestError
from saliency_core.methods.registry import parse_method
from saliency_core.targets.target_parsing import parse_targets
from tests.conftest import TINY, content, run_inline

HUGE = "9" * 5000
WHOLE = {**TINY, "images": "a", "out": "b"}
NUMBERS = {
    "stall_seconds": ["inf", "nan", "1e10", "-1", "0", "-inf"],
    "unit_seconds": ["inf", "nan", "1e10", "0"],
    "max_seconds": ["inf", "nan", "1e10", "0", HUGE],
    "max_pixels": [10**18, "1e18", 0, HUGE, "inf"],
    "max_bytes": [10**18, 0, HUGE],
    "threads": [10**9, 0, HUGE, 1.5],
    "gpus_per_worker": ["inf", "nan", 1e-300, 1e300],
    "batch_size": [10**30, 0, HUGE, "many"],
    "unit_size": [10**30, 0, HUGE],
    "workers": [10**30, 0, HUGE],
    "limit": [10**30, 0, HUGE],
    "seed": [10**30, -1, HUGE],
    "num_classes": [10**12, 0, HUGE],
    "resize": [10**9, "9" * 30 + "x3", HUGE, 0],
    "crop": [10**9, HUGE, "3x3x3"],
    "mean": ["inf,0,0", "nan,0,0", "1e300,0,0", f"{HUGE},0,0"],
    "std": ["inf,1,1", "nan,1,1", "0,1,1", "-1,1,1", "1e-300,1,1", "1e300,1,1"],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in NUMBERS.items() for value in values])
def test_number_without_a_meaning_is_refused_by_its_flag(key: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"--{key.replace('_', '-')}|{key}="):
        make_config({**WHOLE, key: value})


OF_CLASSES = {
    "steps": ["inf", 10**12, -1],
    "learning_rate": ["inf", "nan", 1e300, 0],
    "l2": ["inf", "nan", -1],
    "lp": ["6,inf", "1e9,0", "nan,0", "6"],
    "total_variation": ["inf", "nan"],
    "jitter": [10**9, -1],
    "blur_every": [10**30, -1],
    "blur_sigma": ["inf", "nan", 10**9, 0],
    "seed": [10**30, -1],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in OF_CLASSES.items() for value in values])
def test_number_of_classes_without_a_meaning_is_refused(key: str, value: object) -> None:
    keys = {key: value for key, value in TINY.items() if key != "runner"}
    with pytest.raises(InvalidRequestError, match=key.replace("_", ".")):
        read_config(ClassesConfig, {**keys, "out": "b", key: value})


@pytest.mark.parametrize(
    "spec",
    [
        "smoothgrad(n=1000000000)", "smoothgrad(n=0)", f"smoothgrad(n={HUGE})", "smoothgrad(spread=inf)",
        "smoothgrad(spread=nan)", "smoothgrad(spread=1e300)", "integrated_gradients(n=1000000)",
        "integrated_gradients(n=inf)",
    ],
)  # fmt: skip
def test_argument_of_a_method_without_a_meaning_is_refused(spec: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"n=|spread="):
        parse_method(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "top:1000000000", f"top:{HUGE}", f"class:{HUGE}", "x=weighted:{0: .inf}", "x=weighted:{0: 1e+300}",
        f"x=weighted:{{0: {HUGE}}}", f"x=weighted:{{{HUGE}: 1}}", f"x=weighted:{{0: 1{'0' * 400}}}",
        f"x=layer:body[1{'0' * 30}]", f"x=layer:body[{HUGE}]",
        f"x=weighted:{'[' * 3000}",
    ],
    ids=lambda spec: spec[:24],
)  # fmt: skip
def test_target_without_a_meaning_is_refused(spec: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"target|class"):
        parse_targets([spec])


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB + "images: *k\n", BOMB + "seed: *k\n", BOMB + "out: {x: *k}\n", "seed: " + "[" * 30_000, f"seed: {HUGE}",
        "seed: .nan", "stall_seconds: .inf", "max_pixels: -.inf", "threads: [1, 2]", "mean: [.inf, 0, 0]",
        "images: {a: b}", "out: 2024-99-99", "out: 2024-01-01", "limit: true", "methods: [[gradient]]", "seed: 0o8",
        "resize: [1, 2, 3]", "crop: [.nan, 3]", "threads: 1.5", "unit_size: {1: 2}", "targets: !!set {predicted}",
        "max_seconds: true", "allow_quarantined: 7", "mean: [true, false, yes]", "seed: 1\nseed: 2",
        "unit_size: 1\nunit-size: 2", "method: gradient\nmethods: fullgrad",
    ],
    ids=lambda text: text[-24:],
)  # fmt: skip
def test_yaml_of_another_kind_is_refused_by_its_key(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    key = text.splitlines()[-1].partition(":")[0]
    with pytest.raises(InvalidRequestError, match=f"{key}|{flag_of(key)}|cannot be read"):
        make_config({name: value for name, value in WHOLE.items() if name != key}, file=tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "text", [BOMB + "classes: *k\n", "lp: [6, .inf]", "steps: .nan", "classes: {a: b}", "jitter: true"]
)
def test_yaml_of_classes_too(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InvalidRequestError, match=r"classes|lp|steps|jitter"):
        read_config(ClassesConfig, {**TINY, "out": "b"}, file=tmp_path / "run.yaml")


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "1e300", "soon", ""])
def test_the_retry_time_is_a_number_of_seconds(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(InvalidRequestError, match=VARIABLE):
        retry_seconds()


def test_largest_numbers_work(tree: Path, finished: Path, tmp_path: Path) -> None:
    """A value that is accepted works."""
    year = 31_536_000
    code, output = run_inline(
        images=str(tree / "ant"), out=str(tmp_path / "s"), stall_seconds=year, unit_seconds=year, max_seconds=year,
        max_pixels=2**40, max_bytes=2**42, limit=2**63 - 1, seed=2**64 - 1, batch_size=2**63 - 1, unit_size=8,
        methods=("gradient", "smoothgrad(n=2, spread=0.1)"),
    )  # fmt: skip
    assert code == 3, output
    assert run_inline(images=str(tree / "ant"), out=str(tmp_path / "t"), unit_size=8, seed=2**64 - 1,
                      methods=("gradient", "smoothgrad(n=2, spread=0.1)"))[0] == 3  # fmt: skip
    assert content(tmp_path / "s") == content(tmp_path / "t")


def test_an_unreadable_record_is_not_written(finished: Path, tmp_path: Path) -> None:
    """An infinite number is null in JSON."""
    out = tmp_path / "s"
    shutil.copytree(finished, out)
    run = existing_run(str(out))
    assert run is not None and checked_json(run) == run.to_json()
    broken = run.model_copy(update={"agreement": {"cosine": float("nan")}})
    with pytest.raises(InvalidRequestError, match=r"run\.json could not be read again"):
        checked_json(broken)


@pytest.mark.parametrize("key", ["rows", "unit_size", "micro_batch", "n_classes"])
@pytest.mark.parametrize("value", [-1, 0, 10**30])
def test_record_with_numbers_of_no_store_is_refused(key: str, value: int, finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "s"))
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, key: value}))
    with pytest.raises(InvalidRequestError, match=rf"run\.json cannot be read.*{key}"):
        existing_run(str(out))


@pytest.mark.parametrize("mean, warned", [("127.5,127.5,127.5", True), ("0.485,0.456,0.406", False), ("1,1,1", False)])
def test_mean_of_pixels_up_to_255_is_warned_of(tree: Path, tmp_path: Path, mean: str, warned: bool) -> None:
    _, text = run_inline(images=str(tree / "ant"), out=str(tmp_path / "s"), unit_size=8, mean=mean)
    assert ("divide both by 255" in text) is warned, text
