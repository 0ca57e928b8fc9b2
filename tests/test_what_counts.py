"""Samples that count for nothing change no result, and only numbers that count are read."""

import numpy as np
import pytest

import xentrs
from losses import BY_ID, CLASS_LOSSES, assert_same_bits, every_class_loss, every_dtype
from test_layouts import lay

INF, NAN = np.inf, np.nan
by_index = [loss for loss in CLASS_LOSSES if loss.indices]

# Few classes and many, blocks that end beside a vector; columns of few and of many classes.
ROWS = [(50, 2), (37, 10), (2, 9, 17), (20, 300), (5, 1100), (30, 1)]
COLUMNS = [(40, 10), (3, 20, 5), (100, 300)]
LAID = [(shape, "rows") for shape in ROWS]
LAID += [(shape, place) for shape in COLUMNS for place in ("axis 0", "fortran", "backwards")]
every_place = pytest.mark.parametrize(("shape", "place"), LAID, ids=str)


def placed(case, place):
    """Return the same case with its arrays in that place, and its options."""
    shape = case.scores.shape
    moved = place == "axis 0"
    orders = {
        "rows": tuple(range(len(shape))),
        "axis 0": tuple(range(len(shape))),
        "fortran": tuple(reversed(range(len(shape)))),
        "backwards": tuple(range(len(shape))),
    }

    def put(a):
        a = np.moveaxis(a, -1, 0) if moved else a
        return lay(a, orders[place], 1, place == "backwards")

    target = put(case.target) if case.target.shape == shape else case.target
    return case.but(scores=put(case.scores), target=target, axis=0 if moved else -1)


def back(result, case):
    """Return a result with the class axis last."""
    moved = case.options.get("axis") == 0 and np.ndim(result) == case.scores.ndim
    return np.moveaxis(result, 0, -1) if moved else result


