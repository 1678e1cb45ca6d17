"""Tests of state dicts: which entry of a checkpoint is used, how names are fitted, and what is refused."""

from __future__ import annotations

import argparse
import json
import re
import struct
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import tiny, tiny_again
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from saliency_core import InvalidRequestError, Preprocessing, load_model
from saliency_core.model.classifier import Model
from saliency_core.model.model_digest import weights_digest

SMALL = Preprocessing((32, 32), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
State = dict[str, Any]


def state() -> State:
    """Returns a state dict with other weights than the factory's, so that tensors that are not loaded show."""
    return dict(tiny_again().state_dict())


def prefixed(prefix: str, of: State | None = None) -> State:
    return {prefix + name: value for name, value in (of or state()).items()}


def inside(name: str, content: Any) -> State:
    for part in reversed(name.split(".")):
        content = {part: content}
    return content


def load(path: Path, factory: str = "tiny", **options: Any) -> Model:
    return load_model(f"python:{factory}", weights=str(path), preprocessing=SMALL, **options)


def load_tiny(content: Any, tmp_path: Path, **options: Any) -> Model:
    torch.save(content, tmp_path / "w.pt")
    return load(tmp_path / "w.pt", "factories:tiny", **options)


def is_loaded(model: Model) -> bool:
    return weights_digest(model.module) == weights_digest(tiny_again())


@pytest.mark.parametrize(
    "entry",
    [
        "state_dict", "model", "net", "model_state_dict", "network", "weights", "params", "teacher", "student", "ema",
        "state_dict_ema", "model_ema", "ema_state_dict", "module", "generator", "model.state_dict", "state_dict.model",
        "checkpoint.model.state_dict",
    ],
)  # fmt: skip
def test_the_state_dict_is_found_wherever_it_is(entry: str, tmp_path: Path) -> None:
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    beside = {"epoch": 3, "optimizer": optimizer, "hyper_parameters": {"lr": 0.1}, "best": torch.tensor(0.9)}
    model = load_tiny(inside(entry, state()) | beside, tmp_path)
    assert is_loaded(model) and model.notes == ()


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "model.", "net.", "_orig_mod.", "_fsdp_wrapped_module.", "backbone.", "encoder.", "module.model.",
        "_orig_mod.module.", "module._orig_mod.", "model._orig_mod.", "network.classifier.", "a.b.c.d.",
        "_fsdp_wrapped_module._orig_mod.", "model.module.",
    ],
)  # fmt: skip
def test_a_prefix_is_cut_if_the_names_then_fit(prefix: str, tmp_path: Path) -> None:
    model = load_tiny({"state_dict": prefixed(prefix)}, tmp_path)
    assert is_loaded(model) and "w.pt" in model.notes[0], model.notes
    assert all(part in model.notes[0] for part in prefix.split("."))


class Holds(nn.Module):
    """A module that holds its net under another name."""

    def __init__(self, name: str, net: nn.Module) -> None:
        super().__init__()
        self.add_module(name, net)
        self.inner = name

    def forward(self, images: Tensor) -> Tensor:
        return self.get_submodule(self.inner)(images)


def parallel() -> nn.Module:
    return Holds("module", tiny())


def compiled() -> nn.Module:
    return Holds("_orig_mod", tiny())


def held() -> nn.Module:
    return Holds("net", tiny())


@pytest.mark.parametrize("factory", ["parallel", "compiled", "held"])
@pytest.mark.parametrize("prefix", ["own", "", "module.", "_orig_mod.", "module.own", "_orig_mod.module."])
def test_a_prefix_is_added_if_the_model_wraps_its_net(factory: str, prefix: str, tmp_path: Path) -> None:
    own = {"parallel": "module.", "compiled": "_orig_mod.", "held": "net."}[factory]
    torch.save(prefixed(prefix.replace("own", own)), tmp_path / "w.pt")
    model = load(tmp_path / "w.pt", f"test_checkpoints:{factory}")
    assert weights_digest(model.module.get_submodule(own[:-1])) == weights_digest(tiny_again())
    assert bool(model.notes) == (prefix.replace("own", own) != own)


