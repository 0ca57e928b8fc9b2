"""Recorded bits: digests of the results of many calls, for `test_recorded_bits.py` to compare.

A change of the code that should change no result leaves every digest as it is.

``python tests/recorded_bits.py`` records the digests of this build in `recorded_bits.json`.
``python tests/recorded_bits.py GROUP`` prints a digest of each call of one group at this process's
instruction set. Two builds compared line by line show which calls of a group differ.

The inputs are the same on every machine and with every version of NumPy. They are made of the
frozen stream of `RandomState` by operations that IEEE 754 defines to the last bit, not by `np.exp`,
powers or sums of floats.
"""

import functools
import hashlib
import itertools
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np

import xentrs
from levels import SIMD, environment

FILE = Path(__file__).with_suffix(".json")
DTYPES = ["float32", "float64"]
BINARY = "binary_cross_entropy_with_logits"
OTHER = {"float32": "float64", "float64": "float32"}  # for targets and weights of another type

# What varies: a group of calls for each dtype, number of classes or shape, and kind of logits. Each
# group runs every option (`class_options`, `element_options`) with every function, reduction and
# layout (`ways`). Numbers of classes lie at the edges of vectors, blocks and kernels (256 | 257).
# Keep the test below 40 s for three instruction sets.
CLASSES = [1, 2, 3, 8, 16, 17, 63, 64, 65, 255, 256, 257, 300, 1000, 1031, 2048]
LOG_LOSS_CLASSES = [1, 2, 3, 8, 17, 64, 257, 1031, 4099]
SAMPLES = [1, 5, 16, 17, 64, 203]  # in turns, as far as ELEMENTS allows
ELEMENTS = 21_000
LOGITS = ["plain", "offset", "huge", "infinite", "peaks"]
PROBABILITIES = ["normalized", "tiny", "ends", "invalid"]
BINARY_SHAPES = [(1, 1), (1, 10), (7, 9), (16, 8), (33, 17), (64, 64), (41, 100), (5, 1031)]
BINARY_LOGITS = ["plain", "huge", "infinite", "negative"]
BINARY_TARGETS = ["float", "whole float", "bool", "int", "constant"]
# At least 64 samples next to each other in memory: more than 256 classes are read in columns.
COLUMNS = [257, 300, 1000]
COLUMN_SAMPLES = 150
LARGE = [(65536, 10), (900, 1000), (9, 100_000)]  # enough for several threads

# The other losses and options, with fewer calls each: few classes, rows and columns of many.
FURTHER = {
    "cross_entropy": [
        {"z_loss": 0.01},
        {"softcap": 30.0},
        {"temperature": 0.3},
        {"z_loss": 1e-4, "softcap": 5.0, "temperature": 7.0},
    ],
    "focal_loss": [{"gamma": gamma} for gamma in (0.0, 0.5, 1.0, 2.0, 5.0)],
    "generalized_cross_entropy": [{"q": q} for q in (0.05, 0.7, 1.0)],
    "poly_loss": [{"epsilon": epsilon} for epsilon in (1.0, -1.0)],
    "kl_divergence": [{}, {"temperature": 2.0}, {"direction": "reverse"}],
    "js_divergence": [{}, {"beta": 0.1, "temperature": 0.5}, {"beta": 0.0}],
    "nll_loss": [{}, {"label_smoothing": 0.1}],
    "binary_cross_entropy": [{}, {"label_smoothing": 0.1}],
    "sigmoid_focal_loss": [{}, {"gamma": 0.5, "alpha": 0.25}],
    "softmax_entropy": [{}],
}
FURTHER_SHAPES = [(33, 2), (203, 10), (70, 300), (5, 1031)]
FURTHER_LOGITS = ["plain", "huge", "peaks"]
FUNCTIONS = {
    "softmax": [{}, {"temperature": 0.3}],
    "log_softmax": [{}, {"temperature": 0.3}],
    "logsumexp": [{}],
    "entropy": [{}, {"base": 2}],
}


