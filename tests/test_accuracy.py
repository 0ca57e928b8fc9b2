"""The largest errors, measured against a reference of 64-bit mantissas, and their bounds.

``make numerics-table`` writes the measured maxima to docs/numerics.md. ``python
tests/test_accuracy.py`` prints them beside those of PyTorch and optax where they are installed.
"""

import contextlib
import itertools
import os
from dataclasses import dataclass, replace
from functools import partial

import mpmath
import numpy as np
import pytest

import levels
import reference
import xentrs
from losses import DTYPES, LOSSES, assert_same_bits
from reference import significant, ulp_error

# In ULP of the result's dtype, for results of at least the smallest normal number; below it the
# error is at most that number. If an entry of a gradient or a Hessian is a difference of terms
# (with soft targets, smoothing or z-loss), its error is in ULP of the largest of them.
BOUNDS = {
    "cross_entropy": {"loss": 4, "grad": 4, "hess": 6},
    "log_loss": {"loss": 4, "grad": 4, "hess": 4},
    "focal_loss": {"loss": 4, "grad": 4, "hess": 7},
    "nll_loss": {"loss": 4, "grad": 4},
    "generalized_cross_entropy": {"loss": 4, "grad": 4},
    "poly_loss": {"loss": 4, "grad": 4},
    "binary_cross_entropy_with_logits": {"loss": 4, "grad": 4, "hess": 7},
    "softmax_entropy": {"loss": 6, "grad": 4.5},
    # Two weights, the logarithm, their product and the division by the base are rounded in turn.
    "binary_cross_entropy": {"loss": 4.2, "grad": 4},
    "sigmoid_focal_loss": {"loss": 4, "grad": 4},
    "kl_divergence": {"loss": 10, "grad": 14},
    "js_divergence": {"loss": 14, "grad": 14},
}
# More in float64, where terms that are nearly 0 are series of a shorter reach.
OF_FLOAT64 = {"kl_divergence": 40, "js_divergence": 70}
# More for each unit of gamma above a first few: the relative error of u**gamma is gamma times that
# of u, which is some tenths of a unit.
OF_GAMMA = {"loss": (1.1, 2), "grad": (1.1, 1.5), "hess": (2.5, 0)}
OF_SIGMOID_GAMMA = 0.2  # above 5: there the error of m is far below one ULP of m
# More with z-loss: the square of the logsumexp has twice its relative error.
OF_Z_LOSS = {"loss": 1, "grad": 2, "hess": 1}
# More with a cap, whose derivatives multiply those of the capped logits.
OF_SOFTCAP = {"loss": 0, "grad": 2, "hess": 4}
RESULTS = ("loss", "grad", "hess")
# Results next to the smallest normal number are products of probabilities below it.
LEAST = {np.float32: 0.0, np.float64: 1e-300}
BY_NAME = {loss.name: loss for loss in LOSSES}
CLASSES = [2, 3, 10, 64, 65, 128, 1000, 32000]
SPREADS = [0.1, 1.0, 8.0, 30.0, 100.0]
OFFSETS = [0.0, 100.0, -100.0, 1e4, 1e5, 1e7]
SHARE = 5  # prime to the lengths of the inner lists: all of their values are among these cases


@dataclass
class Rows:
    """Arguments of one call, with reduction="none"."""

    function: str
    scores: np.ndarray
    target: np.ndarray
    options: dict
    least: float = 0.0  # results below are as good as those below the smallest normal number
    more: float = 0.0  # than the bound of the function

    @property
    def dtype(self):
        return self.scores.dtype

    def bound(self, name):
        """Return the largest error that a result may have."""
        more = 0.0
        if self.function == "focal_loss":
            each, few = OF_GAMMA[name]
            more += each * max(0, self.options.get("gamma", 2) - few)
        if self.function == "sigmoid_focal_loss":
            more += OF_SIGMOID_GAMMA * max(0, self.options["gamma"] - 5)
        more += OF_Z_LOSS[name] * bool(self.options.get("z_loss", 0))
        more += OF_SOFTCAP[name] * bool(self.options.get("softcap"))
        if name == "loss" and self.dtype == np.float64:
            more += OF_FLOAT64.get(self.function, 0)
        return BOUNDS[self.function][name] + more + self.more

    def _of_q(self):
        """Return how many times as large as 4 ULP the bound of each gradient is: (4 + q l) / 4."""
        plain = reference.cross_entropy(self.scores, self.target, reduction="none")
        length = np.where(np.isfinite(plain.loss), plain.loss, 0)
        return 1 + self.options["q"] * length / 4

    def __str__(self):
        return f"{self.function} of {self.scores.shape}, options {sorted(self.options)}"

    def compute(self):
        """Return the results: losses, and all derivatives."""
        options = {"reduction": "none"} | self.options
        return BY_NAME[self.function].functions[-1](self.scores, self.target, **options)

    def sum_of_losses(self):
        """Return the reduced loss."""
        options = {"reduction": "sum"} | self.options
        return BY_NAME[self.function].functions[0](self.scores, self.target, **options)

    def exact(self):
        """Return the reference's results."""
        options = {"reduction": "none"} | self.options
        return getattr(reference, self.function)(self.scores, self.target, **options)

    def sizes_of_losses(self, right):
        """Return the sizes that errors of losses are relative to: of losses, or of their terms."""
        of_terms = self.function == "poly_loss" or "softcap" in self.options
        return right.loss_terms if of_terms else right.loss

    def errors(self, results=None, right=None):
        """Return the largest error in ULP of each result, by name; all rows must be significant."""
        results = self.compute() if results is None else results
        right = self.exact() if right is None else right
        of_loss = self.sizes_of_losses(right)
        exact = (right.loss, of_loss), *right.derivatives
        errors = {}
        for order, (actual, (value, size)) in enumerate(zip(results, exact, strict=False)):
            name = RESULTS[order]
            tiny = float(reference.limits(actual.dtype).tiny)
            # A derivative is a product of probabilities, divided by the temperature once an order.
            least = max(self.least, tiny, 2 * tiny / self.options.get("temperature", 1) ** order)
            good = significant(size, actual.dtype) & ~(abs(size) < least)
            with np.errstate(all="ignore"):
                below = abs(actual.astype(value.dtype) - value)[~good]
            assert np.all(below <= least), f"{name} below {least}"
            error = ulp_error(actual, value, size)
            if name == "grad" and "q" in self.options:
                error /= self._of_q()[:, None]
            errors[name] = float(error[good].max(initial=0))
        return errors


