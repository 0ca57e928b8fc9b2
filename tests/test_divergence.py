"""The divergences of two softmaxes: others' values, nearly equal models, the teacher's types."""

import mpmath
import numpy as np
import pytest
from scipy import special

import reference
import xentrs
from losses import DTYPES, assert_same_bits, every_dtype

KL, KL_GRAD = xentrs.kl_divergence, xentrs.kl_divergence_with_grad
JS, JS_GRAD = xentrs.js_divergence, xentrs.js_divergence_with_grad
# Each divergence with its gradient, by turns.
CALLS = [
    pytest.param(KL_GRAD, {}, id="forward"),
    pytest.param(KL_GRAD, {"direction": "reverse"}, id="reverse"),
    pytest.param(JS_GRAD, {"beta": 0.5}, id="js"),
    pytest.param(JS_GRAD, {"beta": 0.1}, id="js-0.1"),
    pytest.param(JS_GRAD, {"beta": 0.99}, id="js-0.99"),
]
every_call = pytest.mark.parametrize(("function", "options"), CALLS)
every_shape = pytest.mark.parametrize("shape", [(5, 2), (37, 10), (3, 256), (4, 257), (2, 5000)])


def pair(rng, shape, dtype=np.float64, apart=None, spread=2.0):
    """Draw logits of a model and of a teacher."""
    x = rng.normal(size=shape) * spread
    other = rng.normal(size=shape)
    return x.astype(dtype), (other * spread if apart is None else x + apart * other).astype(dtype)


# ------------------------------------------------------------------------------ others' values


@every_dtype
@every_shape
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_is_scipys_relative_entropy(shape, temperature, dtype, rng):
    x, y = pair(rng, shape, dtype)
    p, q = (special.softmax(a.astype(float) / temperature, axis=-1) for a in (x, y))
    options = {"temperature": temperature, "reduction": "none"}
    rtol = 2e-6 if dtype == np.float32 else 1e-12
    expected = special.rel_entr(q, p).sum(-1)
    np.testing.assert_allclose(KL(x, y, **options), expected, rtol=rtol)
    expected = special.rel_entr(p, q).sum(-1)
    np.testing.assert_allclose(KL(x, y, direction="reverse", **options), expected, rtol=rtol)


@every_dtype
@every_shape
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_js_is_the_mixture_of_two_relative_entropies(shape, beta, dtype, rng):
    """JSD(P || Q) = beta KL(P || M) + (1 - beta) KL(Q || M), P the teacher (Liger, TRL)."""
    x, y = pair(rng, shape, dtype)
    q, p = (special.softmax(a.astype(float), axis=-1) for a in (x, y))
    m = beta * p + (1 - beta) * q
    expected = beta * special.rel_entr(p, m).sum(-1)
    expected += (1 - beta) * special.rel_entr(q, m).sum(-1)
    rtol = 2e-6 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(JS(x, y, beta=beta, reduction="none"), expected, rtol=rtol)


@every_shape
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_is_pytorchs(shape, temperature, rng):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    functional = torch.nn.functional
    x, y = pair(rng, shape)
    for direction in ("forward", "reverse"):
        logits = torch.tensor(x, requires_grad=True)
        parts = [functional.log_softmax(a / temperature, -1) for a in (logits, torch.tensor(y))]
        parts = parts if direction == "forward" else parts[::-1]
        loss = functional.kl_div(*parts, reduction="batchmean", log_target=True)
        loss.backward()
        got, grad = KL_GRAD(x, y, temperature=temperature, direction=direction)
        assert got == pytest.approx(loss.item(), rel=1e-12)
        np.testing.assert_allclose(grad, logits.grad, rtol=1e-9, atol=1e-15)


