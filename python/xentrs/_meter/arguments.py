"""Options of a meter and the samples it is given, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xentrs import _arrays
from xentrs._losses._types import Ignored
from xentrs._partial import _checked

_Array: TypeAlias = NDArray[Any]


# A state holds options as integers of 64 bits.
_AXES = 64
_MOST_BINS = 1 << 24  # each takes memory
_LARGEST_RANK = (1 << 63) - 1


@dataclass(frozen=True, eq=False)
class Options:
    """Options of a meter."""

    axis: int
    weight: NDArray[np.float64] | None
    ignore_index: tuple[int, ...]  # ascending
    label_smoothing: float
    top_k: tuple[int, ...]  # ascending
    bins: int
    per_class: bool

    def check_equal(self, other: Options) -> None:
        """Refuse to merge with a meter of other options."""
        for name in ("axis", "ignore_index", "label_smoothing", "top_k", "bins", "per_class"):
            a, b = getattr(self, name), getattr(other, name)
            if a != b:
                raise ValueError(f"{name} is {a} here, but {b} in other")
        v, w = self.weight, other.weight
        if (v is None) != (w is None) or (
            v is not None and w is not None and not np.array_equal(v, w)
        ):
            raise ValueError(f"weight is {v} here, but {w} in other")


def options(
    *,
    axis: SupportsIndex,
    weight: ArrayLike | None,
    ignore_index: Ignored,
    label_smoothing: float,
    top_k: SupportsIndex | Iterable[SupportsIndex],
    bins: SupportsIndex,
    per_class: bool,
) -> Options:
    """Return the options of a meter, checked."""
    checked = _checked(ignore_index=ignore_index, label_smoothing=label_smoothing)
    axis = _arrays._integer("axis", axis, "an int")
    if not -_AXES <= axis < _AXES:
        raise ValueError(f"axis is {axis}, but an array has at most {_AXES} axes")
    own_weight = None if weight is None else _class_weight(weight)
    ranks = _ranks(top_k)
    bins = _arrays._integer("bins", bins, "an int")
    if not 1 <= bins <= _MOST_BINS:
        raise ValueError(f"bins is {bins}, but must be in [1, {_MOST_BINS}]")
    if not isinstance(per_class, bool | np.bool_):
        raise TypeError(f"per_class must be a bool, not {type(per_class).__name__}")
    return Options(
        axis,
        own_weight,
        tuple(sorted(set(checked["ignore_index"]))),
        checked["label_smoothing"],
        ranks,
        bins,
        bool(per_class),
    )


def _class_weight(weight: ArrayLike) -> NDArray[np.float64]:
    w = _arrays._real_array("weight", weight)
    if w.ndim != 1:
        raise ValueError(f"weight has shape {w.shape}, but must have one number for each class")
    w = np.array(w, np.float64)
    _arrays._check_weights("weight", w)
    return w


def _ranks(top_k: Any) -> tuple[int, ...]:
    accepted = "an int or several ints"
    if not isinstance(top_k, Iterable) or getattr(top_k, "ndim", 1) == 0:
        top_k = (top_k,)
    ranks = [_arrays._integer("top_k", k, accepted) for k in top_k]
    for k in ranks:
        if not 1 <= k <= _LARGEST_RANK:
            raise ValueError(f"top_k has {k}, but must be in [1, {_LARGEST_RANK}]")
    return tuple(sorted(set(ranks)))


class Samples(NamedTuple):
    """A batch as `update` is given it."""

    logits: _Array
    axis: int  # that of the classes, not negative
    target: _Array
    reference: _Array | None
    sample_weight: _Array | None
    group: _Array | None
    shape: tuple[int, ...]  # of the samples: that of the logits without the class axis

    @property
    def soft(self) -> bool:
        """Whether the target is probabilities."""
        return self.target.shape == self.logits.shape


def samples(
    options: Options,
    classes_before: int,
    groups_before: type | None,
    *,
    logits: ArrayLike,
    target: ArrayLike,
    sample_weight: ArrayLike | None,
    group: ArrayLike | None,
    reference_logits: ArrayLike | None,
) -> Samples:
    """Return a batch, checked.

    `classes_before` is the number of classes that the meter has sums for, 0 if it has none;
    `groups_before` is the type of its groups' names.
    """
    x, axis, shape = _arrays._class_values("logits", logits, options.axis)
    classes = x.shape[axis]
    _arrays.refuse_pair("CrossEntropyMeter", "logits", x, target)
    t = _arrays._class_target("logits", x, axis, target, options.ignore_index)
    if options.weight is not None and options.weight.size != classes:
        raise ValueError(
            f"logits of shape {x.shape} have {classes} classes on axis {axis}, but weight has "
            f"shape {options.weight.shape}"
        )
    if options.per_class and classes_before not in (0, classes):
        raise ValueError(
            f"logits of shape {x.shape} have {classes} classes on axis {axis}, but with "
            f"per_class=True all updates must have as many: there were {classes_before}"
        )
    r = None
    if reference_logits is not None:
        r = _arrays._float_array("reference_logits", reference_logits)
        if r.shape != x.shape:
            raise ValueError(
                f"reference_logits has shape {r.shape}, but logits has shape {x.shape}"
            )
    without_classes = f"that of logits, {x.shape}, without the class axis {axis}"
    s = sample_weights(sample_weight, shape, without_classes)
    checked = Samples(x, axis, t, r, s, groups(group, shape, groups_before), shape)
    if checked.soft:
        _arrays.check_none_ignored(options.ignore_index)
    else:
        _arrays.check_indices("target", t, classes, options.ignore_index)
    return checked


def sample_weights(
    sample_weight: ArrayLike | None, samples: tuple[int, ...], what: str
) -> _Array | None:
    if sample_weight is None:
        return None
    s = _arrays._real_array("sample_weight", sample_weight)
    if s.shape != samples:
        raise ValueError(
            f"sample_weight has shape {s.shape}, but must have shape {samples}: {what}"
        )
    _arrays._check_weights("sample_weight", s)
    return s


def groups(group: ArrayLike | None, samples: tuple[int, ...], before: type | None) -> _Array | None:
    """Return the groups of samples: integers or strings, of the samples' shape.

    `before` is the type of the groups of earlier updates.
    """
    if group is None:
        return None
    g = group_names(group)
    if g.shape not in ((), samples):
        raise ValueError(
            f"group has shape {g.shape}, but must have shape {samples}, that of the samples, or ()"
        )
    if g.dtype.kind == "u" and g.size and g.max() > np.iinfo(np.int64).max:
        raise ValueError(f"group has {g.max()}, but integers must be below 2^63")
    g = np.broadcast_to(g, samples)
    if g.size and before not in (None, str if g.dtype.kind == "U" else int):
        raise TypeError(
            f"group has dtype {g.dtype}, but in earlier updates groups were "
            f"{'strings' if before is str else 'integers'}"
        )
    return g


def group_names(group: ArrayLike) -> _Array:
    """Return groups as an array of integers or of strings, of any shape."""
    _arrays.refuse_masked("group", group)
    g = np.asarray(group)
    if g.dtype.kind == "U" and _arrays._is_untyped(group):
        g = np.asarray(group, dtype=object)  # as strings NumPy also writes the numbers of a list
    if g.dtype.kind in "OT":
        keys = g.astype(object)
        others = [i for i, key in enumerate(keys.flat) if not isinstance(key, str)]
        if not others:
            return keys.astype(np.str_)
        if len(others) < g.size and not any(_arrays.is_missing(keys.flat[i]) for i in others):
            raise TypeError(
                f"{_arrays.element('group', others[0], g.shape)} is {keys.flat[others[0]]!r}, but "
                "must be a string as other groups are"
            )
    if g.dtype.kind not in "iubU":
        raise _arrays._wrong_dtype("group", group, g.dtype, "integers or strings")
    return g
