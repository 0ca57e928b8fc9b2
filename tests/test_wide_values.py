"""Labels and weights of a wider dtype than the logits, sums beyond float32, results in place."""

import itertools
import tracemalloc

import numpy as np
import pytest

import xentrs
from losses import BY_ID, LOSSES, assert_same_bits, every_class_loss, every_dtype, every_loss
from test_layouts import lay

SHAPES = [(1, 2), (100, 10), (17, 3), (5, 300), (3, 1100), (2, 9, 40), (2600, 4)]
LARGE = [(1, 2), (3, 10), (20, 17), (3, 300), (2, 1500)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
ORDERS = {"rows": (0, 1, 2), "fortran": (2, 1, 0), "steps": (0, 1, 2)}
every_place = pytest.mark.parametrize("place", ORDERS)


def put(a, place):
    """Return a copy of an array of the logits' shape in that place."""
    order = [axis for axis in ORDERS[place] if axis < a.ndim]
    return lay(a, order, 2 if place == "steps" else 1)


def wide(value):
    return value.astype(np.float64) if getattr(value, "dtype", None) == np.float32 else value


def assert_rounded(actual, expected):
    """Assert that results are those of float64, each number of an array rounded once."""
    actual, expected = (r if isinstance(r, tuple) else (r,) for r in (actual, expected))
    for a, b in zip(actual, expected, strict=True):
        with np.errstate(over="ignore"):
            assert_same_bits(a, b.astype(np.float32) if isinstance(b, np.ndarray) else b)


# ------------------------------------------------------------------------- wider labels and weights


@every_loss
@every_shape
@every_place
def test_wider_labels_and_weights_are_used_as_they_are(loss, shape, place, rng):
    """The results are those of the same logits in float64, rounded once."""
    names = [*({"weight", "pos_weight", "sample_weight"} & set(loss.options))]
    names += ["target"] if loss.has_target else []
    for count in (1, len(names)):
        for some in itertools.combinations(names, count):
            for smoothing in loss.smoothings:
                given = {*some} - {"target"}
                case = loss.case(rng, shape, np.float32, given)
                case = case.but(scores=put(case.scores, place))
                if "label_smoothing" in loss.keywords:
                    case = case.but(label_smoothing=smoothing)
                for name in set(some) & set(case.options):
                    case.options[name] = rng.uniform(0.5, 2, case.options[name].shape)
                if case.target.shape == shape:
                    fine = rng.random(shape) if "target" in some else case.target
                    case = case.but(target=put(fine, place))
                exact = case.but(scores=case.scores.astype(np.float64), target=wide(case.target))
                for order, reduction in itertools.product(loss.orders, ("mean", "sum", "none")):
                    got = case.call(order, reduction=reduction)
                    right = exact.call(order, reduction=reduction)
                    if loss.indices or "target" not in some:
                        # Weights are used in float64 in any case, or are two float32 numbers
                        # (tests/test_accuracy.py has their bounds).
                        got, right = (r if order else (r,) for r in (got, right))
                        for a, b in zip(got, right, strict=True):
                            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
                    else:
                        assert_rounded(got, right)


@pytest.mark.parametrize("factor", [1e-300, 1e-20, 1e20, 1e300], ids=str)
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if "pos_weight" in loss.options], ids=str)
def test_weights_out_of_the_range_of_float32_are_used_in_float64(loss, factor, rng):
    for shape, name in itertools.product(SHAPES, ("weight", "pos_weight")):
        case = loss.case(rng, shape, np.float32, {"weight", "pos_weight"})
        weights = rng.uniform(0.5, 2, case.options[name].shape)
        weights.flat[rng.integers(weights.size)] *= factor
        case.options[name] = weights
        exact = case.but(scores=case.scores.astype(np.float64), target=wide(case.target))
        for order, reduction in itertools.product(loss.orders, ("mean", "sum", "none")):
            got = case.call(order, reduction=reduction)
            assert_rounded(got, exact.call(order, reduction=reduction))


@every_dtype
@pytest.mark.parametrize("of_weights", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [3, 300])
@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_an_infinite_class_weight_makes_its_own_class_infinite(
    dtype, of_weights, classes, infinite
):
    p, q = np.full((2, classes), 0.25, dtype), np.full((2, classes), 0.5, dtype)
    weight = np.full(classes, 0.7, of_weights)
    weight[1] = infinite
    loss, grad = xentrs.log_loss_with_grad(p, q, weight=weight)
    assert loss == infinite
    np.testing.assert_allclose(grad, -np.broadcast_to(weight, p.shape), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=str)
