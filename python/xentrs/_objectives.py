"""What the objectives and metrics for libraries of boosted trees share.

A library calls an objective once a round with the scores of all samples, and gets the gradient and
the diagonal of the Hessian. Each library has its own order, dtype, sign and factor of the Hessian:
`xgboost.py`, `lightgbm.py` and `catboost.py` know them. None of the libraries is imported: their
data sets are known by their methods.

A call comes in one of two forms. Natively a library passes scores and its data set, which has the
labels and the weights. Its scikit-learn interface passes labels, scores and weights.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

import xentrs
from xentrs import _arrays

Array: TypeAlias = NDArray[Any]

# The least Hessian: that of XGBoost's own objective. A focal loss may have negative ones, and the
# libraries divide by their sum over a leaf.
_LEAST = 1e-16


def floored(hess: Array) -> Array:
    """Raise what is below the least Hessian to it, in place."""
    floor: Array = np.maximum(hess, _LEAST, out=hess)
    return floor


class Round(NamedTuple):
    """What a library passes once a round."""

    scores: Array
    labels: Array
    sample_weight: Array | None
    data: Any = None  # the library's own data set, if it passed that

    @property
    def may_have_started_elsewhere(self) -> bool:
        """Whether the training may have started with other scores than 0; a data set says so."""
        if self.data is None:
            return True
        initial = getattr(self.data, "get_init_score", None) or self.data.get_base_margin
        scores = initial()
        return scores is not None and np.size(scores) > 0

    @classmethod
    def of(cls, first: Any, second: Any, sample_weight: ArrayLike | None) -> Round:
        """Read either form of a call."""
        if not hasattr(second, "get_label"):
            weight = None if sample_weight is None else np.asarray(sample_weight)
            return cls(np.asarray(second), np.asarray(first), weight)
        if sample_weight is not None:
            raise TypeError("sample_weight goes with labels and scores; a data set has its own")
        weight = second.get_weight()
        weight = None if weight is None or np.size(weight) == 0 else np.asarray(weight)
        return cls(np.asarray(first), np.asarray(second.get_label()), weight, second)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Objective:
    """The options of an objective, checked."""

    weight: Sequence[float] | Array | None = None  # a tuple, once it was checked
    label_smoothing: float = 0.0
    gamma: float = 0.0
    teacher: Array | None = None
    # The arrays of the last round, for each thread, so that a round of training allocates nothing
    # large.
    _kept: threading.local = field(default_factory=threading.local, init=False)

    # The number of axes of a teacher, and what they are.
    _TEACHER = 0, ""

    def __post_init__(self) -> None:
        smoothing = _number("label_smoothing", self.label_smoothing)
        gamma = _number("gamma", self.gamma)
        if not 0 <= smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], not {smoothing}")
        if not 0 <= gamma < np.inf:
            raise ValueError(f"gamma must be finite and at least 0, not {gamma}")
        for name, given in (("label_smoothing", smoothing), ("teacher", self.teacher is not None)):
            if gamma and given:
                raise TypeError(
                    f"gamma and {name} exclude each other: focal loss is defined for class indices"
                )
        values: dict[str, Any] = {"label_smoothing": smoothing, "gamma": gamma}
        if self.weight is not None:
            weight = numbers("weight", self.weight).astype(np.float64)
            if weight.ndim != 1 or not (np.isfinite(weight) & (weight >= 0)).all():
                raise ValueError(
                    "weight must have a number for each class, finite and at least 0, not "
                    f"{self.weight}"
                )
            values["weight"] = tuple(weight.tolist())
        if self.teacher is not None:
            teacher = np.array(self.teacher)
            axes, meaning = self._TEACHER
            wrong = f"teacher must be probabilities of shape {meaning}, not "
            if teacher.dtype.kind != "f":
                raise TypeError(f"{wrong}of dtype {teacher.dtype}")
            if teacher.ndim != axes or not teacher.size:
                raise ValueError(f"{wrong}of shape {teacher.shape}")
            inside = (teacher >= 0) & (teacher <= 1)
            if not inside.all():
                place = tuple(int(i) for i in np.argwhere(~inside)[0])
                raise ValueError(f"teacher{list(place)} is {teacher[place]}, but must be in [0, 1]")
            teacher.flags.writeable = False
            values["teacher"] = teacher
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def derivatives(
        self, scores: Array, labels: Array, weight: Array | None
    ) -> tuple[Array, Array]:
        """Return the gradient and the diagonal of the Hessian, of the sum, in kept arrays."""
        raise NotImplementedError

    def _options(self) -> Iterator[tuple[str, Any]]:
        """Yield the options that are not left at their defaults."""
        for one in fields(self):
            value = getattr(self, one.name)
            if one.init and not (value is None or (np.ndim(value) == 0 and value == one.default)):
                yield one.name, value

    def __repr__(self) -> str:
        shown = (
            f"{name}=<{value.dtype} of shape {value.shape}>"
            if isinstance(value, np.ndarray)
            else f"{name}={value}"
            for name, value in self._options()
        )
        return f"{type(self).__module__}.{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, Objective)
        ours, theirs = dict(self._options()), dict(other._options())
        return ours.keys() == theirs.keys() and all(
            np.array_equal(value, theirs[name]) for name, value in ours.items()
        )

    def __hash__(self) -> int:
        return hash((type(self), self.weight, self.label_smoothing, self.gamma))

    def __reduce__(self) -> Any:
        """Pickle the options alone."""
        return _restore, (type(self), dict(self._options()))

    def __copy__(self) -> Objective:
        """Return the objective itself, which never changes."""
        return self

    def __deepcopy__(self, memo: Any) -> Objective:
        """Return the objective itself: scikit-learn's `clone` of a CatBoost model relies on it."""
        return self

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: Any, order: str = "C") -> Array:
        """Return an array that nobody else holds: that of the last round, or a new one."""
        kept = self._kept.__dict__
        key = shape, np.dtype(dtype), order
        if name not in kept or kept[name][0] != key or _references(kept, name) > _NOBODY_ELSE:
            kept[name] = key, np.empty(shape, dtype, order)  # type: ignore[call-overload]
        found: Array = kept[name][1]
        return found

    def buffers(self, scores: Array, dtype: Any = None) -> tuple[Array, Array]:
        """Return arrays for gradient and Hessian, of the scores' shape and order."""
        order = "C" if scores.flags.c_contiguous else "F"
        dtype = scores.dtype if dtype is None else dtype
        name = np.dtype(dtype).name
        grad = self._buffer(f"grad {name}", scores.shape, dtype, order)
        return grad, self._buffer(f"hess {name}", scores.shape, dtype, order)

    def in_float32(self, call: Round, factor: float = 1.0) -> tuple[Array, Array]:
        """Return the derivatives as float32 arrays, the Hessian times a factor."""
        grad, hess = self.derivatives(call.scores, call.labels, call.sample_weight)
        results = grad, hess
        if grad.dtype != np.float32:
            results = self.buffers(call.scores, np.float32)
            np.copyto(results[0], grad, casting="same_kind")
        if factor != 1.0 or results[1] is not hess:
            np.multiply(hess, factor, out=results[1], casting="same_kind")
        return results


