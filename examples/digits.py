"""Multinomial logistic regression on scikit-learn's digits, trained with xentrs and SciPy.

The data are 1797 real images of handwritten digits, 8 x 8 pixels, that scikit-learn ships. A
quarter is held out. The objective is scikit-learn's own: the mean cross-entropy plus an L2 penalty
on the weights (not on the intercepts), minimised here by SciPy's L-BFGS-B with the loss and the
gradient in the logits from one call of xentrs.

Run it with ``make demo``, or ``python examples/digits.py --help``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

import xentrs

Array = NDArray[np.float64]
Targets = NDArray[np.int64]
# Given logits (which it may overwrite) and classes: the mean loss and its gradient in the logits.
Loss = Callable[[Array, Targets], tuple[float, Array]]

CLASSES = 10
INVERSE_PENALTY = 1.0  # scikit-learn's C
AGREEMENT = 1e-6  # how closely the two minima must agree


def xentrs_loss(logits: Array, target: Targets) -> tuple[float, Array]:
    """Loss and gradient from one pass, the gradient in place of the logits."""
    return xentrs.cross_entropy_with_grad(logits, target, out=logits)


def numpy_loss(logits: Array, target: Targets) -> tuple[float, Array]:
    """Compute the same by hand: stable, vectorised and in place."""
    n = len(target)
    rows = np.arange(n)
    logits -= logits.max(axis=1, keepdims=True)
    picked = logits[rows, target]
    np.exp(logits, out=logits)
    total = logits.sum(axis=1)
    loss = float((np.log(total) - picked).mean())
    logits /= total[:, None]
    logits[rows, target] -= 1.0
    logits /= n
    return loss, logits


@dataclass
class Data:
    """Images, one a row and with a column of ones for the intercepts, and their classes."""

    train: Array
    train_target: Targets
    test: Array
    test_target: Targets


def load() -> Data:
    """Split the digits, the same way on every run."""
    pixels, target = load_digits(return_X_y=True)
    images = np.column_stack([pixels / 16.0, np.ones(len(pixels))])
    train, test, train_target, test_target = train_test_split(
        images, target, test_size=0.25, random_state=0, stratify=target
    )
    return Data(train, train_target, test, test_target)


@dataclass
class Objective:
    """Mean cross-entropy plus penalty, and the gradient in the weights, for `minimize(jac=True)`.

    The weights are a matrix of shape (pixels + 1, classes), its last row the intercepts.
    """

    loss: Loss
    images: Array
    target: Targets
    calls: int = 0

    def __call__(self, parameters: Array) -> tuple[float, Array]:
        self.calls += 1
        weights = parameters.reshape(-1, CLASSES)
        loss, grad = self.loss(self.images @ weights, self.target)
        grad_weights = self.images.T @ grad
        strength = 1.0 / (INVERSE_PENALTY * len(self.target))
        grad_weights[:-1] += strength * weights[:-1]
        return loss + 0.5 * strength * float(np.vdot(weights[:-1], weights[:-1])), (
            grad_weights.ravel()
        )


@dataclass
class Training:
    """What a training leaves behind."""

    weights: Array
    minimum: float
    iterations: int
    calls: int
    seconds: float
    path: list[Array] = field(repr=False)  # the parameters after each iteration, if asked for


def train(loss: Loss, data: Data, progress: bool = False) -> Training:
    """Minimise the objective from zero to (nearly) the last digit."""
    objective = Objective(loss, data.train, data.train_target)
    path: list[Array] = []

    def follow(intermediate_result: OptimizeResult) -> None:
        path.append(intermediate_result.x.copy())
        if len(path) in (1, 2, 5, 10, 20) or len(path) % 50 == 0:
            print(f"  iteration {len(path):4d}   objective {intermediate_result.fun:.9f}")

    start = time.perf_counter()
    result = minimize(
        objective,
        np.zeros(data.train.shape[1] * CLASSES),
        jac=True,
        method="L-BFGS-B",
        callback=follow if progress else None,
        options={"maxiter": 5000, "maxfun": 10000, "ftol": 1e-15, "gtol": 1e-8, "maxcor": 20},
    )
    seconds = time.perf_counter() - start
    return Training(
        result.x.reshape(-1, CLASSES), result.fun, result.nit, objective.calls, seconds, path
    )


def scikit_learn_weights(data: Data) -> Array:
    """Return the weights that scikit-learn's LogisticRegression finds for the same objective."""
    model = LogisticRegression(C=INVERSE_PENALTY, tol=1e-8, max_iter=10_000)
    model.fit(data.train[:, :-1], data.train_target)
    return np.vstack([model.coef_.T, model.intercept_])


