"""Cross-entropy of classes that lie in slices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xentrs import _arrays
from xentrs._losses import PYTHON_FUNCTIONS
from xentrs._losses import cross_entropy as _cross_entropy  # noqa: F401  # fills PYTHON_FUNCTIONS
from xentrs._losses._types import FloatArray, Ignored, Reduction
from xentrs._xentrs import (
    LOSSES,
    STATE_CLASS_WEIGHT,
    STATE_FIELDS,
    STATE_HELD,
    merge_states,
    plain_options,
    slice_grad,
    slice_states,
    state_losses,
)

_Array: TypeAlias = NDArray[Any]
_NAME = "logits_slice"


class PartialCrossEntropy:
    r"""Cross-entropy of logits whose classes lie in several slices.

    Each slice of the classes is reduced to a few numbers a sample by `of`, wherever it is: in a
    file that is read piece by piece, or in another process. `merge` puts slices together, in any
    order. When all are merged, `loss` is the cross-entropy of all classes, and `grad` the gradient
    of a slice.

    Attributes
    ----------
    slices : tuple of range
        The classes that are merged so far, in ascending order.

    See Also
    --------
    cross_entropy : the loss of logits that are in one array.

    Notes
    -----
    A slice is reduced to the sum of the exponentials of all classes but the true one, in units of a
    power of two, with its rounding error beside it; the logit of the true class is kept apart. So
    merging is exact up to the rounding of these sums, a confident sample keeps the digits of its
    loss, and ``p - 1`` is never computed. An object holds 80 bytes a sample for this, and 9 to 17
    for target and weights.

    Nothing but a `weight` of all classes tells how many classes there are. Without it, the loss is
    that of the classes up to the end of the last merged slice: to be sure that none is missing
    after it, compare ``slices[-1].stop`` with their number.

    The largest error of a loss of one sample, and of an entry of the gradient above the smallest
    normal number, is 4 ULP in every order of merging, whatever the spread and the offset of the
    logits: for class indices without smoothing. With smoothing it is 4 ULP of the larger of the two
    terms that are added or subtracted.

    The kernel is described in ``src/softmax/state.rs`` of the source.

    Examples
    --------
    Four classes in two slices:

    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.5, -1.0, 0.1], [0.0, 3.0, 0.2, 0.3]])
    >>> target = np.array([0, 3])
    >>> left = xentrs.PartialCrossEntropy.of(logits[:, :2], target, first_class=0)
    >>> right = xentrs.PartialCrossEntropy.of(logits[:, 2:], target, first_class=2)
    >>> total = right.merge(left)
    >>> round(total.loss(), 6) == round(xentrs.cross_entropy(logits, target), 6)
    True
    >>> total.grad(logits[:, 2:], 2).shape
    (2, 2)
    """

    _states: NDArray[np.float64]
    _target: NDArray[np.int64]
    _counts: NDArray[np.bool_]
    _sample_weight: NDArray[np.float64] | None
    _slices: list[tuple[range, NDArray[np.float64] | None]]
    _number: int  # of all classes, if a weight of all has told it, and else 0
    _smoothing: float
    _samples: tuple[int, ...]
    _dtype: np.dtype[Any]
    _axis: int

    def __init__(self) -> None:
        raise TypeError("PartialCrossEntropy is made by PartialCrossEntropy.of")

    @classmethod
    def of(
        cls,
        logits_slice: ArrayLike,
        target: ArrayLike,
        *,
        first_class: SupportsIndex,
        axis: SupportsIndex = -1,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: Ignored = -100,
        label_smoothing: float = 0.0,
    ) -> PartialCrossEntropy:
        """Reduce one slice of the classes.

        Parameters
        ----------
        logits_slice : array_like, float16, bfloat16, float32 or float64
            The logits of consecutive classes, of any rank from 1, with the slice's classes on
            `axis`. Contiguous rows are read where they lie, others in small blocks.
        target : array_like
            Class indices of all classes, of the shape of `logits_slice` without the class axis.
            Every slice gets the same.
        first_class : int
            The index of the slice's first class among all.
        axis : int, default -1
            The class axis of `logits_slice`.
        weight : array_like, optional
            Weight of each class: of the slice's classes, or of all.
        sample_weight : array_like, optional
            Weight of each sample, of the shape of `target`. Every slice gets the same.
        ignore_index : int, iterable of ints or None, default -100
            The class index, or several, whose samples count for nothing; None for no such index.
            Every slice gets the same.
        label_smoothing : float, default 0.0
            A number e in [0, 1]: the target becomes (1 - e) times itself plus e / C in every class,
            C being the number of all merged classes. Every slice gets the same.

        Returns
        -------
        PartialCrossEntropy
            What the slice reduces to.

        Raises
        ------
        TypeError
            If an argument has a type or dtype other than above, or the target is probabilities.
        ValueError
            If shapes do not fit, or an option has a value other than above.
        """
        options = _checked(ignore_index=ignore_index, label_smoothing=label_smoothing)
        first = _arrays._integer("first_class", first_class, "an int")
        if first < 0:
            raise ValueError(f"first_class is {first}, but must be at least 0")
        x, axis, samples = _arrays._class_values(_NAME, logits_slice, axis)
        classes = x.shape[axis]
        if first + classes >= 1 << 63:
            raise ValueError(f"first_class is {first}, but class indices must be below 2**63")
        indices = _class_indices(target, x, axis, samples, options["ignore_index"])
        s = _arrays._sample_weight(_NAME, x, axis, sample_weight)
        if s is not None:
            s = np.array(s, np.float64).reshape(-1)  # our own, also of the caller's float64

        self = object.__new__(cls)
        self._smoothing = options["label_smoothing"]
        self._samples, self._axis, self._dtype = samples, axis - x.ndim, _loss_dtype(x)
        self._target, self._sample_weight = indices, s
        self._counts = ~_arrays.is_any_of(indices, options["ignore_index"])
        if s is not None:
            self._counts &= s != 0.0
        w, self._number = (None, 0) if weight is None else _slice_weight(weight, first, classes)
        self._slices = [(range(first, first + classes), w)]

        self._states = np.empty((indices.size, STATE_FIELDS))
        within = self._within(self._slices[0][0])
        for part, rows, _ in _row_blocks(x, None, axis):
            counts, states = self._counts[part], self._states[part]
            _arrays.done(slice_states(rows, within[part], counts, w, self._smoothing > 0, states))
        return self

    @property
    def slices(self) -> tuple[range, ...]:
        """The classes that are merged so far, in ascending order."""
        return tuple(classes for classes, _ in self._slices)

    def merge(self, other: PartialCrossEntropy) -> PartialCrossEntropy:
        """Add the classes of another object, of the same samples.

        Parameters
        ----------
        other : PartialCrossEntropy
            Classes of which this object has none. It is not changed.

        Returns
        -------
        PartialCrossEntropy
            This object itself.

        Raises
        ------
        TypeError
            If `other` is of another type.
        ValueError
            If a class is in both, or the two were made with different targets or options.
        """
        if not isinstance(other, PartialCrossEntropy):
            raise TypeError(f"other must be a PartialCrossEntropy, not {type(other).__name__}")
        self._check_same(other)
        slices = sorted(self._slices + other._slices, key=lambda one: one[0].start)
        for (a, _), (b, _) in itertools.pairwise(slices):
            if b.start < a.stop:
                raise ValueError(
                    f"classes {b.start} to {min(a.stop, b.stop) - 1} are in both: the slices are "
                    f"[{a.start}, {a.stop}) and [{b.start}, {b.stop})"
                )
        _arrays.done(merge_states(self._states, other._states))
        self._slices, self._number = slices, self._number or other._number
        return self

    @overload
    def loss(
        self,
        reduction: Literal["none"],
        *,
        denominator: SupportsFloat | None = None,
        base: float | None = None,
    ) -> FloatArray: ...
    @overload
    def loss(
        self,
        reduction: Literal["mean", "sum"] = "mean",
        *,
        denominator: SupportsFloat | None = None,
        base: float | None = None,
    ) -> float: ...
    def loss(
        self,
        reduction: Reduction = "mean",
        *,
        denominator: SupportsFloat | None = None,
        base: float | None = None,
    ) -> float | FloatArray:
        """Return the cross-entropy of all merged classes.

        Parameters
        ----------
        reduction : {"mean", "sum", "none"}, default "mean"
            What to return: the mean over the samples, their sum, or the loss of each sample.
        denominator : float, optional
            What ``"mean"`` divides by, in place of the total weight of the samples. Not negative.
        base : float, optional
            Base of the logarithm: 2 gives bits. The default is e, for nats.

        Returns
        -------
        float or ndarray
            What `cross_entropy` returns of all classes in one array.

        Raises
        ------
        IndexError
            If a class index that is not ignored lies in none of the merged slices.
        ValueError
            If there are classes between the merged slices, or before the first, that are in none;
            or an option has a value other than above. Also if the last classes are in none, and
            a `weight` of all classes has told that there are such.
        """
        options = _checked(reduction=reduction, denominator=denominator, base=base)
        weights, divisor = self._scales(options)
        losses, total = self._float64_losses(weights)
        with np.errstate(all="ignore"):
            if options["reduction"] == "none":
                return (losses / divisor).astype(self._dtype).reshape(self._samples)
            if total == 0.0 and options["denominator"] is not None:
                return 0.0
            return float(np.float64(total) / divisor)

    def grad(
        self,
        logits_slice: ArrayLike,
        first_class: SupportsIndex,
        *,
        axis: SupportsIndex | None = None,
        reduction: Reduction = "mean",
        denominator: SupportsFloat | None = None,
        base: float | None = None,
        out: _Array | None = None,
    ) -> FloatArray:
        """Return the gradient of `loss` in the logits of one slice.

        Parameters
        ----------
        logits_slice : array_like
            The logits of consecutive merged classes, with the values that `of` was given.
        first_class : int
            The index of the first of these classes among all.
        axis : int, optional
            The class axis of `logits_slice`. Default: as in `of`.
        reduction, denominator, base
            As in `loss`. For ``"none"`` the gradient is that of each sample's own loss.
        out : ndarray, optional
            Where the gradient goes: an array of the shape and dtype of `logits_slice`, or that
            array itself to have it replaced.

        Returns
        -------
        ndarray
            The gradient, of the shape and dtype of `logits_slice`: `out` if given.

        Raises
        ------
        TypeError
            If an argument has a type or dtype other than above.
        ValueError
            If shapes do not fit, the classes are not merged, or as `loss` does.
        IndexError
            As `loss` does.
        """
        options = _checked(reduction=reduction, denominator=denominator, base=base)
        first = _arrays._integer("first_class", first_class, "an int")
        axis = self._axis if axis is None else axis
        x, axis, samples = _arrays._class_values(_NAME, logits_slice, axis)
        classes = range(first, first + x.shape[axis])
        if samples != self._samples:
            raise ValueError(
                f"{_NAME} of shape {x.shape} with the class axis {axis} has samples of shape "
                f"{samples}, but those that were merged have shape {self._samples}"
            )
        if _loss_dtype(x) != self._dtype:
            raise TypeError(f"{_NAME} has dtype {x.dtype}, but what was merged had {self._dtype}")
        given, _ = _arrays._outputs(_NAME, x, {}, out, None)
        weights, divisor = self._scales(options)
        mixture = self._mixture()
        weight = self._weight_of(classes)
        with np.errstate(all="ignore"):
            scales = (np.ones(self._target.size) if weights is None else weights) / divisor
            weight = None if weight is None or mixture[0] == 0.0 else weight
        result = np.empty(x.shape, _arrays._native(x)) if given is None else np.asarray(given)
        within = self._within(classes)
        for part, rows, to in _row_blocks(x, result, axis):
            grad = to if _is_plain(to) else np.empty_like(rows)
            counts, states = self._counts[part], self._states[part]
            arguments = (counts, states, scales[part], weight, mixture, grad)
            _arrays.done(slice_grad(rows, within[part], *arguments))
            if grad is not to:
                to[...] = grad.reshape(to.shape)
        return result if given is None else given

    def __repr__(self) -> str:
        classes = ", ".join(f"[{part.start}, {part.stop})" for part in self.slices)
        return f"<PartialCrossEntropy of classes {classes}, samples of shape {self._samples}>"

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Of other processes arrays come read-only, and at any address.
        for name, value in state.items():
            setattr(self, name, np.array(value) if isinstance(value, np.ndarray) else value)

    # What several methods need

    def _float64_losses(
        self, weights: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64], float]:
        """Return the weighted loss of each sample, and their sum."""
        losses = np.empty(self._target.size)
        scales = weights if weights is not None else np.ones(self._target.size)
        total = state_losses(self._states, scales, self._counts, self._mixture(), losses)
        return losses, _arrays.done(total)

    def _weighted_losses(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the weighted losses of the samples that count, and what a mean divides by."""
        weights, _ = self._scales(_checked(reduction="sum"))
        losses, _ = self._float64_losses(weights)
        return losses[self._counts], self._divisors(weights)

    def _divisors(self, weights: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Return what each sample that counts adds to the divisor of a mean."""
        counted: NDArray[np.float64] = self._states[self._counts, STATE_CLASS_WEIGHT]
        return counted if weights is None else counted * weights[self._counts]

    def _check_same(self, other: PartialCrossEntropy) -> None:
        """Refuse another object whose samples or options differ."""
        for name, a, b in (
            ("the shape of the samples", self._samples, other._samples),
            ("the dtype of logits_slice", self._dtype, other._dtype),
            ("label_smoothing", self._smoothing, other._smoothing),
            (
                "the number of all classes, that of weight,",
                self._number or other._number,
                other._number or self._number,
            ),
        ):
            if a != b:
                raise ValueError(f"{name} is {a} here, but {b} in other")
        if not np.array_equal(self._target, other._target):
            i = int(np.argmax(self._target != other._target))
            raise ValueError(
                f"{_arrays.element('target', i, self._samples)} is {self._target[i]} here, but "
                f"{other._target[i]} in other"
            )
        s, t = self._sample_weight, other._sample_weight
        if (s is None) != (t is None) or (
            s is not None and t is not None and not np.array_equal(s, t, equal_nan=True)
        ):
            raise ValueError("sample_weight differs between the two")
        if not np.array_equal(self._counts, other._counts):
            raise ValueError("ignore_index differs between the two")
        if (self._slices[0][1] is None) != (other._slices[0][1] is None):
            raise ValueError("weight was given for one of the two, but not for the other")

    def _within(self, classes: range) -> NDArray[np.int64]:
        """Return the target counted from the first of `classes`, -1 where it is none of them."""
        inside = (self._target >= classes.start) & (self._target < classes.stop)
        return np.where(inside, self._target - classes.start, -1)

    def _weight_of(self, classes: range) -> NDArray[np.float64] | None:
        """Return the weights of some merged classes, if there are any; refuse others."""
        parts: list[_Array] = []
        at = classes.start
        weighted = False
        for part, weight in self._slices:
            if part.start <= at < part.stop and at < classes.stop:
                end = min(part.stop, classes.stop)
                weighted = weight is not None
                if weight is not None:
                    parts.append(weight[at - part.start : end - part.start])
                at = end
        if at < classes.stop:
            raise ValueError(
                f"{_NAME} has the classes [{classes.start}, {classes.stop}), but class {at} is in "
                f"no merged slice: {self!r}"
            )
        return np.ascontiguousarray(np.concatenate(parts)) if weighted else None

    def _mixture(self) -> tuple[float, float, float]:
        """Return label smoothing, the number of all classes, and the factor of z-loss: none."""
        number = self._slices[-1][0].stop
        # Of one class the loss is 0, whatever the smoothing.
        return 0.0 if number == 1 else self._smoothing, number, 0.0

    def _scales(self, options: dict[str, Any]) -> tuple[NDArray[np.float64] | None, float]:
        """Check that all classes are there; return the sample weights, and what divides losses."""
        held = self._states[:, STATE_HELD] != 0.0
        missing = self._counts & ~held
        if missing.any():
            i = int(np.argmax(missing))
            raise IndexError(
                f"{_arrays.element('target', i, self._samples)} is {self._target[i]}, which is in "
                f"none of the merged slices: {self!r}"
            )
        at = 0
        for part in (*self.slices, range(self._number, self._number)):
            if part.start > at:
                raise ValueError(
                    f"classes [{at}, {part.start}) are missing: no slice with them is merged"
                )
            at = part.stop
        base = options["base"]
        divisor = 1.0 if base is None else float(np.log(base))
        weights = self._sample_weight
        if options["reduction"] != "mean":
            return weights, divisor
        if options["denominator"] is not None:
            return weights, divisor * float(options["denominator"])
        return weights, divisor * float(self._divisors(weights).sum())


PartialCrossEntropy.__module__ = "xentrs"  # where people find it


def _checked(**given: Any) -> dict[str, Any]:
    """Return options of `cross_entropy`, checked, and of Python's own types."""
    options = dict(PYTHON_FUNCTIONS["cross_entropy"].__kwdefaults__ or {})
    if "ignore_index" in given:
        given["ignore_index"] = _arrays._ignore_index(given["ignore_index"])
    options |= given
    names = LOSSES["cross_entropy"]["options"]
    values = plain_options("cross_entropy", *(options[name] for name in names))
    return dict(zip(names, values, strict=True))


def _class_indices(
    target: ArrayLike, x: _Array, axis: int, samples: tuple[int, ...], ignored: tuple[int, ...]
) -> NDArray[np.int64]:
    """Return the target as int64 in one row."""
    what = ""
    if _arrays._is_pair(target, x):
        what = "is a pair (indices, probabilities)"
    else:
        target = _arrays._real_array("target", target, ignored)
        if target.shape != samples and target.shape == x.shape:
            what = f"has the shape of {_NAME}, {x.shape}"
    if what:
        raise TypeError(
            f"target {what}: PartialCrossEntropy takes class indices, of shape {samples}, and no "
            "probabilities"
        )
    indices = _arrays._class_target(_NAME, x, axis, target, ignored)
    if indices.dtype == np.uint64:
        indices = np.minimum(indices, np.uint64(2**63 - 1))
    return np.array(indices, np.int64).reshape(-1)  # our own


def _slice_weight(weight: ArrayLike, first: int, classes: int) -> tuple[NDArray[np.float64], int]:
    """Return the weights of a slice's classes, and the number of all classes if it is known.

    The weights are those of the slice, whose number tells nothing of the others, or those of all.
    """
    w = _arrays._real_array("weight", weight)
    if w.ndim != 1 or (w.size != classes and w.size < first + classes):
        raise ValueError(
            f"weight has shape {w.shape}, but must have shape ({classes},), that of the slice's "
            f"classes, or that of all classes, at least ({first + classes},)"
        )
    if w.size == classes:
        return np.array(w, np.float64), 0
    return np.array(w[first : first + classes], np.float64), w.size


def _loss_dtype(x: _Array) -> np.dtype[Any]:
    """Return the dtype of single losses: float32 unless logits are float64."""
    return np.dtype(np.float64 if x.dtype.type is np.float64 else np.float32)


def _is_plain(a: _Array) -> bool:
    """Whether the compiled functions take an array as it is."""
    native = a.dtype in (np.dtype(np.float32), np.dtype(np.float64))
    return native and a.ndim == 2 and a.flags.c_contiguous and a.flags.aligned


def _row_blocks(x: _Array, out: _Array | None, axis: int) -> Iterator[tuple[slice, _Array, _Array]]:
    """Yield the logits as contiguous rows, all at once where they lie so, else in small blocks.

    Each block comes with the samples that it has, in C order, and with the same part of `out`.
    """
    x = np.moveaxis(x, axis, -1)
    to = x if out is None else np.moveaxis(out, axis, -1)
    samples, classes = x.shape[:-1], x.shape[-1]
    number = int(np.prod(samples))
    if number == 0:
        return
    arrays = [a.reshape(number, classes) if a.flags.c_contiguous else a for a in (x, to)]
    if all(_is_plain(a) for a in arrays):
        yield slice(0, number), arrays[0], arrays[1]
        return
    at = 0
    for index in _arrays.row_blocks(x):
        rows = np.require(x[index], _loss_dtype(x), ["C", "A"]).reshape(-1, classes)
        yield slice(at, at + len(rows)), rows, to[index]
        at += len(rows)
