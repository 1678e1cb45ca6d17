"""Measures what `torch.compile` gains: the predicted class's gradient, plain and compiled. CPU or CUDA.

    python tests/benchmarks/compiled.py [--models resnet50 resnet18] [--batch 16] [--rounds 5] [--threads 1]
        [--device cuda] [--mode max-autotune]

Both are measured interleaved in one process; the table gives medians over rounds. On a CPU the time is the process's
CPU time, so that other load matters less, and the allocator is set as in the job's replicas. Prints the time
of the compilation, the ratio of the times, and the distance of both maps from float64's (relative L2, median over the
images): larger rounding errors flip more ReLU gates. Asserts nothing. Needs a C++ compiler (CUDA: Triton).
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from core import GEOMETRY, draw, pictures, wait
from torch import Tensor, nn

from saliency_core import Explainer, Model
from saliency_core.autograd.precision import computing_in
from saliency_core.replica.cpu import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "resnet18"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", default="default", help="the mode of torch.compile")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.device == "cpu":
        keep_freed_memory()
    print("model        compiling s   as it is ms   compiled ms   faster   from float64: as it is, compiled")
    for name in given.models:
        images = GEOMETRY.normalise(pictures(given.batch, 224).to(given.device), torch.float32)
        explainer = Explainer(Model(name, draw(name), GEOMETRY), device=given.device)
        plain = explainer.replica(images).model.module
        compiled = torch.compile(plain, mode=given.mode)
        begin = time.perf_counter()
        gradient(compiled, images)
        wait()
        compiling = time.perf_counter() - begin
        times = [[clocked(net, images) for net in (plain, compiled)] for _ in range(given.rounds)]
        exact = Explainer(Model(name, draw(name), GEOMETRY), device=given.device, precision="float64")
        reference = gradient(exact.replica(images).model.module, images.double())
        off = [distance(gradient(net, images), reference) for net in (plain, compiled)]
        before, after = (statistics.median(one) for one in zip(*times, strict=True))
        faster = statistics.median(one / other for one, other in times)
        print(
            f"{name:12} {compiling:11.1f} {before * 1000:13.0f} {after * 1000:13.0f} {faster:8.2f}   "
            f"{off[0]:.1e}, {off[1]:.1e}",
            flush=True,
        )


def gradient(net: nn.Module, images: Tensor) -> Tensor:
    with computing_in("float32", images.device):
        inputs = images.clone().requires_grad_()
        logits = net(inputs)
        best = logits.detach().argmax(1, keepdim=True)
        return torch.autograd.grad(logits.gather(1, best).sum(), inputs)[0]


def clocked(net: nn.Module, images: Tensor) -> float:
    wait()
    clock = time.process_time if images.device.type == "cpu" else time.perf_counter
    begin = clock()
    gradient(net, images)
    wait()
    return clock() - begin


def distance(maps: Tensor, reference: Tensor) -> float:
    off = (maps.double() - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    return float(off.median())


if __name__ == "__main__":
    main()
