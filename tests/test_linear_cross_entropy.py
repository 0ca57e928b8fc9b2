"""`linear_cross_entropy` beside the cross-entropy of logits that exist."""

import tracemalloc

import numpy as np
import pytest

import xentrs
from xentrs._losses import linear_cross_entropy as module

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-12}
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)


@pytest.fixture(params=[None, 7], ids=["usual chunks", "chunks of 7"])
def chunks(request, monkeypatch):
    """Make calls go through several chunks, the last of another length."""
    if request.param:
        monkeypatch.setattr(module, "_chunk_rows", lambda count, size: request.param)


def draw(rng, samples=(4, 5), width=6, classes=9, dtype=np.float64):
    hidden = rng.normal(size=(*samples, width)).astype(dtype)
    weight = rng.normal(size=(classes, width)).astype(dtype)
    bias = rng.normal(size=classes).astype(dtype)
    target = rng.integers(0, classes, samples)
    return hidden, weight, target, bias


def unfused(hidden, linear_weight, target, *, bias=None, **options):
    """Return loss and gradients of logits that exist, in float64."""
    h, w = np.asarray(hidden, np.float64), np.asarray(linear_weight, np.float64)
    logits = h @ w.T + (0.0 if bias is None else np.asarray(bias, np.float64))
    loss, g = xentrs.cross_entropy_with_grad(logits, target, **options)
    rows, h = g.reshape(-1, g.shape[-1]), h.reshape(-1, h.shape[-1])
    counted = np.any(rows != 0.0, axis=1)  # the others add nothing, NaN or not
    grad_hidden = np.zeros_like(h)
    grad_hidden[counted] = rows[counted] @ w
    grads = grad_hidden.reshape(np.shape(hidden)), rows[counted].T @ h[counted], rows.sum(0)
    return loss, grads if bias is not None else (*grads[:2], None)


def assert_close(actual, expected, tolerance):
    loss, grads = actual
    np.testing.assert_allclose(loss, expected[0], rtol=tolerance, atol=tolerance)
    assert type(loss) is type(expected[0])
    for a, b in zip(grads, expected[1], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            size = max(np.abs(b).max(initial=0.0), 1e-3)
            np.testing.assert_allclose(a.astype(np.float64), b, rtol=0, atol=tolerance * size)


OPTIONS = {
    "plain": {},
    "ignored": {"ignore_index": 3},
    "several ignored": {"ignore_index": (0, 5, -1)},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.01},
    "softcap": {"softcap": 3.0},
    "temperature": {"temperature": 2.5},
    "base": {"base": 2},
    "denominator": {"denominator": 7.5},
    "weights": {"weight": "class", "sample_weight": "sample"},
    "signed weights": {"weight": "signed"},
    "all": {
        "weight": "class",
        "sample_weight": "sample",
        "label_smoothing": 0.2,
        "z_loss": 0.05,
        "softcap": 5.0,
        "temperature": 0.7,
        "ignore_index": (2, 4),
        "base": 10,
    },
}


def options_of(name, rng, samples, classes, dtype):
    drawn = {
        "class": rng.uniform(0.2, 3, classes) * (rng.random(classes) < 0.8),
        "sample": rng.uniform(0.2, 3, samples) * (rng.random(samples) < 0.8),
        "signed": rng.uniform(0.5, 1, classes) * np.where(np.arange(classes) % 4, -1, 0.1),
    }
    return {
        k: drawn[v].astype(dtype) if isinstance(v, str) and v in drawn else v
        for k, v in OPTIONS[name].items()
    }


