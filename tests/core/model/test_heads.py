"""The end of the model: a softmax or sigmoid there is passed by, or told of; one logit is two classes."""

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
    """A softmax inside, which is no end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.softmax, self.fc = nn.Conv2d(3, 6, 3), nn.Softmax(dim=1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.softmax(self.conv(x)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore::saliency_core.errors.SaliencyWarning")
@pytest.mark.parametrize("end", [nn.Softmax(dim=1), nn.Softmax(dim=-1), nn.LogSoftmax(dim=1)])
def test_a_softmax_at_the_end_is_passed_by_and_recorded(end: nn.Module) -> None:
    module, images = built(lambda: Ending(end)), images_of()
    bare = explain(module.body, images, *METHODS, rows=ROWS)
    for whole in (module, nn.Sequential(module.body, end)):
        explainer = Explainer(own(whole), methods=METHODS, precision="float64")
        found = explainer(images, rows=ROWS)["predicted"]
        assert any("softmax" in note for note in explainer.notes)
        close(found.scores, module.body(images).amax(1))
        close(found.probabilities, module.body(images).softmax(1).amax(1))
        for name in METHODS:
            close(found.maps[name], bare.maps[name])
        assert any(part is end for part in whole.modules())  # the user's model is not edited


class Twice(Attending):
    """The same softmax inside and at the end."""

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(super().forward(x))


@pytest.mark.filterwarnings("ignore::saliency_core.errors.SaliencyWarning")
def test_a_softmax_used_inside_too_is_passed_by_at_the_end_alone() -> None:
    module, images = built(Twice), images_of()
    found = explain(module, images, "gradient(reduction=none)")
    inner = Attending.forward
    close(found.scores, inner(module, images).amax(1))
    x = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(inner(module, x).amax(1).sum(), x)
    close(found.maps["gradient_none"], expected)


# What follows the scores z [n, 4] → which head it makes. Each is tried in the forms of ``FORMS``.
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
    """Of weights for which every class is the highest or the lowest somewhere."""
    module = built(lambda: Ending(end))
    module.body.fc = built(lambda: nn.Linear(12, classes), seed=1)
    module.body.fc.weight.mul_(8)
    module.body.fc.bias.sub_(module.body(images_of()).mean(0))
    return module


def exactly(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@quiet
@pytest.mark.parametrize(
    ("end", "form"),
    [(end, form) for end in ENDS for form in FORMS if end in EXPORTED or form in ("module", "TorchScript")],
)
def test_scores_are_those_in_front_of_what_squashes_them(end: str, form: str) -> None:
    kind, function = ENDS[end]
    module, images = headed(function), images_of()
    z = module.body(images)
    model, methods = Model("own", FORMS[form](module, images), SMALL), ["gradient(reduction=none)"]
    explainer = Explainer(model, methods=methods, targets=["predicted", "class:2"], precision="float64")
    found = explainer(images)
    probability = z.softmax(1) if kind == "softmax" else z.sigmoid()
    for slug, classes in (("predicted", z.argmax(1)), ("class_2", torch.full((5,), 2))):
        exactly(found[slug].scores, of_class(classes)(z))
        exactly(found[slug].probabilities, of_class(classes)(probability))
        exactly(found[slug].maps["gradient_none"], gradient(module.body, images, of_class(classes)))
        assert found[slug].classes.equal(classes)
    over = {"softmax": "4 classes", "sigmoid": "4 labels"}[kind]
    assert explainer.notes == [f"head: {kind} over {over} (the scores in front of it are explained)"]


# What follows one logit z [n, 1].
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
    found = explainer(images, labels=labels)
    g = gradient(module.body, images, lambda outputs: outputs[:, 0])
    winner = (z > 0).long()
    sign = {"class_0": -torch.ones(5), "class_1": torch.ones(5), "yes": torch.ones(5), "predicted": 2 * winner - 1}
    sign |= {"top1": sign["predicted"], "top2": -sign["predicted"], "contrast": 2 * sign["predicted"]}
    sign |= {"mix": torch.full((5,), -0.75)}
    for slug, signs in sign.items():
        exactly(found[slug].scores, signs * z)
        exactly(found[slug].maps["gradient_none"], signs.view(-1, 1, 1, 1) * g)
    for slug in ("class_0", "class_1", "predicted", "top1", "top2"):
        exactly(found[slug].probabilities, (sign[slug] * z).sigmoid())
        assert found[slug].classes.equal((sign[slug] > 0).long())
    assert found["label"].applies.tolist() == [True, True, True, False, False]
    exactly(found["label"].scores[:3], torch.stack([-z[0], z[1], z[2]]))
    assert [note.partition(" (")[0] for note in explainer.notes] == ["head: one logit, two classes"]


@quiet
@pytest.mark.parametrize("end", ["bare", "of shape [n]", "sigmoid, squeezed"])
def test_a_loss_gets_the_one_logit_as_a_column(end: str) -> None:
    module, images = headed(ONE_LOGIT[end], 1), images_of()
    labels, z = torch.tensor([0, 1, 1, 0, 1]), module.body(images)[:, 0]
    found = explain(module, images, "gradient", target="bce=loss:test_heads:binary", labels=labels)
    exactly(found.scores, F.binary_cross_entropy_with_logits(z, labels.double(), reduction="none"))


def binary(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels[:, None].double(), reduction="none")[:, 0]


@quiet
@pytest.mark.parametrize(
    ("end", "classes"), [(F.softmax, 4), (torch.sigmoid, 4), (torch.sigmoid, 1), (nn.Identity(), 1)]
)
def test_every_method_explains_the_scores_in_front(end: Callable[..., Tensor], classes: int) -> None:
    """In every forward: noisy, on a path, with captures, and where a CAM's layer is sought."""
    end = partial(end, dim=1) if end is F.softmax else end
    module, images = headed(end, classes), images_of()
    bare = module.body
    if classes == 1:  # two columns, by weights: a plain softmax model of the same scores
        bare = copy.deepcopy(module.body)
        bare.fc.weight = nn.Parameter(torch.cat([-bare.fc.weight, bare.fc.weight]), requires_grad=False)
        bare.fc.bias = nn.Parameter(torch.cat([-bare.fc.bias, bare.fc.bias]), requires_grad=False)
    for target in ("class:0", "predicted"):
        found, expected = (explain(each, images, *METHODS, rows=ROWS, target=target) for each in (module, bare))
        exactly(found.scores, expected.scores)
        for name in METHODS:
            assert expected.maps[name].any()
            close(found.maps[name], expected.maps[name])
        assert found.residuals["fullgrad"].max() <= 1e-12


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
def test_what_holds_no_tensor_is_refused(returned: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"returns a {type(returned).__name__} without a tensor"):
        explain(built(lambda: Ending(lambda z: returned)), images_of(), "gradient")