@every_dtype
@every_class_loss
@every_place
@pytest.mark.parametrize("option", [None, "label_smoothing", "z_loss"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_a_sample_of_weight_0(loss, shape, place, option, weighted, dtype, rng):
    options = ({"weight"} if weighted else set()) | ({option} & set(loss.options))
    clean = loss.case(rng, shape, dtype, options, reduction="none")
    nothing = rng.random(shape[:-1]) < 0.4
    for kind in (np.float32, np.float64):
        s = np.where(nothing, rng.choice([0.0, -0.0]), rng.uniform(0.5, 2, shape[:-1]))
        clean = clean.but(sample_weight=s.astype(kind))
        laid = placed(clean, place)
        expected = [back(r, laid) for r in laid.all()]
        assert all(np.isfinite(r).all() for r in expected)
        sums = {r: laid.all(reduction=r) for r in ("mean", "sum")}
        for poison in (NAN, INF, -INF, 3e38):
            case = clean.but(scores=np.where(nothing[..., None], dtype(poison), clean.scores))
            if not loss.indices:
                bad = np.where(nothing[..., None], dtype(poison), clean.target)
                case = case.but(target=bad)
            case = placed(case, place)
            got = case.all()
            for a, b in zip(got, expected, strict=True):
                a = back(a, case)
                assert_same_bits(a[~nothing], b[~nothing])
                assert_same_bits(a[nothing], np.zeros_like(a[nothing]))
            assert_same_bits(case.call(0), got[0])
            assert_same_bits(case.both(), got[:2])
            for reduction, right in sums.items():
                assert_same_bits(case.all(reduction=reduction), right)


@every_dtype
@every_class_loss
@every_place
def test_all_samples_of_weight_0(loss, shape, place, dtype, rng):
    case = loss.case(rng, shape, dtype, sample_weight=np.zeros(shape[:-1]))
    case = placed(case.but(scores=np.full(shape, NAN, dtype)), place)
    zero = np.zeros(case.scores.shape, dtype)
    zeros = (zero,) * loss.derivatives
    value, *rows = case.all()
    assert np.isnan(value)
    assert_same_bits(tuple(rows), zeros)
    assert_same_bits(case.all(denominator=0.0), (0.0, *zeros))
    assert_same_bits(case.all(reduction="sum"), (0.0, *zeros))


@every_dtype
@pytest.mark.parametrize("loss", by_index, ids=str)
@every_place
def test_a_class_of_weight_0_at_the_target(loss, shape, place, dtype, rng):
    """Without smoothing the samples of that class are ignored."""
    options = {"sample_weight"}
    case = loss.case(rng, shape, dtype, options)
    dropped = shape[-1] // 2
    gone = case.target == dropped
    weight = rng.uniform(0.5, 2, shape[-1])
    weight[dropped] = 0
    for kind in (np.float32, np.float64):
        case = case.but(weight=weight.astype(kind))
        for reduction in ("mean", "sum", "none"):
            right = placed(case, place).all(reduction=reduction, ignore_index=dropped)
            for poison in (NAN, INF, -INF):
                scores = np.where(gone[..., None], dtype(poison), case.scores)
                laid = placed(case.but(scores=scores), place)
                assert_same_bits(laid.all(reduction=reduction), right)


@every_dtype
@pytest.mark.parametrize("loss", by_index, ids=str)
def test_targets_of_weight_0_are_checked(loss, dtype, rng):
    case = loss.case(rng, (4, 5), dtype, sample_weight=np.zeros(4))
    case = case.but(target=np.array([0, 1, 5, 2]))
    with pytest.raises(IndexError, match=r"target\[2\] is 5"):
        case.call(0)


@every_dtype
@pytest.mark.parametrize("shape", [(1,), (17,), (100, 3), (3000, 4)], ids=str)
@pytest.mark.parametrize("where", [False, True], ids=["", "where"])
def test_an_element_of_weight_0(shape, where, dtype, rng):
    options = {"pos_weight", "where"} if where else {"pos_weight"}
    for full in (True, False):
        case = BY_ID["binary"].case(rng, shape, dtype, options, reduction="none")
        size = shape if full else shape[-1:]
        some = rng.random(size) < 0.4
        for kind in (np.float32, np.float64):
            weight = np.where(some, 0, rng.uniform(0.5, 2, size)).astype(kind)
            nothing = np.broadcast_to(some, shape)
            clean = case.but(weight=weight)
            expected = clean.all()
            sums = {r: clean.all(reduction=r) for r in ("mean", "sum")}
            for poison in (NAN, INF, -INF):
                for labels in (case.target, np.where(nothing, dtype(poison), case.target)):
                    scores = np.where(nothing, dtype(poison), case.scores)
                    bad = clean.but(scores=scores, target=labels)
                    got = bad.all()
                    for a, b in zip(got, expected, strict=True):
                        assert_same_bits(a[~nothing], b[~nothing])
                        assert_same_bits(a[nothing], np.zeros_like(a[nothing]))
                    for reduction, right in sums.items():
                        assert_same_bits(bad.all(reduction=reduction), right)


@every_dtype
@every_place
def test_log_loss_of_class_indices_looks_at_one_number_of_a_sample(shape, place, dtype, rng):
    loss = next(loss for loss in by_index if loss.bounded)
    case = loss.case(rng, shape, dtype, {"sample_weight", "weight"})
    case.target[rng.random(shape[:-1]) < 0.2] = -100
    own = np.arange(shape[-1]) == case.target[..., None]
    for options in ({}, {"sample_weight": None, "weight": None}):
        for reduction in ("mean", "sum", "none"):
            right = placed(case, place).all(reduction=reduction, **options)
            for poison in (NAN, 2, -1, -INF):
                scores = np.where(own, case.scores, dtype(poison))
                laid = placed(case.but(scores=scores), place)
                assert_same_bits(laid.all(reduction=reduction, **options), right)
                assert_same_bits(laid.call(0, reduction=reduction, **options), right[0])
                out = np.full_like(laid.scores, 7)
                got = laid.both(reduction=reduction, out=out, **options)
                assert_same_bits((got[0], out), right[:2])


@every_dtype
@every_place
@pytest.mark.parametrize("bad", [-0.25, 1.5, NAN])
def test_log_loss_names_what_counts_and_is_no_probability(shape, place, bad, dtype, rng):
    for loss in (loss for loss in CLASS_LOSSES if loss.bounded):
        case = loss.case(rng, shape, dtype, {"sample_weight"})
        sample = tuple(n - 1 for n in shape[:-1])
        class_ = case.target[sample] if loss.indices else shape[-1] - 1
        case.scores[(*sample, class_)] = bad
        laid = placed(case, place)
        index = (class_, *sample) if laid.options["axis"] == 0 else (*sample, class_)
        name = rf"probabilities\[{', '.join(map(str, index))}\]"
        for order in loss.orders:
            out = np.full_like(laid.scores, 7)
            with pytest.raises(ValueError, match=name):
                laid.call(order)
            if order:
                with pytest.raises(ValueError, match=name):
                    laid.call(order, out=out)
                assert (out == 7).all()
        # A sample that does not count is not checked.
        case.options["sample_weight"][sample] = 0
        assert np.isfinite(placed(case, place).call(0, reduction="sum"))


@every_dtype
@pytest.mark.parametrize("n", [1, 9, 300])
def test_log_loss_of_minus_0_is_that_of_0(n, dtype):
    for zero in (0.0, -0.0):
        p = np.full((5, n + 1), 0.5, dtype)
        p[2, 0] = zero
        one_hot = np.zeros_like(p)
        one_hot[:, 0] = 1
        for target in (np.zeros(5, int), one_hot):
            for options in ({}, {"label_smoothing": 0.1}, {"weight": np.full(n + 1, 2.0)}):
                loss, grad, hess = xentrs.log_loss_with_grad_hess(p, target, **options)
                assert (loss, grad[2, 0], hess[2, 0]) == (INF, -INF, INF)
