"""Laws that every loss keeps, at every dtype; `test_levels.py` runs them at every level."""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xentrs
from losses import (
    BY_ID,
    CLASS_COUNTS,
    CLASS_LOSSES,
    LOSSES,
    SAMPLE_COUNTS,
    Case,
    assert_same_bits,
    every_class_loss,
    every_dtype,
    every_index_loss,
    every_loss,
    same_bits,
)
from reference import ulp_error

# Few classes and many are two kernels; 100 x 10 takes more than one block of 1024 elements.
SHAPES = [(100, 10), (17, 3), (5, 70), (3, 1100)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
LEVEL = xentrs.show_config(mode="dicts")["simd"]["level"]


def option_sets(loss):
    """No option, each alone, and all but one reduction together."""
    everything = tuple(sorted(set(loss.options) - {"reduction"}))
    return [(), *((name,) for name in sorted(loss.options)), everything]


LOSSES_AND_OPTIONS = [
    pytest.param(loss, options, id=f"{loss}-{'+'.join(options) or 'plain'}")
    for loss in LOSSES
    for options in option_sets(loss)
]
HESSIANS_AND_OPTIONS = [row for row in LOSSES_AND_OPTIONS if row.values[0].derivatives == 2]


def assert_units(actual, exact, terms, dtype, bound=16):
    """Assert that an array is right to some ULP of the terms that it is made of.

    This is room for the rounding of any options; `test_accuracy.py` has the tight bounds.
    """
    room = np.finfo(dtype).tiny * 1e4  # factors may lift what was rounded below normal numbers
    good = abs(terms) >= room
    assert ulp_error(actual, exact, terms)[good].max(initial=0) <= bound
    assert np.all(abs(actual - exact)[~good] <= room)


def assert_agrees(case, results, dtype):
    """Assert that results are those of the reference."""
    right = case.reference()
    loss, *rows = results
    if case.options.get("reduction", "mean") == "none":
        assert loss.dtype == dtype
        # As test_accuracy.py says: series of a shorter reach.
        bound = 84 if case.loss.teacher and dtype == np.float64 else 16
        assert_units(loss, right.loss, right.loss_terms, dtype, bound=bound)
    else:
        assert type(loss) is float
        # Each sample's loss is good to 4 ULP and the sum of positive ones then is too; float64
        # needs room for the rounding of the sum itself.
        bound = 4 * np.finfo(dtype).eps + 16 * np.finfo(np.float64).eps
        room = bound * float(right.loss_terms)
        np.testing.assert_allclose(loss, float(right.loss), rtol=0, atol=room)
    for actual, (exact, terms) in zip(rows, right.derivatives, strict=True):
        assert actual.dtype == dtype
        assert actual.shape == case.scores.shape
        assert_units(actual, exact, terms, dtype)


# ---------------------------------------------------------------- agreement with the mathematics


def _smooth(loss, options, dtype, rng):
    """Return a case whose curvature central differences can bear, and the same in float64."""
    options = set(options) - {"reduction"}
    case = loss.case(rng, (6, 5), dtype, options, reduction="sum")
    scores = rng.uniform(0.1, 0.9, (6, 5)) if loss.bounded else rng.normal(size=(6, 5))
    case = case.but(scores=scores.astype(dtype))
    return case, case.but(scores=case.scores.astype(np.float64), target=_as_float64(case.target))


@every_dtype
@pytest.mark.parametrize(("loss", "options"), LOSSES_AND_OPTIONS)
def test_gradient_is_central_difference_of_loss(loss, options, dtype, rng):
    case, wide = _smooth(loss, options, dtype, rng)
    numeric = np.empty(case.scores.shape)
    for i in range(numeric.size):
        step = np.zeros(numeric.shape)
        step.flat[i] = 1e-5
        above, below = (wide.but(scores=wide.scores + h).call(0) for h in (step, -step))
        numeric.flat[i] = (above - below) / 2e-5
    grad = case.both()[1]
    # The error is h**2 / 6 times the third derivative, at most 2000 a unit here.
    np.testing.assert_allclose(grad, numeric, rtol=2e-6, atol=1e-7)
    assert np.abs(numeric).max() > 1e-2  # or the comparison says nothing


@every_dtype
@pytest.mark.parametrize(("loss", "options"), HESSIANS_AND_OPTIONS)
def test_hessian_is_central_difference_of_gradient(loss, options, dtype, rng):
    case, wide = _smooth(loss, options, dtype, rng)
    numeric = np.empty(case.scores.shape)
    for i in range(numeric.size):
        step = np.zeros(numeric.shape)
        step.flat[i] = 1e-5
        above, below = (wide.but(scores=wide.scores + h).both()[1] for h in (step, -step))
        numeric.flat[i] = (above - below).flat[i] / 2e-5
    np.testing.assert_allclose(case.all()[2], numeric, rtol=2e-6, atol=1e-7)
    assert np.abs(numeric).max() > 1e-2


def _as_float64(target):
    return target.astype(np.float64) if target.dtype.kind == "f" else target


@every_dtype
@every_shape
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("loss", "options"), LOSSES_AND_OPTIONS)
def test_agrees_with_reference(loss, options, reduction, shape, dtype, rng):
    case = loss.case(rng, shape, dtype, set(options) - {"reduction"}, reduction=reduction)
    assert_agrees(case, case.all(), dtype)


