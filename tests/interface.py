"""Calls of every public function with arguments of any kind, made of bytes.

| command | what it does |
|---|---|
| ``python tests/interface.py --minutes 5`` | random bytes, ``--seed`` for the same again |
| ``python tests/interface.py --bytes HEX`` | one call again; ``--file PATH`` for that of a file |

`fuzz/interface.py` lets atheris choose the bytes. Whatever the arguments are, a call gives the
right values, or raises a documented exception that says why and has written to nothing.
"""

import argparse
import array
import decimal
import faulthandler
import fractions
import inspect
import pickle
import random
import secrets
import sys
import time
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np

import fuzz
import xentrs
from fuzz import ALLOWED, Call, Finding
from losses import OUTPUTS, SUFFIXES
from xentrs import _xentrs

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus" / "interface"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = ["f4", "f8", "f4", "f8", "f2", BFLOAT16, ">f4", ">f8", "g", "c8", "?", "O", "S3", "U2"]
DTYPES += [
    "M8[s]",
    "V2",
    "V8",
    "i1",
    "i2",
    "i4",
    "i8",
    "u1",
    "u2",
    "u4",
    "u8",
    ">i4",
    [("a", "f4"), ("b", "i2")],
]
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    np.nan,
    np.inf,
    -np.inf,
    1e-45,
    5e-324,
    3.4e38,
    -3.4e38,
    1.7e308,
]
SPECIAL += [-1e30, 88.7, -87.4, 709.7, 131072.5, 1e7, 65504.0, 0.99999994, -100.0]
# A temperature or a cap next to the ends of float64 makes numbers that nothing is promised of.
NO_PROMISE = (
    "temperature",
    "softcap",
    "q",
    "epsilon",
    "gamma",
    "z_loss",
    "label_smoothing",
    "beta",
    "alpha",
)


