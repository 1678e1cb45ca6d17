"""The Explainer computes maps, classes and scores of batches, for several targets and methods from shared passes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, product

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
from saliency_core.autograd.forward import BackwardResult
from saliency_core.autograd.precision import computing_in, without_inference_mark
from saliency_core.errors import InvalidRequestError, SaliencyWarning
from saliency_core.explanation import ChosenTarget, Explanation, add_maps, choose_targets
from saliency_core.explanation_notes import incompleteness_note, no_relu_note, unreached_layer_notes
from saliency_core.methods.averaging import MEAN
from saliency_core.methods.readouts import path_residual
from saliency_core.methods.registry import Signal, parse_method
from saliency_core.methods.samplers import Batch
from saliency_core.methods.signal_accumulators import FinishedSignal, stream_layer
from saliency_core.model.classifier import Model
from saliency_core.pass_plan import SamplerGroup, plan_passes
from saliency_core.replica.prepare import Replica
from saliency_core.spec_syntax import refuse_collisions
from saliency_core.targets.target_parsing import parse_targets
from saliency_core.watched_replica import make_watched_replica, run_watched

# These run channels-last, which is faster. float32 does not: a CPU's 3 × 3 convolutions round two to five times as
# coarsely in that layout.
LESS_EXACT = ("tf32", "bf16", "fp16")
PRECISIONS = ("float32", "float64", *LESS_EXACT)
PASS_SIZE = 16


class Explainer:
    """Explains batches of preprocessed images.

    The model itself is not changed: a frozen copy of it runs on ``device``. Warns with ``SaliencyWarning``.

    Attributes:
        model: The ``Model``.
        methods: The parsed methods.
        targets: The parsed targets.
        device: Where the model runs.
        precision: The precision in which it runs.
        dtype: The dtype of scores and maps, float32 or float64.
        notes: Messages for the user, complete after the first batch.
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
        """Parses the specs. The model first runs with the first batch.

        Args:
            model: A ``Model``, or a bare ``torch.nn.Module``.
            methods: Specs of methods, as ``smoothgrad(n=50)``.
            targets: Specs of targets, as ``class:3``; numbers of classes; or modules of the model, whose mean
                activation is explained.
            device: The device on which the model runs.
            precision: ``float32``; ``float64`` for proofs; or ``tf32``, ``bf16`` or ``fp16``, which are faster and less
                exact.
            seed: The seed of methods that draw noise.
            pass_size: The number of inputs in a pass, up to which the draws of a small batch are put together.

        Raises:
            InvalidRequestError: A spec, the precision or the device does not exist, or two specs share a name.
        """
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
            raise InvalidRequestError("no method or no target was given: give at least one of each.")
        refuse_collisions(self.methods)
        refuse_collisions(self.targets)
        self.notes: list[str] = []
        self._seed = seed
        self._pass_size = pass_size
        self._plan = plan_passes(signal for method in self.methods for signal in method.signals)
        self._replica: Replica | None = None
        self._checked_replica: Replica | None = None  # its first batch was checked for completeness

    @property
    def passes(self) -> float:
        """The cost of one image in passes. A forward and a backward are half a pass each."""
        return self._plan.cost(len(self.targets))

    def replica(self, images: Tensor) -> Replica:
        """Returns the model in the form that runs on images like these, and makes it if that is needed.

        Args:
            images: [n, C, H, W], on the Explainer's device.

        Returns:
            The replica. It is made again after the model's weights or the shape of the images changed.

        Raises:
            InvalidRequestError: The model fails on such images, or lacks what a method or target reads.
        """
        if self._replica is None or not self._replica.is_of(self.model, images):
            self._replica = make_watched_replica(
                self.model,
                images,
                self._plan.signals,
                self.targets,
                dtype=self.dtype,
                channels_last=self.precision in LESS_EXACT,
            )
            for note in self._replica.notes:
                self._add_note(note)
        return self._replica

    @property
    def automatic_layer(self) -> str | None:
        """The call that ``layer=auto`` is and the module that makes it, for example ``relu#17 (layer4.1.relu)``.

        None before the first batch, and if no method reads it.
        """
        return (self._replica.auto_layer or None) if self._replica is not None else None

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
            images: Floating point [n, C, H, W], preprocessed; a tensor or an array. An image with NaN or infinity has
                no maps, and does not change the maps of others.
            labels: Integers [n]; −1 or None if an image has no label.
            rows: Integers [n], the images' permanent numbers, which key randomness; 0 to n − 1 by default.
            trial: Runs only the first pass of each sampler. Shapes are right then, values are not.

        Returns:
            The explanations by target slug.

        Raises:
            InvalidRequestError: An argument is not as above, or a method or target does not fit the model.
        """
        with computing_in(self.precision, self.device):
            images, labels, rows = self._checked(images, labels, rows)
            finite = images.isfinite().flatten(1).all(dim=1)
            images = images.masked_fill(~finite.view(-1, 1, 1, 1), 0)
            replica = self.replica(images)
            results = self._explain(replica, images, labels, rows, finite, trial=trial)
            if replica is not self._checked_replica:
                note = incompleteness_note(results.values(), self.methods)
                if note is not None:
                    self._add_note(note)
                self._checked_replica = replica
            return results

    def single_pass(self, images: Values, *, labels: Values | None = None) -> BackwardResult:
        """Runs one pass without a sampler or rule, for the first target.

        Args:
            images: As for a call.
            labels: As for a call.

        Returns:
            The input gradient, and what else the methods' readouts read.

        Raises:
            InvalidRequestError: As for a call.
        """
        with computing_in(self.precision, self.device):
            images, labels, _ = self._checked(images, labels, None)
            replica = self.replica(images)
            forward = run_watched(replica, images, self._plan.groups[0].signals, self.targets)
            target = self.targets[0]
            choice = target.choose(forward.outputs.detach(), labels)
            return forward.backward(target.scores(forward.all_outputs, choice))

    def _checked(
        self, images: Values, labels: Values | None, rows: Values | None
    ) -> tuple[Tensor, Tensor, Sequence[int]]:
        preprocessing = self.model.preprocessing
        batch = as_images(images, channels=None if preprocessing is None else preprocessing.channels)
        numbers, rows = as_labels(labels, len(batch)), as_rows(rows, len(batch))
        # Contiguous, because a network runs in the memory layout of its images, which changes the rounding.
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
        size = images.shape[2], images.shape[3]
        chosen: dict[str, ChosenTarget] = {}
        if not self._plan.starts_clean:
            clean_outputs = run_watched(replica, images, (), self.targets).all_outputs
            chosen = choose_targets(self.targets, clean_outputs, labels, finite, self.dtype)
            del clean_outputs  # frees its graph
        signals: dict[str, dict[Signal, FinishedSignal]] = {target.slug: {} for target in self.targets}
        for group in self._plan.groups:
            backwards = [
                (rule_group, target, rule_group.make_accumulators(len(images), size))
                for rule_group, target in product(group.rule_groups, self.targets)
            ]
            samples = group.sampler.samples(batch, most=max(self._pass_size, len(images)))
            for sample in islice(samples, 1) if trial else samples:
                forward = run_watched(
                    replica, sample.inputs, group.signals, self.targets, displacement=sample.displacement
                )
                if not chosen:
                    chosen = choose_targets(self.targets, forward.all_outputs, labels, finite, self.dtype)
                for position, (rule_group, target, accumulators) in enumerate(backwards, start=1):
                    if rule_group.rule.hooks_relus and not forward.relus():
                        self._add_note(no_relu_note(rule_group.rule))
                    choice = chosen[target.slug].choice_for(len(sample.weights))
                    result = forward.backward(
                        target.scores(forward.all_outputs, choice),
                        free_graph=position == len(backwards),
                        relu_hook=rule_group.rule.hook if rule_group.rule.hooks_relus else None,
                        on_layer_gradient=partial(stream_layer, accumulators) if rule_group.streamed else None,
                    )
                    for note in unreached_layer_notes(target, result, replica.layers):
                        self._add_note(note)
                    for accumulator in accumulators:
                        accumulator.add(result, sample.weights)
            for rule_group, target, accumulators in backwards:
                finished = (accumulator.finish() for accumulator in accumulators)
                signals[target.slug].update(zip(rule_group.signals, finished, strict=True))
            self._add_path_residuals(replica, batch, group, chosen, signals)
        for slug, target_signals in signals.items():
            add_maps(chosen[slug].explanation, self.methods, target_signals, self.dtype)
        return {slug: target.explanation for slug, target in chosen.items()}

    def _add_path_residuals(
        self,
        replica: Replica,
        batch: Batch,
        group: SamplerGroup,
        chosen: dict[str, ChosenTarget],
        signals: dict[str, dict[Signal, FinishedSignal]],
    ) -> None:
        """Runs the model at the beginning of the group's path, if it has one, and adds residuals to its signals."""
        start = group.sampler.baseline(batch)
        if start is None:
            return
        outputs = run_watched(replica, start, (), self.targets).all_outputs
        for target in self.targets:
            start_scores = target.scores(outputs, chosen[target.slug].choice).detach()
            scores, finished = chosen[target.slug].explanation.scores, signals[target.slug]
            for signal in group.signals:
                if signal.readout.completes_path and signal.moment == MEAN:
                    residual = path_residual(finished[signal].values, start_scores, scores)
                    finished[signal] = replace(finished[signal], residual=residual)

    def _add_note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
            warnings.warn(note, SaliencyWarning, stacklevel=2)