def _references(kept: dict[str, Any], name: str) -> int:
    """Count what refers to a kept array; a view of it does so too."""
    found = kept[name][1]
    return sys.getrefcount(found)


# The count where nobody else does. It differs between versions of Python.
_NOBODY_ELSE = _references({"": ((), np.empty(0))}, "")


def _restore(kind: type[Objective], options: dict[str, Any]) -> Objective:
    return kind(**options)


class Softmax(Objective):
    """Cross-entropy or focal loss of the softmax of scores of shape (samples, classes)."""

    _TEACHER = 2, "(rows, classes)"

    def derivatives(
        self, scores: Array, labels: Array, weight: Array | None
    ) -> tuple[Array, Array]:
        _check_score_of_each_class("scores", scores)
        grad, hess = self.buffers(scores)
        options: dict[str, Any] = {
            "target": self._target(labels, *scores.shape),
            "weight": self.weight,
            "sample_weight": weight,
            "reduction": "sum",
            "ignore_index": None,
            "out": grad,
            "hess_out": hess,
        }
        if self.gamma:
            xentrs.focal_loss_with_grad_hess(scores, gamma=self.gamma, **options)
        else:
            smoothing = self.label_smoothing
            xentrs.cross_entropy_with_grad_hess(scores, label_smoothing=smoothing, **options)
        return grad, hess

    def _target(self, labels: Array, samples: int, classes: int) -> Array:
        """Return class indices or probabilities: the labels themselves, or rows of the teacher."""
        if self.teacher is not None:
            if self.teacher.shape[1] != classes:
                raise ValueError(
                    f"teacher has {self.teacher.shape[1]} classes, but the scores have {classes}"
                )
            return np.asarray(self.teacher[_row_numbers(labels, len(self.teacher))])
        if labels.size == samples * classes and classes > 1:
            return labels.reshape(samples, classes)  # XGBoost returns a table as a line
        return labels

    def shares(self, y: ArrayLike, sample_weight: ArrayLike | None) -> Array:
        """Return the classes' shares: the best probabilities of a model that knows no feature."""
        labels = numbers("y", y)
        shapes = (
            ["(samples,)"] if self.teacher is not None else ["(samples,)", "(samples, classes)"]
        )
        if not 1 <= labels.ndim <= len(shapes):
            raise ValueError(f"y must have shape {' or '.join(shapes)}, not {labels.shape}")
        weight = _weight_of(labels, sample_weight)
        if self.teacher is not None:
            classes = self.teacher.shape[1]
        elif labels.ndim == 2:
            classes = labels.shape[1]
        else:
            meaning = "y must be class indices 0, 1, 2 and so on, or probabilities"
            classes = int(_whole_numbers(labels, np.inf, meaning).max()) + 1
        if self.weight is not None:
            classes = max(classes, len(self.weight))  # the last ones may have no sample
        if classes < 2:
            raise ValueError(f"y must have at least two classes, not {classes}")
        target = self._target(labels, len(labels), classes)
        if target.ndim == 1:
            share = np.bincount(target.astype(np.int64), weight, classes).astype(np.float64)
        else:
            share = weight @ target.astype(np.float64)
        share /= share.sum()
        share = (1 - self.label_smoothing) * share + self.label_smoothing / classes
        if self.weight is not None:
            share *= self.weight
            if not share.any():
                raise ValueError(f"weight is {self.weight}: no class of y has a weight above 0")
            share /= share.sum()
        return np.asarray(share)

    def predict_proba(self, raw: ArrayLike) -> Array:
        """Return the probabilities of scores of shape (samples, classes)."""
        _check_score_of_each_class("raw", np.asarray(raw))
        return np.asarray(xentrs.softmax(raw))


