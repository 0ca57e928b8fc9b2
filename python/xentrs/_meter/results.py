"""The sums of a meter become what `CrossEntropyMeter.compute` returns."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xentrs._exact import POINT, ExactSums, rounded
from xentrs._meter.histogram import Distribution
from xentrs._meter.sums import NAMES, ROW, Sums

_Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy by bins of confidence: a reliability diagram.

    Attributes
    ----------
    edges : ndarray of float64, shape (bins + 1,)
        The edges of the bins, from 0 to 1. A bin has its right edge, and not its left one.
    count : ndarray of int64, shape (bins,)
        Samples in each bin.
    accuracy : ndarray of float64, shape (bins,)
        Share of the samples whose likeliest class is the target; NaN in an empty bin.
    confidence : ndarray of float64, shape (bins,)
        Mean probability of the likeliest class; NaN in an empty bin.
    """

    edges: NDArray[np.float64]
    count: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    confidence: NDArray[np.float64]

    def __eq__(self, other: object) -> bool:
        return _same(self, other)


@dataclass(frozen=True)
class PerClass:
    """Statistics by the class of the target.

    Attributes
    ----------
    loss : ndarray of float64, shape (C,)
        Mean loss of the samples of each class; NaN without any.
    count : ndarray of int64, shape (C,)
        Samples of each class.
    accuracy : ndarray of float64, shape (C,)
        Share of the samples of each class whose likeliest class it is: the recall.
    """

    loss: NDArray[np.float64]
    count: NDArray[np.int64]
    accuracy: NDArray[np.float64]

    def __eq__(self, other: object) -> bool:
        return _same(self, other)


class _Kept:
    """What the methods of a result need. `dataclasses.asdict` gives none of it."""

    _total: float
    _losses: Distribution
    _divergences: Distribution


@dataclass(frozen=True)
class MeterResult(_Kept):
    """What `CrossEntropyMeter.compute` returns.

    All losses are in nats. Means are weighted by the weights of the samples. What no sample tells
    is NaN.

    Attributes
    ----------
    loss : float
        Mean loss.
    stderr : float
        Its standard error: by groups where they were given.
    bits : float
        Mean loss in bits.
    perplexity : float
        exp(`loss`).
    count : int
        Samples that count.
    accuracy : float
        Share of the samples whose largest logit, the first of several, is the target's.
    top_k : dict of int to float
        For each k the share of the samples of which fewer than k logits exceed the target's.
    brier : float
        Mean Brier score: the squared distance of probabilities and target, summed over classes.
    entropy : float
        Mean entropy of the predicted probabilities.
    calibration_error : float
        Expected calibration error: mean distance of accuracy and confidence over the bins of
        `reliability`, weighted by the samples in them.
    reliability : Reliability
        Confidence and accuracy by bins of confidence.
    prior_loss : float
        Loss of the best constant prediction: the entropy of the frequencies of the classes. NaN
        without ``per_class=True``.
    per_class : PerClass or None
        Statistics by the class of the target. None without ``per_class=True``.
    kl : float
        Mean Kullback-Leibler divergence KL(reference, model).
    same_top : float
        Share of the samples of which model and reference have the same likeliest class.
    delta_loss : float
        Mean loss of the model less that of the reference, over the samples with a reference.
    delta_stderr : float
        The standard error of `delta_loss`: by groups where they were given.
    """

    loss: float
    stderr: float
    bits: float
    perplexity: float
    count: int
    accuracy: float
    top_k: dict[int, float]
    brier: float
    entropy: float
    calibration_error: float
    reliability: Reliability
    prior_loss: float
    per_class: PerClass | None
    kl: float
    same_top: float
    delta_loss: float
    delta_stderr: float

    def __eq__(self, other: object) -> bool:
        return _same(self, other)

    def bits_per_byte(self, n_bytes: float) -> float:
        """Return the total loss in bits, over a number of bytes.

        Parameters
        ----------
        n_bytes : float
            Bytes of the text that the samples' targets are the tokens of. Positive.

        Returns
        -------
        float
            ``loss * (sum of the weights) / log(2) / n_bytes``.

        Raises
        ------
        TypeError
            If `n_bytes` is not a number.
        ValueError
            If `n_bytes` is not positive and finite.
        """
        try:
            n = float(n_bytes)
        except (TypeError, ValueError):
            raise TypeError(f"n_bytes must be a number, not {type(n_bytes).__name__}") from None
        if not 0.0 < n < math.inf:
            raise ValueError(f"n_bytes is {n}, but must be positive and finite")
        return self._total / math.log(2.0) / n

    @overload
    def quantile(self, q: float) -> float: ...
    @overload
    def quantile(self, q: ArrayLike) -> NDArray[np.float64]: ...
    def quantile(self, q: Any) -> float | NDArray[np.float64]:
        """Return quantiles of the losses.

        Parameters
        ----------
        q : float or array_like of float
            Probabilities in [0, 1]: 0.5 for the median.

        Returns
        -------
        float or ndarray
            The least loss up to which at least a share `q` of the weight is, within a relative
            error of 1/128. Losses below 1e-38 count as 0. NaN if a loss is NaN, or there is none.

        Raises
        ------
        ValueError
            If `q` is outside [0, 1].
        """
        return self._losses.quantile(q)

    @overload
    def kl_quantile(self, q: float) -> float: ...
    @overload
    def kl_quantile(self, q: ArrayLike) -> NDArray[np.float64]: ...
    def kl_quantile(self, q: Any) -> float | NDArray[np.float64]:
        """Return quantiles of the divergences KL(reference, model), as `quantile` does.

        Parameters
        ----------
        q : float or array_like of float
            Probabilities in [0, 1].

        Returns
        -------
        float or ndarray
            The quantiles, within a relative error of 1/128. NaN without reference logits.

        Raises
        ------
        ValueError
            If `q` is outside [0, 1].
        """
        return self._divergences.quantile(q)


