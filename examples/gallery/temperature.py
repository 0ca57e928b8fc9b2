"""Fit a temperature: a classifier of scikit-learn's digits that is far too sure of itself.

A linear model without a penalty separates its few training images, so its logits grow and grow.
On other images it is right less often than it says. Dividing all logits by one number, the
temperature, mends that. It is fitted on images that the model was not trained on, and judged on
others again. It changes no prediction: the order of the logits stays.

Run it: ``python examples/gallery/temperature.py``.
"""

from __future__ import annotations

import argparse
import math
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

CLASSES, BINS = 10, 10


def train(images: Array, target: Targets) -> Array:
    """Return the weights of a linear model without a penalty, as far as the optimiser goes."""

    def objective(parameters: Array) -> tuple[float, Array]:
        logits = images @ parameters.reshape(-1, CLASSES)
        loss, grad = xentrs.cross_entropy_with_grad(logits, target, out=logits)
        return loss, (images.T @ grad).ravel()

    start = np.zeros(images.shape[1] * CLASSES)
    found = minimize(objective, start, jac=True, method="L-BFGS-B")
    return np.asarray(found.x.reshape(-1, CLASSES))


def fit_temperature(logits: Array, target: Targets) -> float:
    """Return the temperature of the least loss.

    The loss depends on logits / T alone, so its derivative in log T is minus the sum of the logits
    times their gradient.
    """

    def objective(log_temperature: Array) -> tuple[float, Array]:
        loss, grad = xentrs.cross_entropy_with_grad(
            logits, target, temperature=math.exp(log_temperature[0])
        )
        return loss, np.array([-np.vdot(logits, grad)])

    found = minimize(objective, np.zeros(1), jac=True, method="BFGS")
    return math.exp(found.x[0])


def judge(logits: Array, target: Targets, temperature: float) -> Any:
    """Return loss, calibration error and reliability at a temperature."""
    meter = xentrs.CrossEntropyMeter(bins=BINS)
    meter.update(logits / temperature, target)
    return meter.compute()


def draw(results: dict[str, Any], file: Path) -> None:
    import drawing

    figure, axes = drawing.figure(4.2, 3.6)
    axes.plot([0, 1], [0, 1], ":", color=drawing.GREY, label="perfectly calibrated")
    for name, result in results.items():
        bins = result.reliability
        used = bins.count > 0
        (line,) = axes.plot(bins.confidence[used], bins.accuracy[used], "-", label=name)
        size = 10 + 300 * bins.count / result.count
        axes.scatter(bins.confidence, bins.accuracy, size, color=line.get_color(), alpha=0.6)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.05), ylim=(0, 1.05))
    axes.legend()
    drawing.save(figure, file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=300, help="images to train on")
    parser.add_argument("--picture", type=Path, default=Path("build/gallery/temperature.svg"))
    options = parser.parse_args(arguments)

    pixels, target = load_digits(return_X_y=True)
    images = np.column_stack([pixels / 16, np.ones(len(pixels))])
    train_images, others, train_target, other_target = train_test_split(
        images, target, train_size=options.train, random_state=0, stratify=target
    )
    logits = others @ train(train_images, train_target)
    fit, test, fit_target, test_target = train_test_split(
        logits, other_target, train_size=400, random_state=0, stratify=other_target
    )
    temperature = fit_temperature(fit, fit_target)

    results = {
        "as trained": judge(test, test_target, 1.0),
        "calibrated": judge(test, test_target, temperature),
    }
    accuracy = results["as trained"].accuracy
    print(f"{len(train_target)} images to train on, {len(fit)} to fit the temperature on,")
    print(f"{len(test)} to judge both by: accuracy {accuracy:.3f} with any temperature\n")
    print("               temperature   loss (nats)   calibration error")
    for (name, result), value in zip(results.items(), (1.0, temperature), strict=True):
        print(f"{name:12}   {value:11.3f}   {result.loss:11.4f}   {result.calibration_error:17.4f}")
    draw(results, options.picture)


if __name__ == "__main__":
    # The matrices are small: more threads of BLAS only wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        main()
