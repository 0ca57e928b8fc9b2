"""Every error: its type, what its message names, and that nothing is written to `out`."""

import re

import numpy as np
import pytest

import xentrs
from losses import (
    BY_ID,
    CLASS_LOSSES,
    LOSSES,
    OF_ONE_CLASS,
    assert_same_bits,
    every_class_loss,
    every_dtype,
    every_hessian_loss,
    every_index_loss,
    every_loss,
    every_loss_of_two,
    every_output,
    every_target_loss,
)
from xentrs import _xentrs

NAN, INF = np.nan, np.inf


def first(loss):
    """Return what the first argument is called."""
    return _xentrs.LOSSES[loss.name]["input"]


def with_keyword(name):
    """Go through the losses that have this keyword."""
    losses = [loss for loss in LOSSES if name in loss.keywords]
    assert losses
    return pytest.mark.parametrize("loss", losses, ids=str)


def refused(case, error, *substance, outputs=True, **options):
    """Assert that all twins raise with a message that has all of `substance`, and write nothing."""
    for order in case.loss.orders:
        outs = {}
        if outputs and isinstance(case.scores, np.ndarray) and case.scores.dtype.kind == "f":
            names = ("out", "hess_out")[:order]
            outs = {name: np.full(case.scores.shape, 7, case.scores.dtype) for name in names}
        with pytest.raises(error) as raised:
            case.call(order, **outs | options)
        assert type(raised.value) in (error if isinstance(error, tuple) else (error,))
        for words in substance:
            found = str(words).lower() in str(raised.value).lower()  # NaN is nan
            assert found, f"{words!r} not in {raised.value!s:.300}"
        for out in outs.values():
            assert np.all(out == 7), "written to before the error"


def refused_out(case, error, *substance, untouched=(), **options):
    """Assert the same where an output is at fault: the `untouched` arrays keep their bytes."""
    untouched = [*untouched, *(v for v in options.values() if isinstance(v, np.ndarray))]
    before = [u.copy() for u in untouched]
    with pytest.raises(error) as raised:
        case.call(2 if "hess_out" in options else 1, **options)
    for words in substance:
        assert str(words) in str(raised.value), f"{words!r} not in {raised.value!s:.300}"
    for array, copy in zip(untouched, before, strict=True):
        assert array.tobytes() == copy.tobytes(), "written to before the error"


# ---------------------------------------------------------------------------------------- options


@every_dtype
@with_keyword("label_smoothing")
@pytest.mark.parametrize("value", [-0.1, 1.1, NAN, INF, -INF, np.float32(2), 1.0000001])
def test_label_smoothing_outside_its_range(loss, value, dtype, rng):
    case = loss.case(rng, (3, 4), dtype)
    given = "nan" if np.isnan(value) else f"{float(value):.6g}"[:4]
    refused(case, ValueError, "label_smoothing", given, "[0, 1]", label_smoothing=value)


@every_dtype
@every_loss
@pytest.mark.parametrize("value", ["average", "MEAN", "", "batchmean"])
def test_unknown_reduction(loss, value, dtype, rng):
    case = loss.case(rng, (3, 4), dtype)
    refused(case, ValueError, "reduction", value, "mean", "sum", "none", reduction=value)


@every_loss
@pytest.mark.parametrize("value", [None, 1, b"mean", True])
def test_reduction_of_another_type(loss, value, rng):
    case = loss.case(rng, (3, 4), np.float32)
    refused(case, (TypeError, ValueError), "reduction", reduction=value)


@every_dtype
@every_loss
@pytest.mark.parametrize("value", [-1, -0.5, NAN, -INF])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_denominator_negative_or_nan(loss, value, reduction, dtype, rng):
    case = loss.case(rng, (3, 4), dtype, reduction=reduction)
    given = "nan" if np.isnan(value) else f"{value:.4g}"
    refused(case, ValueError, "denominator", given, denominator=value)


@every_dtype
@with_keyword("base")
@pytest.mark.parametrize("value", [0, -2, 1, 1.0, NAN, -INF])
def test_base_not_above_0_or_1(loss, value, dtype, rng):
    case = loss.case(rng, (3, 4), dtype)
    given = "nan" if np.isnan(value) else f"{value:.4g}"
    refused(case, ValueError, "base", given, base=value)


@every_dtype
@every_loss
@pytest.mark.parametrize("name", ["gamma", "z_loss"])
@pytest.mark.parametrize("value", [-1, -1e-300, NAN, INF, -INF, np.float32(-0.5)])
def test_gamma_and_z_loss_outside_their_range(loss, name, value, dtype, rng):
    if name in loss.options:
        case = loss.case(rng, (3, 4), dtype)
        given = "nan" if np.isnan(value) else f"{float(value):.4g}"[:4]
        refused(case, ValueError, name, given, **{name: value})


@every_dtype
@with_keyword("q")
@pytest.mark.parametrize("value", [0, -0.5, -1e-300, 1.5, NAN, INF, np.float32(1.25)])
def test_q_outside_its_range(loss, value, dtype, rng):
    case = loss.case(rng, (3, 4), dtype)
    given = "nan" if np.isnan(value) else f"{float(value):.4g}"[:4]
    refused(case, ValueError, "q must be", "above 0 and at most 1", given, q=value)