def _targets(x, rng):
    """Return class indices, by turns a random one, the likeliest and the least likely."""
    any_class = rng.integers(0, x.shape[-1], len(x))
    kind = np.arange(len(x)) % 3
    return np.select([kind == 0, kind == 1], [any_class, x.argmax(-1)], x.argmin(-1))


def _count(classes):
    return 3 if classes > 10_000 else max(6, 6000 // classes)


def _hard(x, rng, target=None, **options):
    target = _targets(x, rng) if target is None else target
    return Rows("cross_entropy", x, target, options)


def _spreads(dtype, rng):
    """Draw normal logits of every spread about every offset."""
    offsets = OFFSETS if dtype == np.float32 else [*OFFSETS, 1e12]
    for classes in CLASSES:
        for spread in SPREADS:
            for offset in offsets:
                x = rng.normal(size=(_count(classes), classes)) * spread + offset
                yield _hard(x.astype(dtype), rng)


def _uniform(dtype, rng):
    """Logits at all distances: magnitudes from 1e-30 to 1e4, both signs."""
    for classes in CLASSES:
        shape = _count(classes), classes
        x = 10 ** rng.uniform(-30, 4, shape) * rng.choice([-1, 1], shape)
        yield _hard(x.astype(dtype), rng)


def _confident(dtype, rng):
    """Put the target far above all others: losses from 0.1 down to the smallest normal number."""
    gap = -np.log(np.finfo(dtype).tiny.astype(float))
    for classes in CLASSES:
        gaps = np.linspace(1, gap - 0.02, 3 if classes > 10_000 else 400)[:, None]
        for offset in (0.0, 3.0, -55.5, 1e4):
            x = offset - gaps - rng.exponential(size=(len(gaps), classes)) * (classes > 2)
            target = rng.integers(0, classes, len(x))
            x[np.arange(len(x)), target] = offset
            yield _hard(x.astype(dtype), rng, target)


def _leaders(dtype, rng):
    """One class with about half of the probability or more, mostly not the target."""
    for classes in CLASSES:
        for spread in (0.01, 0.5, 4.0):
            # Many rows, since in few of them rounding errors of the additions add up.
            x = rng.normal(size=(_count(classes) if classes > 256 else 3000, classes)) * spread
            rows, leader = np.arange(len(x)), rng.integers(0, classes, len(x))
            x[rows, leader] = -np.inf
            x[rows, leader] = np.logaddexp.reduce(x, axis=1) + rng.uniform(-0.1, 2.0, len(x))
            yield _hard(x.astype(dtype), rng)


def _gaps(dtype, rng):
    """Two levels of logits, up to the gap at which exponentials underflow; the target in either."""
    gap = -np.log(np.finfo(dtype).tiny.astype(float))
    for classes in CLASSES:
        gaps = np.linspace(0.9 * gap, 1.05 * gap, 3 if classes > 10_000 else 200)[:, None]
        for offset in (0.0, 0.3, 20.0, -20.0):
            x = offset - gaps * (rng.random((len(gaps), classes)) < 0.7)
            yield _hard(x.astype(dtype), rng)


def _constant(dtype, rng):
    for classes in (1, *CLASSES):
        values = np.array([0, 3.7, -0.1, 1e-30, 88.0, -1e4, 123456.7, 1e7, -1e30, 1e38])
        if classes > 10_000:
            values = values[:3]
        yield _hard(np.repeat(values[:, None], classes, 1).astype(dtype), rng)


def _masks(dtype, rng):
    """Classes masked out by -inf or by huge negative numbers: random ones, or the first ones."""
    for classes in CLASSES:
        for mask in (-np.inf, -1e9, -1e30, -3e4):
            for first in (False, True):
                x = rng.normal(size=(_count(classes), classes)) * 3
                masked = rng.random(x.shape) < 0.5
                if first:
                    masked = np.arange(classes) < min(classes - 1, 70) + 0 * masked
                target = rng.integers(0, classes, len(x))
                masked[np.arange(len(x)), target] = False
                yield _hard(np.where(masked, mask, x).astype(dtype), rng, target)


def _late_peaks(dtype, rng):
    """Put a peak after the first 64 logits, where the kernels choose a reference, and a target."""
    for classes in (65, 128, 1000, 32000):
        for height in (10.0, 60.0, 200.0, 1e3, 1e4, 1e6, 1e30):
            for low in (0.0, -300.0, 5e3):
                x = rng.normal(size=(_count(classes), classes)) + low
                at = rng.integers(64, classes, len(x))
                x[np.arange(len(x)), at] += height
                yield _hard(x.astype(dtype), rng)
                x[:, classes - 1] += height / 2
                yield _hard(x.astype(dtype), rng, at)


def _factors(dtype, rng):
    """Hard targets with class and sample weights, in another base."""
    for classes in CLASSES:
        for spread in (1.0, 30.0):
            x = (rng.normal(size=(_count(classes), classes)) * spread).astype(dtype)
            options = {
                "weight": rng.uniform(0.1, 10, classes).astype(dtype),
                "sample_weight": rng.uniform(0.1, 10, len(x)).astype(dtype),
                "base": 2,
            }
            yield _hard(x, rng, **options)


def _smoothing(dtype, rng):
    for classes in CLASSES:
        for spread in SPREADS:
            for offset in (0.0, 1e4, 1e7):
                x = rng.normal(size=(_count(classes), classes)) * spread + offset
                yield _hard(x.astype(dtype), rng, label_smoothing=float(rng.choice([0.1, 0.9])))


def _smoothing_weights(dtype, rng):
    for classes in CLASSES:
        for spread in (1.0, 30.0):
            x = (rng.normal(size=(_count(classes), classes)) * spread).astype(dtype)
            weight = rng.uniform(0.1, 10, classes).astype(dtype)
            yield _hard(x, rng, weight=weight, label_smoothing=0.1)


def _soft(dtype, rng):
    """Probabilities as target, dense, sparse and one-hot, with weights and smoothing or without."""
    for classes in CLASSES:
        for spread in SPREADS:
            for offset in (0.0, 1e4, 1e7):
                x = (rng.normal(size=(_count(classes), classes)) * spread + offset).astype(dtype)
                q = rng.exponential(size=x.shape) * (rng.random(x.shape) < rng.choice([0.1, 1]))
                q[:, 0] += 0.01
                q = q / q.sum(-1, keepdims=True)
                q[::4] = np.eye(1, classes, int(rng.integers(classes)))
                options = {}
                if rng.random() < 0.5:
                    options["weight"] = rng.uniform(0.1, 10, classes).astype(dtype)
                if rng.random() < 0.3:
                    options["label_smoothing"] = 0.1
                yield Rows("cross_entropy", x, q.astype(dtype), options)


def _pairs(dtype, rng):
    """Pairs of class indices and probabilities, with weights and smoothing or without."""
    for classes in CLASSES:
        for spread in SPREADS:
            for offset in (0.0, 1e4, 1e7):
                x = (rng.normal(size=(_count(classes), classes)) * spread + offset).astype(dtype)
                entries = min(int(rng.choice([1, 2, 8, 64])), classes)
                indices = rng.integers(0, classes, (len(x), entries))
                indices[::3, 0] = x[::3].argmax(-1)
                q = rng.exponential(size=indices.shape) * 10 ** rng.uniform(-6, 0, indices.shape)
                options = {}
                if rng.random() < 0.5:
                    options["weight"] = rng.uniform(0.1, 10, classes).astype(dtype)
                if rng.random() < 0.3:
                    options["label_smoothing"] = 0.1
                q = (q / q.sum(-1, keepdims=True)).astype(rng.choice(DTYPES))
                yield Rows("cross_entropy", x, (indices, q), options)


def _z_loss(dtype, rng, *, near=False):
    """Z-loss of every size; `near` are rows whose logsumexp is a sum of terms that cancel."""
    for family in (_spreads, _leaders, _smoothing, _soft):
        for i, rows in enumerate(family(dtype, rng)):
            x = rows.scores.astype(np.longdouble)
            top = x.max(-1)
            above = np.log(np.exp(x - top[:, None]).sum(-1))
            chosen = (abs(top + above) < abs(top) + above) == near
            chosen &= (abs(top + above) < 0.5) == near
            if i % 3 == 0 and chosen.any():
                options = rows.options | {"z_loss": 10 ** rng.uniform(-6, 1)}
                scores, target = rows.scores[chosen], rows.target[chosen]
                yield Rows(rows.function, scores, target, options)


def _temperature(dtype, rng):
    """Logits of every spread and offset, divided by temperatures of every size."""
    for family in (_spreads, _confident, _leaders, _late_peaks, _soft):
        for i, rows in enumerate(family(dtype, rng)):
            if i % 2 == 0:
                temperature = float(rng.choice([0.05, 0.37, 0.9, 3.0, 25.0]))
                yield replace(rows, options=rows.options | {"temperature": temperature})


def _softcap(dtype, rng):
    """Logits of ordinary size, capped; errors are in ULP of the cap."""
    for i, rows in enumerate(_spreads(dtype, rng)):
        if abs(rows.scores).max() < 300 and i % 2 == 0:
            options = {"softcap": float(rng.choice([5.0, 30.0, 50.0]))}
            if rng.random() < 0.3:
                options["temperature"] = 1.7
            yield replace(rows, options=options)


def _focal(gammas, dtype, rng):
    """Focal loss of inputs for cross-entropy."""
    for family in (_factors, _confident, _gaps, _masks, _leaders, _late_peaks, _spreads):
        for rows in family(dtype, rng):
            options = rows.options | {"gamma": float(rng.choice(gammas))}
            yield replace(rows, function="focal_loss", options=options, least=LEAST[dtype])


_OF_CLASS = (_factors, _confident, _gaps, _masks, _leaders, _late_peaks, _spreads, _uniform)


def _of_class(function, option, values, dtype, rng):
    """Draw inputs for a function of the true class's probability from those for cross-entropy."""
    for family in _OF_CLASS:
        for rows in family(dtype, rng):
            options = rows.options | {option: float(rng.choice(values))}
            options.pop("base", None)
            yield replace(rows, function=function, options=options, least=LEAST[dtype])


def _entropy(family, dtype, rng):
    """Entropies of the logits of another family."""
    for rows in family(dtype, rng):
        yield replace(rows, function="softmax_entropy", target=None, options={})


def _log_any(dtype, rng):
    """Probabilities of every size, next to 1 and below the smallest normal number too."""
    eps, tiny = np.finfo(dtype).eps, np.finfo(dtype).smallest_subnormal
    for classes in CLASSES:
        shape = 4 * _count(classes), classes
        p = 10 ** rng.uniform(np.log10(float(tiny)) + 0.5, 0, shape)
        p[::4] = rng.random((len(p[::4]), classes))
        near = 1 - eps / 2 * rng.integers(0, 2 ** rng.integers(1, 20, p[1::4].shape))
        p[1::4] = near
        x = p.astype(dtype)
        yield Rows("log_loss", x, rng.integers(0, classes, len(x)), {})
        yield Rows("log_loss", x, rng.random(shape).astype(dtype), {})
        weight = rng.uniform(0.1, 10, classes).astype(dtype)
        target = rng.integers(0, classes, len(x))
        yield Rows("log_loss", x, target, {"weight": weight, "label_smoothing": 0.1, "base": 2})


def _binary_hard(dtype, rng):
    """Logits of every size up to underflow of the loss or the gradient, for labels 0 and 1."""
    limit = -np.log(np.finfo(dtype).tiny.astype(float))
    parts = [
        rng.uniform(-1.05 * limit, 1.05 * limit, 30_000),
        rng.normal(size=20_000),
        10 ** rng.uniform(-30, 6, 10_000) * rng.choice([-1, 1], 10_000),
        [0.0, -0.0, 1e30, -1e30],
    ]
    x = np.concatenate(parts).astype(dtype)
    for target in (0, 1):
        yield Rows("binary_cross_entropy_with_logits", x, np.full(x.shape, target, dtype), {})
    options = {"weight": dtype(0.7), "pos_weight": dtype(5.3), "base": 2}
    target = rng.integers(0, 2, x.shape).astype(dtype)
    yield Rows("binary_cross_entropy_with_logits", x, target, options)


def _binary_soft(dtype, rng):
    for rows in _binary_hard(dtype, rng):
        t = rng.random(rows.scores.shape)
        t[::3] = 10 ** rng.uniform(-20, 0, t[::3].shape)
        yield Rows(rows.function, rows.scores, t.astype(dtype), rows.options)
        smooth = rows.options | {"label_smoothing": 0.1}
        yield Rows(rows.function, rows.scores, rows.target, smooth)


def _wide_weights(family, dtype, rng):
    """Add weights of float64 for each element: to float32 they are two numbers."""
    for rows in family(dtype, rng):
        names = {"weight", "pos_weight"} & {*rows.options}
        if names:
            of_each = {name: 10 ** rng.uniform(-3, 3, rows.scores.shape) for name in names}
            # The documented bound of both weights at once in float64.
            more = 1.0 if len(names) > 1 and dtype is np.float64 else 0.0
            for weights in (of_each, dict.fromkeys(names, 3.1)):
                options = rows.options | weights | {"base": None}
                yield replace(rows, options=options, more=more)


def _wide_class_weights(families, dtype, rng):
    """Add weights of float64 for each class: to float32 they are rounded once, or two numbers."""
    for family in families:
        for rows in family(dtype, rng):
            weight = rng.uniform(0.1, 10, rows.scores.shape[-1])
            yield replace(rows, options=rows.options | {"weight": weight})


def _models(dtype, rng):
    """Draw logits of a model and a teacher: unlike, alike, nearly equal, with other offsets."""
    for classes in CLASSES:
        for spread in SPREADS:
            for apart in (None, 3.0, 0.1, 1e-3, 1e-6, 1e-9):
                shape = _count(classes) // 2 + 1, classes
                x = rng.normal(size=shape) * spread
                other = rng.normal(size=shape)
                y = other * spread if apart is None else x + other * apart
                offset = rng.choice([0.0, 0.0, 20.0, -1e4])
                yield (x + rng.choice([0.0, 100.0])).astype(dtype), (y + offset).astype(dtype)


def _of_models(function, choices, dtype, rng):
    # A probability next to the smallest normal number has few digits.
    least = {np.float32: 1e-33, np.float64: 1e-300}[dtype]
    for x, y in _models(dtype, rng):
        for options in choices:
            options = dict(options)
            if rng.random() < 0.3:
                options["temperature"] = float(rng.choice([0.3, 2.0, 3.7]))
            if rng.random() < 0.2:
                options["sample_weight"] = rng.uniform(0.1, 10, len(x)).astype(dtype)
                options["base"] = 2
            yield Rows(function, x, y, options, least)


def _nll_any(dtype, rng):
    """Log-probabilities of every size, for class indices and probabilities."""
    for classes in CLASSES:
        shape = 4 * _count(classes), classes
        x = -(10 ** rng.uniform(-30, 30, shape)).astype(dtype)
        yield Rows("nll_loss", x, rng.integers(0, classes, len(x)), {})
        yield Rows("nll_loss", x, rng.random(shape).astype(dtype), {})
        options = {"weight": rng.uniform(0.1, 10, classes).astype(dtype), "base": 2}
        yield Rows("nll_loss", x, rng.integers(0, classes, len(x)), options)
        smooth = options | {"label_smoothing": 0.1}
        yield Rows("nll_loss", x, rng.integers(0, classes, len(x)), smooth)
        yield Rows("nll_loss", x, rng.random(shape).astype(dtype), smooth)


def _chances(dtype, rng):
    """Probabilities of every size, next to 1 and below the smallest normal number too."""
    eps, tiny = np.finfo(dtype).eps, np.finfo(dtype).smallest_subnormal
    near = 1 - eps / 2 * rng.integers(0, 2 ** rng.integers(1, 20, 20_000))
    any_size = 10 ** rng.uniform(np.log10(float(tiny)) + 0.5, 0, 30_000)
    return np.concatenate([near, any_size, rng.random(30_000)]).astype(dtype)


def _binary_of_chances(dtype, rng, *, soft):
    for number in range(6):
        p = _chances(dtype, rng)
        t = rng.integers(0, 2, p.shape)
        if soft:
            # Some next to p, where the two terms of the gradient cancel.
            close = np.clip(p * (1 + rng.normal(size=p.shape) * 10 ** rng.uniform(-8, -1)), 0, 1)
            t = np.where(rng.random(p.shape) < 0.5, rng.random(p.shape), close)
            t = np.maximum(t, np.finfo(dtype).tiny)  # a weight would round what is below
        weights = {"weight": dtype(0.7), "pos_weight": dtype(5.3), "base": 2}
        smooth = {"label_smoothing": 0.1}
        options = [{}, weights, smooth if soft else {}][number % 3]
        yield Rows("binary_cross_entropy", p, t.astype(dtype), options)


def _sigmoid_focal(gammas, dtype, rng):
    for i, family in enumerate([_binary_hard, _binary_soft]):
        for rows in family(dtype, rng):
            for alpha in (None, 0.1, 0.25, 1.0):
                options = {"gamma": float(rng.choice(gammas)), "alpha": alpha}
                if "weight" in rows.options:
                    options |= {"weight": rows.options["weight"], "base": rows.options["base"]}
                target = np.asarray(rows.target)
                if i:  # smoothed labels, as they are given
                    target = rows.options.get("label_smoothing", 0.0) / 2 + 0.9 * target
                target = target.astype(dtype)
                yield Rows("sigmoid_focal_loss", rows.scores, target, options)


FAMILIES = {
    "cross_entropy: normal logits, every spread and offset": _spreads,
    "cross_entropy: logits of every magnitude": _uniform,
    "cross_entropy: confident samples": _confident,
    "cross_entropy: one class above all others": _leaders,
    "cross_entropy: gaps to the underflow limit": _gaps,
    "cross_entropy: constant logits": _constant,
    "cross_entropy: masked classes": _masks,
    "cross_entropy: a peak late in the row": _late_peaks,
    "cross_entropy: weights, base 2": _factors,
    "cross_entropy: label smoothing": _smoothing,
    "cross_entropy: label smoothing, class weights": _smoothing_weights,
    "cross_entropy: probabilities as target": _soft,
    "cross_entropy: pairs as target": _pairs,
    "cross_entropy: class weights of float64": partial(
        _wide_class_weights, [_smoothing_weights, _soft, _pairs]
    ),
    "cross_entropy: z-loss": _z_loss,
    "cross_entropy: z-loss, logsumexp near 0": partial(_z_loss, near=True),
    "cross_entropy: temperature": _temperature,
    "cross_entropy: softcap (ULP of the cap)": _softcap,
    "focal_loss: gamma 0 to 1": partial(_focal, [0.0, 0.3, 0.5, 1.0]),
    "focal_loss: gamma 2": partial(_focal, [2.0]),
    "focal_loss: gamma 3 to 20": partial(_focal, [3.0, 5.0, 17.5, 20.0]),
    "softmax_entropy: every spread and offset": partial(_entropy, _spreads),
    "softmax_entropy: logits of every magnitude": partial(_entropy, _uniform),
    "softmax_entropy: confident samples": partial(_entropy, _confident),
    "softmax_entropy: one class above all others": partial(_entropy, _leaders),
    "softmax_entropy: gaps to the underflow limit": partial(_entropy, _gaps),
    "softmax_entropy: masked classes": partial(_entropy, _masks),
    "softmax_entropy: a peak late in the row": partial(_entropy, _late_peaks),
    "generalized_cross_entropy: q 0.7": partial(_of_class, "generalized_cross_entropy", "q", [0.7]),
    "generalized_cross_entropy: q 0.001 to 1": partial(
        _of_class, "generalized_cross_entropy", "q", [0.001, 0.05, 0.3, 1.0]
    ),
    "poly_loss: epsilon 1": partial(_of_class, "poly_loss", "epsilon", [1.0]),
    "poly_loss: epsilon -5 to 1000": partial(
        _of_class, "poly_loss", "epsilon", [-5.0, -2.0, -1.0, -0.3, 0.1, 7.0, 1000.0]
    ),
    "log_loss: any probability": _log_any,
    "log_loss: class weights of float64": partial(_wide_class_weights, [_log_any]),
    "kl_divergence: forward": partial(_of_models, "kl_divergence", [{}]),
    "kl_divergence: reverse": partial(_of_models, "kl_divergence", [{"direction": "reverse"}]),
    "js_divergence": partial(
        _of_models, "js_divergence", [{"beta": 0.5}, {"beta": 0.1}, {"beta": 0.9}]
    ),
    "nll_loss: any log-probability": _nll_any,
    "binary: true and false": _binary_hard,
    "binary: soft labels, smoothing": _binary_soft,
    "binary, of probabilities: true and false": partial(_binary_of_chances, soft=False),
    "binary, of probabilities: soft labels": partial(_binary_of_chances, soft=True),
    "binary: weights of float64": partial(_wide_weights, _binary_hard),
    "binary: weights of float64, soft labels": partial(_wide_weights, _binary_soft),
    "binary, of probabilities: weights of float64": partial(
        _wide_weights, partial(_binary_of_chances, soft=False)
    ),
    "sigmoid_focal_loss: gamma 0 to 1": partial(_sigmoid_focal, [0.0, 0.3, 0.5, 1.0]),
    "sigmoid_focal_loss: gamma 2": partial(_sigmoid_focal, [2.0]),
    "sigmoid_focal_loss: gamma 3 to 20": partial(_sigmoid_focal, [3.0, 5.0, 17.5, 20.0]),
    "sigmoid_focal_loss: weights of float64": partial(
        _wide_weights, partial(_sigmoid_focal, [0.3, 2.0])
    ),
}


def measure(family, dtype, others=()):
    """Return the largest error of each result over a family, and the arguments it occurred at.

    Processes of `others` compute the same cases: at levels that have the same bits these are
    compared, at the others the errors of each `SHARE`-th case are measured.
    """
    worst, rows = {}, {}
    here = levels.SIMD["level"]
    for number, case in enumerate(FAMILIES[family](dtype, np.random.default_rng(7))):
        results, right = case.compute(), case.exact()
        all_errors = {here: case.errors(results, right)}
        for other in others:
            if levels.have_the_same_bits(other.name, here):
                theirs, _ = other.compute(case)
                ours = tuple(map(np.asarray, results))
                assert_same_bits(tuple(theirs), ours, f"{case} at {other.name}")
            elif number % SHARE == 0:
                theirs, _ = other.compute(case)
                all_errors[other.name] = case.errors(theirs, right)
        for level, errors in all_errors.items():
            for name, error in errors.items():
                assert error <= case.bound(name), f"{name}: {error:.3g} ULP at {case}, {level}"
        for name, error in all_errors[here].items():
            if error >= worst.get(name, 0.0):
                worst[name], rows[name] = error, case
    return worst, rows


@pytest.fixture(scope="module")
def other_levels():
    """Start processes of this machine's other levels, unless the level was set from outside."""
    names = [] if "XENTRS_SIMD" in os.environ else levels.SIMD["available"][1:]
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(levels.Level(name)) for name in names]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_largest_error(family, dtype, other_levels, record_property):
    worst, rows = measure(family, dtype, other_levels)
    for name, error in worst.items():
        record_property(f"{name}_ulp", round(error, 3))
        assert error <= rows[name].bound(name)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_every_small_float_and_every_exponent(dtype):
    """The gradient of logits [x, 0], in effect an exponential, for x over its whole range."""
    limit = -np.log(np.finfo(dtype).tiny.astype(float))
    steps = np.linspace(-limit, limit, 200_001).astype(dtype)
    for column in (0, 1):
        x = np.zeros((len(steps), 2), dtype)
        x[:, column] = steps
        for target in (0, 1):
            rows = _hard(x, None, np.full(len(x), target))
            assert max(rows.errors().values()) <= 4


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_float32_offsets_are_exact(dtype, rng):
    """An offset of all logits that rounds none of them changes results by a few ULP at most."""
    x = rng.integers(-20, 20, (300, 12)).astype(dtype)
    target = rng.integers(0, 12, 300)
    plain = xentrs.cross_entropy_with_grad(x, target, reduction="none")
    for offset in (64, -4096, 2.0**20, -(2.0**23)):
        moved = xentrs.cross_entropy_with_grad(x + dtype(offset), target, reduction="none")
        for a, b in zip(moved, plain, strict=True):
            assert ulp_error(a, b).max() <= 8


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_reduced_loss_is_accumulated_in_float64(dtype, rng):
    """A million small losses after a large one: float32 sums would lose them all."""
    x = np.zeros((300_000, 2), dtype)
    x[:, 0] = 5
    x[0, 0] = -1e6
    target = np.zeros(len(x), int)
    got = xentrs.cross_entropy(x, target, reduction="sum")
    exact = 1e6 + (len(x) - 1) * np.log1p(np.exp(-5.0))
    assert got == pytest.approx(exact, rel=1e-9, abs=0)


