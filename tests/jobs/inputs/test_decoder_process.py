"""Tests images that really kill the process that decodes them: each loses only its own row."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

import jobs.explain.decode_stage
from jobs.inputs.decode_image import DecodedImage, decode, decoding_memory, load_canonical
from jobs.inputs.decoder_process import Decoder, shared_decoder
from jobs.inputs.rejected import RejectedImage
from jobs.store.arrays import open_array
from jobs.store.store_access import open_run
from jobs.store.store_reader import open_store
from jobs.util.job_errors import JobStopped
from saliency_core.model.preprocessing import Preprocessing
from tests.conftest import TESTS, flags, run_inline
from tests.support.faults import crashing_decoder
from tests.support.faults.crashing_decoder import marked
from tests.support.input_files import picture
from tests.support.paths import PYTHONPATH

SMALL = Preprocessing(resize=(16, 16), crop=None, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3, channels=3)
CAP = 10**6
DEEDS = {
    "signal SIGSEGV": "killed the process that decodes, 2 times of 2 (SIGSEGV, Segmentation fault)",
    "signal SIGABRT": "MB of memory, or it is damaged (SIGABRT, Aborted)",
    "signal SIGKILL": "(SIGKILL, Killed)",
    "exit 7": "(exit code 7)",
    "hang": "s: if the image is sound, raise --max-seconds",
    "allocate": "of memory: if the image is sound, raise --max-pixels",
}


def ask(
    decoder: Decoder, data: bytes, *, function=crashing_decoder.decode, seconds: float = 30.0
) -> DecodedImage | RejectedImage:
    function = partial(function, preprocessing=SMALL, max_pixels=CAP)
    return decoder(function, data, seconds=seconds, memory=decoding_memory(data, max_pixels=CAP))


def child(decoder: Decoder) -> psutil.Process:
    assert decoder._child is not None
    return psutil.Process(decoder._child._process.pid)


# -- the process ----------------------------------------------------------------------------------------------


def test_the_process_returns_the_results_of_the_function() -> None:
    decoder, before = Decoder(), psutil.Process().children()
    for data in (picture(3), b"", b"junk", picture(9, (40, 30))):
        result, same = ask(decoder, data, function=decode), decode(data, SMALL, max_pixels=CAP)
        if isinstance(same, RejectedImage):
            assert result == same
        else:
            np.testing.assert_array_equal(result.pixels, same.pixels)
            assert (result.width, result.height) == (same.width, same.height)
    assert len(psutil.Process().children()) == len(before) + 1, "one process decodes them all"
    assert not {"torch", "pyarrow", "ray"} & imported_by(child(decoder))


def imported_by(process: psutil.Process) -> set[str]:
    """Packages whose native libraries are mapped into the process."""
    paths = [Path(mapped.path).parts for mapped in process.memory_maps()]
    return {parts[parts.index("site-packages") + 1] for parts in paths if "site-packages" in parts}


@pytest.mark.parametrize("deed", DEEDS)
def test_killer_is_rejected_and_the_next_is_decoded(deed: str) -> None:
    decoder = Decoder()
    result = ask(decoder, marked(picture(), deed), seconds=1.0 if deed == "hang" else 30.0)
    assert isinstance(result, RejectedImage) and DEEDS[deed] in result.reason
    assert isinstance(ask(decoder, picture(1)), DecodedImage)


def test_a_sound_image_is_decoded_again_if_the_process_dies_once(tmp_path: Path) -> None:
    assert isinstance(ask(Decoder(), marked(picture(), f"once {tmp_path / 'struck'}")), DecodedImage)
    assert (tmp_path / "struck").exists()


def test_killed_while_idle_is_replaced() -> None:
    decoder = Decoder()
    for _ in range(4):  # more often than the attempts for one image
        assert isinstance(ask(decoder, picture()), DecodedImage)
        child(decoder).kill()


def test_an_error_of_the_function_does_not_reject_the_image() -> None:
    decoder = Decoder()
    with pytest.raises(ZeroDivisionError, match="of the decoder's own"):
        ask(decoder, marked(picture(), "raise"))
    assert isinstance(ask(decoder, picture()), DecodedImage)


def test_the_result_of_an_interrupted_call_is_discarded() -> None:
    """Ctrl-C while an image is decoded: its result is discarded."""
    decoder = Decoder()
    assert isinstance(ask(decoder, picture()), DecodedImage)
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            ask(decoder, marked(picture(), "hang"))
    finally:
        signal.signal(signal.SIGALRM, previous)
    result = ask(decoder, picture(8, (31, 17)))
    assert isinstance(result, DecodedImage) and result.width == 31


def test_the_cpu_time_of_the_process_is_reported() -> None:
    decoder = Decoder()
    ask(decoder, picture())
    before, here = decoder.cpu_seconds(), time.process_time()
    buffer = io.BytesIO()
    Image.effect_noise((900, 900), 50).save(buffer, "PNG")
    for _ in range(5):
        ask(decoder, buffer.getvalue())
    assert decoder.cpu_seconds() - before > time.process_time() - here


def test_the_job_stops_if_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(JobStopped, match=r"3 of them ended at once \(exit code 1\)"):
        ask(Decoder(), picture())


@pytest.mark.slow
def test_processes_end_with_their_parent() -> None:
    """The parent ends normally, or by SIGKILL while an image is decoded."""
    script = """
