"""The functions of rows that are no losses: `softmax`, `log_softmax`, `logsumexp`, `entropy`.

``python tests/test_functions.py`` prints the measured errors (for docs/numerics.md).
"""

import itertools

import numpy as np
import pytest
import scipy.special
import scipy.stats

import reference
import xentrs
from losses import CLASS_COUNTS, DTYPES, assert_same_bits, every_dtype
from reference import Real, significant, ulp_error
from test_accuracy import FAMILIES

NAN, INF = np.nan, np.inf
SHAPES = [(100, 10), (17, 3), (5, 70), (3, 1100)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
LOGITS = {name: make for name, make in FAMILIES.items() if name.startswith("softmax_entropy")}
TEMPERATURES = [1.0, 0.7, 3.0, 1e-3, 250.0]


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [None, (0, 2), (-1, 1), [0], np.array([0, 1, 2]), ()], ids=repr)
def test_softmax_over_several_axes(name, axis, rng):
    function, right = getattr(xentrs, name), getattr(scipy.special, name)
    x = (rng.normal(size=(3, 4, 5)) * 4)[:, ::-1]
    axes = tuple(axis) if axis is not None else None
    if axes == ():
        with pytest.raises(ValueError, match="names no axis"):
            function(x, axis)
        return
    result = function(x, axis)
    np.testing.assert_allclose(result, right(x, axis=axes), rtol=1e-13, atol=1e-15)
    assert result.flags.c_contiguous
    for out in (np.empty((4, 3, 5)).transpose(1, 0, 2), x.copy()):
        given = out if out.strides == x.copy().strides else x
        out[...] = x
        assert function(given, axis, out=out) is out
        assert_same_bits(out, result)
    tempered = function(x, axis, temperature=3.0)
    np.testing.assert_allclose(tempered, right(x / 3.0, axis=axes), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_several_axes_that_are_wrong(name):
    function = getattr(xentrs, name)
    for axis, message in (((0, 0), "twice"), ((0, 2), "axis is 2"), ((0, -2), "twice")):
        with pytest.raises(ValueError, match=message):
            function(np.zeros((2, 3)), axis)
    with pytest.raises(TypeError, match="None, an int or several ints"):
        function(np.zeros((2, 3)), (0, 1.0))
    with pytest.raises(ValueError, match="no classes"):
        function(np.zeros((2, 0)), None)
    with pytest.raises(ValueError, match="out has shape"):
        function(np.zeros((2, 3)), None, out=np.zeros((3, 2)))
    assert function(np.zeros((0, 3, 2)), (1, 2)).shape == (0, 3, 2)


# ------------------------------------------------------------------------------------- the errors


def exact(x, temperature=1.0):
    """Return softmax, its logarithm, the logsumexp and its terms, as long doubles."""
    x = np.asarray(x).astype(Real)
    top = np.argmax(x, -1)[..., None]
    largest = np.take_along_axis(x, top, -1)
    with np.errstate(all="ignore"):
        distance = (x - largest) / Real(temperature)
        exps = np.exp(distance)
    np.put_along_axis(exps, top, 0, -1)
    rest = exps.sum(-1, keepdims=True)
    np.put_along_axis(exps, top, 1, -1)
    log = np.log1p(rest)
    terms = np.maximum(abs(largest), log)[..., 0]
    return exps / (1 + rest), distance - log, (largest + log)[..., 0], terms


def error(actual, value, size=None):
    """Return the largest error in ULP, of results that are not below the normal numbers."""
    good = significant(value if size is None else size, actual.dtype)
    with np.errstate(invalid="ignore"):
        below = abs(actual.astype(Real) - value)[~good]
    assert np.all(below <= np.finfo(actual.dtype).tiny)
    return float(ulp_error(actual, value, size)[good].max(initial=0))


def measure(family, dtype):
    """Return the largest errors of the softmax, its logarithm and the logsumexp, over a family."""
    worst = dict.fromkeys(("softmax", "log_softmax", "logsumexp"), 0.0)
    for i, rows in enumerate(LOGITS[family](dtype, np.random.default_rng(7))):
        x, temperature = rows.scores, TEMPERATURES[i % len(TEMPERATURES)]
        for t in {1.0, temperature}:
            p, log_p, total, terms = exact(x, t)
            errors = {
                "softmax": error(xentrs.softmax(x, temperature=t), p),
                "log_softmax": error(xentrs.log_softmax(x, temperature=t), log_p),
                "logsumexp": error(xentrs.logsumexp(x), total, terms) if t == 1 else 0.0,
            }
            worst = {name: max(worst[name], errors[name]) for name in worst}
    return worst


@every_dtype
@pytest.mark.parametrize("family", LOGITS)
def test_largest_error(family, dtype, record_property):
    worst = measure(family, dtype)
    for name, value in worst.items():
        record_property(f"{name}_ulp", round(value, 3))
    assert max(worst.values()) <= 4, worst


def counts(dtype, rng):
    """Yield rows of counts and of probabilities of every size, some of nearly one class."""
    for classes in (1, 2, 3, 10, 64, 256, 257, 1000, 32_000):
        shape = 3 if classes > 10_000 else max(6, 6000 // classes), classes
        yield rng.integers(0, 10, shape).astype(dtype)
        yield rng.integers(0, 2**20, shape).astype(dtype)
        yield rng.exponential(size=shape).astype(dtype)
        yield (10 ** rng.uniform(-35, 35, shape)).astype(dtype)
        yield (1 + 1e-6 * rng.random(shape)).astype(dtype)
        one = 10 ** rng.uniform(-12, -3, shape)
        one[:, rng.integers(classes)] = 10 ** rng.uniform(-5, 5)
        yield one.astype(dtype)


def exact_entropy(p):
    p = p.astype(Real)
    top = p.argmax(-1)[..., None]
    with np.errstate(all="ignore"):
        ratios = p / np.take_along_axis(p, top, -1)
        products = np.where(ratios == 0, 0, -ratios * np.log(ratios))
    whole = ratios.sum(-1)
    np.put_along_axis(ratios, top, 0, -1)
    result = np.log1p(ratios.sum(-1)) + products.sum(-1) / whole
    return np.where((p == 0).all(-1), NAN, result)


def measure_entropy(dtype):
    worst = 0.0
    for p in counts(dtype, np.random.default_rng(7)):
        right, got = exact_entropy(p), xentrs.entropy(p)
        assert got.dtype == dtype
        assert np.array_equal(np.isnan(got), np.isnan(right))
        good = right >= np.finfo(dtype).tiny
        worst = max(worst, float((abs(got - right)[good] / right[good]).max(initial=0)))
        assert np.all(got[right == 0] == 0)
    return worst


@every_dtype
def test_largest_error_of_entropy(dtype, record_property):
    worst = measure_entropy(dtype)
    record_property("relative_error", worst)
    assert worst <= {np.float32: 2e-6, np.float64: 1e-13}[dtype]


@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0])
def test_the_formulas_are_exact(spread, rng):
    """The long doubles, against mpmath."""
    for classes in (1, 2, 5, 40):
        x = rng.normal(size=classes) * spread + 3
        loss, _ = reference.exact_entropy_row(x)
        right = reference.from_mpmath([loss])
        p = exact(x)[0]
        assert abs(exact_entropy(p[None]) - right) <= 1e-17 * max(right, 1e-300) + 1e-16 * right
        y = int(x.argmin())
        loss, grad = reference.exact_cross_entropy_row(x, np.eye(classes)[y])
        np.testing.assert_allclose(-exact(x)[1][y], reference.from_mpmath([loss])[0], rtol=1e-17)
        others = np.arange(classes) != y
        np.testing.assert_allclose(p[others], reference.from_mpmath(grad)[others], rtol=1e-17)


