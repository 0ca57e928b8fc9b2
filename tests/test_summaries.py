"""`logsumexp_out` and `argmax_out` of cross_entropy: filled on the way. Nothing else changes."""

import itertools

import numpy as np
import pytest

import xentrs
from losses import assert_same_bits, every_dtype
from reference import Real

TWINS = (
    xentrs.cross_entropy,
    xentrs.cross_entropy_with_grad,
    xentrs.cross_entropy_with_grad_hess,
)
CLASS_COUNTS = [1, 2, 5, 16, 100, 256, 257, 300, 1030, 20_000]
# In ULP of the larger of the logsumexp and 1: the largest logit and the rest are added.
BOUND = 2
measured = {}


def logsumexp(x, axis=-1):
    x = np.asarray(x).astype(Real)
    with np.errstate(all="ignore"):
        most = x.max(axis, keepdims=True)
        shift = np.where(np.isfinite(most), most, 0)
        total = np.exp(x - shift).sum(axis)
        return np.log(total) + np.squeeze(shift, axis)


def outputs(x, axis=-1):
    samples = np.delete(x.shape, axis)
    return {
        "logsumexp_out": np.full(samples, 7, x.dtype),
        "argmax_out": np.full(samples, 7, np.int64),
    }


def assert_right(x, outs, axis=-1):
    np.testing.assert_array_equal(outs["argmax_out"], np.argmax(x, axis))
    right = logsumexp(x, axis)
    actual = outs["logsumexp_out"]
    finite = np.isfinite(right)
    np.testing.assert_array_equal(actual[~finite], right[~finite].astype(x.dtype))
    unit = np.spacing(np.maximum(abs(right[finite]).astype(x.dtype), x.dtype.type(1)))
    error = abs(actual[finite].astype(Real) - right[finite]) / unit.astype(Real)
    assert error.max(initial=0) <= BOUND
    name = x.dtype.name
    measured[name] = max(measured.get(name, 0), float(error.max(initial=0)))


def draw_target(rng, kind, samples, classes):
    if kind == "indices":
        return np.where(rng.random(samples) < 0.3, -100, rng.integers(0, classes, samples))
    if kind == "probabilities":
        return rng.dirichlet(np.ones(classes), samples)
    indices = rng.integers(0, classes, (*samples, 3))
    return indices, rng.dirichlet(np.ones(3), samples)


def draw_logits(rng, shape, dtype):
    x = rng.normal(size=shape) * rng.choice([0.01, 3.0, 40.0]) + rng.choice([0.0, -60.0, 1e4])
    if rng.random() < 0.3:
        x = np.round(x)  # many are equal
    return x.astype(dtype)


@every_dtype
@pytest.mark.parametrize("kind", ["indices", "probabilities", "pair"])
@pytest.mark.parametrize("classes", CLASS_COUNTS)
def test_every_target_option_and_twin(classes, kind, dtype, rng):
    options = [
        {},
        {"label_smoothing": 0.1},
        {"z_loss": 0.1, "base": 2},
        {"weight": rng.uniform(0.5, 2, classes), "reduction": "none"},
        {"sample_weight": rng.choice([0.0, 1.0], 37), "reduction": "sum"},
        {"denominator": 1e-300},
    ]
    for given, twin in itertools.product(options, TWINS):
        x = draw_logits(rng, (37, classes), dtype)
        target = draw_target(rng, kind, (37,), classes)
        outs = outputs(x)
        assert_same_bits(twin(x, target, **given, **outs), twin(x, target, **given))
        assert_right(x, outs)
        for name, array in outs.items():
            alone = outputs(x)[name]
            twin(x, target, **given, **{name: alone})
            np.testing.assert_array_equal(alone, array)


@every_dtype
@pytest.mark.parametrize("classes", [7, 300])
def test_layouts(classes, dtype, rng):
    for axis in (0, 1, 2):
        shape = [3, 70]
        shape.insert(axis, classes)
        x = draw_logits(rng, shape, dtype)
        target = np.where(rng.random((3, 70)) < 0.2, -100, rng.integers(0, classes, (3, 70)))
        spread = np.repeat(x, 2, -1)[..., ::2]
        for logits in (x, np.asfortranarray(x), spread, x[::-1], x[:, ::-1, ::-1]):
            for in_place in (False, True):
                outs = outputs(logits, axis)
                given = logits.copy(order="K") if in_place else logits
                expected = xentrs.cross_entropy_with_grad(given, target, axis=axis)
                out = given if in_place else None
                results = xentrs.cross_entropy_with_grad(given, target, axis=axis, out=out, **outs)
                assert_same_bits(results[0], expected[0])
                assert_right(logits, outs, axis)
        # Of any strides and byte order themselves.
        outs = {
            "logsumexp_out": np.zeros((70, 6), np.dtype(dtype).newbyteorder())[:, ::2].T,
            "argmax_out": np.zeros((3, 140), ">i8")[:, ::2],
        }
        xentrs.cross_entropy(x, target, axis=axis, **outs)
        np.testing.assert_array_equal(outs["argmax_out"], np.argmax(x, axis))
        np.testing.assert_allclose(
            outs["logsumexp_out"].astype(float), logsumexp(x, axis).astype(float), rtol=1e-6
        )