# ------------------------------------------------------------- the reference, against mpmath


def _agree(values, exact, bound=0.01):
    """Assert that long doubles are close to mpmath numbers, in ULP of float64."""
    exact = reference.from_mpmath(exact)
    good = abs(exact) >= np.finfo(np.float64).tiny
    error = abs(values - exact)[good] / np.spacing(abs(exact[good]).astype(float))
    assert error.max(initial=0) <= bound


@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0, 500.0])
@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_reference_softmax_is_exact(spread, offset, rng):
    for classes in (2, 5, 40):
        x = rng.normal(size=classes) * spread + offset
        for y in {0, int(x.argmax()), int(x.argmin())}:
            got = reference.cross_entropy(x, np.array(y), reduction="none")
            loss, grad = reference.exact_cross_entropy_row(x, np.eye(classes)[y])
            _agree(got.loss[None], [loss])
            _agree(got.grad, grad)
        q = rng.random(classes)
        got = reference.cross_entropy(x, q, reduction="none")
        loss, grad = reference.exact_cross_entropy_row(x, q)
        _agree(got.loss[None], [loss])
        grad = reference.from_mpmath(grad)
        assert np.max(abs(got.grad - grad) / got.grad_terms) < 1e-18


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 7.5])
@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0, 500.0])
def test_reference_focal_is_exact(spread, gamma, rng):
    for classes in (2, 5, 40):
        x = rng.normal(size=classes) * spread
        for y in {0, int(x.argmax()), int(x.argmin())}:
            got = reference.focal_loss(x, np.array(y), gamma=gamma, reduction="none")
            loss, grad, hess = reference.exact_focal_row(x, y, gamma)
            _agree(got.loss[None], [loss])
            _agree(got.grad, grad)
            hess = reference.from_mpmath(hess)
            good = got.hess_terms >= np.finfo(np.float64).tiny
            assert np.max((abs(got.hess - hess) / got.hess_terms)[good], initial=0) < 1e-17


