"""The kernels turn samples into a few numbers each, a block of samples at a time."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xentrs import _arrays
from xentrs._meter.arguments import Options, Samples
from xentrs._xentrs import (
    FEW_CLASSES,
    STATISTICS,
    compared_statistics,
    sample_divergences,
    sample_statistics,
)

_Array: TypeAlias = NDArray[Any]

# Samples whose statistics are in memory at a time.
BLOCK = 1 << 14

# Bytes of a block of logits that several kernels read, one after the other: they fit in a cache.
_CACHE_BYTES = 3 << 19

# Bytes of a block of logits that are copied, as another dtype or aligned.
_COPY_BYTES = 1 << 22


class Batch(NamedTuple):
    """One number a sample, of samples that all count."""

    weight: _Array | None  # the weight in means; 1 without
    factor: _Array | None  # what multiplies `value` to the weighted loss
    value: _Array
    loss: _Array  # the loss without any weight, where the weight is not 0
    group: _Array | None  # the names of the groups
    target: _Array | None = None  # the true class, and all that follows, where there are logits
    top: _Array | None = None
    above: _Array | None = None  # logits that are greater than the target's
    confidence: _Array | None = None
    brier: _Array | None = None
    entropy: _Array | None = None
    kl: _Array | None = None  # and what follows, where there are reference logits
    reference_value: _Array | None = None
    reference_top: _Array | None = None


class Plan(NamedTuple):
    """How a batch is read."""

    dtype: np.dtype[Any]  # that logits and probabilities are computed from
    most: int  # samples at a time


def plan(samples: Samples) -> Plan:
    """Return how a batch is read."""
    x, r, t = samples.logits, samples.reference, samples.target if samples.soft else None
    dtype = _common_dtype(x, r, t)
    most, row = BLOCK, x.shape[samples.axis] * dtype.itemsize
    if not all(_is_read_in_place(a, dtype) for a in (x, r, t)):
        most = max(1, min(most, _COPY_BYTES // row))
    if r is not None and (samples.soft or x.shape[samples.axis] <= FEW_CLASSES):
        # One kernel after another reads a block while it is in the caches.
        most = max(1, min(most, _CACHE_BYTES // (2 * row)))
    return Plan(dtype, most)


def of_logits(
    options: Options, samples: Samples, dtype: np.dtype[Any], index: tuple[slice, ...]
) -> Batch:
    """Return the numbers of a block of samples."""
    x, axis, t, r, s, groups, _ = samples
    place = (*index[:axis], slice(None), *index[axis:])
    if samples.soft:
        target = _arrays._plain(t[place], dtype)
    else:
        target = _arrays._canonical(t[index], _arrays._native(t))
    return _statistics(
        options,
        _arrays._plain(x[place], dtype),
        axis,
        target,
        None if r is None else _arrays._plain(r[place], dtype),
        None if s is None else _flat(s[index]),
        None if groups is None else groups[index].reshape(-1),
    )


def of_losses(losses: _Array, weights: _Array | None, groups: _Array | None) -> Batch:
    """Return the numbers of samples of which only the losses are known."""
    value = _flat(losses)
    w = None if weights is None else _flat(weights)
    names = None if groups is None else groups.reshape(-1)
    if w is not None and not w.all():
        kept = w != 0.0
        value, w = value[kept], w[kept]
        names = None if names is None else names[kept]
    return Batch(w, w, value, value, names)


def _statistics(
    options: Options,
    x: _Array,
    axis: int,
    t: _Array,
    r: _Array | None,
    s: _Array | None,
    groups: _Array | None,
) -> Batch:
    """Return the numbers of some samples, without those that do not count.

    The arrays are as the kernels take them.
    """
    classes, soft = x.shape[axis], t.shape == x.shape
    number = x.size // classes
    weight, ignore_index, smoothing = options.weight, options.ignore_index, options.label_smoothing
    # The kernel weighs classes only where it adds several of them up.
    spread = soft or smoothing != 0.0
    given = (axis, weight if spread else None, None if soft else ignore_index, smoothing)
    value, statistics = np.empty(number), np.empty((number, STATISTICS))
    more: tuple[_Array, ...] = ()
    if r is None:
        _arrays.done(sample_statistics(x, t, given, value, statistics, None))
    else:
        kl, other = np.empty(number), np.empty(number)
        reference_top = np.empty(number, np.int64)
        more = (kl, other, reference_top)
        outputs = (value, statistics, other, reference_top, kl)
        together = NotImplemented
        if not soft and classes > FEW_CLASSES:
            together = compared_statistics(x, r, t, given, outputs)
        if together is NotImplemented:
            argmax = reference_top.reshape(_arrays.without_axis(x.shape, axis))
            _arrays.done(sample_statistics(x, t, given, value, statistics, None))
            _arrays.done(sample_statistics(r, t, given, other, None, argmax))
            _arrays.done(sample_divergences(x, r, axis, kl))

    kept = np.ones(number, np.bool_) if s is None else s != 0.0
    if not soft:
        flat = t.reshape(-1)
        kept[_arrays.is_any_of(flat, ignore_index)] = False
        if weight is not None and not spread:
            kept &= weight[np.where(kept, flat, 0)] != 0.0
    if np.count_nonzero(kept) < number:
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
    return Batch(
        w, factor, value, loss, groups, true_class, top, above, confidence, brier, entropy, *more
    )


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


def _flat(s: _Array) -> NDArray[np.float64]:
    return np.ascontiguousarray(s, np.float64).reshape(-1)
