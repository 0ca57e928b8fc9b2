"""Objectives and metrics for XGBoost.

An objective is passed as `obj` to `xgboost.train`, or as `objective` to `XGBClassifier`::

    objective = xentrs.xgboost.softmax(label_smoothing=0.1)
    booster = xgboost.train(objective.params(y), data, 100, obj=objective)

    params = objective.params(y) | {"objective": objective}
    model = xgboost.XGBClassifier(**params).fit(X, y)

This module does not import XGBoost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from xentrs import _objectives
from xentrs._objectives import Array, Round, floored

__all__ = ["binary", "binary_metric", "softmax", "softmax_metric"]

# XGBoost's own objective of several classes has twice the diagonal.
_FACTOR = 2.0

# What XGBoost adds to a share before it takes the logarithm.
_EPSILON = np.float32(1e-6)


class softmax(_objectives.Softmax):
    """Cross-entropy of several classes, or a focal loss, as an objective of XGBoost.

    Without options the trees have the structure of those of ``multi:softprob``, and the margins
    agree to about 1e-6.

    Parameters
    ----------
    weight : sequence of floats, optional
        Weight of each class.
    label_smoothing : float, default 0.0
        Share of the target that is spread evenly over the classes, in [0, 1].
    gamma : float, default 0.0
        Exponent of focal loss: above 0 the loss is `xentrs.focal_loss`, whose Hessian may be
        negative. A Hessian below 1e-16 is replaced by that number. Not together with label
        smoothing or a teacher.
    teacher : array of shape (rows, classes), optional
        Soft labels by row number. The label of a sample is then the number of its row.

    Notes
    -----
    Soft labels may also be the labels themselves: a table of shape (samples, classes). `predict`
    then returns margins, and `predict_proba` of the objective makes probabilities of them.

    The Hessian is 2 p (1 - p), as XGBoost's own objective has it: twice the diagonal of the true
    one. Gradient and Hessian are float32 arrays.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs.xgboost
    >>> objective = xentrs.xgboost.softmax()
    >>> grad, hess = objective(np.array([1]), np.array([[0.0, 0.0]]))
    >>> grad.tolist(), hess.tolist()
    ([[0.5, -0.5]], [[0.5, 0.5]])
    """

    def __call__(
        self, first: Any, second: Any, sample_weight: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Return gradient and Hessian: of scores and a `DMatrix`, or of labels and scores."""
        call = Round.of(first, second, sample_weight)
        grad, hess = self.in_float32(call, _FACTOR)
        return grad, floored(hess)

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
            ``num_class``; ``base_score``, the logarithms of the classes' shares less their mean;
            and ``objective``, the built-in one that makes probabilities of the margins in
            `predict`. If the labels are a table, XGBoost has no such objective: `predict` then
            returns margins, and ``num_target`` stands for ``num_class``.
        """
        logarithms = np.log(self.shares(y, sample_weight).astype(np.float32) + _EPSILON)
        logarithms -= logarithms.mean()
        table = np.ndim(y) == 2 and self.teacher is None
        return {
            "objective": "reg:squarederror" if table else "multi:softprob",
            "num_target" if table else "num_class": len(logarithms),
            "base_score": logarithms.tolist(),
        }


class binary(_objectives.Binary):
    """Binary cross-entropy, or a focal loss, as an objective of XGBoost.

    Without options the trees have the structure of those of ``binary:logistic`` with
    ``base_score=0.5``, and the margins agree to about 1e-6.

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

    Notes
    -----
    Labels between 0 and 1 are soft labels. Gradient and Hessian are float32 arrays.

    XGBoost applies its parameter ``scale_pos_weight`` in objectives of its own only: with this one
    it does nothing, and XGBoost does not say so. ``weight=(1.0, s)`` is what it means.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs.xgboost
    >>> grad, hess = xentrs.xgboost.binary()(np.array([1.0, 0.0]), np.array([0.0, 0.0]))
    >>> grad.tolist(), hess.tolist()
    ([-0.5, 0.5], [0.25, 0.25])
    """

    def __call__(
        self, first: Any, second: Any, sample_weight: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Return gradient and Hessian: of scores and a `DMatrix`, or of labels and scores."""
        call = Round.of(first, second, sample_weight)
        grad, hess = self.in_float32(call)
        return grad, floored(hess)

    def params(self, y: ArrayLike, sample_weight: ArrayLike | None = None) -> dict[str, Any]:
        """Return the parameters that a training starts with.

        Parameters
        ----------
        y, sample_weight : array_like
            As in `softmax`. They are checked, and change nothing in the result.

        Returns
        -------
        dict
            ``objective``, the built-in one that makes probabilities of the margins in `predict`,
            and ``base_score``, the probability 0.5: a margin of 0. Without ``objective``
            `xgboost.train` reads ``base_score`` as a margin: pass 0 then.
        """
        self.training(y, sample_weight)
        return {"objective": "binary:logistic", "base_score": 0.5}


def _report(name: str, loss: float, native: bool) -> Any:
    return (name, loss) if native else loss


#: Mean cross-entropy of several classes, for ``custom_metric`` or ``eval_metric``. It takes
#: margins, which XGBoost passes with a custom objective. ``softmax_metric.of_probabilities`` takes
#: probabilities, which it passes with a built-in one. Each refuses what is surely the other.
softmax_metric = _objectives.SoftmaxMetric(__name__, "softmax_metric", _report)

#: The same for two classes.
binary_metric = _objectives.BinaryMetric(__name__, "binary_metric", _report)
