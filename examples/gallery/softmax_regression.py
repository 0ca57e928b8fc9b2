"""A scikit-learn estimator: softmax regression with an L1 or L2 penalty, by SciPy's L-BFGS-B.

The objective is that of scikit-learn's LogisticRegression: C times the sum of the losses, plus
half of the squared weights (L2) or their absolute values (L1). The intercepts have no penalty.
The loss and its gradient come from one call of xentrs, in place of the logits.

Absolute values have no derivative at 0. So L1 splits each weight into a difference of two parts
that are not negative, whose sum is the absolute value at the minimum. L-BFGS-B knows such bounds,
and weights of exactly 0 are what it ends with.

Run it: ``python examples/gallery/softmax_regression.py``.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

import xentrs

Array = NDArray[np.float64]


class SoftmaxRegression(ClassifierMixin, BaseEstimator):
    """Linear classifier of minimal cross-entropy, with a penalty on its weights.

    Parameters
    ----------
    penalty : {"l2", "l1", None}
        What keeps the weights small. "l1" makes many of them exactly 0.
    C : float
        The inverse of the penalty's strength, as in scikit-learn.
    label_smoothing : float
        In [0, 1], as in PyTorch.
    fit_intercept : bool
        Whether each class has an intercept.
    tol : float
        The largest entry of the gradient, of the mean loss and its share of the penalty, at which
        training stops.
    max_iter : int
        The largest number of iterations.

    Attributes
    ----------
    classes_, coef_, intercept_, n_features_in_, n_iter_
        As those of LogisticRegression. `coef_` has a row for each class, two for two classes.
    objective_ : float
        The minimum that was found.
    """

    def __init__(
        self,
        penalty: str | None = "l2",
        *,
        C: float = 1.0,
        label_smoothing: float = 0.0,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 2000,
    ) -> None:
        self.penalty = penalty
        self.C = C
        self.label_smoothing = label_smoothing
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SoftmaxRegression:
        """Find the weights."""
        if self.penalty not in ("l1", "l2", None):
            raise ValueError(f"penalty must be 'l1', 'l2' or None, not {self.penalty!r}")
        if not self.C > 0:
            raise ValueError(f"C must be above 0, not {self.C}")
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, target = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must have at least two classes, not one class: {self.classes_}")
        sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)

        features, classes = X.shape[1], len(self.classes_)
        intercepts = classes if self.fit_intercept else 0
        # Every term is divided by C times the weight of all samples, so that `tol` means the same
        # for few samples and for many.
        strength = 1.0 / (self.C * sample_weight.sum())

        def loss_of(weights: Array, intercept: Array) -> tuple[float, Array, Array]:
            logits = X @ weights
            if intercepts:
                logits += intercept
            loss, grad = xentrs.cross_entropy_with_grad(
                logits,
                target,
                sample_weight=sample_weight,
                label_smoothing=self.label_smoothing,
                out=logits,
            )
            return loss, X.T @ grad, grad.sum(axis=0)[:intercepts]

        def smooth(parameters: Array) -> tuple[float, Array]:
            weights = parameters[intercepts:].reshape(features, classes)
            loss, grad, grad_intercept = loss_of(weights, parameters[:intercepts])
            if self.penalty == "l2":
                loss += 0.5 * strength * float(np.vdot(weights, weights))
                grad += strength * weights
            return loss, np.concatenate([grad_intercept, grad.ravel()])

        def split(parameters: Array) -> tuple[float, Array]:
            positive, negative = parameters[intercepts:].reshape(2, features, classes)
            loss, grad, grad_intercept = loss_of(positive - negative, parameters[:intercepts])
            loss += strength * float(positive.sum() + negative.sum())
            parts = [grad_intercept, (strength + grad).ravel(), (strength - grad).ravel()]
            return loss, np.concatenate(parts)

        parts = 2 if self.penalty == "l1" else 1
        bounds = [(None, None)] * intercepts + [(0, None)] * (2 * features * classes)
        found = minimize(
            split if self.penalty == "l1" else smooth,
            np.zeros(intercepts + parts * features * classes),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds if self.penalty == "l1" else None,
            options={
                "maxiter": self.max_iter,
                "maxfun": 2 * self.max_iter,
                "maxcor": 20,
                "gtol": self.tol,
                "ftol": 0,
            },
        )
        if found.status == 1:
            warnings.warn(
                f"{self.max_iter} iterations were too few: raise max_iter or tol, or scale the "
                "features",
                ConvergenceWarning,
                stacklevel=2,
            )
        weights = found.x[intercepts:].reshape(parts, features, classes)
        weights = weights[0] - weights[1] if parts == 2 else weights[0]
        self.coef_ = np.ascontiguousarray(weights.T)
        self.intercept_ = found.x[:intercepts] if intercepts else np.zeros(classes)
        self.objective_ = float(found.fun) / strength
        self.n_iter_ = int(found.nit)
        return self

    def _logits(self, X: ArrayLike) -> Array:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(X @ self.coef_.T + self.intercept_)

    def decision_function(self, X: ArrayLike) -> Array:
        """Return the logits, and for two classes the margin of the second one."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: ArrayLike) -> Array:
        return np.asarray(xentrs.softmax(self._logits(X)))

    def predict_log_proba(self, X: ArrayLike) -> Array:
        return np.asarray(xentrs.log_softmax(self._logits(X)))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        largest = self._logits(X).argmax(axis=1)
        return np.asarray(self.classes_[largest])


def draw(models: dict[str, SoftmaxRegression], file: Path) -> None:
    """Draw the weights of each class as an image."""
    from matplotlib import pyplot as plt

    import drawing

    picture, rows = plt.subplots(len(models), 10, figsize=(7, 1.8), layout="constrained")
    for axes, (name, model) in zip(rows, models.items(), strict=True):
        limit = np.abs(model.coef_).max()
        for digit, (one, weights) in enumerate(zip(axes, model.coef_, strict=True)):
            one.imshow(weights.reshape(8, 8), cmap="RdBu", vmin=-limit, vmax=limit)
            one.set(xticks=[], yticks=[])
            one.grid(visible=False)
            if model is next(iter(models.values())):
                one.set_title(digit, loc="center", fontsize=9)
        axes[0].set_ylabel(name)
    drawing.save(picture, file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strength", type=float, default=0.3, help="the parameter C")
    parser.add_argument(
        "--picture", type=Path, default=Path("build/gallery/softmax_regression.svg")
    )
    options = parser.parse_args(arguments)

    pixels, target = load_digits(return_X_y=True)
    train, test, train_target, test_target = train_test_split(
        pixels / 16, target, test_size=0.25, random_state=0, stratify=target
    )
    print("penalty   objective   weights of 0   held-out loss   accuracy")
    models = {}
    for penalty in ("l2", "l1"):
        model = SoftmaxRegression(penalty, C=options.strength).fit(train, train_target)
        zeros = int((model.coef_ == 0).sum())
        loss = xentrs.nll_loss(model.predict_log_proba(test), test_target)
        print(
            f"{penalty:7}   {model.objective_:9.4f}   {zeros:5d} of"
            f" {model.coef_.size}   {loss:13.4f}   {model.score(test, test_target):8.3f}"
        )
        models[penalty.upper()] = model
    draw(models, options.picture)


if __name__ == "__main__":
    # The matrices are small: more threads of BLAS only wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        main()