@every_dtype
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_equal_to_the_unfused(name, reduction, has_bias, dtype, chunks, rng):
    hidden, weight, target, bias = draw(rng, dtype=dtype)
    options = options_of(name, rng, target.shape, 9, dtype) | {"reduction": reduction}
    options["bias"] = bias if has_bias else None
    expected = unfused(hidden, weight, target, **options)
    if reduction == "none":
        expected = expected[0].astype(dtype), expected[1]
    actual = xentrs.linear_cross_entropy_with_grad(hidden, weight, target, **options)
    assert_close(actual, expected, TOLERANCE[np.dtype(dtype)])
    loss = xentrs.linear_cross_entropy(hidden, weight, target, **options)
    np.testing.assert_array_equal(loss, actual[0])
    grad_hidden, grad_weight, grad_bias = actual[1]
    assert grad_hidden.shape == hidden.shape
    assert grad_weight.shape == weight.shape
    assert {a.dtype for a in (grad_hidden, grad_weight)} == {np.dtype(dtype)}
    assert (grad_bias is None) != has_bias


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_probabilities_as_target(reduction, dtype, chunks, rng):
    hidden, weight, _, bias = draw(rng, dtype=dtype)
    target = rng.dirichlet(np.ones(9), (4, 5)).astype(dtype)
    sample_weight = rng.integers(0, 3, (4, 5)).astype(dtype)
    options = {"reduction": reduction, "bias": bias, "sample_weight": sample_weight}
    for more in ({}, {"label_smoothing": 0.1, "weight": rng.random(9), "z_loss": 0.01}):
        expected = unfused(hidden, weight, target, **options, **more)
        if reduction == "none":
            expected = expected[0].astype(dtype), expected[1]
        actual = xentrs.linear_cross_entropy_with_grad(hidden, weight, target, **options, **more)
        assert_close(actual, expected, TOLERANCE[np.dtype(dtype)])


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_pair_as_target(reduction, dtype, chunks, rng):
    hidden, weight, _, bias = draw(rng, dtype=dtype)
    indices = rng.integers(0, 9, (4, 5, 3))
    indices[0, 1, 1:] = -100
    indices[2] = -100  # empty rows count, with loss 0
    probabilities = rng.random((4, 5, 3)).astype(dtype)
    options = {"reduction": reduction, "bias": bias}
    for more in ({}, {"label_smoothing": 0.1, "weight": rng.random(9)}):
        pair = (indices, probabilities)
        expected = unfused(hidden, weight, pair, **options, **more)
        if reduction == "none":
            expected = expected[0].astype(dtype), expected[1]
        actual = xentrs.linear_cross_entropy_with_grad(hidden, weight, pair, **options, **more)
        assert_close(actual, expected, TOLERANCE[np.dtype(dtype)])
    indices[3, 4, 0] = 9
    with pytest.raises(IndexError, match=r"target\[0\]\[3, 4, 0\] is 9, .*\[0, 9\)"):
        xentrs.linear_cross_entropy(hidden, weight, (indices, probabilities))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_are_central_differences(reduction, chunks, rng):
    hidden, weight, target, bias = draw(rng)
    target[1, 2] = -100
    options = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 0.02}

    def total(*arguments):
        h, w, b = arguments
        return np.sum(xentrs.linear_cross_entropy(h, w, target, bias=b, **options))

    arguments = [hidden, weight, bias]
    _, grads = xentrs.linear_cross_entropy_with_grad(hidden, weight, target, bias=bias, **options)
    for i, grad in enumerate(grads):
        for _ in range(5):
            at = tuple(rng.integers(n) for n in grad.shape)
            moved = []
            for step in (1e-5, -1e-5):
                changed = [a.copy() for a in arguments]
                changed[i][at] += step
                moved.append(total(*changed))
            assert (moved[0] - moved[1]) / 2e-5 == pytest.approx(grad[at], rel=1e-6, abs=1e-7)