def test_known_values():
    x = np.array([17, 0], np.float32)
    assert ulp_error(xentrs.log_softmax(x)[0], -np.log1p(np.exp(Real(-17)))) <= 1
    far = np.array([0, 1, 2], np.float32) + np.float32(1e7)
    near = np.array([0, 1, 2], np.float32)
    np.testing.assert_allclose(xentrs.softmax(far), exact(near)[0], rtol=3e-7)
    np.testing.assert_allclose(xentrs.softmax(far, temperature=0.1), exact(near, 0.1)[0], rtol=3e-7)
    assert xentrs.log_softmax(np.array([-200.0, 0], np.float32))[0] == -200
    assert_same_bits(xentrs.softmax(np.zeros(4)), np.full(4, 0.25))
    assert xentrs.logsumexp(np.log([0.25, 0.75])) == pytest.approx(0, abs=2e-16)


# ------------------------------------------------------------------------------- SciPy's functions


@every_dtype
@pytest.mark.parametrize("classes", CLASS_COUNTS)
def test_agrees_with_scipy(classes, dtype, rng):
    for samples in (1, 3, 17, 130):
        if samples * classes > 20_000:
            continue
        x = (rng.normal(size=(samples, classes)) * 3).astype(dtype)
        wide = x.astype(np.float64)
        tolerance = {"rtol": 20 * np.finfo(dtype).eps, "atol": 20 * np.finfo(dtype).eps}
        for name in ("softmax", "log_softmax"):
            right = getattr(scipy.special, name)(wide, axis=-1)
            np.testing.assert_allclose(getattr(xentrs, name)(x), right, **tolerance)
            right = getattr(scipy.special, name)(wide / 2.5, axis=-1)
            got = getattr(xentrs, name)(x, temperature=2.5)
            np.testing.assert_allclose(got, right, **tolerance)
        right = scipy.special.logsumexp(wide, axis=-1)
        np.testing.assert_allclose(xentrs.logsumexp(x), right, **tolerance)
        p = abs(x) * (rng.random(x.shape) < 0.8)
        p[:, 0] += dtype(0.5)
        right = scipy.stats.entropy(p.astype(np.float64), axis=-1, base=2)
        np.testing.assert_allclose(xentrs.entropy(p, base=2), right, **tolerance)