def compute(sums: Sums) -> MeterResult:
    """Return the statistics of all samples so far."""
    exact = {name: sums.table.exact(row) for name, row in ROW.items()}
    number = _mean(exact["loss"], exact["weight"])
    counts = sums.counts
    reliability, calibration_error = _reliability(sums)
    prior_loss, per_class = _class_statistics(sums)
    weight = exact["logits:weight"]
    reference_weight = exact["reference:weight"]
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(np.float64(number)))
    result = MeterResult(
        loss=number,
        stderr=_standard_error(
            exact["loss"],
            exact["weight"],
            counts["single"],
            (exact["weight^2"], exact["weight*loss"], exact["loss^2"]),
            sums.group_sums,
            np.ones(len(sums.group_ids), np.bool_),
        ),
        bits=number / math.log(2.0),
        perplexity=perplexity,
        count=counts["samples"],
        accuracy=_mean(exact["accuracy"], weight),
        top_k={
            k: _mean(sums.table.exact(len(NAMES) + i), weight)
            for i, k in enumerate(sums.options.top_k)
        },
        brier=_mean(exact["brier"], weight),
        entropy=_mean(exact["entropy"], weight),
        calibration_error=calibration_error,
        reliability=reliability,
        prior_loss=prior_loss,
        per_class=per_class,
        kl=_mean(exact["kl"], reference_weight),
        same_top=_mean(exact["same_top"], reference_weight),
        delta_loss=_mean(exact["difference"], reference_weight),
        delta_stderr=_standard_error(
            exact["difference"],
            reference_weight,
            counts["reference_single"],
            (
                exact["reference:weight^2"],
                exact["weight*difference"],
                exact["difference^2"],
            ),
            sums.group_references,
            sums.group_reference_counts > 0,
        ),
    )
    vars(result).update(
        _total=rounded(exact["loss"]) if counts["samples"] else math.nan,
        _losses=sums.losses.distribution(),
        _divergences=sums.divergences.distribution(),
    )
    return result


