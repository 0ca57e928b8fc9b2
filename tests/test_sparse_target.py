"""A target that is a pair (indices, probabilities): the values of the dense target."""

import sys

import numpy as np
import pytest

import reference
import xentrs
from losses import DTYPES, assert_same_bits, every_dtype
from reference import significant, ulp_error
from xentrs import _xentrs

TWINS = (
    xentrs.cross_entropy,
    xentrs.cross_entropy_with_grad,
    xentrs.cross_entropy_with_grad_hess,
)
# Few classes, the border between the kernels, whole vectors and beside them, two parts of a row.
CLASS_COUNTS = [1, 2, 10, 64, 256, 257, 300, 1000, 1024, 9000]
OPTIONS = {
    "none": {},
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing, weight": {"label_smoothing": 0.3, "weight": True},
    "all smoothed": {"label_smoothing": 1.0},
    "z-loss": {"z_loss": 0.02},
    "temperature": {"temperature": 2.5, "z_loss": 0.02},
    "everything": {
        "weight": True,
        "sample_weight": True,
        "label_smoothing": 0.1,
        "z_loss": 0.3,
        "base": 2,
    },
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def draw(rng, samples, classes, entries, dtype=np.float64, ignored=-100):
    """Draw a pair with empty entries, repeated classes and probabilities of 0."""
    shape = (*samples, entries)
    indices = rng.integers(0, classes, shape)
    q = rng.exponential(size=shape) * (rng.random(shape) < 0.9)
    repeated = rng.random(shape) < 0.2
    indices = np.where(repeated, np.roll(indices, 1, -1), indices)
    if entries:
        q /= np.maximum(q.sum(-1, keepdims=True), 1e-3)
    empty = rng.random(shape) < 0.2
    if ignored is not None:
        indices = np.where(empty, ignored, indices)
        q = np.where(empty & (rng.random(shape) < 0.5), np.nan, q)  # not looked at
    return indices, q.astype(dtype)


def draw_options(rng, options, samples, classes, dtype):
    given = dict(options)
    if given.get("weight"):
        given["weight"] = rng.uniform(0.25, 4, classes).astype(dtype)
    if given.get("sample_weight"):
        given["sample_weight"] = rng.choice([0.0, 0.5, 2.0], samples)
    return given


def draw_logits(rng, shape, dtype):
    x = rng.normal(size=shape) * rng.choice([0.3, 3.0, 30.0]) + rng.choice([0.0, 60.0, -1e4])
    return x.astype(dtype)


def assert_right(results, right, least=0.0):
    """Assert that results are good to the bounds of test_accuracy.py, with room for weights."""
    names = ("loss", "grad", "hess")
    sizes = (right.loss_terms, right.grad_terms, right.hess_terms)
    for name, actual, size, bound in zip(names, results, sizes, (5, 6, 7), strict=False):
        exact = getattr(right, name)
        good = significant(size, actual.dtype) & ~(abs(size) < least)
        assert ulp_error(actual, exact, size)[good].max(initial=0) <= bound, name


@every_dtype
@every_option
@pytest.mark.parametrize("classes", CLASS_COUNTS)
def test_a_pair_is_the_dense_target_of_its_numbers(classes, options, dtype, rng):
    for entries in (0, 1, 2, 7, 64):
        for wide in DTYPES:
            samples = (9,)
            x = draw_logits(rng, (*samples, classes), dtype)
            pair = draw(rng, samples, classes, entries, wide)
            given = draw_options(rng, options, samples, classes, dtype) | {"reduction": "none"}
            right = reference.cross_entropy(x, pair, **given)
            results = xentrs.cross_entropy_with_grad_hess(x, pair, **given)
            assert_right(results, right)
            # Neither the Hessian nor the gradient changes what the others return.
            loss, grad = xentrs.cross_entropy_with_grad(x, pair, **given)
            assert_same_bits(xentrs.cross_entropy(x, pair, **given), loss)
            assert_same_bits((loss, grad), results[:2])


@every_dtype
def test_reductions_and_divisors(dtype, rng):
    for classes in (10, 300):
        x = draw_logits(rng, (21, classes), dtype)
        pair = draw(rng, (21,), classes, 5)
        pair[0][3] = -100  # a row of empty entries counts in the mean
        for options in (
            {},
            {"sample_weight": rng.choice([0.0, 0.5, 2.0], 21)},
            {"denominator": 3.5},
            {"label_smoothing": 0.1, "weight": rng.uniform(0.5, 2, classes)},
        ):
            for reduction in ("mean", "sum"):
                given = options | {"reduction": reduction}
                right = reference.cross_entropy(x, pair, **given)
                loss, grad = xentrs.cross_entropy_with_grad(x, pair, **given)
                assert type(loss) is float
                assert loss == pytest.approx(float(right.loss), rel=1e-6)
                size = right.grad_terms
                good = significant(size, dtype)
                assert ulp_error(grad, right.grad, size)[good].max() <= 6


@pytest.mark.parametrize("classes", [10, 300])
def test_a_row_of_empty_entries(classes, rng):
    x = draw_logits(rng, (4, classes), np.float32)
    indices, q = np.full((4, 3), -100), np.full((4, 3), np.nan, np.float32)
    indices[1], q[1] = [5, 2, 3], [0.5, 0.25, 0.25]
    loss, grad, hess = xentrs.cross_entropy_with_grad_hess(x, (indices, q), reduction="none")
    empty = [0, 2, 3]
    assert (loss[empty] == 0).all()
    assert (grad[empty] == 0).all()
    assert not np.signbit(grad[empty]).any()
    assert (hess[empty] == 0).all()
    assert loss[1] > 0
    # It counts in the mean.
    mean = xentrs.cross_entropy(x, (indices, q))
    assert mean == pytest.approx(float(loss[1]) / 4, rel=1e-6)
    # Smoothing reaches it, as it does a dense row of zeros.
    loss = xentrs.cross_entropy(x, (indices, q), reduction="none", label_smoothing=0.1)
    assert (loss > 0).all()
    # No entry at all.
    none = np.zeros((4, 0), int), np.zeros((4, 0), np.float32)
    loss, grad = xentrs.cross_entropy_with_grad(x, none, reduction="none")
    assert (loss == 0).all()
    assert (grad == 0).all()


@every_dtype
def test_one_entry_of_probability_1_is_a_class_index(dtype, rng):
    # Confident samples too: no digit is lost.
    for classes in (300, 5000):
        x = (rng.normal(size=(30, classes)) * 3).astype(dtype)
        y = rng.integers(0, classes, 30)
        x[np.arange(30), y] += np.linspace(0, 60, 30).astype(dtype)
        pair = y[:, None], np.ones((30, 1), dtype)
        for options in ({}, {"label_smoothing": 0.2}, {"z_loss": 0.1}):
            given = options | {"reduction": "none"}
            loss, grad = xentrs.cross_entropy_with_grad(x, y, **given)
            again, other = xentrs.cross_entropy_with_grad(x, pair, **given)
            assert_same_bits(again, loss)
            np.testing.assert_allclose(other, grad, rtol=4 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("classes", [10, 300, 2000])
@every_dtype
def test_layouts_axes_and_outputs_change_no_bit(classes, dtype, rng):
    samples = (3, 5)
    x = draw_logits(rng, (*samples, classes), dtype)
    pair = draw(rng, samples, classes, 6)
    for options in ({"reduction": "none"}, {"label_smoothing": 0.1}):
        expected = xentrs.cross_entropy_with_grad_hess(x, pair, **options)
        for axis in (0, 1, 2):
            moved = np.ascontiguousarray(np.moveaxis(x, -1, axis))
            spread = np.repeat(moved, 2, -1)[..., ::2]
            for logits in (moved, np.asfortranarray(moved), spread, moved[::-1][::-1]):
                loss, *rest = xentrs.cross_entropy_with_grad_hess(
                    logits, pair, axis=axis, **options
                )
                rest = [np.moveaxis(a, axis, -1) for a in rest]
                assert_same_bits((loss, *rest), expected)
        expected = expected[:2]
        in_place = x.copy()
        assert_same_bits(
            xentrs.cross_entropy_with_grad(in_place, pair, out=in_place, **options), expected
        )
        out = np.empty((*samples, 2 * classes), dtype)[..., ::2]
        assert_same_bits(xentrs.cross_entropy_with_grad(x, pair, out=out, **options), expected)


def test_long_lines_of_adjacent_samples(rng):
    # The kernel for many classes in columns does not take a pair: rows do, tile by tile.
    x = draw_logits(rng, (2, 300, 130), np.float32)
    pair = draw(rng, (2, 130), 300, 8, np.float32)
    rows = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    loss, grad = xentrs.cross_entropy_with_grad(x, pair, axis=1, reduction="none")
    expected, other = xentrs.cross_entropy_with_grad(rows, pair, reduction="none")
    assert_same_bits(loss, expected)
    assert_same_bits(np.ascontiguousarray(np.moveaxis(grad, 1, -1)), other)


@pytest.mark.parametrize("kind", ["b", "B", "h", "H", "i", "I", "q", "Q", "f", "d", ">i4", ">f8"])
@pytest.mark.parametrize("classes", [100, 300])
def test_indices_of_any_dtype(kind, classes, rng):
    x = draw_logits(rng, (7, classes), np.float32)
    indices = rng.integers(0, 100, (7, 4))
    q = rng.dirichlet(np.ones(4), 7)
    expected = xentrs.cross_entropy_with_grad(x, (indices, q))
    assert_same_bits(xentrs.cross_entropy_with_grad(x, (indices.astype(kind), q)), expected)
    strided = np.repeat(indices, 2, 1)[:, ::2], np.asfortranarray(q)
    assert_same_bits(xentrs.cross_entropy_with_grad(x, strided), expected)
    lists = indices.tolist(), q.tolist()
    assert_same_bits(xentrs.cross_entropy_with_grad(x, lists), expected)


def test_wider_probabilities_are_used_as_they_are(rng):
    # 1/3 as float64 and as float32 differ by 1e-8, which a loss of 1e9 shows.
    for classes in (10, 300):
        x = np.zeros((1, classes), np.float32)
        x[0, 1] = 3e9
        q = np.array([[1 / 3]])
        loss = xentrs.cross_entropy(x, ([[0]], q))
        assert loss == pytest.approx(1e9, rel=1e-14)
    narrow = xentrs.cross_entropy(x, ([[0]], q.astype(np.float32)))
    assert abs(narrow - 1e9) > 1


@pytest.mark.parametrize("classes", [10, 300])
def test_infinite_logits(classes, rng):
    x = draw_logits(rng, (6, classes), np.float64)
    x[:, 7] = -np.inf
    x[2:4, 3] = -np.inf
    x[4, 5] = np.nan
    x[5, 5] = np.inf
    indices = np.array([[3, 7], [3, 2], [3, 7], [2, 8], [3, 2], [3, 2]])
    q = np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    right = reference.cross_entropy(x, (indices, q), reduction="none")
    for twin in TWINS:
        results = twin(x, (indices, q), reduction="none")
        results = results if isinstance(results, tuple) else (results,)
        assert_right(results, right)
    # An entry of probability 0 costs nothing at -inf; one that has a share costs infinity.
    loss = xentrs.cross_entropy(x, (indices, q), reduction="none")
    assert np.isfinite(loss[[0, 1, 3]]).all()
    assert loss[2] == np.inf
    assert np.isnan(loss[4:]).all()


def test_negative_probabilities_and_sums_of_zero(rng):
    # As for dense targets nothing is asked of them.
    x = draw_logits(rng, (5, 400), np.float64)
    indices = np.array([[1, 2, 3]] * 5)
    q = np.array([[1, -1, 0], [1e9, -1e9, 1e-3], [-1, -2, -3], [0.5, -0.25, 1], [5, -5, 1e-12]])
    right = reference.cross_entropy(x, (indices, q), reduction="none")
    for twin in TWINS[1:]:
        loss, grad, *_ = twin(x, (indices, q), reduction="none")
        assert_right((loss, grad), right)
    float32 = xentrs.cross_entropy_with_grad(x.astype(np.float32), (indices, q), reduction="none")
    right = reference.cross_entropy(x.astype(np.float32), (indices, q), reduction="none")
    assert_right(float32, right)


def test_ignore_index(rng):
    x = draw_logits(rng, (8, 300), np.float64)
    for ignored in (7, (-1, 5), None, 1 << 40):
        values = [] if ignored is None else np.atleast_1d(ignored).tolist()
        indices = rng.integers(0, 300, (8, 6))
        if values:
            indices[:, 2] = values[0]
            indices[3] = values[-1]
        q = rng.random((8, 6))
        given = {"ignore_index": ignored, "reduction": "none"}
        right = reference.cross_entropy(x, (indices, q), **given)
        assert_right(xentrs.cross_entropy_with_grad_hess(x, (indices, q), **given), right)


def test_threads_change_no_bit(threads, rng):
    x = draw_logits(rng, (700, 300), np.float32)
    pair = draw(rng, (700,), 300, 9, np.float32)
    threads(1)
    expected = xentrs.cross_entropy_with_grad(x, pair)
    for n in (2, 3):
        threads(n)
        assert_same_bits(xentrs.cross_entropy_with_grad(x, pair), expected)


def test_one_sample_and_no_sample():
    x = np.array([0.5, -1.0, 2.0])
    pair = [0, 2], [0.25, 0.75]
    p = np.exp(x) / np.exp(x).sum()
    loss, grad = xentrs.cross_entropy_with_grad(x, tuple(pair))
    assert loss == pytest.approx(-(0.25 * np.log(p[0]) + 0.75 * np.log(p[2])), rel=1e-14)
    np.testing.assert_allclose(grad, p - [0.25, 0, 0.75], rtol=1e-14)
    none = np.zeros((0, 4), int), np.zeros((0, 4))
    assert np.isnan(xentrs.cross_entropy(np.zeros((0, 3)), none))
    assert xentrs.cross_entropy(np.zeros((0, 3)), none, reduction="sum") == 0


def test_a_nested_tuple_is_still_one_array():
    x = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    assert xentrs.cross_entropy(x, (0, 2)) == xentrs.cross_entropy(x, [0, 2])
    q = ((0.5, 0.5, 0.0), (0.0, 0.0, 1.0))
    assert xentrs.cross_entropy(x, q) == xentrs.cross_entropy(x, np.array(q))
    assert xentrs.cross_entropy(x, tuple(map(np.array, q))) == xentrs.cross_entropy(x, np.array(q))


X = np.zeros((4, 5), np.float32)
INDICES, Q = np.zeros((4, 2), int), np.full((4, 2), 0.5)


def outside(value, dtype=int):
    indices = INDICES.astype(dtype)
    indices[2, 1] = value
    return indices


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        ((INDICES,), ValueError, r"tuple of length 1, but must be a pair \(indices, probabilities"),
        ((INDICES, Q, Q), ValueError, r"tuple of length 3, but must be a pair"),
        ((INDICES[:3], Q[:3]), ValueError, r"target\[0\] has shape \(3, 2\).*shape \(4, k\)"),
        ((INDICES, Q[:3]), ValueError, r"target\[1\] has shape \(3, 2\).*shape \(4, k\)"),
        ((INDICES, Q[:, :1]), ValueError, r"target\[1\] has shape \(4, 1\).*\(4, 2\)"),
        ((INDICES, Q[:, 0]), ValueError, r"target\[1\] has shape \(4,\).*shape \(4, k\)"),
        (
            (INDICES[:, 0], Q[:, 0]),
            ValueError,
            r"pair \(indices, probabilities\) have shape \(4, k",
        ),
        ((INDICES, INDICES), TypeError, r"target\[1\] has dtype int64, but must be float"),
        ((INDICES > 0, Q), TypeError, r"target\[0\] has dtype bool, but must be integer"),
        ((INDICES.astype(complex), Q), TypeError, r"target\[0\] has dtype complex128"),
        ((INDICES, Q.astype(complex)), TypeError, r"target\[1\] has dtype complex128"),
        (
            (Q, INDICES.astype(float)),
            ValueError,
            r"target\[0\]\[0, 0\] is 0.5, but must be a whole",
        ),
        ((outside(np.nan, float), Q), ValueError, r"target\[0\]\[2, 1\] is nan \(missing values"),
        (
            (outside(5), Q),
            IndexError,
            r"target\[0\]\[2, 1\] is 5, but .* in \[0, 5\), or be ignore",
        ),
        ((outside(-1), Q), IndexError, r"target\[0\]\[2, 1\] is -1"),
        ((outside(9.0, float), Q), IndexError, r"target\[0\]\[2, 1\] is 9"),
        ((outside(1e30, float), Q), IndexError, r"target\[0\]\[2, 1\] is 1e\+30"),
        ((outside(255, np.uint8), Q), IndexError, r"target\[0\]\[2, 1\] is 255"),
        ((np.ma.masked_array(INDICES, Q > 0.2), Q), TypeError, r"target\[0\] is a masked array"),
        ((INDICES, np.ma.masked_array(Q, Q > 0.2)), TypeError, r"target\[1\] is a masked array"),
    ],
)
def test_errors(pair, error, message):
    for x in (X, np.zeros((4, 300), np.float32)[:, :300]):
        if x.shape[1] == 300 and error is IndexError:
            continue  # its range is another
        if x.shape[1] == 300:
            message = message.replace("5)", "300)")
        for twin, outputs in zip(TWINS, ((), ("out",), ("out", "hess_out")), strict=True):
            out = {name: np.full_like(x, 7) for name in outputs}
            with pytest.raises(error, match=message):
                twin(x, pair, **out)
            assert all((a == 7).all() for a in out.values())