@every_dtype
@every_loss
@given(data=st.data())
def test_agrees_with_reference_at_any_shape(loss, dtype, data):
    """Class counts around every edge, sample counts too, any rank and any options."""
    classes = data.draw(st.sampled_from(CLASS_COUNTS) | st.integers(1, 80), label="classes")
    limit = max(1, 40_000 // classes)
    counts = [n for n in SAMPLE_COUNTS if n <= limit]
    samples = data.draw(st.sampled_from([0, *counts]) | st.integers(0, min(limit, 40)), label="N")
    split = data.draw(st.sampled_from([d for d in (1, 2, 3) if samples % d == 0]), label="split")
    shape = (samples, classes) if split == 1 else (split, samples // split, classes)
    options = data.draw(st.sets(st.sampled_from(sorted(loss.options))), label="options")
    rng = np.random.default_rng(data.draw(st.integers(0, 999), label="seed"))
    case = loss.case(rng, shape, dtype, options)
    results = case.all()
    assert_agrees(case, results, dtype)
    assert_same_bits(case.both(), results[:2])
    assert_same_bits(case.call(0), results[0])


@every_dtype
@every_loss
@pytest.mark.parametrize("classes", CLASS_COUNTS)
def test_agrees_with_reference_at_every_boundary(loss, classes, dtype, rng):
    """What hypothesis may skip: each class count, at a few sample counts, for sure."""
    for samples in (1, 3, 17, 130):
        if samples * classes <= 20_000:
            case = loss.case(rng, (samples, classes), dtype, reduction="none")
            assert_agrees(case, case.all(), dtype)


@every_loss
def test_float32_is_float64_rounded(loss, rng):
    """The same numbers in the other dtype give the same results to the narrower one's precision."""
    case = loss.case(rng, (60, 12), np.float32, reduction="none")
    wide = case.but(scores=case.scores.astype(np.float64), target=_as_float64(case.target))
    terms = case.reference()
    sizes = terms.loss, *terms.sizes
    for narrow, right, size in zip(case.all(), wide.all(), sizes, strict=True):
        assert narrow.dtype == np.float32
        assert right.dtype == np.float64
        assert_units(narrow, right, size, np.float32)


# ------------------------------------------------------------------------------ options' own laws


@every_dtype
@every_shape
@pytest.mark.parametrize(("loss", "options"), LOSSES_AND_OPTIONS)
def test_twins_return_the_same_bits(loss, options, shape, dtype, rng):
    case = loss.case(rng, shape, dtype, options)
    loss_alone, both, all_three = case.call(0), case.both(), case.all()
    assert_same_bits(both[0], loss_alone)
    assert_same_bits(all_three[:2], both)


@every_dtype
@every_loss
@every_shape
def test_reductions_agree_with_none(loss, shape, dtype, rng):
    # The mean of z-loss has a divisor of its own: see the law of it.
    options = set(loss.options) - {"reduction", "denominator", "z_loss"}
    case = loss.case(rng, shape, dtype, options)
    each, *rows = case.all(reduction="none")
    total, *total_rows = case.all(reduction="sum")
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(total, each.sum(dtype=np.float64), rtol=4 * eps, atol=0)
    assert_same_bits(tuple(total_rows), tuple(rows))  # the gradient of a sum is that of its terms
    for denominator in (None, 3.0, 4.0):
        mean, *mean_rows = case.all(reduction="mean", denominator=denominator)
        divisor = _divisor(case) if denominator is None else denominator
        np.testing.assert_allclose(mean * divisor, total, rtol=1e-13, atol=0)
        terms = case.reference(reduction="mean", denominator=denominator)
        exact = np.longdouble(divisor)
        for mean_row, row, size in zip(mean_rows, rows, terms.sizes, strict=True):
            assert_units(mean_row, row / exact, size, dtype)
    assert_same_bits(case.all(reduction="sum", denominator=3.0)[1], rows[0])


def _divisor(case):
    """Return what the mean divides by, from the contract's words."""
    options = case.options
    if not case.loss.class_axis:
        return np.sum(options.get("where", np.ones(case.scores.shape)))
    s = options.get("sample_weight", np.ones(case.scores.shape[:-1])).astype(float)
    if not case.loss.indices:
        return s.sum()
    w = options.get("weight", np.ones(case.scores.shape[-1])).astype(float)
    ignored = options.get("ignore_index", -100)
    keep = ~np.isin(case.target, ignored)
    return (s[keep] * w[case.target[keep]]).sum()


@every_dtype
@every_class_loss
@pytest.mark.parametrize("shape", [(40, 6), (5, 70)], ids=str)
def test_sample_weights_are_repetitions(loss, shape, dtype, rng):
    options = set(loss.options) - {"reduction", "denominator", "sample_weight"}
    case = loss.case(rng, shape, dtype, options)
    times = rng.integers(0, 4, shape[0])
    times[0] = 2
    repeated = case.take(np.repeat(np.arange(shape[0]), times))
    eps = np.finfo(dtype).eps
    for reduction in ("sum", "mean"):
        weighted = case.both(sample_weight=times.astype(dtype), reduction=reduction)
        again = repeated.both(reduction=reduction)
        np.testing.assert_allclose(weighted[0], again[0], rtol=4 * eps)
        summed = np.zeros(shape)
        np.add.at(summed, np.repeat(np.arange(shape[0]), times), again[1])
        terms = case.reference(sample_weight=times.astype(dtype), reduction=reduction)
        assert_units(weighted[1], summed, terms.grad_terms, dtype)


@every_dtype
@every_loss
@every_shape
@pytest.mark.parametrize("factor", [4.0, 0.5])
def test_weights_multiply(loss, shape, dtype, factor, rng):
    """A factor that is a power of two changes only exponents."""
    case = loss.case(rng, shape, dtype, reduction="none")
    plain = case.all()
    for name in {"weight", "sample_weight", "pos_weight"} & set(loss.options):
        if name == "pos_weight":  # of the positive part alone
            case = case.but(target=np.ones(shape, dtype))
            plain = case.all()
        size = shape[:-1] if name == "sample_weight" else shape[-1:]
        weighted = case.all(**{name: np.full(size, factor, dtype)})
        for actual, expected in zip(weighted, plain, strict=True):
            normal = abs(expected) >= np.finfo(dtype).tiny * 4
            assert_same_bits(actual[normal], (expected * dtype(factor))[normal], name)


@every_dtype
@every_loss
@every_shape
@pytest.mark.parametrize("lowest", [0, -1], ids=["of-0", "below-0"])
def test_weights_of_0_and_below_are_numbers_as_others(loss, shape, dtype, lowest, rng):
    """Neither is refused: 0 leaves a sample, class or element out, -1 turns its sign."""
    names = {"weight", "sample_weight", "pos_weight"} & set(loss.options)
    for together in (*({name} for name in sorted(names)), names):
        for smoothing in loss.smoothings:
            case = loss.case(rng, shape, dtype, together)
            if "label_smoothing" in loss.keywords:
                case = case.but(label_smoothing=smoothing)
            for name in together:
                value = case.options[name]
                signs = rng.integers(lowest, 2, value.shape)
                signs.flat[:2] = 1, lowest
                case = case.but(**{name: value * signs.astype(dtype)})
            for reduction in ("none", "sum"):
                results = case.all(reduction=reduction)
                right = case.reference(reduction=reduction)
                assert_agrees(case.but(reduction=reduction), results, dtype)
                assert_same_bits(case.both(reduction=reduction), results[:2])
                assert_same_bits(case.call(0, reduction=reduction), results[0])
                for row, size in zip(results[1:], right.sizes, strict=True):
                    assert not row[size == 0].any()  # exactly 0 where nothing counts
            # The mean has no other digits than the sum of weights that it divides by.
            divisor = case.reference(reduction="mean").divisor
            sizes = {name: abs(case.options[name]) for name in together}
            if abs(divisor) > case.reference(reduction="mean", **sizes).divisor / 8:
                total, mean = case.both(reduction="sum"), case.both(reduction="mean")
                assert mean[0] * float(divisor) == pytest.approx(total[0], rel=1e-11)
                terms = case.reference(reduction="mean").grad_terms
                assert_units(mean[1], total[1] / divisor, terms, dtype)


@every_dtype
@every_loss
@every_shape
def test_weights_of_one_and_defaults_change_nothing(loss, shape, dtype, rng):
    case = loss.case(rng, shape, dtype)
    plain = case.all()
    terms = case.reference()
    sizes = terms.sizes
    ones = {
        "weight": np.ones(shape[-1], dtype),
        "sample_weight": np.ones(shape[:-1], dtype),
        "pos_weight": np.ones(shape[-1], dtype),
        "where": np.ones(shape, bool),
        "ignore_index": None,
        "label_smoothing": 0,
        "z_loss": 0,
        "softcap": None,
        "temperature": 1,
        "gamma": 2,
        "direction": "forward",
        "beta": 0.5,
        "alpha": None,
        "q": 0.7,
        "epsilon": 1,
        "denominator": None,
        "base": None,
        "reduction": "mean",
    }
    for name in loss.options:
        loss_value, *rows = case.all(**{name: ones[name]})
        # Losses of elements are added in groups, in their dtype, where none is weighted.
        grouped = loss.elements and dtype == np.float32
        rel = float(np.finfo(dtype).eps) if grouped else 8e-16
        assert loss_value == pytest.approx(plain[0], rel=rel, abs=0), name
        for a, b, size in zip(rows, plain[1:], sizes, strict=True):
            assert_units(a, b, size, dtype, bound=4)


@every_dtype
@every_loss
@every_shape
def test_weights_of_either_dtype_are_the_same_numbers(loss, shape, dtype, rng):
    names = {"weight", "sample_weight", "pos_weight"} & set(loss.options)
    case = loss.case(rng, shape, dtype, names, reduction="none")
    narrow = {name: case.options[name].astype(np.float32) for name in names}
    wide = {name: value.astype(np.float64) for name, value in narrow.items()}
    assert_same_bits(case.all(**wide), case.all(**narrow))


@every_dtype
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if "base" in loss.options], ids=str)
@every_shape
@pytest.mark.parametrize("base", [2, 10.0, 0.5, 2.718281828459045])
def test_base_divides_by_its_logarithm(loss, shape, dtype, base, rng):
    case = loss.case(rng, shape, dtype, set(loss.options) - {"base", "reduction"})
    for reduction in ("mean", "sum", "none"):
        nats, other = case.all(reduction=reduction), case.all(reduction=reduction, base=base)
        precision = 8e-16 if reduction != "none" else 2 * np.finfo(dtype).eps
        # Below the normal numbers both are rounded to a multiple of the smallest one.
        least = 2 * np.finfo(dtype).smallest_subnormal if reduction == "none" else 0
        np.testing.assert_allclose(other[0], nats[0] / np.log(base), rtol=precision, atol=least)
        terms = case.reference(reduction=reduction, base=base)
        exact = np.log(np.longdouble(base))
        for row, of_nats, size in zip(other[1:], nats[1:], terms.sizes, strict=True):
            assert_units(row, of_nats / exact, size, dtype)


