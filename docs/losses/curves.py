"""Draw the pictures of the pages in this folder: ``python docs/losses/curves.py``.

Every curve is made of calls of the loss that the page is about.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from scipy.optimize import minimize

import xentrs

Array = NDArray[np.float64]

HERE = Path(__file__).parent
GREY = "#8c959f"

plt.style.use(HERE.parent / "pictures.mplstyle")

PROBABILITIES = np.linspace(0.002, 0.998, 250)
MARGINS = np.log(PROBABILITIES / (1 - PROBABILITIES))


def of_probability(
    function: Callable[..., Any], curves: dict[str, dict[str, Any]], top: float
) -> Any:
    """Draw loss and gradient over the probability of the true class, of two classes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    logits = np.column_stack([MARGINS, np.zeros_like(MARGINS)])
    target = np.zeros(len(logits), dtype=int)
    for label, options in curves.items():
        losses, grad = function(logits, target, reduction="none", **options)
        left.plot(PROBABILITIES, losses, label=label)
        right.plot(PROBABILITIES, -grad[:, 0], label=label)
    left.set(xlabel="$p_y$", title="loss", ylim=(0, top))
    right.set(xlabel="$p_y$", title="size of the gradient in $x_y$", ylim=(0, None))
    left.legend()
    return figure


def focal() -> Any:
    curves = {f"$\\gamma$ = {gamma:g}": {"gamma": gamma} for gamma in (0, 0.5, 1, 2, 5)}
    return of_probability(xentrs.focal_loss_with_grad, curves, 4)


def generalized() -> Any:
    curves = {f"q = {q:g}": {"q": q} for q in (0.001, 0.3, 0.7, 1)}
    return of_probability(xentrs.generalized_cross_entropy_with_grad, curves, 4)


def poly() -> Any:
    curves = {f"$\\epsilon$ = {e:g}": {"epsilon": e} for e in (-1, 0, 1, 2)}
    return of_probability(xentrs.poly_loss_with_grad, curves, 5)


def sigmoid_focal() -> Any:
    """Draw the loss over the logit, for both labels."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained", sharey=True)
    x = np.linspace(-6, 6, 241)
    for one, label in zip(axes, (1, 0), strict=True):
        for gamma, alpha in ((0, None), (2, None), (2, 0.25)):
            losses = xentrs.sigmoid_focal_loss(
                x, np.full(x.shape, label), gamma=gamma, alpha=alpha, reduction="none"
            )
            name = f"$\\gamma$ = {gamma}" + ("" if alpha is None else f", $\\alpha$ = {alpha}")
            one.plot(x, losses, label=name)
        one.set(title=f"label {label}", xlabel="logit", ylim=(0, 4))
    axes[0].set_ylabel("loss")
    axes[0].legend()
    return figure


# Divergences: a model of one bell meets a teacher of two.
GRID = np.arange(60.0)
TEACHER = np.logaddexp(
    np.log(0.65) - np.square((GRID - 18) / 4) / 2, np.log(0.35) - np.square((GRID - 42) / 4) / 2
)


def fitted(function: Callable[..., Any], **options: Any) -> Array:
    """Return the bell that has the least divergence from the teacher."""

    def objective(parameters: Array) -> tuple[float, Array]:
        centre, log_width = parameters
        distance = (GRID - centre) / np.exp(log_width)
        loss, grad = function(-np.square(distance) / 2, TEACHER, **options)
        return loss, np.array([grad @ distance / np.exp(log_width), grad @ np.square(distance)])

    starts = [np.array([centre, np.log(width)]) for centre in (18, 30, 42) for width in (4, 12)]
    found = min((minimize(objective, s, jac=True) for s in starts), key=lambda one: one.fun)
    centre, log_width = found.x
    return np.asarray(xentrs.softmax(-np.square((GRID - centre) / np.exp(log_width)) / 2))


def bells(models: dict[str, Array]) -> Any:
    figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
    axes.fill_between(GRID, xentrs.softmax(TEACHER), color=GREY, alpha=0.4, label="teacher")
    for name, model in models.items():
        axes.plot(GRID, model, label=name)
    axes.set(xlabel="class", ylabel="probability", ylim=(0, None))
    axes.legend()
    return figure


def kl() -> Any:
    directions = ("forward", "reverse")
    function = xentrs.kl_divergence_with_grad
    return bells({name: fitted(function, direction=name) for name in directions})


def js() -> Any:
    betas = (0.3, 0.7)
    return bells({f"$\\beta$ = {b}": fitted(xentrs.js_divergence_with_grad, beta=b) for b in betas})


def cap_and_temperature() -> Any:
    """Draw the loss of two classes over the margin."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained", sharey=True)
    x = np.linspace(-20, 20, 241)
    logits, target = np.column_stack([x, np.zeros_like(x)]), np.zeros(len(x), dtype=int)
    caps = {"no cap": {}, "softcap = 10": {"softcap": 10}, "softcap = 5": {"softcap": 5}}
    temperatures = {f"T = {t:g}": {"temperature": t} for t in (1, 2, 0.5)}
    for one, curves in zip(axes, (caps, temperatures), strict=True):
        for label, options in curves.items():
            losses = xentrs.cross_entropy(logits, target, reduction="none", **options)
            one.plot(x, losses, label=label)
        one.set(xlabel="logit of the true class, the other being 0", ylim=(0, 20))
        one.legend()
    axes[0].set(ylabel="loss", title="softcap")
    axes[1].set(title="temperature")
    return figure


PICTURES = {
    "cross_entropy": cap_and_temperature,
    "focal_loss": focal,
    "generalized_cross_entropy": generalized,
    "js_divergence": js,
    "kl_divergence": kl,
    "poly_loss": poly,
    "sigmoid_focal_loss": sigmoid_focal,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE)
    options = parser.parse_args()
    for name, draw in PICTURES.items():
        figure = draw()
        figure.savefig(options.folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