def _reliability(sums: Sums) -> tuple[Reliability, float]:
    """Return the bins of confidence, and the calibration error."""
    accuracy, confidence = np.full((2, sums.options.bins), np.nan)
    error: Fraction | float = Fraction(0)
    for i in range(sums.options.bins + 1):
        if not sums.bin_counts[i]:
            continue
        weight, hits, mean = (sums.bin_sums.exact(3 * i + j) for j in range(3))
        gap = _minus(hits, mean)
        error = rounded(error) + abs(gap) if isinstance(gap, float) else error + abs(gap)
        if i < sums.options.bins:
            accuracy[i], confidence[i] = _mean(hits, weight), _mean(mean, weight)
    weight = sums.table.exact(ROW["logits:weight"])
    reliability = Reliability(sums.edges.copy(), sums.bin_counts[:-1].copy(), accuracy, confidence)
    return reliability, _mean(error, weight)


def _class_statistics(sums: Sums) -> tuple[float, PerClass | None]:
    """Return the loss of the best constant prediction, and the statistics of each class."""
    if not sums.options.per_class:
        return math.nan, None
    weights, losses, hits = sums.class_sums
    loss, accuracy = np.full((2, sums.class_counts.size), np.nan)
    used = np.flatnonzero(sums.class_counts).tolist()
    of_class = {c: weights.exact(c) for c in used}
    for c, w in of_class.items():
        loss[c], accuracy[c] = _mean(losses.exact(c), w), _mean(hits.exact(c), w)
    total = sum(of_class.values(), Fraction(0))
    shares = [_mean(w, total) for w in of_class.values()]
    prior = math.fsum(-p * math.log(p) for p in shares if p > 0.0)
    result = PerClass(loss, sums.class_counts.copy(), accuracy)
    return prior if total else math.nan, result


def _standard_error(
    total: Fraction | float,
    weight: Fraction | float,
    single: int,
    moments: tuple[Fraction | float, Fraction | float, Fraction | float],
    groups: list[ExactSums],
    kept: _Array,
) -> float:
    """Return sqrt(G / (G - 1) sum_g (sum_i w_i (l_i - mean))^2) / sum w.

    The sum over samples without a group, of which each is one of its own, is exact.
    """
    number = single + int(np.count_nonzero(kept))
    if number < 2 or not weight:
        return math.nan
    weight2, weight_loss, loss2 = moments
    if not (
        isinstance(total, Fraction)
        and isinstance(weight, Fraction)
        and isinstance(weight2, Fraction)
        and isinstance(weight_loss, Fraction)
        and isinstance(loss2, Fraction)
    ):
        return math.nan
    mean = total / weight
    squares = loss2 - 2 * mean * weight_loss + mean * mean * weight2
    numerator, denominator = mean.numerator, mean.denominator
    weights, losses = (sums.numerators() for sums in groups)
    unit = Fraction(1, (1 << POINT) * denominator)
    whole = 0
    for w, wx, has in zip(weights, losses, kept.tolist(), strict=True):
        if has:
            whole += (wx * denominator - w * numerator) ** 2
    squares += whole * unit * unit
    variance = squares * number / (number - 1) / (weight * weight)
    return _root(variance)


def _root(x: Fraction) -> float:
    """Return the square root of a fraction that may be beyond the range of float64."""
    if not x:
        return 0.0
    shift = (x.numerator.bit_length() - x.denominator.bit_length()) // 2
    scaled = x / Fraction(4) ** shift
    return math.ldexp(math.sqrt(scaled), shift)


def _mean(total: Fraction | float, weight: Fraction | float) -> float:
    """Return a quotient of two sums, each rounded once; over 0 it is infinite or NaN."""
    x, w = rounded(total), rounded(weight)
    if isinstance(total, Fraction) and isinstance(weight, Fraction) and math.inf in (abs(x), w):
        return rounded(total / weight) if weight else x
    return x / w if w else x * math.inf


def _minus(a: Fraction | float, b: Fraction | float) -> Fraction | float:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a - b
    return rounded(a) - rounded(b)


def _same(a: Any, b: Any) -> bool:
    """Whether two dataclasses have the same numbers, NaN being the same as NaN."""
    if type(a) is not type(b):
        return False

    def same(x: Any, y: Any) -> bool:
        if isinstance(x, np.ndarray):
            return np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(same(x[k], y[k]) for k in x)
        return bool(x == y) or (isinstance(x, float) and math.isnan(x) and math.isnan(y))

    mine, others = vars(a), vars(b)
    return mine.keys() == others.keys() and all(same(x, others[name]) for name, x in mine.items())