@every_dtype
@with_keyword("temperature")
@pytest.mark.parametrize("name", ["temperature", "softcap"])
@pytest.mark.parametrize("value", [0, -0.0, -1, -1e-300, NAN, INF, -INF])
def test_temperature_and_softcap_not_above_0(loss, name, value, dtype, rng):
    if name not in loss.options:
        pytest.skip("no such option")
    case = loss.case(rng, (3, 4), dtype)
    given = "nan" if np.isnan(value) else f"{float(value):.4g}"[:4]
    refused(case, ValueError, name, given, "above 0", **{name: value})


@every_dtype
@with_keyword("epsilon")
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_epsilon_that_is_not_finite(loss, value, dtype, rng):
    case = loss.case(rng, (3, 4), dtype)
    refused(case, ValueError, "epsilon must be finite", value, epsilon=value)


@every_dtype
@pytest.mark.parametrize("name", OF_ONE_CLASS)
@pytest.mark.parametrize("smoothing", [0.1, 1, np.float32(0.5), 1e-300])
def test_losses_that_take_class_indices_alone(name, smoothing, dtype, rng):
    """The message says why smoothing and probabilities are refused."""
    case = BY_ID[name].case(rng, (3, 4), dtype)
    given = f"{float(smoothing):.4g}"
    refused(case, TypeError, "label_smoothing", given, "true class", label_smoothing=smoothing)
    for target in (rng.random((3, 4)), np.eye(3, 4, dtype=int), np.eye(3, 4, dtype=dtype)):
        for given in (target, np.asfortranarray(target), target.tolist()):
            refused(case.but(target=given), TypeError, "target", "probabilities", "class ind")
    case.all(label_smoothing=0)


def type_of(value):
    """Name a case by its type: the text of an object has its address, another in each process."""
    return type(value).__name__


@every_loss
@pytest.mark.parametrize(
    "name",
    [
        "label_smoothing",
        "denominator",
        "base",
        "gamma",
        "z_loss",
        "q",
        "epsilon",
        "temperature",
        "softcap",
    ],
)
@pytest.mark.parametrize("value", ["0.5", b"1", [0.5, 0.5], 1j, {}, object()], ids=type_of)
def test_numbers_of_another_type(loss, name, value, rng):
    case = loss.case(rng, (3, 4), np.float32)
    refused(case, TypeError, name, **{name: value})


@every_loss
@pytest.mark.parametrize(
    "name", ["label_smoothing", "gamma", "z_loss", "q", "epsilon", "temperature"]
)
def test_numbers_that_are_none(loss, name, rng):
    case = loss.case(rng, (3, 4), np.float32)
    refused(case, TypeError, name, **{name: None})


@every_loss
@pytest.mark.parametrize("name", ["axsi", "ignored_index", "weights", "out_", "from_logits"])
def test_unknown_arguments(loss, name, rng):
    case = loss.case(rng, (3, 4), np.float32)
    refused(case, TypeError, name, **{name: 1})


@every_loss
def test_options_are_keyword_only_and_two_arguments_are_needed(loss, rng):
    case = loss.case(rng, (3, 4), np.float32)
    for function in loss.functions:
        with pytest.raises(TypeError, match="positional"):
            function(case.scores, case.target, -1)
        with pytest.raises(TypeError, match=loss.second):
            function(case.scores)
    for order, name in ((0, "out"), (1, "hess_out")):
        with pytest.raises(TypeError, match=name):
            loss.functions[order](case.scores, case.target, **{name: case.scores.copy()})


# ------------------------------------------------------------------------------------ class axis


@every_dtype
@every_class_loss
@pytest.mark.parametrize("axis", [2, -3, 7, 1 << 40, -(1 << 70)])
def test_axis_that_is_not_there(loss, axis, dtype, rng):
    case = loss.case(rng, (3, 4), dtype)
    refused(case, ValueError, "axis", axis, "(3, 4)", axis=axis)


@every_class_loss
@pytest.mark.parametrize("axis", [None, 1.0, "1", (1,), True], ids=repr)
def test_axis_of_another_type(loss, axis, rng):
    case = loss.case(rng, (3, 4), np.float32)
    refused(case, TypeError, "axis", axis=axis)


@every_dtype
@every_class_loss
def test_no_class_axis_or_nothing_in_it(loss, dtype, rng):
    case = loss.case(rng, (3, 4), dtype)
    name = first(loss)
    refused(case.but(scores=np.zeros((), dtype), target=np.array(0)), ValueError, name, "()")
    empty = case.but(scores=np.zeros((3, 0), dtype), target=np.zeros(3, int))
    refused(empty, ValueError, name, "(3, 0)", "class")
    refused(empty.but(target=np.zeros((3, 0), dtype)), ValueError, name, "(3, 0)")
    refused(case.but(scores=np.zeros((0, 3), dtype), target=np.zeros(3, int)), ValueError, axis=0)


# --------------------------------------------------------------------------------- class indices