class Both(nn.Module):
    """Scores and probabilities by name."""

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
    found = Explainer(Model("own", module, SMALL, output=output), precision="float64")(images)["predicted"]
    z = module.body(images)
    exactly(found.scores, z.amax(1))
    exactly(found.probabilities, (z.sigmoid() if output == "marks" else z.softmax(1)).amax(1))


@quiet
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("join", "form"), [("cat", "module"), ("cat", "TorchScript"), ("stack", "module"), ("stack", "decomposed")]
)
def test_a_sigmoid_and_what_is_left_to_one_are_the_scores_of_two_labels(
    order: tuple[int, int], join: str, form: str
) -> None:
    def end(z: Tensor) -> Tensor:
        p = z.sigmoid()
        parts = [(1 - p, p)[which] for which in order]
        return torch.cat(parts, 1) if join == "cat" else torch.stack(parts, 2)[:, 0]

    module, images = headed(end, 1), images_of()
    z = module.body(images)
    model = Model("own", FORMS[form](module, images), SMALL)
    found = Explainer(model, targets=["class:0", "class:1"], precision="float64")(images)
    both = torch.cat([-z, z], 1)[:, list(order)]
    for number in (0, 1):
        exactly(found[f"class_{number}"].scores, both[:, number])
        exactly(found[f"class_{number}"].probabilities, both[:, number].sigmoid())