@every_dtype
@pytest.mark.parametrize("repeat", [1, 5, 200])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_infinities_and_nan(repeat, temperature, dtype):
    for row in ([1, INF], [INF, INF], [-INF, -INF], [-INF, 0], [NAN, 1], [NAN, INF], [-INF, NAN]):
        x = np.array(row * repeat, dtype)
        for batch in (x, np.stack([x] * 20 + [np.zeros_like(x)])):
            with np.errstate(all="ignore"):
                right = scipy.special.softmax(batch / dtype(temperature), axis=-1)
            got = xentrs.softmax(batch, temperature=temperature)
            np.testing.assert_allclose(got, right, rtol=1e-6)
            got = xentrs.log_softmax(batch, temperature=temperature)
            with np.errstate(divide="ignore"):
                np.testing.assert_allclose(got, np.log(right), rtol=1e-6)
            with np.errstate(all="ignore"):
                right = scipy.special.logsumexp(batch, axis=-1)
            np.testing.assert_allclose(xentrs.logsumexp(batch), right, rtol=1e-6)


@every_dtype
@pytest.mark.parametrize("repeat", [1, 5, 200])
def test_entropy_of_odd_rows(repeat, dtype):
    tiny = float(np.finfo(dtype).smallest_subnormal)
    rows = [[0, 0], [5, 0], [1, INF], [NAN, 1], [NAN, NAN], [-0.0, 1], [tiny, tiny], [1e38, 1e38]]
    for row in rows:
        p = np.array(row * repeat, dtype)
        with np.errstate(all="ignore"):
            right = scipy.stats.entropy(p.astype(np.float64))
        np.testing.assert_allclose(xentrs.entropy(p), float(right), rtol=1e-6)


def test_entropy_of_integers_and_of_impurity(rng):
    counts = rng.integers(0, 50, (3000, 4))
    right = scipy.stats.entropy(counts, axis=1)
    for kind in (np.int64, np.uint8, np.int32, list, ">i4"):
        given = counts.tolist() if kind is list else counts.astype(kind)
        got = xentrs.entropy(given)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, right, rtol=1e-14)
    flags = rng.random((5, 7)) < 0.5
    flags[:, 0] = True
    right = scipy.stats.entropy(flags.astype(int), axis=1)
    np.testing.assert_allclose(xentrs.entropy(flags), right)


# ------------------------------------------------------------------ arrays in any place, in place


def functions(temperature=1.0):
    yield "softmax", lambda x, **o: xentrs.softmax(x, temperature=temperature, **o)
    yield "log_softmax", lambda x, **o: xentrs.log_softmax(x, temperature=temperature, **o)


def layouts(a):
    """Yield copies of an array in other places."""
    yield "Fortran", np.asfortranarray(a)
    yield "backwards", a[::-1, ::-1].copy()[::-1, ::-1]
    yield "strided", np.repeat(a, 2, axis=1)[:, ::2]
    yield "misaligned", np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    yield "swapped", a.astype(a.dtype.newbyteorder())


