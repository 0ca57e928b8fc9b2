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
    logs: bool = False  # whether its scores are log-probabilities
    target: bool = True  # whether it takes one
    teacher: bool = False  # whether its target is logits too, those of a teacher
    elementwise: bool = False  # whether each number is a sample, with a target of its own
    options: tuple[tuple[str, Any], ...] = ()  # keywords of every call
    # Whether its figures are shown beside those of plain cross-entropy of the same shape
    beside_plain: bool = False

    @property
    def input(self) -> str:
        """What its first argument is called."""
        if self.probabilities:
            return "probabilities"
        return "log_probabilities" if self.logs else "logits"


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


def entropy(x: Array, _t: Array, _case: Case, _: slice) -> tuple[Array, Any]:
    log_p = scipy.special.log_softmax(x, axis=1)
    p = np.exp(log_p)
    losses = -(p * log_p).sum(axis=1)
    return losses, lambda: -p * (log_p + losses[:, None])


def kl_divergence(x: Array, t: Array, _case: Case, _: slice) -> tuple[Array, Any]:
    log_p, log_q = (scipy.special.log_softmax(a, axis=1) for a in (x, t.astype(float)))
    losses = (np.exp(log_q) * (log_q - log_p)).sum(axis=1)
    return losses, lambda: np.exp(log_p) - np.exp(log_q)


def js_divergence(x: Array, t: Array, _case: Case, _: slice) -> tuple[Array, Any]:
    log_p, log_q = (scipy.special.log_softmax(a, axis=1) for a in (x, t.astype(float)))
    log_m = np.logaddexp(log_p, log_q) - np.log(2)
    of_model = np.exp(log_p) * (log_p - log_m)
    losses = (of_model + np.exp(log_q) * (log_q - log_m)).sum(axis=1) / 2

    def derivative() -> Array:
        grad: Array = of_model - np.exp(log_p) * of_model.sum(axis=1, keepdims=True)
        return grad / 2

    return losses, derivative


def nll_loss(x: Array, t: Array, case: Case, _: slice) -> tuple[Array, Any]:
    factors = t.astype(float)
    if not case.soft:
        factors = np.zeros_like(x)
        factors[np.arange(len(t)), t] = 1
    return -(factors * x).sum(axis=1), lambda: -factors


def binary_of_probabilities(p: Array, t: Array, _case: Case, _: slice) -> tuple[Array, Any]:
    t = t.astype(float)
    losses = -np.where(t > 0, t * np.log(p), 0) - np.where(t < 1, (1 - t) * np.log1p(-p), 0)
    return losses, lambda: (1 - t) / (1 - p) - t / p


def sigmoid_focal(x: Array, t: Array, _case: Case, _: slice) -> tuple[Array, Any]:
    t = t.astype(float)
    p, q = scipy.special.expit(x), scipy.special.expit(-x)
    losses = np.logaddexp(0, x) - t * x
    others = (1 - t) * p + t * q

    def derivative() -> Array:
        slope: Array = others**GAMMA * ((1 - t) * p - t * q)
        slope += GAMMA * others ** (GAMMA - 1) * (1 - 2 * t) * p * q * losses
        return slope

    return others**GAMMA * losses, derivative


_ENTRIES = [
    Loss("cross_entropy", "", cross_entropy, beside_plain=True),
    Loss("log_loss", "log_loss", log_loss, probabilities=True),
    Loss("binary_cross_entropy_with_logits", "binary", binary, elementwise=True),
    Loss("nll_loss", "nll", nll_loss, logs=True),
    Loss(
        "binary_cross_entropy",
        "binary of probabilities",
        binary_of_probabilities,
        probabilities=True,
        elementwise=True,
    ),
    Loss("sigmoid_focal_loss", "sigmoid focal", sigmoid_focal, elementwise=True),
    Loss("kl_divergence", "kl", kl_divergence, teacher=True),
    Loss("js_divergence", "js", js_divergence, teacher=True),
    Loss("focal_loss", "focal", of_class(focal), options=(("gamma", GAMMA),), beside_plain=True),
    Loss(
        "generalized_cross_entropy",
        "generalized",
        of_class(generalized),
        options=(("q", Q),),
        beside_plain=True,
    ),
    Loss("poly_loss", "poly", of_class(poly), options=(("epsilon", EPSILON),), beside_plain=True),
    Loss("softmax_entropy", "entropy", entropy, target=False, beside_plain=True),
]
LOSSES = {loss.name: loss for loss in _ENTRIES}