import os, signal, sys, tests.jobs.inputs.test_decoder_process as t
from jobs.inputs.decoder_process import shared_decoder
t.ask(shared_decoder(), t.picture())
print(t.child(shared_decoder()).pid, flush=True)
if sys.argv[1] == "killed":
    t.ask(shared_decoder(), t.marked(t.picture(), "hang"), seconds=3.0)
sys.stdin.read()
"""
    for how in ("by itself", "killed"):
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
        parent = subprocess.Popen(
            [sys.executable, "-c", script, how],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert parent.stdout is not None
        decoding = psutil.Process(int(parent.stdout.readline()))
        if how == "killed":
            time.sleep(0.2)
            parent.kill()
        parent.communicate(timeout=60)
        decoding.wait(timeout=30)


def test_a_forked_process_has_its_own_decoder_process() -> None:
    """With a shared process, the parent and the child could receive each other's results."""
    mine = shared_decoder()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, b"other" if shared_decoder() is not mine else b"same")
        os._exit(0)
    os.wait()
    assert os.read(reader, 10) == b"other"
    os.close(reader)
    os.close(writer)


def test_program_in_the_working_directory_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL/__init__.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert isinstance(ask(Decoder(), picture()), DecodedImage)


# -- sound images that need much memory or time ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", ["JPEG", "progressive", "PNG", "deep PNG", "WEBP", "TIFF", "JPEG2000", "GIF", "AVIF"])
def test_image_at_the_cap_fits_into_its_memory(form: str) -> None:
    """Costly images of 4 Mpx (the cap) in each format fit into `decoding_memory` without its constant."""
    edge = 2048
    noise = Image.effect_noise((edge, edge), 80)
    buffer = io.BytesIO()
    match form:
        case "progressive":
            Image.merge("CMYK", [noise] * 4).save(buffer, "JPEG", progressive=True)
        case "deep PNG":
            deep = Image.fromarray(np.full((edge, edge), 700, np.uint16))
            deep.save(buffer, "PNG", transparency=700)
        case "GIF" | "JPEG":
            noise.save(buffer, form)
        case "WEBP" | "AVIF":
            Image.new("RGBA", (edge, edge), (9, 200, 40, 99)).save(buffer, form)
        case _:
            Image.merge("RGBA", [noise] * 4).resize((edge, edge)).save(buffer, form)
    data = buffer.getvalue()
    function = partial(decode, preprocessing=SMALL, max_pixels=edge**2)
    memory = decoding_memory(data, max_pixels=edge**2) - decoding_memory(b"", max_pixels=0)
    assert isinstance(shared_decoder()(function, data, seconds=120.0, memory=memory), DecodedImage)


