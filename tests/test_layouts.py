"""Laws of layouts: wherever samples and classes lie, and wherever results go, bits are the same.

But for one: more than 256 classes of logits whose samples lie next to each other, which have a
kernel of their own. Its results are those of rows to a few ULP, and the same wherever they go.
"""

import itertools
import sys

import ml_dtypes
import numpy as np
import pytest

import xentrs
from losses import CLASS_LOSSES, assert_same_bits, every_class_loss, every_dtype, every_loss

# Lines shorter and longer than a vector of samples, classes that end in a vector and beside it,
# several tiles, an axis of one.
SHAPES = [
    (33, 10),
    (5, 7, 3),
    (30, 7, 6),
    (3, 20, 70),
    (40, 130),
    (2, 18, 9),
    (1, 300),
    (17, 1),
    (70, 1024),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)

STEPS = {"dense": (1, False), "every other": (2, False), "backwards": (1, True)}
every_step = pytest.mark.parametrize(("step", "backwards"), STEPS.values(), ids=STEPS)


def lay(a, order, step=1, backwards=False):
    """Return a copy of `a` whose axes lie in memory in that order, the last one fastest."""
    shape = [a.shape[axis] * step for axis in order]
    laid = np.full(shape, 7, a.dtype)[(slice(None, None, step),) * a.ndim]
    laid = laid.transpose(np.argsort(order))
    if backwards:
        laid = laid[(slice(None, None, -1),) * a.ndim]
    laid[...] = a
    return laid


def has_columns(loss, scores, axis):
    """Whether the kernel for many classes in columns takes these logits."""
    axes = zip(scores.strides, scores.shape, strict=True)
    lines = [line for i, line in enumerate(axes) if i != axis]
    step, n = min(lines)
    long = step == scores.itemsize and n >= 64
    return loss.softmax and scores.shape[axis] > 256 and long


def assert_nearly_same(actual, expected, axis):
    """Assert that they differ by a few ULP of their terms, of which a sample's largest is one."""
    for a, b in zip(actual, expected, strict=True):
        size = np.abs(b)
        if b.ndim == actual[1].ndim:
            size = np.maximum(size, 0.1 * size.max(axis=axis, keepdims=True))
        assert (np.abs(a - b) <= 16 * np.finfo(b.dtype).eps * size).all()


@every_dtype
@every_shape
@every_step
@every_class_loss
def test_places_of_inputs_and_outputs_change_no_bit(loss, step, backwards, shape, dtype, rng):
    for options in loss.option_sets:
        case = loss.case(rng, shape, dtype, options, reduction="none")
        expected = case.all()
        for axis in range(len(shape)):
            places = [i for i in range(len(shape)) if i != axis]

            def moved(a, axis=axis):
                return np.moveaxis(a, -1, axis)

            for order in itertools.permutations([*places, axis]):
                laid = (order, step, backwards)
                target = case.target
                if target.shape == shape:
                    target = lay(moved(target), *laid)
                scores = lay(moved(case.scores), *laid)
                here = case.but(scores=scores, target=target, axis=axis)
                results = here.all()
                assert all(result.flags.c_contiguous for result in results)
                of_rows = (expected[0], *(np.ascontiguousarray(moved(e)) for e in expected[1:]))
                want = of_rows
                if has_columns(loss, scores, axis):
                    assert_nearly_same(results, want, axis)
                    want = results
                assert_same_bits(results, want, f"axis {axis}, order {order}")
                outs = [lay(np.zeros_like(scores), *laid) for _ in loss.outputs]
                got = here.all(**dict(zip(loss.outputs, outs, strict=True)))
                assert_same_bits(got[0], want[0])
                for result, out, right in zip(got[1:], outs, want[1:], strict=True):
                    assert result is out
                    assert_same_bits(np.ascontiguousarray(out), right)
                # Only the output is laid out so, then only the input; and in place.
                rows = here.but(scores=moved(case.scores).copy())
                out = lay(np.zeros_like(scores), *laid)
                there = (rows.both()[0], np.ascontiguousarray(rows.both(out=out)[1]))
                if has_columns(loss, rows.scores, axis):
                    assert_nearly_same(there, of_rows[:2], axis)
                else:
                    assert_same_bits(there, of_rows[:2])
                out = np.empty_like(want[1])
                assert_same_bits(here.both(out=out)[1], want[1])
                inside = here.both(out=scores)
                assert inside[1] is scores
                assert_same_bits(np.ascontiguousarray(scores), want[1])


