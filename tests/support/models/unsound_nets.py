"""Nets that the probe must refuse, by kind, and similar nets that it must accept. Weights are from a fixed seed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth


class Within(nn.Module):
    """A small classifier that contains ``body`` [n, 8, h, w] → [n, 8, h, w], followed by ``call``."""

    def __init__(self, body: nn.Module | None = None, call: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.body, self.call = body or nn.Identity(), call

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.call(self.body(self.first(x))).relu().mean((2, 3)))


class Training(nn.Module):
    """Puts its part into train mode in each forward."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        self.part.train()
        return self.part(x)


class AlwaysOn(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, training=True)


class StaysInTraining(nn.Sequential):
    def train(self, mode: bool = True) -> StaysInTraining:
        return super().train(True)


class OverImages(nn.Module):
    """Attention whose sequence is the batch."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)


class Remembers(nn.Module):
    """Adds the mean of the previous batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x, self.last = x + self.last, float(x.detach().mean())
        return x


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.01 * self.calls)


class Running(nn.Module):
    """Subtracts a running mean that each forward updates."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))[:, None, None]
        return x - self.mean


class FromTheFirstBatch(nn.Module):
    """Scales by the statistics of its first batch, as an untrained activation norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = 1 / x.detach().std((0, 2, 3), keepdim=True)
        return x * self.scale


class Normalised(torch.autograd.Function):
    """Scales the gradient of the whole batch to norm 1."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / gradient.norm()


def hooked_gradient(x: Tensor) -> Tensor:
    x = x.clone()
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient / gradient.norm())
    return x


class Experts(nn.Module):
    """Passes only the image with the highest value of the batch, as an expert with capacity 1 does."""

    def forward(self, x: Tensor) -> Tensor:
        order = x.detach().amax((1, 2, 3))
        return x * (order == order.max()).view(-1, 1, 1, 1)


class Branches(nn.Module):
    def __init__(self, measure: Callable[[Tensor], Tensor], above: float) -> None:
        super().__init__()
        self.body, self.measure, self.above = Within(), measure, above

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.body(x) if self.measure(x) > self.above else self.body(x)


class Selects(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.where(self.measure(x) > self.above, 2 * x, x))


def over_wrong_axes(x: Tensor) -> Tensor:
    return F.layer_norm(x.transpose(0, 3), [x.shape[0]]).transpose(0, 3) + x


def instance(x: Tensor) -> Tensor:
    return F.instance_norm(x)


def data_of(x: Tensor) -> Tensor:
    return x.data


def without_graph(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.clone()


def moves_the_gradient(cut: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns values that depend on each image alone, with a gradient that depends on the batch."""
    off = (x - x.mean(0)).square()
    return x + (off - cut(off))


def scripted_gradient(x: Tensor) -> Tensor:
    off = (x - x.mean(0)).square()
    return x + (off - off.detach())


def step_size(x: Tensor) -> Tensor:
    """Scales the gradient by the number of values in the whole batch, as LSQ does."""
    scale = 1 / x.numel() ** 0.5
    return x * scale + (x - x * scale).detach()


def topmost(x: Tensor) -> Tensor:
    return x.topk(1).indices[0]


def sorted_last(x: Tensor) -> Tensor:
    return x.sort().indices[-1]