def test_outputs_must_not_overlap_the_pair():
    x, indices = np.zeros((4, 300)), np.zeros((4, 300), int)
    q = np.zeros((4, 300))
    with pytest.raises(ValueError, match=r"out overlaps target\[1\]"):
        xentrs.cross_entropy_with_grad(x, (indices, q), out=q)
    with pytest.raises(ValueError, match=r"out overlaps target\[0\]"):
        xentrs.cross_entropy_with_grad(x, (indices, q), out=indices.view(np.float64))


def test_losses_that_take_no_pair_say_so():
    p = np.full((4, 5), 0.2, np.float32)
    others = [name for name, loss in _xentrs.LOSSES.items() if loss["axis"]]
    others = [name for name in others if _xentrs.LOSSES[name]["second"] == "target"]
    assert len(others) > 2
    for name in set(others) - {"cross_entropy"}:
        with pytest.raises(TypeError, match=f"{name} takes no (pair|probabilities)"):
            getattr(xentrs, name)(p, (INDICES, Q))
        with pytest.raises(TypeError, match=f"{name} takes no (pair|probabilities)"):
            getattr(xentrs, f"{name}_with_grad")(p, (INDICES.tolist(), Q))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak in the unit of Linux")
def test_memory_does_not_grow_with_the_dense_target(python):
    python(
        """
        import resource
        import numpy as np, xentrs
        xentrs.set_num_threads(2)
        x = np.zeros((64, 200_000), np.float32)
        out = np.empty_like(x)
        out[:] = 0
        pair = np.zeros((64, 8), np.int32), np.full((64, 8), 0.125, np.float32)
        small = x[:1, :1000].copy()
        xentrs.cross_entropy_with_grad(small, tuple(a[:1] for a in pair))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        xentrs.cross_entropy_with_grad(x, pair, out=out)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < x.nbytes / 1024 / 5, grown
        """
    )