@pytest.mark.parametrize("number", [3.1, 2, 0, 1e300, 10**15 + 1, np.float64(0.7), 2**60, -1.5])
@pytest.mark.parametrize(
    "loss", [loss for loss in LOSSES if not loss.class_axis and "weight" in loss.options], ids=str
)
def test_a_number_is_a_weight_of_all_elements(loss, number, dtype, rng):
    case = loss.case(rng, (7, 300), dtype, ())
    for name in {"weight", "pos_weight"} & set(loss.options):
        for reduction in ("mean", "none"):
            given = case.but(reduction=reduction)
            array = np.full(case.scores.shape[-1], number)
            assert_same_bits(given.all(**{name: number}), given.all(**{name: array}))


@pytest.mark.parametrize("kind", [list, np.float64, np.longdouble, ">f8"], ids=str)
def test_labels_keep_their_digits(kind):
    def labels(*values):
        return list(values) if kind is list else np.array(values, kind)

    f4 = np.float32
    binary = xentrs.binary_cross_entropy_with_logits
    np.testing.assert_allclose(binary(f4([20]), labels(0.999999)), 2.0002061154195e-05, rtol=1e-12)
    np.testing.assert_allclose(binary(f4([100]), labels(1 - 1e-9)), 1e-7, rtol=1e-7)
    grad = xentrs.binary_cross_entropy_with_logits_with_grad(f4([100]), labels(1 - 1e-9))[1]
    assert grad.dtype == np.float32
    np.testing.assert_allclose(grad, 1e-9, rtol=2e-7)
    for name in ("weight", "pos_weight"):
        got = binary(f4([1]), labels(0.9), **{name: labels(1e39)})
        right = binary(np.array([1.0]), np.array([0.9]), **{name: np.array([1e39])})
        np.testing.assert_allclose(got, right, rtol=1e-7)
    x = f4([[0, 1]])
    assert xentrs.cross_entropy(x, [labels(1e300, 0)]) == pytest.approx(1e300 * np.log1p(np.e))
    p = f4([[0.5, 0.25]])
    got = xentrs.log_loss(p, [labels(1e300, 1 - 1e-9)])
    assert got == pytest.approx(1e300 * np.log(2))
    # The loss is the probability 1e-9 of the first class times its distance, 200.
    x = f4([[0, 200]])
    got = xentrs.cross_entropy(x, [labels(1e-9, 1 - 1e-9)])
    np.testing.assert_allclose(got, 200e-9, rtol=1e-12)


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint64, np.int32])
def test_integer_labels_are_exact(kind):
    labels = np.array([0, 1, 100, 2**24 + 1 if np.dtype(kind).itemsize > 2 else 3], kind)
    x = np.array([0.5, -3, 2, 7], np.float32)
    right = xentrs.binary_cross_entropy_with_logits(x.astype(np.float64), labels, reduction="none")
    got = xentrs.binary_cross_entropy_with_logits(x, labels, reduction="none")
    np.testing.assert_allclose(got, right, rtol=3e-7)
    got = xentrs.binary_cross_entropy_with_logits(x, labels, reduction="sum")
    np.testing.assert_allclose(got, right.sum(), rtol=1e-6)


@every_shape
@pytest.mark.parametrize(
    "loss", [loss for loss in LOSSES if not (loss.indices or loss.teacher)], ids=str
)
def test_labels_that_lose_nothing_give_the_same_bits(loss, shape, rng):
    case = loss.case(rng, shape, np.float32)
    for place in ORDERS:
        target = put(case.target.astype(np.float64), place)
        assert_same_bits(case.but(target=target).all(), case.all())


@every_shape
@every_place
def test_probabilities_that_lose_nothing_give_the_same_bits(shape, place, rng):
    x = put(rng.normal(size=shape).astype(np.float32), place)
    target = xentrs.softmax(rng.normal(size=shape).astype(np.float32), axis=1)
    for smoothing in (0, 0.1):
        options = {"axis": 1, "label_smoothing": smoothing}
        right = xentrs.cross_entropy_with_grad_hess(x, target, **options)
        got = xentrs.cross_entropy_with_grad_hess(x, put(wide(target), place), **options)
        assert_same_bits(got, right)


@pytest.mark.parametrize("place", ["rows", "fortran"])
def test_float64_labels_are_not_copied(place, rng):
    x = put(rng.normal(size=(400, 300)).astype(np.float32), place)
    one_hot = put(np.eye(300)[rng.integers(0, 300, 400)], place)
    calls = [
        (xentrs.cross_entropy, one_hot),
        (xentrs.cross_entropy, one_hot / 3 + 1 / 450),
        (xentrs.binary_cross_entropy_with_logits, one_hot),
    ]
    for loss, target in calls[: 3 if place == "rows" else 2]:
        loss(x, target)
        tracemalloc.start()
        try:
            loss(x, target)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < x.nbytes / 10