@every_dtype
@every_index_loss
@pytest.mark.parametrize("classes", [3, 10, 64, 65, 1000])
def test_class_index_out_of_range(loss, classes, dtype, rng):
    case = loss.case(rng, (4, 5, classes), dtype)
    for position in ((0, 0), (2, 3), (3, 4)):
        for value in (classes, classes + 6, -1, -classes, -99, 1 << 40, -(1 << 63)):
            target = case.target.copy()
            target[position] = value
            at = "[" + ", ".join(map(str, position)) + "]"
            valid = f"[0, {classes})"
            refused(case.but(target=target), IndexError, "target", at, value, valid)
            refused(case.but(target=target), IndexError, at, value, valid, ignore_index=None)
            several = (-100, classes + 1)
            refused(case.but(target=target), IndexError, at, value, valid, ignore_index=several)


@every_index_loss
def test_class_index_out_of_range_in_every_width(loss, rng):
    case = loss.case(rng, (7, 5), np.float32)
    for code in "bhilqpBHILQP":
        largest = np.iinfo(code).max
        target = case.target.astype(code)
        target[4] = largest
        refused(case.but(target=target), IndexError, "target[4]", largest, "[0, 5)")
        if np.iinfo(code).min:
            target[4] = -1
            refused(case.but(target=target), IndexError, "target[4]", "-1", "[0, 5)")
    swapped = case.target.astype(">i4")
    swapped[2] = 5
    refused(case.but(target=swapped), IndexError, "target[2]", "5", "[0, 5)")
    strided = np.repeat(case.target, 2)[::2]
    strided[6] = 9
    refused(case.but(target=strided), IndexError, "target[6]", "9", "[0, 5)")


@every_index_loss
def test_first_of_several_bad_indices_is_named(loss, rng, threads):
    """Whichever thread finds which of them."""
    case = loss.case(rng, (50_000, 5), np.float32)
    target = case.target.copy()
    target[[1234, 30_000, 49_999]] = [55, 66, 77]
    for count in (1, 2, 7):
        threads(count)
        refused(case.but(target=target), IndexError, "target[1234]", "55", "[0, 5)")


@every_index_loss
def test_bad_index_beside_a_moved_class_axis_or_alone(loss, rng):
    case = loss.case(rng, (4, 5, 3), np.float32)
    moved = case.but(scores=np.moveaxis(case.scores, -1, 1))
    target = case.target.copy()
    target[1, 4] = 3
    refused(moved.but(target=target), IndexError, "target[1, 4]", "3", "[0, 3)", axis=1)
    one = case.but(scores=case.scores[0, 0], target=np.array(17))
    refused(one, IndexError, "target", "17", "[0, 3)")
    refused(case.but(scores=case.scores[0, :1], target=[-2]), IndexError, "target[0]", "-2")


@every_index_loss
@pytest.mark.parametrize(
    "value", [1.5, "0", [0, 1.5], ["a"], [None], b"0", {"a": 1}, [[0, 1], [2]]], ids=repr
)
def test_ignore_index_of_another_type(loss, value, rng):
    case = loss.case(rng, (3, 4), np.float32)
    refused(case, TypeError, "ignore_index", ignore_index=value)


@pytest.mark.parametrize(
    "loss", [x for x in CLASS_LOSSES if x.has_target and not (x.indices or x.teacher)], ids=str
)
def test_ignore_index_with_probabilities(loss, rng):
    case = loss.case(rng, (3, 4), np.float32)
    refused(case, ValueError, "ignore_index", ignore_index=1)
    refused(case, ValueError, "ignore_index", ignore_index=(-100, 1))
    case.call(0, ignore_index=-5)  # matches no class, so it says nothing


# ----------------------------------------------------------------------------------------- shapes


@every_dtype
@every_target_loss
def test_target_of_another_shape(loss, dtype, rng):
    case = loss.case(rng, (3, 4, 5), dtype)
    hard, soft = (
        [(), (3,), (4,), (3, 5), (3, 4, 1), (4, 3), (12,)],
        [(3, 4, 4), (60,), (1, 3, 4, 5)],
    )
    for shape in hard:
        refused(case.but(target=np.zeros(shape, int)), ValueError, loss.second, shape, "(3, 4, 5)")
    for shape in soft:
        given = case.but(target=np.zeros(shape, dtype))
        refused(given, ValueError, loss.second, shape, "(3, 4, 5)")


@every_target_loss
def test_pytorch_layout_is_told_of_axis_1(loss, rng):
    for shape in [(2, 5, 7), (2, 5, 7, 3), (2, 9, 9)]:
        scores = loss.draw_scores(rng, shape, np.float32)
        target = np.zeros((shape[0], *shape[2:]), int)
        case = loss.case(rng, (3, 4), np.float32).but(scores=scores, target=target)
        if shape[1] != shape[-1]:
            refused(case, ValueError, "axis=1", shape, target.shape)
        case.call(0, axis=1)
    unrelated = case.but(scores=scores, target=np.zeros((4, 4), int))
    with pytest.raises(ValueError, match="target") as raised:
        unrelated.call(0)
    assert "axis=1" not in str(raised.value)


