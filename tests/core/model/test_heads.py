"""Tests of heads: a softmax or sigmoid at the model's end is bypassed, or noted; one logit is two classes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_core import Explainer, InvalidRequestError, Model
from saliency_core.errors import SaliencyWarning
from saliency_core.replica.prepare import make_replica
from tests.support.method_nets import METHODS, ROWS, Net, close, explain, images_of
from tests.support.references import built, gradient, of_class
from tests.support.subjects import SMALL, own

pytestmark = pytest.mark.usefixtures("one_thread")


class Ending(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.end = Net(), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x))


class Attending(nn.Module):
    """A net with a softmax inside, not at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.softmax, self.fc = nn.Conv2d(3, 6, 3), nn.Softmax(dim=1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.softmax(self.conv(x)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore::saliency_core.errors.SaliencyWarning")
@pytest.mark.parametrize("end", [nn.Softmax(dim=1), nn.Softmax(dim=-1), nn.LogSoftmax(dim=1)])
def test_a_softmax_at_the_end_is_bypassed_and_recorded(end: nn.Module) -> None:
    module, images = built(lambda: Ending(end)), images_of()
    bare = explain(module.body, images, *METHODS, rows=ROWS)
    for whole in (module, nn.Sequential(module.body, end)):
        explainer = Explainer(own(whole), methods=METHODS, precision="float64")
        result = explainer(images, rows=ROWS)["predicted"]
        assert any("softmax" in note for note in explainer.notes)
        close(result.scores, module.body(images).amax(1))
        close(result.probabilities, module.body(images).softmax(1).amax(1))
        for name in METHODS:
            close(result.maps[name], bare.maps[name])
        assert any(part is end for part in whole.modules())  # the user's model is not edited


class Twice(Attending):
    """A net with the same softmax inside and at its end."""

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(super().forward(x))


@pytest.mark.filterwarnings("ignore::saliency_core.errors.SaliencyWarning")
def test_a_softmax_that_is_also_used_inside_is_bypassed_only_at_the_end() -> None:
    module, images = built(Twice), images_of()
    result = explain(module, images, "gradient(reduction=none)")
    inner = Attending.forward
    close(result.scores, inner(module, images).amax(1))
    x = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(inner(module, x).amax(1).sum(), x)
    close(result.maps["gradient_none"], expected)


# Endings after the scores z [n, 4], with the head of each. They are tested in the forms of ``FORMS``.
ENDS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "module": ("softmax", nn.Softmax(dim=1)),
    "module of logarithms": ("softmax", nn.LogSoftmax(dim=-1)),
    "in a sequence, with dropout": ("softmax", nn.Sequential(nn.Dropout(0.1), nn.Softmax(1), nn.Dropout(0.5))),
    "F.softmax": ("softmax", lambda z: F.softmax(z, dim=1)),
    "F.log_softmax": ("softmax", lambda z: F.log_softmax(z, -1)),
    "torch.softmax": ("softmax", lambda z: torch.softmax(z, 1)),
    "by keyword": ("softmax", lambda z: torch.softmax(input=z, dim=1)),
    "special.log_softmax": ("softmax", lambda z: torch.special.log_softmax(z, 1)),
    "method": ("softmax", lambda z: z.softmax(dim=-1)),
    "method of logarithms": ("softmax", lambda z: z.log_softmax(-1)),
    "logarithm of softmax": ("softmax", lambda z: z.softmax(1).log()),
    "logarithm of clamped": ("softmax", lambda z: torch.log(torch.clamp(z.softmax(1), min=1e-9))),
    "logarithm of a sum": ("softmax", lambda z: torch.log(z.softmax(1) + 1e-10)),
    "clamp": ("softmax", lambda z: z.softmax(1).clamp(1e-7, 1 - 1e-7)),
    "views": ("softmax", lambda z: z[:, :, None].softmax(1).view(-1, 4, 1).squeeze(2)),
    "index": ("softmax", lambda z: z[:, :, None].softmax(1)[:, :, 0]),
    "clone and cast": ("softmax", lambda z: z.softmax(1).clone().to(torch.float64).double()),
    "flatten": ("softmax", lambda z: z[:, :, None, None].softmax(1).flatten(1)),
    "exponential of logarithms": ("softmax", lambda z: z.log_softmax(1).exp()),
    "flipped and back": ("softmax", lambda z: z.softmax(1).flip(1).flip(1)),
    "chosen by index": ("softmax", lambda z: z.flip(1).softmax(1).index_select(1, torch.arange(3, -1, -1))),
    "left axes of size 1": ("softmax", lambda z: z[:, :, None, None].softmax(1)),
    "squeezed whole": ("softmax", lambda z: z[:, :, None, None].softmax(1).squeeze()),
    "Softmax2d": ("softmax", lambda z: nn.Softmax2d()(z[:, :, None, None])[..., 0, 0]),
    "nn.Sigmoid": ("sigmoid", nn.Sigmoid()),
    "nn.LogSigmoid": ("sigmoid", nn.LogSigmoid()),
    "torch.sigmoid": ("sigmoid", torch.sigmoid),
    "Tensor.sigmoid": ("sigmoid", lambda z: z.sigmoid()),
    "F.sigmoid": ("sigmoid", lambda z: F.sigmoid(z)),
    "F.logsigmoid": ("sigmoid", lambda z: F.logsigmoid(z)),
    "expit": ("sigmoid", lambda z: torch.special.expit(z)),
    "in place": ("sigmoid", lambda z: z.sigmoid_()),
    "torch in place": ("sigmoid", lambda z: torch.sigmoid_(z)),
    "sigmoid, views": ("sigmoid", lambda z: z[:, None].sigmoid().reshape(-1, 4)),
    "sigmoid, clamped": ("sigmoid", lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6)),
    "sigmoid, clamped in place": ("sigmoid", lambda z: z.sigmoid().clamp_(min=1e-6)),
    "sigmoid, logarithm": ("sigmoid", lambda z: z.sigmoid().log()),
    "of each label": ("sigmoid", lambda z: torch.cat([part.sigmoid() for part in z.split(1, dim=1)], dim=1)),
    "stacked": ("sigmoid", lambda z: torch.stack([part.sigmoid() for part in z.unbind(1)], dim=1)),
}  # fmt: skip


