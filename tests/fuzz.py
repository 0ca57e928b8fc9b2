"""Random calls, right and wrong, whose results are checked against the reference.

| command | what it does |
|---|---|
| ``python tests/fuzz.py`` | two minutes of a new seed, at each level; ``--minutes``, ``--seed`` |
| ``python tests/fuzz.py --again SEED:NUMBER`` | one case of a seed again |

A case is determined by its seed and its number. Most are right, and must give the right values;
some have one fault, and must be refused by the right exception with nothing written; some have an
argument of any kind, and must be refused or give the values of what they mean. What fails is made
smaller and printed as a line to paste. `test_fuzz.py` runs cases of a fixed seed.
"""

import argparse
import hashlib
import json
import operator
import os
import re
import secrets
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import ml_dtypes
import numpy as np

import reference
import xentrs
from losses import CLASS_COUNTS, OF_ONE_CLASS, OUTPUTS, SUFFIXES, same_bits
from xentrs import _xentrs

ALLOWED = (TypeError, ValueError, IndexError)
BINARY = "binary_cross_entropy_with_logits"
CHANCES = "binary_cross_entropy"
ENTROPY = "softmax_entropy"  # the loss that has no target
SIGMOID = "sigmoid_focal_loss"
DIVERGENCES = ("kl_divergence", "js_divergence")
NAMES = ["cross_entropy", "log_loss", "nll_loss", *OF_ONE_CLASS, BINARY, CHANCES, SIGMOID]
NAMES += [*DIVERGENCES, ENTROPY]
# Options that one loss has alone: what is drawn for them, and what they refuse.
NOT_NEGATIVE = [-1, -1e-9, np.nan, np.inf, -np.inf]
OWN_OPTIONS = {
    "focal_loss": ("gamma", [0, 0.5, 1, 2.0, 3, 7.25, 1e-9, 40], NOT_NEGATIVE),
    "generalized_cross_entropy": ("q", [0.7, 1, 0.5, 0.1, 1e-9], [0, -0.5, 1.5, np.nan, np.inf]),
    "poly_loss": ("epsilon", [0, 1, 2.0, 0.5, -1, -0.5, -7.25, 1e3], [np.nan, np.inf, -np.inf]),
}
RESULTS = ["loss", "grad", "hess"]
DTYPES = ["f4", "f8", ">f4", ">f8", "f2", "g", "c8", "?", "O", "S3", "U2", "M8[s]", "V8"]
DTYPES += [*"bBhHiIqQ", ">i4", ">u2"]
HALVES = [np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)]
NUMBERS = [0, 1, -1, 0.5, 2, 1e-300, 1e308, np.nan, np.inf, -np.inf, -100, 1 << 70, True, None]
NUMBERS += ["x", b"x", [], {}, object(), 1j, np.float32(0.1), np.array(0.1), np.array([0.1, 0.2])]
FUSED = ("avx512", "avx2", "neon")  # with fused multiply-add: the same bits
MOST = 20  # distinct findings, after which a run stops

# In ULP, of the largest term if a result is a difference: the bounds of test_accuracy.py, with room
# for other inputs and for weights and divisors, which are rounded in float64 (docs/numerics.md,
# "What is not bounded"). In the gradient of a smoothed mean they are rounded in both terms.
BOUNDS = {"loss": 4.5, "grad": 5.5, "hess": 7.5}
# Added for each unit of gamma above a first few, as in test_accuracy.py
OF_GAMMA = {"loss": (1.1, 2), "grad": (1.1, 1.5), "hess": (2.5, 0)}
OF_Z_LOSS = {"loss": 1.0, "grad": 2.0, "hess": 1.0}
OF_SOFTCAP = {"loss": 0.0, "grad": 2.0, "hess": 4.0}
OF_SIGMOID_GAMMA = 0.2  # the same of sigmoid_focal_loss, above 5
LEAST = {np.dtype("f4"): 1e-36, np.dtype("f8"): 1e-300}  # of focal losses, as there
OF_ENTROPY = 2.0  # added for the sum of two terms, as there
OF_DIVERGENCE = {"f": 12.0, "d": 80.0}  # added for these by the type, as there
LEAST_OF_DIVERGENCE = {
    np.dtype("f4"): 1e-33,
    np.dtype("f8"): 1e-250,
}  # of sums whose terms underflow
BASE = 1.0  # added with a base, since its logarithm and the division by it are rounded too


def suffixes(name):
    """Return the endings of a loss's functions."""
    return SUFFIXES[: _xentrs.LOSSES[name]["derivatives"] + 1]


class Finding(AssertionError):
    """A call that does not do what it must; `kind` is the same for all calls with one fault."""

    def __init__(self, kind, words=""):
        super().__init__(f"{kind}: {words}" if words else kind)
        self.kind = kind


# The arguments of a call


@dataclass
class Call:
    """A function, its arguments, and what is known about them."""

    name: str
    suffix: str
    x: object
    t: object
    options: dict = field(default_factory=dict)
    threads: int = 1
    fault: tuple = ()  # exceptions of which one must be raised
    spoiled: bool = False  # an argument of any kind: whether it is taken is not known
    pair: tuple = ()  # the target as a pair (indices, probabilities), of which `t` is the sum

    @property
    def binary(self):
        return not _xentrs.LOSSES[self.name]["axis"]

    @property
    def bounded(self):
        return _xentrs.LOSSES[self.name]["input"] == "probabilities"

    def run(self):
        xentrs.set_num_threads(self.threads)
        target = self.pair or self.t
        arrays = (self.x,) if self.name == ENTROPY else (self.x, target)
        return getattr(xentrs, self.name + self.suffix)(*arrays, **self.options)

    def plain(self):
        """Return the same call with native, contiguous copies of its arrays, in place if it was."""
        x = _plain(self.x)
        options = {}
        for key, value in self.options.items():
            if key in OUTPUTS:
                options[key] = x if value is self.x else np.full_like(x, 7)
            else:
                options[key] = _plain(value)
        pair = tuple(map(_plain, self.pair))
        return replace(self, x=x, t=_plain(self.t), options=options, pair=pair)


def _plain(a):
    if not isinstance(a, np.ndarray) or a.dtype.hasobject:
        return a
    return np.array(a, a.dtype.newbyteorder("="), order="C")


def draw(seed, number):
    """Return the call of that number."""
    rng = np.random.default_rng([seed, number])
    name = _pick(rng, NAMES)
    suffix = _pick(rng, suffixes(name))
    with np.errstate(all="ignore"):
        kind = _class_call if _xentrs.LOSSES[name]["axis"] else _binary_call
        kind = _teacher_call if name in DIVERGENCES else kind
        kind = _entropy_call if name == ENTROPY else kind
        call = kind(rng, name, suffix)
        call.threads = int(rng.choice([1, 1, 2, 3]))
        make_pair(np.random.default_rng([seed, number, 1]), call)
        make_half(np.random.default_rng([seed, number, 2]), call)
        how = rng.random()
        if how < 0.15:
            plant(rng, call)
        elif how < 0.3:
            spoil(rng, call)
        elif how < 0.35 and 0 < call.x.size < 100 and not set(OUTPUTS) & set(call.options):
            if call.x.dtype == np.float64:
                call.x = call.x.tolist()
            elif np.isfinite(call.x).all() and abs(call.x).max() < 1e9:
                call.x = np.asarray(call.x).astype(int).tolist()  # lists of integers are float64
    return call


class Liar:
    """An object whose protocols misbehave."""

    def __init__(self, rng):
        self.how = rng.integers(5)

    def __array__(self, dtype=None, copy=None):
        if self.how == 0:
            raise ValueError("no array today")
        if self.how == 1:
            return "not an array"
        return np.zeros((2, 3), "f4")

    def __len__(self):
        return 3 if self.how == 2 else 1

    def __getitem__(self, index):
        raise IndexError(index)

    def __float__(self):
        if self.how == 3:
            raise TypeError("no float")
        return 0.25

    def __index__(self):
        if self.how == 4:
            raise TypeError("no index")
        return 1