@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0, 500.0])
def test_reference_generalized_and_poly_are_exact(spread, rng):
    for classes, option in itertools.product((2, 5, 40), (0.05, 0.7, 1.0, -1.0, 30.0)):
        x = rng.normal(size=classes) * spread
        for y in {0, int(x.argmax()), int(x.argmin())}:
            value = mpmath.mpf(option)
            got = reference.poly_loss(x, np.array(y), epsilon=option, reduction="none")
            loss, grad = reference.exact_function_of_class(
                x, y, lambda p, e=value: -mpmath.log(p) + e * (1 - p), lambda p, e=value: 1 + e * p
            )
            for exact, actual, terms in (
                ([loss], got.loss[None], got.loss_terms),
                (grad, got.grad, got.grad_terms),
            ):
                error = abs(actual - reference.from_mpmath(exact))
                assert np.all(error <= 1e-18 * terms + 1e-300)
            if option < 0 or option > 1:
                continue
            got = reference.generalized_cross_entropy(x, np.array(y), q=option, reduction="none")
            loss, grad = reference.exact_function_of_class(
                x, y, lambda p, q=value: (1 - p**q) / q, lambda p, q=value: p**q
            )
            _agree(got.loss[None], [loss])
            # An error of 2^-64 of l is one of q l times as much.
            _agree(got.grad, grad, bound=0.01 + option * spread / 100)