class Binary(Objective):
    """Binary cross-entropy or focal loss of scores of shape (samples,)."""

    _TEACHER = 1, "(rows,), those of class 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight is not None and len(self.weight) != 2:
            raise ValueError(
                f"weight must have one number for each of 2 classes, not {self.weight}"
            )

    def derivatives(
        self, scores: Array, labels: Array, weight: Array | None
    ) -> tuple[Array, Array]:
        _check_one_score("scores", scores)
        if self.gamma:
            return self._focal(scores, labels, weight)
        grad, hess = self.buffers(scores)
        target, smoothing = self._target(labels), self.label_smoothing
        if self.weight is not None:
            # w1 t (-log p) + w0 (1 - t) (-log(1 - p)) is the loss of another label, times a weight.
            smoothed = (1 - smoothing) * target.astype(np.float64) + smoothing / 2
            ones = self.weight[1] * smoothed
            total = ones + self.weight[0] * (1 - smoothed)
            target = np.divide(ones, total, out=np.zeros_like(total), where=total > 0)
            weight, smoothing = total if weight is None else total * weight, 0.0
        xentrs.binary_cross_entropy_with_logits_with_grad_hess(
            scores,
            target,
            weight=weight,
            label_smoothing=smoothing,
            reduction="sum",
            out=grad,
            hess_out=hess,
        )
        return grad, hess

    def _focal(self, scores: Array, labels: Array, weight: Array | None) -> tuple[Array, Array]:
        """Return the derivatives of focal loss: two classes, the first of which has the score 0."""
        shape = len(scores), 2
        pair = self._buffer("pair", shape, scores.dtype)
        pair[:, 0], pair[:, 1] = 0, scores
        _, grad, hess = xentrs.focal_loss_with_grad_hess(
            pair,
            labels,
            gamma=self.gamma,
            weight=self.weight,
            sample_weight=weight,
            reduction="sum",
            ignore_index=None,
            out=self._buffer("gradients of the pair", shape, scores.dtype),
            hess_out=self._buffer("Hessians of the pair", shape, scores.dtype),
        )
        results = self.buffers(scores)
        results[0][:], results[1][:] = grad[:, 1], hess[:, 1]
        return results

    def _target(self, labels: Array) -> Array:
        """Return labels in [0, 1]: the labels themselves, or those of the teacher."""
        if self.teacher is not None:
            return np.asarray(self.teacher[_row_numbers(labels, len(self.teacher))])
        inside = (labels >= 0) & (labels <= 1)
        if not inside.all():
            place = int(np.flatnonzero(~inside)[0])
            raise ValueError(
                "labels must be in [0, 1]: 0 and 1, or probabilities of class 1; label "
                f"{place} is {labels[place]}"
            )
        return labels

    def training(
        self, y: ArrayLike, sample_weight: ArrayLike | None
    ) -> tuple[Array, NDArray[np.float64]]:
        """Return the labels in [0, 1] of a training, and a weight for each."""
        labels = numbers("y", y)
        if labels.ndim != 1:
            raise ValueError(f"y must have shape (samples,), not {labels.shape}")
        return self._target(labels), _weight_of(labels, sample_weight)

    def log_odds(self, y: ArrayLike, sample_weight: ArrayLike | None) -> float:
        """Return the best score of a model that knows no feature."""
        target, weight = self.training(y, sample_weight)
        target = target.astype(np.float64)
        share = float(np.average(target, weights=weight))
        share = (1 - self.label_smoothing) * share + self.label_smoothing / 2
        zero, one = (1.0, 1.0) if self.weight is None else self.weight
        least = np.finfo(np.float64).tiny
        return float(np.log(max(one * share, least)) - np.log(max(zero * (1 - share), least)))

    def predict_proba(self, raw: ArrayLike) -> Array:
        """Return the probabilities of both classes, shape (samples, 2), of scores (samples,)."""
        scores = np.asarray(raw)
        _check_one_score("raw", scores)
        return np.asarray(xentrs.softmax(np.stack([np.zeros_like(scores), scores], axis=-1)))