# Arrays of two axes of samples whose rows are contiguous, but not one behind the other: logits that
# score the next token, a vocabulary that is padded, samples that are picked or reversed, another
# order of axes.
ROWS = {
    "all but the last": lambda full, b, t, c: full(b, t + 1, c)[:, :-1],
    "all but the first": lambda full, b, t, c: full(b, t + 1, c)[:, 1:],
    "padded": lambda full, b, t, c: full(b, t, c + 5)[..., :c],
    "every other": lambda full, b, t, c: full(b, 2 * t, c)[:, ::2],
    "backwards": lambda full, b, t, c: full(b, t, c)[::-1, ::-1],
    "other order": lambda full, b, t, c: full(t, b, c).swapaxes(0, 1),
}


def rows_anywhere(name, a):
    """Return a copy of `a` whose rows lie so in an array of sevens."""
    laid = ROWS[name](lambda *shape: np.full(shape, 7, a.dtype), *a.shape)
    laid[...] = a
    return laid


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 7, 10), (3, 7, 300), (2, 5, 4099)], ids=str)
@every_class_loss
def test_rows_anywhere_change_no_bit(loss, shape, dtype, rng):
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    for options in loss.option_sets:
        case = loss.case(rng, shape, np.float32, options, reduction="none")
        case = case.but(scores=case.scores.astype(dtype))
        expected = case.all()
        for name, other in zip(ROWS, [*ROWS][1:] + [*ROWS][:1], strict=True):
            here = case.but(scores=rows_anywhere(name, case.scores))
            assert_same_bits(here.all(), expected, name)
            outs = [rows_anywhere(other, np.zeros(shape, dtype)) for _ in loss.outputs]
            for given in (case, here):
                results = given.all(**dict(zip(loss.outputs, outs, strict=True)))
                assert_same_bits(tuple(map(np.ascontiguousarray, results)), expected, other)
            for out in outs:
                out[...] = 7
                assert (out.base == 7).all(), other  # nothing was written between the rows
            inside = here.both(out=here.scores)
            assert_same_bits(np.ascontiguousarray(inside[1]), expected[1], f"{name}, in place")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("shape", [(3, 7, 10), (3, 7, 300), (2, 5, 4099)], ids=str)