# -- the job --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of sound images, and the same folder with killer images added."""
    sound, mixed = (tmp_path_factory.mktemp(name) for name in ("sound", "mixed"))
    for i in range(20):
        data = picture(12 * i, (20 + i, 30 - i))
        for folder in (sound, mixed):
            (folder / f"{i:02d}.png").write_bytes(data)
    for i, deed in enumerate(DEEDS):
        (mixed / f"{3 * i + 1:02d}-killer.png").write_bytes(marked(picture(), deed))
    return sound, mixed


def maps_by_name(out: Path) -> dict[str, np.ndarray]:
    lines = pq.read_table(out / "index.parquet").to_pylist()
    maps = open_array(open_run(str(out))[0], "predicted/gradient")[:]
    return {line["sample_id"]: maps[line["row"]] for line in lines}


def hold(sound: Path, mixed: Path) -> None:
    """Asserts that only killers are quarantined, each with its reason, and that other maps are bitwise unchanged."""
    expected, result = maps_by_name(sound), maps_by_name(mixed)
    lines = {line["sample_id"]: line for line in pq.read_table(mixed / "index.parquet").to_pylist()}
    assert len(lines) == len(expected) + len(DEEDS)
    for name, line in lines.items():
        if "killer" in name:
            reason = list(DEEDS.values())[(int(name[:2]) - 1) // 3]
            assert line["status"] == "quarantined" and reason in line["error"], line
            assert np.isnan(result[name]).all()
        else:
            assert line["status"] == "ok"
            np.testing.assert_array_equal(result[name], expected[name])


KEYS = {"unit_size": 8, "batch_size": 4, "max_seconds": 3, "max_pixels": CAP}


def test_killer_images_lose_only_their_own_rows(crowd: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    sound, mixed = crowd
    assert run_inline(images=str(sound), out=str(tmp_path / "sound"), **KEYS)[0] == 0
    monkeypatch.setattr(jobs.explain.decode_stage, "decode", crashing_decoder.decode)
    code, output = run_inline(images=str(mixed), out=str(tmp_path / "mixed"), **KEYS)
    assert code == 3 and f"{len(DEEDS)} quarantined" in output, output
    hold(tmp_path / "sound", tmp_path / "mixed")


@pytest.mark.slow
def test_killer_images_lose_only_their_own_rows_in_ray(crowd: tuple[Path, Path], tmp_path: Path) -> None:
    sound, mixed = crowd
    assert run_inline(images=str(sound), out=str(tmp_path / "sound"), **KEYS)[0] == 0
    arguments = flags(images=mixed, out=tmp_path / "mixed", **{**KEYS, "runner": "ray", "workers": 2})
    process = subprocess.run(
        [
            sys.executable, "-c", "from tests.support.faults.crashing_decoder import explain; import sys; "
            "explain(*sys.argv[1:])", *arguments,
        ],
        capture_output=True, text=True, timeout=280, cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "COLUMNS": "200"},
    )  # fmt: skip
    assert process.returncode == 3, process.stdout + process.stderr
    hold(tmp_path / "sound", tmp_path / "mixed")


def test_retry_with_a_longer_time_limit_explains_a_slow_image(tmp_path: Path, saliency) -> None:
    """A sound image exceeds the first time limit; the reader of originals uses the same limits."""
    images = tmp_path / "images"
    images.mkdir()
    Image.effect_noise((3000, 3000), 80).convert("RGB").save(images / "large.png")
    (images / "small.png").write_bytes(picture())
    out = tmp_path / "s"
    assert run_inline(images=str(images), out=str(out), max_seconds=0.05)[0] == 3
    (line,) = [row for row in pq.read_table(out / "index.parquet").to_pylist() if row["status"] == "quarantined"]
    assert line["sample_id"] == "large.png" and "longer than 0.05 s" in line["error"]
    original = open_store(str(out)).original(line["row"])
    assert isinstance(original, RejectedImage) and original.reason == line["error"]
    process = saliency("retry", out, "--max-seconds", 60, "--runner", "inline")
    assert process.returncode == 0, process.stdout + process.stderr
    original = open_store(str(out)).original(line["row"])
    assert isinstance(original, Image.Image)
    same = load_canonical((images / "large.png").read_bytes(), max_pixels=10**8)
    assert original.tobytes() == same.tobytes()