def one_channel(choose: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return x * F.one_hot(choose(x.detach().square().mean((0, 2, 3))), 8).view(1, 8, 1, 1)


DEPENDENT = {
    "no running statistics": (
        partial(Within, nn.BatchNorm2d(8, track_running_stats=False)), "batch_norm in module 'body'",
    ),
    "left in train mode": (lambda: Within(Training(nn.BatchNorm2d(8))), "batch_norm in module 'body.part'"),
    "functional batch norm": (
        partial(Within, call=lambda x: F.batch_norm(x, None, None, training=True)), "batch_norm",
    ),
    "less the mean of the batch": (partial(Within, call=lambda x: x - x.mean(0)), "mean in the forward"),
    "by the maximum of the batch": (partial(Within, call=lambda x: x / x.max()), "max in the forward"),
    "by the norm of the batch": (partial(Within, call=lambda x: x / x.norm()), "norm in the forward"),
    "softmax over the batch": (partial(Within, call=lambda x: x.softmax(0)), "softmax"),
    "attention over the batch": (lambda: Within(OverImages()), "in module 'body.attention'"),
    **{
        f"{kind.__name__} by {measure.__name__} {above}": (partial(kind, measure, above), "")
        for measure, above in ((torch.mean, 0), (torch.mean, 0.2), (torch.mean, -0.3), (torch.std, 0.5))
        for kind in ((Branches, Selects) if above == 0.2 else (Branches,))
    },
    "flipped": (partial(Within, call=lambda x: torch.flip(x, [0])), "flip"),
    "rolled": (partial(Within, call=lambda x: x.roll(1, 0)), "roll"),
    "sorted": (partial(Within, call=lambda x: x.sort(0).values), "sort"),
    "cumulative": (partial(Within, call=lambda x: x.cumsum(0)), "cumsum"),
    "plus the first": (partial(Within, call=lambda x: x + x[:1]), ""),
    "plus the last": (partial(Within, call=lambda x: x + x[-1:]), ""),
    "by the number of images": (partial(Within, call=lambda x: x * len(x)), "mul"),
    "layer norm over the batch": (partial(Within, call=over_wrong_axes), "layer_norm"),
    "an expert with little room": (lambda: Within(Experts()), "module 'body'"),
    "gradient of the batch at length 1": (partial(Within, call=Normalised.apply), ""),
    "hooked gradient of the batch": (partial(Within, call=hooked_gradient), ""),
    **{
        f"{cut.__name__}, gradient of the batch": (partial(Within, call=partial(moves_the_gradient, cut)), "")
        for cut in (Tensor.detach, data_of, without_graph)
    },
    "scripted, gradient of the batch": (lambda: Within(torch.jit.script(scripted_gradient)), ""),
    "a step size by the number of values": (partial(Within, call=step_size), ""),
    **{
        f"channel by {choose.__name__} of the batch": (partial(Within, call=partial(one_channel, choose)), "")
        for choose in (torch.argmax, torch.argmin, topmost, sorted_last)
    },
    "channels above 0 in the batch": (partial(Within, call=lambda x: x * (x.mean((0, 2, 3), keepdim=True) > 0)), ""),
    "less the mean of a batch that is not small": (
        partial(Within, call=lambda x: x - x.mean(0) if len(x) > 3 else x), "",
    ),
    "by the shape of a batch that is not small": (
        partial(Within, call=lambda x: x * (2 if x.shape[0] > 7 else 1)), "",
    ),
}  # fmt: skip

GENERATOR, NUMPYS = torch.Generator(), np.random.default_rng(0)


def without_value(x: Tensor) -> Tensor:
    """Returns 0 with the gradient of ``x``."""
    return x - x.detach()


CHANCE = {
    "functional dropout": (partial(Within, call=F.dropout), "dropout in the forward"),
    "dropout2d": (partial(Within, call=F.dropout2d), "dropout2d"),
    "alpha dropout": (partial(Within, call=partial(F.alpha_dropout, training=True)), "alpha_dropout"),
    "feature alpha dropout": (partial(Within, call=partial(F.feature_alpha_dropout, training=True)), "dropout"),
    "seldom": (partial(Within, call=partial(F.dropout2d, p=0.01)), "dropout2d"),
    "always on": (lambda: Within(nn.Sequential(nn.Identity(), AlwaysOn())), "dropout in module 'body.1'"),
    "Monte Carlo": (lambda: Within(Training(nn.Dropout())), "dropout in module 'body.part'"),
    "randn": (partial(Within, call=lambda x: x + 0.1 * torch.randn(x.shape)), "randn"),
    "rand_like": (partial(Within, call=lambda x: x + 0.1 * torch.rand_like(x)), "rand_like"),
    "bernoulli": (partial(Within, call=lambda x: x * torch.bernoulli(torch.full_like(x, 0.5))), "bernoulli"),
    "normal_ in place": (partial(Within, call=lambda x: x + torch.empty_like(x).normal_()), "normal"),
    "multinomial": (
        partial(Within, call=lambda x: x * torch.multinomial(torch.ones(len(x), 9), 1)[..., None, None]), "multinomial",
    ),
    "permuted pixels": (partial(Within, call=lambda x: x * torch.randperm(x.shape[3])), "randperm"),
    "a distribution": (partial(Within, call=lambda x: x * torch.distributions.Gamma(1.0, 1.0).sample()), ""),
    "rrelu": (partial(Within, call=lambda x: -F.rrelu(x, training=True)), "rrelu"),
    "gumbel softmax": (partial(Within, call=lambda x: F.gumbel_softmax(x, dim=1)), ""),
    "stochastic depth": (partial(Within, call=partial(stochastic_depth, p=0.3, mode="row")), ""),
    "numpy": (partial(Within, call=lambda x: x * np.random.rand()), "mul"),
    "a generator of its own": (
        partial(Within, call=lambda x: x * torch.rand(x.shape, generator=GENERATOR)), "rand",
    ),
    "a gradient by a generator of its own": (
        partial(Within, call=lambda x: x + without_value(x * torch.rand(x.shape, generator=GENERATOR))), "rand",
    ),
    "seldom, by a generator of its own": (
        partial(Within, call=lambda x: x * (torch.rand(x.shape[:2], generator=GENERATOR) > 0.02)[..., None, None]), "",
    ),
    "numpy, a generator of its own": (partial(Within, call=lambda x: x * NUMPYS.random()), "mul"),
    "a gradient by numpy's generator": (partial(Within, call=lambda x: x + without_value(x * NUMPYS.random())), ""),
    "random": (partial(Within, call=lambda x: x * random.random()), "mul"),
    "a clock": (partial(Within, call=lambda x: x * (1 + time.perf_counter() % 1)), "mul"),
    "memory": (lambda: Within(Remembers()), "add in module 'body'"),
    "counter": (lambda: Within(Counts()), "module 'body'"),
    "running mean": (lambda: Within(Running()), "module 'body'"),
}  # fmt: skip


class WithoutGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x.relu()


class Steps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Within().eval(), {nn.Linear}, dtype=torch.qint8)