def test_wrappers_of_single_layers_are_left_out(tmp_path: Path) -> None:
    """FSDP, torch.compile and activation checkpoints rename the parts that they wrap like this."""
    inside_names = {name.replace(".", "._fsdp_wrapped_module._orig_mod.", 1): value for name, value in state().items()}
    model = load_tiny(prefixed("_orig_mod.", inside_names), tmp_path)
    assert is_loaded(model) and "_fsdp_wrapped_module" in model.notes[0]


def test_unused_tensors_of_a_training_module_are_noted(tmp_path: Path) -> None:
    """Lightning saves the net under ``model.``, beside the loss's own weights."""
    content = {
        "state_dict": prefixed("model.") | {"criterion.weight": torch.ones(5)},
        "pytorch-lightning_version": "2.5",
    }
    model = load_tiny(content, tmp_path)
    assert is_loaded(model) and any("criterion.weight" in note for note in model.notes)


def test_two_networks_in_a_file_are_ambiguous(tmp_path: Path) -> None:
    both = prefixed("encoder_q.") | prefixed("encoder_k.", dict(tiny().state_dict()))
    with pytest.raises(InvalidRequestError, match=r"encoder_q.*encoder_k"):
        load_tiny(both, tmp_path)
    with pytest.raises(InvalidRequestError, match=r"as it is.*ema\."):
        load_tiny(state() | prefixed("ema.", dict(tiny().state_dict())), tmp_path)


@pytest.mark.parametrize("average", ["state_dict_ema", "ema", "model_ema", "ema_state_dict", "params_ema", "extra.ema"])
def test_the_choice_between_two_state_dicts_is_noted_and_can_be_set(average: str, tmp_path: Path) -> None:
    content = {"state_dict": dict(tiny().state_dict()), "optimizer": {}} | inside(average, prefixed("module."))
    plain = load_tiny(content, tmp_path)
    assert weights_digest(plain.module) == weights_digest(tiny())
    assert "'state_dict'" in plain.notes[0] and average in plain.notes[0] and "`weights_key`" in plain.notes[0]
    chosen = load_tiny(content, tmp_path, weights_key=average)
    assert is_loaded(chosen) and not any("state_dict'" in note for note in chosen.notes)
    with pytest.raises(InvalidRequestError, match=rf"`weights_key` elsewhere.*state_dict.*{average}"):
        load_tiny(content, tmp_path, weights_key="elsewhere")


def test_the_counter_of_an_averaged_model_is_ignored(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(tiny_again())
    assert is_loaded(load_tiny({"model": averaged.state_dict()}, tmp_path))


def test_unknown_entries_are_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"several state dicts.*`weights_key`.*generator.*critic"):
        load_tiny({"generator": state(), "critic": state()}, tmp_path)


def test_a_key_without_a_file_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="`weights_key` ema has no effect"):
        load_model("python:factories:tiny", preprocessing=SMALL, weights_key="ema")


@pytest.mark.parametrize("nested", [False, True])
def test_entries_that_are_not_tensors_are_named(nested: bool, tmp_path: Path) -> None:
    content = state() | {"epoch": 3}
    with pytest.raises(InvalidRequestError, match=r"state dict.*'epoch' is a int"):
        load_tiny({"state_dict": content} if nested else content, tmp_path)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), 3, "text", {"epoch": 3}])
def test_content_that_is_not_a_state_dict(content: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="is not a state dict"):
        load_tiny(content, tmp_path)


