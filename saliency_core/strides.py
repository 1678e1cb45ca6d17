"""Strides: strided convolutions whose backward is slow on a CPU, as ones without strides that compute the same.

By the image, the backward of a 7 × 7 stem takes five times as long as its forward: few input channels fill no vector.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_core.parts import is_plain

_FEW_CHANNELS = 4
_WASTE = 1.5  # of products with padding's zeros, what is put up with


def unstride(module: nn.Module) -> bool:
    """Gives the convolutions inside ``module`` the faster form, in place; whether there were any."""
    found = False
    for part in list(module.modules()):
        if not (isinstance(part, nn.Conv2d) and is_plain(part, nn.Conv2d)):
            continue
        if max(part.stride) > 1 and part.kernel_size == (1, 1) and part.padding == (0, 0):
            part.__class__ = OfEveryNth
            found = True
        elif _of_few_channels(part):
            part.__class__ = OfPhases
            part.register_buffer("phases", _phases(part.weight.detach(), part.stride[0]), persistent=False)
            found = True
    return found


class OfEveryNth(nn.Conv2d):
    """A 1 × 1 convolution that steps over pixels: they are left out before."""

    def forward(self, input: Tensor) -> Tensor:
        every: Tensor = _EveryNth.apply(input, self.stride)
        return F.conv2d(every, self.weight, self.bias, groups=self.groups)


class OfPhases(nn.Conv2d):
    """A convolution of few channels with stride s: of s² times as many, the phases of the pixels, without stride.

    Pixel s·i + r of a channel becomes pixel i of its r-th phase, so the kernel's k taps become ⌈k ÷ s⌉ of each phase.
    """

    phases: Tensor  # [channels out, channels in · s², ⌈k ÷ s⌉, ⌈k ÷ s⌉], the weights once more

    def forward(self, input: Tensor) -> Tensor:
        step = self.stride[0]
        missing = []  # before and after, of the last axis first, as F.pad wants it
        for axis in (3, 2):
            size, kernel, margin = input.shape[axis], self.kernel_size[axis - 2], int(self.padding[axis - 2])
            steps = (size + 2 * margin - kernel) // step
            if steps < 0:
                return super().forward(input)  # torch says that the image is too small
            missing += [margin, step * (steps + self.phases.shape[axis]) - size - margin]
        phases: Tensor = _Phases.apply(input, missing, step)
        return F.conv2d(phases, self.phases, self.bias)


# Functions of their own: who watches the calls of a forward sees the convolution, as if nothing had changed.


class _EveryNth(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, stride: tuple[int, int]) -> Tensor:
        ctx.shape, ctx.stride = input.shape, stride
        return input[..., :: stride[0], :: stride[1]].contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = gradient.new_zeros(ctx.shape)
        whole[..., :: ctx.stride[0], :: ctx.stride[1]] = gradient
        return whole, None


class _Phases(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, missing: list[int], step: int) -> Tensor:
        ctx.missing, ctx.step = missing, step
        return F.pixel_unshuffle(F.pad(input, missing), step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return F.pad(F.pixel_shuffle(gradient, ctx.step), [-width for width in ctx.missing]), None, None


def _of_few_channels(conv: nn.Conv2d) -> bool:
    step, (height, width) = conv.stride[0], conv.kernel_size
    plain = conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    fits = conv.in_channels <= _FEW_CHANNELS and conv.stride[1] == step > 1 and not isinstance(conv.padding, str)
    taps = step * -(-height // step) * step * -(-width // step)
    return plain and fits and taps <= _WASTE * height * width


def _phases(weight: Tensor, step: int) -> Tensor:
    height, width = weight.shape[2:]
    return F.pixel_unshuffle(F.pad(weight, (0, -width % step, 0, -height % step)), step).contiguous()
