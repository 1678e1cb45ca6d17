"""Computes strided convolutions of few channels without strides, because their backward is slow on a CPU.

The backward of a 7 × 7 stem takes five times as long as its forward: few input channels do not fill a vector. The
modules keep their type and weights, and get another ``forward``, which reads the weights at each call. Pixels are
rearranged in an autograd function, so that a recording of the forward's calls still has the convolution alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_core.replica.module_checks import is_unmodified

_FEW_CHANNELS = 4
_WASTE = 1.5  # the accepted ratio of products, including those with zeros of the padding
_TAPS = 4  # longer sums round more coarsely than those of the plain convolution


def use_space_to_depth(module: nn.Module) -> bool:
    """Gives the convolutions inside ``module`` the faster form, in place. Returns whether there were any."""
    changed = False
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and reads_few_channels(part) and _has_phases(part):
            part.forward = partial(convolve, part)  # type: ignore[method-assign]
            changed = True
    return changed


def reads_few_channels(conv: nn.Conv2d) -> bool:
    """Returns whether it is an ordinary strided convolution of few channels."""
    plain = _is_as_built(conv) and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    return plain and conv.in_channels <= _FEW_CHANNELS and conv.stride[0] == conv.stride[1] > 1


def convolve(conv: nn.Conv2d, input: Tensor, *, layout: torch.memory_format | None = None) -> Tensor:
    """Computes ``conv``, of few channels, of ``input`` [n, C, H, W], in ``layout``; by default in that of its weights.

    A convolution with stride s equals one with stride 1 of the s² phases of the pixels: pixel s·i + r of a channel
    becomes pixel i of its r-th phase, and the k taps of the kernel become ⌈k ÷ s⌉ of each phase.
    """
    if input.dim() != 4 or not len(input):
        return nn.Conv2d.forward(conv, input)
    layout = layout or (torch.contiguous_format if conv.weight.is_contiguous() else torch.channels_last)
    step, kernel = conv.stride[0], conv.kernel_size
    sizes, margins = input.shape[2:], [int(margin) for margin in conv.padding]
    steps = [(sizes[axis] + 2 * margins[axis] - kernel[axis]) // step for axis in (0, 1)]
    if min(steps) < 0 or not _has_phases(conv):  # torch raises if an image is too small
        weight = conv.weight.contiguous(memory_format=layout)
        return F.conv2d(input, weight, conv.bias, conv.stride, conv.padding)
    weight = F.pixel_unshuffle(F.pad(conv.weight, (0, -kernel[1] % step, 0, -kernel[0] % step)), step)
    missing = []  # before and after, of the last axis first, in the order of F.pad
    for axis in (1, 0):
        reach = step * (steps[axis] + weight.shape[2 + axis])
        missing += [margins[axis], reach - sizes[axis] - margins[axis]]
    phases: Tensor = _Phases.apply(input, missing, step)
    return F.conv2d(phases, weight.contiguous(memory_format=layout), conv.bias)


def _is_as_built(conv: nn.Conv2d) -> bool:
    """Returns whether its attributes describe what it computes: they may have been changed."""
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
