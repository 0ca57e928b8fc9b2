"""Statistics of a classifier's predictions, summed over batches without rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, NamedTuple, SupportsIndex, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xentrs import _arrays
from xentrs._exact import ExactSums
from xentrs._losses import cross_entropy as _cross_entropy  # noqa: F401  # fills PYTHON_FUNCTIONS
from xentrs._losses._types import Ignored
from xentrs._partial import _checked
from xentrs._xentrs import (
    STATISTICS,
    compared_statistics,
    sample_divergences,
    sample_statistics,
)

_Array: TypeAlias = NDArray[Any]

# Version of what `to_state` returns.
_FORMAT = 1

# Samples whose statistics are in memory at a time.
_BLOCK = 1 << 14

# Up to so many classes a model and a reference take a kernel each: `MOST_CLASSES` of the crate.
_FEW = 256

# Bytes of logits that are read several times while they are in the caches, and that are copied.
_CACHE_BYTES = 3 << 19
_COPY_BYTES = 1 << 22

# The histogram of losses: one bin for what counts as 0, 2^_BITS bins of equal width in each octave
# from 2^_LOWEST up to where float32 ends, and one for what is above. A bin is the leading bits of
# its numbers.
_BITS = 6
_LOWEST = -127
_LEAST = 1e-38
_BINS = (128 - _LOWEST) * 2**_BITS + 2
_FIRST_BIN = ((1023 + _LOWEST) << _BITS) - 1

# Rows of the table of sums.
_NAMES = (
    # Over all samples: of the weights, and of losses times weights.
    "weight",
    "loss",
    # Over samples without a group: of the weights squared, of weighted losses times weights, of
    # weighted losses squared.
    "weight^2",
    "weight*loss",
    "loss^2",
    # Over samples with logits.
    "logits:weight",
    "accuracy",
    "brier",
    "entropy",
    # Over samples with reference logits. A difference is the model's loss less the reference's.
    "reference:weight",
    "difference",
    "kl",
    "same_top",
    # The same, without a group.
    "reference:weight^2",
    "weight*difference",
    "difference^2",
)
_ROW = {name: i for i, name in enumerate(_NAMES)}
_COUNTS = ("samples", "single", "logits", "reference", "reference_single")


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


@dataclass(frozen=True)
class MeterResult:
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
    _total: float = field(repr=False)
    _losses: _Distribution = field(repr=False)
    _divergences: _Distribution = field(repr=False)

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


class _Distribution:
    """The weights of a histogram's bins that are not empty, added up."""

    __slots__ = ("cumulative", "has_nan", "values")

    def __init__(
        self, values: NDArray[np.float64], cumulative: NDArray[np.float64], has_nan: bool
    ) -> None:
        self.values, self.cumulative, self.has_nan = values, cumulative, has_nan

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Distribution) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    def quantile(self, q: Any) -> float | NDArray[np.float64]:
        wanted = np.asarray(_arrays._real_array("q", q), np.float64)
        outside = ~((wanted >= 0.0) & (wanted <= 1.0))
        if outside.any():
            raise ValueError(f"q is {wanted[outside].flat[0]}, but must be in [0, 1]")
        if self.has_nan or not self.values.size:
            found = np.full(wanted.shape, np.nan)
        else:
            found = self.values[np.searchsorted(self.cumulative, wanted)]
        return found if wanted.ndim else float(found)


class _Batch(NamedTuple):
    """One number a sample, of samples that all count."""

    weight: _Array | None  # the weight in means; 1 without
    factor: _Array | None  # what multiplies `value` to the weighted loss
    value: _Array
    loss: _Array  # the loss without any weight, where the weight is not 0
    group: _Array | None  # rows of the groups' sums
    target: _Array | None = None  # the true class, and all that follows, where there are logits
    top: _Array | None = None
    above: _Array | None = None  # logits that are greater than the target's
    confidence: _Array | None = None
    brier: _Array | None = None
    entropy: _Array | None = None
    kl: _Array | None = None  # and what follows, where there are reference logits
    reference_value: _Array | None = None
    reference_top: _Array | None = None


