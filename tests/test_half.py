"""Half precision: float16, and the bfloat16 of `ml_dtypes`.

The law of every loss: a call on half precision gives what the same call on the numbers as float32
gives, to the bit, with gradient and Hessian rounded once to the logits' dtype.
"""

import sys

import numpy as np
import pytest

import xentrs
from battery import strange_rows
from losses import BY_ID, LOSSES, assert_same_bits, every_class_loss, every_loss, every_soft_loss
from test_laws import LAYOUTS, option_sets

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

BFLOAT16 = None if ml_dtypes is None else ml_dtypes.bfloat16
NEEDS_ML_DTYPES = pytest.mark.skipif(ml_dtypes is None, reason="needs ml_dtypes")
every_half = pytest.mark.parametrize(
    "half",
    [np.float16, pytest.param(BFLOAT16, marks=NEEDS_ML_DTYPES)],
    ids=["float16", "bfloat16"],
)

# Few classes and many, rows whose gradient begins anywhere in a cache line, images by samples.
SHAPES = [(1,), (7, 3), (1030, 10), (33, 64), (21, 257), (9, 1031), (3, 9001), (2, 3, 5)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def rounded(results, half):
    """Return what a call on half precision must give, from the results of the float32 call."""
    loss, *derivatives = results if isinstance(results, tuple) else (results,)
    with np.errstate(over="ignore"):
        return loss, *[x.astype(half) for x in derivatives]


def assert_same(actual, results, half, what=""):
    actual = actual if isinstance(actual, tuple) else (actual,)
    expected = rounded(results, half)
    assert len(actual) == len(expected)
    assert_same_bits(actual[0], expected[0], f"{what} loss")
    for a, b in zip(actual[1:], expected[1:], strict=True):
        assert a.dtype.type is b.dtype.type is half
        # Widened, so that every NaN counts as the same.
        a, b = (np.asarray(x).astype(np.float32) for x in (a, b))
        assert_same_bits(a, b, f"{what} derivative")


def halved(case, half):
    """Return a case with scores of half precision, and the case of the same numbers as float32."""
    scores = case.scores.astype(half)
    return case.but(scores=scores), case.but(scores=scores.astype(np.float32))


def orders(loss):
    return range(len(loss.functions))


@every_half
@every_loss
@every_shape
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_same_bits_as_float32(loss, shape, reduction, half, rng):
    for options in loss.option_sets:
        case = loss.case(rng, shape, np.float32, [o for o in options if o != "reduction"])
        case, single = halved(case.but(reduction=reduction), half)
        for order in orders(loss):
            got = case.call(order)
            assert_same(got, single.call(order), half, f"{options} {order}")
            if reduction == "none":
                losses = got[0] if order else got
                assert losses.dtype == np.float32


@every_half
@every_loss
@pytest.mark.parametrize("classes", [2, 10, 300])
def test_infinite_and_extreme_numbers(loss, classes, half, rng):
    if loss.bounded:
        scores = rng.choice([0.0, 6e-8, 1e-6, 0.5, 1.0], (40, classes)).astype(half)
    else:
        with np.errstate(over="ignore"):
            scores = strange_rows(rng, np.float32, classes).astype(half)
    case = loss.case(rng, scores.shape, np.float32, reduction="none").but(scores=scores)
    single = case.but(scores=scores.astype(np.float32))
    for order in orders(loss):
        assert_same(case.call(order), single.call(order), half)
    # A factor beyond what half precision holds.
    if "sample_weight" in loss.options:
        large = np.full(case.target.shape[:1], 1e30)
        more = {"sample_weight": large, "reduction": "sum"}
        assert_same(case.both(**more), single.both(**more), half)


@every_half
@every_loss
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(33, 10), (70, 300), (3, 1031)], ids=str)
def test_layouts(loss, shape, layout, half, rng):
    options = sorted(set(loss.options) - {"reduction"})
    case, single = halved(loss.case(rng, shape, np.float32, options), half)
    laid = case.but(scores=layout(case.scores))
    expected = single.but(scores=layout(single.scores))
    for order in orders(loss):
        assert_same(laid.call(order), expected.call(order), half)
        if order == 1:
            out = layout(np.zeros(shape, half))
            if out.flags.writeable:
                results = laid.both(out=out)
                assert results[1] is out
                assert_same(results, expected.both(), half)


@every_half
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "entropy"])
def test_layouts_of_functions(name, half, rng):
    """A subclass and bytes in another order, too, give the dtype and the bits of a plain array."""

    class Subclass(np.ndarray):
        pass

    function, x = getattr(xentrs, name), rng.random((33, 10)).astype(half)
    right = function(x)
    for layout in (*LAYOUTS.values(), lambda a: a.view(Subclass)):
        got = function(layout(x))
        assert got.dtype == right.dtype
        np.testing.assert_array_equal(got, right)


