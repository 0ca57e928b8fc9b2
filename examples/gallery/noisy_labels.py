"""Wrong labels: generalised cross-entropy against plain cross-entropy on scikit-learn's digits.

A share of the training labels is replaced by another class, drawn at random. The images held out
keep their labels. The same linear model is trained with both losses, at each share.

Generalised cross-entropy, (1 - p^q) / q, is bounded: a label that the model holds impossible
costs at most 1 / q and its gradient vanishes. It is not convex. So training starts from the
weights that a few steps of plain cross-entropy find.

Run it: ``python examples/gallery/noisy_labels.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

import xentrs

Array = NDArray[np.float64]
Targets = NDArray[np.int64]

CLASSES, Q = 10, 0.7
NAMES = ("cross-entropy, 10 steps", "cross-entropy, to its end", f"generalised, q = {Q}")
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def corrupt(target: Targets, share: float, rng: np.random.Generator) -> Targets:
    """Replace this share of the labels, chosen at random, by another class."""
    wrong = rng.permutation(len(target))[: round(share * len(target))]
    noisy = target.copy()
    noisy[wrong] = (noisy[wrong] + rng.integers(1, CLASSES, len(wrong))) % CLASSES
    return noisy


def train(
    loss: Callable[..., tuple[float, Array]], images: Array, target: Targets, steps: int, start: Any
) -> Array:
    """Return the weights after some steps of L-BFGS."""

    def objective(weights: Array) -> tuple[float, Array]:
        logits = images @ weights.reshape(-1, CLASSES)
        value, grad = loss(logits, target, out=logits)
        return value, (images.T @ grad).ravel()

    found = minimize(
        objective, np.ravel(start), jac=True, method="L-BFGS-B", options={"maxiter": steps}
    )
    return np.asarray(found.x.reshape(-1, CLASSES))


def generalized(logits: Array, target: Targets, **options: Any) -> tuple[float, Array]:
    return xentrs.generalized_cross_entropy_with_grad(logits, target, q=Q, **options)


def compare(share: float, seed: int) -> list[float]:
    """Return the accuracy on clean images: of the start, of plain cross-entropy, and of ours."""
    pixels, target = load_digits(return_X_y=True)
    images = np.column_stack([pixels / 16, np.ones(len(pixels))])
    train_images, test_images, train_target, test_target = train_test_split(
        images, target, test_size=0.4, random_state=seed, stratify=target
    )
    noisy = corrupt(train_target, share, np.random.default_rng(seed))

    plain = xentrs.cross_entropy_with_grad
    start = train(plain, train_images, noisy, 10, np.zeros((images.shape[1], CLASSES)))
    weights = [start]
    weights += [train(loss, train_images, noisy, 200, start) for loss in (plain, generalized)]
    return [float(((test_images @ w).argmax(axis=1) == test_target).mean()) for w in weights]


def draw(results: Array, file: Path) -> None:
    import drawing

    figure, axes = drawing.figure(6, 3.2)
    for column, name in enumerate(NAMES):
        axes.plot(100 * np.array(SHARES), 100 * results[:, column], "o-", label=name)
    axes.set(xlabel="wrong labels in training (%)", ylabel="accuracy on clean images (%)")
    axes.legend()
    drawing.save(figure, file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="splits and draws of wrong labels")
    parser.add_argument("--picture", type=Path, default=Path("build/gallery/noisy_labels.svg"))
    options = parser.parse_args(arguments)

    print(f"Accuracy on clean held-out images, the mean of {options.repeats} draws\n")
    print(
        "               10 steps of     cross-entropy   generalised\n"
        "wrong labels   cross-entropy   to its end      cross-entropy"
    )
    results = np.empty((len(SHARES), len(NAMES)))
    for row, share in enumerate(SHARES):
        results[row] = np.mean([compare(share, seed) for seed in range(options.repeats)], axis=0)
        start, plain, robust = results[row]
        print(f"{share:12.0%}   {start:13.3f}   {plain:13.3f}   {robust:13.3f}")
    draw(results, options.picture)


if __name__ == "__main__":
    # The matrices are small: more threads of BLAS only wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        main()