@every_dtype
@every_index_loss
@every_shape
def test_several_ignored_indices_in_any_container(loss, shape, dtype, rng):
    case = loss.case(rng, shape, dtype)
    ignored = [0, shape[-1] - 1, -5]
    target = np.where(rng.random(shape[0]) < 0.2, -5, case.target)
    target[1] = -5
    case = case.but(target=target, reduction="sum")
    results = case.all(ignore_index=ignored)
    assert_same_bits(case.all(ignore_index=tuple(ignored)), results)
    assert_same_bits(case.all(ignore_index=np.array(ignored)), results)
    gone = np.isin(target, ignored)
    assert not any(row[gone].any() for row in results[1:])
    if not gone.all():
        assert results[1][~gone].any()
        assert_same_bits(results[1][~gone], case.take(~gone).both()[1])
    one = case.but(target=np.where(target == -5, 0, target))
    assert_same_bits(one.all(ignore_index=0), one.all(ignore_index=[0]))
    assert_same_bits(one.all(ignore_index=np.int16(0)), one.all(ignore_index=[0]))


@every_dtype
@pytest.mark.parametrize("name", ["cross_entropy", "log_loss"])
@every_shape
def test_class_index_is_a_one_hot_probability(name, shape, dtype, rng):
    by_index, soft = (loss for loss in CLASS_LOSSES if loss.name == name)
    assert by_index.indices
    assert not soft.indices
    case = by_index.case(rng, shape, dtype, {"weight", "sample_weight"}, label_smoothing=0.1)
    one_hot = np.eye(shape[-1], dtype=dtype)[case.target]
    # Class weights weigh the one-hot target and the smoothing alike, as in PyTorch.
    for reduction in ("none", "sum"):
        hard = case.all(reduction=reduction)
        right = case.reference(reduction=reduction)
        for kind in (dtype, np.int8, bool, np.uint64, np.float64):
            other = replace(case, loss=soft, target=one_hot.astype(kind)).all(reduction=reduction)
            np.testing.assert_allclose(other[0], hard[0], rtol=8 * np.finfo(dtype).eps)
            assert_units(other[1], hard[1], right.grad_terms, dtype, bound=8)
            assert_units(other[2], hard[2], right.hess_terms, dtype, bound=12)