class Choices:
    """Choices that bytes make; there are zeros where they end."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def byte(self):
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def pick(self, values):
        return values[self.byte() % len(values)]

    def seldom(self, of):
        """Whether something holds, in one of `of` cases; not where the bytes have ended."""
        return self.byte() % of == of - 1

    def integer(self):
        return int.from_bytes(bytes(self.byte() for _ in range(8)), "little", signed=True)

    def numbers(self, n):
        """Return float64: of a seed, so that an array takes few bytes, or each of its own."""
        kind = self.byte() % 8
        scale, offset = self.pick([1.0, 0.01, 10.0, 100.0]), self.pick([0.0, 0.0, 0.0, 1e4, -77.0])
        if kind < 5:
            return np.random.default_rng(self.byte()).normal(size=n) * scale + offset
        if kind == 5:
            return np.array([self.pick(SPECIAL) for _ in range(min(n, 64))] + [0.0] * (n - 64))[:n]
        if kind == 6:
            return np.random.default_rng(self.byte()).integers(0, 2**64, n, np.uint64).view("f8")
        return np.full(n, self.pick(SPECIAL))


class Subclass(np.ndarray):
    """A subclass that changes what operations give."""

    def __array_finalize__(self, other):
        self.other = other


class Odd:
    """An object that is nearly an array or a number."""

    def __init__(self, how):
        self.how = how

    def __getattr__(self, name):
        if name == "__array_interface__" and self.how == 1:
            return {"shape": (2, -3), "typestr": "<f4", "data": b"\0" * 24, "version": 3}
        if name == "__array_interface__" and self.how == 2:
            return {"shape": (2, 3), "typestr": "<f4", "data": b"\0" * 24, "version": 3}
        if name == "__dlpack__" and self.how == 3:
            return lambda *args, **kwargs: None
        if name == "__dlpack_device__" and self.how in (3, 4):
            return lambda: (1, 0) if self.how == 3 else "device"
        if name == "__len__" and self.how == 5:
            return lambda: -1
        raise AttributeError(name)

    def __float__(self):
        if self.how == 6:
            raise ValueError("no float today")
        return 0.5

    def __index__(self):
        if self.how == 7:
            raise TypeError("no index today")
        return 1

    def __eq__(self, other):
        if self.how == 8:
            raise ValueError("no comparison today")
        return NotImplemented

    __hash__ = None


def layout(c, a):
    """Return the same elements in another layout or in an array of another kind."""
    how = c.byte() % 16
    if a.dtype.hasobject or how < 6:
        return a
    if how == 6:
        return a[..., ::-1].copy()[..., ::-1] if a.ndim else a
    if how == 7:
        wide = np.zeros((*a.shape, 2), a.dtype)
        wide[..., 0] = a
        return wide[..., 0]
    if how == 8:
        return np.asfortranarray(a)
    if how == 9:
        return np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape) if a.ndim else a
    if how == 10:
        return np.broadcast_to(a[:1], a.shape) if a.ndim and len(a) else a
    if how == 11:
        a = a.copy()
        a.flags.writeable = False
        return a
    if how == 12:
        return a.view(Subclass)
    if how == 13:
        return np.ma.masked_array(a, c.seldom(2))
    if how == 14 and a.dtype.fields is None and a.dtype.kind in "fiu":
        return a.astype(a.dtype.newbyteorder())
    return a.T


def scalar(c):
    """Return anything that is no array."""
    values = [
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        1.5,
        -0.1,
        "mean",
        "sum",
        "none",
        "",
        "x",
        b"x",
        [],
        (),
        {},
        set(),
    ]
    values += [
        1 << 70,
        -(1 << 70),
        -100,
        1e300,
        1e-300,
        np.nan,
        np.inf,
        -np.inf,
        1j,
        ...,
        int,
        range(3),
        object(),
    ]
    values += [
        np.float32(0.25),
        np.float64("nan"),
        np.int8(-1),
        np.bool_(True),
        np.datetime64("2026-01-01"),
    ]
    values += [
        fractions.Fraction(1, 3),
        decimal.Decimal("0.1"),
        memoryview(b"abcd"),
        array.array("f", [1, 2]),
    ]
    values += [
        np.array(0.5),
        np.array([0.5]),
        np.array(3),
        np.array("x"),
        np.array(None),
        2**31,
        2**63,
        1e39,
    ]
    values += [
        [0, 1],
        (0, -1),
        [0, "x"],
        [[0.1, 0.2], [0.3]],
        np.nextafter(1, 2),
        -0.0,
        5e-324,
        30.0,
        4096,
        "forward",
        "reverse",
    ]
    if c.seldom(8):
        return Odd(c.byte() % 10)
    if c.seldom(8):
        return c.integer()
    return c.pick(values)


def any_array(c, shape):
    """Return an array of any dtype, nearly of a shape."""
    shape = c.pick(
        [
            shape,
            shape,
            shape,
            shape[:-1],
            shape[1:],
            shape[::-1],
            (*shape, 2),
            (0, *shape[1:]),
            (1,) * len(shape),
        ]
    )
    dtype = np.dtype(c.pick(DTYPES))
    n = int(np.prod(shape, dtype=int))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            a = c.numbers(n).reshape(shape).astype(dtype)
        except (TypeError, ValueError):
            a = np.zeros(shape, dtype)
    return layout(c, a)


def anything(c, shape):
    """Return an argument of any kind."""
    how = c.byte() % 4
    if how == 0:
        return scalar(c)
    if how == 1:
        a = any_array(c, shape)
        return a.tolist() if a.size < 50 else a
    return any_array(c, shape)


class Drawn:
    """Arrays of a call that fit together."""

    def __init__(self, c):
        self.c = c
        self.classes = c.pick([1, 2, 3, 5, 10, 16, 17, 65, 130, 300])
        self.samples = c.pick([(), (1,), (3,), (17,), (2, 3), (70,), (0,), (2, 1, 3)])
        self.dtype = np.dtype(c.pick(["f4", "f8", "f4", "f8", "f2", BFLOAT16]))
        self.axis = c.byte() % (len(self.samples) + 1)
        shape = [*self.samples]
        shape.insert(self.axis, self.classes)
        self.shape = tuple(shape)
        self.known = {}

    def floats(self, shape, dtype=None, bounded=False):
        with np.errstate(all="ignore"):
            a = self.c.numbers(int(np.prod(shape, dtype=int)))
            if bounded:
                a = np.where(
                    np.isfinite(a), abs(np.tanh(a)), self.c.pick([0.5, 0.0, 1.0, np.nan, 2.0])
                )
            return layout(self.c, a.reshape(shape).astype(dtype or self.dtype))

    def weights(self, shape):
        rng = np.random.default_rng(self.c.byte())
        dtype = self.c.pick(["f4", "f8", "i8", "u1", "f2", "?"])
        return layout(self.c, np.asarray(rng.integers(0, 3, shape)).astype(dtype))

    def indices(self, shape, classes):
        rng = np.random.default_rng(self.c.byte())
        a = np.asarray(rng.integers(0, classes, shape))
        if self.c.seldom(4) and a.size:
            a.flat[self.c.byte() % a.size] = self.c.pick([-100, -1, classes, 1 << 40])
        return layout(self.c, a.astype(self.c.pick(["i8", "i4", "i2", "u1", "f4", "f8", ">i4"])))

    def argument(self, name, function):
        """Return a likely argument of that name, or anything."""
        c = self.c
        if c.seldom(9):
            return anything(c, c.pick([self.shape, self.samples, (self.classes,), ()]))
        if name in self.known and c.seldom(3):
            return self.known[name]
        value = self.likely(name, function)
        self.known[name] = value
        return value

    def likely(self, name, function):
        c, shape = self.c, self.shape
        by_element = "binary" in function or "sigmoid" in function
        if name in (
            "logits",
            "teacher_logits",
            "log_probabilities",
            "logits_slice",
            "reference_logits",
            "p",
        ):
            a = self.floats(shape)
            return -abs(a) if name == "log_probabilities" else abs(a) if name == "p" else a
        if name == "probabilities":
            return self.floats(shape, bounded=True)
        if name == "target" and by_element:
            return c.pick(
                [self.floats(shape, bounded=True), self.weights(shape) != 0, self.weights(shape)]
            )
        if name == "target":
            how = c.byte() % 4
            if how == 0:
                return self.floats(shape, bounded=True)
            if how == 1 and c.seldom(2):
                pair = (*self.samples, 2)
                return self.indices(pair, self.classes), self.floats(pair, bounded=True)
            return self.indices(self.samples, self.classes)
        if name in ("weight", "pos_weight") and by_element:
            return self.weights(shape[c.byte() % (len(shape) + 1) :])
        if name == "where":
            return self.weights(shape) != 0
        if name in ("weight", "bias"):
            return self.weights((self.classes,))
        if name in ("sample_weight", "losses", "group"):
            return self.weights(self.samples)
        if name == "axis":
            return self.axis - c.pick([0, 0, len(shape)])
        if name in ("out", "hess_out"):
            kinds = [
                "logits",
                "probabilities",
                "log_probabilities",
                "teacher_logits",
                "target",
                "weight",
            ]
            alias = [self.known[kind] for kind in kinds if kind in self.known]
            if c.seldom(3) and alias:
                a = c.pick(alias)
                turned = c.seldom(4) and isinstance(a, np.ndarray) and a.ndim
                return a[::-1] if turned else a
            return layout(c, np.full(shape, 7).astype(self.dtype))
        if name == "logsumexp_out":
            return layout(c, np.full(self.samples, 7).astype(self.dtype))
        if name == "argmax_out":
            return layout(c, np.full(self.samples, 7, "i8"))
        if name == "hidden":
            return self.floats((*self.samples, 4))
        if name == "linear_weight":
            return self.floats((self.classes, 4))
        options = {
            "label_smoothing": [0.0, 0.1, 1, 0.5],
            "reduction": ["mean", "sum", "none"],
            "denominator": [None, 1, 37.5, 0],
            "base": [None, 2, 10.0],
            "ignore_index": [-100, None, (0, -1), 0, [1 << 70]],
            "temperature": [1.0, 0.5, 3],
            "softcap": [None, 30.0, 5],
            "z_loss": [0.0, 1e-3, 1],
            "gamma": [2.0, 0, 0.5, 3],
            "q": [0.7, 1, 0.1],
            "epsilon": [1.0, 0, -1],
            "alpha": [None, 0.25, 0, 1],
            "beta": [0.5, 0.1, 0, 1],
            "direction": ["forward", "reverse"],
            "keepdims": [False, True],
            "top_k": [(1, 5), 1, (2, 3)],
            "bins": [15, 1, 100],
            "per_class": [False, True],
            "first_class": [0, 1, self.classes],
        }
        return c.pick(options.get(name, [None]))


def arrays_in(values):
    """Return the arrays among arguments whose bytes can be compared."""
    found = []
    for value in values:
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            found.append(value.view(np.ndarray))  # a masked array's bytes are not all
        elif isinstance(value, tuple | list):
            found += arrays_in(value)
    return found


def guarded(function, args, options, outputs=()):
    """Call a function; return its result, or `None` where it was refused as it must be."""
    arrays = arrays_in([*args, *options.values()])
    before = [a.tobytes() for a in arrays]
    result, refused = None, None
    try:
        result = function(*args, **options)
    except ALLOWED as error:
        refused = error
    except MemoryError:
        refused = MemoryError("no memory")
    except Exception as error:
        raise Finding(type(error).__name__, str(error)) from error
    except BaseException as error:  # a panic of the compiled module is none of the exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Finding(f"panic: {type(error).__name__}", str(error)) from None
    if refused is not None and not str(refused):
        raise Finding(f"{refused!r} has no words")
    written = [] if refused is not None else [a for a in outputs if isinstance(a, np.ndarray)]
    for a, copy in zip(arrays, before, strict=True):
        if a.tobytes() != copy and not any(np.may_share_memory(a, out) for out in written):
            raise Finding(
                "an input was written to" if refused is None else "written to before it was refused"
            )
    return result


def draw_arguments(c, drawn, function, name, skip=()):
    """Return positional arguments and options of a function."""
    args, options = [], {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", *skip):
            continue
        if (
            parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            and parameter.default is parameter.empty
        ):
            args.append(drawn.argument(parameter.name, name))
        elif parameter.default is parameter.empty or c.seldom(4):
            options[parameter.name] = drawn.argument(parameter.name, name)
    # Where the class axis is not the last one, arrays fit only with it.
    if (
        "axis" in inspect.signature(function).parameters
        and "axis" not in options
        and not c.seldom(8)
    ):
        options["axis"] = drawn.axis
    return args, options


def call_loss(c):
    """Call a loss, and compare with the reference."""
    name = c.pick(list(_xentrs.LOSSES))
    suffix = c.pick(SUFFIXES[: _xentrs.LOSSES[name]["derivatives"] + 1])
    function = getattr(xentrs, name + suffix)
    args, options = draw_arguments(c, Drawn(c), function, name)
    if c.seldom(40):
        options[c.pick(["nonsense", "target", "out", "hess_out"])] = scalar(c)
        args = args[: c.byte() % 3]
        return guarded(function, args, options, [options.get(key) for key in OUTPUTS])
    outputs = [options.get(key) for key in (*OUTPUTS, "logsumexp_out", "argmax_out")]
    shown = {
        key: options[key] for key in ("logsumexp_out", "argmax_out") if options.get(key) is not None
    }
    if shown or not is_comparable(args, options):
        return guarded(function, args, options, outputs)
    pair = args[1] if len(args) > 1 and isinstance(args[1], tuple) else ()
    target = args[1] if len(args) > 1 else np.zeros(())
    if pair:
        target = np.zeros(())  # what a pair means is compared by fuzz.py
        return guarded(function, args, options, outputs)
    return fuzz.check(Call(name, suffix, args[0], target, options, spoiled=True))


def is_comparable(args, options):
    """Whether the reference takes the arguments as the function does: arrays, lists, numbers."""
    kinds = (np.ndarray, float, int, str, type(None), np.generic, list)
    if not all(isinstance(value, kinds) for value in (*args, *options.values())):
        return False
    if any(isinstance(a, np.ma.MaskedArray | Subclass) for a in (*args, *options.values())):
        return False
    numbers = [options[key] for key in NO_PROMISE if options.get(key) is not None]
    return all(isinstance(x, float | int) and (x == 0 or 1e-3 <= abs(x) <= 1e3) for x in numbers)


def call_function(c):
    """Call a function that is no loss, and compare with NumPy."""
    name = c.pick(["softmax", "log_softmax", "logsumexp", "entropy"])
    function = getattr(xentrs, name)
    args, options = draw_arguments(c, Drawn(c), function, name)
    x = np.array(args[0]) if isinstance(args[0], np.ndarray) else None
    result = guarded(function, args, options, [options.get("out")])
    if result is None or x is None or x.dtype.kind != "f" or x.dtype.itemsize > 8:
        return
    axis, temperature = options.get("axis", -1), options.get("temperature", 1.0)
    if (
        not isinstance(axis, int)
        or not isinstance(temperature, float | int)
        or not 0.01 < temperature < 100
    ):
        return
    x = x.astype(np.longdouble)
    # Where the largest finite number is far below overflow, and nothing but numbers.
    if not x.size or not np.isfinite(x).all() or abs(x).max() > 1e30 or x.ndim == 0:
        return
    with np.errstate(all="ignore"):
        scaled = x / temperature
        top = scaled.max(axis, keepdims=True)
        rest = np.log(np.exp(scaled - top).sum(axis, keepdims=True))
        log_sum = top + rest
        share = x / x.sum(axis, keepdims=True)
        right = {
            "softmax": np.exp(scaled - top - rest),
            "log_softmax": scaled - top - rest,
            "logsumexp": log_sum if options.get("keepdims") else np.squeeze(log_sum, axis),
            "entropy": -np.where(share > 0, share * np.log(share), 0).sum(axis),
        }[name]
    if name == "entropy" and (options.get("base") is not None or (x.sum(axis) <= 1e-30).any()):
        return
    actual = np.asarray(result).astype(np.longdouble)
    eps = 4e-3 if np.asarray(result).dtype.itemsize == 2 else 1e-5
    size = abs(right) + (abs(scaled).max() if name != "softmax" else 0)
    if (
        actual.shape != right.shape
        or not (abs(actual - right) <= eps * size + 1e-4 * (eps > 1e-4) + 1e-30).all()
    ):
        raise Finding(f"{name}: a wrong value")


def call_linear(c):
    """Call linear_cross_entropy, and compare with the loss of the product."""
    name = c.pick(["linear_cross_entropy", "linear_cross_entropy_with_grad"])
    args, options = draw_arguments(c, Drawn(c), getattr(xentrs, name), "linear")
    result = guarded(getattr(xentrs, name), args, options)
    plain = all(isinstance(a, np.ndarray) and a.dtype in (np.float32, np.float64) for a in args[:2])
    if result is None or not plain or options.get("bias") is not None:
        return
    hidden, weight = (np.asarray(a).astype(float) for a in args[:2])
    if (
        not (np.isfinite(hidden).all() and np.isfinite(weight).all())
        or max(abs(hidden).max(initial=0), abs(weight).max(initial=0)) > 1e4
    ):
        return
    loss = result[0] if isinstance(result, tuple) else result
    with np.errstate(all="ignore"):
        plain_options = {key: value for key, value in options.items() if key != "bias"}
        right = xentrs.cross_entropy(hidden @ weight.T, args[2], **plain_options)
        close = np.allclose(
            loss,
            right,
            rtol=1e-2,
            atol=1e-3 * (1 + abs(hidden @ weight.T).max(initial=0)) * 10,
            equal_nan=True,
        )
    if not close and not np.isnan(np.sum(right)) and np.isfinite(np.sum(right)):
        raise Finding("linear_cross_entropy: a wrong value", f"{loss} for {right}")


def same_state(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def call_meter(c):
    """Use a meter: updates, merges, states that were changed."""
    drawn = Drawn(c)
    _, options = draw_arguments(c, drawn, xentrs.CrossEntropyMeter, "meter")
    if isinstance(options.get("bins"), int | np.integer | np.ndarray) and np.any(
        np.size(options["bins"]) == 1
        and np.asarray(options["bins"]).dtype.kind in "iu"
        and np.asarray(options["bins"]) > 1000
    ):
        return  # a meter of as many bins has that much memory
    meter = guarded(xentrs.CrossEntropyMeter, (), options)
    if meter is None:
        return
    other = guarded(xentrs.CrossEntropyMeter, (), options)
    for _ in range(1 + c.byte() % 3):
        method = c.pick(["update", "update", "update_losses"])
        args, options = draw_arguments(c, drawn, getattr(meter, method), "meter")
        options.pop("axis", None)
        before = meter.to_state()
        if guarded(getattr(meter, method), args, options) is None and not same_state(
            before, meter.to_state()
        ):
            raise Finding("a refused update changed the meter")
    guarded(meter.merge, (c.pick([other, other, None, 1, "meter"]),), {})
    read(meter)
    state = meter.to_state()
    if not same_state(state, xentrs.CrossEntropyMeter.from_state(state).to_state()):
        raise Finding("a state is not what it was read from")
    pickle.loads(pickle.dumps(meter))
    # A state from elsewhere.
    for _ in range(1 + c.byte() % 3):
        key = c.pick(list(state))
        how = c.byte() % 6
        if how == 0:
            del state[key]
        elif how == 1:
            state[key] = scalar(c)
        elif how == 2:
            state[key] = any_array(c, np.shape(state[key]) or (1,))
        elif (
            isinstance(state[key], np.ndarray)
            and state[key].size
            and not state[key].dtype.hasobject
        ):
            raw = bytearray(state[key].tobytes())
            raw[c.byte() % len(raw)] ^= 1 << c.byte() % 8
            if how == 3:
                raw[:8] = bytes(c.byte() for _ in raw[:8])
            state[key] = np.frombuffer(bytes(raw), state[key].dtype).reshape(state[key].shape)
        else:
            state[key] = np.zeros((c.byte() % 3, c.byte() % 3), c.pick(["i8", "f8", "U1"]))
        if not state:
            break
    read_back = guarded(xentrs.CrossEntropyMeter.from_state, (state,), {})
    if read_back is not None:
        read(read_back)
        guarded(read_back.merge, (meter,), {})
        read(read_back)


def read(meter):
    """Take all results of a meter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = guarded(meter.compute, (), {})
    if result is not None:
        for quantile in (result.quantile, result.kl_quantile):
            guarded(quantile, (0.5,), {})
            guarded(quantile, (1.0,), {})
        repr(result)