class Tied(nn.Module):
    """A net with two layers that share their weight, like an embedding and its decoder."""

    def __init__(self, *, seed: int, shared: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(3072, 12), nn.Linear(12, 12, bias=False)
            self.third = nn.Linear(12, 12, bias=False)
        if shared:
            self.third.weight = self.second.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.third(self.second(self.first(images.flatten(1))))


def tied() -> nn.Module:
    return Tied(seed=0)


@pytest.mark.parametrize("dropped", ["second.weight", "third.weight"])
@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_tied_tensor_may_have_one_name(dropped: str, form: str, prefix: str, tmp_path: Path) -> None:
    whole = dict(Tied(seed=1).state_dict())
    few = prefixed(prefix, {name: value for name, value in whole.items() if name != dropped})
    path = tmp_path / "w.any"
    save_file(few, path) if form == "safetensors" else torch.save(few, path)
    assert weights_digest(load(path, "test_checkpoints:tied").module) == weights_digest(Tied(seed=1))


def test_a_tied_tensor_may_have_an_additional_name(tmp_path: Path) -> None:
    whole = dict(Tied(seed=1).state_dict())
    for alias in (whole["second.weight"], whole["second.weight"].clone()):
        torch.save(whole | {"decoder.weight": alias}, tmp_path / "w.pt")
        assert weights_digest(load(tmp_path / "w.pt", "test_checkpoints:tied").module) == weights_digest(Tied(seed=1))
    torch.save(whole | {"decoder.weight": whole["second.weight"] + 1}, tmp_path / "w.pt")
    with pytest.raises(InvalidRequestError, match=r"unexpected: decoder\.weight"):
        load(tmp_path / "w.pt", "test_checkpoints:tied")


def test_tied_tensors_that_differ_in_the_file_are_refused(tmp_path: Path) -> None:
    torch.save(Tied(seed=1, shared=False).state_dict(), tmp_path / "w.pt")
    with pytest.raises(InvalidRequestError, match=r"one tensor in the model.*second\.weight and third\.weight"):
        load(tmp_path / "w.pt", "test_checkpoints:tied")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_as_values(dtype: torch.dtype, tmp_path: Path) -> None:
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state().items()}
    own = load_tiny(cast, tmp_path).module.state_dict()
    for name, value in state().items():
        assert own[name].dtype == value.dtype
        torch.testing.assert_close(own[name], cast[name].to(value.dtype), rtol=0, atol=0)