UNMOVED = {
    "round": (partial(Within, call=lambda x: (255 * x).round() / 255), "behind round in the forward"),
    "floor": (partial(Within, call=torch.floor), "behind floor"),
    "ceil": (partial(Within, call=torch.ceil), "behind ceil"),
    "trunc": (partial(Within, call=torch.trunc), "behind trunc"),
    "sign": (partial(Within, call=torch.sign), "behind sign"),
    "compared": (partial(Within, call=lambda x: (x > 0).float()), "behind gt"),
    "heaviside": (partial(Within, call=Steps.apply), "behind"),
    "argmax": (partial(Within, call=lambda x: F.one_hot(x.argmax(1), 8).movedim(3, 1).float()), "behind argmax"),
    "detach": (partial(Within, call=Tensor.detach), "behind detach"),
    "no_grad": (lambda: Within(WithoutGradient()), "behind relu in module 'body'"),
    "fake bits": (partial(Within, call=lambda x: x.mul(9).to(torch.int32) / 9), "behind to"),
    "quantised": (quantised, ""),
}


class Saturated(nn.Module):
    """Applies ``head`` to very large scores, so that a softmax or sigmoid saturates."""

    def __init__(self, head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.last = Within(), head

    def forward(self, x: Tensor) -> Tensor:
        return self.last(300 * self.body(x))


class Straight(torch.autograd.Function):
    """Rounds, and passes gradients straight through."""

    @staticmethod
    def forward(ctx, x):
        return (16 * x).round() / 16

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Autocast(Within):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


class OwnDtype(nn.Module):
    """Casts to the dtype of its weights."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.body, self.kind = Within().to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.to(self.kind)).float()


class HarmlessDraw(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * torch.randn_like(x)


class HalfDead(nn.Module):
    """Returns 0 for images that are darker than grey."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.mean((1, 2, 3), keepdim=True) > 0).to(x.dtype)


class Overflows(nn.Module):
    """Divides by 0 when an image is nearly flat."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Within()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x / (x.std((2, 3), keepdim=True) > 0.1))


def batch_norms() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    norm.running_mean += 0.3
    return nn.Sequential(norm, nn.GroupNorm(2, 8), nn.LayerNorm([8, 16, 16]))


class Large(nn.Module):
    """Raises an out-of-memory error for more than three images."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 3:
            raise torch.OutOfMemoryError("device is full")
        return x


class Masked(nn.Module):
    """Masks class 4 with −∞, and all classes but the ``top`` best of each image."""

    def __init__(self, last: nn.Module | None = None, top: int = 5) -> None:
        super().__init__()
        self.body, self.last, self.top = Within(), last or nn.Identity(), top

    def forward(self, x: Tensor) -> Tensor:
        scores = self.body(x)
        scores = scores.masked_fill(scores < scores.topk(self.top).values[:, -1:], -torch.inf)
        return self.last(scores.masked_fill(torch.arange(5) == 4, -torch.inf))


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Within()


def traced_double() -> nn.Module:
    return torch.jit.trace(Within().double().eval(), torch.zeros(2, 3, 16, 16, dtype=torch.float64))


def scripted_softmax() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.Softmax(1)))