def call_slices(c):
    """Use classes in slices."""
    drawn = Drawn(c)
    options = {}
    args, options = draw_arguments(c, drawn, xentrs.PartialCrossEntropy.of, "slices")
    options.setdefault("first_class", 0)
    part = guarded(xentrs.PartialCrossEntropy.of, args, options)
    if part is None:
        return
    if c.seldom(2):
        guarded(part.merge, (c.pick([part, None, 3, xentrs.PartialCrossEntropy]),), {})
    _, of_loss = draw_arguments(c, drawn, part.loss, "slices")
    guarded(part.loss, (), of_loss)
    args, options = draw_arguments(c, drawn, part.grad, "slices")
    guarded(part.grad, args, options, [options.get("out")])
    pickle.loads(pickle.dumps(part))


def call_settings(c):
    """Change the number of threads; show the configuration."""
    if c.seldom(4):
        guarded(xentrs.show_config, (c.pick(["dicts", "stdouts", 1, None, b"dicts"]),), {})
        return
    before, given = xentrs.get_num_threads(), scalar(c)
    if isinstance(given, int | np.integer) and 16 < given <= 4096:
        given = 3  # threads that another call would start
    guarded(xentrs.set_num_threads, (given,), {})
    if not 1 <= xentrs.get_num_threads() <= 4096:
        raise Finding("the number of threads is out of range")
    xentrs.set_num_threads(min(before, 3))