@every_dtype
@every_class_loss
def test_weights_of_another_shape(loss, dtype, rng):
    case = loss.case(rng, (6, 4), dtype)
    for shape in [(3,), (5,), (6,), (), (1,), (4, 1), (6, 4), (0,)] * ("weight" in loss.options):
        refused(case, ValueError, "weight", shape, "(4,)", weight=np.ones(shape, dtype))
    for shape in [(5,), (4,), (), (1,), (6, 1), (6, 4), (0,)]:
        ones = np.ones(shape, dtype)
        refused(case, ValueError, "sample_weight", shape, "(6,)", sample_weight=ones)


@every_dtype
def test_binary_shapes(dtype, rng):
    case = BY_ID["binary"].case(rng, (6, 4), dtype)
    for shape in [(6,), (4,), (), (6, 1), (6, 4, 1)]:
        refused(case.but(target=np.zeros(shape, dtype)), ValueError, "target", shape, "(6, 4)")
    for name in ("weight", "pos_weight"):
        for shape in [(6,), (3,), (6, 4, 1), (2, 6, 4)]:
            refused(case, ValueError, name, shape, "(6, 4)", **{name: np.ones(shape, dtype)})
    for shape in [(6,), (3,), (2, 6, 4)]:
        refused(case, ValueError, "where", shape, "(6, 4)", where=np.ones(shape, bool))


@every_loss
def test_ragged_lists(loss, rng):
    case = loss.case(rng, (2, 3), np.float32)
    refused(case.but(scores=[[0.1, 0.2], [0.3]]), (TypeError, ValueError), first(loss))
    if loss.has_target:
        refused(case.but(target=[[1, 0], [1]]), (TypeError, ValueError), loss.second)


# ----------------------------------------------------------------------------------------- dtypes


@every_loss
@pytest.mark.parametrize(
    "kind", ["?", "i1", "i8", "u2", "c8", "c16", "g", "O", "U3", "S3", "M8[s]", "m8[s]", "V4"]
)
def test_scores_of_another_dtype(loss, kind, rng):
    case = loss.case(rng, (3, 4), np.float32)
    scores = np.zeros((3, 4), kind)
    name = first(loss)
    refused(case.but(scores=scores), TypeError, name, scores.dtype, "float32", "float64")
    if kind == "?":  # integers in a list are float64
        refused(case.but(scores=scores.tolist()), TypeError, name, "bool")


@every_loss
@pytest.mark.parametrize("scores", [None, "abc", b"abc", object(), {"a": 1}, {1.0}], ids=type_of)
def test_scores_that_are_no_array(loss, scores, rng):
    case = loss.case(rng, (3, 4), np.float32)
    for function in loss.functions:
        with pytest.raises(TypeError) as raised:
            function(scores, case.target)
        for words in (first(loss), "float32", "float64"):
            assert words in str(raised.value)


@every_loss_of_two
@pytest.mark.parametrize("kind", ["c8", "O", "U3", "S3", "M8[s]", "m8[s]", "V4"])
def test_target_of_another_dtype(loss, kind, rng):
    case = loss.case(rng, (3, 4), np.float32)
    for shape in {case.target.shape, case.scores.shape}:
        target = np.zeros(shape, kind)
        if loss.class_axis or shape == case.scores.shape:
            accepted = "float" if loss.teacher else "integer"
            refused(case.but(target=target), TypeError, loss.second, target.dtype, accepted)


@every_target_loss
def test_class_indices_that_are_bools(loss, rng):
    case = loss.case(rng, (3, 4), np.float32)
    refused(case.but(target=np.zeros(3, bool)), TypeError, "target", "bool", "integer")


@every_loss_of_two
def test_targets_that_are_no_array(loss, rng):
    case = loss.case(rng, (3, 4), np.float32)
    for target in (None, "abc", object()):
        with pytest.raises(TypeError, match=loss.second):
            loss.functions[1](case.scores, target)


@every_loss
@pytest.mark.parametrize("name", ["weight", "sample_weight", "pos_weight"])
@pytest.mark.parametrize("kind", ["c8", "O", "U3", "M8[s]"])
def test_weights_of_another_dtype(loss, name, kind, rng):
    if name not in loss.options:
        with pytest.raises(TypeError, match=name):
            loss.case(rng, (3, 3), np.float32).call(0, **{name: np.ones(3)})
        return
    case = loss.case(rng, (3, 3), np.float32)
    weight = np.zeros(3, kind)
    refused(case, TypeError, name, weight.dtype, "float", **{name: weight})


@pytest.mark.parametrize("kind", ["i8", "f4", "O", "U3"])
def test_where_of_another_dtype(kind, rng):
    case = BY_ID["binary"].case(rng, (3, 4), np.float32)
    where = np.ones((3, 4), kind)
    refused(case, TypeError, "where", where.dtype, "bool", where=where)