def _chance(rng, p):
    return rng.random() < p


def _pick(rng, values):
    return values[rng.integers(len(values))]


def draw_shape(rng):
    """Return the shape of the samples and the number of classes."""
    how = rng.random()
    if how < 0.45:
        classes = int(rng.integers(2, 17))
    elif how < 0.55:
        classes = int(rng.integers(255, 259))
    elif how < 0.6:
        classes = 1
    elif how < 0.8:
        classes = int(rng.integers(17, 135))
    else:
        classes = _pick(rng, [*CLASS_COUNTS, 300, 5003, 33_000])
    most = max(1, _pick(rng, [*[3000] * 15, *[12_000] * 4, 150_000]) // classes)
    counts = [n for n in (1, 2, 3, 8, 15, 16, 17, 33, 64, 65, 70, 130, 1100, most) if n <= most]
    count = 0 if _chance(rng, 0.03) else _pick(rng, counts)
    if count == 1 and _chance(rng, 0.4):
        return (), classes
    samples = [count]
    while _chance(rng, 0.35) and len(samples) < 3:
        divisor = _pick(rng, [d for d in (1, 2, 3, 4, 5, 16) if samples[-1] % d == 0])
        samples[-1:] = [samples[-1] // divisor, divisor]
        if _chance(rng, 0.5):
            samples.reverse()
    return tuple(samples), classes


def lay_out(rng, a):
    """Return the same elements in another layout: axes, strides, alignment, byte order."""
    if a.ndim == 0 or a.dtype.hasobject or _chance(rng, 0.5):
        return a
    order = rng.permutation(a.ndim)
    step = int(rng.choice([1, 1, 2]))
    laid = np.full([a.shape[axis] * step for axis in order], 3, a.dtype)
    laid = laid[(slice(None, None, step),) * a.ndim].transpose(np.argsort(order))
    if _chance(rng, 0.3):
        laid = laid[tuple(slice(None, None, int(rng.choice([1, -1]))) for _ in a.shape)]
    how = rng.random()
    if how < 0.15:
        laid = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    elif how < 0.3:
        laid = laid.view(a.dtype.newbyteorder()) if step == 1 else laid
    laid[...] = a
    return laid


def draw_logits(rng, shape, dtype):
    """Draw logits of any spread about any offset, some of them out of the ordinary."""
    info = np.finfo(dtype)
    offsets = [*[0.0] * 6, 1.0, -100.0, 1e4, -1e5, 1e7, *([1e12] if dtype == "f8" else [])]
    x = rng.normal(size=shape) * 10 ** rng.uniform(-6, 2.5) + _pick(rng, offsets)
    x = np.asarray(x)
    how = rng.random()
    if how < 0.08:
        x = 10 ** rng.uniform(-30, 4, shape) * rng.choice([-1, 1], shape)
    elif how < 0.12:
        x = np.broadcast_to(_pick(rng, [0.0, 3.7, -0.1, 88.0, 1e7, -1e30]), shape).copy()
    elif how < 0.16:
        largest = float(info.max) * (1 if dtype == "f4" else 1e-60)
        x = rng.choice([-1, 1], shape) * largest * rng.choice([1.0, 0.9, 1e-3], shape)
    elif how < 0.2:
        x = rng.integers(-1000, 1000, shape) * float(info.smallest_subnormal)
    elif how < 0.3 and x.ndim and x.size:
        x[..., rng.integers(shape[-1])] += 10 ** rng.uniform(0, 6)
    if _chance(rng, 0.12):
        x = np.where(rng.random(shape) < 0.3, _pick(rng, [-np.inf, -1e9, -1e30, -3e4]), x)
    if _chance(rng, 0.25):
        some = rng.random(shape) < _pick(rng, [0.3, 3 / max(3, x.size)])
        x = np.where(some, rng.choice([np.nan, np.inf, -np.inf], shape), x)
    return np.asarray(x).astype(dtype)


def draw_probabilities(rng, shape, dtype):
    """Draw numbers in [0, 1]: rows of a softmax, of every size, next to 1, some of 0 and 1."""
    eps = float(np.finfo(dtype).eps)
    x = np.exp(rng.normal(size=shape) * 2)
    x = x / x.sum(-1, keepdims=True)
    how = rng.random()
    if how < 0.2:
        x = 10 ** rng.uniform(-44 if dtype == "f4" else -320, 0, shape)
    elif how < 0.4:
        x = 1 - eps / 2 * rng.integers(0, 1000, shape)
    if _chance(rng, 0.3):
        x = np.where(rng.random(shape) < 0.2, rng.choice([0.0, 1.0], shape), x)
    return x.astype(dtype)


def draw_log_probabilities(rng, shape, dtype):
    """Draw logarithms of probabilities, -inf among them, or any numbers that are not positive."""
    if _chance(rng, 0.2):
        return -abs(draw_logits(rng, shape, dtype))
    return np.log(draw_probabilities(rng, shape, "f8")).astype(dtype)


def draw_weights(rng, shape):
    """Draw weights, some of them 0 or negative, of any dtype."""
    w = rng.uniform(0.25, 4, shape)
    if _chance(rng, 0.4):
        w = np.where(rng.random(shape) < 0.3, 0.0, w)
    if _chance(rng, 0.15):
        w = np.where(rng.random(shape) < 0.3, -w, w)
    kind = _pick(rng, ["f4", "f8", "f4", "f8", "i8", "u1"])
    if kind == "u1":
        w = abs(w)
    if kind == "f8" and _chance(rng, 0.05):
        w = w * _pick(rng, [0.0, 1e39, 1e-39])
    return np.asarray(w).astype(kind)


def draw_soft(rng, shape, dtype):
    """Draw probabilities as target, of floats, or one-hot of integers or bools."""
    classes = shape[-1]
    y = np.asarray(rng.integers(0, classes, shape[:-1]))
    one_hot = np.arange(classes) == y[..., None]
    if _chance(rng, 0.25):
        return one_hot.astype(_pick(rng, ["i8", "?", "u1", "i2", "f4"]))
    q = rng.exponential(size=shape) * (rng.random(shape) < _pick(rng, [0.1, 0.7, 1]))
    q[..., 0] += _pick(rng, [0.1, 0.1, 0])
    if _chance(rng, 0.5):
        q = q / np.maximum(q.sum(-1, keepdims=True), 1e-3)
    if _chance(rng, 0.1):
        q = np.where(rng.random(shape) < 0.1, -q, q)
    if _chance(rng, 0.1):
        q = np.where(rng.random(shape) < 0.3, _pick(rng, [1e-100, 1e-30]), q)
        q[..., 0] = 0.1  # of nothing but such numbers a gradient has no digits left
    return q.astype(dtype if _chance(rng, 0.7) else _pick(rng, ["f4", "f8"]))


def make_pair(rng, call):
    """Make a pair (indices, probabilities) of a call's probabilities, now and then."""
    if call.name != "cross_entropy" or not _chance(rng, 0.4) or not isinstance(call.t, np.ndarray):
        return
    if call.t.ndim != call.x.ndim or call.x.ndim == 0:
        return
    t = np.moveaxis(call.t, call.options.get("axis", -1), -1)
    dtype = t.dtype.newbyteorder("=") if t.dtype.kind == "f" else np.dtype("f4")
    t = t.astype(dtype)
    ignored = call.options.get("ignore_index", -100)
    empties = [] if ignored is None else np.atleast_1d(ignored).tolist()
    rows = t.reshape(-1, t.shape[-1])
    # A number that is halved exactly can stand twice.
    halved = np.isfinite(rows) & (rows / 2 + rows / 2 == rows) & (rng.random(rows.shape) < 0.2)
    counts = ((rows != 0) * (1 + halved)).sum(-1)
    entries = int(counts.max(initial=0)) + int(rng.integers(3))
    indices = rng.integers(0, t.shape[-1], (len(rows), entries))
    q = np.zeros((len(rows), entries), dtype)
    for i, row in enumerate(rows):
        classes = np.flatnonzero(row)
        twice = classes[halved[i, classes]]
        values = np.where(halved[i, classes], row[classes] / 2, row[classes])
        n = len(classes) + len(twice)
        indices[i, :n] = np.concatenate([classes, twice])
        q[i, :n] = np.concatenate([values, row[twice] / 2])
        if empties and _chance(rng, 0.7):
            indices[i, n:] = rng.choice(empties)
            q[i, n:] = _pick(rng, [0, 1, np.nan, np.inf])
        order = rng.permutation(entries)
        indices[i], q[i] = indices[i, order], q[i, order]
    shape = (*t.shape[:-1], entries)
    kind = _pick(rng, ["q", "q", "i", ">i4", "f8"])
    pair = indices.reshape(shape).astype(kind), q.reshape(shape)
    call.pair = tuple(lay_out(rng, a) for a in pair)


def make_half(rng, call):
    """Give the logits half precision, now and then, and their outputs; and a teacher its own."""
    if not _chance(rng, 0.15):
        return
    x, half = call.x, _pick(rng, HALVES)
    call.x = lay_out(rng, np.array(x).astype(half))
    for key in OUTPUTS:
        if key in call.options:
            mine = call.options[key] is x
            call.options[key] = call.x if mine else lay_out(rng, np.full(x.shape, 7, half))
    if call.name in DIVERGENCES and isinstance(call.t, np.ndarray) and _chance(rng, 0.5):
        call.t = lay_out(rng, np.array(call.t).astype(_pick(rng, HALVES)))


def is_half(x):
    return isinstance(x, np.ndarray) and x.dtype.newbyteorder("=") in HALVES


def as_single(a, values):
    """Return values as float32 in the layout of an array of half precision."""
    swapped = not a.dtype.isnative
    last = [(n - 1) * stride for n, stride in zip(a.shape, a.strides, strict=True)]
    below, above = (sum(f(0, at) for at in last) for f in (min, max)) if a.size else (0, 0)
    room = np.zeros(2 * (above - below) + 5, np.uint8)
    room = room[1:] if not a.flags.aligned else room[:-1]
    single = np.ndarray(
        a.shape, ">f4" if swapped else "f4", room, -2 * below, [2 * s for s in a.strides]
    )
    single[...] = values
    return single


def _shared_options(rng, options):
    if _chance(rng, 0.35):
        options["label_smoothing"] = _pick(rng, [0, 0.1, 0.5, 1.0, 1e-9])
    if _chance(rng, 0.7):
        options["reduction"] = _pick(rng, ["none", "none", "mean", "sum"])
    if _chance(rng, 0.15):
        options["denominator"] = _pick(rng, [0, 1, 0.5, 37.25, 1e6, np.inf])
    if _chance(rng, 0.2):
        options["base"] = _pick(rng, [2, 10.0, 0.5, None])


def _draw_outputs(rng, call):
    order = SUFFIXES.index(call.suffix)
    wanted = [key for key in OUTPUTS[:order] if _chance(rng, 0.4)]
    in_place = _pick(rng, wanted) if wanted and _chance(rng, 0.5) else None
    for key in wanted:
        if key == in_place:
            call.options[key] = call.x = np.asarray(call.x)
        else:
            call.options[key] = lay_out(rng, np.full(call.x.shape, 7, call.x.dtype))


def _class_call(rng, name, suffix):
    samples, classes = draw_shape(rng)
    shape = (*samples, classes)
    dtype = _pick(rng, ["f4", "f8"])
    bounded = name == "log_loss"
    draws = {"log_loss": draw_probabilities, "nll_loss": draw_log_probabilities}
    x = draws.get(name, draw_logits)(rng, shape, dtype)
    options = {}
    _shared_options(rng, options)
    of_one_class = name in OF_ONE_CLASS
    if of_one_class:
        options.pop("label_smoothing", None)
        if "base" not in _xentrs.LOSSES[name]["options"]:
            options.pop("base", None)
        own, values, _ = OWN_OPTIONS.get(name, (None, (), ()))
        if own and _chance(rng, 0.8):
            options[own] = _pick(rng, values)
    elif name == "cross_entropy":
        if _chance(rng, 0.25):
            options["z_loss"] = _pick(rng, [0, 1e-4, 0.01, 1, 1e-9])
        if _chance(rng, 0.2):
            options["temperature"] = _pick(rng, [1, 0.5, 0.37, 2, 7.5])
        if _chance(rng, 0.15):
            options["softcap"] = _pick(rng, [None, 30.0, 50, 5.5])
    smooth = options.get("label_smoothing", 0) != 0
    if _chance(rng, 0.3):
        options["weight"] = draw_weights(rng, (classes,))
    if _chance(rng, 0.4):
        options["sample_weight"] = draw_weights(rng, samples)
    weight, sample_weight = (options.get(key) for key in ("weight", "sample_weight"))
    nothing = np.zeros(samples, bool) if sample_weight is None else sample_weight == 0
    if of_one_class or _chance(rng, 0.6):
        indices = rng.integers(0, classes, samples)
        t = np.asarray(indices)
        if _chance(rng, 0.4):
            inside = int(rng.integers(classes))
            ignored = _pick(rng, [-100, inside, (-1, inside), [inside], 1 << 40, None, np.int8(-3)])
            options["ignore_index"] = ignored
        else:
            ignored = -100
        kinds = ["b", "h", "i", "q", "q", ">i4", "f4", "f8"]
        if ignored is None or np.min(ignored) >= 0:
            kinds += ["B", "H", "I", "Q"]
        kind = _pick(rng, kinds)
        if ignored is not None:
            some = rng.random(samples) < 0.2
            t = np.where(some, rng.choice(np.atleast_1d(ignored), samples), t)
        largest = 2.0**24 if kind == "f4" else 2.0**53 if kind == "f8" else np.iinfo(kind).max
        fits = (abs(t) < largest).all() if t.size else True
        t = t.astype(kind if fits else "i8")
        nothing = nothing | reference.is_ignored(t, ignored)
        if weight is not None and not smooth:
            nothing = nothing | (weight[np.where(nothing, 0, t).astype(int)] == 0)
        alone = bounded or name == "nll_loss"
        if alone and not smooth and _chance(rng, 0.3):  # where no sample looks
            aside = np.arange(classes) != np.where(nothing, 0, t)[..., None]
            junk = aside & (rng.random(shape) < 0.2)
            x = np.where(junk, rng.choice([np.nan, -1, 2, np.inf], shape), x).astype(dtype)
        axis = int(rng.integers(len(shape)))
    else:
        t = draw_soft(rng, shape, dtype)
        if weight is not None and ((t > 0) & (t < 1e-20)).any():
            weight[0] = 1  # as there: the class that has a common number counts
        if _chance(rng, 0.1):
            options["ignore_index"] = _pick(rng, [None, -100, (-1, -2)])
        axis = int(rng.integers(len(shape)))
        if t.dtype.kind == "f" and _chance(rng, 0.3):
            t = np.where(nothing[..., None], rng.choice([np.nan, np.inf], t.shape), t)
            t = t.astype(t.dtype)
    if _chance(rng, 0.4):
        junk = nothing[..., None] & (rng.random(shape) < _pick(rng, [0.3, 1]))
        x = np.where(junk, _pick(rng, [np.nan, np.inf, -np.inf]), x).astype(dtype)
    if _chance(rng, 0.6):
        axis = len(shape) - 1
    soft = t.ndim == x.ndim
    if axis != len(shape) - 1 or _chance(rng, 0.2):
        options["axis"] = axis - (len(shape) if _chance(rng, 0.5) else 0)
    # The kernels for columns take (N, C, d), where d samples are adjacent.
    x = np.moveaxis(x, -1, axis)
    t = np.moveaxis(t, -1, axis) if soft else t
    x, t = (np.ascontiguousarray(a).reshape(a.shape) for a in (x, t))
    options = {k: lay_out(rng, v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    call = Call(name, suffix, lay_out(rng, x), lay_out(rng, t), options)
    _draw_outputs(rng, call)
    if call.t.size < 100 and _chance(rng, 0.1) and call.t.size:
        call.t = call.t.tolist()
    return call


def _entropy_call(rng, name, suffix):
    samples, classes = draw_shape(rng)
    shape = (*samples, classes)
    x = draw_logits(rng, shape, _pick(rng, ["f4", "f8"]))
    options = {}
    _shared_options(rng, options)
    options.pop("label_smoothing", None)
    if _chance(rng, 0.4):
        s = options["sample_weight"] = draw_weights(rng, samples)
        if _chance(rng, 0.5):
            junk = (s == 0)[..., None] & (rng.random(shape) < _pick(rng, [0.3, 1]))
            x = np.where(junk, _pick(rng, [np.nan, np.inf, -np.inf]), x).astype(x.dtype)
        options["sample_weight"] = lay_out(rng, s)
    axis = int(rng.integers(len(shape))) if _chance(rng, 0.4) else len(shape) - 1
    if axis != len(shape) - 1 or _chance(rng, 0.2):
        options["axis"] = axis - (len(shape) if _chance(rng, 0.5) else 0)
    x = np.ascontiguousarray(np.moveaxis(x, -1, axis)).reshape(np.moveaxis(x, -1, axis).shape)
    # A target for whatever looks at one: it is not passed.
    call = Call(name, suffix, lay_out(rng, x), np.zeros(samples, int), options)
    _draw_outputs(rng, call)
    return call


def _binary_call(rng, name, suffix):
    samples, classes = draw_shape(rng)
    shape = _pick(rng, [(*samples, classes), (classes, *samples), samples])
    dtype = _pick(rng, ["f4", "f8"])
    x = (draw_probabilities if name == CHANCES else draw_logits)(rng, shape, dtype)
    t = rng.random(shape)
    t = np.where(rng.random(shape) < _pick(rng, [0, 0.5, 1]), np.round(t), t)
    if _chance(rng, 0.2):
        t = np.where(rng.random(shape) < 0.5, 1 - 10 ** rng.uniform(-15, -1, shape), t)
    if name != SIGMOID and _chance(rng, 0.05):
        t = 3 * t - 1
    kind = _pick(rng, [dtype, dtype, "f4", "f8", "?", "i8", "u1"])
    t = np.asarray(t).astype(kind)
    options = {}
    _shared_options(rng, options)
    if name == SIGMOID:
        options.pop("label_smoothing", None)
        if _chance(rng, 0.8):
            options["gamma"] = _pick(rng, [0, 0.5, 1, 2.0, 3, 7.25, 1e-9, 40])
        if _chance(rng, 0.6):
            options["alpha"] = _pick(rng, [0, 0.25, 0.5, 0.9, 1, None])
    nothing = np.zeros(shape, bool)
    for key in ("weight", "pos_weight"):
        if key in _xentrs.LOSSES[name]["options"] and _chance(rng, 0.3):
            of = shape[rng.integers(len(shape) + 1) :]
            if _chance(rng, 0.2):
                of = tuple(1 if _chance(rng, 0.4) else n for n in of)
            options[key] = draw_weights(rng, of)
            if key == "weight":
                nothing = nothing | (options[key] == 0)
    if _chance(rng, 0.3):
        of = shape if _chance(rng, 0.7) else shape[len(shape) // 2 :]
        options["where"] = rng.random(of) < _pick(rng, [0, 0.5, 0.9])
        options["where"] = np.asarray(options["where"])
        nothing = nothing | ~options["where"]
    if _chance(rng, 0.4):
        x = np.where(nothing, _pick(rng, [np.nan, np.inf, -np.inf, -1, 2]), x).astype(dtype)
        if t.dtype.kind == "f" and _chance(rng, 0.5):
            t = np.where(nothing, np.nan, t).astype(t.dtype)
    options = {k: lay_out(rng, v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    call = Call(name, suffix, lay_out(rng, x), lay_out(rng, t), options)
    _draw_outputs(rng, call)
    if call.t.size < 100 and _chance(rng, 0.1) and call.t.size:
        call.t = call.t.tolist()
    return call


def _teacher_call(rng, name, suffix):
    samples, classes = draw_shape(rng)
    shape = (*samples, classes)
    dtype = _pick(rng, ["f4", "f8"])
    x = draw_logits(rng, shape, dtype)
    t = draw_logits(rng, shape, _pick(rng, [dtype, dtype, "f4", "f8"]))
    if _chance(rng, 0.5):
        near = x.astype("f8") + rng.normal(size=shape) * 10 ** rng.uniform(-12, 0)
        t = np.asarray(near + _pick(rng, [0, 0, 7.5, -1e4])).astype(t.dtype)
    options = {}
    _shared_options(rng, options)
    options.pop("label_smoothing", None)
    if _chance(rng, 0.3):
        options["temperature"] = _pick(rng, [1, 0.25, 2.0, 3.7, 40])
    if name == "kl_divergence" and _chance(rng, 0.6):
        options["direction"] = _pick(rng, ["forward", "reverse"])
    if name == "js_divergence" and _chance(rng, 0.8):
        options["beta"] = _pick(rng, [0, 0.1, 0.5, 0.875, 1.0])
    nothing = np.zeros(samples, bool)
    if _chance(rng, 0.4):
        options["sample_weight"] = draw_weights(rng, samples)
        nothing = options["sample_weight"] == 0
    if _chance(rng, 0.4):
        junk = nothing[..., None] & (rng.random(shape) < _pick(rng, [0.3, 1]))
        x, t = (
            np.where(junk, _pick(rng, [np.nan, np.inf, -np.inf]), a).astype(a.dtype) for a in (x, t)
        )
    axis = len(shape) - 1 if _chance(rng, 0.6) else int(rng.integers(len(shape)))
    if axis != len(shape) - 1 or _chance(rng, 0.2):
        options["axis"] = axis - (len(shape) if _chance(rng, 0.5) else 0)
    x, t = (np.moveaxis(a, -1, axis) for a in (x, t))
    x, t = (np.ascontiguousarray(a).reshape(a.shape) for a in (x, t))
    options = {k: lay_out(rng, v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    call = Call(name, suffix, lay_out(rng, x), lay_out(rng, t), options)
    _draw_outputs(rng, call)
    if call.t.size < 100 and _chance(rng, 0.1) and call.t.size and call.t.dtype == np.float64:
        call.t = call.t.tolist()
    return call


def anything(rng, shape):
    """Return an argument that is most likely wrong."""
    how = rng.integers(8)
    if how == 0:
        return _pick(rng, NUMBERS)
    if how == 1:
        return Liar(rng)
    if how == 2:
        return np.zeros(shape).tolist()
    if how == 3:
        return np.ma.masked_array(np.zeros(shape), False)
    of = shape if how < 6 else tuple(rng.integers(0, 5, rng.integers(4)).tolist())
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return lay_out(rng, np.asarray(rng.normal(size=of)).astype(_pick(rng, DTYPES)))
        except (TypeError, ValueError):  # as no float is a date
            return np.zeros(of, _pick(rng, DTYPES))


def spoil(rng, call):
    """Put anything in the place of some argument."""
    call.spoiled, call.pair = True, ()
    shape = call.x.shape
    keys = ["weight", "label_smoothing", "reduction", "denominator", "base"]
    keys += OUTPUTS[: SUFFIXES.index(call.suffix)]
    taken = _xentrs.LOSSES[call.name]["options"]
    keys = [key for key in keys if key in (*taken, *OUTPUTS)]
    keys += [key for key in taken if key not in keys]
    how = rng.random()
    if call.name == ENTROPY and 0.15 <= how < 0.3:
        how = 0.3  # there is no target to spoil
    if how < 0.15:
        was = call.x
        call.x = anything(rng, shape)
        for key in OUTPUTS:
            if call.options.get(key) is was:
                call.options[key] = call.x
    elif how < 0.3:
        call.t = anything(rng, np.shape(call.t))
    else:
        call.options[_pick(rng, keys)] = anything(rng, _pick(rng, [shape, shape[-1:], ()]))


def plant(rng, call):
    """Make one argument wrong, so that the exception is known."""
    x, options = call.x, call.options
    faults = [
        ("label_smoothing", _pick(rng, [1.5, -0.1, np.nan, np.inf]), ValueError),
        ("reduction", _pick(rng, ["nome", "", "MEAN"]), ValueError),
        ("denominator", _pick(rng, [-1, np.nan, -np.inf]), ValueError),
        ("base", _pick(rng, [0, 1, -2, np.nan]), ValueError),
        ("x", np.zeros(x.shape, _pick(rng, ["i8", "?", "u1"])), TypeError),
        ("weight", np.ones((*x.shape, 2)), ValueError),
        ("t", np.zeros((*x.shape, 2), "f8" if call.name in DIVERGENCES else "i8"), ValueError),
        ("temperature", _pick(rng, [0, -1, np.nan, np.inf]), ValueError),
        ("direction", _pick(rng, ["backward", "", "FORWARD"]), ValueError),
        ("beta", _pick(rng, [-1e-9, 1.5, np.nan]), ValueError),
    ]
    if call.suffix:
        still = np.empty_like(x)
        still.flags.writeable = False
        wrong = np.empty(x.shape, "f4" if x.dtype.itemsize == 8 else "f8")
        faults += [("out", still, ValueError), ("out", wrong, TypeError)]
        if x.ndim and x.shape[0] > 1 and x.size:
            faults.append(("out", x[::-1], ValueError))
    for factor in ("gamma", "z_loss"):
        faults.append((factor, _pick(rng, NOT_NEGATIVE), ValueError))
    faults.append(
        (_pick(rng, ["softcap", "temperature"]), _pick(rng, [0, *NOT_NEGATIVE]), ValueError)
    )
    faults.append(("alpha", _pick(rng, [-1, 1 + 1e-9, np.nan, np.inf]), ValueError))
    outside = [1.5, -1e-3 if is_half(x) else -1e-30, np.nan, np.inf]
    if call.name == CHANCES and x.size:
        weight = options.get("weight", 1)
        counts = np.broadcast_to((weight != 0) & options.get("where", True), x.shape)
        if counts.any():
            p = np.array(x)
            p[tuple(_pick(rng, np.argwhere(counts)))] = _pick(rng, outside)
            faults += [("x", p, ValueError)] * 3
    if call.name in OWN_OPTIONS:
        own, _, wrong = OWN_OPTIONS[call.name]
        faults.append((own, _pick(rng, wrong), ValueError))
    if call.name in OF_ONE_CLASS:
        faults.append(("label_smoothing", _pick(rng, [0.1, 1]), TypeError))
        faults.append(("t", np.full(x.shape, 0.5), TypeError))
    if not call.binary:
        axis = options.get("axis", -1)
        classes = x.shape[axis]
        faults += [("axis", _pick(rng, [x.ndim, -x.ndim - 1, 99]), ValueError)]
        faults += [("sample_weight", np.ones((7, *x.shape)), ValueError)]
        t = np.array(call.t)
        s = np.broadcast_to(options.get("sample_weight", 1), _without(x.shape, axis))
        where = np.argwhere(s != 0)
        if t.ndim < x.ndim and len(where) and t.dtype.kind in "if" and "weight" not in options:
            place = tuple(_pick(rng, where))
            ignored = options.get("ignore_index", -100)
            values = [v for v in (classes, -1, -101) if not reference.is_ignored(v, ignored)]
            if t.dtype.kind == "i":
                limits = np.iinfo(t.dtype)
                values = [v for v in values if limits.min <= v <= limits.max]
            if values:
                outside = t.copy()
                outside[place] = _pick(rng, values)
                faults += [("t", outside, IndexError)] * 3
            if t.dtype.kind == "f":
                fraction = t.copy()
                fraction[place] = _pick(rng, [0.5, np.nan, -1.25])
                faults += [("t", fraction, ValueError)] * 3
        taught = call.name in DIVERGENCES
        if taught:
            faults += [("t", np.zeros(x.shape, _pick(rng, ["i8", "?", "u1"])), TypeError)]
        if t.ndim == x.ndim and len(where) and classes > 1 and not taught:
            rows = np.moveaxis(np.zeros(x.shape, _pick(rng, ["i8", "?", "u1"])), axis, -1)
            rows[..., 0] = 1
            rows[tuple(_pick(rng, where))] = _pick(rng, [0, 1])
            faults += [("t", np.moveaxis(rows, -1, axis), ValueError)] * 2
        if call.name == "log_loss" and t.ndim == x.ndim and len(where):
            p = np.moveaxis(np.array(x), axis, -1)
            row = p[tuple(_pick(rng, where))]
            row[rng.integers(classes)] = _pick(rng, outside)
            faults += [("x", np.moveaxis(p, -1, axis), ValueError)] * 3
    # A keyword that the loss does not have is no wrong value of one.
    taken = {"x", "t", "out", *_xentrs.LOSSES[call.name]["options"]}
    taken -= {"t"} if call.name == ENTROPY else set()
    key, value, exception = _pick(rng, [fault for fault in faults if fault[0] in taken])
    call.fault = (exception,)
    if key == "x":
        call.x = value
        options.pop("out", None)
        options.pop("hess_out", None)
    elif key == "t":
        call.t = value
        call.pair = ()
    else:
        options[key] = value


def _without(shape, axis):
    return tuple(np.delete(shape, axis).tolist())


# What a call must do


def check(call):
    """Run a call; return its results, None if it was refused, or raise a `Finding`."""
    arrays = [call.x, call.t, *call.pair, *call.options.values()]
    arrays = [a for a in arrays if isinstance(a, np.ndarray) and not a.dtype.hasobject]
    before = [a.tobytes() for a in arrays]
    x = np.array(call.x) if isinstance(call.x, np.ndarray) else call.x
    t = np.array(call.t) if isinstance(call.t, np.ndarray) else call.t
    kept = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in call.options.items()}
    try:
        results = call.run()
    except ALLOWED as raised:
        error = raised
    except Exception as raised:
        raise Finding(f"{type(raised).__name__}", str(raised)) from raised
    else:
        error = None
    if error is not None:
        if type(error) not in ALLOWED or not str(error):
            raise Finding(f"{error!r}, which is of a class of its own or has no words")
        for array, copy in zip(arrays, before, strict=True):
            if array.tobytes() != copy:
                raise Finding("written to before it was refused", repr(error))
        if call.fault and not isinstance(error, call.fault):
            raise Finding(f"{type(error).__name__} for {call.fault[0].__name__}", str(error))
        if not call.fault and not call.spoiled:
            first = " ".join(re.sub(r"[^A-Za-z_ ].*", "", str(error)).split()[:3])
            raise Finding(f"refused by {type(error).__name__} of {first}", str(error))
        return None
    if call.fault:
        raise Finding(f"not refused by {call.fault[0].__name__}")
    outs = [call.options[key] for key in OUTPUTS if isinstance(call.options.get(key), np.ndarray)]
    for array, copy in zip(arrays, before, strict=True):
        if not any(np.shares_memory(array, out) for out in outs) and array.tobytes() != copy:
            raise Finding("an input was written to")
    results = results if isinstance(results, tuple) else (results,)
    if len(results) != 1 + SUFFIXES.index(call.suffix):
        raise Finding(f"{len(results)} results")
    for key, result in zip(OUTPUTS, results[1:], strict=False):
        if call.options.get(key) is not None and result is not call.options[key]:
            raise Finding(f"{key} is not returned")
    if not is_half(x):
        compare(call, x, t, kept, results)
    elif not call.spoiled:
        compare_half(call, x, t, kept, results)
    return results


def compare_half(call, x, t, kept, results):
    """Compare with the same call on float32, whose derivatives are rounded, and check that one."""
    x = x.astype("f4")
    options = dict(call.options)
    single = replace(call, x=as_single(call.x, x), options=options)
    for key in OUTPUTS:
        if options.get(key) is call.x:
            options[key] = single.x
        elif options.get(key) is not None:
            options[key] = as_single(options[key], 7)
    wide = single.run()
    wide = wide if isinstance(wide, tuple) else (wide,)
    compare(single, x, t, kept, wide)
    for what, result, right in zip(RESULTS, results, wide, strict=False):
        if what != "loss":
            with np.errstate(all="ignore"):
                right = _plain(right).astype(call.x.dtype.newbyteorder("="))
        if type(result) is not type(right) or not same_bits(_plain(result), _plain(right)):
            raise Finding(f"{what} of half precision", f"{result} for {right}")


def _meaning(call, x, t, options):
    """Return the arguments as the reference takes them."""
    outputs = (*OUTPUTS, "logsumexp_out", "argmax_out")
    options = {k: v for k, v in options.items() if k not in outputs}
    numbers = ("label_smoothing", "denominator", "base", "gamma", "alpha", "q", "epsilon", "z_loss")
    for key in (*numbers, "softcap", "temperature", "beta"):
        if options.get(key) is not None:
            value = options[key]  # masked arrays of one element are numbers too
            options[key] = float(value.item() if isinstance(value, np.ndarray) else value)
    for key in ("weight", "sample_weight", "pos_weight", "where"):
        if options.get(key) is not None:
            options[key] = np.asarray(options[key])
        else:
            options.pop(key, None)
    if "axis" in options:
        options["axis"] = operator.index(options["axis"])
    ignored = options.get("ignore_index")
    if ignored is not None:
        try:
            options["ignore_index"] = operator.index(ignored)
        except TypeError:
            options["ignore_index"] = tuple(operator.index(i) for i in ignored)
    if isinstance(x, list | int):  # no array: its integers are float64
        x = np.asarray(x, float)
    return np.asarray(x), np.asarray(t), options


def compare(call, x, t, options, results):
    """Compare results with the reference; `errors` has the largest, in ULP less `BASE`."""
    x, t, options = _meaning(call, x, t, options)
    weights = [options.get(key, 1) for key in ("weight", "sample_weight", "pos_weight")]
    factors = [*weights, options.get("denominator") or 1, options.get("z_loss", 0)]
    if call.spoiled and not (all(map(_is_common, factors)) and options.get("gamma", 0) < 100):
        return  # of which nothing is promised
    if call.spoiled and t.dtype.kind == "f" and min(x.size, t.size):
        with np.errstate(all="ignore"):
            sizes = [np.max(np.abs(a), where=np.isfinite(a), initial=0) for a in (x, t)]
            if not np.isfinite(2 * np.float64(sizes[0]) * sizes[1]):
                return  # terms of both signs are infinite
    if t.size == 0:
        t = t.reshape(_without(x.shape, options.get("axis", -1)) if t.ndim < x.ndim else x.shape)
    with np.errstate(all="ignore"):
        right = getattr(reference, call.name)(x, t, **options)
    dtype = x.dtype.newbyteorder("=")
    info = np.finfo(dtype)
    reduced = options.get("reduction", "mean") != "none"
    factor = _largest_factor(options, call.binary) if right.divisor else np.inf
    more = dict.fromkeys(RESULTS, 0.0)
    if call.name == ENTROPY:
        more["loss"] = OF_ENTROPY
    if call.name in DIVERGENCES:
        more = dict.fromkeys(RESULTS, OF_DIVERGENCE[dtype.char])
    if call.name == "focal_loss":
        gamma = options.get("gamma", 2.0)
        more = {what: each * max(0.0, gamma - few) for what, (each, few) in OF_GAMMA.items()}
    if call.name == SIGMOID:
        more = dict.fromkeys(RESULTS, OF_SIGMOID_GAMMA * max(0.0, options.get("gamma", 2.0) - 5))
    if options.get("z_loss"):
        more = {what: more[what] + OF_Z_LOSS[what] for what in RESULTS}
    if options.get("softcap") is not None:
        more = {what: more[what] + OF_SOFTCAP[what] for what in RESULTS}
    if call.name == "generalized_cross_entropy":
        # The gradient may err by q l more.
        length = reference.cross_entropy(x, t, **options_of_plain(options, reduction="none")).loss
        length = np.where(np.isfinite(length), length, 0)
        more["grad"] = options.get("q", 0.7) * float(np.max(length, initial=0))
    # A result below the smallest normal number, before a factor multiplies it, has no digits.
    # The temperature divides a Hessian twice.
    temperature = options.get("temperature", 1.0)
    factor = factor * max(1.0, 2 / temperature / temperature)
    least = info.tiny * max(1.0, min(factor, 1e9))
    if call.name in (*OF_ONE_CLASS, SIGMOID):
        least = max(least, LEAST[dtype])
    below = 0.0
    if call.name in DIVERGENCES and _has_hardly_any(x, t, options, info.tiny):
        return
    if call.name in DIVERGENCES:
        # The reference leaves out probabilities below the normal numbers.
        below = info.tiny * max(1.0, min(factor, 1e9))
        least = max(least, LEAST_OF_DIVERGENCE[dtype] * max(1.0, min(factor, 1e9)))
        # Of such a probability a gradient is the product with a difference of logits.
        with np.errstate(all="ignore"):
            apart = abs(x.astype(float) - t.astype(float))
        least *= max(1.0, float(np.max(apart[np.isfinite(apart)], initial=0)) / 100)
    if call.binary:
        # Labels outside [0, 1] multiply it too.
        with np.errstate(all="ignore"):
            labels = np.nan_to_num(abs(t.astype(float)) + abs(1 - t.astype(float)))
        least = least * np.clip(labels, 1.0, 1e9)
        if call.name == SIGMOID and np.any(labels > 1):
            return  # the terms of `1 - p` cancel
    loss, *rows = results
    if type(loss) is not (float if reduced else np.ndarray):
        raise Finding(f"the loss is {type(loss).__name__}")
    if reduced:
        _compare_total(loss, right, x.size, np.max(least, initial=0.0), info, factor, more["loss"])
    else:
        if loss.dtype != dtype or loss.shape != right.loss.shape:
            raise Finding("loss", f"{loss.dtype} {loss.shape} for {dtype} {right.loss.shape}")
        of_base = BASE if options.get("base") else 0.0
        sizes = right.loss_terms
        _compare_each("loss", loss, right.loss, sizes, info, least, more["loss"] + of_base)
    for what, row, (values, sizes) in zip(RESULTS[1:], rows, right.derivatives, strict=False):
        if row.shape != x.shape or row.dtype.newbyteorder("=") != dtype:
            raise Finding(what, f"{row.dtype} {row.shape} for {x.dtype} {x.shape}")
        row = row.astype(dtype)
        # An entry to which nothing is added is exactly 0.
        _compare_zeros(what, row, values, sizes, below)
        if 1e-12 <= factor < np.inf:
            room = least * max(1.0, factor / 1e9)
            _compare_each(what, row, values, sizes, info, room, more[what])


def _has_hardly_any(x, t, options, tiny):
    """Whether a model has a probability next to `tiny` where the other one has none.

    It may count as 0 or not, and the divergence is finite or not.
    """
    axis, temperature = options.get("axis", -1), options.get("temperature", 1.0)
    with np.errstate(all="ignore"):
        x, t = (np.asarray(a).astype(float) / temperature for a in (x, t))
        for one, other in ((x, t), (t, x)):
            p = np.exp(one - one.max(axis, keepdims=True, initial=-np.inf))
            if ((p > 0) & (p < 1e6 * tiny) & np.isneginf(other)).any():
                return True
    return False


def options_of_plain(options, **more):
    """Return options for the cross-entropy of the same samples, without weights."""
    kept = ("axis", "ignore_index")
    return {key: value for key, value in options.items() if key in kept} | more


errors = dict.fromkeys(RESULTS, 0.0)


def _is_common(factors):
    """Whether factors are so far from the ends of float64 that their products have digits."""
    size = abs(np.asarray(factors, float))
    return bool(((size == 0) | (size > 1e-290) & (size < 1e290)).all())


def _largest_factor(options, binary):
    """Return the largest factor of a gradient, or infinity where the divisor has no digits."""
    factor, base = 1.0, options.get("base")
    for key in ("weight", "sample_weight", "pos_weight"):
        w = abs(np.asarray(options.get(key, 1.0), float))
        factor *= max(1.0, float(w[np.isfinite(w)].max(initial=0)))
    factor *= max(1.0, 1 / abs(np.log(base)) if base else 1.0)
    if options.get("reduction", "mean") == "mean":
        divisor = options.get("denominator")
        if divisor is None and not binary:
            s = np.asarray(options.get("sample_weight", 1.0), float)
            w = np.asarray(options.get("weight", 1.0), float)
            if (s < 0).any() or (w < 0).any():  # what is left of their sum has few digits
                return np.inf
            if s.ndim and not np.isfinite(s).all():
                return np.inf
        elif divisor is not None:
            factor *= 1 / divisor if divisor else np.inf
    return factor


def _compare_total(loss, right, count, least, info, factor, more):
    exact, terms = right.loss[()], right.loss_terms[()]
    with np.errstate(all="ignore"):
        rounded = float(exact)
        if np.isnan(rounded) or np.isnan(loss):
            same = np.isnan(rounded) and np.isnan(loss)
            if not same and np.isfinite(factor):
                raise Finding(_kind("loss", loss, rounded), f"{loss} for {rounded}")
            return
        # A sum beyond float64 is infinite, and so is its mean, as `numpy.mean`'s.
        beyond = terms * max(count, 1) > 1e306
        if not np.isfinite(terms) or beyond:
            if loss != rounded and not beyond:
                raise Finding(_kind("loss", loss, rounded), f"{loss} for {rounded}")
            return
        if not np.isfinite(factor):
            return
        # Up to 1024 numbers in turn are added plainly in float64.
        added = (16 + min(count, 1024) / 16) * 2.0**-52
        room = ((4 + more) * info.eps + added) * terms
        room += count * max(least, info.tiny * min(factor, 1e30))
        if not abs(loss - exact) <= room:
            raise Finding(_kind("loss", loss, rounded), f"{loss} for {rounded}")


def _kind(what, actual, exact):
    """Return which kind of number stands for which: it tells faults apart."""

    def of(value):
        return "a number" if np.isfinite(value) and value != 0 else f"{value:g}"

    return f"{what}: {of(actual)} for {of(exact)}"


def _compare_zeros(what, row, values, sizes, below):
    wrong = (sizes == 0) & (values == 0) & ~(abs(row) <= below)
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0].tolist())
        raise Finding(f"{what} beside 0", f"{row[place]} for 0 at {place}")


def _compare_each(what, row, values, sizes, info, least, more=0.0):
    with np.errstate(all="ignore"):
        found = reference.ulp_error(row, values, sizes)
        small = np.isfinite(row) & np.isfinite(values)
        small &= abs(sizes) < least
        below = abs(row.astype(reference.Real) - values) <= least
        # At the edge of overflow, of the result or of an intermediate one, inf is right too.
        edge = abs(values) > float(info.max) * (1 - 16 * float(info.eps))
        edge &= np.isfinite(values) & ~np.isnan(row)
        # The mean of samples without weight, where the loss may still be 0.
        edge |= ~np.isfinite(sizes) & np.isfinite(values)
        if info.dtype == np.float64:
            edge |= np.isfinite(sizes) & (sizes > 1e300)
    found = np.where(small & below | edge, 0.0, np.where(small & ~below, np.inf, found))
    if not found.size:
        return
    worst = float(found.max())
    if worst > BOUNDS[what] + more:
        place = tuple(int(i) for i in np.unravel_index(found.argmax(), found.shape))
        kind = _kind(what, row[place], float(values[place]))
        raise Finding(kind, f"{row[place]!r} for {float(values[place])!r} at {place}, {worst:.3g}")
    errors[what] = max(errors[what], worst - more)


def check_case(seed, number):
    """Check a case, and some in other threads and by their twins; return its digest."""
    results = check(draw(seed, number))
    if results is None:
        return None
    call = draw(seed, number)
    if not call.spoiled:
        size = np.size(call.x)
        if size > 20_000:
            for threads in {1, 2, 3} - {call.threads}:
                again = draw(seed, number)
                again.threads = threads
                _same(again.run(), results, f"bits at {threads} threads")
        if number % 4 == 0:
            for i, suffix in enumerate(SUFFIXES):
                again = draw(seed, number)
                if i < len(results) - 1:
                    again.suffix = suffix
                    for key in OUTPUTS[i:]:
                        again.options.pop(key, None)
                    _same(again.run(), results[: i + 1], f"bits of {suffix or 'the loss alone'}")
    digest = hashlib.sha256()
    for result in results:
        a = np.array(result, np.asarray(result).dtype.newbyteorder("="), order="C")
        digest.update(np.where(np.isnan(a), np.array(np.nan, a.dtype), a).tobytes())
    return digest.hexdigest()[:16]


def _same(actual, expected, what):
    actual = actual if isinstance(actual, tuple) else (actual,)
    for a, b in zip(actual, expected, strict=True):
        if type(a) is not type(b) or not same_bits(_plain(a), _plain(b)):
            raise Finding(what)


# Failing calls, made smaller


def smaller(call, kind):
    """Return the smallest call found that fails in the same way, or None if layouts matter."""

    def fails(candidate):
        try:
            check(candidate.plain())
        except Finding as finding:
            return finding.kind == kind
        except Exception:
            return False
        return False

    if call.spoiled or call.pair or not fails(call):
        return None
    call = call.plain()
    changed = True
    while changed:
        changed = False
        for candidate in _simpler(call):
            if fails(candidate):
                call, changed = candidate.plain(), True
                break
    return call.plain()


def _simpler(call):
    """Yield calls that are simpler in one respect."""
    if call.threads > 1:
        yield replace(call, threads=1)
    for suffix in SUFFIXES[: SUFFIXES.index(call.suffix)]:
        options = {k: v for k, v in call.options.items() if k not in OUTPUTS}
        yield replace(call, suffix=suffix, options=options)
    for key in set(call.options) - {"axis"}:
        yield replace(call, options={k: v for k, v in call.options.items() if k != key})
    x, t = call.x, np.asarray(call.t)
    if call.fault or not isinstance(x, np.ndarray) or x.ndim == 0:
        return
    axis = None if call.binary else call.options.get("axis", -1) % x.ndim
    if not isinstance(call.options.get("axis", -1), int):
        return
    for along in range(x.ndim):
        n = x.shape[along]
        pieces = [slice(0, n // 2), slice(n // 2, n)] if n > 8 else []
        pieces += [np.delete(np.arange(n), i) for i in range(n)] if 1 < n <= 8 else []
        for piece in pieces:
            cut = _cut(call, x, t, axis, along, piece)
            if cut is not None:
                yield cut


def _cut(call, x, t, axis, along, piece):
    """Return the call of a part of an axis, or None where a class index forbids it."""

    def part(a, of):
        return np.take(a, np.arange(x.shape[along])[piece], of)

    options = {}
    for key, value in call.options.items():
        if key in OUTPUTS or not isinstance(value, np.ndarray):
            options[key] = value
        elif call.binary:
            of = along - (x.ndim - value.ndim)
            inside = of >= 0 and value.shape[of] == x.shape[along]
            options[key] = part(value, of) if inside else value
        elif key == "weight":
            options[key] = part(value, 0) if along == axis else value
        elif key == "sample_weight" and along != axis:
            options[key] = part(value, along - (along > axis))
        else:
            options[key] = value
    shorter = part(x, along)
    if t.ndim == x.ndim:
        target = part(t, along)
    elif along != axis:
        target = part(t, along - (along > axis))
    else:
        kept = np.arange(x.shape[axis])[piece]
        if np.any((t >= 0) & (t < x.shape[axis]) & ~np.isin(t, kept)):
            return None
        if call.options.get("ignore_index", -100) not in (-100, None):
            return None
        target = np.where((t >= 0) & (t < x.shape[axis]), np.searchsorted(kept, t), t)
        target = target.astype(t.dtype)
    for key in OUTPUTS:
        if key in options:
            options[key] = shorter if options[key] is x else np.empty_like(shorter)
    return replace(call, x=shorter, t=target, options=options)


def paste(call):
    """Return a line of Python that makes the call."""

    def literal(value):
        if isinstance(value, np.ndarray):
            if value.dtype == HALVES[1]:
                return f"{literal(value.astype('f4'))}.astype(ml_dtypes.bfloat16)"
            if value.size > 1 and len({repr(v) for v in value.ravel().tolist()}) == 1:
                return f"full({value.shape}, {value.flat[0].item()!r}, {value.dtype.str[1:]!r})"
            return f"array({value.tolist()!r}, {value.dtype.str[1:]!r})"
        return repr(value)

    given = []
    for key, value in call.options.items():
        if key in OUTPUTS:
            given.append(f"{key}=x" if value is call.x else f"{key}=empty_like(x)")
        else:
            given.append(f"{key}={literal(value)}")
    threads = f"xentrs.set_num_threads({call.threads}); " if call.threads != 1 else ""
    arguments = ", ".join(["x", literal(call.t), *given])
    return (
        f"import ml_dtypes, xentrs; from numpy import *; {threads}x = {literal(call.x)}; "
        f"print(xentrs.{call.name}{call.suffix}({arguments}))"
    )


def report(seed, number, finding):
    """Return a finding as strings: its key, what was wrong, how to run it again."""
    call = draw(seed, number)
    small = smaller(call, finding.kind)
    lines = [f"python tests/fuzz.py --again {seed}:{number}"]
    seen = small or call
    if small is not None:
        try:
            check(small.plain())
        except Finding as again:
            finding = again
        line = paste(small)
        if len(line) < 2000:
            lines.insert(0, line)
    target = np.asarray(seen.t) if not seen.spoiled else None
    soft = target is not None and target.ndim == np.ndim(seen.x) and not seen.binary
    key = [seen.name, finding.kind, str(getattr(seen.x, "dtype", type(seen.x).__name__))]
    key += ["" if target is None else f"{target.dtype.kind}{'soft' if soft else ''}"]
    key += sorted(set(seen.options) - {"axis", "reduction", "denominator", "base"})
    shapes = f"{np.shape(seen.x)}, {sorted(seen.options)}, {seen.threads} threads"
    return {"key": " ".join(key), "words": f"{seen.name}{seen.suffix} {shapes}: {finding}",
            "lines": lines}  # fmt: skip


# Runs


def run(seed, first, count):
    """Run cases in this process; return what came of them."""
    digests, findings, accepted = [], {}, 0
    for number in range(first, first + count):
        print(f"{seed}:{number}", file=sys.stderr)  # so that a crash tells which it was
        try:
            digest = check_case(seed, number)
        except Finding as finding:
            digest = "failed"
            found = report(seed, number, finding)
            findings.setdefault(found["key"], found)
        accepted += digest is not None
        digests.append(digest)
    level = xentrs.show_config(mode="dicts")["simd"]["level"]
    return {"level": level, "accepted": accepted, "digests": digests, "errors": errors,
            "findings": list(findings.values())}  # fmt: skip


def run_apart(level, seed, first, count):
    """Run cases in a process of that level; return what came of them, a crash being a finding."""
    command = [sys.executable, "-X", "faulthandler", __file__]
    command += ["--part", f"{seed}:{first}:{count}"]
    here = [str(Path(__file__).parent), *(p for p in sys.path if p)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(here)}
    if level is not None:
        environment["XENTRS_SIMD"] = level
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        code, errors_ = done.returncode, done.stderr
    except subprocess.TimeoutExpired as expired:
        code, errors_ = "no end", (expired.stderr or b"").decode()
    if code == 0:
        return json.loads(done.stdout)
    last = [line for line in errors_.splitlines() if line.startswith(f"{seed}:")][-1:]
    crash = {"key": "crash", "words": f"ended with {code}\n{errors_[-1500:]}",
             "lines": [f"python tests/fuzz.py --again {case}" for case in last]}  # fmt: skip
    return {"level": level, "accepted": 0, "digests": [], "errors": {}, "findings": [crash]}


def search(seed, minutes, chunk=400):
    """Run chunks of cases at every level until the time is up; return the distinct findings."""
    levels = xentrs.show_config(mode="dicts")["simd"]["available"]
    findings, largest = {}, dict.fromkeys(RESULTS, 0.0)
    end, first = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end and len(findings) < MOST:
        digests = {}
        for level in levels:
            part = run_apart(level, seed, first, chunk)
            digests[level] = part["digests"]
            for what, error in part["errors"].items():
                largest[what] = max(largest[what], error)
            for found in part["findings"]:
                if found["key"] not in findings and len(findings) < MOST:
                    findings[found["key"]] = found
                    lines = "\n    ".join(found["lines"])
                    print(f"\nat {level}: {found['words']}\n    {lines}", flush=True)
        fused = [level for level in levels if level in FUSED and digests[level]]
        for level in fused[1:]:
            for i, (a, b) in enumerate(zip(digests[fused[0]], digests[level], strict=True)):
                if a != b and "failed" not in (a, b) and "levels" not in findings:
                    again = f"python tests/fuzz.py --again {seed}:{first + i}"
                    findings["levels"] = again
                    print(f"\nother bits at {level} than at {fused[0]}\n    {again}", flush=True)
        first += chunk
    worst = ", ".join(f"{what} {error:.2f}" for what, error in largest.items())
    print(f"\n{first} cases at each of {levels}, seed {seed}: {len(findings)} distinct findings")
    print(f"largest errors in ULP of their terms: {worst}")
    return findings


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, help="default: a new one")
    parser.add_argument("--again", metavar="SEED:NUMBER", help="run one case")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("error")
    if given.again:
        seed, number = map(int, given.again.split(":"))
        try:
            print("refused" if check_case(seed, number) is None else "right")
        except Finding as finding:
            found = report(seed, number, finding)
            print(found["words"], *found["lines"], sep="\n")
            return 1
        return 0
    if given.part:
        print(json.dumps(run(*map(int, given.part.split(":")))))
        return 0
    seed = secrets.randbelow(10**9) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    return 1 if search(seed, given.minutes) else 0


if __name__ == "__main__":
    sys.exit(main())