KINDS = [call_loss] * 8 + [
    call_function,
    call_linear,
    call_meter,
    call_meter,
    call_slices,
    call_settings,
]


def check(data):
    """Make the call that bytes stand for; raise a `Finding` where it does not do what it must."""
    c = Choices(data)
    with np.errstate(all="ignore"):
        return c.pick(KINDS)(c)


def run(seed, seconds, most=sys.maxsize):
    """Check random bytes for a time; return the number of calls, of results, and what was found."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    calls, accepted, findings = 0, 0, {}
    while time.monotonic() < end and calls < most:
        data = rng.randbytes(rng.choice([30, 60, 120, 250, 500]))
        print(data.hex(), file=sys.stderr)  # so that a crash tells which it was
        try:
            accepted += check(data) is not None
        except Finding as finding:
            findings.setdefault(finding.kind, (str(finding), data))
        except Exception as error:
            findings.setdefault(f"the check itself: {error!r}", (repr(error), data))
        calls += 1
    return calls, accepted, findings


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--calls", type=int, default=sys.maxsize, help="the most")
    parser.add_argument("--seed", type=int, help="default: a new one")
    parser.add_argument("--bytes", type=bytes.fromhex, help="make one call")
    parser.add_argument("--file", type=Path, help="make the call of a file")
    parser.add_argument("--files", type=Path, help="make the call of each file of a folder")
    given = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("error")
    if given.bytes is not None or given.file:
        print(check(given.bytes if given.file is None else given.file.read_bytes()))
        return 0
    if given.files:
        files = sorted(given.files.iterdir())
        for file in files:
            print(file, file=sys.stderr)  # so that a crash tells which it was
            check(file.read_bytes())
        print(f"{len(files)} calls")
        return 0
    seed = secrets.randbelow(10**9) if given.seed is None else given.seed
    calls, accepted, findings = run(seed, 60 * given.minutes, given.calls)
    print(f"seed {seed}: {calls} calls, {accepted} compared, {len(findings)} distinct findings")
    for words, data in findings.values():
        print(f"\n{words}\n    python tests/interface.py --bytes {data.hex()}")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