@pytest.mark.parametrize("z", [1e-4, 2.5])
@pytest.mark.parametrize("offset", [0.0, -3.0, 1e4])
def test_reference_z_loss_is_exact(offset, z, rng):
    for classes in (1, 2, 40):
        x = rng.normal(size=classes) * 3 + offset
        y = int(rng.integers(classes))
        got = reference.cross_entropy(x, np.array(y), z_loss=z, reduction="none")
        loss, grad = reference.exact_cross_entropy_row(x, np.eye(classes)[y], z)
        _agree(got.loss[None], [loss])
        error = abs(got.grad - reference.from_mpmath(grad))
        assert np.max(error / got.grad_terms) < 1e-17


@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0, 500.0])
def test_reference_entropy_is_exact(spread, rng):
    for classes in (1, 2, 5, 40):
        x = rng.normal(size=classes) * spread + 7
        got = reference.softmax_entropy(x, reduction="none")
        loss, grad = reference.exact_entropy_row(x)
        _agree(got.loss[None], [loss])
        error = abs(got.grad - reference.from_mpmath(grad))[got.grad_terms > 1e-300]
        terms = got.grad_terms[got.grad_terms > 1e-300]
        assert np.max(error / terms, initial=0) < 1e-17


def test_reference_binary_is_exact(rng):
    x = np.concatenate([rng.normal(size=30), rng.uniform(-700, 700, 60), [1e-20, -1e-20]])
    for t in (0.0, 1.0):
        got = reference.binary_cross_entropy_with_logits(x, np.full(x.shape, t), reduction="none")
        exact = [reference.exact_binary(v, t) for v in x]
        _agree(got.loss, [e[0] for e in exact])
        _agree(got.grad, [e[1] for e in exact])
    got = reference.binary_cross_entropy_with_logits(
        x, np.full(x.shape, 0.3), pos_weight=2.5, reduction="none"
    )
    exact = [reference.exact_binary(v, 0.3, 2.5) for v in x]
    _agree(got.loss, [e[0] for e in exact])
    error = abs(got.grad - reference.from_mpmath([e[1] for e in exact])) / got.grad_terms
    assert error.max() < 1e-18


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 7.5])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_reference_sigmoid_focal_is_exact(gamma, alpha, rng):
    x = np.concatenate([rng.normal(size=30), rng.uniform(-60, 60, 60), [1e-20, -1e-20]])
    for t in (0.0, 1.0, 0.3):
        target = np.full(x.shape, t)
        options = {"gamma": gamma, "alpha": alpha, "reduction": "none"}
        got = reference.sigmoid_focal_loss(x, target, **options)
        exact = [reference.exact_sigmoid_focal(v, t, gamma, alpha) for v in x]
        _agree(got.loss, [e[0] for e in exact])
        error = abs(got.grad - reference.from_mpmath([e[1] for e in exact]))
        assert (
            np.max(error[got.grad_terms > 0] / got.grad_terms[got.grad_terms > 0], initial=0)
            < 1e-17
        )