def _objects(*items):
    array = np.empty(len(items), object)
    array[:] = items
    return array


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("rows", [np.ndarray.copy, np.ndarray.tolist, tuple])
def test_an_array_of_arrays_is_to_be_stacked(rows, dtype, rng):
    """The call that the message names works."""
    x = rng.integers(-9, 9, (3, 4)).astype(dtype)
    names = {"np": np, "logits": _objects(*map(rows, x)), "target": _objects(*map(rows, np.eye(3)))}
    right = xentrs.softmax(x.astype(float))
    with pytest.raises(
        TypeError, match=r"logits has dtype object.*arrays: pass np\.stack"
    ) as found:
        xentrs.softmax(names["logits"])
    call = str(found.value).partition(" pass ")[2]
    assert call.endswith(".astype('float64')") == (dtype == np.int64)
    np.testing.assert_allclose(xentrs.softmax(eval(call, names)), right, rtol=1e-6)
    with pytest.raises(TypeError, match=r"target has dtype object.*: pass np\.stack\(target\)$"):
        xentrs.cross_entropy(np.eye(3), names["target"])
    names["logits"] = _objects(*map(rows, x), *map(rows, x)).reshape(2, 3)
    with pytest.raises(TypeError, match=r"arrays: pass np\.array\(logits\.tolist\(\)\)") as found:
        xentrs.softmax(names["logits"])
    call = str(found.value).partition(" pass ")[2]
    np.testing.assert_allclose(xentrs.softmax(eval(call, names)), [right, right], rtol=1e-6)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (
            [np.ones(3), np.ones(3), np.ones(2)],
            r"logits\[0\] has shape \(3,\) and logits\[2\] .* \(2,\)",
        ),
        ([np.ones(3), 1.0], r"logits\[0\] has shape \(3,\) and logits\[1\] has shape \(\)"),
        ([np.ones(3), None], r"it has missing values: logits\[1\] is None"),
    ],
)
def test_arrays_of_several_shapes_cannot_be_stacked(items, words):
    with pytest.raises(TypeError, match=words):
        xentrs.softmax(_objects(*items))


@pytest.mark.parametrize(
    "items",
    [[1.0, 2.0], ["a", "b"], [np.array(["a"]), np.array(["b"])], [[1, [2, 3]], 2], [{}, {}]],
)
def test_other_objects_are_no_arrays(items):
    with pytest.raises(TypeError, match=r"logits has dtype object, but must be [^;]*$"):
        xentrs.softmax(_objects(*items))


def test_nan_among_floats_of_a_dtype_that_is_refused():
    """Logits may be NaN: then they are no missing values."""
    x = np.full((3, 4), NAN, np.longdouble)
    with pytest.raises(TypeError, match=r"logits has dtype .*, but must be [^;]*$"):
        xentrs.cross_entropy(x, [0, 1, 2])
    where = np.array([1.0, NAN, 0.0])
    with pytest.raises(TypeError, match=r"where has dtype float64.* missing values: where\[1\] is"):
        xentrs.binary_cross_entropy_with_logits([1.0, 2.0, 3.0], [0, 1, 1], where=where)


LOST = "is a masked array, whose mask would be lost"


def masked_at(array, *place):
    return np.ma.masked_array(array, np.arange(array.size).reshape(array.shape) == place)


@every_loss
def test_masked_arrays_would_lose_their_mask(loss, rng):
    case = loss.case(rng, (3, 4), np.float32)
    masked = masked_at(case.scores, 5)
    refused(case.but(scores=masked), TypeError, f"{first(loss)} {LOST}", outputs=False)
    for kind in (list, tuple):
        rows = kind(masked)
        message = f"{first(loss)}[1] {LOST}"
        refused(case.but(scores=rows), TypeError, message, outputs=False)
        message = f"{first(loss)}[0][1] {LOST}"
        refused(case.but(scores=[rows]), TypeError, message, outputs=False)
    numbers = [[1.0, 2.0], [1.0, np.ma.masked]]
    refused(case.but(scores=numbers), TypeError, f"{first(loss)}[1][1] {LOST}", outputs=False)
    if loss.has_target:
        target = masked_at(case.target, 2)
        refused(case.but(target=target), TypeError, f"{loss.second} {LOST}")
        refused(case.but(target=list(target)), TypeError, f"{loss.second}[", LOST)
    for key in {"weight", "sample_weight", "pos_weight"} & set(loss.options):
        weight = masked_at(np.ones(4 if key != "sample_weight" else 3, np.float32), 1)
        refused(case, TypeError, f"{key} {LOST}", **{key: weight})
        refused(case, TypeError, f"{key}[1] {LOST}", **{key: list(weight)})


class _Masked(np.ndarray):
    """An array with a mask, as those of astropy are."""

    def __array_finalize__(self, other):
        self.mask = np.zeros(self.shape, np.bool_)


def test_masks_of_other_libraries_would_be_lost(rng):
    x, y = rng.normal(size=(3, 2)).view(_Masked), np.array([1, 0, 1]).view(_Masked)
    right = xentrs.cross_entropy(np.asarray(x), np.asarray(y))
    assert xentrs.cross_entropy(x, y) == right
    y.mask[2] = x.mask[1, 0] = True
    for call, name in (
        (lambda: xentrs.cross_entropy(np.asarray(x), y), "target"),
        (lambda: xentrs.cross_entropy(x, np.asarray(y)), "logits"),
        (lambda: xentrs.cross_entropy(np.zeros((1, 3, 2)), [y]), r"target\[0\]"),
        (lambda: xentrs.softmax(x), "logits"),
        (lambda: xentrs.CrossEntropyMeter().update(np.asarray(x), y), "target"),
    ):
        with pytest.raises(TypeError, match=rf"{name} {LOST}"):
            call()