@every_dtype
@pytest.mark.parametrize("classes", [5, 100, 300, 9000])
def test_ties_infinities_and_nan(classes, dtype, rng):
    inf, nan = np.inf, np.nan
    x = np.zeros((14, classes))
    x[1] = -inf
    x[2, 3] = inf
    x[3, [1, 4]] = nan
    x[4] = nan
    x[5, [2, 3]] = 9
    x[6, :2] = -inf
    x[7, classes - 1] = inf
    x[8, classes - 1] = nan
    x[9, [0, classes - 1]] = [inf, nan]
    x[10] = np.where(np.arange(classes) == classes - 1, 1e30, -1e30)
    x[11] = -1e30
    x[12, [3, classes - 1]] = [4, 4]
    x[13] = np.where(np.arange(classes) == classes - 1, nan, -inf)
    x = x.astype(dtype)
    for kind in ("indices", "ignored", "probabilities", "pair"):
        for twin in TWINS:
            for given in ({}, {"label_smoothing": 0.1}, {"sample_weight": np.zeros(14)}):
                outs = outputs(x)
                target = np.full(14, -100)
                if kind != "ignored":
                    target = draw_target(rng, kind, (14,), classes)
                results = twin(x, target, **given, **outs, reduction="none")
                assert_right(x, outs)
                expected = twin(x, target, **given, reduction="none")
                assert_same_bits(results, expected)
                if twin is not TWINS[0] and (kind == "ignored" or "sample_weight" in given):
                    assert (results[1] == 0).all()


@every_dtype
@pytest.mark.parametrize("classes", [5, 300])
def test_temperature_and_softcap(classes, dtype, rng):
    """They are of the logits that the softmax takes."""
    x = (rng.normal(size=(20, classes)) * 3).astype(dtype)
    for kind in ("indices", "probabilities", "pair"):
        target = draw_target(rng, kind, (20,), classes)
        for given in ({"temperature": 3.0}, {"softcap": 4.0}, {"softcap": 4.0, "temperature": 0.5}):
            z, cap = x.astype(Real), given.get("softcap")
            z = z if cap is None else cap * np.tanh(z / cap)
            outs = outputs(x)
            expected = xentrs.cross_entropy_with_grad(x, target, **given)
            assert_same_bits(xentrs.cross_entropy_with_grad(x, target, **given, **outs), expected)
            right = logsumexp(z / given.get("temperature", 1.0)).astype(float)
            actual = outs["logsumexp_out"].astype(float)
            eps = np.finfo(dtype).eps
            np.testing.assert_allclose(actual, right, rtol=8 * eps, atol=32 * eps)
            np.testing.assert_array_equal(outs["argmax_out"], np.argmax(x, -1))


@every_dtype
@pytest.mark.parametrize("classes", [5, 300, 5000])
def test_argmax_is_that_of_logits_whose_caps_are_equal(classes, dtype, rng):
    x = (rng.normal(size=(20, classes)) * 60).astype(dtype)
    x[3, 1] = x[3].max()
    x[4, classes - 1] = np.inf
    x[5] = -np.inf
    target = draw_target(rng, "indices", (20,), classes)
    target[::3] = -100
    for logits, axis in ((x, 1), (np.asfortranarray(x), 1), (np.ascontiguousarray(x.T), 0)):
        largest = np.empty(20, np.int64)
        given = {"softcap": 15.0, "argmax_out": largest, "axis": axis}
        xentrs.cross_entropy_with_grad(logits, target, **given)
        np.testing.assert_array_equal(largest, x.argmax(1))
        largest[:] = -1
        xentrs.cross_entropy(logits, target, **given)
        np.testing.assert_array_equal(largest, x.argmax(1))
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    xentrs.cross_entropy(half, target, softcap=15.0, argmax_out=largest)
    np.testing.assert_array_equal(largest, half.argmax(1))


def test_tiles_and_threads(threads, rng):
    x = draw_logits(rng, (900, 300), np.float32)
    target = draw_target(rng, "indices", (900,), 300)
    found = []
    for n in (1, 2, 3):
        threads(n)
        outs = outputs(x)
        xentrs.cross_entropy_with_grad(x, target, **outs)
        assert_right(x, outs)
        found.append(outs)
    for outs in found[1:]:
        for name, array in outs.items():
            assert_same_bits(array.astype(np.float64), found[0][name].astype(np.float64))