def test_reference_binary_of_probabilities_is_exact(rng):
    p = np.concatenate([rng.random(30), 1 - rng.random(30) * 1e-10, 10 ** rng.uniform(-300, 0, 30)])
    for t in (0.0, 1.0, 0.3):
        target = np.full(p.shape, t)
        got = reference.binary_cross_entropy(p, target, pos_weight=2.5, reduction="none")
        exact = [reference.exact_binary_of_probability(v, t, 2.5) for v in p]
        _agree(got.loss, [e[0] for e in exact])
        grad, terms = (reference.from_mpmath([e[i] for e in exact]) for i in (1, 2))
        assert np.max(abs(got.grad - grad) / terms) < 1e-18
        np.testing.assert_allclose(got.grad_terms.astype(float), terms.astype(float))


def test_reference_log_is_exact(rng):
    p = np.concatenate([rng.random(30), 1 - rng.random(30) * 1e-10, 10 ** rng.uniform(-300, 0, 30)])
    target = np.zeros(len(p), int)
    got = reference.log_loss(p[:, None], target, reduction="none")
    exact = [reference.exact_log(v) for v in p]
    _agree(got.loss, [e[0] for e in exact])
    _agree(got.grad[:, 0], [e[1] for e in exact])


def test_ulp_error_counts_units_in_the_last_place():
    one = np.float32(1)
    above = np.nextafter(one, np.float32(2))
    assert ulp_error(above, 1.0) == 1
    assert ulp_error(one, 1.0) == 0
    assert ulp_error(np.float64(1) + 3 * 2.0**-52, 1.0) == 3
    assert ulp_error(np.float32(np.inf), np.inf) == 0
    assert ulp_error(np.float32(np.nan), np.nan) == 0
    assert ulp_error(np.float32(np.nan), 1.0) == np.inf
    assert ulp_error(np.float32(1), np.nan) == np.inf
    assert ulp_error(np.float32(1), np.inf) == np.inf
    assert ulp_error(np.float32(np.inf), 1.0) == np.inf
    assert ulp_error(np.float32(np.inf), -np.inf) == np.inf


