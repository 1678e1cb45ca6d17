"""Compares the Explainer with captum, with the cost of a forward, and with itself. CPU or CUDA; no Ray.

    python tests/benchmarks/core.py [--models resnet50 resnet18] [--batch 16] [--rounds 5] [--threads N] [--device cuda]
        [--allocator replica]

All are measured in one process, with the same images and the same random weights and batch-norm statistics.
Measurements of a part are interleaved: a round times each of them once (several calls, if they are short), each round
in another order. The tables give medians over rounds, of rates and of the ratios within a round:

- **a** the gradient of the predicted class in float32: by the Explainer; by captum's Saliency, whose arg-max is
  computed before, without gradients; and plain forwards of the same frozen net under ``no_grad``, contiguous and
  channels-last, with batch norms unchanged and folded. A gradient costs a forward and a backward of equal cost, so half
  the fastest forward's rate is the limit. The second share is relative to half the rate of the forward in the
  Explainer's layout.
- **b** gradient, input × gradient, FullGrad and Grad-CAM together, compared with the gradient alone.
- **sequence** the same four together, and one after the other by captum, by a FullGrad that upsamples every channel,
  and by pytorch-grad-cam (``pip install grad-cam``; else captum's LayerGradCam).
- **c** SmoothGrad and integrated gradients: passes per second, compared with the gradient's.
- **d** bf16 and tf32: rate, and cosine and rank correlation of their gradient maps with float32's.

TF32 is off except in the measurements named tf32. On a CPU, fresh memory pages cause a quarter of the times and most of
their noise. ``--allocator replica`` avoids them for all measurements: it sets the allocator as the job's replicas do.
Memory is, on CUDA, the allocator's peak above the memory in use before; on a CPU, the growth of the resident set at its
peak, each in a separate process with the system's allocator (``--no-memory`` skips it). Asserts no times. Needs a quiet
machine; uses captum, grad-cam, scikit-learn and scikit-image if they are installed.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision import models

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from saliency_core import Explainer, Model, Preprocessing  # noqa: E402
from saliency_core.replica.cpu import keep_freed_memory  # noqa: E402

GEOMETRY = Preprocessing(256, (224, 224), "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3)
FOUR = ("gradient", "input_x_gradient", "fullgrad", "gradcam")
SMOOTH, PATH = 25, 50
PARTS = ["a", "b", "sequence", "c", "d"]
SHORTEST = 0.5  # minimum seconds of a measurement
Run = Callable[[], object]


@dataclass
class Thing:
    """A measurement: ``run`` explains ``images`` images."""

    name: str
    run: Run
    images: int
    calls: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "resnet18"], help="names of torchvision models")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--long-batch", type=int, help="batch size of sequence and c (default: 4 on a CPU, else --batch)"
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--allocator", default="system", choices=["system", "replica"])
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.long_batch = given.long_batch or (min(4, given.batch) if given.device == "cpu" else given.batch)
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    warnings.simplefilter("ignore")
    if given.memory_of:
        (name,), (part,) = given.models, given.parts
        things = Bench(name, given).things(part)
        print(json.dumps(memory_here(next(thing for thing in things if thing.name == given.memory_of))))
        return
    if given.allocator == "replica":
        keep_freed_memory()
    chip = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{chip}, torch {torch.__version__}, batches of {given.batch}, {given.size} px, {given.rounds} rounds")
    for name in given.models:
        report(name, given)


# -- what is measured ----------------------------------------------------------------------------------------


class Bench:
    """A net, its images, and all measurements on them."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.given = given
        self.device = torch.device(given.device)
        self.net = draw(name).to(self.device)
        self.pictures = pictures(given.batch, given.size)
        self.images = GEOMETRY.normalise(self.pictures, torch.float32).to(self.device)
        self.few = self.images[: given.long_batch]
        self.remarks: list[str] = []

    def explainer(self, *methods: str, precision: str = "float32") -> Callable[[Tensor], dict[str, Tensor]]:
        explainer = Explainer(
            Model("benchmark", self.net, GEOMETRY), methods=methods, device=self.device, precision=precision
        )
        return lambda images: explainer(images)["predicted"].maps

    def things(self, part: str) -> list[Thing]:
        n, few = len(self.images), len(self.few)
        gradient = Thing("gradient", partial(self.explainer("gradient"), self.images), n)
        if part == "a":
            things = [Thing("captum Saliency", run, n) for run in self.by_captum("Saliency", self.images)]
            return [gradient, *things, *(Thing(name, run, n) for name, run in self.forwards())]
        if part == "b":
            together = Thing("four together", partial(self.explainer(*FOUR), self.images), n)
            return [gradient, together]
        if part == "sequence":
            apart = [
                (f"captum {kind}", run)
                for kind in ("Saliency", "InputXGradient")
                for run in self.by_captum(kind, self.few)
            ]
            apart += [("FullGrad, every channel", partial(fullgrad_by_channel, self.net, self.few)), *self.gradcams()]
            together = Thing("four together", partial(self.explainer(*FOUR), self.few), few)
            return [together, *(Thing(name, run, few) for name, run in apart)]
        if part == "c":
            specs = (f"smoothgrad(n={SMOOTH})", f"integrated_gradients(n={PATH})")
            return [gradient, *(Thing(spec, partial(self.explainer(spec), self.few), few) for spec in specs)]
        things = [gradient]
        for precision in ("tf32", "bf16"):
            run = partial(self.explainer("gradient", precision=precision), self.images)
            things += [Thing(precision, run, n), Thing(f"forward, {precision}", self.low_forward(precision), n)]
        return things

    def low_forward(self, precision: str) -> Run:
        placed = self.folded().to(memory_format=torch.channels_last)
        images = self.images.contiguous(memory_format=torch.channels_last)
        return partial(forward, placed, images, precision)

    def folded(self) -> nn.Module:
        """Returns a copy with batch norms folded into convolutions; unchanged if torch.fx cannot trace the net."""
        try:
            return fuse(copy.deepcopy(self.net)).requires_grad_(False)
        except Exception as error:  # noqa: BLE001 - torch.fx raises many types
            self.remarks.append(f"batch norms could not be folded by torch.fx ({type(error).__name__})")
            return copy.deepcopy(self.net)

    def forwards(self) -> Iterable[tuple[str, Run]]:
        for norms, net in (("", self.net), (", folded", self.folded())):
            for layout in (torch.contiguous_format, torch.channels_last):
                placed = copy.deepcopy(net).to(memory_format=layout)
                images = self.images.contiguous(memory_format=layout)
                name = f"forward, {'contiguous' if layout is torch.contiguous_format else 'channels-last'}{norms}"
                yield name, partial(forward, placed, images)

    def by_captum(self, kind: str, images: Tensor) -> list[Run]:
        try:
            import captum.attr
        except ImportError:
            self.remarks.append(f"captum is not installed: no {kind}")
            return []
        attribution = getattr(captum.attr, kind)(self.net)

        def run() -> Tensor:
            with torch.no_grad():
                classes = self.net(images).argmax(1)
            return attribution.attribute(images.clone().requires_grad_(), target=classes).detach().abs().amax(1)

        return [run]

    def gradcams(self) -> list[tuple[str, Run]]:
        layer = last_spatial(self.net, self.few)
        net = copy.deepcopy(self.net).requires_grad_(True)  # pytorch-grad-cam requires it
        try:
            from pytorch_grad_cam import GradCAM

            return [("pytorch-grad-cam GradCAM", self._pytorch_grad_cam(GradCAM, net, layer))]
        except ImportError as error:
            self.remarks.append(f"grad-cam is not installed ({error}): captum's LayerGradCam in its place")
        try:
            from captum.attr import LayerAttribution, LayerGradCam
        except ImportError:
            return []
        attribution = LayerGradCam(net, net.get_submodule(layer))

        def run() -> Tensor:
            with torch.no_grad():
                classes = net(self.few).argmax(1)
            cam = attribution.attribute(self.few, target=classes, relu_attributions=True)
            return LayerAttribution.interpolate(cam, tuple(self.few.shape[2:]), "bilinear").detach()

        return [("captum LayerGradCam", run)]

    def _pytorch_grad_cam(self, kind: Callable[..., Callable[..., object]], net: nn.Module, layer: str) -> Run:
        # Created for each call, as in typical use, because it registers hooks on the net.
        def run() -> object:
            with kind(model=net, target_layers=[net.get_submodule(layer)]) as cam:  # type: ignore[attr-defined]
                return cam(input_tensor=self.few, targets=None)

        return run


