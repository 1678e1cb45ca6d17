"""Strides: convolutions of few channels in strides, whose backward is slow on a CPU, computed without the strides.

By the image, the backward of a 7 × 7 stem takes five times as long as its forward: few input channels fill no vector.
The modules stay what they are, with another ``forward``, which takes their weights as they are at each call. What is
rearranged is so in functions of its own: who watches the calls of a forward sees the convolution alone, as before.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_core.replica.module_checks import is_unmodified

_FEW_CHANNELS = 4
_WASTE = 1.5  # of products with padding's zeros, what is put up with
_TAPS = 4  # longer sums round more coarsely than the plain convolution's


def use_space_to_depth(module: nn.Module) -> bool:
    """Gives the convolutions inside ``module`` the faster form, in place; whether there were any."""
    found = False
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and reads_few_channels(part) and _has_phases(part):
            part.forward = partial(convolve, part)  # type: ignore[method-assign]
            found = True
    return found


def reads_few_channels(conv: nn.Conv2d) -> bool:
    """Whether it is a plain one of few channels in strides."""
    plain = _is_as_built(conv) and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    return plain and conv.in_channels <= _FEW_CHANNELS and conv.stride[0] == conv.stride[1] > 1


def convolve(conv: nn.Conv2d, input: Tensor, *, layout: torch.memory_format | None = None) -> Tensor:
    """What ``conv``, of few channels, makes of ``input`` [n, C, H, W], in ``layout``; by default in its weights'.

    A convolution with stride s is one without of the s² phases of the pixels: pixel s·i + r of a channel becomes pixel
    i of its r-th phase, and the k taps of the kernel ⌈k ÷ s⌉ of each phase.
    """
    if input.dim() != 4 or not len(input):
        return nn.Conv2d.forward(conv, input)
    layout = layout or (torch.contiguous_format if conv.weight.is_contiguous() else torch.channels_last)
    step, kernel = conv.stride[0], conv.kernel_size
    sizes, margins = input.shape[2:], [int(margin) for margin in conv.padding]
    steps = [(sizes[axis] + 2 * margins[axis] - kernel[axis]) // step for axis in (0, 1)]
    if min(steps) < 0 or not _has_phases(conv):  # torch says where an image is too small
        weight = conv.weight.contiguous(memory_format=layout)
        return F.conv2d(input, weight, conv.bias, conv.stride, conv.padding)
    weight = F.pixel_unshuffle(F.pad(conv.weight, (0, -kernel[1] % step, 0, -kernel[0] % step)), step)
    missing = []  # before and after, of the last axis first, as F.pad wants it
    for axis in (1, 0):
        reach = step * (steps[axis] + weight.shape[2 + axis])
        missing += [margins[axis], reach - sizes[axis] - margins[axis]]
    phases: Tensor = _Phases.apply(input, missing, step)
    return F.conv2d(phases, weight.contiguous(memory_format=layout), conv.bias)


def _is_as_built(conv: nn.Conv2d) -> bool:
    """Whether its attributes tell what it does: they may have been written over."""
    pairs = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return (
        is_unmodified(conv, nn.Conv2d)
        and all(isinstance(pair, tuple) for pair in pairs)
        and conv.weight.shape[1:] == (conv.in_channels // conv.groups, *conv.kernel_size)
    )


def _has_phases(conv: nn.Conv2d) -> bool:
    step, (height, width) = conv.stride[0], conv.kernel_size
    high, wide = -(-height // step), -(-width // step)
    return max(high, wide) <= _TAPS and step * high * step * wide <= _WASTE * height * width


class _Phases(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, missing: list[int], step: int) -> Tensor:
        return F.pixel_unshuffle(F.pad(input, missing), step)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        _, ctx.missing, ctx.step = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return F.pad(F.pixel_shuffle(gradient, ctx.step), [-width for width in ctx.missing]), None, None
