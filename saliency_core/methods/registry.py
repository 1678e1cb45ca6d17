"""The registry of methods, by name: each is a rule × sampler × readout, and then a reduction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from saliency_core.errors import InvalidRequestError
from saliency_core.methods.averaging import MEAN, MOMENTS, SQUARE, VARIANCE
from saliency_core.methods.baselines import BASELINES
from saliency_core.methods.cam import GradCam, GradCamPlusPlus, HiResCam, LayerCam, XGradCam
from saliency_core.methods.fullgrad import FullGrad, SimpleFullGrad
from saliency_core.methods.readouts import Gradient, InputXGradient, Readout
from saliency_core.methods.reductions import Reduction, parse_reduction
from saliency_core.methods.relu_rules import Deconvnet, Guided, Plain, Rule
from saliency_core.methods.samplers import Noise, Once, Path, Sampler
from saliency_core.replica.last_spatial_layer import AUTO
from saliency_core.spec_syntax import Argument, call_slug, call_spec, parse_call, split_name


@dataclass(frozen=True)
class Signal:
    """A rule × sampler × readout. ``moment``: the readings' mean, the mean of their squares, or their variance.

    Equal signals of several methods are computed once.
    """

    rule: Rule
    sampler: Sampler
    readout: Readout
    moment: str = MEAN


@dataclass(frozen=True)
class Method:
    """The definition of a map: the product of its signals [n, C, H, W], usually one, reduced over the channels."""

    spec: str
    slug: str
    signals: tuple[Signal, ...]
    reduction: Reduction

    @property
    def nonnegative(self) -> bool:
        """Whether its maps have no negative values."""
        of_signals = all(signal.readout.nonnegative or signal.moment != MEAN for signal in self.signals)
        return self.reduction.nonnegative or of_signals

    @property
    def passes(self) -> int:
        """The number of passes that one image costs if nothing is shared."""
        return sum(signal.sampler.passes for signal in self.signals)


@dataclass(frozen=True)
class MethodEntry:
    """The entry of a name: ``make`` builds its signals of ``arguments``, which hold the defaults."""

    about: str
    source: str
    make: Callable[..., tuple[Signal, ...]]
    arguments: Mapping[str, Argument] = field(default_factory=dict)


RULES: Mapping[str, Rule] = {"plain": Plain(), "guided": Guided(), "deconvnet": Deconvnet()}
READOUTS: Mapping[str, Callable[..., Readout]] = {
    "gradient": Gradient,
    "input_x_gradient": InputXGradient,
    "fullgrad": FullGrad,
    "simple_fullgrad": SimpleFullGrad,
    "gradcam": GradCam,
    "gradcam++": GradCamPlusPlus,
    "hirescam": HiResCam,
    "layercam": LayerCam,
    "xgradcam": XGradCam,
}
MOST_DRAWS = 1_000_000  # of noise: these take weeks for a single image
MOST_POINTS = 2000  # of a path: their weights are computed with a matrix of as many rows and columns
LARGEST_SPREAD = 1e6  # the noise hides the image completely
NOISE: Mapping[str, Argument] = {"n": 25, "spread": 0.15}
PATH: Mapping[str, Argument] = {"n": 50, "baseline": "zero"}
LAYER: Mapping[str, Argument] = {"layer": AUTO}


def once(readout: str, rule: str = "plain", **arguments: Argument) -> tuple[Signal, ...]:
    """Makes the signal of one pass at the image itself."""
    return compose(rule=rule, readout=readout, **arguments)


def noisy(readout: str, moment: str = MEAN, **arguments: Argument) -> tuple[Signal, ...]:
    """Makes the signal of a readout over noisy copies."""
    return compose(sampler="noise", readout=readout, moment=moment, **arguments)


def compose(
    *,
    rule: Argument = "plain",
    sampler: Argument = "once",
    readout: Argument = "gradient",
    moment: Argument = MEAN,
    n: Argument | None = None,
    spread: Argument | None = None,
    baseline: Argument | None = None,
    layer: Argument | None = None,
) -> tuple[Signal, ...]:
    """Makes any rule × sampler × readout.

    Raises InvalidRequestError if an argument does not exist, or has no effect with this sampler or readout.
    """
    for value, choices, argument in (
        (rule, RULES, "rule"),
        (sampler, ("once", "noise", "path"), "sampler"),
        (readout, READOUTS, "readout"),
        (moment, MOMENTS, "moment"),
        (baseline, (None, *BASELINES), "baseline"),
    ):
        if value not in choices:
            raise InvalidRequestError(f"{argument}={value}: choose one of {', '.join(filter(None, choices))}.")
    cam = "cam" in str(readout)
    for argument, value, useful, needed in (
        ("n", n, sampler != "once", "sampler=noise or sampler=path"),
        ("spread", spread, sampler == "noise", "sampler=noise"),
        ("baseline", baseline, sampler == "path", "sampler=path"),
        ("moment", None if moment == MEAN else moment, sampler != "once", "sampler=noise or sampler=path"),
        ("layer", layer, cam, "a readout that is a CAM"),
    ):
        if value is not None and not useful:
            raise InvalidRequestError(f"{argument}={value} has no effect without {needed}: add that, or drop it.")
    most = MOST_POINTS if sampler == "path" else MOST_DRAWS
    if not isinstance(n, int | None) or (n is not None and not 1 <= n <= most):
        raise InvalidRequestError(f"n={n}: a whole number of draws is needed, 1 or more, and at most {most:,}.")
    if isinstance(spread, str) or not 0 <= (spread or 0) <= LARGEST_SPREAD:
        raise InvalidRequestError(f"spread={spread}: a number is needed, 0 or more, and at most {LARGEST_SPREAD:g}.")
    samplers: dict[str, Callable[[], Sampler]] = {
        "once": Once,
        "noise": lambda: Noise(**_not_none(n=n, spread=spread)),
        "path": lambda: Path(**_not_none(n=n, start=baseline)),
    }
    chosen_readout = READOUTS[str(readout)](**_not_none(layer=layer))
    return (Signal(RULES[str(rule)], samplers[str(sampler)](), chosen_readout, str(moment)),)


def _not_none(**arguments: Any) -> dict[str, Any]:
    """Returns the arguments that are not None."""
    return {key: value for key, value in arguments.items() if value is not None}


def guided_gradcam(*, layer: Argument = AUTO) -> tuple[Signal, ...]:
    """Makes two signals under two rules, whose product is the map."""
    return (*once("gradient", "guided"), *once("gradcam", layer=layer))


REGISTRY: dict[str, MethodEntry] = {
    "gradient": MethodEntry("g = ∂S/∂x", "Simonyan, Vedaldi, Zisserman 2013", partial(once, "gradient")),
    "input_x_gradient": MethodEntry("g ⊙ x", "Shrikumar et al. 2016", partial(once, "input_x_gradient")),
    "smoothgrad": MethodEntry(
        "the mean of g over noisy copies", "Smilkov et al. 2017", partial(noisy, "gradient"), NOISE
    ),
    "smoothgrad_squared": MethodEntry(
        "the mean of g² over noisy copies", "Hooker et al. 2019", partial(noisy, "gradient", SQUARE), NOISE
    ),
    "vargrad": MethodEntry(
        "the variance of g over noisy copies", "Adebayo et al. 2018", partial(noisy, "gradient", VARIANCE), NOISE
    ),
    "integrated_gradients": MethodEntry(
        "(x − x₀) ⊙ the mean of g on the line from the baseline x₀",
        "Sundararajan et al. 2017",
        partial(compose, sampler="path", readout="input_x_gradient"),
        PATH,
    ),
    "guided_backprop": MethodEntry(
        "g; a ReLU passes positive gradients of positive inputs",
        "Springenberg et al. 2014",
        partial(once, "gradient", "guided"),
    ),
    "deconvnet": MethodEntry(
        "g; a ReLU passes positive gradients", "Zeiler & Fergus 2013", partial(once, "gradient", "deconvnet")
    ),
    "fullgrad": MethodEntry(
        "g ⊙ x and every layer's g ⊙ bias, in one map", "Srinivas & Fleuret 2019", partial(once, "fullgrad")
    ),
    "simple_fullgrad": MethodEntry(
        "fullgrad without the biases' sizes", "Srinivas & Fleuret 2019", partial(once, "simple_fullgrad")
    ),
    "smooth_fullgrad": MethodEntry(
        "fullgrad's parts averaged over noisy copies", "Srinivas & Fleuret 2019", partial(noisy, "fullgrad"), NOISE
    ),
    "gradcam": MethodEntry(
        "a layer's channels weighted by their mean gradient", "Selvaraju et al. 2017", partial(once, "gradcam"), LAYER
    ),
    "gradcam++": MethodEntry(
        "Grad-CAM with weights for several objects", "Chattopadhay et al. 2018", partial(once, "gradcam++"), LAYER
    ),
    "hirescam": MethodEntry(
        "a layer's activation ⊙ gradient", "Draelos & Carin 2020", partial(once, "hirescam"), LAYER
    ),
    "layercam": MethodEntry(
        "a layer's activation ⊙ positive gradient", "Jiang et al. 2021", partial(once, "layercam"), LAYER
    ),
    "xgradcam": MethodEntry("Grad-CAM with weights that add up", "Fu et al. 2020", partial(once, "xgradcam"), LAYER),
    "guided_gradcam": MethodEntry("guided_backprop ⊙ gradcam", "Selvaraju et al. 2017", guided_gradcam, LAYER),
    "compose": MethodEntry(
        "any rule × sampler × readout: compose(rule=guided, sampler=noise, readout=fullgrad, n=10)",
        "",
        compose,
        {
            "rule": "plain",
            "sampler": "once",
            "readout": "gradient",
            "moment": MEAN,
            "n": "25 or 50",
            "spread": 0.15,
            "baseline": "zero",
            "layer": AUTO,
        },
    ),
}


def parse_method(spec: str) -> Method:
    """Parses ``gradient``, ``smoothgrad(n=50, reduction=l2)`` or ``name=spec``.

    Raises InvalidRequestError if there is no such method, or an argument does not fit it.
    """
    name, body = split_name(spec)
    head, values = parse_call(body)
    if head not in REGISTRY:
        raise InvalidRequestError(f"method {spec!r} does not exist: choose one of {', '.join(REGISTRY)}.")
    entry = REGISTRY[head]
    arguments = {key: value for key, value in values.items() if key != "reduction"}
    unknown = sorted(set(arguments) - set(entry.arguments))
    if unknown:
        takes = ", ".join([*entry.arguments, "reduction"])
        raise InvalidRequestError(f"method {spec!r}: {head} has no argument {', '.join(unknown)}; it takes {takes}.")
    # Arguments that equal the defaults are left out, so that both spellings name the same array.
    arguments |= {key: float(value) for key, value in arguments.items() if key == "spread" and isinstance(value, int)}
    changed = {key: value for key, value in arguments.items() if value != entry.arguments[key]}
    try:
        signals = entry.make(**arguments)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"method {spec!r}: {error}") from error
    usual = signals[0].readout.reduction
    reduction = parse_reduction(str(values.get("reduction", usual)))
    if reduction.name != usual:
        changed["reduction"] = reduction.name
    return Method(call_spec(head, changed), name or call_slug(head, changed), signals, reduction)