@every_half
@every_class_loss
@pytest.mark.parametrize("shape", [(2, 7, 5), (2, 10, 129), (3, 257, 70), (1, 600, 130)], ids=str)
def test_class_axis_in_the_middle(loss, shape, half, rng):
    """Samples that lie next to each other: in columns of few classes and of many."""
    n, classes, d = shape
    options = sorted(set(loss.options) - {"reduction"})
    case = loss.case(rng, (n, d, classes), np.float32, options)
    scores = np.ascontiguousarray(np.moveaxis(case.scores, -1, 1))
    target = case.target
    if target.shape == case.scores.shape:
        target = np.ascontiguousarray(np.moveaxis(target, -1, 1))
    case, single = halved(case.but(scores=scores, target=target, axis=1), half)
    for order in orders(loss):
        assert_same(case.call(order), single.call(order), half, f"order {order}")
    rows = np.moveaxis(np.empty((n, d, classes), half), -1, 1)  # the gradient by rows
    assert_same(case.both(out=rows), single.both(), half)
    inner = case.scores.copy()
    assert_same(case.but(scores=inner).both(out=inner), single.both(), half)


@every_half
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.teacher], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    "teachers",
    [np.float16, pytest.param(BFLOAT16, marks=NEEDS_ML_DTYPES), np.float32, np.float64],
    ids=["float16", "bfloat16", "float32", "float64"],
)
def test_teacher_of_any_type(loss, teachers, layout, half, rng):
    case, single = halved(loss.case(rng, (33, 300), np.float32), half)
    teacher = layout(case.target.astype(teachers))
    case, single = case.but(target=teacher), single.but(target=teacher)
    for order in orders(loss):
        assert_same(case.call(order), single.call(order), half)


@every_half
@every_loss
@every_shape
def test_in_place(loss, shape, half, rng):
    case, single = halved(loss.case(rng, shape, np.float32), half)
    scores = case.scores.copy()
    results = case.but(scores=scores).both(out=scores)
    assert results[1] is scores
    assert_same(results, single.both(), half)
    if len(loss.functions) > 2:
        scores = case.scores.copy()
        results = case.but(scores=scores).all(hess_out=scores)
        assert results[2] is scores
        assert_same(results, single.all(), half)


@every_half
@every_soft_loss
@pytest.mark.parametrize("shape", [(33, 10), (70, 300), (5, 1031)], ids=str)
def test_soft_targets_of_any_dtype(loss, shape, half, rng):
    if loss.indices:
        loss = BY_ID[loss.name + "-probabilities"]
    for options in option_sets(loss):
        drawn = loss.case(rng, shape, np.float32, options)
        for dtype in (half, np.float16, np.float32, np.float64):
            # Digits that float32 does not hold, where the dtype does.
            target = (drawn.target.astype(np.float64) * (1 + 1e-9)).astype(dtype)
            case, single = halved(drawn.but(target=target), half)
            wide = target if dtype is np.float64 else target.astype(np.float32)
            single = single.but(target=wide)
            for order in orders(loss):
                assert_same(case.call(order), single.call(order), half, f"{options} {dtype}")


@every_half
@every_loss
@pytest.mark.parametrize("shape", [(33, 10), (5, 300)], ids=str)
def test_weights_of_any_dtype(loss, shape, half, rng):
    names = sorted({"weight", "sample_weight", "pos_weight"} & set(loss.options))
    drawn = loss.case(rng, shape, np.float32, names)
    for dtype in (half, np.float32, np.float64):
        weights = {
            n: (drawn.options[n].astype(np.float64) * (1 + 1e-9)).astype(dtype) for n in names
        }
        case, single = halved(drawn.but(**weights), half)
        if dtype is half:
            single = single.but(**{n: w.astype(np.float32) for n, w in weights.items()})
        for order in orders(loss):
            assert_same(case.call(order), single.call(order), half, f"{dtype}")


@every_half
def test_binary_labels_of_any_dtype(half, rng):
    loss = BY_ID["binary"]
    drawn = loss.case(rng, (3, 2000), np.float32)
    for dtype in (half, np.float32, np.float64, np.bool_, np.int8):
        target = drawn.target.astype(dtype)
        case, single = halved(drawn.but(target=target), half)
        if dtype is half:
            single = single.but(target=target.astype(np.float32))
        for order in range(3):
            assert_same(case.call(order), single.call(order), half, f"{dtype}")


