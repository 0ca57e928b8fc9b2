"""Objectives and metrics for LightGBM.

An objective is passed as ``params["objective"]`` to `lightgbm.train`, or as `objective` to
`LGBMClassifier`::

    objective = xentrs.lightgbm.softmax(label_smoothing=0.1)
    data = lightgbm.Dataset(X, y, **objective.params(y))
    booster = lightgbm.train({"objective": objective, "num_class": 10}, data)

    model = lightgbm.LGBMClassifier(objective=objective).fit(X, y, **objective.params(y))

A LightGBM model does not contain the initial scores. Other data need the same ones, those of the
training labels ``y``: validation data when they are made, and raw predictions before
`predict_proba`::

    valid = data.create_valid(X_valid, y_valid, **objective.params(y, rows=len(y_valid)))

    initial = objective.params(y, rows=len(X_test))["init_score"]
    objective.predict_proba(booster.predict(X_test, raw_score=True) + initial)

This module does not import LightGBM.
"""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from xentrs import _arrays, _objectives
from xentrs._objectives import Array, Round, floored

__all__ = ["binary", "binary_metric", "softmax", "softmax_metric"]

# The least share of a class whose logarithm LightGBM takes.
_EPSILON = 1e-15


def _single(objective: _objectives.Objective, call: Round, factor: float) -> tuple[Array, Array]:
    """Return the derivatives in LightGBM's float32, the Hessian times its factor."""
    grad, hess = objective.in_float32(call, factor)
    return grad, floored(hess) if objective.gamma else hess


def _rows(y: ArrayLike, rows: SupportsIndex | None) -> int:
    """Return how many initial scores are asked for."""
    if rows is None:
        return len(np.asarray(y))
    count = _arrays._integer("rows", rows, "a number of rows, such as len(X)")
    if count < 0:
        raise ValueError(f"rows must be at least 0, not {count}")
    return count


class softmax(_objectives.Softmax):
    """Cross-entropy of several classes, or a focal loss, as an objective of LightGBM.

    Without options, and with the same initial scores, the trees are those of ``multiclass`` with
    ``boost_from_average=False``, byte for byte.

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
        Soft labels by row number. The label of a sample is then the number of its row, since
        LightGBM has no labels of more than one column.

    Notes
    -----
    The Hessian is K / (K - 1) p (1 - p) for K classes, as LightGBM's own objective has it. LightGBM
    passes scores in columns; gradient and Hessian are float32 arrays in columns.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs.lightgbm
    >>> objective = xentrs.lightgbm.softmax()
    >>> grad, hess = objective(np.array([1]), np.array([[0.0, 0.0]]))
    >>> grad.tolist(), hess.tolist()
    ([[0.5, -0.5]], [[0.5, 0.5]])
    """

    def __call__(
        self, first: Any, second: Any, sample_weight: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Return gradient and Hessian: of scores and a `Dataset`, or of labels and scores."""
        call = Round.of(first, second, sample_weight)
        classes = call.scores.shape[-1]
        return _single(self, call, classes / max(classes - 1, 1))

    def params(
        self,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        rows: SupportsIndex | None = None,
    ) -> dict[str, Any]:
        """Return what a training starts with.

        Parameters
        ----------
        y : array_like
            The labels of the training.
        sample_weight : array_like, optional
            The weights of its samples.
        rows : int, optional
            Return scores for so many rows of other data, such as those for validation. By default,
            as many as labels.

        Returns
        -------
        dict
            ``init_score``: the logarithms of the classes' shares, the same for each row, of shape
            (rows, classes) in Fortran order. It goes to `lightgbm.Dataset` or `LGBMClassifier.fit`,
            and is added to raw predictions.

        Examples
        --------
        >>> import xentrs.lightgbm
        >>> objective = xentrs.lightgbm.softmax()
        >>> objective.params([0, 1, 1, 1], rows=2)["init_score"].round(2).tolist()
        [[-1.39, -0.29], [-1.39, -0.29]]
        """
        logarithms = np.log(np.maximum(self.shares(y, sample_weight), _EPSILON))
        shape = _rows(y, rows), len(logarithms)
        return {"init_score": np.array(np.broadcast_to(logarithms, shape), order="F")}


class binary(_objectives.Binary):
    """Binary cross-entropy, or a focal loss, as an objective of LightGBM.

    Without options, and with the same initial scores, the trees are those of ``binary`` with
    ``boost_from_average=False``, byte for byte.

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

    LightGBM applies its parameters ``scale_pos_weight`` and ``is_unbalance`` in objectives of its
    own only: with this one they do nothing, and LightGBM does not say so. ``weight=(1.0, s)`` is
    what ``scale_pos_weight=s`` means.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs.lightgbm
    >>> grad, hess = xentrs.lightgbm.binary()(np.array([1.0, 0.0]), np.array([0.0, 0.0]))
    >>> grad.tolist(), hess.tolist()
    ([-0.5, 0.5], [0.25, 0.25])
    """

    def __call__(
        self, first: Any, second: Any, sample_weight: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Return gradient and Hessian: of scores and a `Dataset`, or of labels and scores."""
        return _single(self, Round.of(first, second, sample_weight), 1.0)

    def params(
        self,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        rows: SupportsIndex | None = None,
    ) -> dict[str, Any]:
        """Return what a training starts with.

        Parameters
        ----------
        y : array_like
            The labels of the training.
        sample_weight : array_like, optional
            The weights of its samples.
        rows : int, optional
            Return scores for so many rows of other data, such as those for validation. By default,
            as many as labels.

        Returns
        -------
        dict
            ``init_score``: the log-odds of class 1, the same for each row, of shape (rows,). It
            goes to `lightgbm.Dataset` or `LGBMClassifier.fit`, and is added to raw predictions.

        Examples
        --------
        >>> import xentrs.lightgbm
        >>> xentrs.lightgbm.binary().params([0, 1, 1, 1], rows=2)["init_score"].round(2).tolist()
        [1.1, 1.1]
        """
        score = self.log_odds(y, sample_weight)
        return {"init_score": np.full(_rows(y, rows), score)}


def _report(name: str, loss: float, native: bool) -> tuple[str, float, bool]:
    return name, loss, False  # a smaller loss is better


#: Mean cross-entropy of several classes, for ``feval`` or ``eval_metric``. It takes margins, which
#: LightGBM passes with a custom objective. ``softmax_metric.of_probabilities`` takes probabilities,
#: which it passes with a built-in one. Each refuses what is surely the other.
softmax_metric = _objectives.SoftmaxMetric(__name__, "softmax_metric", _report)

#: The same for two classes.
binary_metric = _objectives.BinaryMetric(__name__, "binary_metric", _report)
