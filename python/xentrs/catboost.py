"""Objectives and metrics for CatBoost.

An objective is passed as `loss_function`, with a metric beside it::

    objective = xentrs.catboost.binary()
    model = catboost.CatBoostClassifier(
        loss_function=objective, eval_metric="Logloss", **objective.params(y)
    )

CatBoost maximises: the objectives return the derivatives of minus the loss. This module does not
import CatBoost.

**Cost.** For two classes CatBoost passes blocks of samples. For more it calls Python once a sample
and takes a whole K x K Hessian as lists: some 20 times the time of the built-in ``MultiClass`` for
ten classes. Take it for options that CatBoost does not have, not for speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import xentrs
from xentrs import _objectives
from xentrs._objectives import Round, floored

__all__ = ["binary", "binary_metric", "softmax", "softmax_metric"]


class softmax(_objectives.Softmax):
    """Cross-entropy of several classes as an objective of CatBoost.

    Without options the leaves are those of ``MultiClass`` to about 1e-15, where both have the same
    settings: CatBoost's defaults for the bootstrap and for the number of steps a leaf differ.

    Parameters
    ----------
    weight : sequence of floats, optional
        Weight of each class.
    label_smoothing : float, default 0.0
        Share of the target that is spread evenly over the classes, in [0, 1].
    gamma : float, default 0.0
        Exponent of focal loss. Above 0 the loss is `xentrs.focal_loss`, and the Hessian is its
        diagonal, with numbers below 1e-16 replaced by that number. Not together with label
        smoothing or a teacher.
    teacher : array of shape (rows, classes), optional
        Soft labels by row number. The label of a sample is then the number of its row, which
        CatBoost's training refuses if it is above the number of classes.

    Examples
    --------
    >>> import xentrs.catboost
    >>> xentrs.catboost.softmax().calc_ders_multi([0.0, 0.0], 1, None)
    ([-0.5, 0.5], [[-0.25, 0.25], [0.25, -0.25]])
    """

    def calc_ders_multi(
        self, approxes: Sequence[float], target: float, weight: float | None
    ) -> tuple[list[float], list[list[float]]]:
        """Return the gradient and the Hessian of minus the loss, of one sample."""
        scores = np.array([approxes], dtype=np.float64)
        factor = 1.0 if weight is None else float(weight)
        grad, diagonal = self.derivatives(scores, np.array([target]), np.array([factor]))
        if self.gamma:
            hess = np.diag(floored(diagonal[0]))
        else:
            # The Hessian of sum_c t_c (-log p_c) is (sum_c t_c) (diag(p) - p p^T). Its diagonal is
            # exact; off the diagonal nothing cancels.
            p = xentrs.softmax(scores)[0]
            total = self._total(np.array([target]), p.size) * factor
            hess = -total * np.outer(p, p)
            np.fill_diagonal(hess, diagonal[0])
        return (-grad[0]).tolist(), (-hess).tolist()

    def calc_ders_range(self, *_: Any) -> Any:
        """Refuse scores of one number a sample, which CatBoost has of two classes."""
        raise ValueError(
            "CatBoost takes the model for one of two classes, with one score a sample, but "
            f"{self!r} needs a score for each class: for more than two classes pass "
            "**objective.params(y) to the model and eval_metric='MultiClass' or "
            "xentrs.catboost.softmax_metric; for two take xentrs.catboost.binary"
        )

    def _total(self, target: Any, classes: int) -> float:
        """Return the sum of the coefficients of a sample's logarithms."""
        weight = np.ones(classes) if self.weight is None else np.array(self.weight)
        one = self._target(target, 1, classes)
        share = np.eye(classes)[int(one[0])] if one.ndim == 1 else one[0]
        share = (1 - self.label_smoothing) * share + self.label_smoothing / classes
        return float(weight @ share)

    def params(self, y: ArrayLike, sample_weight: ArrayLike | None = None) -> dict[str, Any]:
        """Return the parameters that a training starts with.

        Parameters
        ----------
        y : array_like
            The labels of the training.
        sample_weight : array_like, optional
            The weights of its samples.

        Returns
        -------
        dict
            ``classes_count``, which CatBoost cannot know with a custom objective, and
            ``class_names``, without which its `predict` and `score` fail beside ``classes_count``.
            With ``teacher``, ``classes_count`` alone.
        """
        return _classes(len(self.shares(y, sample_weight)), named=self.teacher is None)


