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


def focal(x, y, gamma=2.0, **_):
    nll, u = true_class(x, y)
    return u**gamma * nll


def binary(x, t, pos_weight=None, label_smoothing=0.0, **_):
    t = (1.0 - label_smoothing) * t + label_smoothing / 2
    v = t if pos_weight is None else pos_weight * t
    return (1.0 - t) * F.softplus(x, threshold=1e9) + v * F.softplus(-x, threshold=1e9)


CASES = [
    Case(
        "cross_entropy",
        draw_classes,
        ({}, {"weight": rand(7), "sample_weight": rand(5)}, {"denominator": 3.0}),
        lambda x, y, **_: true_class(x, y)[0],
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
]
NAMES = [case.name for case in CASES]