@pytest.mark.parametrize("classes", [2, 10, 300])
@pytest.mark.parametrize("smooth", [False, True], ids=["", "smoothing"])
@every_class_loss
def test_factors_beyond_float32(loss, classes, smooth, rng):
    case = loss.case(rng, (20, classes), np.float32)
    if "label_smoothing" in loss.keywords:
        case = case.but(label_smoothing=loss.smoothings[-1] * smooth)
    exact = case.but(scores=case.scores.astype(np.float64), target=wide(case.target))
    for options in (
        {"sample_weight": np.full(20, 1e39)},
        {"weight": np.full(classes, 1e39)},
        {"weight": np.full(classes, 1e200), "sample_weight": rng.uniform(1e-180, 1e-150, 20)},
        {"denominator": 1e-39},
    ):
        if not set(options) <= set(loss.options):
            continue
        for reduction in ("sum", "mean", "none"):
            assert_rounded(
                case.all(reduction=reduction, **options), exact.all(reduction=reduction, **options)
            )


# --------------------------------------------------------------------------- sums beyond float32


@pytest.mark.parametrize("n", [1, 15, 16, 17, 100, 128, 5000])
@pytest.mark.parametrize("target", [np.zeros, np.ones, "soft", "bool"])
def test_binary_losses_that_exceed_float32(n, target, rng):
    x = np.full(n, 3e38, np.float32) * np.where(rng.random(n) < 0.5, 1, -1).astype(np.float32)
    t = rng.random(n) if isinstance(target, str) else target(n)
    t = t < 0.5 if target == "bool" else t.astype(np.float32)
    big = np.full(n, 1e30, np.float32)
    for options in (
        {},
        {"label_smoothing": 0.1},
        {"weight": big},
        {"weight": big, "pos_weight": big},
        {"where": rng.random(n) < 0.5},
    ):
        for reduction in ("mean", "sum"):
            options["reduction"] = reduction
            loss, grad, hess = xentrs.binary_cross_entropy_with_logits_with_grad_hess(
                x, t, **options
            )
            wider = {k: wide(v) for k, v in options.items()}
            right = xentrs.binary_cross_entropy_with_logits_with_grad_hess(
                x.astype(np.float64), wide(t), **wider
            )
            assert np.isfinite(right[0]) or not options.get("where", np.array(1)).any()
            np.testing.assert_allclose(loss, right[0], rtol=1e-6)
            with np.errstate(over="ignore"):
                np.testing.assert_allclose(grad, right[1].astype(np.float32), rtol=1e-6)
                np.testing.assert_allclose(hess, right[2].astype(np.float32), rtol=1e-6)
            inputs = (x.copy(), t)
            got = xentrs.binary_cross_entropy_with_logits_with_grad(
                *inputs, out=inputs[0], **options
            )
            assert_same_bits(got, (loss, grad))
            got = xentrs.binary_cross_entropy_with_logits(x, t, **options)
            assert_same_bits(got, loss)


def test_products_of_binary_weights_beyond_float32():
    big = np.float32([1e30])
    options = {"weight": big, "pos_weight": big, "reduction": "sum"}
    x, t = np.float32([80]), np.float32([1])
    loss, grad, hess = xentrs.binary_cross_entropy_with_logits_with_grad_hess(x, t, **options)
    right = float(big[0]) ** 2 * np.exp(-80)
    np.testing.assert_allclose([loss, -grad[0], hess[0]], right, rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [(1, 2), (3, 10), (20, 17), (3, 300), (2, 1500), (200, 3)], ids=str
)
@pytest.mark.parametrize("place", [*ORDERS, "axis 0"])
@pytest.mark.parametrize("how", ["soft", "smoothing", "smoothing, weights", "soft, weights"])
def test_cross_entropies_that_exceed_float32(shape, place, how, rng):
    x = (rng.choice([-1, 1], shape) * rng.uniform(2e38, 3.4e38, shape)).astype(np.float32)
    x[..., 0], x[..., 1] = -abs(x[..., 0]), abs(x[..., 1])
    t = rng.random(shape).astype(np.float32)
    if how.startswith("smoothing"):
        t = rng.integers(0, shape[-1], shape[:-1])
    options = {"label_smoothing": 0.9 if how.startswith("smoothing") else 0.0}
    if how.endswith("weights"):
        options["weight"] = rng.uniform(1e20, 1e28, shape[-1]).astype(np.float32)
    right_options = {k: wide(v) for k, v in options.items()}
    for reduction in ("mean", "sum"):
        options["reduction"] = right_options["reduction"] = reduction
        right = xentrs.cross_entropy_with_grad_hess(x.astype(np.float64), wide(t), **right_options)
        assert np.isfinite(right[0])
        assert right[0] > 1e36
        if place == "axis 0":
            laid, options["axis"] = np.moveaxis(x, -1, 0).copy(), 0
            other = np.ascontiguousarray(np.moveaxis(t, -1, 0)) if t.ndim == x.ndim else t
        else:
            laid, other = put(x, place), put(t, place) if t.ndim == x.ndim else t
        loss, *rest = xentrs.cross_entropy_with_grad_hess(laid, other, **options)
        np.testing.assert_allclose(loss, right[0], rtol=1e-6)
        for a, b in zip(rest, right[1:], strict=True):
            a = np.moveaxis(a, 0, -1) if place == "axis 0" else a
            b = b.astype(np.float32)
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * abs(b).max())
        assert_same_bits(xentrs.cross_entropy(laid, other, **options), loss)
        got = xentrs.cross_entropy_with_grad(laid, other, **options, out=laid)
        assert_same_bits(got[0], loss)