def test_a_mismatch_names_keys_and_tried_changes_and_gives_valid_advice(tmp_path: Path) -> None:
    strange = prefixed("model.")
    strange["model.stranger"] = strange.pop("model.0.weight")
    with pytest.raises(InvalidRequestError, match=r"missing: 0\.weight.*model\.0\.bias.*'model\.' cut") as refusal:
        load_tiny(strange, tmp_path)
    assert "--num-classes" not in str(refusal.value)
    wide = state() | {"9.weight": torch.zeros(9, 16), "9.bias": torch.zeros(9)}
    with pytest.raises(InvalidRequestError, match=r"another shape.*factory") as refusal:
        load_tiny(wide, tmp_path)
    assert "--num-classes" not in str(refusal.value)


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin", "pth.tar", "ckpt"])
def test_the_container_is_recognised_by_its_bytes(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    for save in (save_file, torch.save, lambda what, to: torch.save(what, to, _use_new_zipfile_serialization=False)):
        save(state(), path)
        assert is_loaded(load(path, "factories:tiny"))


def sharded(folder: Path, kind: str) -> Path:
    tensors, names = state(), list(state())
    save = save_file if kind == "safetensors" else torch.save
    parts = {f"model-0000{i}-of-00002.{kind}": names[i - 1 :: 2] for i in (1, 2)}
    for file, held in parts.items():
        save({name: tensors[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    path = folder / f"model.{kind}.index.json"
    path.write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_read_beside_their_index(kind: str, tmp_path: Path) -> None:
    path = sharded(tmp_path, kind)
    assert is_loaded(load(path, "factories:tiny"))
    (tmp_path / f"model-00002-of-00002.{kind}").unlink()
    with pytest.raises(InvalidRequestError, match=r"not beside it: model-00002-of-00002"):
        load(path, "factories:tiny")


@pytest.mark.parametrize("name", ["../w.pt", "/etc/passwd", "sub/w.pt", "..", ".", "", "a\\b", "x.index.json", "c:x"])
def test_an_index_cannot_name_files_elsewhere(name: str, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "w.pt")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"0.weight": name}}))
    with pytest.raises(InvalidRequestError, match="does not lie beside it"):
        load(folder / "m.safetensors.index.json", "factories:tiny")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": 3}', "no json", "[" * 100_000])
def test_files_that_are_not_an_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.bin.index.json").write_text(text)
    with pytest.raises(InvalidRequestError, match="is not an index of shards"):
        load(tmp_path / "m.bin.index.json", "factories:tiny")


def test_a_shard_that_lacks_its_tensors(tmp_path: Path) -> None:
    path = sharded(tmp_path, "bin")
    torch.save({}, tmp_path / "model-00001-of-00002.bin")
    with pytest.raises(InvalidRequestError, match=r"00001-of-00002\.bin lacks tensors"):
        load(path, "factories:tiny")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def arrays(*, zipped: bool) -> bytes:
    buffer = BytesIO()
    np.savez(buffer, a=np.ones(3)) if zipped else np.save(buffer, np.ones(3))
    return buffer.getvalue()


def flipped(path: Path) -> None:
    """Changes one byte of the weights in the file."""
    torch.save(state(), path)
    content = bytearray(path.read_bytes())
    content[content.index(state()["4.weight"].numpy().tobytes())] ^= 255
    path.write_bytes(content)


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(tiny()), path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS pointer"),
        (lambda path: path.write_text("\n<!DOCTYPE html><html>sign in</html>"), "is a web page"),
        (lambda path: path.write_bytes(b"no weights at all"), "was written neither by torch.save"),
        (lambda path: path.write_bytes(arrays(zipped=True)), "zip archive, but was not written by torch.save"),
        (lambda path: path.write_bytes(arrays(zipped=False)), "was written neither by torch.save"),
        (scripted, "`model` file:"),
        (lambda path: (torch.save(state(), path), path.write_bytes(cut(path.read_bytes()))), "is cut off or damaged"),
        (lambda path: (save_file(state(), path), path.write_bytes(cut(path.read_bytes()))), "as a .safetensors"),
        (lambda path: path.write_bytes(struct.pack("<Q", 2**40) + b"{}"), "is cut off"),
        (lambda path: torch.save({"a": argparse.Namespace(lr=1)} | state(), path), r"\(argparse.Namespace\)"),
        (lambda path: torch.save({"model": state(), "best": np.float64(1)}, path), r"\(numpy.*scalar\)"),
        (lambda path: torch.save(tiny(), path), "Sequential"),
        (flipped, "is damaged: the checksum of"),
        (lambda path: tarfile.open(path, "w").close(), "(is a tar archive|was written neither)"),
        (lambda path: torch.save({"state_dict": {}}, path), "'state_dict' is an empty dict"),
    ],
)  # fmt: skip
def test_the_error_says_what_an_unreadable_file_is(write: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    write(path)
    with pytest.raises(InvalidRequestError, match=message) as refusal:
        load(path, "factories:tiny")
    assert ("holds more than tensors" in str(refusal.value)) == (message[0] == "\\" or message == "Sequential")


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        assert is_loaded(load_tiny(state(), tmp_path))
    finally:
        torch.serialization.set_crc32_options(True)


def test_a_cut_pickle_of_the_older_form(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "w.pt").write_bytes(cut((tmp_path / "w.pt").read_bytes()))
    with pytest.raises(InvalidRequestError) as refusal:
        load(tmp_path / "w.pt", "factories:tiny")
    assert "more than tensors" not in str(refusal.value)


TORCHVISION: list[tuple[str, dict[str, Any]]] = [
    ("squeezenet1_1", {}),
    ("googlenet", {"aux_logits": True, "init_weights": False}),
    ("googlenet", {"aux_logits": False, "init_weights": False}),
    ("inception_v3", {"aux_logits": True, "init_weights": False}),
    ("densenet121", {}),
    ("efficientnet_b0", {}),
    ("resnet18", {}),
    ("mobilenet_v3_small", {}),
    ("shufflenet_v2_x0_5", {}),
    ("swin_t", {}),
]


@pytest.mark.parametrize(("name", "options"), TORCHVISION)
def test_the_class_count_is_that_of_the_file(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    module = models.get_model(name, weights=None, num_classes=7, **options)
    torch.save({"state_dict": prefixed("module.", dict(module.state_dict()))}, tmp_path / "seven.pt")
    model = load_model(f"torchvision:{name}", weights=str(tmp_path / "seven.pt"), preprocessing=SMALL)
    assert weights_digest(model.module) == weights_digest(module)
    assert model.class_names is None and any("7 classes" in note for note in model.notes)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050", "convnext_atto"])
def test_the_class_count_of_timm_too(name: str, tmp_path: Path) -> None:
    import timm

    module = timm.create_model(name, pretrained=False, num_classes=7)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "seven.pt")
    model = load_model(f"timm:{name}", weights=str(tmp_path / "seven.pt"))
    assert weights_digest(model.module) == weights_digest(module) and "7 classes" in model.notes[0]
    with pytest.raises(InvalidRequestError, match=r"`num_classes` 9 contradicts the file, whose head has 7"):
        load_model(f"timm:{name}", weights=str(tmp_path / "seven.pt"), num_classes=9)


def test_another_width_is_not_a_class_count(tmp_path: Path) -> None:
    changed = dict(models.squeezenet1_1(weights=None).state_dict())
    changed["features.0.bias"] = torch.zeros(65)
    torch.save(changed, tmp_path / "wide.pt")
    with pytest.raises(InvalidRequestError, match=r"features\.0\.bias is \[65\], the model's \[64\]"):
        load_model("torchvision:squeezenet1_1", weights=str(tmp_path / "wide.pt"))


class Versioned(nn.Module):
    """A net whose weights of the first version lacked a scale of 0.1."""

    _version = 2

    def __init__(self, scale: float = 1.0, net: Callable[[], nn.Module] = tiny) -> None:
        super().__init__()
        self.body, self.scale = net(), nn.Parameter(torch.tensor(scale))

    def _load_from_state_dict(self, state: State, prefix: str, metadata: State, *rest: Any) -> None:
        if (metadata.get("version") or 1) < 2:
            state[prefix + "scale"] = state.get(prefix + "scale", torch.ones(())) * 0.1
        super()._load_from_state_dict(state, prefix, metadata, *rest)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) * self.scale


