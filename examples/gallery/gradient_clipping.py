"""Clip gradients by their norm: a recurrent network reads scikit-learn's digits row by row.

The gradient of a recurrent network passes through the same matrix once a row, so it is now short
and now long. At a high learning rate a few long steps ruin the weights. Clipping by norm keeps
the direction and bounds the length: all gradients are divided by norm / limit where the norm is
above the limit.

The loop is plain NumPy. `xentrs.cross_entropy_with_grad` starts the backward pass.

Run it: ``python examples/gallery/gradient_clipping.py``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

import xentrs

Array = NDArray[np.float64]

CLASSES, HIDDEN, BATCH = 10, 48, 32


def clip_by_norm(gradients: Iterable[Array], limit: float) -> float:
    """Shorten gradients in place so that their norm together is at most the limit; return it."""
    gradients = list(gradients)
    norm = math.sqrt(sum(float(np.vdot(one, one)) for one in gradients))
    if norm > limit:
        for one in gradients:
            one *= limit / norm
    return norm


def start(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "input": rng.normal(size=(8, HIDDEN)) / math.sqrt(8),
        "hidden": 1.5 * rng.normal(size=(HIDDEN, HIDDEN)) / math.sqrt(HIDDEN),
        "output": rng.normal(size=(HIDDEN, CLASSES)) / math.sqrt(HIDDEN),
        "bias": np.zeros(CLASSES),
    }


def forward(weights: dict[str, Array], images: Array) -> tuple[Array, list[Array]]:
    """Return the logits, and the states before and after each row."""
    states = [np.zeros((len(images), HIDDEN))]
    for row in range(8):
        states.append(np.tanh(images[:, row] @ weights["input"] + states[-1] @ weights["hidden"]))
    return states[-1] @ weights["output"] + weights["bias"], states


def backward(
    weights: dict[str, Array], images: Array, states: list[Array], grad: Array
) -> dict[str, Array]:
    """Return the gradients in the weights, from that in the logits."""
    gradients = {name: np.zeros_like(value) for name, value in weights.items()}
    gradients["output"] += states[-1].T @ grad
    gradients["bias"] += grad.sum(axis=0)
    upstream = grad @ weights["output"].T
    for row in reversed(range(8)):
        upstream = upstream * (1 - np.square(states[row + 1]))
        gradients["input"] += images[:, row].T @ upstream
        gradients["hidden"] += states[row].T @ upstream
        upstream = upstream @ weights["hidden"].T
    return gradients


def train(rate: float, limit: float, epochs: int, seed: int) -> tuple[Array, Array, float]:
    """Return the loss and the norm of the gradient of each step, and the held-out accuracy."""
    pixels, target = load_digits(return_X_y=True)
    images, test, target, test_target = train_test_split(
        pixels.reshape(-1, 8, 8) / 16, target, test_size=0.25, random_state=0, stratify=target
    )
    weights, rng = start(seed), np.random.default_rng(seed)
    losses, norms = [], []
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for batch in np.array_split(order, len(images) // BATCH):
            logits, states = forward(weights, images[batch])
            loss, grad = xentrs.cross_entropy_with_grad(logits, target[batch], out=logits)
            gradients = backward(weights, images[batch], states, grad)
            norms.append(clip_by_norm(gradients.values(), limit))
            losses.append(loss)
            for name, value in weights.items():
                value -= rate * gradients[name]
    logits, _ = forward(weights, test)
    accuracy = float((logits.argmax(axis=1) == test_target).mean())
    return np.array(losses), np.array(norms), accuracy


def draw(runs: dict[str, Array], file: Path) -> None:
    import drawing

    figure, axes = drawing.figure(6.5, 3)
    for name, losses in runs.items():
        smooth = np.convolve(losses, np.full(20, 1 / 20), mode="valid")
        axes.semilogy(smooth, label=name)
    axes.axhline(math.log(CLASSES), color=drawing.GREY, linestyle=":", label="guessing")
    axes.set(xlabel="step", ylabel="loss (nats, mean of 20 steps)")
    axes.legend()
    drawing.save(figure, file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=0.7, help="the learning rate")
    parser.add_argument("--limit", type=float, default=0.5, help="of the gradient's norm")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--picture", type=Path, default=Path("build/gallery/gradient_clipping.svg"))
    options = parser.parse_args(arguments)

    print("gradients   median norm   largest norm   last loss   accuracy")
    runs = {}
    for name, limit in (("as they are", math.inf), ("clipped", options.limit)):
        losses, norms, accuracy = train(options.rate, limit, options.epochs, seed=0)
        print(
            f"{name:11}   {np.median(norms):11.2f}   {norms.max():12.1f}"
            f"   {losses[-40:].mean():9.4f}   {accuracy:8.3f}"
        )
        runs[f"gradients {name}"] = losses
    draw(runs, options.picture)


if __name__ == "__main__":
    # The matrices are small: more threads of BLAS only wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        main()
