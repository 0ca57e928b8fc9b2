"""Distillation from a stored top-k teacher, on scikit-learn's digits.

A teacher has seen many labelled images. It is not here any more: of each image of a transfer set
its three likeliest classes and their probabilities are in a file. The student, a linear model,
has labels of only 200 of these images. It learns from the file, whose pair (indices,
probabilities) is the target of the loss: no table of all classes is ever made, which matters with
100,000 of them.

Run it: ``python examples/gallery/distillation.py``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

import xentrs

Array = NDArray[np.float64]

CLASSES, TOP, LABELLED = 10, 3, 200


def store(probabilities: Array, file: Path) -> None:
    """Write the likeliest classes of each sample, as a teacher's owner does."""
    indices = np.argsort(-probabilities, axis=1)[:, :TOP]
    np.savez(
        file,
        indices=indices.astype(np.int16),
        probabilities=np.take_along_axis(probabilities, indices, axis=1).astype(np.float16),
    )


def read(file: Path) -> tuple[Array, Array]:
    """Return the target: classes, and their probabilities scaled to a sum of 1."""
    stored = np.load(file)
    kept = stored["probabilities"].astype(np.float64)
    return stored["indices"], kept / kept.sum(axis=1, keepdims=True)


def train(images: Array, target: Any, penalty: float = 1e-4) -> Array:
    """Return the weights of a linear model. The target is class indices or a pair."""

    def objective(parameters: Array) -> tuple[float, Array]:
        weights = parameters.reshape(-1, CLASSES)
        logits = images @ weights
        loss, grad = xentrs.cross_entropy_with_grad(logits, target, out=logits)
        grad_weights = images.T @ grad + penalty * weights
        return loss + penalty / 2 * float(np.vdot(weights, weights)), grad_weights.ravel()

    start = np.zeros(images.shape[1] * CLASSES)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return np.asarray(found.x.reshape(-1, CLASSES))


def experiment(seed: int, folder: Path) -> tuple[dict[str, tuple[float, float]], int]:
    """Return loss and accuracy of each model on images that none has seen, and the file's bytes."""
    pixels, target = load_digits(return_X_y=True)
    images = np.column_stack([pixels / 16, np.ones(len(pixels))])
    seen, test, seen_target, test_target = train_test_split(
        images, target, test_size=500, random_state=seed, stratify=target
    )

    teacher = make_pipeline(
        Nystroem(gamma=0.3, n_components=500, random_state=0),
        LogisticRegression(C=30, max_iter=300),
    ).fit(seen, seen_target)
    file = folder / f"teacher-{seed}.npz"
    store(teacher.predict_proba(seen), file)

    few = slice(LABELLED)
    logits = {
        "student, 200 labels": test @ train(seen[few], seen_target[few]),
        "student, teacher's top 3": test @ train(seen, read(file)),
        "student, all 1297 labels": test @ train(seen, seen_target),
        "teacher": teacher.predict_log_proba(test),
    }
    scores = {
        name: (
            xentrs.cross_entropy(values, test_target),
            float((values.argmax(axis=1) == test_target).mean()),
        )
        for name, values in logits.items()
    }
    return scores, file.stat().st_size


def draw(results: dict[str, Array], file: Path) -> None:
    import drawing

    figure, columns = drawing.figure(7, 2.2, columns=2)
    for column, (axes, title) in enumerate(
        zip(columns, ("held-out loss (nats)", "held-out errors (%)"), strict=True)
    ):
        values = np.array([scores[:, column] for scores in results.values()])
        values = 100 * (1 - values) if column else values
        axes.barh(
            list(results), values.mean(axis=1), color=["#8c959f", "#0072b2", "#8c959f", "#009e73"]
        )
        for row, draws in enumerate(values):
            axes.plot(draws, [row] * len(draws), "k.", markersize=4)
        axes.set_title(title)
        axes.invert_yaxis()
    columns[1].set_yticklabels([])
    drawing.save(figure, file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="splits of the images")
    parser.add_argument("--picture", type=Path, default=Path("build/gallery/distillation.svg"))
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as folder:
        draws = [experiment(seed, Path(folder)) for seed in range(options.repeats)]
    results = {name: np.array([scores[name] for scores, _ in draws]) for name in draws[0][0]}

    print("A linear student of a stored teacher: 1297 images of digits, 500 held out")
    print(f"The file with the top {TOP} of each image has {draws[0][1] / 1000:.0f} kB\n")
    print("model                      held-out loss   accuracy")
    for name, scores in results.items():
        loss, accuracy = scores.mean(axis=0)
        print(f"{name:24}   {loss:13.4f}   {accuracy:8.3f}")
    draw(results, options.picture)


if __name__ == "__main__":
    # The matrices are small: more threads of BLAS only wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        main()
