"""The Explainer: images in; maps, classes and scores out, for several targets and methods from shared passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saliency_core.errors import Refused
from saliency_core.methods import Method, parse_method
from saliency_core.models import Model
from saliency_core.passes import Forward
from saliency_core.replica import copy_frozen, fingerprint, fold_batch_norms
from saliency_core.rules import Rule
from saliency_core.samplers import Sampler
from saliency_core.specs import refuse_collisions
from saliency_core.targets import NO_LABEL, Choice, parse_target

# Channels-last convolutions are faster (a third on a CPU), and round twice as coarsely: not what float32 promises.
LESS_EXACT = ("tf32", "bf16", "fp16")
PRECISIONS = ("float32", "float64", *LESS_EXACT)


@dataclass(frozen=True)
class Explanation:
    """Of one target, on the images' device.

    ``maps`` by method slug: [n, H, W] ([n, C, H, W] where the reduction keeps channels), NaN where ``applies`` is
    False. ``classes`` int64 [n]; ``scores`` [n] before softmax; ``probabilities`` [n] after it; ``applies`` bool [n].
    """

    maps: dict[str, Tensor]
    classes: Tensor
    scores: Tensor
    probabilities: Tensor
    applies: Tensor


class Explainer:
    """Explains batches of preprocessed images.

    ``methods`` and ``targets`` are specs. ``precision``: ``float32``; ``float64`` for proofs; ``tf32``, ``bf16`` and
    ``fp16`` are faster and less exact, by choice. The model is kept frozen, in eval mode, on ``device``.
    Raises Refused for specs that do not exist or would share a name.
    """

    def __init__(
        self,
        model: Model,
        *,
        methods: Sequence[str] = ("gradient",),
        targets: Sequence[str] = ("predicted",),
        device: str | torch.device = "cpu",
        precision: str = "float32",
    ) -> None:
        if precision not in PRECISIONS:
            raise Refused(f"precision {precision!r} does not exist: choose one of {', '.join(PRECISIONS)}.")
        self.device = torch.device(device)
        self.precision = precision
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self.model = model
        self.methods = [parse_method(spec) for spec in methods]
        self.targets = [parse_target(spec, class_names=model.class_names) for spec in targets]
        refuse_collisions(self.methods)
        refuse_collisions(self.targets)
        self._groups = group_by_passes(self.methods)
        self._replica: Model | None = None
        self._replica_of: object = None

    def replica(self, images: Tensor) -> Model:
        """The model as it is run: a frozen copy on the device, made for images like these, and again when the
        model's weights have been edited. The model itself is never touched."""
        if self._replica is None or self._replica_of != fingerprint(self.model.module):
            module = copy_frozen(self.model.module, device=self.device, dtype=self.dtype)
            fold_batch_norms(module, images[:1])
            if self.precision in LESS_EXACT:
                module = module.to(memory_format=torch.channels_last)
            self._replica = replace(self.model, module=module)
            self._replica_of = fingerprint(self.model.module)
        return self._replica

    def __call__(
        self, images: Tensor, *, labels: Tensor | None = None, rows: Tensor | None = None
    ) -> dict[str, Explanation]:
        """``images`` float [n, C, H, W], preprocessed; ``labels`` int64 [n], −1 for none; ``rows`` int64 [n], the
        images' permanent numbers (randomness is keyed by them; 0..n−1 by default) → by target slug."""
        images = images.to(self.device, self.dtype)
        n = len(images)
        labels = torch.full((n,), NO_LABEL) if labels is None else labels
        rows = torch.arange(n) if rows is None else rows
        if len(labels) != n or len(rows) != n:
            raise Refused(f"{n} images came with {len(labels)} labels and {len(rows)} rows: they must be as many.")
        labels, rows = labels.to(self.device, torch.int64), rows.to(self.device, torch.int64)
        with self._arithmetic(), torch.enable_grad():  # also where the caller has switched gradients off
            return self._explain(self.replica(images), images, labels, rows)

    def _explain(self, model: Model, images: Tensor, labels: Tensor, rows: Tensor) -> dict[str, Explanation]:
        results: dict[str, Explanation] = {}
        if not self._groups[0][1].starts_clean:
            with torch.no_grad():
                results = self._choose(model.logits(images), labels)
        for rule, sampler, methods in self._groups:
            signals: dict[tuple[str, str], Tensor] = {}
            with rule.applied(model.module):
                for sample in sampler.samples(images, rows):
                    forward = Forward(model.logits, sample.inputs)
                    results = results or self._choose(forward.outputs, labels)
                    for target in self.targets:
                        choice = Choice(results[target.slug].classes, results[target.slug].applies)
                        scores = target.scores(forward.outputs, choice)
                        one = forward.backward(scores, last=target is self.targets[-1])
                        for method in methods:
                            reading = method.readout.read(one) * sample.weight
                            key = (target.slug, method.slug)
                            signals[key] = signals[key] + reading if key in signals else reading
            for target in self.targets:
                result = results[target.slug]
                for method in methods:
                    reduced = method.reduction(signals[target.slug, method.slug])
                    result.maps[method.slug] = blank(reduced, where=~result.applies)
        return results

    def _choose(self, outputs: Tensor, labels: Tensor) -> dict[str, Explanation]:
        """Settles every target on the clean images; the maps are still to come."""
        outputs = outputs.detach().to(self.dtype)
        results = {}
        for target in self.targets:
            choice = target.choose(outputs, labels)
            scores = target.scores(outputs, choice)
            probabilities = target.scores(outputs.softmax(dim=1), choice)
            results[target.slug] = Explanation(
                {},
                choice.classes,
                blank(scores, where=~choice.applies),
                blank(probabilities, where=~choice.applies),
                choice.applies,
            )
        return results

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """The precision asked for, whatever the process was set to; as found afterwards."""
        kind = self.device.type
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        cast: AbstractContextManager[object] = torch.autocast(kind, low) if low else nullcontext()
        matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        try:
            with cast:
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def group_by_passes(methods: Sequence[Method]) -> list[tuple[Rule, Sampler, list[Method]]]:
    """Methods that share rule and sampler share their passes; groups whose first forward is clean come first."""
    groups: dict[tuple[Rule, Sampler], list[Method]] = {}
    for method in methods:
        groups.setdefault((method.rule, method.sampler), []).append(method)
    return sorted(
        ((rule, sampler, members) for (rule, sampler), members in groups.items()),
        key=lambda group: not group[1].starts_clean,
    )


def blank(values: Tensor, *, where: Tensor) -> Tensor:
    """``values`` [n, …] with NaN in the rows where ``where`` bool [n] holds."""
    return values.masked_fill(where.view(-1, *[1] * (values.dim() - 1)), float("nan"))