@every_half
def test_binary_broadcasts_weights(half, rng):
    case, single = halved(BY_ID["binary"].case(rng, (7, 1500), np.float32), half)
    for weight in (np.float32(2.5), rng.random(1500), rng.random((7, 1)).astype(half)):
        more = {"weight": weight, "pos_weight": rng.random(1500).astype(np.float32)}
        wide = more | {"weight": np.asarray(weight).astype(np.float64)}
        assert_same(case.all(**more), single.all(**wide), half)


@every_half
@every_loss
def test_threads_change_no_bit(loss, half, rng, threads):
    for shape in ((30_000, 10), (300, 1000)):
        case, _ = halved(loss.case(rng, shape, np.float32), half)
        threads(1)
        expected = case.both()
        threads(3)
        loss_, grad = case.both()
        assert loss_ == expected[0]
        assert_same_bits(grad.astype(np.float32), expected[1].astype(np.float32))


@every_half
def test_large_gradient(half, rng):
    """Non-temporal stores, from rows that begin anywhere in a cache line."""
    for classes in (32_000, 32_001):
        logits = rng.standard_normal((700, classes), np.float32).astype(half)
        target = rng.integers(0, classes, 700)
        target[5] = -100
        single = logits.astype(np.float32)
        expected = xentrs.cross_entropy_with_grad(single, target)
        assert_same(xentrs.cross_entropy_with_grad(logits, target), expected, half)
        buffer = np.empty(logits.size + 7, half)
        out = buffer[7:].reshape(logits.shape)
        assert_same(xentrs.cross_entropy_with_grad(logits, target, out=out), expected, half)
        smooth = {"label_smoothing": 0.1}
        expected = xentrs.cross_entropy_with_grad(single, target, **smooth)
        assert_same(xentrs.cross_entropy_with_grad(logits, target, **smooth), expected, half)


@every_half
@every_loss
def test_memory_mapped_files(loss, half, rng, tmp_path):
    case, single = halved(loss.case(rng, (40, 30), np.float32), half)
    mapped = np.memmap(tmp_path / "logits", half, "w+", shape=(40, 30))
    mapped[:] = case.scores
    mapped.flush()
    read = np.memmap(tmp_path / "logits", half, "r", shape=(40, 30))
    assert_same(case.but(scores=read).both(), single.both(), half)
    assert_same(case.both(out=mapped), single.both(), half)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@every_half
@pytest.mark.parametrize("name", sorted({loss.name for loss in LOSSES}))
def test_extra_memory_is_below_a_tenth_of_the_logits(name, half, python):
    """No array of float32 is made beside the logits."""
    script = """
        import sys
        import numpy as np, xentrs

        def peak():  # in KiB
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if "VmHWM" in line)

        name, half = sys.argv[1:]
        if half == "bfloat16":
            from ml_dtypes import bfloat16 as half
        xentrs.set_num_threads(2)
        f = getattr(xentrs, name + "_with_grad", None) or getattr(xentrs, name)
        for shape, options in (((1024, 32000), {}), ((64, 1000, 512), {"axis": 1})):
            x = np.full(shape, 0.5, half)  # 62.5 MiB
            out = x.copy()
            samples = shape[:1] + shape[2:]
            t = np.zeros(samples, np.int32)
            if "binary" in name or "sigmoid" in name:
                options, t = {}, np.zeros(shape, bool)
            if "divergence" in name:
                t = np.full(shape, 0.25, half)
            targets = () if name == "softmax_entropy" else (t,)
            f(x[:16], *[a[:16] for a in targets], out=out[:16], **options)
            before = peak()
            f(x, *targets, out=out, **options)
            assert peak() - before < x.nbytes / 10240, (shape, peak() - before)
            del x, t, targets, out
    """
    python(script, arguments=[name, np.dtype(half).name])


@every_half
def test_class_indices_of_half_precision(half, rng):
    """Floats that are whole numbers are class indices, of half precision too."""
    logits = rng.normal(size=(6, 4)).astype(half)
    target = np.array([0, 3, 1, 2, 2, 0])
    expected = xentrs.cross_entropy(logits, target)
    assert xentrs.cross_entropy(logits, target.astype(half)) == expected
    assert xentrs.cross_entropy(logits.astype(np.float32), target.astype(half)) == expected
    wrong = target.astype(half)
    wrong[2] = 0.5
    with pytest.raises(ValueError, match=r"target\[2\] is 0\.5, but must be a whole number"):
        xentrs.cross_entropy(logits, wrong)
    wrong[2] = -np.inf
    with pytest.raises(ValueError, match=r"target\[2\] is -inf"):
        xentrs.cross_entropy(logits, wrong)