@pytest.mark.parametrize("options", [{}, {"direction": "reverse"}, {"beta": 0.2}], ids=str)
def test_rows_of_a_teacher_anywhere_change_no_bit(shape, options, dtype, rng):
    name = "js_divergence" if "beta" in options else "kl_divergence"
    loss, with_grad = getattr(xentrs, name), getattr(xentrs, f"{name}_with_grad")
    x, y = (rng.normal(size=shape).astype(dtype) for _ in range(2))
    expected = with_grad(x, y, reduction="none", **options)
    for i, one in enumerate(ROWS):
        other = [*ROWS][i - 1]
        model, teacher = rows_anywhere(one, x), rows_anywhere(other, y)
        out = rows_anywhere(other, np.zeros_like(x))
        assert_same_bits(loss(model, teacher, reduction="none", **options), expected[0])
        losses, _ = with_grad(model, teacher, reduction="none", out=out, **options)
        assert_same_bits((losses, np.ascontiguousarray(out)), expected, f"{one}, {other}")
        out[...] = 7
        assert (out.base == 7).all()
        with_grad(model, teacher, reduction="none", out=model, **options)
        assert_same_bits(np.ascontiguousarray(model), expected[1], f"{one}, in place")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("shape", [(3, 7, 10), (3, 7, 300), (2, 5, 4099)], ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_rows_of_functions_anywhere_change_no_bit(name, shape, dtype, rng):
    function = getattr(xentrs, name)
    x = rng.normal(size=shape).astype(dtype)
    expected = function(x, axis=-1)
    for i, one in enumerate(ROWS):
        rows = rows_anywhere(one, x)
        assert_same_bits(function(rows, axis=-1), expected, one)
        if name != "logsumexp":
            for out in (rows_anywhere([*ROWS][i - 1], np.zeros_like(x)), rows):
                function(rows, axis=-1, out=out)
                assert_same_bits(np.ascontiguousarray(out), expected, one)
                out[...] = 7
                assert (out.base == 7).all()
                rows[...] = x


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_anywhere_beyond_the_caches(dtype, rng, threads):
    """Non-temporal stores write the gradient there."""
    shape = (3, 41, 200_001)
    logits = rng.normal(size=shape).astype(dtype)
    target = rng.integers(0, shape[-1], shape[:-1])
    expected = xentrs.cross_entropy_with_grad(logits, target)
    for name in ("all but the last", "padded"):
        laid, out = rows_anywhere(name, logits), rows_anywhere(name, np.zeros_like(logits))
        for count in (1, 3):
            threads(count)
            loss, _ = xentrs.cross_entropy_with_grad(laid, target, out=out)
            assert_same_bits((loss, np.ascontiguousarray(out)), expected, name)


@every_dtype
@every_class_loss
def test_threads_change_no_bit_of_tiles(loss, dtype, rng, threads):
    for shape in ((5, 700, 130), (1, 53, 9001), (3, 4000, 11)):
        case = loss.case(rng, shape, dtype, reduction="mean")
        scores = np.ascontiguousarray(np.moveaxis(case.scores, -1, 1))
        target = case.target
        if target.shape == shape:
            target = np.asfortranarray(np.moveaxis(target, -1, 1))
        expected = case.both()
        for count in (1, 2, 3):
            threads(count)
            loss_, grad = case.but(scores=scores, target=target, axis=1).both()
            assert_same_bits(loss_, expected[0], f"{shape}, {count} threads")
            assert_same_bits(np.ascontiguousarray(np.moveaxis(grad, 1, -1)), expected[1])


@every_dtype
@pytest.mark.parametrize("loss", [loss for loss in CLASS_LOSSES if loss.softmax], ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 130, 300), (1, 1500, 257), (130, 1025), (2, 64, 9001)], ids=str
)
def test_threads_change_no_bit_of_columns(loss, shape, dtype, rng, threads):
    """More than 256 classes in lines of 64 samples or more, which have kernels of their own."""
    for options in ((), tuple(sorted(set(loss.options) - {"reduction"}))):
        for reduction in ("none", "mean"):
            case = loss.case(rng, shape, dtype, options, reduction=reduction)
            rows = case.all()
            axis = len(shape) - 2
            scores = np.ascontiguousarray(np.moveaxis(case.scores, -1, axis))
            target = case.target
            if target.shape == shape:
                target = np.ascontiguousarray(np.moveaxis(target, -1, axis))
            assert has_columns(loss, scores, axis)
            here = case.but(scores=scores, target=target, axis=axis)
            threads(1)
            expected = here.all()
            if reduction == "none":
                moved = (np.ascontiguousarray(np.moveaxis(r, -1, axis)) for r in rows[1:])
                assert_nearly_same(expected, (rows[0], *moved), axis)
            for count in (2, 3, 7):
                threads(count)
                assert_same_bits(here.all(), expected, f"{count} threads")
                assert_same_bits(here.call(0), expected[0], f"{count} threads, loss alone")
                inside = scores.copy()
                got = here.but(scores=inside).both(out=inside)
                assert_same_bits(got, expected[:2], f"{count} threads, in place")


@every_dtype
@every_class_loss
def test_short_lines_of_many_classes(loss, dtype, rng):
    """Less samples than a vector has lanes, in rows of more bytes than a tile."""
    for shape in ((15, 5000), (7, 5000), (7, 3, 5003), (1, 17, 5001), (16, 3, 5000), (40, 4700)):
        case = loss.case(rng, shape, dtype, reduction="none")
        expected = case.all()
        for order in itertools.permutations(range(len(shape))):
            target = case.target
            target = lay(target, order) if target.shape == shape else target
            here = case.but(scores=lay(case.scores, order), target=target)
            assert_same_bits(here.all(), expected, f"{shape}, order {order}")