@every_dtype
@every_shape
@pytest.mark.parametrize("id", ["cross_entropy-indices", "cross_entropy-probabilities"])
@pytest.mark.parametrize("options", [(), ("label_smoothing",), ("weight", "sample_weight"), None])
def test_z_loss_is_added_to_each_sample_that_counts(id, options, shape, dtype, rng):
    """It is z S**2 times the sample weight, and its mean divides by the sample weights alone."""
    loss, z = BY_ID[id], 0.03
    if options is None:
        options = set(loss.options) - {"reduction", "base", "z_loss", "softcap", "temperature"}
    plain = loss.case(rng, shape, dtype, options)
    case = plain.but(z_loss=z)
    x = case.scores.astype(np.longdouble)
    top = x.max(-1, keepdims=True)
    exps = np.exp(x - top)
    s = (top + np.log(exps.sum(-1, keepdims=True)))[..., 0]
    p = exps / exps.sum(-1, keepdims=True)
    weight = np.broadcast_to(plain.options.get("sample_weight", 1), s.shape).astype(np.longdouble)
    if loss.indices:
        weight = np.where(np.isin(case.target, plain.options.get("ignore_index", -100)), 0, weight)
    each = weight * z * s**2
    rows = 2 * z * (weight * s)[..., None] * p
    curved = 2 * z * weight[..., None] * p * (p + s[..., None] * (1 - p))
    total = plain.options.get("denominator", weight.sum())
    for reduction, divisor in (("none", 1), ("sum", 1), ("mean", total)):
        got, without = case.all(reduction=reduction), plain.all(reduction=reduction)
        added = each if reduction == "none" else each.sum() / divisor
        rel = 8 * np.finfo(dtype).eps if reduction == "none" else 1e-6
        np.testing.assert_allclose(got[0], (without[0] + added).astype(float), rtol=rel)
        right = case.reference(reduction=reduction)
        sizes = right.grad_terms, right.hess_terms
        more = rows / divisor, curved / divisor
        for a, b, c, size in zip(got[1:], without[1:], more, sizes, strict=True):
            assert_units(a, b + c, size, dtype)


@every_dtype
@every_shape
@pytest.mark.parametrize("id", ["cross_entropy-indices", "cross_entropy-probabilities"])
@pytest.mark.parametrize("exponent", [-3, -1, 1, 6])
def test_temperature_divides_the_logits(id, exponent, shape, dtype, rng):
    """By a power of two, which rounds nothing: the same bits but for one of the gradient."""
    loss, t = BY_ID[id], 2.0**exponent
    options = set(loss.options) - {"reduction", "softcap", "temperature"}
    for names in ((), ("weight", "z_loss"), options):
        case = loss.case(rng, shape, dtype, names, reduction="none")
        each, grad, hess = case.all(temperature=t)
        right = case.but(scores=case.scores / dtype(t))
        terms = right.reference()
        other = right.all()
        assert_units(each, other[0], terms.loss_terms, dtype, bound=4)
        assert_units(grad * dtype(t), other[1], terms.grad_terms, dtype, bound=4)
        assert_units(hess * dtype(t * t), other[2], terms.hess_terms, dtype, bound=8)


@every_dtype
@pytest.mark.parametrize("temperature", [0.37, 3.0, 50.0])
@pytest.mark.parametrize("classes", [3, 10, 300])
def test_temperature_keeps_the_digits_at_every_offset(classes, temperature, dtype, rng):
    x = rng.integers(-20, 20, (40, classes)).astype(dtype)
    target = rng.integers(0, classes, 40)
    for offset in (0, 64, -4096, 2.0**20, -(2.0**23), *([2.0**45] if dtype == np.float64 else [])):
        case = Case(BY_ID["cross_entropy-indices"], x + dtype(offset), target)
        case = case.but(temperature=temperature, reduction="none")
        right = case.reference()
        each, grad, hess = case.all()
        assert_units(each, right.loss, right.loss_terms, dtype, bound=4)
        assert_units(grad, right.grad, right.grad_terms, dtype, bound=5)
        assert_units(hess, right.hess, right.hess_terms, dtype, bound=7)