@every_shape
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_js_is_trls(shape, beta, rng):
    """The formula of TRL's `generalized_jsd_loss`, differentiated by PyTorch."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    functional = torch.nn.functional
    x, y = pair(rng, shape)
    logits = torch.tensor(x, requires_grad=True)
    student, teacher = (functional.log_softmax(a / 2.0, -1) for a in (logits, torch.tensor(y)))

    def kl(mixture, log_p):
        return functional.kl_div(mixture, log_p, reduction="none", log_target=True)

    if beta in (0.0, 1.0):
        each = kl(student, teacher) if beta == 0 else kl(teacher, student)
    else:
        weights = torch.tensor([1 - beta, beta], dtype=torch.float64).log()
        parts = torch.stack([student + weights[0], teacher + weights[1]])
        mixture = torch.logsumexp(parts, 0)
        each = beta * kl(mixture, teacher) + (1 - beta) * kl(mixture, student)
    loss = each.sum(-1).mean()
    loss.backward()
    got, grad = JS_GRAD(x, y, beta=beta, temperature=2.0)
    assert got == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(grad, logits.grad, rtol=1e-9, atol=1e-15)


# ---------------------------------------------------------------------------- laws of their own


@every_dtype
@every_shape
def test_the_ends_of_beta_are_the_two_directions_to_the_bit(shape, dtype, rng):
    x, y = pair(rng, shape, dtype)
    for reduction in ("mean", "none"):
        for beta, direction in ((0, "forward"), (1, "reverse")):
            expected = KL_GRAD(x, y, direction=direction, reduction=reduction)
            assert_same_bits(JS_GRAD(x, y, beta=beta, reduction=reduction), expected)


@every_dtype
@every_shape
def test_js_is_symmetric(shape, dtype, rng):
    x, y = pair(rng, shape, dtype)
    for beta in (0.25, 0.5):
        one = JS(x, y, beta=beta, reduction="none")
        other = JS(y, x, beta=1 - beta, reduction="none")
        np.testing.assert_allclose(one, other, rtol=20 * np.finfo(dtype).eps)
        assert (one <= np.log(2)).all()


@every_dtype
@every_shape
@every_call
def test_a_temperature_is_a_division(function, options, shape, dtype, rng):
    """Powers of two, which divide exactly: the gradient has the factor too."""
    x, y = pair(rng, shape, dtype)
    for temperature in (0.25, 2.0):
        loss, grad = function(x, y, temperature=temperature, reduction="none", **options)
        divided = (a / dtype(temperature) for a in (x, y))
        right, of_divided = function(*divided, reduction="none", **options)
        np.testing.assert_allclose(loss, right, rtol=20 * np.finfo(dtype).eps)
        size = 20 * np.finfo(dtype).eps * (1 + abs(right[:, None])) / temperature
        assert (abs(grad - of_divided / temperature) <= size).all()


@every_dtype
@every_shape
@every_call
def test_never_negative_and_0_for_the_same_logits(function, options, shape, dtype, rng):
    for apart in (None, 1.0, 1e-3, 1e-6, 1e-9, 1e-15):
        for offset in (0.0, 3.7, -1e4):
            x, y = pair(rng, shape, dtype, apart)
            loss, _ = function(x, y + dtype(offset), reduction="none", **options)
            assert (loss >= 0).all()
    x, _ = pair(rng, shape, dtype)
    for temperature in (1.0, 0.7):
        loss, grad = function(x, x.copy(), temperature=temperature, reduction="none", **options)
        assert not loss.any()
        assert not grad.any()


@every_shape
@every_call
def test_nearly_equal_models_keep_their_digits(function, options, shape, rng):
    """At differences of 1e-6 and less, other formulas have no digit left."""
    for apart in (1e-4, 1e-6, 1e-8, 1e-12):
        for offset in (0.0, 5.3, -1e4):
            x, y = pair(rng, shape, apart=apart)
            y = y + offset
            loss, grad = function(x, y, reduction="none", **options)
            right = _exact(x, y, function, options)
            np.testing.assert_allclose(loss, right.loss.astype(float), rtol=1e-13, atol=0)
            largest = abs(right.grad).max(-1, keepdims=True).astype(float)
            assert (abs(grad - right.grad) <= 1e-11 * largest).all()


@every_shape
@every_call
def test_nearly_equal_models_of_float32(function, options, shape, rng):
    for apart in (1e-2, 1e-4, 1e-6):
        for offset in (0.0, 5.3):
            x, y = pair(rng, shape, np.float32, apart)
            y = y + np.float32(offset)
            loss, grad = function(x, y, reduction="none", **options)
            right = _exact(x, y, function, options)
            np.testing.assert_allclose(loss, right.loss.astype(float), rtol=2e-6, atol=0)
            largest = abs(right.grad).max(-1, keepdims=True).astype(float)
            assert (abs(grad - right.grad) <= 2e-5 * largest).all()


def _exact(x, y, function, options):
    name = "kl_divergence" if function is KL_GRAD else "js_divergence"
    return getattr(reference, name)(x, y, reduction="none", **options)


@pytest.mark.parametrize("apart", [None, 1.0, 1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("offset", [0.0, 100.0, -1e4])
def test_the_reference_is_exact(apart, offset, rng):
    """Against the textbook formulas in mpmath."""
    with mpmath.workdps(80):
        for classes in (2, 5, 40):
            x, y = pair(rng, classes, apart=apart)
            y = y + offset
            log_p, log_q = (_log_softmax(a) for a in (x, y))
            for direction in ("forward", "reverse"):
                first, second = (log_q, log_p) if direction == "forward" else (log_p, log_q)
                exact = _kl(first, second)
                got = reference.kl_divergence(x, y, direction=direction).loss
                _close(got, exact)
            for beta in (0.1, 0.5, 0.9):
                b = mpmath.mpf(beta)
                m = [
                    mpmath.log(b * mpmath.exp(q) + (1 - b) * mpmath.exp(p))
                    for p, q in zip(log_p, log_q, strict=True)
                ]
                exact = b * _kl(log_q, m) + (1 - b) * _kl(log_p, m)
                got = reference.js_divergence(x, y, beta=beta)
                _close(got.loss, exact)
                slopes = [p - log_m for p, log_m in zip(log_p, m, strict=True)]
                mean = mpmath.fsum(mpmath.exp(p) * s for p, s in zip(log_p, slopes, strict=True))
                for p, slope, grad in zip(log_p, slopes, got.grad, strict=True):
                    entry = (1 - b) * mpmath.exp(p) * (slope - mean)
                    size = max(map(abs, slopes)) * (1 - b)
                    assert abs(mpmath.mpf(str(grad)) - entry) <= 1e-16 * size


def _log_softmax(x):
    x = [mpmath.mpf(float(v)) for v in x]
    total = mpmath.log(mpmath.fsum(mpmath.exp(v) for v in x))
    return [v - total for v in x]


def _kl(first, second):
    return mpmath.fsum(mpmath.exp(a) * (a - b) for a, b in zip(first, second, strict=True))


def _close(got, exact):
    assert abs(mpmath.mpf(str(got)) / exact - 1) < 1e-16


# ---------------------------------------------------------------------------------- the teacher


@every_call
@every_shape
@pytest.mark.parametrize("kinds", [("f4", "f8"), ("f8", "f4"), ("f4", "f2"), ("f8", "f2")])
def test_a_teacher_of_another_type_is_used_as_it_is(kinds, function, options, shape, rng):
    of_model, of_teacher = kinds
    x, y = pair(rng, shape, apart=1e-3)
    x, y = x.astype(of_model), y.astype(of_teacher)
    wide = np.promote_types(of_model, of_teacher)
    loss, grad = function(x, y, reduction="none", **options)
    assert grad.dtype == loss.dtype == x.dtype
    right = function(x.astype(wide), y.astype(wide), reduction="none", **options)
    for actual, expected in zip((loss, grad), right, strict=True):
        assert_same_bits(actual, expected.astype(x.dtype))
    out = np.empty_like(x)
    assert function(x, y, reduction="none", out=out, **options)[1] is out
    assert_same_bits(out, grad)
    in_place = x.copy()
    function(in_place, y, reduction="none", out=in_place, **options)
    assert_same_bits(in_place, grad)


@pytest.mark.parametrize("of_model", ["f4", "f8"])
def test_a_teacher_of_bfloat16(of_model, rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x, y = pair(rng, (7, 12))
    x, y = x.astype(of_model), y.astype(ml_dtypes.bfloat16)
    for direction in ("forward", "reverse"):
        right = KL_GRAD(x, y.astype(of_model), direction=direction)
        assert_same_bits(KL_GRAD(x, y, direction=direction), right)


@every_call
def test_out_may_be_the_logits_and_not_the_teacher(function, options, rng):
    x, y = pair(rng, (6, 5))
    with pytest.raises(ValueError, match="out overlaps teacher_logits"):
        function(x, y, out=y, **options)
    loss, grad = function(x, y, **options)
    assert_same_bits(function(x, y, out=x, **options), (loss, grad))
    # A teacher that is the model has no place for the gradient.
    with pytest.raises(ValueError, match="out overlaps teacher_logits"):
        function(x, x, out=x, **options)


def test_shapes_types_and_words():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"teacher_logits has shape \(3,\), but logits has shape"):
        KL(x, x[0])
    with pytest.raises(TypeError, match=r"teacher_logits has dtype int64, but must be float16, "):
        KL(x, x.astype(int))
    for wrong in ("backward", "", "FORWARD"):
        message = f"direction must be 'forward' or 'reverse', not \"{wrong}\""
        with pytest.raises(ValueError, match=message):
            KL(x, x, direction=wrong)
    with pytest.raises(ValueError, match=r"direction must be 'forward' or 'reverse', not None"):
        KL(x, x, direction=None)
    for wrong in (0.0, -1.0, np.nan, np.inf):
        for function in (KL, JS):
            with pytest.raises(
                ValueError, match=f"temperature must be finite and above 0, not {wrong}"
            ):
                function(x, x, temperature=wrong)
    for wrong in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=rf"beta must be in \[0, 1\], not {wrong}"):
            JS(x, x, beta=wrong)


# ------------------------------------------------------------------------------------ the edges


@every_dtype
@pytest.mark.parametrize("more", [0, 300])
def test_classes_that_one_of_them_does_not_have(dtype, more):
    """Rows of few classes and of many: what is added has probability 0 in both."""
    inf = np.inf

    def row(*x):
        return np.array([[*x, *[-inf] * more]], dtype)

    both, mine, none = row(0, 1, -inf), row(0, 1, 2), row(0, 1, 2 - inf)
    # Both at -inf: adds nothing.
    loss, grad = KL_GRAD(row(0, 1, -inf), row(1, 0, -inf), reduction="none")
    right, of_right = KL_GRAD(
        np.array([[0, 1]], dtype), np.array([[1, 0]], dtype), reduction="none"
    )
    np.testing.assert_allclose(loss, right, rtol=1e-6)
    np.testing.assert_allclose(grad[:, :2], of_right, rtol=1e-6)
    assert not grad[:, 2:].any()
    # The model has none where the teacher has some: infinite, with the gradient p - q.
    loss, grad = KL_GRAD(both, mine, reduction="none")
    assert loss == inf
    p, q = (special.softmax(a.astype(float), axis=-1) for a in (both, mine))
    np.testing.assert_allclose(grad, p - q, rtol=1e-6)
    # The teacher has none where the model has some.
    loss, grad = KL_GRAD(mine, none, reduction="none")
    expected = special.rel_entr(*(special.softmax(a.astype(float)) for a in (none, mine))).sum()
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)
    loss, grad = KL_GRAD(mine, none, direction="reverse", reduction="none")
    assert loss == inf
    assert np.isnan(grad).all()
    loss, grad = KL_GRAD(none, mine, direction="reverse", reduction="none")
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)
    assert np.isfinite(grad).all()
    assert not grad[:, 2:].any()
    # Jensen-Shannon is finite for all of them.
    for x, y in ((both, mine), (mine, none), (none, mine)):
        right = reference.js_divergence(x, y, beta=0.3, reduction="none")
        loss, grad = JS_GRAD(x, y, beta=0.3, reduction="none")
        np.testing.assert_allclose(loss, right.loss.astype(float), rtol=1e-6)
        np.testing.assert_allclose(grad, right.grad.astype(float), rtol=1e-5, atol=1e-7)


@every_dtype
@every_call
@pytest.mark.parametrize("classes", [1, 3, 300])
def test_what_is_no_distribution_is_nan_for_its_sample_alone(function, options, classes, dtype):
    rng = np.random.default_rng(0)
    x, y = pair(rng, (40, classes), dtype)
    right = function(x, y, reduction="none", **options)
    for array in (0, 1):
        for strange in ([np.nan], [np.inf], [-np.inf] * classes):
            given = [x.copy(), y.copy()]
            given[array][7, : len(strange)] = strange
            loss, grad = function(*given, reduction="none", **options)
            assert np.isnan(loss[7])
            assert np.isnan(grad[7]).all()
            others = np.arange(40) != 7
            assert_same_bits((loss[others], grad[others]), tuple(a[others] for a in right))
            # A weight of 0 leaves it out.
            weight = others.astype(float)
            loss, grad = function(*given, sample_weight=weight, **options)
            assert loss == pytest.approx(right[0][others].mean(dtype=float), rel=1e-6)
            assert not grad[7].any()


@every_call
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_class_has_no_divergence(function, options, dtype):
    x, y = np.array([[3.7], [-1e30]], dtype), np.array([[-2.2], [1e30]], dtype)
    loss, grad = function(x, y, reduction="none", **options)
    assert not loss.any()
    assert not grad.any()


@every_call
@pytest.mark.parametrize("classes", [2, 300])
def test_a_loss_beyond_float32_is_finite(function, options, classes):
    x, y = np.zeros((2, 2, classes), np.float32)
    x[0, 0], y[0, 0] = 3e38, -3e38
    x[1, 0], y[1, 0] = 1.0, 2.0
    wide = function(x.astype(float), y.astype(float), reduction="sum", **options)
    got, grad = function(x, y, reduction="sum", **options)
    assert got == pytest.approx(wide[0], rel=1e-6)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(grad, wide[1].astype(np.float32), rtol=1e-5, atol=1e-7)