def test_output_between_the_elements_of_an_input(rng):
    x = rng.normal(size=(40, 100)).astype(np.float32)
    target = rng.integers(0, 50, 40)
    expected = xentrs.cross_entropy_with_grad(x[:, ::2].copy(), target)
    got = xentrs.cross_entropy_with_grad(x[:, ::2], target, out=x[:, 1::2])
    assert got[0] == expected[0]
    assert_same_bits(x[:, 1::2].copy(), expected[1])


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_no_copy_of_the_whole(python):
    """A call on `(N, C, d)` needs tiles, never an array of the logits' size."""
    script = """
        import numpy as np, xentrs

        def peak():  # in KiB
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if "VmHWM" in line)

        xentrs.set_num_threads(2)
        x = np.ones((32, 1000, 512), np.float32)  # 64 MiB
        t = np.zeros((32, 512), np.int32)
        xentrs.cross_entropy_with_grad(x[:4], t[:4], axis=1, out=x[:4])
        before = peak()
        xentrs.cross_entropy_with_grad(x, t, axis=1, out=x)
        y = x.transpose(0, 2, 1)
        xentrs.cross_entropy_with_grad(y, t, out=y)
        xentrs.cross_entropy(x[:, ::-1], t, axis=1)
        print((peak() - before) / 1024)
    """
    assert float(python(script).stdout) < 4


STRIDES = {
    "a column of a table": lambda a: np.stack([a, a], axis=-1)[..., 0],
    "backwards": lambda a: lay(a, range(a.ndim), backwards=True),
    "the other order": lambda a: lay(a, range(a.ndim)[::-1], 2),
}


@every_loss
@every_dtype
@pytest.mark.parametrize("lie", STRIDES.values(), ids=STRIDES)
def test_strided_arguments_stay_in_the_compiled_function(loss, dtype, lie, rng, monkeypatch):
    """What a user takes out of a table: the bits are those of contiguous arrays."""

    def refuse(*args):
        raise AssertionError(f"left to Python: {args}")

    for name in (
        "_prepare_classes",
        "_prepare_elements",
        "_prepare_teacher",
        "_prepare_untargeted",
    ):
        monkeypatch.setattr(f"xentrs._arrays.{name}", refuse)
    arrays = {"weight", "pos_weight", "sample_weight", "where"}
    for shape in ((1, 2), (20, 7), (5, 3, 4), (3, 300)):
        case = loss.case(rng, shape, dtype, arrays & set(loss.options))
        expected = case.all()
        names = [key for key in case.options if case.options[key].ndim]
        for name in names:
            assert_same_bits(case.all(**{name: lie(case.options[name])}), expected)
        if loss.indices:
            as_floats = case.target.astype(dtype)
            assert_same_bits(case.but(target=lie(as_floats)).all(), expected)
        if loss.has_target:
            case = case.but(target=lie(case.target))
        if not loss.class_axis:
            case = case.but(scores=lie(case.scores))
        assert_same_bits(case.all(**{name: lie(case.options[name]) for name in names}), expected)


def test_pairs_of_strided_arrays(rng):
    x = rng.normal(size=(20, 30)).astype(np.float32)
    indices, probabilities = rng.integers(30, size=(20, 8)), rng.random((20, 8))
    pair = (indices[:, :3].copy(), probabilities[:, :3].copy())
    expected = xentrs.cross_entropy_with_grad(x, pair)
    strided = (indices[:, :3], probabilities[:, :3])
    assert_same_bits(xentrs.cross_entropy_with_grad(x, strided), expected)


def test_probability_outside_is_named_by_its_place(rng):
    p = rng.random((4, 5, 6)).astype(np.float32)
    p[2, 3, 1] = 1.5
    p[3, 0, 0] = -1.0
    target = np.zeros((4, 6), np.int64)
    target[2, 1] = 3
    for laid in (p, np.asfortranarray(p), lay(p, (1, 2, 0), 2)):
        with pytest.raises(ValueError, match=r"probabilities\[2, 3, 1\] is 1\.5"):
            xentrs.log_loss(laid, target, axis=1)
    target[2, 1] = -100
    target[3, 0] = -100
    assert np.isfinite(xentrs.log_loss(p, target, axis=1))