@every_dtype
@every_shape
def test_a_large_softcap_changes_nothing_and_a_small_one_bounds(shape, dtype, rng):
    loss = BY_ID["cross_entropy-indices"]
    case = loss.case(rng, shape, dtype, reduction="none")
    case = case.but(scores=rng.normal(size=shape).astype(dtype))
    for a, b in zip(case.all(softcap=1e5), case.all(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3 if dtype == np.float32 else 1e-8, atol=1e-9)
    case = case.but(scores=case.scores * dtype(1e3))
    each, grad = case.both(softcap=2)
    assert each.max() <= 4 + np.log(shape[-1])
    assert abs(grad).max() <= 1


@every_dtype
@every_shape
def test_focal_loss_of_gamma_0_is_cross_entropy_to_the_bit(shape, dtype, rng):
    loss = BY_ID["focal_loss"]
    for options in ((), set(loss.options) - {"gamma"}):
        case = loss.case(rng, shape, dtype, options)
        right = replace(case, loss=BY_ID["cross_entropy-indices"])
        for order in loss.orders:
            assert_same_bits(case.call(order, gamma=0), right.call(order))


@every_dtype
@every_shape
def test_focal_loss_is_cross_entropy_times_a_power(shape, dtype, rng):
    case = BY_ID["focal_loss"].case(rng, shape, dtype, reduction="none")
    plain = case.reference(gamma=0).loss
    last = np.full(shape[0], np.inf)
    for gamma in (0, 0.25, 1, 2, 3.5, 8):
        each = case.call(0, gamma=gamma)
        factor = (-np.expm1(-plain)) ** gamma
        np.testing.assert_allclose(each, (factor * plain).astype(float), rtol=1e-5, atol=1e-37)
        # The factor is at most 1. Both losses are rounded, that of gamma 0 in a way of its own.
        assert (each <= last * (1 + 4 * np.finfo(dtype).eps)).all()
        last = each


@every_dtype
@every_shape
def test_generalized_cross_entropy_lies_between_its_limits(shape, dtype, rng):
    """Below cross-entropy, which is its limit at q = 0, and 1 - p at q = 1."""
    case = BY_ID["generalized_cross_entropy"].case(rng, shape, dtype, reduction="none")
    plain = case.reference(q=1e-12).loss
    last = plain.astype(dtype) * (1 + 8 * np.finfo(dtype).eps)
    for q in (1e-9, 0.01, 0.2, 0.7, 1):
        each, grad = case.both(q=q)
        np.testing.assert_allclose(each, -np.expm1(-q * plain.astype(float)) / q, rtol=1e-5)
        assert (each <= last).all()
        assert (each <= 1 / q).all()
        last = each * (1 + 8 * np.finfo(dtype).eps)
    other = replace(case, loss=BY_ID["cross_entropy-indices"]).call(1)
    for a, b in zip(case.call(1, q=1e-300), other, strict=True):
        np.testing.assert_allclose(a, b, rtol=8 * np.finfo(dtype).eps, atol=1e-37)
    p = np.exp(-plain.astype(float))
    own = np.take_along_axis(grad, case.target[:, None], -1)[:, 0]
    np.testing.assert_allclose(own, -p * each, rtol=1e-5, atol=1e-37)


@every_dtype
@every_shape
def test_poly_loss_of_epsilon_0_is_cross_entropy_to_the_bit(shape, dtype, rng):
    loss = BY_ID["poly_loss"]
    for options in ((), set(loss.options) - {"epsilon"}):
        case = loss.case(rng, shape, dtype, options)
        right = replace(case, loss=BY_ID["cross_entropy-indices"])
        for order in loss.orders:
            assert_same_bits(case.call(order, epsilon=0), right.call(order))


@every_dtype
@every_shape
def test_poly_loss_is_linear_in_epsilon(shape, dtype, rng):
    """Each unit adds 1 - p, which is generalized cross-entropy of q = 1."""
    case = BY_ID["poly_loss"].case(rng, shape, dtype, reduction="none")
    slope = replace(case, loss=BY_ID["generalized_cross_entropy"]).both(q=1)
    plain = replace(case, loss=BY_ID["cross_entropy-indices"]).both()
    for epsilon in (1, 2.5, -0.5, -3, 1e6):
        for a, b, c in zip(case.both(epsilon=epsilon), plain, slope, strict=True):
            sum_ = b.astype(float) + epsilon * c.astype(float)
            size = np.maximum(abs(b.astype(float)), abs(epsilon * c.astype(float)))
            assert (abs(a - sum_) <= 16 * np.finfo(dtype).eps * size + np.finfo(dtype).tiny).all()


# -------------------------------------------------------------------------- samples are their own


@every_dtype
@every_shape
@pytest.mark.parametrize(("loss", "options"), LOSSES_AND_OPTIONS)
def test_samples_do_not_know_their_neighbours(loss, options, shape, dtype, rng):
    case = loss.case(rng, shape, dtype, set(options) - {"reduction"}, reduction="none")
    results = case.all()
    order = rng.permutation(shape[0])
    assert_same_bits(case.take(order).all(), tuple(r[order] for r in results), "permuted")
    for part in (slice(1, None), slice(0, 1), slice(2, 5), slice(None, None, 2)):
        assert_same_bits(case.take(part).all(), tuple(r[part] for r in results), f"{part}")


@every_dtype
@every_loss
@pytest.mark.parametrize("shape", [(200, 3), (100, 10), (9, 70), (4, 1100)], ids=str)
def test_neighbours_of_another_size_change_nothing(loss, shape, dtype, rng):
    """A block shares work: neither huge nor tiny neighbours, nor NaN, may show in a sample."""
    case = loss.case(rng, shape, dtype, reduction="none")
    results = case.all()
    huge = (1e4, -1e4, 1e30, -1e30, np.inf, -np.inf, np.nan)
    least = float(np.finfo(dtype).smallest_subnormal)
    for strange in (0.0, least, 1e-30, 0.5, 1.0) if loss.bounded else huge:
        victims = rng.random(shape[0]) < 0.3
        victims[0], victims[-1] = True, False
        scores = np.where(victims[:, None], dtype(strange), case.scores)
        got = case.but(scores=scores).all()
        for a, b in zip(got, results, strict=True):
            assert_same_bits(a[~victims], b[~victims], f"beside {strange}")
        # Or there was nothing strange. A gradient may be the same far out, or everywhere.
        assert not np.array_equal(got[0][victims], results[0][victims])


@every_dtype
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("classes", [2, 3, 10, 70, 300])
def test_a_sample_does_not_depend_on_its_neighbours(classes, weighted, dtype, rng):
    """Beside samples that need float64, that are ignored or that have no answer, too."""
    samples = 100
    logits = rng.normal(scale=3, size=(samples, classes)).astype(dtype)
    target = rng.integers(0, classes, samples)
    weights = rng.uniform(0.5, 2, samples).astype(dtype)
    strange = rng.permutation(samples)[:28].reshape(7, 4)
    logits[strange[0], target[strange[0]]] -= 2000  # the true class far down
    logits[strange[1], target[strange[1]]] += 75  # a loss below what float32 quotients hold
    logits[strange[2], target[strange[2]]] += 2000  # no loss
    logits[strange[3], 0] = np.nan
    logits[strange[4], 1] = np.inf
    target[strange[5]] = -100
    weights[strange[6]] = [0, 1e-37, 1e37, np.nan]
    options = {"reduction": "none"}
    of_weights = {"sample_weight": weights} if weighted else {}
    whole = xentrs.cross_entropy_with_grad(logits, target, **of_weights, **options)
    for i in range(samples):
        row = slice(i, i + 1)
        of_weights = {"sample_weight": weights[row]} if weighted else {}
        alone = xentrs.cross_entropy_with_grad(logits[row], target[row], **of_weights, **options)
        assert_same_bits((whole[0][row], whole[1][row]), alone, f"sample {i}")


@every_dtype
@every_loss
@every_shape
def test_any_rank_is_rows(loss, shape, dtype, rng):
    samples = 12
    case = loss.case(rng, (samples, shape[-1]), dtype, reduction="none")
    flat = case.all()
    for leading in [(3, 4), (2, 1, 6), (1, 12), (12, 1)]:
        target = case.target.reshape(leading + case.target.shape[1:])
        got = case.but(scores=case.scores.reshape(*leading, -1), target=target).all()
        for a, b in zip(got, flat, strict=True):
            assert_same_bits(a, b.reshape(leading + b.shape[1:]))
    one = case.but(scores=case.scores[0], target=case.target[0])
    got = one.all()
    assert isinstance(got[0], np.ndarray)  # 0-d, and not a NumPy scalar
    for a, b in zip(got, flat, strict=True):
        assert_same_bits(a, np.asarray(b[0]))


@every_dtype
@every_class_loss
@pytest.mark.parametrize("shape", [(4, 5, 6), (2, 3, 70), (2, 3, 2, 9)], ids=str)
def test_class_axis_anywhere(loss, shape, dtype, rng):
    options = set(loss.options) - {"reduction"}
    last = loss.case(rng, shape, dtype, options, reduction="none")
    results = last.all()
    for axis in range(-len(shape), len(shape)):
        moved = last.but(scores=np.ascontiguousarray(np.moveaxis(last.scores, -1, axis)))
        if not loss.indices:
            moved = moved.but(target=np.ascontiguousarray(np.moveaxis(last.target, -1, axis)))
        got = moved.all(axis=axis)
        for array in got[1:]:
            assert array.flags.c_contiguous
        got = got[0], *(np.moveaxis(g, axis, -1) for g in got[1:])
        for a, b in zip(got, results, strict=True):
            assert_same_bits(np.ascontiguousarray(a), b, f"axis {axis}")
        for reduction in ("mean", "sum"):
            a = moved.both(axis=axis, reduction=reduction)
            b = last.both(reduction=reduction)
            assert_same_bits(a[0], b[0])
            assert_same_bits(np.ascontiguousarray(np.moveaxis(a[1], axis, -1)), b[1])


# ----------------------------------------------------------------------------- arrays of any kind


def _strided(a):
    wide = np.zeros((*a.shape[:-1], 3 * a.shape[-1]), a.dtype)
    wide[..., ::3] = a
    return wide[..., ::3]


def _rows_apart(a):
    wide = np.zeros((2 * a.shape[0], *a.shape[1:]), a.dtype)
    wide[::2] = a
    return wide[::2]


def _padded_rows(a):
    wide = np.zeros((*a.shape[:-1], a.shape[-1] + 5), a.dtype)
    wide[..., 2:-3] = a
    return wide[..., 2:-3]


def _reversed(a):
    flip = (slice(None, None, -1),) * a.ndim
    return np.ascontiguousarray(a[flip])[flip]


def _misaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)
    out = raw[1:].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def _swapped(a):
    return a.astype(a.dtype.newbyteorder())


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _broadcast_of_itself(a):
    return np.lib.stride_tricks.as_strided(a, a.shape, a.strides, writeable=False)