@every_dtype
@every_shape
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_places_and_out_change_no_bit(shape, temperature, dtype, rng):
    x = (rng.normal(size=shape) * 5).astype(dtype)
    for name, function in functions(temperature):
        right = function(x)
        assert right.dtype == dtype
        assert right.flags.c_contiguous
        for place, there in layouts(x):
            there[...] = x
            assert_same_bits(function(there), right, f"{name} {place}")
            for out_place, out in layouts(np.zeros_like(x)):
                assert function(there, out=out) is out
                assert_same_bits(np.ascontiguousarray(out, dtype), right, f"{place} {out_place}")
            assert function(there, out=there) is there
            assert_same_bits(np.ascontiguousarray(there, dtype), right, f"{name} {place} in place")
        y = x.copy()
        assert function(y, out=y) is y
        assert_same_bits(y, right)
        read_only = x.copy()
        read_only.flags.writeable = False
        assert_same_bits(function(read_only), right)
    for place, there in layouts(x):
        there[...] = x
        assert_same_bits(xentrs.logsumexp(there), xentrs.logsumexp(x), place)
        p = abs(there)
        assert_same_bits(xentrs.entropy(p), xentrs.entropy(abs(x)), place)


@every_dtype
def test_any_axis_and_rank(dtype, rng):
    # Lines of samples that fill vectors and that do not, few and many samples.
    lines = ((9, 16, 5), (5, 40, 7), (2, 100, 3), (30, 7, 6), (150, 5, 2), (300, 11))
    for shape in ((4, 5, 6), (2, 3, 300), (2, 3, 2, 9), (7,), *lines):
        last = (rng.normal(size=shape) * 5).astype(dtype)
        for axis in range(-len(shape), len(shape)):
            x = np.ascontiguousarray(np.moveaxis(last, -1, axis))
            for _, function in functions():
                got = function(x, axis=axis)
                assert got.flags.c_contiguous
                right = np.ascontiguousarray(np.moveaxis(function(last), -1, axis))
                assert_same_bits(got, right)
                inside = x.copy()
                assert_same_bits(function(inside, axis=axis, out=inside), right)
            assert_same_bits(xentrs.logsumexp(x, axis), xentrs.logsumexp(last))
            there = xentrs.softmax_entropy_with_grad(x, axis=axis, reduction="none")
            right = xentrs.softmax_entropy_with_grad(last, reduction="none")
            assert_same_bits(there[0], right[0])
            assert_same_bits(np.ascontiguousarray(np.moveaxis(there[1], axis, -1)), right[1])
            assert_same_bits(xentrs.entropy(abs(x), axis), xentrs.entropy(abs(last)))
            kept = xentrs.logsumexp(x, axis=axis, keepdims=True)
            assert_same_bits(kept, np.expand_dims(np.asarray(xentrs.logsumexp(last)), axis))


@every_dtype
def test_large_results_by_non_temporal_stores(dtype, rng):
    """Arrays beyond the caches, whose rows begin anywhere in a cache line."""
    for shape in ((9, 1_500_001), (1_300_000, 11)):
        x = rng.normal(size=shape).astype(dtype)
        for _, function in functions():
            got = function(x)
            some = np.unique(rng.integers(0, len(x), 50))
            assert_same_bits(got[some], np.stack([function(row) for row in x[some]]))
            assert function(x.copy()).tobytes() == got.tobytes()


@every_dtype
@pytest.mark.parametrize("shape", [(30_000, 10), (300, 1000), (3, 100_000)], ids=str)
def test_threads_change_no_bit(shape, dtype, threads, rng):
    x = (rng.normal(size=shape) * 3).astype(dtype)

    def everything():
        y = x.copy()
        xentrs.softmax(y, out=y)
        return y, xentrs.log_softmax(x), xentrs.logsumexp(x), xentrs.entropy(abs(x))

    threads(1)
    right = everything()
    for count in (2, 3):
        threads(count)
        assert_same_bits(everything(), right)