@every_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_what_does_not_count_adds_nothing(value, reduction, dtype, chunks, rng):
    """A sample that is ignored, or of weight 0, whatever its hidden state holds."""
    hidden, weight, target, bias = draw(rng, samples=(20,), dtype=dtype)
    target[[3, 8]] = -100
    sample_weight = np.ones(20)
    sample_weight[[5, 19]] = 0.0
    left_out = [3, 5, 8, 19]
    options = {"bias": bias, "sample_weight": sample_weight, "reduction": reduction}
    expected = xentrs.linear_cross_entropy_with_grad(hidden, weight, target, **options)
    hidden[left_out] = value
    actual = xentrs.linear_cross_entropy_with_grad(hidden, weight, target, **options)
    np.testing.assert_array_equal(actual[0], expected[0])
    for a, b in zip(actual[1], expected[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not actual[1][0][left_out].any()
    # Whatever the weight of the layer holds.
    weight[0] = np.inf
    grad_hidden = xentrs.linear_cross_entropy_with_grad(hidden, weight, target, **options)[1][0]
    assert not grad_hidden[left_out].any()


@every_dtype
def test_nothing_counts(dtype, rng):
    hidden, weight, target, bias = draw(rng, dtype=dtype)
    for samples in ((4, 5), (0,)):
        h, t = hidden.reshape(-1, 6)[: np.prod(samples)].reshape(*samples, 6), target[: samples[0]]
        t = np.full_like(t.reshape(-1)[: np.prod(samples)].reshape(samples), -100)
        for options, expected in (({}, np.nan), ({"denominator": 3}, 0), ({"reduction": "sum"}, 0)):
            loss, grads = xentrs.linear_cross_entropy_with_grad(h, weight, t, bias=bias, **options)
            np.testing.assert_equal(loss, float(expected))
            assert not any(g.any() for g in grads)
        losses = xentrs.linear_cross_entropy(h, weight, t, reduction="none")
        assert losses.shape == samples
        assert not losses.any()


def test_one_sample_without_an_axis(rng):
    hidden, weight, _, bias = draw(rng, samples=())
    loss, grads = xentrs.linear_cross_entropy_with_grad(hidden, weight, 3, bias=bias)
    assert_close((loss, grads), unfused(hidden, weight, 3, bias=bias), 1e-12)
    each = xentrs.linear_cross_entropy(hidden, weight, 3, bias=bias, reduction="none")
    assert each.shape == ()


def test_one_class(rng):
    hidden, weight, _, _ = draw(rng, classes=1)
    loss, grads = xentrs.linear_cross_entropy_with_grad(hidden, weight, np.zeros((4, 5), int))
    assert loss == 0.0
    assert not grads[0].any()
    assert not grads[1].any()


@pytest.mark.parametrize(
    "half",
    [
        np.float16,
        pytest.param(
            None if ml_dtypes is None else ml_dtypes.bfloat16,
            marks=pytest.mark.skipif(ml_dtypes is None, reason="needs ml_dtypes"),
        ),
    ],
    ids=["float16", "bfloat16"],
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_half_precision(half, reduction, chunks, rng):
    """Products in float32, gradients rounded once to the dtype of each argument."""
    hidden, weight, target, bias = draw(rng, dtype=half)
    target[0, 1] = -100
    options = {"reduction": reduction}
    loss, grads = xentrs.linear_cross_entropy_with_grad(
        hidden, weight, target, bias=bias, **options
    )
    single = [a.astype(np.float32) for a in (hidden, weight, bias)]
    expected, wide = xentrs.linear_cross_entropy_with_grad(
        *single[:2], target, bias=single[2], **options
    )
    np.testing.assert_array_equal(loss, expected)
    assert np.asarray(loss).dtype == np.asarray(expected).dtype
    for a, b in zip(grads, wide, strict=True):
        assert a.dtype == np.dtype(half)
        np.testing.assert_array_equal(a.astype(np.float32), b.astype(half).astype(np.float32))


@every_dtype
def test_arrays_of_any_layout(dtype, rng):
    hidden, weight, target, bias = draw(rng, dtype=dtype)
    expected = xentrs.linear_cross_entropy_with_grad(hidden, weight, target, bias=bias)
    layouts = (
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: a[::-1].copy()[::-1],
        lambda a: a.astype(a.dtype.newbyteorder()),
        lambda a: a.tolist(),
    )
    for lay in layouts:
        got = xentrs.linear_cross_entropy_with_grad(
            lay(hidden), lay(weight), target.tolist(), bias=lay(bias)
        )
        assert_close(got, expected, TOLERANCE[np.dtype(dtype)])


def test_dtypes_are_mixed(rng):
    hidden, weight, target, bias = draw(rng)
    _, grads = xentrs.linear_cross_entropy_with_grad(
        hidden.astype(np.float32), weight, target, bias=bias.astype(np.float16)
    )
    assert [g.dtype for g in grads] == [np.float32, np.float64, np.float16]


def test_arguments_are_left_alone(rng):
    arrays = draw(rng)
    copies = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    xentrs.linear_cross_entropy_with_grad(*arrays[:3], bias=arrays[3])
    for a, b in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"hidden": np.zeros(())}, ValueError, r"hidden must have an axis of features"),
        ({"hidden": np.zeros((2, 6), int)}, TypeError, r"hidden has dtype int64"),
        (
            {"linear_weight": np.zeros((9, 5))},
            ValueError,
            r"linear_weight has shape \(9, 5\), but must have shape \(C, 6\): hidden has shape",
        ),
        ({"linear_weight": np.zeros(6)}, ValueError, r"linear_weight has shape \(6,\)"),
        ({"linear_weight": np.zeros((0, 6))}, ValueError, r"linear_weight .* no classes"),
        ({"linear_weight": np.zeros((9, 6), np.uint16)}, TypeError, r"view\(ml_dtypes.bfloat16"),
        ({"bias": np.zeros(8)}, ValueError, r"bias has shape \(8,\), but must have shape \(9,\)"),
        ({"bias": np.zeros(9, int)}, TypeError, r"bias has dtype int64"),
        ({"target": np.zeros(3, int)}, ValueError, r"target has shape \(3,\).*\(4, 5, 9\)"),
        ({"target": np.full((4, 5), 9)}, IndexError, r"target\[0, 0\] is 9, .*\[0, 9\), or be"),
        ({"target": np.full((4, 5), 0.5)}, ValueError, r"target\[0, 0\] is 0.5"),
        ({"weight": np.zeros(8)}, ValueError, r"weight has shape \(8,\)"),
        ({"sample_weight": np.zeros(20)}, ValueError, r"sample_weight has shape \(20,\)"),
        ({"label_smoothing": 2}, ValueError, r"label_smoothing"),
        ({"z_loss": -1}, ValueError, r"z_loss"),
        ({"softcap": 0}, ValueError, r"softcap"),
        ({"temperature": 0}, ValueError, r"temperature"),
        ({"reduction": "avg"}, ValueError, r"reduction"),
        ({"denominator": -1}, ValueError, r"denominator"),
        ({"base": 1}, ValueError, r"base"),
        ({"ignore_index": 1.5}, TypeError, r"ignore_index"),
        (
            {"target": np.full((4, 5, 9), 0.1), "ignore_index": 2},
            ValueError,
            r"ignore_index is 2, but a target of probabilities",
        ),
    ],
)
def test_errors_name_the_argument(change, kind, message, rng):
    hidden, weight, target, bias = draw(rng)
    arguments = {"hidden": hidden, "linear_weight": weight, "target": target, "bias": bias}
    for function in (xentrs.linear_cross_entropy, xentrs.linear_cross_entropy_with_grad):
        with pytest.raises(kind, match=message):
            function(**arguments | change)