def _check_score_of_each_class(name: str, scores: Array) -> None:
    """Raise if there is not a score for each class of each sample."""
    if scores.ndim != 2:
        raise ValueError(
            f"{name} must have shape (samples, classes), not {scores.shape}: with one score a "
            "sample take `binary`"
        )


def _check_one_score(name: str, scores: Array) -> None:
    """Raise if there is not one score a sample."""
    if scores.ndim != 1:
        raise ValueError(
            f"{name} must have shape (samples,), not {scores.shape}: for more than two classes "
            "take `softmax`"
        )


def _number(name: str, value: Any) -> float:
    """Return an option that is a number."""
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be a number, not {value!r}")


def numbers(name: str, values: ArrayLike) -> Array:
    """Return an array of numbers, none of them missing."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be numbers, not of dtype {array.dtype}")
    missing = _arrays.first_missing(array, array.dtype)
    if missing:
        where = _arrays.element(name, *missing[1:])
        raise ValueError(f"{name} has missing values: {where} is NaN")
    return array


def _weight_of(labels: Array, sample_weight: ArrayLike | None) -> NDArray[np.float64]:
    """Return a weight for each label, of which the mean can be taken."""
    if not labels.size:
        raise ValueError("y has no samples")
    if sample_weight is None:
        return np.ones(len(labels))
    weight = numbers("sample_weight", sample_weight).astype(np.float64)
    if weight.shape != (len(labels),):
        raise ValueError(f"sample_weight has shape {weight.shape}, but y has {len(labels)} samples")
    _arrays._check_weights("sample_weight", weight)
    with np.errstate(over="ignore"):
        total = weight.sum()
    if not 0 < total < np.inf:
        raise ValueError(
            f"sample_weight has a sum of {total}, but it must be above 0 and finite: the weights "
            "of the samples are divided by it"
        )
    return weight


def _row_numbers(labels: Array, rows: int) -> NDArray[np.int64]:
    """Return labels that are the numbers of a teacher's rows."""
    meaning = f"with teacher each label is the number of a row, from 0 to {rows - 1}"
    return _whole_numbers(labels, rows, meaning)


def _whole_numbers(labels: Array, end: float, meaning: str) -> NDArray[np.int64]:
    """Return labels that are whole numbers from 0 to below `end`, or say what they mean."""
    with np.errstate(invalid="ignore"):
        found = labels.astype(np.int64)
    wrong = (found != labels) | (found < 0) | (found >= end)
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{meaning}, but label {place} is {labels[place]}")
    return found