def objective_value(weights: Array, data: Data) -> float:
    """Evaluate the objective with SciPy alone, so that neither side marks its own work."""
    log_p = log_softmax(data.train @ weights, axis=1)
    loss = -log_p[np.arange(len(log_p)), data.train_target].mean()
    penalty = 0.5 / (INVERSE_PENALTY * len(log_p)) * np.square(weights[:-1]).sum()
    return float(loss + penalty)


def alternate(losses: dict[str, Loss], data: Data, repeats: int) -> Iterator[tuple[str, Training]]:
    """Train with each loss in turn, `repeats` times, after a warm-up that is not returned."""
    for repeat in range(repeats + 1):
        for name, loss in losses.items():
            training = train(loss, data)
            if repeat > 0:
                yield name, training


def draw(path: list[Array], data: Data, file: Path) -> None:
    """Draw the loss of the training and of the held-out images against the iteration."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = {
        "training images": (data.train, data.train_target),
        "held-out images": (data.test, data.test_target),
    }
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label, (images, target) in curves.items():
        losses = [xentrs.cross_entropy(images @ w.reshape(-1, CLASSES), target) for w in path]
        axes.plot(range(1, len(path) + 1), losses, label=label)
    axes.axhline(math.log(CLASSES), color="grey", linestyle=":", label="guessing")
    axes.set(xscale="log", xlabel="iteration of L-BFGS-B", ylabel="cross-entropy (nats)")
    axes.set_title("Logistic regression on the digits, loss and gradient by xentrs")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="timed trainings a side")
    parser.add_argument("--quick", action="store_true", help="one timed training a side")
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="for the picture")
    options = parser.parse_args(arguments)
    # The matrices are small: more BLAS threads only wait for each other, on either side.
    with threadpool_limits(limits=1, user_api="blas"):
        run(1 if options.quick else options.repeats, options.output)


def run(repeats: int, output: Path) -> None:
    data = load()
    print(
        f"xentrs {xentrs.__version__} on scikit-learn's digits: {len(data.train)} images to train"
        f" on, {len(data.test)} held out\n"
    )

    print("Training with scipy.optimize.minimize(jac=True) and cross_entropy_with_grad")
    training = train(xentrs_loss, data, progress=True)
    print(f"  iteration {training.iterations:4d}   objective {training.minimum:.9f}   (done)\n")

    logits = data.test @ training.weights
    nats = xentrs.cross_entropy(logits, data.test_target)
    bits = xentrs.cross_entropy(logits, data.test_target, base=2)
    accuracy = float((logits.argmax(axis=1) == data.test_target).mean())
    print("Held-out images")
    print(f"  loss         {nats:.6f} nats   (guessing: {math.log(CLASSES):.6f})")
    print(f"               {bits:.6f} bits   (guessing: {math.log2(CLASSES):.6f})")
    print(f"  perplexity   {math.exp(nats):.6f}        (guessing: {CLASSES})")
    print(f"  accuracy     {accuracy:.4f}\n")

    ours = objective_value(training.weights, data)
    theirs = objective_value(scikit_learn_weights(data), data)
    print("The minimum, both evaluated with SciPy alone")
    print(f"  xentrs and SciPy                   {ours:.12f}")
    print(f"  scikit-learn's LogisticRegression  {theirs:.12f}")
    print(f"  difference                         {abs(ours - theirs):.1e}\n")
    assert abs(ours - theirs) <= AGREEMENT, "the two minima differ"
    assert abs(ours - training.minimum) <= 1e-12, "xentrs and SciPy differ on the objective"

    print(f"Time of the same training, alternating, median of {repeats} (BLAS on one thread)")
    losses: dict[str, Loss] = {"xentrs": xentrs_loss, "NumPy by hand": numpy_loss}
    trainings: dict[str, list[Training]] = {name: [] for name in losses}
    for name, timed in alternate(losses, data, repeats):
        assert abs(timed.minimum - ours) <= AGREEMENT, f"{name} ends elsewhere"
        trainings[name].append(timed)
    medians = {name: statistics.median(r.seconds for r in side) for name, side in trainings.items()}
    for name, side in trainings.items():
        per_call = 1e6 * statistics.median(r.seconds / r.calls for r in side)
        print(
            f"  {name:14s} {1e3 * medians[name]:8.1f} ms   {side[0].iterations} iterations,"
            f" {side[0].calls} evaluations of {per_call:.0f} us with the optimiser's share"
        )
    print(f"  {medians['NumPy by hand'] / medians['xentrs']:.2f} times as fast with xentrs\n")

    picture = output / "digits.png"
    draw(training.path, data, picture)
    print(f"The loss curve is in {picture}")


if __name__ == "__main__":
    main()
