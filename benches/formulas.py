"""The losses that are measured: a new loss is an entry of `LOSSES` here.

An entry says what the loss takes and gives its formula in float64, with which every library's
answer is compared before anything is timed. `rows.py` makes rows of it, and `peers.py` says how
others compute it. `tests/test_benches.py` fails if a loss of xentrs has no entry. This file is not
run by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.special
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rows import Case

Array = NDArray[Any]
# Scores of some samples in float64, their targets, the case that they are from, and which rows of
# it they are. Returned are the losses of samples or elements, and a function that computes their
# derivatives in the scores.
Formula = Callable[[Array, Array, "Case", slice], tuple[Array, Callable[[], Array]]]

GAMMA = 2.0  # of focal loss
Q = 0.7  # of generalized cross-entropy
EPSILON = 1.0  # of poly loss


@dataclass(frozen=True)
class Loss:
    """What the benchmarks know of a loss."""

    name: str  # of the function in xentrs that returns the loss alone
    label: str  # the beginning of the names of its rows; nothing for cross-entropy
    formula: Formula
    probabilities: bool = False  # whether its scores are probabilities, not logits
    elementwise: bool = False  # whether each number is a sample, with a target of its own
    options: tuple[tuple[str, Any], ...] = ()  # keywords of every call
    # Whether its figures are shown beside those of plain cross-entropy of the same shape
    beside_plain: bool = False


def cross_entropy(x: Array, t: Array, case: Case, rows: slice) -> tuple[Array, Any]:
    log_p = scipy.special.log_softmax(x, axis=1)
    if case.soft:
        factors = t.astype(float)
    else:
        factors = np.zeros_like(x)
        factors[np.arange(len(t)), np.maximum(t, 0)] = 1
    factors = (1 - case.smoothing) * factors + case.smoothing / case.row.c
    if case.each is not None:
        each = case.each[rows, None] if case.weight is None else case.weight
        factors *= each
    losses = -np.where(factors == 0, 0, factors * log_p).sum(axis=1)
    if case.has_nans:
        losses[np.isnan(x).any(axis=1)] = np.nan
    total = factors.sum(axis=1, keepdims=True)
    if case.z_loss:
        logsumexp = scipy.special.logsumexp(x, axis=1)
        losses += case.z_loss * logsumexp**2
        total += 2 * case.z_loss * logsumexp[:, None]
    return losses, lambda: np.exp(log_p) * total - factors


def of_class(function: Callable[[Array, Array], tuple[Array, Array]]) -> Formula:
    """Return the formula of a loss that is a function of l = -log p of the target and of 1 - p.

    `function` returns its value and its derivative in l.
    """

    def formula(x: Array, t: Array, case: Case, _: slice) -> tuple[Array, Any]:
        log_p = scipy.special.log_softmax(x, axis=1)
        samples = np.arange(len(t))
        minus_log_p = -log_p[samples, t]
        others = -np.expm1(-minus_log_p)  # 1 - p of the target
        losses, slope = function(minus_log_p, others)

        def derivative() -> Array:
            grad: Array = np.exp(log_p)
            grad[samples, t] = -others
            grad *= slope[:, None]
            return grad

        return losses, derivative

    return formula


def focal(minus_log_p: Array, others: Array) -> tuple[Array, Array]:
    slope = others**GAMMA + GAMMA * others ** (GAMMA - 1) * (1 - others) * minus_log_p
    return others**GAMMA * minus_log_p, slope


def generalized(minus_log_p: Array, _: Array) -> tuple[Array, Array]:
    return -np.expm1(-Q * minus_log_p) / Q, np.exp(-Q * minus_log_p)


def poly(minus_log_p: Array, others: Array) -> tuple[Array, Array]:
    return minus_log_p + EPSILON * others, 1 + EPSILON * (1 - others)


def log_loss(p: Array, t: Array, case: Case, _: slice) -> tuple[Array, Any]:
    factors = t.astype(float)
    if not case.soft:
        factors = np.zeros_like(p)
        factors[np.arange(len(t)), t] = 1
    return -factors * np.log(p), lambda: -factors / p


def binary(x: Array, t: Array, _case: Case, _: slice) -> tuple[Array, Any]:
    losses = np.logaddexp(0, x) - t * x
    return losses, lambda: scipy.special.expit(x) - t


_ENTRIES = [
    Loss("cross_entropy", "", cross_entropy, beside_plain=True),
    Loss("log_loss", "log_loss", log_loss, probabilities=True),
    Loss("binary_cross_entropy_with_logits", "binary", binary, elementwise=True),
    Loss("focal_loss", "focal", of_class(focal), options=(("gamma", GAMMA),), beside_plain=True),
    Loss(
        "generalized_cross_entropy",
        "generalized",
        of_class(generalized),
        options=(("q", Q),),
        beside_plain=True,
    ),
    Loss("poly_loss", "poly", of_class(poly), options=(("epsilon", EPSILON),), beside_plain=True),
]
LOSSES = {loss.name: loss for loss in _ENTRIES}