@every_dtype
@pytest.mark.parametrize("classes", [3, 10, 100, 300])
def test_rows_do_not_know_their_neighbours(classes, dtype, rng):
    x = (rng.normal(size=(37, classes)) * 5).astype(dtype)
    x[3] += 1e7
    x[5, 1] = INF
    x[7, 1] = NAN
    x[11] = -INF
    for temperature in (1.0, 0.3):
        for _, function in functions(temperature):
            right = function(x)
            for row in range(37):
                assert_same_bits(function(x[row]), right[row])
    right = xentrs.logsumexp(x)
    for row in range(37):
        assert_same_bits(np.asarray(xentrs.logsumexp(x[row])), np.asarray(right[row]))


@every_dtype
def test_no_sample(dtype):
    for shape in ((0, 3), (0, 300), (2, 0, 5)):
        x = np.zeros(shape, dtype)
        assert xentrs.softmax(x).shape == shape
        assert xentrs.log_softmax(x, out=x) is x
        assert xentrs.logsumexp(x).shape == shape[:-1]
        assert xentrs.entropy(x).shape == shape[:-1]


# ------------------------------------------------------------------------ several axes, keepdims


def test_logsumexp_over_several_axes(rng):
    x = rng.normal(size=(3, 4, 5, 6))
    choices = [(0, 1), (2, 3), (-1, 0), [1], (0, 1, 2, 3), None, np.array([1, 2]), 2, np.int64(1)]
    for axis, keepdims in itertools.product(choices, (False, True)):
        of = tuple(axis) if isinstance(axis, list | np.ndarray) else axis
        right = scipy.special.logsumexp(x, axis=of, keepdims=keepdims)
        got = xentrs.logsumexp(x, axis=axis, keepdims=keepdims)
        assert got.shape == right.shape
        np.testing.assert_allclose(got, right, rtol=1e-14)
    assert type(xentrs.logsumexp(x[0, 0, 0])) is np.float64
    assert type(xentrs.logsumexp(x[0, 0, 0].astype(np.float32))) is np.float32
    assert type(xentrs.entropy([1, 2, 3])) is np.float64
    for axis, words in (((0, 0), "twice"), ((0, -4), "twice"), ((), "no axis"), ((0, 4), "axis")):
        with pytest.raises(ValueError, match=words):
            xentrs.logsumexp(x, axis=axis)
    for axis in (1.0, "0", (0, 1.5), True):
        with pytest.raises(TypeError, match="axis"):
            xentrs.logsumexp(x, axis=axis)


def test_entropy_over_several_axes(rng):
    for p in (rng.random((3, 4, 5, 6)), rng.integers(0, 9, (3, 4, 5, 6))):
        for axis in ((0, 1), (2, 3), (-1, 0), [1], (0, 1, 2, 3), None, np.array([1, 2]), 2, -3):
            axes = np.atleast_1d(range(4) if axis is None else axis)
            last = np.moveaxis(p, axes, range(-axes.size, 0))
            right = scipy.stats.entropy(last.reshape(*last.shape[: -axes.size], -1), axis=-1)
            got = xentrs.entropy(p, axis=axis)
            assert got.shape == np.shape(right)
            np.testing.assert_allclose(got, right, rtol=1e-14)
        right = scipy.stats.entropy(p, axis=None, base=2)
        assert xentrs.entropy(p, None, base=2) == pytest.approx(right, rel=1e-14)
    assert type(xentrs.entropy(np.ones((2, 2), np.float32), axis=None)) is np.float32
    assert xentrs.entropy([[1, 1], [1, 1]], axis=None, base=2) == 2.0
    p[1, 2, 3, 4] = -1
    for axis in (None, (0, 1), (3, 1), (2, 3)):
        with pytest.raises(ValueError, match=r"^p\[1, 2, 3, 4\] is -1\.0, but counts"):
            xentrs.entropy(p, axis=axis)
    for axis, words in (((0, 0), "twice"), ((), "no axis"), ((0, 4), "axis")):
        with pytest.raises(ValueError, match=words):
            xentrs.entropy(p, axis=axis)
    with pytest.raises(ValueError, match="no classes"):
        xentrs.entropy(np.ones((2, 0)), axis=None)


# ------------------------------------------------------------------------------------- the errors


ALL = [
    pytest.param(xentrs.softmax, "logits", id="softmax"),
    pytest.param(xentrs.log_softmax, "logits", id="log_softmax"),
    pytest.param(xentrs.logsumexp, "logits", id="logsumexp"),
    pytest.param(xentrs.entropy, "p", id="entropy"),
]
every_function = pytest.mark.parametrize(("function", "name"), ALL)
every_full_function = pytest.mark.parametrize(("function", "name"), ALL[:2])