def exported(module: nn.Module, images: Tensor, *, decomposed: bool = False) -> nn.Module:
    program = torch.export.export(module, (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    return (program.run_decompositions() if decomposed else program).module()


def scripted(module: nn.Module, images: Tensor) -> nn.Module:
    return torch.jit.trace(module, images)


FORMS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "module": lambda module, images: module,
    "exported": exported,
    "decomposed": lambda module, images: exported(module, images, decomposed=True),
    "TorchScript": scripted,
}
EXPORTED = ("module", "index", "logarithm of clamped", "in place", "stacked")
quiet = pytest.mark.filterwarnings(
    "ignore::saliency_core.errors.SaliencyWarning",
    "ignore::DeprecationWarning",
    "ignore::UserWarning",
    "ignore::FutureWarning",
)


def headed(end: Callable[[Tensor], Tensor], classes: int = 4) -> Ending:
    """Builds a net with the ending whose weights make every class the highest or the lowest for some image."""
    module = built(lambda: Ending(end))
    module.body.fc = built(lambda: nn.Linear(12, classes), seed=1)
    module.body.fc.weight.mul_(8)
    module.body.fc.bias.sub_(module.body(images_of()).mean(0))
    return module


def exactly(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@quiet
@pytest.mark.parametrize(
    ("end", "form"),
    [(end, form) for end in ENDS for form in FORMS if end in EXPORTED or form in ("module", "TorchScript")],
)
def test_scores_are_those_before_a_squashing_call(end: str, form: str) -> None:
    kind, function = ENDS[end]
    module, images = headed(function), images_of()
    z = module.body(images)
    model, methods = Model("own", FORMS[form](module, images), SMALL), ["gradient(reduction=none)"]
    explainer = Explainer(model, methods=methods, targets=["predicted", "class:2"], precision="float64")
    result = explainer(images)
    probability = z.softmax(1) if kind == "softmax" else z.sigmoid()
    for slug, classes in (("predicted", z.argmax(1)), ("class_2", torch.full((5,), 2))):
        exactly(result[slug].scores, of_class(classes)(z))
        exactly(result[slug].probabilities, of_class(classes)(probability))
        exactly(result[slug].maps["gradient_none"], gradient(module.body, images, of_class(classes)))
        assert result[slug].classes.equal(classes)
    over = {"softmax": "4 classes", "sigmoid": "4 labels"}[kind]
    assert explainer.notes == [f"head: {kind} over {over} (the scores in front of it are explained)"]


# Endings after a single logit z [n, 1].
ONE_LOGIT: dict[str, Callable[[Tensor], Tensor]] = {
    "bare": lambda z: z + 0,
    "of shape [n]": lambda z: z.squeeze(1),
    "indexed": lambda z: z[:, 0],
    "squeezed whole": lambda z: z.squeeze(),
    "left axes of size 1": lambda z: z[:, :, None, None],
    "nn.Sigmoid": nn.Sigmoid(),
    "sigmoid, squeezed": lambda z: torch.sigmoid(z).squeeze(1),
    "squeezed, sigmoid": lambda z: z.flatten().sigmoid(),
    "clamped": lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6)[:, 0],
    "logarithm": F.logsigmoid,
}


@quiet
@pytest.mark.parametrize(
    ("end", "form"),
    [(end, form) for end in ONE_LOGIT for form in ("module", "TorchScript")]
    + [("sigmoid, squeezed", "exported"), ("squeezed, sigmoid", "exported")],
)
def test_one_logit_is_two_classes(end: str, form: str) -> None:
    module, images = headed(ONE_LOGIT[end], 1), images_of()
    z = module.body(images)[:, 0]
    assert 0 < (z > 0).sum() < 5
    labels = torch.tensor([0, 1, 1, -1, 2])
    targets = ["predicted", "label", "class:0", "class:1", "top:2", "contrast", "mix=weighted:{0: 1.0, 1: 0.25}"]
    explainer = Explainer(
        Model("own", FORMS[form](module, images), SMALL, class_names=("no", "yes")),
        methods=["gradient(reduction=none)"], targets=[*targets, "yes=class:yes"], precision="float64",
    )  # fmt: skip
    result = explainer(images, labels=labels)
    g = gradient(module.body, images, lambda outputs: outputs[:, 0])
    winner = (z > 0).long()
    sign = {"class_0": -torch.ones(5), "class_1": torch.ones(5), "yes": torch.ones(5), "predicted": 2 * winner - 1}
    sign |= {"top1": sign["predicted"], "top2": -sign["predicted"], "contrast": 2 * sign["predicted"]}
    sign |= {"mix": torch.full((5,), -0.75)}
    for slug, signs in sign.items():
        exactly(result[slug].scores, signs * z)
        exactly(result[slug].maps["gradient_none"], signs.view(-1, 1, 1, 1) * g)
    for slug in ("class_0", "class_1", "predicted", "top1", "top2"):
        exactly(result[slug].probabilities, (sign[slug] * z).sigmoid())
        assert result[slug].classes.equal((sign[slug] > 0).long())
    assert result["label"].applies.tolist() == [True, True, True, False, False]
    exactly(result["label"].scores[:3], torch.stack([-z[0], z[1], z[2]]))
    assert [note.partition(" (")[0] for note in explainer.notes] == ["head: one logit, two classes"]


@quiet
@pytest.mark.parametrize("end", ["bare", "of shape [n]", "sigmoid, squeezed"])
def test_a_loss_gets_the_one_logit_as_a_column(end: str) -> None:
    module, images = headed(ONE_LOGIT[end], 1), images_of()
    labels, z = torch.tensor([0, 1, 1, 0, 1]), module.body(images)[:, 0]
    result = explain(module, images, "gradient", target="bce=loss:test_heads:binary", labels=labels)
    exactly(result.scores, F.binary_cross_entropy_with_logits(z, labels.double(), reduction="none"))


def binary(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels[:, None].double(), reduction="none")[:, 0]


@quiet
@pytest.mark.parametrize(
    ("end", "classes"), [(F.softmax, 4), (torch.sigmoid, 4), (torch.sigmoid, 1), (nn.Identity(), 1)]
)
def test_every_method_explains_the_scores_before_the_head(end: Callable[..., Tensor], classes: int) -> None:
    """The head is bypassed in every forward: with noise, on a path, with captures, and for finding a CAM's layer."""
    end = partial(end, dim=1) if end is F.softmax else end
    module, images = headed(end, classes), images_of()
    bare = module.body
    if classes == 1:  # two columns, by weights: a plain softmax model of the same scores
        bare = copy.deepcopy(module.body)
        bare.fc.weight = nn.Parameter(torch.cat([-bare.fc.weight, bare.fc.weight]), requires_grad=False)
        bare.fc.bias = nn.Parameter(torch.cat([-bare.fc.bias, bare.fc.bias]), requires_grad=False)
    for target in ("class:0", "predicted"):
        result, expected = (explain(each, images, *METHODS, rows=ROWS, target=target) for each in (module, bare))
        exactly(result.scores, expected.scores)
        for name in METHODS:
            assert expected.maps[name].any()
            close(result.maps[name], expected.maps[name])
        assert result.residuals["fullgrad"].max() <= 1e-12


@dataclass
class Scores:
    logits: Tensor
    hidden: object = None


class Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits, self.loss = logits, None


RETURNED: dict[str, Callable[[Tensor], object]] = {
    "tuple": lambda z: (z, None),
    "list": lambda z: [z],
    "dict": lambda z: {"logits": z, "hidden_states": (z, z)},
    "dataclass": Scores,
    "namespace": lambda z: SimpleNamespace(logits=z),
    "object": Answer,
}


@pytest.mark.parametrize("form", RETURNED)
def test_the_only_tensor_returned_is_the_scores(form: str) -> None:
    module, images = headed(RETURNED[form]), images_of()
    exactly(explain(module, images, "gradient").scores, module.body(images).amax(1))


@pytest.mark.parametrize("returned", [None, "text", Answer(None), {}, []])
def test_an_output_without_a_tensor_is_refused(returned: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"returns a {type(returned).__name__} without a tensor"):
        explain(built(lambda: Ending(lambda z: returned)), images_of(), "gradient")


class Both(nn.Module):
    """A net that returns scores and probabilities by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Net()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.body(x)
        return {"logits": z, "probs": z.softmax(1), "marks": z.sigmoid()}


@quiet
@pytest.mark.parametrize("output", ["logits", "probs", "marks"])
def test_the_head_is_that_of_the_chosen_output(output: str) -> None:
    module, images = built(Both), images_of()
    result = Explainer(Model("own", module, SMALL, output=output), precision="float64")(images)["predicted"]
    z = module.body(images)
    exactly(result.scores, z.amax(1))
    exactly(result.probabilities, (z.sigmoid() if output == "marks" else z.softmax(1)).amax(1))


@quiet
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("join", "form"), [("cat", "module"), ("cat", "TorchScript"), ("stack", "module"), ("stack", "decomposed")]
)
def test_a_sigmoid_and_its_complement_are_two_labels(order: tuple[int, int], join: str, form: str) -> None:
    def end(z: Tensor) -> Tensor:
        p = z.sigmoid()
        parts = [(1 - p, p)[which] for which in order]
        return torch.cat(parts, 1) if join == "cat" else torch.stack(parts, 2)[:, 0]

    module, images = headed(end, 1), images_of()
    z = module.body(images)
    model = Model("own", FORMS[form](module, images), SMALL)
    result = Explainer(model, targets=["class:0", "class:1"], precision="float64")(images)
    both = torch.cat([-z, z], 1)[:, list(order)]
    for number in (0, 1):
        exactly(result[f"class_{number}"].scores, both[:, number])
        exactly(result[f"class_{number}"].probabilities, both[:, number].sigmoid())


@quiet
@pytest.mark.parametrize("requested", ["softmax", "sigmoid"])
@pytest.mark.parametrize("end", [nn.Identity(), nn.Softmax(dim=1), torch.sigmoid])
def test_a_requested_head_is_used(end: Callable[[Tensor], Tensor], requested: str) -> None:
    module, images = headed(end), images_of()
    z = module.body(images)
    result = Explainer(Model("own", module, SMALL, head=requested), precision="float64")(images)["predicted"]
    exactly(result.scores, z.amax(1))
    exactly(result.probabilities, (z.softmax(1) if requested == "softmax" else z.sigmoid()).amax(1))


@quiet
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Model("own", headed(nn.Identity(), 1), SMALL, head="softmax"), "always 1"),
        (lambda: Model("own", headed(torch.sigmoid, 1), SMALL, head="softmax"), "always 1"),
        (lambda: own(headed(nn.Softmax(1), 1)), "not a logit"),
        (lambda: own(headed(lambda z: z.softmax(1)[:, 1])), "not a logit"),
        (lambda: own(headed(F.hardsigmoid, 1)), "not a logit"),
        (lambda: own(headed(lambda z: torch.cat([part.sigmoid() for part in z.split(1)]))), "for one image"),
    ],
)
def test_an_unusable_head_is_refused(model: Callable[[], Model], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Explainer(model(), precision="float64")(images_of())


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2, "look like probabilities"),  # an ensemble
        (lambda z: z.exp() / z.exp().sum(1, keepdim=True), "look like probabilities"),
        (lambda z: 1 / (1 + (-z).exp()), "look like probabilities"),
        (lambda z: torch.jit.trace(nn.Softmax(1), torch.zeros(2, 4).double())(z), "look like probabilities"),
        (lambda z: z.softmax(0), "ends in softmax"),
        (lambda z: torch.cat([z[:, :2].softmax(1), z[:, 2:].softmax(1)], 1), "ends in softmax"),
        (lambda z: z.softmax(1)[:, :2], "ends in softmax"),
        (lambda z: z.tanh(), "ends in tanh"),
        (F.hardsigmoid, "ends in hardsigmoid"),
        (lambda z: 100 * z.softmax(1), "look like probabilities"),  # percent
        (lambda z: torch.minimum(z, 0 * z) - torch.log1p((-z.abs()).exp()), "look like probabilities"),  # log-sigmoid
        (lambda z: z.softmax(1).softmax(1), "squashed before"),
        (lambda z: z.sigmoid().softmax(1), "squashed before"),
        (lambda z: checked(z.softmax(1)), "ends in softmax"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_ending_that_cannot_be_bypassed_is_noted(end: Callable[[Tensor], Tensor], message: str) -> None:
    explainer = Explainer(own(headed(end)), precision="float64")
    with pytest.warns(SaliencyWarning):
        result = explainer(images_of())["predicted"]
    assert any(message in note for note in explainer.notes)
    assert result.maps["gradient"].isfinite().all()


def checked(p: Tensor) -> Tensor:
    """Returns ``p``, and raises if it does not hold probabilities, as a strict model may do."""
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("these are no probabilities")
    return p


class Normalising(Ending):
    """A net that normalises its images in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).div_(2))


