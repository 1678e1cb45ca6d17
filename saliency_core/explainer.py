"""The Explainer: images in; maps, classes and scores out, for several targets and methods from shared passes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from saliency_core.argument_checks import (
    Values,
    as_device,
    as_images,
    as_labels,
    as_method_specs,
    as_model,
    as_rows,
    as_target_specs,
)
from saliency_core.autograd.capture import Captures
from saliency_core.autograd.forward import BackwardResult, Forward
from saliency_core.autograd.model_outputs import Outputs
from saliency_core.autograd.precision import computing_in, without_inference_mark
from saliency_core.autograd.relus import Rule
from saliency_core.errors import InvalidRequestError, SaliencyWarning
from saliency_core.methods.averaging import MEAN, MomentAccumulator
from saliency_core.methods.registry import Signal, parse_method
from saliency_core.methods.samplers import Batch, Sampler
from saliency_core.model.classifier import Model
from saliency_core.model.heads import to_probabilities
from saliency_core.replica.cpu.allocator import is_out_of_memory
from saliency_core.replica.prepare import Replica, make_replica
from saliency_core.spec_syntax import refuse_collisions
from saliency_core.targets.class_targets import Choice, Target, pick
from saliency_core.targets.target_parsing import parse_targets

# Run channels-last, which is faster; there a CPU's 3 × 3 convolutions round two to five times as coarsely, which is not
# what float32 promises.
LESS_EXACT = ("tf32", "bf16", "fp16")
PRECISIONS = ("float32", "float64", *LESS_EXACT)
PASS_SIZE = 16
INCOMPLETE = 0.05  # of the sum of the parts' sizes; float32 leaves 1e-6, half precision within 1e-2

Averages = dict[tuple[str, Signal], MomentAccumulator]


@dataclass(frozen=True)
class Explanation:
    """Of one target, on the images' device; NaN where ``applies`` is False.

    ``maps`` by method slug: [n, H, W] ([n, C, H, W] where the reduction keeps channels). A map that would hold a value
    that is not finite, although its score is finite, is NaN as a whole; ``applies``, which is of all methods, stays
    True then, because other methods may have sound maps of the same score. ``classes`` int64 [n], −1 if the target is
    no class, and no class in particular if ``applies`` is False; ``scores`` [n] before softmax or sigmoid;
    ``probabilities`` [n] after it, NaN where the target is no class; ``applies`` bool [n]; ``finite`` bool [n], False
    if the image or its score is not finite, and then ``applies`` is False, too. ``residuals`` [n] by the slugs of
    methods whose maps must add up to the score: how far they are from it, relative to the sum of the parts' sizes.
    """

    classes: Tensor
    scores: Tensor
    probabilities: Tensor
    applies: Tensor
    finite: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    residuals: dict[str, Tensor] = field(default_factory=dict)


class Explainer:
    """Explains batches of preprocessed images.

    ``model``: a ``Model``, or a bare ``torch.nn.Module``. ``methods`` and ``targets`` are specs; a target may also be a
    class's number, or a module of the model, whose mean activation is meant. ``precision``: ``float32``; ``float64``
    for proofs; ``tf32``, ``bf16`` and ``fp16`` are faster and less exact, by choice. ``seed``: of methods that draw
    noise. ``pass_size``: draws of few images are put together into passes of so many inputs. The model itself is never
    touched: a frozen copy of it is run on ``device``. ``notes``: what its user should know, after the first batch.
    Raises InvalidRequestError for specs that do not exist or would share a name; warns with SaliencyWarning.
    """

    def __init__(
        self,
        model: Model | nn.Module,
        *,
        methods: str | Sequence[str] = "gradient",
        targets: str | int | nn.Module | Sequence[str | int | nn.Module] = "predicted",
        device: str | torch.device = "cpu",
        precision: str = "float32",
        seed: int = 0,
        pass_size: int = PASS_SIZE,
    ) -> None:
        if precision not in PRECISIONS:
            raise InvalidRequestError(f"precision {precision!r} does not exist: choose one of {', '.join(PRECISIONS)}.")
        self.device = as_device(device)
        self.precision = precision
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self.model = as_model(model)
        self.methods = [parse_method(spec) for spec in as_method_specs(methods)]
        specs = as_target_specs(targets, self.model.module)
        self.targets = parse_targets(specs, class_names=self.model.class_names)
        if not self.methods or not self.targets:
            raise InvalidRequestError("there is no method, or no target: give at least one of each.")
        refuse_collisions(self.methods)
        refuse_collisions(self.targets)
        self.notes: list[str] = []
        self._seed = seed
        self._pass_size = pass_size
        self._groups = group_by_sampler([signal for method in self.methods for signal in method.signals])
        self._replica: Replica | None = None
        self._seen: Replica | None = None  # the one whose first batch has been looked at

    @property
    def passes(self) -> float:
        """What one image costs, in passes (one forward and one backward); a forward alone is a half, and so is a
        backward."""
        backwards = sum(sampler.passes * len(_by_rule(signals)) for sampler, signals in self._groups)
        forwards = sum(sampler.passes + sampler.has_baseline for sampler, _ in self._groups)
        clean = 0 if self._groups[0][0].starts_clean else 1
        return (forwards + clean + backwards * len(self.targets)) / 2

    def replica(self, images: Tensor) -> Replica:
        """The model as it is run, made for images like these; made again when its weights have been edited."""
        if self._replica is None or not self._replica.is_of(self.model, images):
            self._replica = self._made_for(images)
            for note in self._replica.notes:
                self._tell(note)
        return self._replica

    @property
    def automatic_layer(self) -> str | None:
        """What ``layer=auto`` is, a call and where it is made, as ``relu#17 (layer4.1.relu)``; None before the first
        batch, and if no method reads it."""
        return (self._replica.found or None) if self._replica is not None else None

    def _made_for(self, images: Tensor) -> Replica:
        signals = [signal for _, members in self._groups for signal in members]
        try:
            return make_replica(
                self.model,
                images,
                dtype=self.dtype,
                activations={signal.readout.layer for signal in signals if signal.readout.layer},
                live={layer for target in self.targets for layer in target.layers},
                fold_biased=not any(signal.readout.leftovers for signal in signals),
                channels_last=self.precision in LESS_EXACT,
            )
        except (InvalidRequestError, Warning):
            raise
        except Exception as error:  # whatever the model raises on its first image
            if is_out_of_memory(error):
                raise
            raise InvalidRequestError(
                f"{self.model.spec} fails on images of shape {list(images.shape)} (tried with one, made up): "
                f"{type(error).__name__}: {error}"
            ) from error

    def __call__(
        self,
        images: Values,
        *,
        labels: Values | None = None,
        rows: Values | None = None,
        trial: bool = False,
    ) -> dict[str, Explanation]:
        """Explains a batch.

        Args:
            images: Floating point [n, C, H, W], preprocessed; a tensor or an array. One with NaN or infinity has no
                maps, and moves no other's.
            labels: Integers [n], −1 or None for none.
            rows: Integers [n], the images' permanent numbers (randomness is keyed by them); 0 to n − 1 by default.
            trial: Of samplers only the first pass, to see that and in what shapes everything comes, not the values.

        Returns:
            The explanations by target slug.

        Raises:
            InvalidRequestError: an argument is not as above, or the model cannot be explained so.
        """
        with computing_in(self.precision, self.device):
            images, labels, rows = self._checked(images, labels, rows)
            finite = images.isfinite().flatten(1).all(dim=1)
            images = images.masked_fill(~finite.view(-1, 1, 1, 1), 0)
            replica = self.replica(images)
            results = self._explain(replica, images, labels, rows, finite, trial=trial)
            if replica is not self._seen:
                self._tell_incomplete(results)
                self._seen = replica
            return results

    def single_pass(self, images: Values, *, labels: Values | None = None) -> BackwardResult:
        """The plain pass of the first target at the images themselves, with all that the methods' readouts read."""
        with computing_in(self.precision, self.device):
            images, labels, _ = self._checked(images, labels, None)
            replica = self.replica(images)
            forward = self._forward(replica, images, self._groups[0][1])
            target = self.targets[0]
            choice = target.choose(forward.outputs.detach(), labels)
            return forward.backward(target.scores(forward.all_outputs, choice), last=True)

    def _checked(
        self, images: Values, labels: Values | None, rows: Values | None
    ) -> tuple[Tensor, Tensor, Sequence[int]]:
        preprocessing = self.model.preprocessing
        batch = as_images(images, channels=None if preprocessing is None else preprocessing.channels)
        numbers, rows = as_labels(labels, len(batch)), as_rows(rows, len(batch))
        # Contiguous: a network runs in the layout of its images, and rounds by it.
        batch, numbers = batch.to(self.device, self.dtype).contiguous(), numbers.to(self.device)
        return without_inference_mark(batch), without_inference_mark(numbers), rows

    def _explain(
        self,
        replica: Replica,
        images: Tensor,
        labels: Tensor,
        rows: Sequence[int],
        finite: Tensor,
        *,
        trial: bool,
    ) -> dict[str, Explanation]:
        batch = Batch(images, rows, self._seed, self.model.preprocessing)
        results: dict[str, Explanation] = {}
        choices: dict[str, Choice] = {}
        if not self._groups[0][0].starts_clean:
            clean = self._forward(replica, images, ())
            choices, results = self._choose(clean.all_outputs, labels, finite)
        signals: dict[tuple[str, Signal], Tensor] = {}
        residuals: dict[tuple[str, Signal], Tensor] = {}
        for sampler, members in self._groups:
            averages = {
                (target.slug, signal): MomentAccumulator(signal.moment) for target in self.targets for signal in members
            }
            by_rule = _by_rule(members)
            samples = sampler.samples(batch, most=max(self._pass_size, len(images)))
            for sample in islice(samples, 1) if trial else samples:
                forward = self._forward(replica, sample.inputs, members, sample.displacement)
                if not results:
                    choices, results = self._choose(forward.all_outputs, labels, finite)
                pairs = [(rule, target) for rule in by_rule for target in self.targets]
                for rule, target in pairs:
                    if rule.hooks_relus and not forward.relus():
                        self._tell(f"the model has no ReLU, so {type(rule).__name__.lower()} is the plain gradient.")
                    choice = _repeated(choices[target.slug], len(sample.weights))
                    scores = target.scores(forward.all_outputs, choice)
                    single = sampler.passes == 1 and all(signal.moment == MEAN for signal in by_rule[rule])
                    readers = {
                        signal: signal.readout.reader(len(images), _size(images)) for signal in by_rule[rule] if single
                    }
                    one = forward.backward(
                        scores,
                        last=(rule, target) == pairs[-1],
                        rule=rule,
                        watchers=[reader.layer for reader in readers.values()] if single else None,
                    )
                    self._tell_unreached(replica, target, one)
                    for signal in by_rule[rule]:
                        key = (target.slug, signal)
                        if signal in readers:
                            signals[key], residual = readers[signal].result(one)
                        else:
                            averages[key].add(signal.readout.read(one), sample.weights)
                            residual = signal.readout.residual(one)
                        if residual is not None:
                            mean = _weighted(residual, sample.weights)
                            residuals[key] = residuals[key] + mean if key in residuals else mean
            for (slug, signal), average in averages.items():
                if (slug, signal) not in signals:
                    signals[slug, signal] = signal.readout.finish(average.result(), _size(images))
            residuals |= self._path_residuals(replica, batch, sampler, members, choices, results, signals)
        return self._reduced(results, signals, residuals)

    def _reduced(
        self,
        results: dict[str, Explanation],
        signals: dict[tuple[str, Signal], Tensor],
        residuals: dict[tuple[str, Signal], Tensor],
    ) -> dict[str, Explanation]:
        for slug, result in results.items():
            for method in self.methods:
                first, *others = (signals[slug, signal] for signal in method.signals)
                for other in others:
                    first = first * other
                map_ = method.reduction(first).to(self.dtype)
                missing = ~(result.applies & map_.flatten(1).isfinite().all(dim=1))
                result.maps[method.slug] = blank(map_, where=missing)
                if len(method.signals) == 1 and (slug, method.signals[0]) in residuals:
                    residual = residuals[slug, method.signals[0]].to(self.dtype)
                    result.residuals[method.slug] = blank(residual, where=missing)
        return results

    def _path_residuals(
        self,
        replica: Replica,
        batch: Batch,
        sampler: Sampler,
        members: Sequence[Signal],
        choices: dict[str, Choice],
        results: dict[str, Explanation],
        signals: dict[tuple[str, Signal], Tensor],
    ) -> dict[tuple[str, Signal], Tensor]:
        """|S(x) − S(x₀) − Σ| ÷ Σ |attributions|: what lies on a path must add up to the difference of its ends."""
        start = sampler.baseline(batch)
        if start is None:
            return {}
        outputs = self._forward(replica, start, ()).all_outputs
        residuals = {}
        for target in self.targets:
            begin = target.scores(outputs, choices[target.slug]).detach()
            for signal in members:
                if signal.readout.completes_path and signal.moment == MEAN:
                    parts = signals[target.slug, signal].flatten(1).double()
                    off = (results[target.slug].scores - begin).double() - parts.sum(1)
                    residuals[target.slug, signal] = off.abs() / parts.abs().sum(1).clamp(min=1e-300)
        return residuals

    def _forward(
        self, replica: Replica, inputs: Tensor, members: Sequence[Signal], displacement: Tensor | None = None
    ) -> Forward:
        layers = {signal.readout.layer for signal in members if signal.readout.layer}
        live = {layer for target in self.targets for layer in target.layers}
        leftovers = any(signal.readout.leftovers for signal in members)
        captures = None
        if layers or live or leftovers:
            captures = Captures(
                replica.model.module,
                _size(inputs),
                leftovers=leftovers,
                activations={layer: replica.places[layer] for layer in sorted(layers)},
                live=live,
                image_axes=replica.image_axes,
            )
        return Forward(
            replica.model.logits,
            inputs,
            displacement=displacement,
            captures=captures,
            # Wherever calls are numbered, too, or another method would move a CAM's layer.
            open_views=captures is not None or any(signal.rule.hooks_relus for signal in members),
            head=replica.head.kind,
        )

    def _choose(
        self, outputs: Outputs, labels: Tensor, finite: Tensor
    ) -> tuple[dict[str, Choice], dict[str, Explanation]]:
        """Settles every target on the clean images; the maps are still to come. ``finite`` bool [n]: the images are."""
        clean = Outputs(
            outputs.logits.detach().to(self.dtype),
            {name: value.detach().to(self.dtype) for name, value in outputs.layers.items()},
            outputs.head,
        )
        choices = {target.slug: target.choose(clean.logits, labels) for target in self.targets}
        return choices, {
            target.slug: _described(target, clean, choices[target.slug], finite) for target in self.targets
        }

    def _tell_unreached(self, replica: Replica, target: Target, one: BackwardResult) -> None:
        for name, layer in one.activations.items():
            if not layer.reached:
                self._tell(
                    f"target {target.spec!r} does not depend on layer {replica.places[name]!r}, so the CAM of that "
                    "layer is zero everywhere: name one in front of what the target reads with layer=…."
                )

    def _tell_incomplete(self, results: dict[str, Explanation]) -> None:
        """Of the first batch alone: to look at values, the processor waits for the device."""
        complete = [
            method.slug
            for method in self.methods
            if all(signal.readout.leftovers and not signal.rule.hooks_relus for signal in method.signals)
        ]
        residuals = [
            result.residuals[slug] for result in results.values() for slug in complete if slug in result.residuals
        ]
        if residuals and bool((torch.stack(residuals) > INCOMPLETE).any()):
            self._tell(
                "what FullGrad's maps are made of does not add up to the score (it is off by up to more than "
                f"{INCOMPLETE:.0%}): the target is a loss, which is not linear in the scores, or a bias is not seen, "
                "as in other threads and vmap, or the model has a gradient of its own. Of each map the column "
                "`residual` tells how far it is off."
            )

    def _tell(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
            warnings.warn(note, SaliencyWarning, stacklevel=2)


def group_by_sampler(signals: Sequence[Signal]) -> list[tuple[Sampler, list[Signal]]]:
    """Signals with the same sampler share its forwards, those with the same rule too its backwards. Each signal is
    there once; the sampler that starts with the clean images comes first."""
    groups: dict[Sampler, list[Signal]] = {}
    for signal in dict.fromkeys(signals):
        groups.setdefault(signal.sampler, []).append(signal)
    return sorted(groups.items(), key=lambda group: not group[0].starts_clean)


def _by_rule(signals: Sequence[Signal]) -> dict[Rule, list[Signal]]:
    rules: dict[Rule, list[Signal]] = {}
    for signal in signals:
        rules.setdefault(signal.rule, []).append(signal)
    return rules


def _described(target: Target, clean: Outputs, choice: Choice, finite: Tensor) -> Explanation:
    scores = target.scores(clean, choice)
    finite = finite & (scores.isfinite() | ~choice.applies)
    applies = choice.applies & finite
    missing = ~applies
    if target.is_class:
        classes, probabilities = choice.classes, pick(to_probabilities(clean.logits, clean.head), choice.classes)
    else:
        classes, probabilities = torch.full_like(choice.classes, -1), torch.full_like(scores, float("nan"))
    return Explanation(classes, blank(scores, where=missing), blank(probabilities, where=missing), applies, finite)


def _repeated(choice: Choice, times: int) -> Choice:
    if times == 1:
        return choice
    against = None if choice.against is None else choice.against.repeat(times)
    return Choice(choice.classes.repeat(times), choice.applies.repeat(times), against)


def _weighted(residual: Tensor, weights: Sequence[float]) -> Tensor:
    """[draws · n] → [n]."""
    return (residual.new_tensor(weights) @ residual.view(len(weights), -1)).to(residual.dtype)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


def blank(values: Tensor, *, where: Tensor) -> Tensor:
    """``values`` [n, …] with NaN in the rows where ``where`` bool [n] holds."""
    return values.masked_fill(where.view(-1, *[1] * (values.dim() - 1)), float("nan"))