@every_function
def test_what_is_refused(function, name):
    x = np.ones((3, 4))
    for error, words, call in (
        (ValueError, f"{name} must have a class axis", lambda: function(np.float64(1))),
        (ValueError, "no classes on axis 1", lambda: function(np.ones((3, 0)))),
        (ValueError, r"\(0, 3\) has no classes on axes", lambda: function(np.ones((0, 3)), None)),
        (ValueError, r"\(2, 0, 3\) .* axes \(1, 2\)", lambda: function(np.ones((2, 0, 3)), (1, 2))),
        (ValueError, "axis is 2", lambda: function(x, axis=2)),
        (ValueError, "axis is -3", lambda: function(x, -3)),
        (TypeError, "axis", lambda: function(x, axis=1.0)),
        (TypeError, f"{name} has dtype complex128", lambda: function(x.astype(complex))),
        (TypeError, f"{name} has dtype object", lambda: function(None)),
        (TypeError, "masked", lambda: function(np.ma.masked_array(x, x > 0))),
    ):
        with pytest.raises(error, match=words):
            call()


@every_full_function
@every_dtype
def test_arguments_out_of_their_range(function, name, dtype):
    x = np.ones((3, 4), dtype)
    for value in (0, -1.0, NAN, INF, -INF):
        with pytest.raises(ValueError, match="temperature must be finite and above 0, not"):
            function(x, temperature=value)
    with pytest.raises(TypeError, match="temperature must be a number"):
        function(x, temperature="1")
    with pytest.raises(TypeError, match="axis must be None, an int or several ints, not str"):
        function(x, axis="1")
    with pytest.raises(TypeError, match=f"{name} has dtype int64"):
        function(np.ones(4, int))
    assert function([1, 2, 3]).dtype == np.float64
    buffer = np.zeros(24, dtype)
    y = buffer[:12].reshape(3, 4)
    still = np.zeros((3, 4), dtype)
    still.flags.writeable = False
    other = np.float64 if dtype == np.float32 else np.float32
    for error, words, out in (
        (ValueError, "overlaps logits", buffer[4:16].reshape(3, 4)),
        (ValueError, "read-only", still),
        (ValueError, r"shape \(4, 3\)", np.zeros((4, 3), dtype)),
        (ValueError, "overlaps itself", np.broadcast_to(np.zeros(4, dtype), (3, 4))),
        (TypeError, "out has dtype", np.zeros((3, 4), other)),
        (TypeError, "numpy.ndarray, not list", [0.0]),
    ):
        if words == "overlaps itself":
            out = np.lib.stride_tricks.as_strided(np.zeros(4, dtype), (3, 4), (0, out.itemsize))
        before = buffer.copy()
        with pytest.raises(error, match=words):
            function(y, out=out)
        assert_same_bits(buffer, before)


@every_dtype
def test_negative_counts_are_named(dtype, rng, threads):
    for count, shape in itertools.product((1, 2), ((50_000, 3), (50, 1000), (4, 5, 6))):
        threads(count)
        p = rng.random(shape).astype(dtype)
        place = tuple(int(n) * 2 // 3 for n in shape)
        p[place] = -0.5
        p[tuple(n - 1 for n in shape)] = -1
        words = f"p[{', '.join(map(str, place))}] is -0.5, but"
        for axis in range(len(shape)):
            with pytest.raises(ValueError, match="but counts and probabilities") as raised:
                xentrs.entropy(p, axis=axis)
            assert words in str(raised.value)
    with pytest.raises(ValueError, match=r"p\[1\] is -2\.0"):
        xentrs.entropy([1, -2])
    for base in (0, 1, -2, NAN):
        with pytest.raises(ValueError, match="base must be above 0"):
            xentrs.entropy([1, 2], base=base)


def main():
    """Print the rows of docs/numerics.md."""
    for family, dtype in itertools.product(LOGITS, DTYPES):
        worst = " / ".join(f"{value:.2f}" for value in measure(family, dtype).values())
        print(f"| {family.partition(': ')[2]} | {np.dtype(dtype)} | {worst} |", flush=True)
    for dtype in DTYPES:
        print(f"entropy, {np.dtype(dtype)}: {measure_entropy(dtype):.1e}")


if __name__ == "__main__":
    main()