def test_an_index_is_refused_as_cross_entropy_refuses_it(rng):
    hidden, weight, target, _ = draw(rng)
    for dtype, value, ignored in ((np.int64, -1, -100), (np.uint8, 200, (1, 2)), (int, 9, None)):
        wrong = target.astype(dtype)
        wrong[2, 3] = np.array(value).astype(dtype)
        messages = []
        for call in (
            lambda t, i: xentrs.cross_entropy(np.zeros((4, 5, 9)), t, ignore_index=i),
            lambda t, i: xentrs.linear_cross_entropy(hidden, weight, t, ignore_index=i),
        ):
            with pytest.raises(IndexError) as caught:
                call(wrong, ignored)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("count", [1000, 1024])
def test_memory_is_that_of_a_chunk(count, rng):
    """Beside its results, a call takes the logits of one chunk and little more."""
    width, classes = 32, 20_000
    hidden = rng.standard_normal((count, width), np.float32)
    weight = rng.standard_normal((classes, width), np.float32)
    target = rng.integers(0, classes, count)
    results = hidden.nbytes + weight.nbytes
    chunk = 256 * classes * 4
    tracemalloc.start()
    try:
        xentrs.linear_cross_entropy_with_grad(hidden, weight, target, bias=weight[:, 0].copy())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert chunk * 0.9 < peak < results + chunk + (4 << 20)


@pytest.mark.parametrize("classes", [10, 32_000, 128_256, 1 << 20, 1 << 26])
@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("count", [1, 255, 4096, 10**6])
def test_chunks_are_within_their_limit(classes, itemsize, count):
    rows = module._chunk_rows(count, classes * itemsize)
    assert 1 <= rows <= count
    assert rows == 1 or rows * classes * itemsize <= 64 << 20
    chunks = -(-count // rows)
    assert rows * chunks - count < chunks  # of about the same length