@every_loss
@pytest.mark.parametrize("mask", [False, None], ids=["all false", "none"])
def test_masked_arrays_that_mask_nothing(loss, mask, rng):
    """As netCDF4 reads them. As outputs they are refused."""

    def plain(array):
        return np.ma.masked_array(array, np.ma.nomask if mask is None else mask)

    case = loss.case(rng, (3, 4), np.float32)
    options = {
        key: rng.uniform(1, 2, 3 if key == "sample_weight" else 4)
        for key in ("weight", "sample_weight", "pos_weight")
        if key in loss.options
    }
    given = case.but(scores=plain(case.scores))
    if loss.has_target:
        given = given.but(target=plain(case.target))
    weights = {key: plain(array) for key, array in options.items()}
    for order in loss.orders:
        right = case.call(order, **options)
        assert_same_bits(given.call(order, **weights), right)
        assert_same_bits(case.but(scores=list(given.scores)).call(order, **options), right)
        for name in loss.outputs[:order]:
            out = {name: plain(np.full((3, 4), 7, np.float32))}
            refused_out(case, TypeError, f"{name} must be a numpy.ndarray, not MaskedArray", **out)


def test_a_list_within_itself():
    endless = [1.0]
    endless[0] = endless
    with pytest.raises(ValueError, match="logits cannot be read as a NumPy array"):
        xentrs.cross_entropy(endless, 0)


@every_loss
def test_arrays_on_a_gpu(loss, rng):
    case = loss.case(rng, (3, 4), np.float32)

    class OnGpu:
        shape, dtype, ndim = (3, 4), np.dtype("f4"), 2

        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, **options):
            raise BufferError("not on the CPU")

    class AsTorch(OnGpu):
        def __array__(self, dtype=None, copy=None):
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    for kind in (OnGpu, AsTorch):
        refused(case.but(scores=kind()), TypeError, first(loss), "xentrs.torch")
        if loss.has_target:
            refused(case.but(target=kind()), TypeError, loss.second, "xentrs.torch")


@every_loss
@pytest.mark.parametrize(
    "error", [BufferError, NotImplementedError, RuntimeError, TypeError, ValueError]
)
def test_arrays_on_several_devices_or_none(loss, error, rng):
    """Their device raises, as of JAX's sharded arrays: they are what they convert to."""

    class Sharded:
        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return self.values

        def __dlpack_device__(self):
            raise error("no single device")

        def __dlpack__(self, **options):
            raise error("no single device")

    case = loss.case(rng, (4, 5), np.float32)
    converted = case.but(scores=Sharded(case.scores), target=Sharded(case.target))
    for order in loss.orders:
        assert_same_bits(converted.call(order), case.call(order))


# ---------------------------------------------------------------------------------- probabilities


@every_dtype
@pytest.mark.parametrize("value", [-0.1, 1.5, NAN, INF, -INF, 1 + 1e-6])
@pytest.mark.parametrize("classes", [3, 10, 65, 1000])
def test_probability_outside_its_range(value, classes, dtype, rng):
    given = "nan" if np.isnan(value) else str(value)[:3].lower()
    for loss in CLASS_LOSSES:
        if not loss.bounded:
            continue
        case = loss.case(rng, (4, 5, classes), dtype)
        for position in ((0, 0, 0), (2, 3, 1), (3, 4, classes - 1)):
            scores = case.scores.copy()
            scores[position] = value
            if loss.indices:
                # For a class index only its own probability is read.
                case.target[position[:-1]] = position[-1]
            at = "probabilities[" + ", ".join(map(str, position)) + "]"
            refused(case.but(scores=scores), ValueError, at, given, "[0, 1]")
        moved = case.but(scores=np.moveaxis(scores, -1, 1))
        if not loss.indices:
            moved = moved.but(target=np.moveaxis(case.target, -1, 1))
        at = f"probabilities[3, {classes - 1}, 4]"
        refused(moved, ValueError, at, given, "[0, 1]", axis=1)


@every_dtype
@pytest.mark.parametrize("value", [-0.1, -1e-30, 1.5, NAN, INF, -INF, 1 + 1e-6])
@pytest.mark.parametrize("labels", [bool, float])
def test_probability_of_a_label_outside_its_range(value, labels, dtype, rng):
    """Vectors of true and false labels have arithmetic of their own."""
    function = xentrs.binary_cross_entropy_with_grad
    target = (rng.random(200) < 0.5).astype(labels)
    for position in (0, 15, 63, 64, 130, 199):
        p = rng.random(200).astype(dtype)
        p[position] = value
        for label in (0, 1):
            target[position] = label
            with pytest.raises(ValueError, match=rf"probabilities\[{position}\] is"):
                function(p, target)


# ---------------------------------------------------------------------------------------- outputs


@every_dtype
@every_output
def test_out_of_another_shape_or_dtype(loss, name, dtype, rng):
    case = loss.case(rng, (3, 4), dtype)
    for shape in [(3,), (4, 3), (12,), (3, 5), (1, 3, 4), ()]:
        out = np.full(shape, 7, dtype)
        refused_out(case, ValueError, name, shape, "(3, 4)", **{name: out})
    other = np.float64 if dtype == np.float32 else np.float32
    for kind in (other, int, np.float16, complex, object):
        out = np.full((3, 4), 7, kind)
        refused_out(case, TypeError, name, out.dtype, np.dtype(dtype), **{name: out})
    for other in ([[0.0] * 4] * 3, 1.0, "out", (out,), bytearray(48)):
        with pytest.raises(TypeError, match=name):
            case.all(**{name: other})


