"""Tests of factories with unusual or hostile code: it cannot end the job, and usable models are explained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import tiny
from torch import Tensor, nn

from saliency_core import Explainer, InvalidRequestError, Model, Preprocessing, load_model
from saliency_core.model.import_path import refuse_exit_attempts
from saliency_core.model.model_digest import weights_digest
from saliency_core.targets.target_parsing import parse_targets

SMALL = Preprocessing((32, 32), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3)


def build(factory: str, **options: Any) -> Model:
    return load_model(f"python:test_user_factory:{factory}", preprocessing=SMALL, **options)


class Leaves(BaseException):
    """A user's exception that is not an ``Exception``."""


class Stops(KeyboardInterrupt):
    pass


def raising(error: BaseException) -> Callable[[], nn.Module]:
    def factory() -> nn.Module:
        raise error

    return factory


exits = raising(SystemExit(0))
exits_with_words = raising(SystemExit("usage: net"))
leaves = raising(Leaves("now"))
stops = raising(Stops())
closes = raising(GeneratorExit())
fails = raising(RuntimeError("no luck"))
interrupted = raising(KeyboardInterrupt())


class Exits(nn.Module):
    """A module that calls sys.exit when its method ``when`` is called."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.net = tiny()
        setattr(self, when, lambda *_, **__: sys.exit(0))


def exits_in_eval() -> nn.Module:
    return Exits("train")


def exits_in_state_dict() -> nn.Module:
    return Exits("state_dict")


def needs_arguments(depth: int, *, width: int, heads: int = 1) -> nn.Module:
    return tiny()


def returns_class() -> object:
    return Exits


def returns_none() -> None:
    tiny()


async def asynchronous() -> nn.Module:
    return tiny()


def generator() -> Any:
    yield tiny()


def returns_pair() -> object:
    return tiny(), SMALL


def returns_state() -> object:
    return {"net": 1}


instance = tiny()
number = 3


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("exits", r"called sys\.exit\(0\)"),
        ("exits_with_words", r"called sys\.exit\('usage: net'\)"),
        ("leaves", r"raised Leaves \(now\)"),
        ("stops", "raised Stops"),
        ("closes", "raised GeneratorExit"),
        ("fails", "could not be built: RuntimeError: no luck"),
        ("exits_in_eval", r"called sys\.exit\(0\)"),
        ("exits_in_state_dict", r"called sys\.exit\(0\)"),
        ("needs_arguments", r"needs arguments \(depth, width\)"),
        ("returns_class", r"returned the class Exits \(`return Exits\(\)`"),
        ("returns_none", "returned None"),
        ("asynchronous", "returned a coroutine"),
        ("generator", "returned a generator"),
        ("returns_pair", "returned a tuple of 2"),
        ("returns_state", "returned a dict"),
        ("instance", "is a Sequential itself"),
        ("number", "is a int, which cannot be called"),
        ("absent", "cannot be imported: .*absent"),
    ],
)
def test_a_factory_that_does_not_return_a_module(factory: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        build(factory)


def test_ctrl_c_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        build("interrupted")
    with pytest.raises(KeyboardInterrupt), refuse_exit_attempts("nothing"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys; sys.exit(0)", r"called sys\.exit\(0\)"),
        ("raise SystemExit", r"called sys\.exit\(\)"),
        ("class Own(BaseException): pass\nraise Own('bye')", r"raised Own \(bye\)"),
        ("raise ValueError('three')", "raises ValueError: three"),
        ("1 / 0", "raises ZeroDivisionError"),
        ("def broken(:", "raises SyntaxError"),
        ("import no_such_package_at_all", "No module named 'no_such_package_at_all'"),
        ("", "has no attribute 'make'"),
        ("def __getattr__(name): raise SystemExit(2)", r"called sys\.exit\(2\)"),
    ],
)
@pytest.mark.parametrize("kind", ["model", "loss"])
def test_a_module_that_cannot_be_imported(
    source: str, message: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"mine_{kind}_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidRequestError, match=f"cannot be imported.*{message}"):
        if kind == "model":
            load_model(f"python:{name}:make", preprocessing=SMALL)
        else:
            parse_targets([f"own=loss:{name}:make"])


class Overrides(nn.Sequential):
    """A module that overrides methods of every module without a ``return self``."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)

    def eval(self) -> None:  # type: ignore[override]
        super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> None:  # type: ignore[override]
        super().requires_grad_(requires_grad)

    def to(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        super().to(*args, **kwargs)

    def float(self) -> None:  # type: ignore[override]
        super().float()


class NoArguments(nn.Sequential):
    def train(self) -> None:  # type: ignore[override]
        """Takes no mode, so that nn.Module.eval() cannot call it."""


class AlwaysTraining(nn.Sequential):
    def eval(self) -> nn.Module:  # type: ignore[override]
        return self.train()


class EvalRaises(nn.Sequential):
    def eval(self) -> nn.Module:  # type: ignore[override]
        raise RuntimeError("not now")


class Restless(nn.Sequential):
    """A module that is in eval mode, with a part that returns to train mode."""

    def eval(self) -> nn.Module:  # type: ignore[override]
        super().eval()
        self[1].train()
        return self


def overrides() -> nn.Module:
    return Overrides(*tiny())


def no_arguments() -> nn.Module:
    return NoArguments(*tiny())


def always_training() -> nn.Module:
    return AlwaysTraining(*tiny())


def eval_raises() -> nn.Module:
    return EvalRaises(*tiny())


def restless() -> nn.Module:
    return Restless(*tiny())


@pytest.mark.parametrize("factory", ["overrides", "no_arguments", "always_training", "eval_raises", "restless"])
@pytest.mark.parametrize("from_file", [False, True])
def test_a_module_is_in_eval_mode_even_if_it_overrides_methods(factory: str, from_file: bool, tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "w.pt")
    model = build(factory, weights=str(tmp_path / "w.pt") if from_file else None)
    assert not any(part.training for part in model.module.modules())
    assert not any(value.requires_grad for value in model.module.parameters())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = tiny().eval().requires_grad_(False)
    torch.testing.assert_close(model.logits(images), plain(images))


class MonteCarlo(nn.Sequential):
    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.Dropout):
                part.training = True
        return self