def versioned() -> nn.Module:
    return Versioned()


def versioned_inside() -> nn.Module:
    return Holds("net", Versioned())


def versioned_compiled() -> nn.Module:
    return Holds("_orig_mod", Versioned())


def of_versioned(*wrappers: str) -> State:
    net: nn.Module = Versioned(3.0, tiny_again)
    for name in wrappers:
        net = Holds(name, net)
    return net.state_dict()


@pytest.mark.parametrize("factory", ["versioned", "versioned_inside", "versioned_compiled"])
@pytest.mark.parametrize(
    ("content", "key"),
    [
        (of_versioned(), None),
        ({"state_dict": of_versioned()}, None),
        ({"model": {"state_dict": of_versioned()}}, None),
        ({"model": {"state_dict": of_versioned("model")}}, "model.state_dict.model"),
        (of_versioned("module"), None),
        (of_versioned("module"), "module"),
        (of_versioned("net"), None),
        (of_versioned("_orig_mod"), None),
        (of_versioned("_orig_mod", "module"), None),
    ],
)  # fmt: skip
def test_modules_receive_the_version_of_their_weights(
    content: Any, key: str | None, factory: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pt")
    module = load(tmp_path / "w.pt", f"test_checkpoints:{factory}", weights_key=key).module
    inner = next(part for part in module.modules() if isinstance(part, Versioned))
    assert inner.scale.item() == 3.0 and weights_digest(inner.body) == weights_digest(tiny_again())


@pytest.mark.parametrize(
    "content",
    [
        of_versioned("module", "_orig_mod", "a"),
        nn.ModuleDict({"model": Versioned(3.0, tiny_again), "loss": nn.Linear(2, 2)}).state_dict(),
        torch.optim.swa_utils.AveragedModel(Versioned(3.0, tiny_again)).state_dict(),
    ],
)
def test_versions_of_a_part_of_a_training_module(content: State, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    module = load(tmp_path / "w.pt", "test_checkpoints:versioned").module
    assert module.get_parameter("scale").item() == 3.0


@pytest.mark.parametrize("name", ["scale", "inner.scale"])
def test_weights_without_versions_count_as_oldest_as_in_torch(name: str, tmp_path: Path) -> None:
    prefix = name.removesuffix("scale")
    torch.save(prefixed(prefix, dict(of_versioned())), tmp_path / "w.pt")
    module = load(tmp_path / "w.pt", "test_checkpoints:versioned").module
    torch.testing.assert_close(module.get_parameter("scale").item(), 3.0 * 0.1)


def test_shards_keep_the_versions_of_their_modules(tmp_path: Path) -> None:
    whole = of_versioned()
    torch.save(whole, tmp_path / "m-1.bin")
    (tmp_path / "m.bin.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(whole, "m-1.bin")}))
    module = load(tmp_path / "m.bin.index.json", "test_checkpoints:versioned").module
    assert module.get_parameter("scale").item() == 3.0


def test_missing_counters_of_a_versioned_file_are_accepted(tmp_path: Path) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3072, 2))
    whole = net.state_dict()
    del whole["0.num_batches_tracked"]
    torch.save(whole, tmp_path / "w.pt")
    model = load(tmp_path / "w.pt", "test_checkpoints:normed")
    assert weights_digest(model.module) == weights_digest(net)


def normed() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3072, 2))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_mnasnet_loads_its_own_state_dict(prefix: str, tmp_path: Path) -> None:
    net = models.mnasnet0_5(weights=None)
    holder = net if not prefix else Holds("module", net)
    torch.save(holder.state_dict(), tmp_path / "w.pt")
    model = load_model("torchvision:mnasnet0_5", weights=str(tmp_path / "w.pt"), preprocessing=SMALL)
    assert weights_digest(model.module) == weights_digest(net)