def test_no_sample_and_one_sample():
    x = np.array([1.0, 3.0, 2.0])
    outs = {"logsumexp_out": np.zeros(()), "argmax_out": np.zeros((), np.int64)}
    xentrs.cross_entropy(x, 0, **outs)
    assert outs["argmax_out"] == 1
    assert outs["logsumexp_out"] == pytest.approx(np.log(np.exp(x).sum()), rel=1e-15)
    none = {"logsumexp_out": np.zeros(0), "argmax_out": np.zeros(0, np.int64)}
    xentrs.cross_entropy(np.zeros((0, 3)), np.zeros(0, int), **none)


def test_accuracy_without_a_second_pass(rng):
    x = draw_logits(rng, (100, 50), np.float32)
    target = rng.integers(0, 50, 100)
    argmax = np.empty(100, np.int64)
    xentrs.cross_entropy(x, target, argmax_out=argmax)
    assert (argmax == target).mean() == (x.argmax(-1) == target).mean()


X = np.zeros((4, 5), np.float32)
SHARED = np.zeros(64, np.float32)


@pytest.mark.parametrize(
    ("outs", "error", "message"),
    [
        (
            {"logsumexp_out": [0.0] * 4},
            TypeError,
            "logsumexp_out must be a numpy.ndarray, not list",
        ),
        ({"logsumexp_out": np.zeros(4)}, TypeError, "logsumexp_out has dtype float64.*float32"),
        ({"logsumexp_out": np.zeros(5, "f4")}, ValueError, r"logsumexp_out has shape \(5,\)"),
        ({"logsumexp_out": np.zeros((4, 1), "f4")}, ValueError, r"must have shape \(4,\)"),
        ({"argmax_out": np.zeros(4, np.int32)}, TypeError, "argmax_out has dtype int32.*int64"),
        ({"argmax_out": np.zeros(4, np.uint64)}, TypeError, "argmax_out has dtype uint64"),
        ({"argmax_out": np.zeros(3, np.int64)}, ValueError, r"argmax_out has shape \(3,\)"),
        ({"argmax_out": 5}, TypeError, "argmax_out must be a numpy.ndarray, not int"),
        (
            {"argmax_out": np.broadcast_to(np.int64(0), 4)},
            ValueError,
            "argmax_out is read-only",
        ),
        ({"logsumexp_out": X.ravel()[:4]}, ValueError, "logsumexp_out overlaps logits"),
        ({"logsumexp_out": X[:, 0]}, ValueError, "logsumexp_out overlaps logits"),
        (
            {"logsumexp_out": SHARED[:4], "argmax_out": SHARED[2:10].view(np.int64)},
            ValueError,
            "argmax_out overlaps logsumexp_out",
        ),
    ],
)
def test_errors(outs, error, message):
    target = np.zeros(4, np.int64)
    before = {k: np.array(v) for k, v in outs.items()}
    for twin in TWINS:
        with pytest.raises(error, match=message):
            twin(X, target, **outs)
    for key, array in outs.items():
        np.testing.assert_array_equal(array, before[key])


def test_overlap_with_other_arrays():
    target = np.zeros(4, np.int64)
    weight = np.ones(8, np.float32)
    out = np.zeros((4, 5), np.float32)
    q = np.full((4, 5), 0.2, np.float32)
    with pytest.raises(ValueError, match="argmax_out overlaps target"):
        xentrs.cross_entropy(X, target, argmax_out=target)
    with pytest.raises(ValueError, match=r"argmax_out overlaps target\[0\]"):
        xentrs.cross_entropy(X, (target[:, None], q[:, :1]), argmax_out=target)
    with pytest.raises(ValueError, match="logsumexp_out overlaps weight"):
        xentrs.cross_entropy(X, target, weight=weight[:5], logsumexp_out=weight[:4])
    with pytest.raises(ValueError, match="logsumexp_out overlaps sample_weight"):
        xentrs.cross_entropy(X, target, sample_weight=weight[:4], logsumexp_out=weight[:4])
    with pytest.raises(ValueError, match="logsumexp_out overlaps out"):
        xentrs.cross_entropy_with_grad(X, target, out=out, logsumexp_out=out[1, :4])
    with pytest.raises(ValueError, match="logsumexp_out overlaps hess_out"):
        xentrs.cross_entropy_with_grad_hess(X, target, hess_out=out, logsumexp_out=out[1, :4])


def test_a_refused_call_writes_nothing():
    outs = outputs(X)
    for bad in ({"target": [0, 0, 0, 9]}, {"target": [0, 0, 0, 0], "label_smoothing": 2.0}):
        with pytest.raises((IndexError, ValueError)):
            xentrs.cross_entropy(X, **bad, **outs)
        assert all((array == 7).all() for array in outs.values())


def test_measured_errors_are_recorded(record_property):
    for name, error in measured.items():
        record_property(name, error)