def monte_carlo() -> nn.Module:
    return MonteCarlo(*tiny(), nn.Dropout(), nn.Identity().train())


def test_modules_that_stay_in_training_mode_are_noted() -> None:
    notes = [note for note in build("monte_carlo").notes if "training mode" in note]
    assert len(notes) == 1 and "(Dropout)" in notes[0] and "Identity" not in notes[0]
    assert not any("training mode" in note for note in build("overrides").notes)


def lazy() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))


def lazy_and_wrong() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(5))


class Unreached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.other = tiny(), nn.LazyLinear(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


def lazy_and_unreached() -> nn.Module:
    return Unreached()


def test_lazy_modules_learn_their_sizes_from_a_blank_image(tmp_path: Path) -> None:
    sized = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 5))
    torch.save(sized.state_dict(), tmp_path / "w.pt")
    model = build("lazy", weights=str(tmp_path / "w.pt"))
    assert weights_digest(model.module) == weights_digest(sized)
    images = torch.randn(2, 3, 32, 32)
    maps = Explainer(model)(images)["predicted"].maps["gradient"]
    expected = Explainer(Model("own", sized.eval().requires_grad_(False), SMALL))(images)["predicted"].maps["gradient"]
    torch.testing.assert_close(maps, expected)
    assert build("lazy").logits(images).shape == (2, 5)


@pytest.mark.parametrize(
    ("factory", "message"), [("lazy_and_wrong", "blank image of .*RuntimeError"), ("lazy_and_unreached", "not reached")]
)
def test_lazy_modules_that_no_image_reaches(factory: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"lazy modules.*{message}"):
        build(factory)


def meta() -> nn.Module:
    with torch.device("meta"):
        return tiny()


def test_tensors_without_values_are_refused(tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "w.pt")
    for weights in (None, str(tmp_path / "w.pt")):
        with pytest.raises(InvalidRequestError, match=r"no values for 0\.weight"):
            build("meta", weights=weights)


class Half(nn.Module):
    """A module that casts inside: bfloat16 weights, float32 images and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny().to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.to(torch.bfloat16)).float()


def half() -> nn.Module:
    return Half()


def test_a_model_of_half_precision_inside_is_built_and_fingerprinted(tmp_path: Path) -> None:
    torch.save({f"net.{name}": value for name, value in tiny(3).state_dict().items()}, tmp_path / "w.pt")
    model = build("half", weights=str(tmp_path / "w.pt"))
    assert model.module.net[0].weight.dtype == torch.bfloat16
    assert weights_digest(model.module) != weights_digest(Half())
    assert model.logits(torch.randn(2, 3, 32, 32)).dtype == torch.float32
