"""Tests of every target against its definition."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_core import Explainer, InvalidRequestError
from tests.support.method_nets import LABELS, METHODS, close, explain, images_of, net
from tests.support.references import gradient, of_class, out_of_place
from tests.support.subjects import own

pytestmark = pytest.mark.usefixtures("one_thread")


def gradients(module: nn.Module, images: Tensor, *targets: str, labels: Tensor | None = None) -> dict[str, Tensor]:
    explainer = Explainer(own(module), methods=["gradient(reduction=none)"], targets=targets, precision="float64")
    return {slug: explanation.maps["gradient_none"] for slug, explanation in explainer(images, labels=labels).items()}


def test_contrast_is_a_difference_of_gradients() -> None:
    module, images = net(), images_of()
    outputs = module(images)
    first, second = outputs.topk(2, 1).indices.unbind(1)
    labels = first.clone()
    labels[:3] = (first[:3] + torch.tensor([1, 2, 3])) % 5
    labels[4] = -1
    explainer = Explainer(
        own(module), methods=["gradient(reduction=none)"], targets=["contrast", "contrast:label"], precision="float64"
    )
    result = explainer(images, labels=labels)
    assert list(result) == ["contrast", "contrast_label"]
    a, b = (gradient(module, images, of_class(classes)) for classes in (first, second))
    close(result["contrast"].maps["gradient_none"], a - b)
    close(result["contrast"].scores, of_class(first)(outputs) - of_class(second)(outputs))
    against = gradient(module, images, of_class(labels.clamp(min=0)))
    close(result["contrast_label"].maps["gradient_none"][:4], (a - against)[:4])
    assert result["contrast_label"].maps["gradient_none"][3].eq(0).all()  # predicted and label are the same
    assert result["contrast_label"].applies.tolist() == [True] * 4 + [False]
    assert result["contrast_label"].maps["gradient_none"][4].isnan().all()


def test_weighted_is_a_weighted_sum_of_gradients() -> None:
    module, images = net(), images_of()
    result = gradients(module, images, "mix=weighted:{2: 1.0, 0: -0.5, 4: 0.25}", "class:2", "class:0", "class:4")
    expected = result["class_2"] - 0.5 * result["class_0"] + 0.25 * result["class_4"]
    close(result["mix"], expected)
    scores = explain(module, images, "gradient", target="mix=weighted:{2: 1.0, 0: -0.5, 4: 0.25}").scores
    close(scores, module(images) @ torch.tensor([-0.5, 0, 1, 0, 0.25], dtype=torch.float64))


def test_top_is_several_targets_in_order() -> None:
    module, images = net(), images_of()
    order = module(images).argsort(1, descending=True)
    explainer = Explainer(
        own(module), methods=["gradient(reduction=none)"], targets=["top:3", "predicted"], precision="float64"
    )
    result = explainer(images)
    assert list(result) == ["top1", "top2", "top3", "predicted"]
    for place in range(3):
        explanation = result[f"top{place + 1}"]
        assert torch.equal(explanation.classes, order[:, place])
        close(explanation.maps["gradient_none"], gradient(module, images, of_class(order[:, place])))
    close(result["top1"].maps["gradient_none"], result["predicted"].maps["gradient_none"])
    with pytest.raises(InvalidRequestError):
        Explainer(own(module), targets=["top:6"])(images.float())


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none")


def mean_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels)


def column(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs[:, :1]


def squeezed(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs[:, 0].squeeze()


def test_a_loss_of_the_users_own() -> None:
    module, images = net(), images_of()
    result = explain(
        module, images, "gradient(reduction=none)", target="ce=loss:test_targets:cross_entropy", labels=LABELS
    )
    close(result.maps["gradient_none"], gradient(module, images, lambda outputs: cross_entropy(outputs, LABELS)))
    close(result.scores, cross_entropy(module(images), LABELS))


def optional(outputs: Tensor, labels: Tensor | None = None) -> Tensor:
    assert labels is not None
    return cross_entropy(outputs, labels)


def anything(*tensors: Tensor) -> Tensor:
    return cross_entropy(*tensors)


def alone(outputs: Tensor, temperature: float = 2.0) -> Tensor:
    return outputs.logsumexp(1) / temperature


per_image = nn.CrossEntropyLoss(reduction="none")
in_part = partial(F.cross_entropy, reduction="none")


@pytest.mark.parametrize("function", ["per_image", "in_part", "optional", "anything"])
def test_losses_that_take_labels_receive_them(function: str) -> None:
    """A loss may be a module, whose __call__ accepts any arguments."""
    module, images = net(), images_of()
    result = explain(module, images, "gradient", target=f"ce=loss:test_targets:{function}", labels=LABELS)
    close(result.scores, cross_entropy(module(images), LABELS))
    with_none = torch.where(LABELS == 3, -1, LABELS)
    result = explain(module, images, "gradient", target=f"ce=loss:test_targets:{function}", labels=with_none)
    assert torch.equal(result.applies, LABELS != 3)


def test_an_option_of_a_loss_is_not_a_label() -> None:
    module, images = net(), images_of()
    close(
        explain(module, images, "gradient", target="mine=loss:test_targets:alone", labels=LABELS).scores,
        module(images).logsumexp(1) / 2,
    )


def fails(outputs: Tensor, labels: Tensor) -> Tensor:
    raise TypeError("not for me")


def three(outputs: Tensor, labels: Tensor, third: Tensor) -> Tensor:
    return outputs[:, 0]


def by_keyword(outputs: Tensor, *, margin: float) -> Tensor:
    return outputs[:, 0]


def nothing() -> None:
    return None


@pytest.mark.parametrize(("function", "message"), [("three", "third"), ("by_keyword", "margin"), ("nothing", "none")])
def test_a_loss_with_other_arguments_is_refused(function: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"{function}' is called with .*{message}"):
        Explainer(own(net()), targets=[f"bad=loss:test_targets:{function}"])


@pytest.mark.parametrize(("function", "number"), [("mean_loss", 5), ("mean_loss", 1), ("column", 5), ("squeezed", 1)])
def test_a_loss_of_another_shape_is_refused(function: str, number: int) -> None:
    with pytest.raises(InvalidRequestError, match=r"one value|shape"):
        explain(
            net(), images_of(number), "gradient",
            target=f"bad=loss:test_targets:{function}", labels=LABELS[:number],
        )  # fmt: skip


@pytest.mark.parametrize(
    "target",
    ["sharp=loss:test_targets:no_such", "sharp=loss:no_such_module:f", "sharp=loss:test_targets", "w=weighted:{9: 1}",
     "w=weighted:{}", "w=weighted:1", "top:0", "layer:no_such[1]", "u=layer:two[99]", "class:5", "contrast:top"],
)  # fmt: skip
def test_targets_that_cannot_work_are_refused(target: str) -> None:
    with pytest.raises(InvalidRequestError):
        explain(net(), images_of(2), "gradient", target=target, labels=LABELS[:2])


def test_a_layers_channel_is_a_target() -> None:
    """The target is the module's own output, before a batch norm that could be folded, and before an in-place ReLU."""
    module, images = net(), images_of()
    plain = out_of_place(module)

    def activation(layer: str, channel: int) -> tuple[Tensor, Tensor]:
        activations = []
        handle = plain.get_submodule(layer).register_forward_hook(
            lambda part, inputs, output: activations.append(output)
        )
        x = images.clone().requires_grad_()
        plain(x)
        handle.remove()
        unit = activations[0][:, channel].reshape(len(images), -1).mean(1)
        return unit.detach(), torch.autograd.grad(unit.sum(), x)[0]

    for layer, channel in (("one", 3), ("norm", 0), ("two", 5), ("relu2", 7), ("fc", 2)):
        result = explain(module, images, "gradient(reduction=none)", target=f"unit=layer:{layer}[{channel}]")
        scores, expected = activation(layer, channel)
        close(result.scores, scores)
        close(result.maps["gradient_none"], expected)
    slug = Explainer(own(module), targets=["layer:two[5]"]).targets[0].slug
    assert slug in Explainer(own(module), targets=["layer:two[5]"])(images.float())