LAYOUTS = {
    "F-ordered": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "strided": _strided,
    "rows-apart": _rows_apart,
    "padded-rows": _padded_rows,
    "negative-strides": _reversed,
    "misaligned": _misaligned,
    "byte-swapped": _swapped,
    "read-only": _read_only,
    "as-strided": _broadcast_of_itself,
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@every_dtype
@every_loss
@every_shape
@every_layout
def test_layout_of_inputs_changes_no_bit(loss, shape, layout, dtype, rng):
    options = set(loss.options) - {"reduction"}
    for reduction in ("mean", "none"):
        case = loss.case(rng, shape, dtype, options, reduction=reduction)
        results = case.all()
        assert_same_bits(case.but(scores=layout(case.scores)).all(), results, "scores")
        assert_same_bits(case.but(target=layout(case.target)).all(), results, "target")
        everything = case.but(scores=layout(case.scores), target=layout(case.target))
        for name, value in case.options.items():
            if isinstance(value, np.ndarray) and value.ndim:
                assert_same_bits(case.all(**{name: layout(value)}), results, name)
                everything = everything.but(**{name: layout(value)})
        got = everything.all()
        assert_same_bits(got, results, "all at once")
        for array in got[1:]:
            assert array.flags.c_contiguous
            assert array.flags.writeable


@every_dtype
@every_loss
@every_shape
def test_memory_mapped_files_change_no_bit(loss, shape, dtype, rng, tmp_path):
    case = loss.case(rng, shape, dtype)
    results = case.all()
    case.scores.tofile(tmp_path / "scores")
    case.target.tofile(tmp_path / "target")
    for mode in ("r", "r+", "c"):
        scores = np.memmap(tmp_path / "scores", dtype, mode, shape=shape)
        target = np.memmap(tmp_path / "target", case.target.dtype, mode, shape=case.target.shape)
        assert_same_bits(case.but(scores=scores, target=target).all(), results)
    out = np.memmap(tmp_path / "out", dtype, "w+", shape=shape)
    loss_value, grad = case.both(out=out)
    assert grad is out
    assert_same_bits(np.asarray(out), results[1])
    assert_same_bits(loss_value, results[0])
    out.flush()
    assert_same_bits(np.fromfile(tmp_path / "out", dtype).reshape(shape), results[1])


@every_dtype
@every_loss
def test_anything_that_is_an_array(loss, dtype, rng):
    """Lists, `__array__`, `__dlpack__` on the CPU, subclasses of ndarray."""

    class Array:
        def __init__(self, a):
            self.a = a

        def __array__(self, dtype=None, copy=None):
            return self.a if dtype is None else self.a.astype(dtype)

    class DLPack:
        def __init__(self, a):
            self.a = a

        def __dlpack__(self, **options):
            return self.a.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.a.__dlpack_device__()

    class Sub(np.ndarray):
        pass

    case = loss.case(rng, (5, 4), dtype)
    results = case.all()
    for kind in (Array, DLPack, lambda a: a.view(Sub)):
        got = case.but(scores=kind(case.scores), target=kind(case.target)).all()
        assert_same_bits(tuple(g if type(g) is float else np.asarray(g) for g in got), results)
    if dtype == np.float64:  # what a list of floats is
        got = case.but(scores=case.scores.tolist(), target=case.target.tolist()).all()
        assert_same_bits(got, results)


@every_dtype
@every_index_loss
@pytest.mark.parametrize("shape", [(200, 100), (200, 10)], ids=str)
def test_integers_of_every_width_change_no_bit(loss, shape, dtype, rng):
    case = loss.case(rng, shape, dtype)
    results = case.all()
    for code in "bhilqpBHILQP":
        for order in "=<>":
            target = case.target.astype(np.dtype(code).newbyteorder(order))
            assert_same_bits(case.but(target=target).all(), results, code)
    signed = np.where(rng.random(shape[0]) < 0.3, -100, case.target)
    results = case.but(target=signed).all()
    for code in "bhilqp":
        assert_same_bits(case.but(target=signed.astype(code)).all(), results, code)
    # 156 is the byte of -100, and a class here or out of range, but never ignored.
    target = case.target.astype(np.uint8)
    target[3] = 156
    wide = case.but(scores=np.repeat(case.scores, 2 if shape[1] == 100 else 16, axis=1))
    if loss.bounded:
        wide = wide.but(scores=wide.scores / 16)
    assert np.any(wide.but(target=target).both()[1][3])
    # Nor does an ignored index wrap into a narrow target.
    got = case.but(target=case.target.astype(np.int8)).all(ignore_index=(256, 1 << 32))
    assert_same_bits(got, case.all())


@every_dtype
@every_index_loss
def test_largest_unsigned_target_can_be_ignored(loss, dtype, rng):
    case = loss.case(rng, (6, 4), dtype)
    huge = (1 << 64) - 1
    target = case.target.astype(np.uint64)
    target[2] = huge
    got = case.but(target=target).all(ignore_index=huge)
    signed = case.target.copy()
    signed[2] = -1
    assert_same_bits(got, case.but(target=signed).all(ignore_index=-1))
    with pytest.raises(IndexError, match=str(huge)):
        case.but(target=target).call(0, ignore_index=-1)  # -1 is not the largest number


# ------------------------------------------------------------------------------ where results go


def _out_layouts(shape, dtype):
    yield "contiguous", np.full(shape, 7, dtype)
    yield "F-ordered", np.full(shape, 7, dtype, order="F")
    yield "strided", np.full((*shape[:-1], 2 * shape[-1]), 7, dtype)[..., ::2]
    yield "padded", np.full((*shape[:-1], shape[-1] + 3), 7, dtype)[..., 1:-2]
    yield "negative", np.full(shape, 7, dtype)[::-1, ::-1]
    yield "misaligned", _misaligned(np.full(shape, 7, dtype))


@every_dtype
@every_shape
@pytest.mark.parametrize(("loss", "options"), LOSSES_AND_OPTIONS)
def test_out_gives_the_same_bits(loss, options, shape, dtype, rng):
    case = loss.case(rng, shape, dtype, options)
    results = case.all()
    for (name, out), (_, hess_out) in zip(
        _out_layouts(shape, dtype), _out_layouts(shape, dtype), strict=True
    ):
        got = case.both(out=out)
        assert got[1] is out, name
        assert_same_bits(got[0], results[0], name)
        assert same_bits(out, results[1]), name
        if "hess_out" not in loss.outputs:
            continue
        out[...] = 7
        got = case.all(out=out, hess_out=hess_out)
        assert got[1] is out, name
        assert got[2] is hess_out, name
        assert_same_bits(got[0], results[0], name)
        assert same_bits(out, results[1]), name
        assert same_bits(hess_out, results[2]), name
        out[...] = 7
        got = case.all(out=out)
        assert got[1] is out
        assert same_bits(out, results[1]), name
        assert same_bits(got[2], results[2]), name
        got = case.all(hess_out=hess_out)
        assert same_bits(got[1], results[1]), name
        assert same_bits(hess_out, results[2]), name


@every_dtype
@every_shape
@pytest.mark.parametrize(("loss", "options"), LOSSES_AND_OPTIONS)
def test_in_place_gives_the_same_bits(loss, options, shape, dtype, rng):
    case = loss.case(rng, shape, dtype, options)
    results = case.all()
    for name in ("contiguous", *LAYOUTS):
        if name in ("read-only", "as-strided"):
            continue
        layout = LAYOUTS.get(name, np.copy)
        scores = layout(case.scores.copy())
        got = case.but(scores=scores).both(out=scores)
        assert got[1] is scores, name
        assert_same_bits(got[0], results[0], name)
        assert same_bits(scores.astype(dtype), results[1]), name
    scores = case.scores.copy()
    got = case.but(scores=scores).all(out=scores)
    assert got[1] is scores
    assert_same_bits(got, results)
    # Another view of exactly the same memory is in place as well.
    scores = case.scores.copy()
    got = case.but(scores=scores).both(out=scores[:])
    assert_same_bits(got, results[:2])


@every_dtype
@every_loss
def test_out_beside_the_logits_in_one_buffer(loss, dtype, rng):
    """Neighbours that share no element do not overlap."""
    case = loss.case(rng, (6, 8), dtype)
    results = case.both()
    buffer = np.zeros((6, 16), dtype)
    buffer[:, :8] = case.scores
    got = case.but(scores=buffer[:, :8]).both(out=buffer[:, 8:])
    assert_same_bits(np.ascontiguousarray(got[1]), results[1])
    assert same_bits(buffer[:, :8], case.scores)
    buffer[:, ::2] = case.scores
    got = case.but(scores=buffer[:, ::2]).both(out=buffer[:, 1::2])
    assert_same_bits(np.ascontiguousarray(got[1]), results[1])
    assert same_bits(buffer[:, ::2], case.scores)


@every_dtype
@every_loss
@every_shape
def test_inputs_are_left_alone_and_nothing_is_written_beside_out(loss, shape, dtype, rng):
    case = loss.case(rng, shape, dtype, set(loss.options) - {"reduction"})
    arrays = [case.scores, case.target]
    arrays += [v for v in case.options.values() if isinstance(v, np.ndarray)]
    before = [a.copy() for a in arrays]
    size = np.prod(shape)
    for shift in range(5):  # every alignment, with guards on both sides
        buffer = np.full(size + 64, 7, dtype)
        inner = slice(16 + shift, 16 + shift + size)
        case.both(out=buffer[inner].reshape(shape))
        assert np.all(buffer[: inner.start] == 7)
        assert np.all(buffer[inner.stop :] == 7)
        assert same_bits(buffer[inner].reshape(shape), case.both()[1])
    for a, b in zip(arrays, before, strict=True):
        assert np.array_equal(a, b)


@every_dtype
@every_loss
@every_shape
def test_alignment_of_inputs_changes_no_bit(loss, shape, dtype, rng):
    case = loss.case(rng, shape, dtype)
    results = case.all()
    for shift in range(1, 8):
        buffer = np.empty(case.scores.size + 8, dtype)
        scores = buffer[shift : shift + case.scores.size].reshape(shape)
        scores[...] = case.scores
        assert_same_bits(case.but(scores=scores).all(), results)


# --------------------------------------------------------------------------------------- threads

# Above the 100,000 elements or so from which work is split; few classes and many.
SPLIT_SHAPES = [(30_011, 10), (120_000, 2), (4_001, 64), (301, 1_000), (5, 60_001)]


@every_dtype
@every_loss
@pytest.mark.parametrize("shape", SPLIT_SHAPES, ids=str)
def test_threads_change_no_bit(loss, shape, dtype, rng, threads):
    for options in ((), set(loss.options) - {"reduction"}):
        for reduction in ("mean", "none"):
            case = loss.case(rng, shape, dtype, options, reduction=reduction)
            threads(1)
            results = case.all()
            for count in (2, 3, 7):
                threads(count)
                assert_same_bits(case.call(0), results[0], f"{count} threads")
                out = np.empty(shape, dtype)
                assert_same_bits(case.all(out=out), results, f"{count} threads")
                scores = case.scores.copy()
                got = case.but(scores=scores).both(out=scores)
                assert_same_bits(got, results[:2], f"{count} threads, in place")
    right = case.reference()
    assert_units(results[0], right.loss, right.loss, dtype, bound=64)
    assert_units(results[1], right.grad, right.grad_terms, dtype, bound=64)


def test_level_is_the_one_that_was_asked_for():
    """So that a run of this file at a level cannot be of another."""
    asked = os.environ.get("XENTRS_SIMD")
    level = xentrs.show_config(mode="dicts")["simd"]["level"]
    assert level == (asked or level)
    assert level in xentrs.show_config(mode="dicts")["simd"]["available"]


@every_dtype
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("power", [7, 10, 14])
def test_subnormal_gradients_of_binary_losses_are_rounded_once(weighted, power, dtype, rng):
    """Those of a mean of `2^k` elements are those of the sum, exactly divided and rounded."""
    n = 2**power
    far = -np.log(float(np.finfo(dtype).smallest_subnormal)) + 5
    logits = rng.uniform(-far, far, n).astype(dtype)
    target = rng.choice([0, 1, 0.5], n, p=[0.49, 0.49, 0.02]).astype(dtype)
    # Half of them are predicted as they are.
    logits = np.where(rng.random(n) < 0.5, logits, np.abs(logits) * np.sign(target - 0.25))
    logits = logits.astype(dtype)
    more = {"weight": np.ones(n, dtype)} if weighted else {}
    of = xentrs.binary_cross_entropy_with_logits_with_grad_hess
    _, *of_sum = of(logits, target, reduction="sum", **more)
    _, *of_mean = of(logits, target, reduction="mean", **more)
    subnormal = 0
    for whole, part in zip(of_sum, of_mean, strict=True):
        rounded = np.ldexp(whole, -power)
        if LEVEL == "portable":
            # Its emulated fused multiply-add rounds subnormal numbers twice.
            assert np.all(np.abs(part - rounded) <= np.finfo(dtype).smallest_subnormal)
        else:
            assert_same_bits(part, rounded)
        subnormal += np.count_nonzero((part != 0) & (np.abs(part) < np.finfo(dtype).tiny))
    assert subnormal


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_sigmoid_focal_loss_of_float32_is_that_of_float64_rounded(soft, gamma, alpha, rng):
    """Wherever results are subnormal, too, and where float64 has no probability left."""
    n = 3000
    logits = (rng.normal(size=n) * rng.choice([1, 30, 300, 1e4, 1e30], n)).astype(np.float32)
    target = (rng.random(n) if soft else rng.random(n) < 0.5).astype(np.float32)
    options = {"gamma": gamma, "alpha": alpha, "reduction": "none"}
    got = xentrs.sigmoid_focal_loss_with_grad(logits, target, **options)
    wide = [a.astype(np.float64) for a in (logits, target)]
    for a, b in zip(got, xentrs.sigmoid_focal_loss_with_grad(*wide, **options), strict=True):
        place = np.maximum(np.spacing(np.abs(b).astype(np.float32)), 2.0**-149)
        # Where it crosses 0, a gradient is a difference.
        assert np.all(np.abs(a - b) <= 0.51 * place + (1e-10 if soft else 0))