# ------------------------------------------------------------------------- the table, with peers


def _torch_results(case):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    x = torch.tensor(case.scores, requires_grad=True)
    options = {k: torch.tensor(v) if k == "weight" else v for k, v in case.options.items()}
    loss = torch.nn.functional.cross_entropy(
        x, torch.tensor(case.target), reduction="none", **options
    )
    loss.sum().backward()
    return loss.detach().numpy(), x.grad.numpy()


def _optax_results(case):
    jax = pytest.importorskip("jax", exc_type=ImportError)
    optax = pytest.importorskip("optax", exc_type=ImportError)
    if case.options:
        return None
    jax.config.update("jax_enable_x64", True)

    def total(x):
        each = optax.softmax_cross_entropy_with_integer_labels(x, case.target)
        return each.sum(), each

    grad, each = jax.grad(total, has_aux=True)(jax.numpy.asarray(case.scores))
    return np.asarray(each), np.asarray(grad)


def _peer_errors(results, family, dtype):
    worst = dict.fromkeys(("loss", "grad"), 0.0)
    for case in FAMILIES[family](dtype, np.random.default_rng(7)):
        if {"sample_weight", "base"} & set(case.options):
            return None
        got = results(case)
        if got is None:
            return None
        with np.errstate(all="ignore"):
            for name, error in _unchecked_errors(case, got).items():
                worst[name] = max(worst[name], error)
    return worst