class Metric:
    """The mean loss of a library's predictions, under the name by which the library reports it.

    Parameters
    ----------
    module, path : str
        Where the metric is: it is pickled by that name.
    report : callable
        Makes of its name, a loss and whether the call was native what the library expects.
    probabilities : bool
        Whether the predictions are probabilities. Otherwise they are margins.
    """

    def __init__(
        self,
        module: str,
        path: str,
        report: Callable[[str, float, bool], Any],
        *,
        probabilities: bool = False,
    ) -> None:
        self.__module__, self._path, self._report = module, path, report
        self._probabilities = probabilities
        self.__name__ = "log_loss" if probabilities else "cross_entropy"
        if not probabilities:
            self.of_probabilities = type(self)(
                module, f"{path}.of_probabilities", report, probabilities=True
            )

    def __reduce__(self) -> str:
        return self._path

    def __repr__(self) -> str:
        return f"{self.__module__}.{self._path}"

    def __call__(self, first: Any, second: Any, sample_weight: ArrayLike | None = None) -> Any:
        """Return the loss of either form of a call, in the form of the library."""
        call = Round.of(first, second, sample_weight)
        return self._report(self.__name__, self.loss(call), call.data is not None)

    def loss(self, call: Round) -> float:
        """Return the mean loss of margins or probabilities. Refuse what is surely the other."""
        raise NotImplementedError

    def refused(self) -> ValueError:
        """Return the error of predictions of the other kind."""
        if self._probabilities:
            path = self._path.removesuffix(".of_probabilities")
            return ValueError(
                f"{self} was passed margins, but it is a metric of probabilities: with a custom "
                f"objective take {self.__module__}.{path}"
            )
        return ValueError(
            f"{self} was passed probabilities, but it is a metric of margins: with a built-in "
            f"objective take {self}.of_probabilities"
        )


class SoftmaxMetric(Metric):
    """The mean cross-entropy of several classes."""

    def loss(self, call: Round) -> float:
        scores, labels, weight, _ = call
        if scores.ndim != 2:
            raise ValueError(f"predictions must have shape (samples, classes), not {scores.shape}")
        if labels.size == scores.size and scores.shape[1] > 1:
            labels = labels.reshape(scores.shape)
        # Probabilities in float32 sum to 1 within some 1e-6.
        inside = bool(((scores >= 0) & (scores <= 1)).all())
        are_probabilities = inside and bool((abs(scores.sum(axis=1) - 1) < 1e-3).all())
        if self._probabilities:
            if not are_probabilities:
                raise self.refused()
            return float(xentrs.log_loss(scores, labels, sample_weight=weight))
        # The margins of a model without trees are all the same, and may sum to 1.
        if are_probabilities and scores.size and np.ptp(scores) > 0:
            raise self.refused()
        return float(xentrs.cross_entropy(scores, labels, sample_weight=weight))


class BinaryMetric(Metric):
    """The mean cross-entropy of two classes."""

    def loss(self, call: Round) -> float:
        scores, labels, weight, _ = call
        if scores.ndim != 1:
            raise ValueError(f"predictions must have shape (samples,), not {scores.shape}")
        if weight is not None and not weight.any():
            return float("nan")  # as the mean cross-entropy of several classes is
        inside = bool(((scores >= 0) & (scores <= 1)).all())
        of_probabilities = xentrs.binary_cross_entropy
        if self._probabilities:
            if not inside:
                raise self.refused()
            return _weighted(of_probabilities, scores, labels, weight)
        loss = _weighted(xentrs.binary_cross_entropy_with_logits, scores, labels, weight)
        if inside and scores.size and np.ptp(scores) > 0:
            # The margins of a few trees may all lie in [0, 1] too.
            nearer, far = _calibration(scores, labels, weight)
            spread = bool(scores.min() < 0.25 and scores.max() > 0.75)
            if nearer and (spread or far):
                raise self.refused()
            # Margins that start at 0 have two signs as soon as trees tell the labels apart.
            fits = _weighted(of_probabilities, scores, labels, weight) <= loss
            if fits and not call.may_have_started_elsewhere:
                raise self.refused()
        return loss


def _calibration(scores: Array, labels: Array, weight: Array | None) -> tuple[bool, bool]:
    """Compare the share of class 1 with the means of numbers as probabilities and as margins.

    Return whether the first mean is nearer to the share, and whether the second is off by more than
    four standard errors.
    """
    margins = scores.astype(np.float64)
    share, as_shares, as_margins = (
        float(np.average(each, weights=weight))
        for each in (labels, scores, 1 / (1 + np.exp(-margins)))
    )
    error = abs(as_margins - share)
    # A standard error is at most half of 1 / sqrt(n).
    return abs(as_shares - share) < error, error > 2 / np.sqrt(scores.size)


def _weighted(loss: Any, scores: Array, labels: Array, weight: Array | None) -> float:
    """Return the weighted mean of a binary loss. Its own mean divides by the number of elements."""
    total = None if weight is None else float(np.sum(weight, dtype=np.float64))
    return float(loss(scores, labels, weight=weight, denominator=total))