class binary(_objectives.Binary):
    """Binary cross-entropy, or a focal loss, as an objective of CatBoost.

    Without options the scores are those of ``Logloss`` to about 1e-15, where both have the same
    settings.

    Parameters
    ----------
    weight : pair of floats, optional
        Weights of class 0 and class 1.
    label_smoothing : float, default 0.0
        Share of the target that is spread evenly over both classes, in [0, 1].
    gamma : float, default 0.0
        Exponent of focal loss: above 0 the loss is `xentrs.focal_loss` of two classes. A Hessian
        below 1e-16 is replaced by that number.
    teacher : array of shape (rows,), optional
        Soft labels by row number. The label of a sample is then the number of its row.

    Examples
    --------
    >>> import xentrs.catboost
    >>> xentrs.catboost.binary().calc_ders_range([0.0, 0.0], [1.0, 0.0], None)
    [(0.5, -0.25), (-0.5, -0.25)]
    """

    def calc_ders_range(
        self, approxes: Sequence[float], targets: Sequence[float], weights: Sequence[float] | None
    ) -> list[tuple[float, float]]:
        """Return the first and the second derivative of minus the loss, of some samples."""
        weight = None if weights is None else np.array(weights, dtype=np.float64)
        scores = np.array(approxes, dtype=np.float64)
        grad, hess = self.derivatives(scores, np.array(targets), weight)
        if self.gamma:
            floored(hess)
        return list(zip((-grad).tolist(), (-hess).tolist(), strict=True))

    def calc_ders_multi(self, *_: Any) -> Any:
        """Refuse scores of several numbers a sample, which CatBoost has of several classes."""
        raise ValueError(
            f"CatBoost takes the model for one of several classes, with a score for each, but "
            f"{self!r} needs one score a sample: for two classes pass **objective.params(y) to the "
            "model and eval_metric='Logloss' or xentrs.catboost.binary_metric; for more take "
            "xentrs.catboost.softmax"
        )

    def params(self, y: ArrayLike, sample_weight: ArrayLike | None = None) -> dict[str, Any]:
        """Return the parameters that a training starts with.

        Parameters
        ----------
        y : array_like
            The labels of the training.
        sample_weight : array_like, optional
            The weights of its samples. They are checked, and change nothing in the result.

        Returns
        -------
        dict
            ``classes_count``, which is 2, and ``class_names``. Empty if `y` has other labels than
            0 and 1: CatBoost refuses such labels beside ``classes_count``.
        """
        labels, _ = self.training(y, sample_weight)
        hard = self.teacher is None and bool(((labels == 0) | (labels == 1)).all())
        return _classes(2, named=True) if hard else {}


def _classes(count: int, *, named: bool) -> dict[str, Any]:
    """Return CatBoost's parameters of the number of classes and of their labels."""
    # scikit-learn's `clone` fails for a list, which CatBoost copies.
    return {"classes_count": count} | ({"class_names": tuple(range(count))} if named else {})


def _report(name: str, loss: float, native: bool) -> tuple[str, float]:
    return name, loss


class _Metric(_objectives.Metric):
    """What CatBoost calls of a metric. It passes margins, whatever the objective is."""

    def is_max_optimal(self) -> bool:
        """Return False: a smaller loss is better."""
        return False

    def evaluate(
        self, approxes: Sequence[Any], target: Sequence[float], weight: Sequence[float] | None
    ) -> tuple[float, float]:
        """Return the sum of the weighted losses and that of the weights."""
        scores = np.stack([np.asarray(one) for one in approxes], axis=-1)
        scores = scores[:, 0] if scores.shape[1] == 1 else scores
        weights = np.ones(len(scores)) if weight is None else np.array(weight, dtype=np.float64)
        total = float(weights.sum())
        mean = self.loss(Round(scores, np.array(target), weights))
        return total * mean if total else 0.0, total

    def get_final_error(self, error: float, weight: float) -> float:
        """Return the mean loss."""
        return error / weight if weight else float("nan")


# CatBoost reports a metric by the name of its class.


class SoftmaxMetric(_Metric, _objectives.SoftmaxMetric):
    """The mean cross-entropy of several classes."""


class BinaryMetric(_Metric, _objectives.BinaryMetric):
    """The mean cross-entropy of two classes."""


#: Mean cross-entropy of several classes, for ``eval_metric``. It takes margins, which is what
#: CatBoost passes. ``softmax_metric.of_probabilities`` takes probabilities, for calls of your own.
softmax_metric = SoftmaxMetric(__name__, "softmax_metric", _report)

#: The same for two classes.
binary_metric = BinaryMetric(__name__, "binary_metric", _report)