class Draw:
    """Random inputs that belong to one group of calls."""

    def __init__(self, group):
        self.state = np.random.RandomState(zlib.crc32(group.encode()))

    def uniform(self, *shape):
        return self.state.random_sample(shape)

    def normal(self, *shape):
        """Nearly normal: the sum of four uniform numbers, without a logarithm."""
        a, b, c, d = (self.uniform(*shape) for _ in range(4))
        return ((a + b) + (c + d) - 2) * 1.75

    def integers(self, stop, *shape):
        return self.state.randint(0, stop, shape, dtype=np.int64)

    def chance(self, share, *shape):
        return self.uniform(*shape) < share

    def choice(self, values, *shape):
        return np.array(values)[self.integers(len(values), *shape)]


def cast(array, dtype):
    with np.errstate(over="ignore"):  # to inf: a logit like others
        return array.astype(dtype)


def logits(draw, shape, dtype, kind):
    n, c = shape
    x = draw.normal(n, c)
    if kind == "offset":
        x = x * 3 + draw.choice([0, 1e3, -5e4, 3e5, 1e9], n, 1)
    elif kind == "huge":
        x *= draw.choice([10, 30, 100, 1e4, 1e30, 1e37], n, 1)
    elif kind == "infinite":
        x[draw.chance(0.2, n, c)] = -np.inf
        x[draw.chance(0.1, n), draw.integers(c)] = np.nan
        x[draw.chance(0.1, n), draw.integers(c)] = np.inf
        x[draw.chance(0.1, n)] = -np.inf
    elif kind == "peaks":
        x = np.round(x)  # and classes tie
        x[np.arange(n), draw.integers(c, n)] += draw.choice([0, 20, 80, 200, 720], n)
    elif kind == "negative":
        x = -np.abs(x) * 100
        x[draw.chance(0.2, n, c)] = -0.0
    return cast(x, dtype)


def probabilities(draw, shape, dtype, kind):
    n, c = shape
    whole = draw.integers(1000, n, c) + 1
    p = whole / whole.sum(1, keepdims=True)
    if kind == "tiny":
        p *= draw.choice([1, 1e-30, 1e-41, 1e-300, 0, -0.0], n, c)
    elif kind == "ends":
        p = draw.choice([0, 1, 0.5, 5e-324, 1e-45, -0.0], n, c)
    elif kind == "invalid":
        p[draw.integers(n), draw.integers(c)] = draw.choice([1.5, -1, np.nan, np.inf])
    return cast(p, dtype)


def soft_target(draw, shape, dtype):
    """Probabilities with zeros among them."""
    n, c = shape
    whole = draw.integers(100, n, c) * draw.chance(0.8, n, c)
    return (whole / np.maximum(whole.sum(1, keepdims=True), 1)).astype(dtype)


def weights(draw, dtype, *shape, zeros=0.0):
    w = draw.uniform(*shape) + 0.1
    w[draw.chance(zeros, *shape)] = 0
    return w.astype(dtype)