def _unchecked_errors(case, results):
    right = reference.cross_entropy(case.scores, case.target, reduction="none", **case.options)
    pairs = {"loss": (right.loss, right.loss), "grad": (right.grad, right.grad_terms)}
    errors = {}
    for name, actual in zip(pairs, results, strict=False):
        value, size = pairs[name]
        good = significant(size, case.dtype)
        errors[name] = float(ulp_error(actual, value, size)[good].max(initial=0))
    return errors


def main():
    """Print the table of PyTorch and optax in docs/numerics.md."""
    level = xentrs.show_config(mode="dicts")["simd"]["level"]
    peers = {}
    for name, results in (("PyTorch", _torch_results), ("optax", _optax_results)):
        try:
            _peer_errors(results, "cross_entropy: constant logits", np.float32)
            peers[name] = results
        except pytest.skip.Exception as reason:
            print(f"{name}: skipped, {reason}")
    print(f"Largest errors in ULP, at level {level} (loss / gradient / Hessian):\n")
    print(
        "| inputs | dtype | xentrs |", *(f" {name} (loss / gradient) |" for name in peers), sep=""
    )
    print("|---|---|---|" + "---|" * len(peers))
    for family in FAMILIES:
        for dtype in DTYPES:
            worst, _ = measure(family, dtype)
            cells = [" / ".join(f"{error:.2f}" for error in worst.values())]
            for results in peers.values():
                softmax = family.startswith("cross_entropy")
                errors = _peer_errors(results, family, dtype) if softmax else None
                cells.append(" / ".join(f"{e:.3g}" for e in errors.values()) if errors else "")
            print(f"| {family} | {np.dtype(dtype)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
