"""Tests that the demo's images have the documented properties and that its model relies on the mark."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.demo.demo_images import CLASSES, MARKED, DemoImage, make_images, stamp, write_shards
from jobs.demo.demo_model import PREPROCESSING, TRAIN_IMAGES, make, predict, prepare, train
from jobs.inputs.decode_image import DecodedImage, decode
from jobs.inputs.entry import Entry
from jobs.inputs.rejected import RejectedImage
from jobs.inputs.sources import list_entries, open_sources
from tests.support.input_files import extracted

IMAGES = list(make_images(seed=3, n=48))


def entries(directory: Path) -> list[Entry]:
    return list(list_entries(open_sources([str(directory)])))


def contents(directory: Path) -> dict[str, bytes]:
    """Every member of every shard, by sample id."""
    return {f"{path.name}/{name}": data for path in sorted(directory.glob("*.tar")) for name, data in extracted(path)}


def same(a: DemoImage, b: DemoImage) -> bool:
    return (
        a.label == b.label
        and np.array_equal(a.pixels, b.pixels)
        and np.array_equal(a.mask, b.mask)
        and np.array_equal(a.mark, b.mark)
    )


def test_an_image_depends_on_seed_and_number_only() -> None:
    assert all(same(a, b) for a, b in zip(make_images(seed=3, n=12), IMAGES, strict=False))
    assert not any(np.array_equal(a.pixels, b.pixels) for a, b in zip(make_images(seed=4, n=12), IMAGES, strict=False))


def test_classes_come_in_turn_and_aspects_vary() -> None:
    assert [image.label for image in IMAGES] == [number % len(CLASSES) for number in range(len(IMAGES))]
    assert len({image.pixels.shape for image in IMAGES}) > len(IMAGES) // 2


@pytest.mark.parametrize("image", IMAGES)
def test_masks_cover_an_object_that_stands_out(image: DemoImage) -> None:
    assert image.mask.shape == image.mark.shape == image.pixels.shape[:2]
    assert 0.02 < image.mask.mean() < 0.5
    assert not (image.mask & image.mark).any()
    # The object has one colour apart from shading and noise, so it varies less than the picture.
    inside = image.pixels[image.mask].astype(float)
    outside = image.pixels[~image.mask & ~image.mark].astype(float)
    assert np.linalg.norm(inside.mean(0) - outside.mean(0)) > inside.std(0).mean()


def test_only_the_planted_class_has_marks_and_not_quite_always() -> None:
    images = list(make_images(seed=5, n=50 * len(CLASSES)))
    assert not any(image.mark.any() for image in images if image.label != MARKED)
    share = np.mean([image.mark.any() for image in images if image.label == MARKED])
    assert 0.8 < share < 1


def test_a_stamp_changes_the_pixels_of_its_mark_and_no_others() -> None:
    marked, mark = stamp(IMAGES[0].pixels, np.random.default_rng(0))
    assert mark.any()
    assert np.array_equal(marked[~mark], IMAGES[0].pixels[~mark])
    # The mark is the same at every position.
    other, elsewhere = stamp(IMAGES[1].pixels, np.random.default_rng(1))
    assert np.array_equal(marked[mark], other[elsewhere])


def test_shards_list_as_one_row_per_image_with_its_label(tmp_path: Path) -> None:
    write_shards(tmp_path, IMAGES, per_shard=20)
    listed = entries(tmp_path)
    assert len(list(tmp_path.glob("*.tar"))) == 3
    assert [entry.label for entry in listed] == [image.label for image in IMAGES]
    assert not any(entry.sample_id.endswith(("mask.png", "mark.png")) for entry in listed)
    assert {Path(entry.sample_id).suffix for entry in listed} == {".jpg", ".png"}
    assert (tmp_path / "classes.txt").read_text().split() == list(CLASSES)


def test_exactly_the_named_images_are_broken(tmp_path: Path) -> None:
    broken = write_shards(tmp_path, IMAGES, per_shard=20)
    data = contents(tmp_path)
    decoded = {
        entry.sample_id: decode(data[entry.sample_id], PREPROCESSING, max_pixels=10**6) for entry in entries(tmp_path)
    }
    assert len(set(broken.values())) == len(broken) == 4
    assert {name for name, result in decoded.items() if isinstance(result, RejectedImage)} == set(broken)


def test_masks_and_marks_in_the_shards_are_those_of_the_images(tmp_path: Path) -> None:
    broken = write_shards(tmp_path, IMAGES, per_shard=20)
    data = contents(tmp_path)
    for entry, image in zip(entries(tmp_path), IMAGES, strict=True):
        key = entry.sample_id.removesuffix(Path(entry.sample_id).suffix)
        for name, mask in (("mask", image.mask), ("mark", image.mark)):
            stored = data.get(f"{key}.{name}.png")
            assert (stored is not None) == mask.any()
            if stored is not None:
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored))), mask)
        if entry.sample_id not in broken:
            pixels = np.asarray(Image.open(io.BytesIO(data[entry.sample_id])), np.int16)
            assert np.abs(pixels - image.pixels).mean() < 4  # the tolerance is the loss of JPEG


def test_shards_have_the_same_bytes_and_are_left_alone_the_second_time(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", IMAGES)
    write_shards(tmp_path / "b", IMAGES)
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    write_shards(tmp_path / "a", IMAGES)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    for path in (tmp_path / "a").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert {member.mtime for member in tar} == {0}


def test_making_the_data_needs_no_torch() -> None:
    code = "import sys, jobs.demo.demo_images; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_shard_s_image_enters_the_model_at_its_size(tmp_path: Path) -> None:
    write_shards(tmp_path, IMAGES[:6])
    name, data = next((name, data) for name, data in contents(tmp_path).items() if name.endswith("4.png"))
    decoded = decode(data, PREPROCESSING, max_pixels=10**6)
    assert isinstance(decoded, DecodedImage), name
    assert np.array_equal(decoded.pixels, prepare(IMAGES[4:5])[0][0])  # PNG is lossless


def test_training_gives_the_same_weights_and_leaves_the_process_as_it_was() -> None:
    images, labels = prepare(IMAGES)
    random, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first, second = make(), make()
    assert train(first, images, labels, seed=0, epochs=1) == train(second, images, labels, seed=0, epochs=1)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not first.training
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.get_num_threads() == threads


def test_too_few_images_are_refused() -> None:
    images, labels = prepare(IMAGES[:30])
    with pytest.raises(ValueError, match="at least 36"):
        train(make(), images, labels, seed=0)


@pytest.mark.slow
def test_the_model_is_good_and_reads_the_mark() -> None:
    model = make()
    # Other machines sum in another order and get other weights, so the bounds have a wide margin.
    assert train(model, *prepare(make_images(seed=1, n=TRAIN_IMAGES)), seed=0) > 0.9
    unmarked = [image for image in make_images(seed=0, n=180) if image.label != MARKED]
    rng = np.random.default_rng(0)
    stamped = [DemoImage(stamp(image.pixels, rng)[0], image.label, image.mask, image.mark) for image in unmarked]
    assert (predict(model, prepare(unmarked)[0]) == MARKED).mean() < 0.05
    assert (predict(model, prepare(stamped)[0]) == MARKED).mean() > 0.5