def draw(name: str) -> nn.Module:
    """Returns a frozen net in eval mode with random weights and batch-norm statistics.

    Its ReLUs are not in place, because captum's layer methods and hooks require that.
    """
    torch.manual_seed(0)
    net = models.get_model(name, weights=None)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
        if isinstance(part, nn.ReLU | nn.ReLU6):
            part.inplace = False
    return net.eval().requires_grad_(False)


def pictures(number: int, size: int) -> Tensor:
    """Returns crops of photographs, or random clouds if none are installed: uint8 [n, size, size, 3]."""
    generator = torch.Generator().manual_seed(0)
    try:
        from skimage import data
        from sklearn.datasets import load_sample_images

        whole = [*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea()]
    except ImportError:
        print("scikit-learn or scikit-image is not installed: random clouds replace the photographs")
        coarse = [torch.rand(number, 3, cells, cells, generator=generator) for cells in (4, 16, 64)]
        clouds = sum(F.interpolate(one, size=(size, size), mode="bicubic") for one in coarse) / 3
        return (clouds.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).contiguous()
    cuts = []
    for i in range(number):
        photograph = torch.from_numpy(whole[i % len(whole)].copy()).permute(2, 0, 1)[None].float()
        edge = int(torch.randint(150, 260, (), generator=generator))
        top, left = (int(torch.randint(0, length - edge, (), generator=generator)) for length in photograph.shape[2:])
        cut = photograph[:, :, top : top + edge, left : left + edge]
        cuts.append(F.interpolate(cut, size=(size, size), mode="bilinear", antialias=True))
    return torch.cat(cuts).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def forward(net: nn.Module, images: Tensor, precision: str = "float32") -> Tensor:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return net(images)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def last_spatial(net: nn.Module, images: Tensor) -> str:
    """Returns the name of the last leaf module with a spatial output."""
    found: list[str] = []

    def see(name: str, part: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] > 1:
            found.append(name)

    leaves = [(name, part) for name, part in net.named_modules() if not list(part.children())]
    handles = [part.register_forward_hook(partial(see, name)) for name, part in leaves]
    with torch.no_grad():
        net(images[:1])
    for handle in handles:
        handle.remove()
    return found[-1]