def test_targets_share_a_forward_and_do_not_affect_each_other() -> None:
    module, images = net(), images_of()
    targets = ["predicted", "label", "top:2", "contrast", "unit=layer:two[5]", "w=weighted:{1: 2.0}"]
    together = gradients(module, images, *targets, labels=LABELS)
    for target in targets:
        for slug, maps in gradients(module, images, target, labels=LABELS).items():
            close(maps, together[slug])


@pytest.mark.filterwarnings("ignore:target .* does not depend on layer:saliency_core.errors.SaliencyWarning")
@pytest.mark.filterwarnings("ignore:what FullGrad.* a loss:saliency_core.errors.SaliencyWarning")
def test_every_method_takes_every_target() -> None:
    module, images = net(), images_of(2)
    targets = ["label", "top:2", "contrast:label", "unit=layer:two[5]", "ce=loss:test_targets:cross_entropy"]
    explainer = Explainer(own(module), methods=METHODS, targets=targets, precision="float64")
    result = explainer(images, labels=torch.tensor([2, -1]))
    for slug in ("label", "contrast_label", "ce"):
        assert result[slug].applies.tolist() == [True, False]
    for explanation in result.values():
        for maps in explanation.maps.values():
            assert maps[explanation.applies].isfinite().all() and maps[~explanation.applies].isnan().all()
