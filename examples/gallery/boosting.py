"""Boosted trees with label smoothing: XGBoost and LightGBM on breast cancer data.

569 tumours, 30 measurements each, are benign or malignant. Trees learn them by heart: with each
round the margins grow, and the few that are wrong on held-out tumours cost more and more. Label
smoothing bounds the margins. Neither library has it; an objective of xentrs does.

The loss is that of tumours held out by five-fold cross-validation, by the true labels without
smoothing.

Run it: ``python examples/gallery/boosting.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import lightgbm
import numpy as np
import xgboost
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold

import xentrs.lightgbm
import xentrs.xgboost

Array = NDArray[np.float64]

SMOOTHINGS = (0.0, 0.02, 0.05)
ROUNDS = (5, 10, 20, 40, 70, 100, 150, 200)


def by_xgboost(train: Array, labels: Array, test: Array, smoothing: float) -> Iterator[Array]:
    """Yield the margins of the test samples after each number of rounds."""
    objective = xentrs.xgboost.binary(label_smoothing=smoothing)
    data = xgboost.DMatrix(train, labels)
    params = objective.params(labels) | {"nthread": 1}  # the data are small
    booster = xgboost.train(params, data, ROUNDS[-1], obj=objective)
    for rounds in ROUNDS:
        yield booster.predict(
            xgboost.DMatrix(test), output_margin=True, iteration_range=(0, rounds)
        )


def by_lightgbm(train: Array, labels: Array, test: Array, smoothing: float) -> Iterator[Array]:
    """Do the same with LightGBM, whose model does not contain the initial score."""
    objective = xentrs.lightgbm.binary(label_smoothing=smoothing)
    data = lightgbm.Dataset(train, labels, **objective.params(labels))
    settings = {"objective": objective, "num_threads": 1, "verbose": -1}
    booster = lightgbm.train(settings, data, ROUNDS[-1])
    initial = objective.params(labels, rows=len(test))["init_score"]
    for rounds in ROUNDS:
        yield booster.predict(test, raw_score=True, num_iteration=rounds) + initial


LIBRARIES = {"XGBoost": by_xgboost, "LightGBM": by_lightgbm}


def held_out(library: str, smoothing: float, folds: int) -> tuple[Array, float]:
    """Return the loss after each number of rounds, and the accuracy after the last."""
    samples, labels = load_breast_cancer(return_X_y=True)
    margins = np.empty((len(ROUNDS), len(labels)))
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    for train, test in splits.split(samples, labels):
        of_fold = LIBRARIES[library](samples[train], labels[train], samples[test], smoothing)
        for row, values in enumerate(of_fold):
            margins[row, test] = values
    losses = [xentrs.binary_cross_entropy_with_logits(row, labels) for row in margins]
    return np.array(losses), float(((margins[-1] > 0) == labels).mean())


def draw(results: dict[str, list[Array]], file: Path) -> None:
    import drawing

    figure, columns = drawing.figure(7, 3, columns=len(results))
    for axes, (library, curves) in zip(columns, results.items(), strict=True):
        for smoothing, losses in zip(SMOOTHINGS, curves, strict=True):
            axes.plot(ROUNDS, losses, "o-", markersize=3, label=f"label smoothing {smoothing:g}")
        axes.set(title=library, xlabel="rounds", ylim=(0, 0.25))
    columns[0].set_ylabel("held-out loss (nats)")
    columns[0].legend()
    drawing.save(figure, file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--picture", type=Path, default=Path("build/gallery/boosting.svg"))
    options = parser.parse_args(arguments)

    print("Boosted trees on 569 tumours: loss and accuracy on those held out, up to 200 rounds\n")
    print("library    smoothing   least loss   last loss   accuracy")
    results: dict[str, list[Array]] = {}
    for library in LIBRARIES:
        for smoothing in SMOOTHINGS:
            losses, accuracy = held_out(library, smoothing, options.folds)
            print(
                f"{library:8}   {smoothing:9.2f}   {losses.min():10.4f}"
                f"   {losses[-1]:9.4f}   {accuracy:8.3f}"
            )
            results.setdefault(library, []).append(losses)
    draw(results, options.picture)


if __name__ == "__main__":
    main()