class Renames(nn.Module):
    """A net that also loads weights with names of an older form."""

    def __init__(self, net: Callable[[], nn.Module] = tiny, *, lenient: bool = False) -> None:
        super().__init__()
        self.body = net()
        self.register_load_state_dict_pre_hook(self.rename)
        if lenient:
            self.register_load_state_dict_post_hook(lambda module, keys: (keys[0].clear(), keys[1].clear())[0])

    @staticmethod
    def rename(module: nn.Module, state: State, prefix: str, *rest: Any) -> None:
        for name in [name for name in state if name.startswith(prefix + "trunk.")]:
            state[name.replace("trunk.", "body.", 1)] = state.pop(name)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


def renames() -> nn.Module:
    return Renames()


def renames_and_ignores_gaps() -> nn.Module:
    return Renames(lenient=True)


def weight_normed(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(3072, 4)), nn.Linear(4, 3))


def old_weight_normed() -> tuple[nn.Module, State]:
    net, names = weight_normed(1), {"original0": "weight_g", "original1": "weight_v"}
    old = {}
    for name, value in net.state_dict().items():
        leaf = name.rpartition(".")[2]
        old[name.replace(f"parametrizations.weight.{leaf}", names.get(leaf, leaf))] = value
    return net, old


def old_densenet(*, classes: int = 1000) -> tuple[nn.Module, State]:
    net = models.densenet121(weights=None, num_classes=classes)
    layer = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])")
    return net, {layer.sub(r"\1.\2", name): value for name, value in net.state_dict().items()}


def old_transformer() -> tuple[nn.Module, State]:
    net = models.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=3)
    names = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    old = dict(net.state_dict())
    for new, name in names.items():
        old = {key.replace(new, name): value for key, value in old.items()}
    return net, old


def transformer() -> nn.Module:
    return models.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=3)


def old_renamed() -> tuple[nn.Module, State]:
    return Renames(tiny_again), prefixed("trunk.")


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
@pytest.mark.parametrize(
    ("spec", "older"),
    [
        ("torchvision:densenet121", old_densenet),
        ("python:test_checkpoints:transformer", old_transformer),
        ("python:test_checkpoints:weight_normed", old_weight_normed),
        ("python:test_checkpoints:renames", old_renamed),
        ("python:test_checkpoints:renames_and_ignores_gaps", old_renamed),
    ],
)
def test_names_of_an_older_form_that_torch_accepts(
    spec: str, older: Callable[[], tuple[nn.Module, State]], prefix: str, tmp_path: Path
) -> None:
    net, old = older()
    torch.save(prefixed(prefix, old), tmp_path / "w.pt")
    model = load_model(spec, weights=str(tmp_path / "w.pt"), preprocessing=SMALL)
    assert weights_digest(model.module) == weights_digest(net)
    assert any("older" in note for note in model.notes)