@quiet
def test_the_probe_is_not_changed() -> None:
    module, images = built(lambda: Normalising(torch.sigmoid)), images_of()
    result = explain(module, images, "gradient")
    exactly(result.scores, module.body((images - 0.5) / 2).amax(1))


@pytest.mark.parametrize("end", [nn.Identity(), lambda z: 3 * z, lambda z: z - 1, lambda z: -z.square()])
def test_plain_scores_have_no_notes(end: Callable[[Tensor], Tensor]) -> None:
    explainer = Explainer(own(headed(end)), precision="float64")
    explainer(images_of())
    assert explainer.notes == []


@quiet
def test_softmin_and_temperature() -> None:
    images = images_of()
    for end, scores in ((nn.Softmin(dim=1), lambda z: -z), (lambda z: (z / 0.5).softmax(1), lambda z: 2 * z)):
        module = headed(end)
        z = scores(module.body(images))
        result = explain(module, images, "gradient(reduction=none)")
        exactly(result.scores, z.amax(1))
        exactly(result.probabilities, z.softmax(1).amax(1))
        exactly(
            result.maps["gradient_none"],
            gradient(module.body, images, lambda outputs: of_class(z.argmax(1))(scores(outputs))),  # noqa: B023
        )


class Fails(Ending):
    """A net that fails in every forward after the first."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise ValueError("no more")
        return super().forward(x)


def test_the_model_and_torch_are_unchanged_afterwards() -> None:
    module, images = headed(torch.sigmoid), images_of()
    before = module(images)
    with pytest.warns(SaliencyWarning, match="head: sigmoid"):
        explain(module, images, "gradient")
    assert module(images).equal(before)
    failing = own(built(lambda: Fails(torch.sigmoid)))
    with pytest.raises(ValueError, match="no more"):
        make_replica(failing, images, dtype=torch.float64)
    z = torch.zeros(1, 2)
    assert z.sigmoid().equal(torch.full((1, 2), 0.5))


def test_a_softmax_inside_stays() -> None:
    module, images = built(Attending), images_of()
    result = explain(module, images, "gradient(reduction=none)").maps["gradient_none"]
    close(result, gradient(module, images, of_class(module(images).argmax(1))))
