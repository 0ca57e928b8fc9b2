"""The list of losses: how each is called, and what it is in functions of PyTorch.

Every loss of the list goes through all of `test_torch_losses.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Case:
    """A loss of `xentrs.torch`."""

    name: str
    # (generator) -> the arguments, the input first, of float64 where they are floats
    draw: Callable
    # The options of a call; a callable gets the generator and the input.
    options: tuple[dict, ...]
    # (*arguments, **options) -> the loss of each sample or element, without weights of samples
    formula: Callable
    # (losses, *arguments, **options) -> weights, which are 0 where nothing counts
    weights: Callable
    module: str

    @property
    def bounded(self):
        """Whether the input is probabilities."""
        return self.name == "binary_cross_entropy"

    def drawn(self, options, dtype, device):
        """Return the arguments and options of a call."""
        generator = torch.Generator().manual_seed(0)
        arguments = self.draw(generator)
        options = {
            key: value(generator, arguments[0]) if callable(value) else value
            for key, value in options.items()
        }

        def move(t):
            if not torch.is_tensor(t):
                return t
            return t.to(dtype if t.is_floating_point() else None).to(device)

        return [move(t) for t in arguments], {key: move(t) for key, t in options.items()}

    def reference(self, *arguments, reduction="mean", denominator=None, **options):
        """Return the loss in float64, such that PyTorch differentiates it."""
        double = lambda t: t.double() if torch.is_tensor(t) and t.is_floating_point() else t  # noqa: E731
        arguments = [double(t) for t in arguments]
        options = {key: double(t) for key, t in options.items()}
        losses = self.formula(*arguments, **options)
        weights, total = self.weights(losses, *arguments, **options)
        losses = torch.where(weights != 0, weights * losses, 0.0)
        if reduction == "mean":
            return losses.sum() / (total.sum() if denominator is None else denominator)
        return losses.sum() if reduction == "sum" else losses


# What several losses have in common


def draw_classes(generator):
    """Return logits and class indices, one of them ignored."""
    x = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 2
    y = torch.randint(0, 7, (5,), generator=generator)
    y[1] = -100
    return x, y


def draw_elements(generator):
    """Return logits and labels."""
    x = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 2
    return x, torch.rand(5, 7, generator=generator, dtype=torch.float64).round(decimals=1)


def rand(*shape):
    """Return an option that is a tensor of this shape, one number of it 0."""

    def option(generator, x):
        t = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
        t.view(-1)[-1] = 0.0
        return t

    return option


def rand_bool(generator, x):
    """Return an option that is a tensor of bools."""
    return torch.rand(x.shape, generator=generator) > 0.3


def by_class(losses, x, y, *, weight=None, sample_weight=None, **_):
    """Return the weight of each sample and what a mean divides by, for class indices."""
    s = torch.ones_like(losses) if sample_weight is None else sample_weight
    kept = y != -100
    if weight is not None:
        s = s * weight[torch.where(kept, y, 0)]
    s = torch.where(kept, s, 0.0)
    return s, s


def draw_models(generator):
    """Return logits of a model and of a teacher."""
    x = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 2
    return x, x + torch.randn(5, 7, generator=generator, dtype=torch.float64)


def draw_logits(generator):
    """Return logits, for a loss without a target."""
    return (torch.randn(5, 7, generator=generator, dtype=torch.float64) * 2,)


def draw_log_probabilities(generator):
    """Return log-probabilities and class indices, one of them ignored."""
    x, y = draw_classes(generator)
    return x.log_softmax(1), y


def by_sample(losses, *_, sample_weight=None, **__):
    """Return the weight of each sample and what a mean divides by."""
    s = torch.ones_like(losses) if sample_weight is None else sample_weight
    return s, s


def by_element(losses, x, t, *, weight=None, where=None, **_):
    """Return the weight of each element and what a mean divides by."""
    counted = torch.ones_like(losses) if where is None else where.to(losses.dtype)
    return counted if weight is None else counted * weight, counted


def true_class(x, y):
    """Return -log p and 1 - p of the true class, both with their digits."""
    y = torch.where(y == -100, 0, y).unsqueeze(1)
    others = x.scatter(1, y, -math.inf).logsumexp(1)
    d = others - x.gather(1, y).squeeze(1)
    return F.softplus(d, threshold=1e9), d.sigmoid()


def cross_entropy(x, y, temperature=1.0, **_):
    return true_class(x / temperature, y)[0]


def nll(x, y, label_smoothing=0.0, **_):
    losses = -x.gather(1, torch.where(y == -100, 0, y).unsqueeze(1)).squeeze(1)
    return (1.0 - label_smoothing) * losses - label_smoothing * x.mean(1)


def softmax_entropy(x, **_):
    log_p = x.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def focal(x, y, gamma=2.0, **_):
    nll, u = true_class(x, y)
    return u**gamma * nll


def generalized(x, y, q=0.7, **_):
    return -torch.expm1(-q * true_class(x, y)[0]) / q


def poly(x, y, epsilon=1.0, **_):
    nll, u = true_class(x, y)
    return nll + epsilon * u


def binary(x, t, pos_weight=None, label_smoothing=0.0, **_):
    t = (1.0 - label_smoothing) * t + label_smoothing / 2
    v = t if pos_weight is None else pos_weight * t
    return (1.0 - t) * F.softplus(x, threshold=1e9) + v * F.softplus(-x, threshold=1e9)


def draw_probabilities(generator):
    """Return probabilities and labels."""
    x, t = draw_elements(generator)
    return (x * 0.8).sigmoid(), t


def binary_of_probabilities(p, t, pos_weight=None, label_smoothing=0.0, **_):
    t = (1.0 - label_smoothing) * t + label_smoothing / 2
    v = t if pos_weight is None else pos_weight * t
    return -(v * p.log() + (1.0 - t) * (-p).log1p())


def sigmoid_focal(x, t, gamma=2.0, alpha=None, **_):
    m = (1.0 - t) * x.sigmoid() + t * (-x).sigmoid()
    losses = m**gamma * binary(x, t)
    return losses if alpha is None else (alpha * t + (1.0 - alpha) * (1.0 - t)) * losses


def kl_divergence(x, y, temperature=1.0, direction="forward", **_):
    log_p, log_q = (F.log_softmax(t.double() / temperature, 1) for t in (x, y))
    if direction == "reverse":
        log_p, log_q = log_q, log_p
    return (log_q.exp() * (log_q - log_p)).sum(1)


def js_divergence(x, y, beta=0.5, temperature=1.0, **_):
    if beta in (0.0, 1.0):
        return kl_divergence(x, y, temperature, "reverse" if beta else "forward")
    log_p, log_q = (F.log_softmax(t.double() / temperature, 1) for t in (x, y))
    log_m = torch.logaddexp(log_p + math.log(1.0 - beta), log_q + math.log(beta))
    of_p, of_q = ((a.exp() * (a - log_m)).sum(1) for a in (log_p, log_q))
    return beta * of_q + (1.0 - beta) * of_p


CASES = [
    Case(
        "cross_entropy",
        draw_classes,
        (
            {},
            {"weight": rand(7), "sample_weight": rand(5)},
            {"temperature": 2.5, "denominator": 3.0},
        ),
        cross_entropy,
        by_class,
        "CrossEntropyLoss",
    ),
    Case(
        "focal_loss",
        draw_classes,
        (
            {},
            {"gamma": 0.5, "weight": rand(7), "sample_weight": rand(5)},
            {"gamma": 3.5, "denominator": 3.0},
        ),
        focal,
        by_class,
        "FocalLoss",
    ),
    Case(
        "generalized_cross_entropy",
        draw_classes,
        (
            {},
            {"q": 0.1, "weight": rand(7), "sample_weight": rand(5)},
            {"q": 1.0, "denominator": 3.0},
        ),
        generalized,
        by_class,
        "GeneralizedCrossEntropyLoss",
    ),
    Case(
        "poly_loss",
        draw_classes,
        (
            {},
            {"epsilon": -0.5, "weight": rand(7), "sample_weight": rand(5)},
            {"epsilon": 3.0, "denominator": 3.0},
        ),
        poly,
        by_class,
        "PolyLoss",
    ),
    Case(
        "nll_loss",
        draw_log_probabilities,
        (
            {},
            {"weight": rand(7), "sample_weight": rand(5)},
            {"label_smoothing": 0.1, "denominator": 3.0},
        ),
        nll,
        by_class,
        "NLLLoss",
    ),
    Case(
        "softmax_entropy",
        draw_logits,
        ({}, {"sample_weight": rand(5), "denominator": 3.0}),
        softmax_entropy,
        by_sample,
        "SoftmaxEntropyLoss",
    ),
    Case(
        "kl_divergence",
        draw_models,
        (
            {},
            {"direction": "reverse", "sample_weight": rand(5)},
            {"temperature": 2.5, "denominator": 3.0},
        ),
        kl_divergence,
        by_sample,
        "KLDivergenceLoss",
    ),
    Case(
        "js_divergence",
        draw_models,
        (
            {},
            {"beta": 0.1, "sample_weight": rand(5)},
            {"beta": 1.0, "temperature": 2.5, "denominator": 3.0},
        ),
        js_divergence,
        by_sample,
        "JSDivergenceLoss",
    ),
    Case(
        "binary_cross_entropy_with_logits",
        draw_elements,
        (
            {},
            {"weight": rand(5, 7), "where": rand_bool, "pos_weight": rand(7)},
            {"label_smoothing": 0.1, "denominator": 3.0},
        ),
        binary,
        by_element,
        "BCEWithLogitsLoss",
    ),
    Case(
        "binary_cross_entropy",
        draw_probabilities,
        (
            {},
            {"weight": rand(5, 7), "where": rand_bool, "pos_weight": rand(7)},
            {"label_smoothing": 0.1, "denominator": 3.0},
        ),
        binary_of_probabilities,
        by_element,
        "BCELoss",
    ),
    Case(
        "sigmoid_focal_loss",
        draw_elements,
        (
            {},
            {"gamma": 0.5, "weight": rand(5, 7), "where": rand_bool},
            {"gamma": 3.5, "alpha": 0.25, "denominator": 3.0},
        ),
        sigmoid_focal,
        by_element,
        "SigmoidFocalLoss",
    ),
]
NAMES = [case.name for case in CASES]