def class_options(draw, shape, dtype):
    """Return targets and options by name, for a loss with a class axis."""
    n, c = shape
    t = draw.integers(c, n)
    ignored = np.where(draw.chance(0.2, n), -100, t)
    q = soft_target(draw, shape, dtype)
    wide_q = soft_target(draw, shape, OTHER[dtype])
    w = weights(draw, dtype, c)
    zeros = weights(draw, dtype, c, zeros=0.2)
    wide = weights(draw, OTHER[dtype], c)
    s = weights(draw, dtype, n, zeros=0.1)
    half = w.dtype.type(0.5)
    return {
        "indices": (t, {}),
        "narrow indices": ((t % 100).astype(np.uint8 if c > 100 else np.int8), {}),
        "ignored": (ignored, {}),
        "classes ignored": (t, {"ignore_index": [0, -3, c // 2]}),
        "base": (t, {"base": 2}),
        "denominator": (ignored, {"denominator": 3.5}),
        "denominator 0": (t, {"denominator": 0.0}),
        "smoothing": (ignored, {"label_smoothing": 0.1}),
        "smoothing 1": (t, {"label_smoothing": 1.0, "sample_weight": s}),
        "weight": (ignored, {"weight": w}),
        "weights with zeros": (ignored, {"weight": zeros, "sample_weight": s}),
        "weight of both signs": (t, {"weight": w - half}),
        "weight of the other type": (t, {"weight": wide}),
        "sample weight": (ignored, {"sample_weight": s}),
        "weight, smoothing": (t, {"weight": w, "label_smoothing": 0.1, "base": 2}),
        "indices, all": (ignored, {"weight": w, "label_smoothing": 0.2, "sample_weight": s}),
        "soft": (q, {}),
        "soft of the other type": (wide_q, {}),
        "soft, sample weight": (q, {"sample_weight": s, "base": 10}),
        "soft, weight": (q, {"weight": zeros}),
        "soft, smoothing": (q, {"label_smoothing": 0.3}),
        "soft, all": (
            q,
            {
                "weight": wide,
                "label_smoothing": 0.1,
                "sample_weight": s,
                "denominator": 7,
                "base": 2,
            },
        ),
        "soft, huge": (q * q.dtype.type(1e37), {"weight": w}),
        "soft of both signs": (q - q.dtype.type(0.01), {}),
        "one-hot": (t[:, None] == np.arange(c), {}),
    }


def element_options(draw, shape, dtype, kind):
    """Return targets of a kind and options by name, for the binary loss."""
    n, c = shape
    whole = draw.chance(0.5, n, c)
    soft = draw.uniform(n, c)
    soft[draw.chance(0.2, n, c)] = 0
    soft[draw.chance(0.2, n, c)] = 1
    target = {
        "float": soft.astype(dtype),
        "whole float": whole.astype(OTHER[dtype]),
        "bool": whole,
        "int": whole.astype(np.int32),
        "constant": np.full(shape, 0.3, dtype),
    }[kind]
    w = weights(draw, dtype, c)
    wide = weights(draw, OTHER[dtype], c)
    full = weights(draw, dtype, n, c, zeros=0.1)
    where = draw.chance(0.7, n, c)
    options = {
        "plain": {},
        "weight": {"weight": w},
        "weight with zeros": {"weight": weights(draw, dtype, c, zeros=0.3)},
        "weight of elements": {"weight": full},
        "one weight": {"weight": np.array(2.0, dtype)},
        "weight of the other type": {"weight": wide},
        "pos_weight": {"pos_weight": w},
        "pos_weight of elements": {"pos_weight": full},
        "one pos_weight": {"pos_weight": np.array(3.0, dtype)},
        "both weights": {"weight": full, "pos_weight": wide},
        "where": {"where": where},
        "smoothing": {"label_smoothing": 0.1},
        "base": {"base": 2},
        "base below 1": {"base": 0.5},
        "denominator": {"denominator": 12.5},
        "denominator below 1": {"denominator": 0.25},
        "denominator infinite": {"denominator": float("inf")},
        "denominator 0": {"denominator": 0.0},
        "all": {
            "weight": w,
            "pos_weight": full,
            "where": where,
            "label_smoothing": 0.2,
            "base": 10,
        },
    }
    return {name: (target, o) for name, o in options.items()}


def functions(loss):
    """Return the twins of a loss, the one with the Hessian `None` if there is none."""
    twins = ("", "_with_grad", "_with_grad_hess")
    found = [getattr(xentrs, loss + twin, None) for twin in twins]
    if loss == "softmax_entropy":  # which has no target
        return [f and (lambda x, t, f=f, **options: f(x, **options)) for f in found]
    return found


def ways(loss, x, t, options):
    """Yield names and calls: the twins, reductions, outputs and layouts, of the same numbers."""
    f, grad, hess = functions(loss)
    o = options
    yield "sum", lambda: f(x, t, reduction="sum", **o)
    yield "none", lambda: f(x, t, reduction="none", **o)
    yield "mean, gradient", lambda: grad(x, t, **o)
    yield "none, gradient", lambda: grad(x, t, reduction="none", **o)
    yield "sum, Hessian", lambda: hess(x, t, reduction="sum", **o)
    yield "none, Hessian", lambda: hess(x, t, reduction="none", **o)

    # In place: the results and what lies in memory afterwards.
    def in_place(a, view, function, name="out", **more):
        return (*function(view(a), t, **{name: view(a)}, **more, **o), a)

    def whole(a):
        return a

    yield "in place", lambda: in_place(x.copy(), whole, grad)
    yield "in place, Hessian", lambda: in_place(x.copy(), whole, hess, hess_out=np.zeros_like(x))
    yield "Hessian in place", lambda: in_place(x.copy(), whole, hess, "hess_out")
    yield "columns in place", lambda: in_place(x.copy(order="F"), whole, grad)
    spaced = np.zeros((x.shape[0], 2 * x.shape[1] + 3), x.dtype)

    def odd(a):
        return a[:, 1 : 2 * x.shape[1] + 1 : 2]

    odd(spaced)[...] = x
    yield "strides in place", lambda: in_place(spaced.copy(), odd, grad)
    yield "strides", lambda: grad(odd(spaced), t, **o)
    yield "backwards", lambda: (hess or grad)(x[::-1, ::-1], t, **o)
    yield from column_ways(loss, x, t, options)


def column_ways(loss, x, t, options):
    """Yield names and calls where samples or elements lie next to each other in memory."""
    f, grad, hess = functions(loss)
    columns, tc = np.asfortranarray(x), np.asfortranarray(t)
    yield "columns, loss", lambda: f(columns, tc, reduction="none", **options)
    yield "columns, gradient", lambda: grad(columns, tc, **options)
    yield "columns, Hessian", lambda: hess(columns, tc, reduction="none", **options)
    m = x.shape[0] // 2
    if m and xentrs._xentrs.LOSSES[loss]["axis"]:
        o = dict(options)

        def folded(a):  # (2 m, ...) as (2, m, ...), the class axis in the middle
            a = a[: 2 * m].reshape(2, m, *a.shape[1:])
            return np.ascontiguousarray(np.moveaxis(a, -1, 1)) if a.ndim == 3 else a

        x3, t3 = folded(x), folded(t)
        if "sample_weight" in o:
            o["sample_weight"] = folded(o["sample_weight"])
        yield "axis 1, loss", lambda: f(x3, t3, axis=1, **o)
        yield "axis 1, gradient", lambda: grad(x3, t3, axis=1, reduction="sum", **o)
        yield "axis 1, Hessian", lambda: hess(x3, t3, axis=1, reduction="none", **o)


def twins(loss, x, t, options):
    """Yield names and calls: fewer of them, for large arrays."""
    f, grad, hess = functions(loss)
    yield "loss", lambda: f(x, t, reduction="none", **options)
    yield "gradient", lambda: grad(x, t, **options)
    yield "Hessian", lambda: hess(x, t, **options)


def calls(loss, x, options, how=ways):
    has_hessian = functions(loss)[2] is not None
    for name, (target, o) in options.items():
        for way, call in how(loss, x, target, o):
            if has_hessian or "Hessian" not in way:
                yield f"{name}: {way}", call


def some(options, *names):
    return {name: options[name] for name in names}


def class_calls(loss, scores, kind, shape, dtype, group):
    draw = Draw(group)
    x = scores(draw, shape, dtype, kind)
    return calls(loss, x, class_options(draw, shape, dtype))


def column_calls(shape, dtype, kind, group):
    draw = Draw(group)
    x = logits(draw, shape, dtype, kind)
    options = class_options(draw, shape, dtype)
    options = some(options, "ignored", "smoothing", "indices, all", "soft", "soft, all")
    return calls("cross_entropy", x, options, column_ways)


def element_calls(shape, dtype, kind, group):
    draw = Draw(group)
    x = logits(draw, shape, dtype, kind)
    for target in BINARY_TARGETS:
        options = element_options(draw, shape, dtype, target)
        if target not in ("float", "bool"):
            options = some(options, "plain", "weight", "all")
        for name, call in calls(BINARY, x, options):
            yield f"{target}, {name}", call


def large_calls(loss, shape, dtype, group):
    draw = Draw(group)
    if loss == BINARY:
        x = logits(draw, shape, dtype, "plain")
        options = some(element_options(draw, shape, dtype, "float"), "plain", "all")
    else:
        scores, kind = {
            "cross_entropy": (logits, "plain"),
            "log_loss": (probabilities, "normalized"),
        }[loss]
        x = scores(draw, shape, dtype, kind)
        options = class_options(draw, shape, dtype)
        options = some(options, "ignored", "indices, all", "soft, all")
    return calls(loss, x, options, twins)


def further_calls(loss, shape, dtype, kind, group):
    draw = Draw(group)
    x, other = (logits(draw, shape, dtype, k) for k in (kind, "plain"))
    about = xentrs._xentrs.LOSSES[loss]
    if about["input"] == "probabilities":
        x = probabilities(draw, shape, dtype, "normalized")
    elif loss == "nll_loss":
        x = -np.abs(x)
    targets = [soft_target(draw, shape, dtype)]
    if about["second"] == "teacher_logits":
        targets = [other]
    elif about["axis"]:
        indices = class_options(draw, shape, dtype)["ignored"][0]
        # `losses.py` knows them too, but needs pytest, and this file runs without.
        of_one_class = {"gamma", "q", "epsilon"} & {*about["options"]}
        targets = [indices] if of_one_class else [indices, *targets]
    n, c = shape
    weight = weights(draw, dtype, c)
    sample_weight = weights(draw, dtype, n, zeros=0.1)
    given = {"weight": weight, "sample_weight": sample_weight, "base": 2, "denominator": 3.5}
    options = {}
    for i, own in enumerate(FURTHER[loss]):
        more = own | some(given, *(name for name in given if name in about["options"]))
        for j, target in enumerate(targets):
            options |= {f"{i}, {j}": (target, own), f"{i}, {j}, weights": (target, more)}
    return calls(loss, x, options, further_ways)


def further_ways(loss, x, t, options):
    """Yield names and calls: fewer of them, of contiguous numbers and of columns."""
    yield from twins(loss, x, t, options)
    yield from column_ways(loss, x, t, options)


def function_calls(name, shape, dtype, kind, group):
    draw = Draw(group)
    x = logits(draw, shape, dtype, kind)
    x = np.abs(x) if name == "entropy" else x
    for options, axis in itertools.product(FUNCTIONS[name], (0, 1)):
        for layout in "CF":
            given = x.copy(order=layout)
            call = functools.partial(getattr(xentrs, name), given, axis=axis, **options)
            yield f"{options}, axis {axis}, {layout}", call


def groups():
    """Yield names of groups, each with a function that returns its calls."""
    for dtype in DTYPES:
        for loss, kinds, scores, counts in (
            ("cross_entropy", LOGITS, logits, CLASSES),
            ("log_loss", PROBABILITIES, probabilities, LOG_LOSS_CLASSES),
        ):
            for (i, c), (j, kind) in itertools.product(enumerate(counts), enumerate(kinds)):
                turns = [n for n in SAMPLES if n * c <= ELEMENTS]
                shape = (turns[(i + j) % len(turns)], c)
                name = f"{loss} {dtype} {shape} {kind}"
                yield name, (class_calls, loss, scores, kind, shape, dtype, name)
        for c, kind in itertools.product(COLUMNS, ["plain", "huge", "infinite"]):
            shape = (COLUMN_SAMPLES, c)
            name = f"cross_entropy {dtype} columns {shape} {kind}"
            yield name, (column_calls, shape, dtype, kind, name)
        for shape, kind in itertools.product(BINARY_SHAPES, BINARY_LOGITS):
            name = f"{BINARY} {dtype} {shape} {kind}"
            yield name, (element_calls, shape, dtype, kind, name)
        for loss, shape in itertools.product(["cross_entropy", "log_loss", BINARY], LARGE):
            name = f"{loss} {dtype} {shape} large"
            yield name, (large_calls, loss, shape, dtype, name)
        for make, names in ((further_calls, FURTHER), (function_calls, FUNCTIONS)):
            for called, shape, kind in itertools.product(names, FURTHER_SHAPES, FURTHER_LOGITS):
                name = f"{called} {dtype} {shape} {kind}, further"
                yield name, (make, called, shape, dtype, kind, name)


def update(digest, result):
    """Add a result to a digest: type, shape and bits of each array, every NaN as the same NaN."""
    for array in result if isinstance(result, tuple) else (result,):
        array = np.asarray(array)
        nan = np.isnan(array)
        if nan.any():
            array = np.where(nan, np.array(np.nan, array.dtype), array)
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array))


def outcomes(group):
    """Yield the name and the outcome of each call of a group: its result or the type of its error.

    Other errors than those of values are mistakes in this file.
    """
    make, *arguments = group
    for name, call in make(*arguments):
        try:
            yield name, call()
        except (ValueError, IndexError) as error:
            yield name, type(error)


def digest_of(outcomes):
    """Return the digest of names with their outcomes."""
    digest = hashlib.sha256()
    for name, outcome in outcomes:
        digest.update(f"\n{name}: ".encode())
        if isinstance(outcome, type):
            digest.update(outcome.__name__.encode())
        else:
            update(digest, outcome)
    return digest.hexdigest()[:16]


def every_nth(groups, n):
    """Return the first, the `n + 1`-th and so on of groups by name."""
    return dict(itertools.islice(groups.items(), 0, None, n))


def run(every=1):
    """Return the digest of every group, or every n-th, at the instruction set of this process."""
    chosen = every_nth(dict(groups()), every)
    return {name: digest_of(outcomes(group)) for name, group in chosen.items()}


def differing(recorded, digests):
    """Return the names of the groups whose digests are not those recorded."""
    names = recorded | digests
    return [name for name in names if recorded.get(name) != digests.get(name)]


def run_at(level, every=1, timeout=1500):
    """Return the digests at a level, from a process of its own: it chooses its level once."""
    done = subprocess.run(
        [sys.executable, __file__, "--print", str(every)],
        env=environment(level),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"at {level}: {done.stderr}")
    result = json.loads(done.stdout)
    assert result["level"] == level
    return result["digests"]


def kind_of(level):
    """Levels with fused multiply-add give the same bits; the portable one has its own."""
    return "portable" if level == "portable" else "fused"


def record():
    """Write the digests at every level of this machine to `recorded_bits.json`."""
    recorded = {}
    for level in SIMD["available"]:
        digests = run_at(level)
        first = recorded.setdefault(kind_of(level), digests)
        if differ := differing(first, digests):
            sys.exit(f"{level} differs from the level before it in {differ}: nothing is recorded")
    if set(recorded) != {"fused", "portable"}:
        sys.exit(f"this machine has {list(recorded)} levels alone: nothing is recorded")
    FILE.write_text(json.dumps(recorded, indent=0) + "\n")


def show(group):
    """Print the digest of each call of a group."""
    for name, outcome in outcomes(dict(groups())[group]):
        raised = f" raises {outcome.__name__}" if isinstance(outcome, type) else ""
        print(f"{digest_of([(name, outcome)])} {name}{raised}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--print"]:
        level = SIMD["level"]
        json.dump({"level": level, "digests": run(int(sys.argv[2]))}, sys.stdout)
    elif sys.argv[1:]:
        show(sys.argv[1])
    else:
        record()