@quiet
@pytest.mark.parametrize("asked", ["softmax", "sigmoid"])
@pytest.mark.parametrize("end", [nn.Identity(), nn.Softmax(dim=1), torch.sigmoid])
def test_the_head_that_was_asked_for_is_the_scores(end: Callable[[Tensor], Tensor], asked: str) -> None:
    module, images = headed(end), images_of()
    z = module.body(images)
    found = Explainer(Model("own", module, SMALL, head=asked), precision="float64")(images)["predicted"]
    exactly(found.scores, z.amax(1))
    exactly(found.probabilities, (z.softmax(1) if asked == "softmax" else z.sigmoid()).amax(1))


@quiet
@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: Model("own", headed(nn.Identity(), 1), SMALL, head="softmax"), "always 1"),
        (lambda: Model("own", headed(torch.sigmoid, 1), SMALL, head="softmax"), "always 1"),
        (lambda: own(headed(nn.Softmax(1), 1)), "not a logit"),
        (lambda: own(headed(lambda z: z.softmax(1)[:, 1])), "not a logit"),
        (lambda: own(headed(F.hardsigmoid, 1)), "not a logit"),
        (lambda: own(headed(lambda z: torch.cat([part.sigmoid() for part in z.split(1)]))), "for one image"),
    ],
)
def test_what_is_no_head_is_refused(model: Callable[[], Model], named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        Explainer(model(), precision="float64")(images_of())


@pytest.mark.parametrize(
    ("end", "named"),
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
def test_what_cannot_be_passed_by_is_told(end: Callable[[Tensor], Tensor], named: str) -> None:
    explainer = Explainer(own(headed(end)), precision="float64")
    with pytest.warns(SaliencyWarning):
        found = explainer(images_of())["predicted"]
    assert any(named in note for note in explainer.notes)
    assert found.maps["gradient"].isfinite().all()


def checked(p: Tensor) -> Tensor:
    """Of a model that trusts nothing."""
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("these are no probabilities")
    return p


class Normalising(Ending):
    """Prepares its images in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).div_(2))


@quiet
def test_the_probe_is_not_changed() -> None:
    module, images = built(lambda: Normalising(torch.sigmoid)), images_of()
    found = explain(module, images, "gradient")
    exactly(found.scores, module.body((images - 0.5) / 2).amax(1))


@pytest.mark.parametrize("end", [nn.Identity(), lambda z: 3 * z, lambda z: z - 1, lambda z: -z.square()])
def test_of_plain_scores_nothing_is_told(end: Callable[[Tensor], Tensor]) -> None:
    explainer = Explainer(own(headed(end)), precision="float64")
    explainer(images_of())
    assert explainer.notes == []


@quiet
def test_softmin_and_temperature() -> None:
    images = images_of()
    for end, scores in ((nn.Softmin(dim=1), lambda z: -z), (lambda z: (z / 0.5).softmax(1), lambda z: 2 * z)):
        module = headed(end)
        z = scores(module.body(images))
        found = explain(module, images, "gradient(reduction=none)")
        exactly(found.scores, z.amax(1))
        exactly(found.probabilities, z.softmax(1).amax(1))
        exactly(
            found.maps["gradient_none"],
            gradient(module.body, images, lambda outputs: of_class(z.argmax(1))(scores(outputs))),  # noqa: B023
        )


class Fails(Ending):
    """In every forward after the first."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise ValueError("no more")
        return super().forward(x)


def test_nothing_is_left_behind() -> None:
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
    found = explain(module, images, "gradient(reduction=none)").maps["gradient_none"]
    close(found, gradient(module, images, of_class(module(images).argmax(1))))