def fullgrad_by_channel(net: nn.Module, images: Tensor) -> Tensor:
    """Computes FullGrad as its authors' code does: keeps each layer's bias-gradients, then upsamples every channel.

    Images are upsampled one by one, because a whole batch of ResNet-50 would take gigabytes.
    """
    kept: list[Tensor] = []

    def see(part: nn.Module, inputs: object, output: Tensor) -> None:
        if isinstance(part, nn.BatchNorm2d):
            bias = part.bias - part.running_mean * part.weight / torch.sqrt(part.running_var + part.eps)
        else:
            bias = part.bias
        output.register_hook(lambda gradient: kept.append(gradient * bias.view(-1, 1, 1)))

    parts = [part for part in net.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d) and part.bias is not None]
    handles = [part.register_forward_hook(see) for part in parts]
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).amax(1).sum(), x)
    for handle in handles:
        handle.remove()
    total = psi(gradient * images).sum(1)
    for term in map(psi, kept):
        for i, one in enumerate(term.split(1)):
            up = F.interpolate(one, size=images.shape[2:], mode="bilinear", align_corners=True)
            total[i] += up.sum(1)[0]
    return total


def psi(term: Tensor) -> Tensor:
    term = term.abs()
    term = term - term.flatten(1).amin(1).view(-1, 1, 1, 1)
    return term / (term.flatten(1).amax(1).view(-1, 1, 1, 1) + 1e-6)


# -- measuring -----------------------------------------------------------------------------------------------


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run: Run, calls: int) -> float:
    """Returns the seconds of one call, averaged over ``calls``."""
    wait()
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return (time.perf_counter() - begin) / calls


def measure(things: list[Thing], rounds: int) -> dict[str, list[float]]:
    """Returns the images per second of every measurement, by round."""
    for thing in things:
        thing.run()
        thing.calls = max(1, math.ceil(SHORTEST / seconds(thing.run, 1)))
    rates: dict[str, list[float]] = {thing.name: [] for thing in things}
    for number in range(rounds):
        # Another order in each round, because a long measurement leaves the chip warmer for the next one.
        for thing in things[number % len(things) :] + things[: number % len(things)]:
            rates[thing.name].append(thing.images / seconds(thing.run, thing.calls))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return rates


def memory_here(thing: Thing) -> float:
    """Returns the MiB that a call needs at its peak, beyond the memory in use before it."""
    thing.run()
    gc.collect()
    if torch.cuda.is_available():
        wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        thing.run()
        wait()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # returns the memory that the first call freed
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    thing.run()
    return (resident("VmHWM") - before) / 2**10