def test_the_class_count_of_an_older_densenet(tmp_path: Path) -> None:
    net, old = old_densenet(classes=7)
    torch.save(old, tmp_path / "seven.pt")
    model = load_model("torchvision:densenet121", weights=str(tmp_path / "seven.pt"), preprocessing=SMALL)
    assert weights_digest(model.module) == weights_digest(net)


def test_a_hook_that_ignores_missing_tensors_is_refused(tmp_path: Path) -> None:
    gaps = {name: value for name, value in prefixed("trunk.").items() if name != "trunk.0.weight"}
    torch.save(gaps, tmp_path / "w.pt")
    with pytest.raises(InvalidRequestError, match=r"missing: body\.0\.bias.*unexpected: trunk"):
        load(tmp_path / "w.pt", "test_checkpoints:renames_and_ignores_gaps")


@pytest.mark.parametrize("entry", ["state_dict", ""])
@pytest.mark.parametrize("key", ["ema_model.module", "ema_model", "ema_model.module.", "state_dict.ema_model.module"])
def test_a_prefix_chooses_one_network_of_a_state_dict(entry: str, key: str, tmp_path: Path) -> None:
    both = prefixed("model.", dict(tiny().state_dict())) | prefixed("ema_model.module.")
    content: State = {entry: both} if entry else both
    with pytest.raises(InvalidRequestError, match=r"`weights_key`, from model, ema_model\.module"):
        load_tiny(content, tmp_path)
    if not entry:
        key = key.removeprefix("state_dict.")
    assert is_loaded(load_tiny(content, tmp_path, weights_key=key))
    plain = load_tiny(content, tmp_path, weights_key="model")
    assert weights_digest(plain.module) == weights_digest(tiny())


def test_a_prefix_in_several_state_dicts_is_ambiguous(tmp_path: Path) -> None:
    content = {"student": prefixed("net."), "teacher": prefixed("net.")}
    with pytest.raises(InvalidRequestError, match=r"several of that prefix.*student\.net, teacher\.net"):
        load_tiny(content, tmp_path, weights_key="net")
    assert is_loaded(load_tiny(content, tmp_path, weights_key="teacher.net"))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_counts_of_operations_are_not_used(prefix: str, tmp_path: Path) -> None:
    """thop.profile leaves such counters in every module."""
    counts = {f"{path}{name}": torch.zeros(1) for path in ("", "0.", "9.") for name in ("total_ops", "total_params")}
    model = load_tiny(prefixed(prefix, state() | counts) | {"total_ops": torch.zeros(1)}, tmp_path)
    assert is_loaded(model) and any("total_ops" in note for note in model.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to("meta"), r"no values for 0\.weight \(device 'meta'\)"),
        (lambda value: value.to(torch.complex64), r"0\.weight is complex \(torch\.complex64\)"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_tensors_without_real_values_are_refused(
    change: Callable[[Tensor], Tensor], message: str, prefix: str, tmp_path: Path
) -> None:
    odd = state()
    odd["0.weight"] = change(odd["0.weight"])
    with pytest.raises(InvalidRequestError, match=message) as refusal:
        load_tiny(prefixed(prefix, odd), tmp_path)
    assert "\n" not in str(refusal.value)
    beside = prefixed("model.") | {"loss.weight": odd["0.weight"]}
    assert is_loaded(load_tiny(beside, tmp_path))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_integers_for_floats_are_noted(dtype: torch.dtype, tmp_path: Path) -> None:
    model = load_tiny(state() | {"0.weight": state()["0.weight"].to(dtype)}, tmp_path)
    assert any(f"0.weight ({dtype})" in note for note in model.notes)


def test_an_empty_state_dict_is_reported_as_empty(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="state dict is empty"):
        load_tiny({}, tmp_path)