@every_dtype
@every_output
def test_read_only_out(loss, name, dtype, rng, tmp_path):
    case = loss.case(rng, (3, 4), dtype)
    out = np.full((3, 4), 7, dtype)
    out.flags.writeable = False
    refused_out(case, ValueError, name, "read-only", **{name: out})
    scores = case.scores.copy()
    scores.flags.writeable = False
    refused_out(case.but(scores=scores), ValueError, name, "read-only", **{name: scores})
    out = np.broadcast_to(np.zeros(4, dtype), (3, 4))
    refused_out(case, ValueError, name, **{name: out})
    np.zeros((3, 4), dtype).tofile(tmp_path / "out")
    out = np.memmap(tmp_path / "out", dtype, "r", shape=(3, 4))
    refused_out(case, ValueError, name, "read-only", **{name: out})


@every_dtype
@every_output
@pytest.mark.parametrize("shape", [(6, 8), (4, 300)], ids=str)
def test_out_overlaps_the_scores_other_than_exactly(loss, name, shape, dtype, rng):
    case = loss.case(rng, shape, dtype)
    size = case.scores.size
    buffer = np.empty(2 * size + 8, dtype)
    for shift in (1, shape[1], size // 2, size - 1):
        for low, high in ((0, shift), (shift, 0)):
            scores = buffer[low : low + size].reshape(shape)
            scores[...] = case.scores
            out = buffer[high : high + size].reshape(shape)
            given = case.but(scores=scores)
            refused_out(given, ValueError, name, first(loss), "overlap", **{name: out})
    square = loss.case(rng, (8, 8), dtype)
    for out in (square.scores.T, square.scores[::-1], square.scores[:, ::-1]):
        refused_out(square, ValueError, name, first(loss), "overlap", **{name: out})
    beside = np.zeros((8, 9), dtype)  # rows that reach into the next one's place
    square = square.but(scores=beside[:, :8])
    refused_out(square, ValueError, name, "overlap", **{name: beside[:, 1:]})
    raw = np.zeros(square.target.size * 64 + 8, np.uint8)  # not even a whole element apart
    scores = raw[: 64 * dtype().itemsize].view(dtype).reshape(8, 8)
    out = raw[2 : 2 + 64 * dtype().itemsize].view(dtype).reshape(8, 8)
    refused_out(square.but(scores=scores), ValueError, name, "overlap", **{name: out})


@every_dtype
@every_output
def test_out_overlaps_another_input(loss, name, dtype, rng):
    case = loss.case(rng, (6, 8), dtype)
    out = np.zeros((6, 8), dtype)
    flat = out.reshape(-1)
    if loss.indices:
        numbers = flat.view(np.int32)
        for target in (numbers[2:8], numbers[2:14:2], numbers[7:1:-1]):
            given = case.but(target=target)
            refused_out(given, ValueError, name, loss.second, "overlap", **{name: out})
    elif loss.has_target:
        given = case.but(target=out)  # exactly, too
        refused_out(given, ValueError, name, loss.second, "overlap", **{name: out})
        buffer = np.zeros(60, dtype)
        given = case.but(target=buffer[:48].reshape(6, 8))
        out_ = buffer[12:].reshape(6, 8)
        refused_out(given, ValueError, name, loss.second, "overlap", **{name: out_})
    weights = {"weight": out[2], "sample_weight": out[:, 3], "pos_weight": out[5]}
    for key in set(weights) & set(loss.options):
        given = case.but(**{key: weights[key]})
        refused_out(given, ValueError, name, key, "overlap", **{name: out})
    if "where" in loss.options:
        where = flat.view(bool)[-48:].reshape(6, 8)
        given = case.but(where=where)
        refused_out(given, ValueError, name, "where", "overlap", **{name: out})


@every_dtype
@every_hessian_loss
def test_out_and_hess_out_overlap(loss, dtype, rng):
    case = loss.case(rng, (6, 8), dtype)
    buffer = np.full(60, 7, dtype)
    out = buffer[:48].reshape(6, 8)
    refused_out(case, ValueError, "hess_out", "out", "overlap", out=out, hess_out=out)
    shifted = buffer[12:].reshape(6, 8)
    refused_out(case, ValueError, "hess_out", "out", "overlap", out=out, hess_out=shifted)
    scores = case.scores
    refused_out(case, ValueError, "hess_out", "overlap", out=scores, hess_out=scores)


@every_dtype
@every_loss
def test_out_that_overlaps_itself(loss, dtype, rng):
    case = loss.case(rng, (6, 8), dtype)
    memory = np.full(8, 7, dtype)
    out = np.lib.stride_tricks.as_strided(memory, (6, 8), (0, dtype().itemsize))
    refused_out(case, ValueError, "out overlaps itself", untouched=[memory], out=out)
    step = dtype().itemsize
    memory = np.full(60, 7, dtype)
    for strides in ((step, step), (7 * step, step), (step, 5 * step), (8 * step, -step // 2)):
        start = memory[20:] if strides[1] < 0 else memory
        out = np.lib.stride_tricks.as_strided(start, (6, 8), strides)
        for name in loss.outputs:
            refused_out(case, ValueError, f"{name} overlaps itself", **{name: out})
        # In place too.
        refused_out(case.but(scores=out), ValueError, "out overlaps itself", out=out)
    for name, kind in (("logsumexp_out", dtype), ("argmax_out", np.int64)):
        if name in loss.options:
            case = loss.case(rng, (3, 2, 4), dtype)
            step = np.dtype(kind).itemsize
            out = np.lib.stride_tricks.as_strided(np.zeros(4, kind), (3, 2), (step, step))
            refused_out(case, ValueError, f"{name} overlaps itself", **{name: out})


def _layouts(rng):
    """Yield float32 arrays of any strides, each in its own memory, and the places of elements."""
    for _ in range(400):
        shape = tuple(rng.integers(1, 5, rng.integers(1, 5)).tolist())
        unit = 4 if rng.random() < 0.7 else 1  # so that a part of an element may be shared
        strides = tuple((unit * rng.integers(-12, 13, len(shape))).tolist())
        axes = list(zip(shape, strides, strict=True))
        lowest = sum(min(0, (n - 1) * step) for n, step in axes)
        length = sum((n - 1) * abs(step) for n, step in axes) + 4
        memory = np.zeros(length, np.uint8)
        places = sum(
            (np.arange(n) * step).reshape([n if i == j else 1 for j in range(len(shape))])
            for i, (n, step) in enumerate(axes)
        )
        yield np.ndarray(shape, np.float32, memory, -lowest, strides), places


def test_out_of_any_strides(rng):
    """It is refused if two of its elements share a byte, and else takes the gradient."""
    found = set()
    for out, places in _layouts(rng):
        x = rng.normal(size=out.shape).astype(np.float32)
        target = np.zeros(x.shape[:-1], int)
        in_order = np.sort(places, axis=None)
        shares = bool((np.diff(in_order) < 4).any())
        nested = sorted((abs(s), n) for s, n in zip(out.strides, out.shape, strict=True) if n > 1)
        extents = [4 + sum(s * (n - 1) for s, n in nested[:i]) for i in range(len(nested))]
        found.add((shares, all(s >= e for (s, _), e in zip(nested, extents, strict=True))))
        if shares:
            with pytest.raises(ValueError, match="out overlaps itself"):
                xentrs.cross_entropy_with_grad(x, target, out=out)
            assert not out.any()
        else:
            loss, grad = xentrs.cross_entropy_with_grad(x, target, out=out)
            assert grad is out
            assert_same_bits((loss, np.array(out)), xentrs.cross_entropy_with_grad(x, target))
    # Among them are some whose axes interleave without sharing an element.
    assert found == {(True, False), (False, False), (False, True)}


@every_dtype
@every_index_loss
def test_bad_target_is_found_before_anything_is_written(loss, dtype, rng, threads):
    """The last of many targets is bad: `out`, in place too, keeps every byte."""
    for shape in ((60_000, 4), (300, 1000)):
        case = loss.case(rng, shape, dtype)
        case.target[-1] = shape[1]
        for count in (1, 3):
            threads(count)
            outs = {name: np.full(shape, 7, dtype) for name in loss.outputs}
            before = case.scores.copy()
            refused_out(case, IndexError, f"target[{shape[0] - 1}]", **outs)
            refused_out(case, IndexError, f"target[{shape[0] - 1}]", out=case.scores)
            assert np.array_equal(case.scores, before)


@every_dtype
def test_bad_probability_is_found_before_anything_is_written(dtype, rng, threads):
    """The last of many: of the type of the target, of another, and of half precision."""
    for loss in LOSSES:
        if loss.bounded:
            for shape in ((60_000, 4), (300, 1000)):
                case = loss.case(rng, shape, dtype)
                case.scores[-1, -1] = 1.5
                if loss.indices:
                    case.target[-1] = shape[-1] - 1
                for kind in ("f2", "f4", "f8"):
                    converted = case.but(scores=case.scores.astype(kind))
                    for count in (1, 3):
                        threads(count)
                        out = np.full(shape, 7, kind)
                        refused_out(converted, ValueError, "1.5", out=out)
                        refused_out(converted, ValueError, "1.5", out=converted.scores)


# ----------------------------------------------------------------------------------- the messages


def test_messages_read_well():
    """One of each kind: these are what users see."""
    logits = np.zeros((3, 4, 10), np.float32)
    target = np.zeros((3, 4), int)
    target[2, 3] = 17
    with pytest.raises(IndexError) as raised:
        xentrs.cross_entropy(logits, target)
    message = str(raised.value)
    assert message.startswith("target[2, 3] is 17, but ")
    assert "[0, 10)" in message
    assert "ignore_index (-100)" in message
    with pytest.raises(ValueError, match=re.escape("probabilities[0] is 1.5")):
        xentrs.log_loss([1.5, 0.2], 0)
    with pytest.raises(TypeError, match="logits has dtype int64"):
        xentrs.cross_entropy(np.array([1, 2]), 0)