class CrossEntropyMeter:
    r"""Statistics of predictions over any number of batches, each logit read once.

    `update` takes a batch of logits and targets, `compute` returns the statistics of all batches
    so far: mean loss and its standard error, perplexity, accuracy, calibration, quantiles, and with
    logits of a reference model how far the two are apart. `merge` adds the samples of another
    meter. The memory that a meter takes does not grow with the samples.

    All sums are exact. The statistics do not depend, to the last bit, on the order of the samples,
    on how they are cut into batches, or on how meters are merged.

    Parameters
    ----------
    axis : int, default -1
        The class axis of the logits.
    weight : array_like of shape (C,), optional
        Weight of each class. It multiplies the weight of a sample, as in `cross_entropy`.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing; None for no such index.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: for the loss the target becomes (1 - e) times itself plus e / C in
        every class.
    top_k : int or iterable of ints, default (1, 5)
        For which k the share of the samples is counted whose target is among the k largest logits.
    bins : int, default 15
        Number of bins of equal width for the calibration error.
    per_class : bool, default False
        Whether to keep statistics of each class. The memory then grows with the classes.

    Raises
    ------
    TypeError
        If an argument has a type other than above.
    ValueError
        If it has a value other than above.

    See Also
    --------
    cross_entropy : the loss of one batch.
    PartialCrossEntropy : the loss of classes that lie in slices.

    Notes
    -----
    A sample has the weight that `update` is given for it, times that of its class. It counts unless
    it is ignored or has a weight of 0. All means are weighted; `count` is not.

    With probabilities as target, the class that accuracy, `top_k` and the statistics by class refer
    to is that of the largest probability, the first of several.

    The loss of a sample is that of `cross_entropy`, in float64 before it is rounded to the logits'
    type. Losses, and products of losses and weights, are added in fixed-point numbers of as many
    digits as it takes. Each mean is the sum, rounded once, over the sum of the weights, rounded
    once. The standard error is computed from exact sums of squares.

    The kernels are described in ``src/softmax/statistics.rs`` and ``src/losses/compared.rs`` of the
    source, the sums in ``src/exact.rs``.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> meter = xentrs.CrossEntropyMeter(top_k=(1, 2))
    >>> batches = [
    ...     (np.array([[2.0, 0.5, -1.0], [0.0, 3.0, 0.2]]), np.array([0, 1])),
    ...     (np.array([[0.5, 0.1, 0.4]]), np.array([2])),
    ... ]
    >>> for logits, target in batches:
    ...     _ = meter.update(logits, target)
    >>> result = meter.compute()
    >>> result.count
    3
    >>> round(result.loss, 6)
    0.46404
    >>> round(result.perplexity, 6)
    1.590486
    >>> round(result.top_k[1], 6), result.top_k[2]
    (0.666667, 1.0)

    How far is another model from this one?

    >>> other = xentrs.CrossEntropyMeter(top_k=(1, 2))
    >>> for logits, target in batches:
    ...     _ = other.update(logits * 0.9, target, reference_logits=logits)
    >>> round(other.compute().kl, 6)
    0.002449
    """

    __module__ = "xentrs"

    def __init__(
        self,
        *,
        axis: SupportsIndex = -1,
        weight: ArrayLike | None = None,
        ignore_index: Ignored = -100,
        label_smoothing: float = 0.0,
        top_k: SupportsIndex | Iterable[SupportsIndex] = (1, 5),
        bins: SupportsIndex = 15,
        per_class: bool = False,
    ) -> None:
        options = _checked(ignore_index=ignore_index, label_smoothing=label_smoothing)
        self._axis = _arrays._integer("axis", axis, "an int")
        self._weight = None if weight is None else _class_weight(weight)
        ignored = options["ignore_index"]
        ignored = () if ignored is None else ignored if isinstance(ignored, tuple) else (ignored,)
        self._ignored: tuple[int, ...] = tuple(sorted(set(ignored)))
        self._smoothing: float = options["label_smoothing"]
        self._top_k = _ranks(top_k)
        self._bins = _arrays._integer("bins", bins, "an int")
        if self._bins < 1:
            raise ValueError(f"bins is {self._bins}, but must be at least 1")
        if not isinstance(per_class, bool | np.bool_):
            raise TypeError(f"per_class must be a bool, not {type(per_class).__name__}")
        self._per_class = bool(per_class)
        self._clear()

    def _clear(self) -> None:
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._sums = ExactSums(len(_NAMES) + len(self._top_k))
        # Weight, weight of hits, and weighted confidence; one bin more for a confidence of NaN.
        self._bin_counts = np.zeros(self._bins + 1, np.int64)
        self._bin_sums = ExactSums(3 * (self._bins + 1))
        self._losses = ExactSums(_BINS)
        self._divergences = ExactSums(_BINS)
        self._nans = np.zeros(2, np.int64)  # of losses and of divergences
        # Weight and weighted loss; with a reference weight and weighted difference.
        self._group_ids: dict[Any, int] = {}
        self._group_sums = [ExactSums(0), ExactSums(0)]
        self._group_references = [ExactSums(0), ExactSums(0)]
        self._group_reference_counts = np.zeros(0, np.int64)
        self._classes = 0 if self._weight is None else self._weight.size
        # Weight, weighted loss, and weight of hits.
        self._class_counts = np.zeros(self._classes if self._per_class else 0, np.int64)
        self._class_sums = [ExactSums(len(self._class_counts)) for _ in range(3)]

    def _empty(self) -> CrossEntropyMeter:
        """Return a meter of the same options without samples."""
        meter = object.__new__(type(self))
        for name in ("_axis", "_weight", "_ignored", "_smoothing", "_top_k", "_bins", "_per_class"):
            setattr(meter, name, getattr(self, name))
        meter._clear()
        return meter

    # Samples

    def update(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        group: ArrayLike | None = None,
        reference_logits: ArrayLike | None = None,
    ) -> CrossEntropyMeter:
        """Add a batch of samples.

        Parameters
        ----------
        logits : array_like, float16, bfloat16, float32 or float64
            The logits, of any rank from 1, with the classes on `axis`.
        target : array_like
            Class indices, of the shape of `logits` without the class axis; or probabilities, of the
            shape of `logits`.
        sample_weight : array_like, optional
            Weight of each sample, of the shape of `logits` without the class axis. Not negative.
        group : array_like of integers or strings, optional
            Which group each sample belongs to, of the same shape: for example the document. One
            group may be given for the whole batch.
        reference_logits : array_like, float16, bfloat16, float32 or float64, optional
            Logits of another model for the same samples, of the shape of `logits`.

        Returns
        -------
        CrossEntropyMeter
            This object itself.

        Raises
        ------
        TypeError
            If an argument has a type or dtype other than above.
        ValueError
            If shapes do not fit, or an argument has a value other than above.
        IndexError
            If a class index is neither a class nor ignored.
        """
        x, axis, samples = _arrays._class_values("logits", logits, self._axis)
        classes = x.shape[axis]
        if _arrays._is_pair(target, x):
            raise TypeError(
                "target is a tuple, but must be class indices or probabilities: a meter takes no "
                "pair (indices, probabilities)"
            )
        t = _arrays._class_target("logits", x, axis, target)
        soft = t.shape == x.shape
        if self._weight is not None and self._weight.size != classes:
            raise ValueError(
                f"logits of shape {x.shape} have {classes} classes on axis {axis}, but weight has "
                f"shape {self._weight.shape}"
            )
        if self._per_class and self._classes not in (0, classes):
            raise ValueError(
                f"logits of shape {x.shape} have {classes} classes on axis {axis}, but with "
                f"per_class=True all updates must have as many: there were {self._classes}"
            )
        r = None
        if reference_logits is not None:
            r = _arrays._float_array("reference_logits", reference_logits)
            if r.shape != x.shape:
                raise ValueError(
                    f"reference_logits has shape {r.shape}, but logits has shape {x.shape}"
                )
        without_classes = f"that of logits, {x.shape}, without the class axis {axis}"
        s = _sample_weights(sample_weight, samples, without_classes)
        groups = _groups(group, samples)
        self._check_groups(groups)
        if not soft:
            self._check_indices(t, classes)
        elif self._ignored and (i := self._ignored[-1]) >= 0:
            raise ValueError(
                f"ignore_index is {i}, but a target of probabilities has no class indices to "
                "ignore: leave it out, and give such samples a sample_weight of 0"
            )

        dtype = _common_dtype(x, r, t if soft else None)
        most, row = _BLOCK, classes * dtype.itemsize
        if not all(_is_read_in_place(a, dtype) for a in (x, r, t if soft else None)):
            most = max(1, min(most, _COPY_BYTES // row))
        if r is not None and (soft or classes <= _FEW):
            # One kernel after another reads a block while it is in the caches.
            most = max(1, min(most, _CACHE_BYTES // (2 * row)))
        # Several blocks are added together, so that an interrupt leaves the meter as it was.
        added = self if math.prod(samples) <= most else self._empty()
        if self._per_class:
            added._have_classes(classes)
        for index in _sample_blocks(samples, most):
            place = (*index[:axis], slice(None), *index[axis:])
            block = _arrays._plain(x[place], dtype)
            if soft:
                target_block = _arrays._plain(t[place], dtype)
            else:
                target_block = _arrays._canonical(t[index], _arrays._native(t))
            added._add(
                self._statistics(
                    block,
                    target_block,
                    None if r is None else _arrays._plain(r[place], dtype),
                    axis,
                    None if s is None else _flat(s[index]),
                    None if groups is None else groups[index].reshape(-1),
                    added,
                )
            )
        if added is not self:
            self._take(added)
        return self

    def update_losses(
        self,
        losses: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        group: ArrayLike | None = None,
    ) -> CrossEntropyMeter:
        """Add samples of which only the losses are known.

        Parameters
        ----------
        losses : array_like of float
            The loss of each sample in nats, of any shape.
        sample_weight : array_like, optional
            Weight of each sample, of the shape of `losses`. Not negative.
        group : array_like of integers or strings, optional
            Which group each sample belongs to, of the shape of `losses`, or one for all.

        Returns
        -------
        CrossEntropyMeter
            This object itself.

        Raises
        ------
        TypeError
            If an argument has a type or dtype other than above.
        ValueError
            If shapes do not fit, or an argument has a value other than above.

        Notes
        -----
        Options of the meter do not change the losses: a sample whose target is ignored must have a
        weight of 0. Statistics that need logits are those of the samples of `update`.
        """
        given = _arrays._typed(
            "losses", losses, _arrays._is_floating, "float", untyped_integers=True
        )
        samples = given.shape
        s = _sample_weights(sample_weight, samples, "that of losses")
        groups = _groups(group, samples)
        self._check_groups(groups)
        # Several blocks are added together, so that an interrupt leaves the meter as it was.
        added = self if given.size <= _BLOCK else self._empty()
        for index in _sample_blocks(samples, _BLOCK):
            value = _flat(given[index])
            weight = None if s is None else _flat(s[index])
            ids = None if groups is None else groups[index].reshape(-1)
            if weight is not None and not weight.all():
                kept = weight != 0.0
                value, weight = value[kept], weight[kept]
                ids = None if ids is None else ids[kept]
            rows = None if ids is None else added._group_rows(ids)
            added._add(_Batch(weight, weight, value, value, rows))
        if added is not self:
            self._take(added)
        return self

    def merge(self, other: CrossEntropyMeter) -> CrossEntropyMeter:
        """Add the samples of another meter.

        Parameters
        ----------
        other : CrossEntropyMeter
            A meter of the same options. It is not changed.

        Returns
        -------
        CrossEntropyMeter
            This object itself.

        Raises
        ------
        TypeError
            If `other` is of another type.
        ValueError
            If the two have different options.
        """
        if not isinstance(other, CrossEntropyMeter):
            raise TypeError(f"other must be a CrossEntropyMeter, not {type(other).__name__}")
        for name, a, b in (
            ("axis", self._axis, other._axis),
            ("ignore_index", self._ignored, other._ignored),
            ("label_smoothing", self._smoothing, other._smoothing),
            ("top_k", self._top_k, other._top_k),
            ("bins", self._bins, other._bins),
            ("per_class", self._per_class, other._per_class),
        ):
            if a != b:
                raise ValueError(f"{name} is {a} here, but {b} in other")
        v, w = self._weight, other._weight
        if (v is None) != (w is None) or (
            v is not None and w is not None and not np.array_equal(v, w)
        ):
            raise ValueError(f"weight is {v} here, but {w} in other")
        if self._per_class and self._classes and other._classes not in (0, self._classes):
            raise ValueError(
                f"the logits had {self._classes} classes here, but {other._classes} in other: with "
                "per_class=True these must agree"
            )
        if {self._group_kind(), other._group_kind()} == {int, str}:
            raise ValueError("group is integers in one of the two meters, but strings in the other")
        self._take(other)
        return self

    def __repr__(self) -> str:
        return f"<CrossEntropyMeter of {self._counts['samples']} samples>"

    # State

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Return all of the meter as arrays, which `numpy.savez` writes without pickling.

        Returns
        -------
        dict of str to ndarray
            Options and sums. Meters of the same options and samples have equal states.
        """
        state: dict[str, _Array] = {
            "format": np.array(_FORMAT),
            "axis": np.array(self._axis),
            "ignore_index": np.array([str(i) for i in self._ignored], "U"),
            "label_smoothing": np.array(self._smoothing),
            "top_k": np.array(self._top_k, np.int64),
            "bins": np.array(self._bins),
            "per_class": np.array(self._per_class),
            "counts": np.array([self._counts[name] for name in _COUNTS], np.int64),
            "nans": self._nans.copy(),
            "bin_counts": self._bin_counts.copy(),
            "classes": np.array(self._classes),
            "class_counts": self._class_counts.copy(),
        }
        if self._weight is not None:
            state["weight"] = self._weight.copy()
        _store(state, "sums", self._sums)
        _store(state, "bin_sums", self._bin_sums)
        for name, histogram in (("losses", self._losses), ("divergences", self._divergences)):
            bins = np.flatnonzero(histogram.digits.any(axis=1))
            state[f"{name}.bins"] = bins
            _store(state, name, histogram, bins)
        for i, sums in enumerate(self._class_sums):
            _store(state, f"class_sums.{i}", sums)
        ids = np.array(list(self._group_ids))
        order = np.argsort(ids, kind="stable")
        state["groups"] = ids[order] if ids.size else np.zeros(0, np.int64)
        state["group_reference_counts"] = self._group_reference_counts[order]
        for i, sums in enumerate((*self._group_sums, *self._group_references)):
            _store(state, f"group_sums.{i}", sums, order)
        return state

    @classmethod
    def from_state(cls, state: Any) -> CrossEntropyMeter:
        """Return the meter that `to_state` was called on.

        Parameters
        ----------
        state : mapping of str to ndarray
            What `to_state` returned, or the file that `numpy.load` opens of it.

        Returns
        -------
        CrossEntropyMeter
            A meter of the same options and samples.

        Raises
        ------
        ValueError
            If the state is not one that `to_state` returns.
        """
        reader = _Reader(state)
        if (version := reader.integer("format")) != _FORMAT:
            raise ValueError(f"state has format {version}, but this version reads {_FORMAT}")
        names = reader.array("ignore_index", "U", 1).tolist()
        try:
            ignored = tuple(int(i) for i in names)
        except ValueError:
            raise ValueError("state['ignore_index'] has no integers") from None
        try:
            meter = cls(
                axis=reader.integer("axis"),
                weight=reader.array("weight", "f", 1) if "weight" in reader else None,
                ignore_index=ignored,
                label_smoothing=float(reader.array("label_smoothing", "f", 0)),
                top_k=reader.array("top_k", "i", 1).tolist(),
                bins=reader.integer("bins"),
                per_class=bool(reader.array("per_class", "b", 0)),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"state is not that of a meter: {error}") from error
        counts = reader.array("counts", "i", 1, len(_COUNTS))
        meter._counts = dict(zip(_COUNTS, counts.tolist(), strict=True))
        meter._nans = reader.array("nans", "i", 1, 2)
        meter._bin_counts = reader.array("bin_counts", "i", 1, meter._bins + 1)
        meter._classes = reader.integer("classes")
        if meter._weight is not None and meter._classes != meter._weight.size:
            raise ValueError("state['classes'] is not the length of state['weight']")
        classes = meter._classes if meter._per_class else 0
        meter._class_counts = reader.array("class_counts", "i", 1, classes)
        meter._sums = reader.sums("sums", len(meter._sums))
        meter._bin_sums = reader.sums("bin_sums", len(meter._bin_sums))
        for name in ("losses", "divergences"):
            bins = reader.array(f"{name}.bins", "i", 1)
            if bins.size and not (bins[0] >= 0 and bins[-1] < _BINS and (np.diff(bins) > 0).all()):
                raise ValueError(f"state['{name}.bins'] is not ascending in [0, {_BINS})")
            stored = reader.sums(name, bins.size)
            getattr(meter, f"_{name}").merge(stored, bins)
        meter._class_sums = [reader.sums(f"class_sums.{i}", classes) for i in range(3)]
        ids = reader.array("groups", "iU", 1)
        meter._group_ids = {key: i for i, key in enumerate(ids.tolist())}
        if len(meter._group_ids) != ids.size:
            raise ValueError("state['groups'] has a group twice")
        meter._group_reference_counts = reader.array("group_reference_counts", "i", 1, ids.size)
        tables = [reader.sums(f"group_sums.{i}", ids.size) for i in range(4)]
        meter._group_sums, meter._group_references = tables[:2], tables[2:]
        return meter

    def __getstate__(self) -> dict[str, _Array]:
        return self.to_state()

    def __setstate__(self, state: dict[str, _Array]) -> None:
        self.__dict__.update(self.from_state(state).__dict__)

    # Sums

    def _group_kind(self) -> type | None:
        """Return the type of the names of groups, which all have the same."""
        for key in self._group_ids:
            return type(key)
        return None

    def _check_groups(self, groups: _Array | None) -> None:
        """Refuse groups that are not of the kind of those before."""
        if groups is None or not groups.size:
            return
        kind, known = (str if groups.dtype.kind == "U" else int), self._group_kind()
        if known not in (None, kind):
            raise TypeError(
                f"group has dtype {groups.dtype}, but in earlier updates groups were "
                f"{'strings' if known is str else 'integers'}"
            )

    def _have_classes(self, classes: int) -> None:
        """Have sums for each class."""
        self._classes = self._classes or classes
        if self._per_class and len(self._class_counts) < classes:
            self._class_counts = np.zeros(classes, np.int64)
            self._class_sums = [ExactSums(classes) for _ in range(3)]

    def _group_rows(self, ids: _Array) -> _Array:
        """Return the row of each group, new ones included."""
        ids = ids if ids.dtype.kind == "U" else ids.astype(np.int64)
        unique, inverse = np.unique(ids, return_inverse=True)
        rows = [self._group_ids.setdefault(key, len(self._group_ids)) for key in unique.tolist()]
        number = len(self._group_ids)
        for sums in (*self._group_sums, *self._group_references):
            sums.grow(number)
        counts = self._group_reference_counts
        self._group_reference_counts = np.append(counts, np.zeros(number - counts.size, np.int64))
        return np.array(rows, np.int64)[inverse]

    def _add(self, batch: _Batch) -> None:
        """Add the statistics of some samples."""
        w, value, factor = batch.weight, batch.value, batch.factor
        counts, sums = self._counts, self._sums
        number = value.size
        counts["samples"] += number
        _weigh(sums, _ROW["weight"], w, number)
        # First moments are sums of products that are rounded once. Second moments are sums of
        # products that are not rounded at all, so that the variance has no cancellation.
        weighted = _times(value, factor)
        sums.add(_ROW["loss"], weighted)
        if batch.group is None:
            counts["single"] += number
            self._add_moments(("weight^2", "weight*loss", "loss^2"), w, weighted)
        else:
            self._group_sums[0].add(batch.group, _ones(value) if w is None else w)
            self._group_sums[1].add(batch.group, weighted)
        _count(self._losses, self._nans[:1], batch.loss, w)
        if batch.top is None:
            return
        assert batch.target is not None
        assert batch.above is not None
        assert batch.confidence is not None
        assert batch.brier is not None
        assert batch.entropy is not None
        counts["logits"] += number
        known = batch.above >= 0
        hits = (batch.top == batch.target) & known
        _weigh(sums, _ROW["logits:weight"], w, number)
        _weigh(sums, _ROW["accuracy"], w, number, hits)
        for i, k in enumerate(self._top_k):
            _weigh(sums, len(_NAMES) + i, w, number, known & (batch.above < k))
        sums.add(_ROW["brier"], _times(batch.brier, w))
        sums.add(_ROW["entropy"], _times(batch.entropy, w))
        # Closed on the right; NaN comes last.
        bins = np.searchsorted(self._edges()[1:-1], batch.confidence)
        bins[np.isnan(batch.confidence)] = self._bins
        self._bin_counts += np.bincount(bins, minlength=self._bins + 1)
        _weigh_rows(self._bin_sums, 3 * bins, w)
        _weigh_rows(self._bin_sums, 3 * bins[hits] + 1, None if w is None else w[hits])
        self._bin_sums.add(3 * bins + 2, _times(batch.confidence, w))
        if self._per_class:
            self._class_counts += np.bincount(batch.target, minlength=self._class_counts.size)
            _weigh_rows(self._class_sums[0], batch.target, w)
            self._class_sums[1].add(batch.target, weighted)
            _weigh_rows(self._class_sums[2], batch.target[hits], None if w is None else w[hits])
        if batch.kl is None:
            return
        assert batch.reference_value is not None
        assert batch.reference_top is not None
        counts["reference"] += number
        _weigh(sums, _ROW["reference:weight"], w, number)
        _weigh(sums, _ROW["same_top"], w, number, batch.top == batch.reference_top)
        sums.add(_ROW["kl"], _times(batch.kl, w))
        with np.errstate(all="ignore"):
            difference = _times(value - batch.reference_value, factor)
        sums.add(_ROW["difference"], difference)
        if batch.group is None:
            counts["reference_single"] += number
            names = ("reference:weight^2", "weight*difference", "difference^2")
            self._add_moments(names, w, difference)
        else:
            self._group_references[0].add(batch.group, _ones(value) if w is None else w)
            self._group_references[1].add(batch.group, difference)
            length = self._group_reference_counts.size
            self._group_reference_counts += np.bincount(batch.group, minlength=length)
        _count(self._divergences, self._nans[1:], batch.kl, w)

    def _add_moments(self, names: tuple[str, str, str], w: _Array | None, x: _Array) -> None:
        """Add the exact sums of weights squared, of products with the weights, and of squares."""
        rows = [_ROW[name] for name in names]
        if w is None:
            self._sums.add(rows[0], np.array([float(x.size)]))
            self._sums.add(rows[1], x)
        else:
            self._sums.add(rows[0], w, w)
            self._sums.add(rows[1], x, w)
        self._sums.add(rows[2], x, x)

    def _take(self, other: CrossEntropyMeter) -> None:
        """Add all sums of another meter of the same options."""
        self._have_classes(other._classes)
        rows = np.array(
            [self._group_ids.setdefault(key, len(self._group_ids)) for key in other._group_ids],
            np.int64,
        )
        number = len(self._group_ids)
        mine, others = self._tables(), other._tables()
        for i, (sums, more) in enumerate(zip(mine, others, strict=True)):
            if i < 4:
                sums.grow(number)
            sums.merge(more, rows if i < 4 else None)
        counts = self._group_reference_counts
        counts = np.append(counts, np.zeros(number - counts.size, np.int64))
        counts[rows] += other._group_reference_counts
        self._group_reference_counts = counts
        self._counts = {name: n + other._counts[name] for name, n in self._counts.items()}
        self._nans = self._nans + other._nans
        self._bin_counts = self._bin_counts + other._bin_counts
        if other._class_counts.size:
            self._class_counts = self._class_counts + other._class_counts

    def _tables(self) -> tuple[ExactSums, ...]:
        """Return all tables of sums, those of groups first."""
        return (
            *self._group_sums,
            *self._group_references,
            self._sums,
            self._bin_sums,
            self._losses,
            self._divergences,
            *self._class_sums,
        )

    def _edges(self) -> NDArray[np.float64]:
        return np.linspace(0.0, 1.0, self._bins + 1)

    # Logits

    def _check_indices(self, t: _Array, classes: int) -> None:
        """Refuse class indices that are neither a class nor ignored."""
        at = 0
        for block in _arrays._blocks(t):
            bad = (block < 0) | (block >= classes)
            if bad.any():
                for i in self._ignored:
                    bad &= block != i
                if bad.any():
                    i = int(np.argmax(bad))
                    ignored = ", ".join(map(str, self._ignored))
                    several = "one of " if len(self._ignored) > 1 else ""
                    raise IndexError(
                        f"target{_arrays._position(at + i, t.shape)} is {block[i]}, but a class "
                        f"index must be in [0, {classes})"
                        + (f", or be {several}ignore_index ({ignored})" if ignored else "")
                    )
            at += block.size

    def _statistics(
        self,
        x: _Array,
        t: _Array,
        r: _Array | None,
        axis: int,
        s: _Array | None,
        groups: _Array | None,
        added: CrossEntropyMeter,
    ) -> _Batch:
        """Return the statistics of some samples, without those that do not count.

        The arrays are as the kernels take them. Groups become rows of the sums of `added`.
        """
        classes, soft = x.shape[axis], t.shape == x.shape
        number = x.size // classes
        weight = self._weight
        # The kernel weighs classes only where it adds several of them up.
        spread = soft or self._smoothing != 0.0
        options = (
            axis,
            weight if spread else None,
            None if soft else self._ignored,
            self._smoothing,
        )
        value, statistics = np.empty(number), np.empty((number, STATISTICS))
        more: tuple[_Array, ...] = ()
        if r is None:
            _done(sample_statistics(x, t, options, value, statistics, None))
        else:
            kl, other = np.empty(number), np.empty(number)
            reference_top = np.empty(number, np.int64)
            more = (kl, other, reference_top)
            outputs = (value, statistics, other, reference_top, kl)
            together = NotImplemented
            if not soft and classes > _FEW:
                together = compared_statistics(x, r, t, options, outputs)
            if together is NotImplemented:
                argmax = reference_top.reshape(x.shape[:axis] + x.shape[axis + 1 :])
                _done(sample_statistics(x, t, options, value, statistics, None))
                _done(sample_statistics(r, t, options, other, None, argmax))
                _done(sample_divergences(x, r, axis, kl))

        kept = np.ones(number, np.bool_) if s is None else s != 0.0
        if not soft:
            flat = t.reshape(-1)
            for i in self._ignored:
                kept &= flat != i
            if weight is not None and not spread:
                kept &= weight[np.where(kept, flat, 0)] != 0.0
        if not kept.all():
            value, statistics = value[kept], statistics[kept]
            more = tuple(a[kept] for a in more)
            s, groups = (None if a is None else a[kept] for a in (s, groups))
        top, truth, above, confidence, brier, entropy = np.ascontiguousarray(statistics.T)
        true_class = truth.astype(np.int64)
        w = factor = s
        loss = value
        if weight is not None and not soft:
            own = weight[true_class]
            w = own if s is None else s * own
            if spread:
                with np.errstate(all="ignore"):
                    loss = value / own
            else:
                factor = w
        return _Batch(
            w,
            factor,
            value,
            loss,
            None if groups is None else added._group_rows(groups),
            true_class,
            top,
            above,
            confidence,
            brier,
            entropy,
            *more,
        )

    # Results

    def compute(self) -> MeterResult:
        """Return the statistics of all samples so far.

        Returns
        -------
        MeterResult
            A frozen dataclass, which later updates do not change.
        """
        sums = {name: self._sums.exact(row) for name, row in _ROW.items()}
        number = _mean(sums["loss"], sums["weight"])
        counts = self._counts
        reliability, calibration_error = self._reliability()
        prior_loss, per_class = self._class_statistics()
        weight = sums["logits:weight"]
        reference_weight = sums["reference:weight"]
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(np.float64(number)))
        return MeterResult(
            loss=number,
            stderr=_standard_error(
                sums["loss"],
                sums["weight"],
                counts["single"],
                (sums["weight^2"], sums["weight*loss"], sums["loss^2"]),
                self._group_sums,
                np.ones(len(self._group_ids), np.bool_),
            ),
            bits=number / math.log(2.0),
            perplexity=perplexity,
            count=counts["samples"],
            accuracy=_mean(sums["accuracy"], weight),
            top_k={
                k: _mean(self._sums.exact(len(_NAMES) + i), weight)
                for i, k in enumerate(self._top_k)
            },
            brier=_mean(sums["brier"], weight),
            entropy=_mean(sums["entropy"], weight),
            calibration_error=calibration_error,
            reliability=reliability,
            prior_loss=prior_loss,
            per_class=per_class,
            kl=_mean(sums["kl"], reference_weight),
            same_top=_mean(sums["same_top"], reference_weight),
            delta_loss=_mean(sums["difference"], reference_weight),
            delta_stderr=_standard_error(
                sums["difference"],
                reference_weight,
                counts["reference_single"],
                (
                    sums["reference:weight^2"],
                    sums["weight*difference"],
                    sums["difference^2"],
                ),
                self._group_references,
                self._group_reference_counts > 0,
            ),
            _total=_float(sums["loss"]) if counts["samples"] else math.nan,
            _losses=_distribution(self._losses, bool(self._nans[0])),
            _divergences=_distribution(self._divergences, bool(self._nans[1])),
        )

    def _reliability(self) -> tuple[Reliability, float]:
        """Return the bins of confidence, and the calibration error."""
        accuracy, confidence = np.full((2, self._bins), np.nan)
        error: Fraction | float = Fraction(0)
        for i in range(self._bins + 1):
            if not self._bin_counts[i]:
                continue
            weight, hits, mean = (self._bin_sums.exact(3 * i + j) for j in range(3))
            gap = _minus(hits, mean)
            error = _float(error) + abs(gap) if isinstance(gap, float) else error + abs(gap)
            if i < self._bins:
                accuracy[i], confidence[i] = _mean(hits, weight), _mean(mean, weight)
        weight = self._sums.exact(_ROW["logits:weight"])
        reliability = Reliability(self._edges(), self._bin_counts[:-1].copy(), accuracy, confidence)
        return reliability, _mean(error, weight)

    def _class_statistics(self) -> tuple[float, PerClass | None]:
        """Return the loss of the best constant prediction, and the statistics of each class."""
        if not self._per_class:
            return math.nan, None
        weights, losses, hits = self._class_sums
        loss, accuracy = np.full((2, self._class_counts.size), np.nan)
        used = np.flatnonzero(self._class_counts).tolist()
        sums = {c: weights.exact(c) for c in used}
        for c, w in sums.items():
            loss[c], accuracy[c] = _mean(losses.exact(c), w), _mean(hits.exact(c), w)
        total = sum(sums.values(), Fraction(0))
        shares = [_mean(w, total) for w in sums.values()]
        prior = -math.fsum(p * math.log(p) for p in shares if p > 0.0)
        result = PerClass(loss, self._class_counts.copy(), accuracy)
        return prior if total else math.nan, result


class _Reader:
    """Reads a state that may be anything."""

    def __init__(self, state: Any) -> None:
        if not hasattr(state, "__getitem__") or not hasattr(state, "keys"):
            raise TypeError(f"state must be a mapping of arrays, not {type(state).__name__}")
        self._state = state
        self._names = set(state.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def array(self, name: str, kinds: str, ndim: int, length: int | None = None) -> _Array:
        """Return a copy of an array of such a kind of dtype."""
        if name not in self._names:
            raise ValueError(f"state has no {name!r}: it is not what to_state returns")
        a = np.array(self._state[name])
        if a.dtype.kind not in kinds or a.ndim != ndim or (length is not None and len(a) != length):
            raise ValueError(
                f"state[{name!r}] has dtype {a.dtype} and shape {a.shape}: it is not what "
                "to_state returns"
            )
        return a if kinds == "iU" or a.dtype.kind not in "if" else a.astype(a.dtype.kind + "8")

    def integer(self, name: str) -> int:
        return int(self.array(name, "i", 0))

    def sums(self, name: str, rows: int) -> ExactSums:
        table = ExactSums(rows)
        table.digits = self.array(f"{name}.digits", "i", 2, rows)
        table.first = self.integer(f"{name}.first")
        table.special = self.array(f"{name}.special", "i", 2, rows)
        table.check(name)
        return table


def _store(
    state: dict[str, _Array], name: str, sums: ExactSums, rows: _Array | None = None
) -> None:
    digits, first, special = sums.compact(slice(None) if rows is None else rows)
    state[f"{name}.digits"], state[f"{name}.first"] = digits, np.array(first)
    state[f"{name}.special"] = special


def _ones(like: _Array) -> NDArray[np.float64]:
    return np.ones(like.size)


def _times(x: _Array, w: _Array | None) -> _Array:
    with np.errstate(all="ignore"):
        return x if w is None else x * w


def _weigh(
    sums: ExactSums, row: int, w: _Array | None, number: int, where: _Array | None = None
) -> None:
    """Add the weights of the samples, or of some; without weights, how many these are."""
    if w is not None:
        sums.add(row, w if where is None else w[where])
    else:
        counted = number if where is None else np.count_nonzero(where)
        sums.add(row, np.array([float(counted)]))


def _weigh_rows(sums: ExactSums, rows: _Array, w: _Array | None) -> None:
    """Add the weight of each sample, or 1, to its row."""
    if w is None and 4 * rows.size > len(sums):
        counts = np.bincount(rows)
        rows = np.flatnonzero(counts)
        w = counts[rows].astype(np.float64)
    sums.add(rows, _ones(rows) if w is None else w)


def _count(histogram: ExactSums, nans: _Array, values: _Array, weights: _Array | None) -> None:
    """Add the weights of values to the bins of a histogram."""
    if weights is not None:
        values, weights = values[weights != 0.0], weights[weights != 0.0]
    nan = np.isnan(values)
    if nan.any():
        nans += np.count_nonzero(nan)
        values, weights = values[~nan], None if weights is None else weights[~nan]
    bins = (values.view(np.int64) >> (52 - _BITS)) - _FIRST_BIN
    bins = np.where(values < _LEAST, 0, np.minimum(bins, _BINS - 1))
    _weigh_rows(histogram, bins, weights)


def _bin_values() -> NDArray[np.float64]:
    """Return the value that stands for each bin: its largest relative error is the least."""
    low = ((np.arange(1, _BINS) + _FIRST_BIN) << (52 - _BITS)).view(np.float64)
    middle = 2.0 * low[:-1] * (low[1:] / (low[:-1] + low[1:]))
    return np.concatenate([[0.0], middle, [math.inf]])


def _distribution(histogram: ExactSums, has_nan: bool) -> _Distribution:
    bins = np.flatnonzero(histogram.digits.any(axis=1))
    if not bins.size:
        return _Distribution(np.zeros(0), np.zeros(0), has_nan)
    weights = histogram.numerators(bins)
    total, cumulative, so_far = sum(weights), [], 0
    for weight in weights:
        so_far += weight
        cumulative.append(so_far / total)
    return _Distribution(_bin_values()[bins], np.array(cumulative), has_nan)


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
    unit = Fraction(1, (1 << 1152) * denominator)
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
    """Return a quotient of two sums, each rounded once."""
    w = _float(weight)
    return _float(total) / w if w else math.nan


def _minus(a: Fraction | float, b: Fraction | float) -> Fraction | float:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a - b
    return _float(a) - _float(b)


def _float(x: Fraction | float) -> float:
    try:
        return float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf


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

    return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


# Arguments


def _class_weight(weight: ArrayLike) -> NDArray[np.float64]:
    w = _arrays._real_array("weight", weight)
    if w.ndim != 1:
        raise ValueError(f"weight has shape {w.shape}, but must have one number for each class")
    w = np.array(w, np.float64)
    _check_weights("weight", w)
    return w


def _check_weights(name: str, w: _Array) -> None:
    at = 0
    for block in _arrays._blocks(w):
        bad = ~((block >= 0) & (block < math.inf))
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"{name}{_arrays._position(at + i, w.shape)} is {block[i]}, but must be at least 0 "
                "and finite"
            )
        at += block.size


def _sample_weights(
    sample_weight: ArrayLike | None, samples: tuple[int, ...], what: str
) -> _Array | None:
    if sample_weight is None:
        return None
    s = _arrays._real_array("sample_weight", sample_weight)
    if s.shape != samples:
        raise ValueError(
            f"sample_weight has shape {s.shape}, but must have shape {samples}: {what}"
        )
    _check_weights("sample_weight", s)
    return s


def _groups(group: ArrayLike | None, samples: tuple[int, ...]) -> _Array | None:
    """Return the groups of samples: integers or strings, of the samples' shape."""
    if group is None:
        return None
    g = np.asarray(group)
    if g.dtype.kind == "O" and all(isinstance(key, str) for key in g.flat):
        g = g.astype(np.str_)
    if g.dtype.kind not in "iubU":
        raise TypeError(f"group has dtype {g.dtype}, but must be integers or strings")
    if g.shape not in ((), samples):
        raise ValueError(
            f"group has shape {g.shape}, but must have shape {samples}, that of the samples, or ()"
        )
    if g.dtype.kind == "u" and g.size and g.max() > np.iinfo(np.int64).max:
        raise ValueError(f"group has {g.max()}, but integers must be below 2^63")
    return np.broadcast_to(g, samples)


def _ranks(top_k: Any) -> tuple[int, ...]:
    accepted = "an int or several ints"
    if not isinstance(top_k, Iterable) or getattr(top_k, "ndim", 1) == 0:
        top_k = (top_k,)
    ranks = [_arrays._integer("top_k", k, accepted) for k in top_k]
    for k in ranks:
        if k < 1:
            raise ValueError(f"top_k has {k}, but must be at least 1")
    return tuple(sorted(set(ranks)))


def _common_dtype(x: _Array, r: _Array | None, q: _Array | None) -> np.dtype[Any]:
    """Return the dtype that logits and probabilities are computed from.

    It depends on no value, so that no result depends on how samples are cut into batches.
    """
    arrays = [x]
    arrays += [] if r is None else [r]
    arrays += [q] if q is not None and _arrays._is_floating(q.dtype) else []
    dtypes = [_arrays._native(a) for a in arrays]
    if all(dtype == dtypes[0] for dtype in dtypes):
        return dtypes[0]
    wide = any(dtype.itemsize > 4 for dtype in dtypes)
    return np.dtype(np.float64 if wide else np.float32)


def _is_read_in_place(a: _Array | None, dtype: np.dtype[Any]) -> bool:
    return a is None or (a.dtype == dtype and a.flags.aligned)


def _sample_blocks(shape: tuple[int, ...], most: int) -> Iterator[tuple[slice, ...]]:
    """Yield the indices of blocks of at most so many samples, or of one sample."""
    longer = [i for i, n in enumerate(shape) if n > 1]
    if math.prod(shape) <= most or not longer:
        if math.prod(shape):
            yield tuple(slice(0, n) for n in shape)
        return
    cut = longer[0]
    step = max(1, most // math.prod(shape[cut + 1 :]))
    for first in range(0, shape[cut], step):
        n = min(step, shape[cut] - first)
        for index in _sample_blocks((*shape[:cut], n, *shape[cut + 1 :]), most):
            moved = slice(index[cut].start + first, index[cut].stop + first)
            yield (*index[:cut], moved, *index[cut + 1 :])


def _flat(s: _Array) -> NDArray[np.float64]:
    return np.ascontiguousarray(s, np.float64).reshape(-1)


def _done(result: object) -> None:
    if result is NotImplemented:
        raise _arrays._changed()