@pytest.mark.parametrize("shape", LARGE, ids=str)
@every_place
def test_log_losses_that_exceed_float32(shape, place, rng):
    p = rng.uniform(1e-3, 0.2, shape).astype(np.float32)
    p[0, 0] = 1e-42
    hard = rng.integers(0, shape[-1], shape[:-1])
    soft = rng.uniform(2e38, 3.4e38, shape).astype(np.float32)
    weight = rng.uniform(5e28, 1e29, shape[-1]).astype(np.float32)
    for target, options in (
        (soft, {}),
        (soft, {"label_smoothing": 0.1}),
        (soft, {"weight": weight}),
        (soft, {"sample_weight": np.full(shape[0], 1e29, np.float32)}),
        (hard, {"weight": weight * 3e9, "label_smoothing": 0.1}),
        (hard, {"weight": weight * 3e9}),
        (hard, {"sample_weight": np.full(shape[0], 3e38, np.float32)}),
    ):
        wider = {k: wide(v) for k, v in options.items()}
        right = xentrs.log_loss(p.astype(np.float64), wide(target), reduction="sum", **wider)
        assert np.isfinite(right)
        assert right > 2e38
        laid = put(p, place)
        other = put(target, place) if target.ndim == p.ndim else target
        for order in range(3):
            function = BY_ID["log_loss-indices"].functions[order]
            got = function(laid, other, reduction="sum", **options)
            np.testing.assert_allclose(got[0] if order else got, right, rtol=1e-6)
        got = xentrs.log_loss_with_grad(laid, other, reduction="sum", **options, out=laid)
        np.testing.assert_allclose(got[0], right, rtol=1e-6)


# ---------------------------------------------------------------------------------------- in place


@every_dtype
@every_loss
@pytest.mark.parametrize("shape", [*SHAPES, (70, 300), (5, 5000)], ids=str)
@pytest.mark.parametrize("place", [*ORDERS, "axis 0"])
def test_every_output_in_place(loss, shape, place, dtype, rng):
    for options in loss.option_sets:
        case = loss.case(rng, shape, dtype, options)
        if place == "axis 0" and loss.class_axis:
            target = case.target
            if target.ndim == len(shape):
                target = np.ascontiguousarray(np.moveaxis(target, -1, 0))
            scores = np.ascontiguousarray(np.moveaxis(case.scores, -1, 0))
            case = case.but(scores=scores, target=target, axis=0)
        elif place != "axis 0":
            case = case.but(scores=put(case.scores, place))
        for reduction in ("mean", "none"):
            expected = case.all(reduction=reduction)
            for names in [("out",), ("hess_out",), ("out", "hess_out")]:
                for own in set(names) & set(loss.outputs):
                    here = np.copy(case.scores, order="K")
                    other = np.full_like(here, 7)
                    outputs = {
                        name: here if name == own else other
                        for name in names
                        if name in loss.outputs
                    }
                    got = case.but(scores=here).all(reduction=reduction, **outputs)
                    assert_same_bits(got, expected, f"{names}, {own} in place")
                    assert got[1 if own == "out" else 2] is here
            here = np.copy(case.scores, order="K")
            got = case.but(scores=here).both(reduction=reduction, out=here)
            assert_same_bits(got, expected[:2])