SOUND = {
    "stays in train mode": lambda: Within(StaysInTraining(nn.BatchNorm2d(8), nn.Dropout())),  # but for its parts
    "a class masked": Masked,
    "a class masked, behind a softmax": lambda: Masked(nn.Softmax(1)),
    "all but three classes masked": lambda: Masked(top=3),
    "made in inference mode": made_in_inference_mode,
    **{f"in {kind}": lambda kind=kind: Within().to(kind) for kind in (torch.float64, torch.float16, torch.bfloat16)},
    "traced in double": traced_double,
    "a scripted softmax": scripted_softmax,
    "too large a batch": lambda: Within(Large()),
    "channels above 0 of each image": partial(Within, call=lambda x: x * (x.mean((2, 3), keepdim=True) > 0)),
    "best channel of each image": partial(
        Within, call=lambda x: x * F.one_hot(x.mean((2, 3)).argmax(1), 8)[..., None, None]
    ),
    "straight through, by detach": partial(Within, call=lambda x: x + ((16 * x).round() / 16 - x).detach()),
    "reads its size": partial(Within, call=lambda x: x.reshape(len(x), -1).reshape(x.shape)),
    "norms": lambda: Within(batch_norms()),
    "instance norm": lambda: Within(nn.InstanceNorm2d(8, track_running_stats=True)),
    "instance norm without statistics": partial(Within, call=instance),
    "dropout": lambda: Within(nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout())),
    "shuffled and back": partial(
        Within, call=lambda x: (lambda order: x[order][order.argsort()])(torch.randperm(len(x)))
    ),
    "noise that does not matter": lambda: Within(HarmlessDraw()),
    "straight through": partial(Within, call=Straight.apply),
    "gated, dead for some": lambda: Within(call=HalfDead()),
    "a softmax that is sure": lambda: Saturated(nn.Softmax(1)),
    "autocast": Autocast,
    "bfloat16 within": lambda: OwnDtype(torch.bfloat16),
    "float16 within": lambda: OwnDtype(torch.float16),
    "float64 within": lambda: OwnDtype(torch.float64),
}


def batch_statistics() -> nn.Module:
    return DEPENDENT["no running statistics"][0]()


def noisy() -> nn.Module:
    return CHANCE["functional dropout"][0]()


def rounded() -> nn.Module:
    return UNMOVED["round"][0]()


def first_batch() -> nn.Module:
    return Within(FromTheFirstBatch())


def unsaved() -> nn.Module:
    """Returns a different net each time, with the same state dict: the random factor is not part of it."""
    module = Within()
    module.call = partial(torch.mul, torch.rand(8, 1, 1))
    return module


def all_nan() -> nn.Module:
    module = Within()
    module.head.bias.data.fill_(float("nan"))
    return module


class Ends(nn.Module):
    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.last = Within(), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x))


def sparse() -> nn.Module:
    return Ends(Tensor.to_sparse)


def fails_in_many_words(scores: Tensor) -> Tensor:
    raise ValueError("one\ntwo\nthree" + 1000 * " word")


def wordy() -> nn.Module:
    return Ends(fails_in_many_words)


class Blind(nn.Module):
    """Treats all images that are darker than grey as black."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Within()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * (x.mean((1, 2, 3), keepdim=True) > 0).to(x.dtype))


def blind() -> nn.Module:
    return Blind()


def overflowing() -> nn.Module:
    return Overflows()


def harmless() -> nn.Module:
    return Within(HarmlessDraw())
