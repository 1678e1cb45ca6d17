"""Nets that cannot be copied, whose copies would compute something else, or that override ``to`` or ``train``."""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm, weight_norm
from unsound_nets import OwnDtype


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def small() -> nn.Sequential:
    """Returns a net with two convolutions, a norm and a head; 5 classes."""
    module = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )
    )  # fmt: skip
    module[1].running_mean += 0.2
    return module


class Keeps(nn.Module):
    """Passes its scores, with their autograd graph, to ``keep``, which stores them on the model."""

    def __init__(self, keep: Callable[[nn.Module, Tensor], None]) -> None:
        super().__init__()
        self.body, self.keep = small(), keep

    def forward(self, x: Tensor) -> Tensor:
        scores = self.body(x)
        self.keep(self, scores)
        return scores


def in_attribute(module: nn.Module, value: Tensor) -> None:
    module.last = value


def in_list(module: nn.Module, value: Tensor) -> None:
    module.__dict__.setdefault("history", []).append(value)


def in_dict(module: nn.Module, value: Tensor) -> None:
    module.__dict__.setdefault("features", {})["last"] = [value]


class Owning(nn.Module):
    """Holds an object that cannot be copied."""

    def __init__(self, thing: object) -> None:
        super().__init__()
        self.body, self.thing = small(), thing

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Applies a parametrisation of the old API, which leaves a weight with an autograd graph on the module."""
    module = small()
    norm(module[0]), norm(module[3])
    return module


class Hooked(nn.Module):
    """Its head reads features that a hook stored on the model. ``where`` selects how the hook refers to the model."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.body = small()
        self.features: Tensor | None = None
        found = {"closure": lambda: self, "weakly": weakref.ref(self)}

        def store(part: nn.Module, inputs: object, output: Tensor) -> None:
            found[where]().features = output

        self.body[4].register_forward_hook(store)

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        return self.body[7](self.features.mean((2, 3)))


class HookedIntoList(nn.Module):
    """Its hook stores features in a list that all copies of the model share."""

    def __init__(self) -> None:
        super().__init__()
        self.body, found = small(), []
        self.body[4].register_forward_hook(lambda part, inputs, output: found.append(output))
        self.pop = lambda: found.pop()

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        return self.body[7](self.pop().mean((2, 3)))


class ReadsBefore(nn.Module):
    """Scales its input by a value that a pre-hook, which refers to the model, has measured."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale = small(), None
        self.register_forward_pre_hook(lambda module, inputs: self.measure(inputs[0]))

    def measure(self, x: Tensor) -> None:
        self.scale = x.detach().square().mean((1, 2, 3), keepdim=True) + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x / self.scale)


def replaced_forward() -> nn.Module:
    """Returns a net whose ``forward`` is replaced by a function that refers to the module."""
    module = small()
    inner = module.forward
    module.forward = lambda x: 2 * inner(x)
    return module


class Silent(nn.Module):
    """Its ``train``, ``eval`` and ``to`` return nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def train(self, mode: bool = True) -> None:
        super().train(mode)

    def to(self, *args: object, **kwargs: object) -> None:
        super().to(*args, **kwargs)


class NoMode(Silent):
    def train(self) -> None:
        super().train(True)

    def to(self, device: object) -> None:
        super().to(device)


class Sparse(nn.Module):
    """Mixes its scores with a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mix = small(), nn.Parameter(torch.eye(5).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.mix, self.body(x).t()).t()


def compiled_inside() -> nn.Module:
    module = small()
    module[3] = torch.compile(module[3], backend="eager")
    return module


UNCOPIED = {
    "lock": lambda: Owning(threading.Lock()),
    "file": lambda: Owning(sys.__stdout__),
    "generator": lambda: Owning(x for x in "ab"),
    "a lock in a dict": lambda: Owning({"lock": [threading.RLock()]}),
    "a pointer": lambda: Owning(ctypes.pointer(ctypes.c_int(3))),
    "hook with a closure": lambda: Hooked("closure"),
    "hook with a weak reference": lambda: Hooked("weakly"),
    "pre-hook with a closure": ReadsBefore,
}
COPIED = {
    "old weight norm": lambda: normed(weight_norm),
    "old spectral norm": lambda: normed(spectral_norm),
    "weight norm": lambda: normed(nn.utils.parametrizations.weight_norm),
    "keeps": lambda: Keeps(in_attribute),
    "keeps in a list": lambda: Keeps(in_list),
    "keeps in a dict": lambda: Keeps(in_dict),
    "a list beside it": HookedIntoList,
    "a function": lambda: Owning(lambda x: x),
    "a random generator": lambda: Owning(torch.Generator()),
    "silent": Silent,
    "no mode": NoMode,
    "another forward": replaced_forward,
    "compiled": lambda: torch.compile(small(), backend="eager"),
    "compiled inside": compiled_inside,
}
CAST = {
    "bfloat16": lambda: OwnDtype(torch.bfloat16),
    "float16": lambda: OwnDtype(torch.float16),
    "float64": lambda: OwnDtype(torch.float64),
}


def hooked() -> nn.Module:
    return Hooked("closure")


def owning() -> nn.Module:
    return Owning(threading.Lock())


def sparse() -> nn.Module:
    return Sparse()


def weight_normed() -> nn.Module:
    return normed(weight_norm)


def keeping() -> nn.Module:
    return Keeps(in_attribute)