@every_half
def test_probability_outside_is_named(half, rng):
    p = rng.random((4, 300)).astype(half)
    p[2, 7] = 1.5
    target = np.zeros((4, 300))
    for laid in (p, np.asfortranarray(p), np.ascontiguousarray(p[:, ::-1])[:, ::-1]):
        for t in (np.full(4, 7), target):
            for f in (xentrs.log_loss, xentrs.log_loss_with_grad):
                with pytest.raises(ValueError, match=r"probabilities\[2, 7\] is 1\.5"):
                    f(laid, t)
        assert np.isfinite(xentrs.log_loss(laid, np.zeros(4, int)))


@every_half
@every_loss
def test_out_must_have_the_dtype_of_the_logits(loss, half, rng):
    case, _ = halved(loss.case(rng, (3, 4), np.float32), half)
    for dtype in (np.float32, np.uint16, *{np.float16, BFLOAT16} - {half, None}):
        with pytest.raises(TypeError, match=r"out has dtype .*, but must have that of"):
            case.both(out=np.empty((3, 4), dtype))


@every_loss
@pytest.mark.parametrize("dtype", [np.uint16, "V2"])
def test_bits_are_no_numbers(loss, dtype, rng):
    """Arrays of the bits of bfloat16 are refused with the view that says what they are."""
    case = loss.case(rng, (3, 4), np.float32)
    bits = np.zeros((3, 4), dtype)
    with pytest.raises(TypeError, match=r"\.view\(ml_dtypes\.bfloat16\)"):
        case.but(scores=bits).call(0)


def test_ml_dtypes_is_no_dependency(python):
    script = """
        import sys
        import numpy as np, xentrs
        logits = np.array([[1.0, 2.0]], np.float16)
        loss, grad = xentrs.cross_entropy_with_grad(logits, [0])
        print(grad.dtype, "ml_dtypes" in sys.modules)
    """
    assert python(script).stdout.split() == ["float16", "False"]


@every_half
def test_tiny_and_shifted_losses_keep_their_digits(half):
    logits = np.array([[17.0, 0.0]], half)
    loss, grad = xentrs.cross_entropy_with_grad(logits, [0], reduction="none")
    assert loss[0] == pytest.approx(4.1399e-08, rel=1e-4)
    assert grad.dtype == np.dtype(half)
    shifted = np.array([[0.0, 1.0, 2.0]], half) + half(128)
    assert xentrs.cross_entropy(shifted, [1]) == pytest.approx(1.407606, abs=1e-6)


@every_half
@pytest.mark.parametrize("shape", [(33, 10), (5, 300), (4, 5000)], ids=str)
def test_logsumexp_and_argmax(shape, half, rng):
    """The logsumexp has the dtype of the logits, rounded once."""
    logits = (3 * rng.normal(size=shape)).astype(half)
    logits[0] = np.inf
    target = rng.integers(0, shape[1], shape[0])
    found = []
    for x in (logits, logits.astype(np.float32)):
        sums, classes = np.empty(shape[0], x.dtype), np.empty(shape[0], np.int64)
        more = {"logsumexp_out": sums, "argmax_out": classes}
        found.append((xentrs.cross_entropy_with_grad(x, target, **more), sums, classes))
    assert_same(found[0][0], found[1][0], half)
    assert_same_bits(found[0][1].astype(np.float32), found[1][1].astype(half).astype(np.float32))
    np.testing.assert_array_equal(found[0][2], found[1][2])


@every_half
@pytest.mark.parametrize("shape", [(33, 10), (70, 300)], ids=str)
def test_pairs(shape, half, rng):
    logits = (3 * rng.normal(size=shape)).astype(half)
    indices = rng.integers(0, shape[1], (shape[0], 4))
    indices[3, 2:] = -100
    for dtype in (half, np.float32, np.float64):
        probabilities = rng.random(indices.shape).astype(dtype)
        wide = probabilities.astype(np.float32) if dtype is half else probabilities
        for options in ({}, {"label_smoothing": 0.1}, {"weight": rng.random(shape[1])}):
            got = xentrs.cross_entropy_with_grad(logits, (indices, probabilities), **options)
            single = logits.astype(np.float32)
            expected = xentrs.cross_entropy_with_grad(single, (indices, wide), **options)
            assert_same(got, expected, half, f"{dtype} {options}")


@every_half
def test_chance_outside_is_named(half, rng):
    p = rng.random((30, 300)).astype(half)
    p[20, 7] = 1.5
    target = np.zeros(p.shape, bool)
    for f in (xentrs.binary_cross_entropy, xentrs.binary_cross_entropy_with_grad):
        with pytest.raises(ValueError, match=r"probabilities\[20, 7\] is 1\.5"):
            f(p, target)
        where = np.ones(p.shape, bool)
        where[20, 7] = False
        f(p, target, where=where)