def resident(what: str) -> int:
    """Returns a value of /proc/self/status in KiB."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(what))


def memory(thing: Thing, name: str, part: str, given: argparse.Namespace) -> float | None:
    if given.no_memory:
        return None
    if given.device == "cuda":
        return memory_here(thing)
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [
        sys.executable, __file__, "--models", name, "--batch", given.batch, "--long-batch", given.long_batch,
        "--size", given.size, "--threads", torch.get_num_threads(), "--parts", part, "--memory-of", thing.name,
    ]  # fmt: skip
    told = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, cwd=ROOT, text=True).stdout
    return float(json.loads(told.splitlines()[-1]))


def agreement(maps: Tensor, reference: Tensor) -> tuple[float, float]:
    """Returns the cosine and Spearman's rank correlation, medians over images."""
    found, exact = maps.flatten(1).double(), reference.flatten(1).double()
    cosine = F.cosine_similarity(found, exact).median()
    ranks = [values.argsort(1).argsort(1).double() for values in (found, exact)]
    ranks = [values - values.mean(1, keepdim=True) for values in ranks]
    return float(cosine), float(F.cosine_similarity(*ranks).median())


# -- the tables ----------------------------------------------------------------------------------------------


def report(name: str, given: argparse.Namespace) -> None:
    print(f"\n## {name}\n\n| | | images/s | min | max | peak MiB |\n|---|---|---:|---:|---:|---:|")
    bench = Bench(name, given)
    told: list[tuple[str, str, str]] = []
    for part in given.parts:
        things = bench.things(part)
        rates = measure(things, given.rounds)
        for thing in things:
            values, needed = rates[thing.name], memory(thing, name, part, given)
            rate, size = statistics.median(values), "n/a" if needed is None else f"{needed:.0f}"
            what = f"{thing.name}, {thing.images} images"
            print(f"| {part} | {what} | {rate:.2f} | {min(values):.2f} | {max(values):.2f} | {size} |", flush=True)
        told += [(part, what, figure) for what, figure in figures(part, rates)]
    if "d" in given.parts:
        exact = bench.explainer("gradient")(bench.images)["gradient"]
        for precision in ("tf32", "bf16"):
            low = bench.explainer("gradient", precision=precision)(bench.images)["gradient"]
            cosine, rank = agreement(low, exact)
            told.append(("d", f"{precision} against float32: cosine, Spearman", f"{cosine:.4f}, {rank:.4f}"))
    print("\n| | | |\n|---|---|---:|")
    for row in told:
        print(f"| {' | '.join(row)} |")
    for remark in dict.fromkeys(bench.remarks):
        print(f"\n{remark}")


def figures(part: str, rates: dict[str, list[float]]) -> Iterable[tuple[str, str]]:
    def ratio(one: str, other: str, scale: float = 1.0) -> str:
        """Summarises the ratios within each round, in which both were measured shortly after each other."""
        return summary(scale * a / b for a, b in zip(rates[one], rates[other], strict=True))

    if part == "a":
        if "captum Saliency" in rates:
            yield "gradient, Explainer ÷ captum", ratio("gradient", "captum Saliency")
        plain = sorted(
            (key for key in rates if key.startswith("forward")), key=lambda key: statistics.median(rates[key])
        )
        own = [key for key in plain if "contiguous" in key]
        yield f"share of the limit, half of {plain[-1]}", ratio("gradient", plain[-1], 2)
        yield f"share of half of {own[-1]}, the Explainer's layout", ratio("gradient", own[-1], 2)
    if part == "b":
        yield "time of four together ÷ gradient", ratio("gradient", "four together")
    if part == "sequence":
        apart = [values for key, values in rates.items() if key != "four together"]
        times = [sum(1 / value for value in values) for values in zip(*apart, strict=True)]
        yield (
            f"time of {len(apart)} one after the other ÷ four together",
            summary(a * b for a, b in zip(times, rates["four together"], strict=True)),
        )
    if part == "c":
        for spec, n in ((f"smoothgrad(n={SMOOTH})", SMOOTH), (f"integrated_gradients(n={PATH})", PATH)):
            yield f"{spec}, passes/s ÷ gradient's", ratio(spec, "gradient", n)
    if part == "d":
        for precision in ("tf32", "bf16"):
            yield f"{precision} ÷ float32", ratio(precision, "gradient")
            yield f"{precision}, share of half its forward", ratio(precision, f"forward, {precision}", 2)


def summary(values: Iterable[float]) -> str:
    values = list(values)
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
