"""Hostile options and threads, too little memory, and targets whose values decide what they are."""

import array
import collections
import functools
import gc
import inspect
import itertools
import sys
import time
import weakref

import numpy as np
import pytest

import xentrs
from interference import meanwhile
from losses import (
    BY_ID,
    LOSSES,
    assert_same_bits,
    every_class_loss,
    every_index_loss,
    every_loss,
    every_loss_of_two,
    every_soft_loss,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
BINARY = BY_ID["binary"]


# ------------------------------------------------------------------------- who changes the arrays


class Hostile:
    """A number that calls a function whenever it is converted."""

    def __init__(self, value, do):
        self.value, self.do = value, do

    def __float__(self):
        self.do()
        return float(self.value)

    def __index__(self):
        self.do()
        return int(self.value)


class HostileText(str):
    """A string that calls a function when it is shown in a message."""

    __slots__ = ("do",)

    def __repr__(self):
        self.do()
        return "hostile"


OPTIONS = {
    "label_smoothing": 0.25,
    "z_loss": 0.25,
    "softcap": 0.25,
    "temperature": 0.25,
    "gamma": 0.25,
    "q": 0.25,
    "epsilon": 0.25,
    "denominator": 3.0,
    "base": 2.0,
    "axis": -1,
    "ignore_index": -100,
}


def _number_of(loss):
    """Return the name of an option that may be a number between 0 and 1."""
    return next(name for name in OPTIONS if name in loss.options)


def _nearly_same(results, right):
    """Whether two results, or tuples of results, have the same numbers in the same order."""
    results, right = (r if isinstance(r, tuple) else (r,) for r in (results, right))
    flat = [(np.ravel(a), np.ravel(b)) for a, b in zip(results, right, strict=True)]
    return all(a.size == b.size and np.allclose(a, b) for a, b in flat)


def _reshape(array, shape):
    array.shape = shape  # frees the old shape and strides


@every_loss
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("which", ["scores", "target", "weight", "out"])
def test_options_that_reshape_an_argument(loss, option, which, rng):
    """The result is right for the old shape or the new one, or the call is refused by shape."""
    if option not in loss.options and not (option == "axis" and loss.class_axis):
        pytest.skip("no such option")
    for order in loss.orders[1 if which == "out" else 0 :]:
        for shape in [(12, 8), (96,), (1,) * 30 + (96,), (4, 2, 12)]:
            case = loss.case(rng, (8, 12), np.float32)
            if "weight" in loss.options:
                case = case.but(weight=rng.uniform(1, 2, 12).astype(np.float32))
            out = np.empty((8, 12), np.float32)
            given = {"out": out} if order else {}
            array = {"weight": case.options.get("weight"), "out": out}.get(
                which, getattr(case, which, None)
            )
            if array is None:
                pytest.skip("no such argument")
            if array.size != 96:
                shape = {8: (2, 4), 12: (4, 3)}[array.size]
            rights = [case.call(order, **{option: OPTIONS[option]})]
            if which == "scores" and not loss.has_target:  # of any shape they are logits
                other = case.but(scores=case.scores.reshape(shape))
                rights.append(other.call(order, **{option: OPTIONS[option]}))
            hostile = Hostile(OPTIONS[option], functools.partial(_reshape, array, shape))
            try:
                results = case.call(order, **{option: hostile}, **given)
            except ValueError as error:
                assert "shape" in str(error) or "axes" in str(error)  # noqa: PT017
            else:
                assert any(_nearly_same(results, right) for right in rights)


@every_loss
def test_options_that_make_the_output_read_only(loss, rng):
    """Either nothing is written to it, or it was still writeable when it was checked."""
    options = {_number_of(loss), "base"} & set(loss.options)
    for option, order in itertools.product(sorted(options), loss.orders[1:]):
        case = loss.case(rng, (8, 12), np.float64)
        out = np.full((8, 12), 7.0)
        hostile = Hostile(OPTIONS[option], lambda out=out: out.setflags(write=False))
        with pytest.raises(ValueError, match="out is read-only"):
            case.call(order, out=out, **{option: hostile})
        assert (out == 7).all()


@pytest.mark.parametrize(
    ("loss", "order"),
    [pytest.param(loss, order, id=f"{order}-{loss}") for loss in LOSSES for order in loss.orders],
)
def test_options_that_free_an_argument(loss, order, rng):
    """The caller drops the last references during the call, which holds references of its own."""
    for slow in (False, True):
        case = loss.case(rng, (300, 200), np.float32)
        option = _number_of(loss)
        right = case.call(order, reduction="none", **{option: 0.25})
        arguments = [case.scores.copy(), case.target.copy()]
        if slow:
            arguments[0] = np.asfortranarray(arguments[0])[::1].byteswap().view(">f4")

        def clear(arguments=arguments):
            arguments.clear()
            gc.collect()
            _churn.append(np.full(60_000, np.nan, np.float32))

        function = loss.functions[order]
        hostile = {option: Hostile(0.25, clear)}
        results = function(*arguments, reduction="none", **hostile, **case.options)
        assert_same_bits(results, right)
        _churn.clear()


_churn = []


@every_loss
def test_options_that_raise_or_call_again(loss, rng):
    case = loss.case(rng, (8, 12), np.float32)
    right = case.call(1, denominator=2.0)

    def fail():
        raise KeyError("mine")

    for option in {_number_of(loss), "denominator", "base"} & set(loss.options):
        with pytest.raises((KeyError, TypeError)):
            case.call(1, **{option: Hostile(1, fail)})

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.call(1, **{_number_of(loss): Hostile(1, interrupt)})
    for option in {"denominator", "base"} & set(loss.options):
        right = case.call(1, **{option: 2.0})
        again = Hostile(
            2.0,
            lambda option=option, right=right: assert_same_bits(
                case.call(1, **{option: 2.0}), right
            ),
        )
        assert_same_bits(case.call(1, **{option: again}), right)


@every_loss
def test_reduction_of_a_class_of_its_own(loss, rng):
    case = loss.case(rng, (8, 12), np.float32)
    text = HostileText("sum")
    text.do = functools.partial(_reshape, case.scores, (96,))
    assert case.call(0, reduction=text) == case.call(0, reduction="sum")


@pytest.mark.timeout(120)
@every_loss
@pytest.mark.parametrize("layout", ["rows", "columns", "swapped"])
def test_a_thread_that_reshapes_meanwhile(loss, layout, rng, threads):
    """While the kernel runs without the GIL, and between any two steps of the slow path."""
    threads(2)
    case = loss.case(rng, (400, 30), np.float32, reduction="none")
    scores = case.scores
    if layout == "columns":
        scores = np.asfortranarray(scores)
    if layout == "swapped":
        scores = scores.byteswap().view(">f4")
    right = case.call(1)
    case = case.but(scores=scores)

    def reshape():
        for shape in ((1,) * 20 + (400, 30), (400, 30)):
            scores.shape = shape
            np.empty((1,) * 21)  # takes the place of what was freed

    done = 0
    with meanwhile(reshape):
        until = time.monotonic() + 30
        while done < 30 and time.monotonic() < until:
            try:
                losses, grad = case.call(1)
            except ValueError as error:
                assert "shape" in str(error)  # noqa: PT017  (a race: either is right)
                continue
            assert losses.size == right[0].size
            assert_same_bits(grad.reshape(400, 30), right[1])
            done += 1
    assert done == 30


@every_loss
def test_an_object_whose_end_reshapes(loss, rng):
    """The garbage collector may run its finalizer at any allocation during the call."""
    case = loss.case(rng, (8, 12), np.float32, reduction="none")
    rights = [case.all()]
    if not loss.has_target:  # of any shape they are logits
        rights.append(case.but(scores=case.scores.reshape(12, 8)).all())
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(50):
            case.scores.shape = (8, 12)
            ring = type("Ring", (), {})()
            ring.me = ring
            weakref.finalize(ring, _reshape, case.scores, (12, 8))
            del ring
            try:
                results = case.all()
            except ValueError as error:
                assert "shape" in str(error)  # noqa: PT017
            else:
                assert any(_nearly_same(results, right) for right in rights)
    finally:
        gc.set_threshold(*before)


# ------------------------------------------------------------------------------------- odd arrays


@every_loss
@pytest.mark.parametrize("ndim", [9, 31, 33, 50, 63])
def test_many_axes(loss, ndim, rng):
    """As many axes as NumPy allows."""
    case = loss.case(rng, (2, 3, 5), np.float32, reduction="none")
    right = case.all()
    ones = (1,) * (ndim - 3)
    each = case.target.ndim
    case = case.but(
        scores=case.scores.reshape(2, 3, *ones, 5),
        target=case.target.reshape(2, 3, *ones, *case.target.shape[2:]),
    )
    results = case.all()
    assert results[0].ndim == ndim - 3 + (each if loss.indices else right[0].ndim)
    for a, b in zip(results, right, strict=True):
        assert_same_bits(a.reshape(b.shape), b)
    out = np.empty_like(case.scores)
    assert_same_bits(case.call(1, out=out)[1], results[1])


@every_class_loss
def test_axes_repeated_without_end(loss, rng):
    """2 ** 40 classes of stride 0: no result can be so long, and no length overflows."""
    scores = np.broadcast_to(np.float32(0.5), (1 << 40, 3))
    target = np.zeros(3, int)
    if not loss.indices:
        target = np.broadcast_to(np.float32(0), (1 << 40, 3))
    if loss.reads_one:  # of however many classes
        right = {"log_loss": np.log(2), "nll_loss": -0.5}[loss.name]
        assert loss.functions[0](scores, target, axis=0) == pytest.approx(right)
    for function in loss.functions[loss.reads_one : 2]:
        with pytest.raises(MemoryError):
            function(scores, target, axis=0)


@every_loss
def test_structured_and_subclassed_arrays(loss, rng):
    case = loss.case(rng, (4, 5), np.float32)
    right = case.call(1)
    records = np.zeros((4, 5), [("a", "f4"), ("b", "i1")])
    with pytest.raises(TypeError, match="dtype"):
        case.but(scores=records).call(0)
    records["a"] = case.scores
    assert_same_bits(case.but(scores=records["a"]).call(1), right)  # misaligned
    records = np.rec.array(records)
    assert_same_bits(case.but(scores=records.a).call(1), right)

    class Sub(np.ndarray):
        def __array_finalize__(self, other):
            if other is not None and other.shape == (4, 5):
                other.setflags(write=True)

    out = np.zeros((4, 5), np.float32).view(Sub)
    results = case.call(1, out=out)
    assert results[1] is out
    assert_same_bits(np.asarray(out), right[1])


@every_loss_of_two
def test_names_given_twice_or_by_other_objects(loss, rng):
    case = loss.case(rng, (4, 5), np.float32)
    function = loss.functions[0]
    for name in (loss.second, inspect.signature(function).parameters.copy().popitem(last=False)[0]):
        with pytest.raises(TypeError, match=r"multiple values|argument"):
            function(case.scores, case.target, **{name: case.target})
    names = collections.UserString("reduction")
    with pytest.raises(TypeError):
        function(case.scores, case.target, **{names: "sum"})

    class Name(str):
        __slots__ = ()

    assert function(case.scores, case.target, **{Name("reduction"): "sum"}) == case.call(
        0, reduction="sum"
    )


# ---------------------------------------------------------------------------------- want of memory

SCRIPT = """
    import sys
    import numpy as np, xentrs
    from xentrs import _xentrs
    from interference import assert_short_of_memory, limited
    from losses import LOSSES
    """


@linux
@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [1, 2])
def test_no_memory_for_results(python, count):
    """For gradients, Hessians and losses of samples, of every loss and every layout."""
    python(
        SCRIPT
        + """
    def target_of(loss, shape):
        entry = _xentrs.LOSSES[loss]
        if entry["second"] == "teacher_logits":
            return np.zeros(shape, np.float32)
        return np.zeros(shape[:1], np.int8) if entry["axis"] else np.zeros(shape, bool)

    xentrs.set_num_threads(int(sys.argv[1]))
    for loss, functions in sorted({loss.name: loss.functions for loss in LOSSES}.items()):
        for shape in ((1 << 20, 10), (8192, 1100)):
            x = np.full(shape, 0.125, np.float32)
            t = target_of(loss, shape)
            right = functions[0](x, t)
            for f in functions[1:]:
                strided = np.repeat(x, 2, -1)[:, ::2]
                for layout in (x, np.asfortranarray(x), strided, x.astype(">f4")):
                    assert_short_of_memory(lambda: f(layout, t))
                    # There is memory for the gradient, none for the Hessian.
                    if f in functions[2:]:
                        assert_short_of_memory(lambda: f(layout, t, out=layout))
            wide = x.astype(np.float64)
            assert_short_of_memory(lambda: functions[1](wide, t))
            assert functions[0](x, t) == right
        x = np.full((1 << 24, 1), 0.5, np.float32)
        t = target_of(loss, x.shape)
        assert_short_of_memory(lambda: functions[0](x, t, reduction="none"))
        assert_short_of_memory(lambda: functions[1](x, t, reduction="none"))
        """,
        arguments=[count],
        timeout=280,
    )


@linux
@pytest.mark.timeout(300)
def test_no_memory_beside_the_results(python):
    """For buffers of kernels, sums of blocks, weights, and copies on the slow path."""
    python(
        SCRIPT
        + """
    for count in (1, 3):
        xentrs.set_num_threads(count)
        x = np.zeros((1 << 16, 8), np.float32)
        xentrs.cross_entropy(x, np.zeros(1 << 16, np.int8))  # starts the threads
        for loss in (xentrs.cross_entropy, xentrs.log_loss):
            # Rows of so many classes that there is no memory for a tile of them.
            wide = np.broadcast_to(np.float32(0.5), (1 << 24, 3))
            if loss is not xentrs.log_loss:  # which looks at three numbers
                assert_short_of_memory(lambda: loss(wide, np.zeros(3, int), axis=0))
            smooth = {"label_smoothing": 0.1}
            assert_short_of_memory(lambda: loss(wide, np.zeros(3, int), axis=0, **smooth))
            # So many blocks that there is no memory for their sums.
            t = np.zeros(1 << 22, np.int8)
            many = np.broadcast_to(np.full(700, 1 / 700, "f4"), (1 << 22, 700))
            assert_short_of_memory(lambda: loss(many, t, label_smoothing=0.1))
            del t
            row = np.full((1, 1 << 24), 0.5, np.float32)
            weight = np.ones(1 << 24, np.float32)
            assert_short_of_memory(lambda: loss(row, [0], weight=weight, label_smoothing=0.1))
            assert_short_of_memory(lambda: loss(row.astype("f8").astype(">f8"), [0]))
            assert_short_of_memory(lambda: loss(row, np.eye(1, 1 << 24, dtype=np.int8)))
        row = np.zeros((2, 1 << 24), np.float32)
        weight = np.ones(1 << 24, np.float32)
        f = xentrs.binary_cross_entropy_with_logits
        f(row, row > 1, weight=weight, pos_weight=weight)
        assert_short_of_memory(lambda: f(row, row > 1, weight=weight, pos_weight=weight))
        """,
        timeout=280,
    )


@linux
@pytest.mark.timeout(120)
def test_no_memory_for_threads(python):
    """The calling thread then does all of the work."""
    python(
        SCRIPT
        + """
    x = np.random.default_rng(0).normal(size=(1 << 17, 8)).astype("f4")
    t = np.zeros(1 << 17, int)
    xentrs.set_num_threads(1)
    right = xentrs.cross_entropy(x, t)
    xentrs.set_num_threads(64)
    assert limited(lambda: xentrs.cross_entropy(x, t), 16 << 20) == right
    xentrs.set_num_threads(3)
    assert xentrs.cross_entropy(x, t) == right
        """
    )


@linux
@pytest.mark.parametrize("how", ["refused", "freed"])
def test_tensors_that_cannot_be_made_leave_nothing(python, how):
    """The class of tensors fails, before or after it has taken over the memory."""
    python(
        """
    import ctypes, resource, sys
    from ctypes import POINTER, c_int, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
    from ctypes import c_void_p
    from xentrs import _xentrs

    class Description(ctypes.Structure):
        _fields_ = [
            ("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32), ("ndim", c_int32),
            ("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16), ("shape", c_void_p),
            ("strides", c_void_p), ("byte_offset", c_uint64),
        ]

    class Owned(ctypes.Structure):
        _fields_ = [
            ("major", c_uint32), ("minor", c_uint32), ("context", c_void_p), ("free", c_void_p),
            ("flags", c_uint64), ("description", Description),
        ]

    Make = ctypes.PYFUNCTYPE(c_int, POINTER(Owned), c_void_p)
    Describe = ctypes.PYFUNCTYPE(c_int, c_void_p, POINTER(Description))

    class Exchange(ctypes.Structure):
        _fields_ = [
            ("major", c_uint32), ("minor", c_uint32), ("older", c_void_p),
            ("unused", c_void_p * 2), ("make", Make), ("describe", Describe),
        ]

    numbers, one, step = (ctypes.c_float * 4)(), (c_int64 * 1)(4), (c_int64 * 1)(1)
    made = []

    @Make
    def make(owned, result):
        made.append(owned.contents.description.ndim)
        if sys.argv[1] == "freed":
            ctypes.PYFUNCTYPE(None, c_void_p)(owned.contents.free)(ctypes.addressof(owned.contents))
        return -1

    @Describe
    def describe(tensor, found):
        found[0] = Description(
            ctypes.addressof(numbers), 1, 0, 1, 2, 32, 1, ctypes.addressof(one),
            ctypes.addressof(step), 0,
        )
        return 0

    exchange = Exchange(1, 0, None, (c_void_p * 2)(), make, describe)
    new = ctypes.pythonapi.PyCapsule_New
    new.argtypes, new.restype = [c_void_p, ctypes.c_char_p, c_void_p], ctypes.py_object

    class Tensor:
        name = b"dlpack_exchange_api"
        __dlpack_c_exchange_api__ = new(ctypes.addressof(exchange), name, None)

    def size():
        return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

    _xentrs.use_tensors(Tensor)
    for i in range(60):
        try:
            _xentrs.new_tensor(Tensor(), (1 << 22, 1))
        except RuntimeError as error:
            assert "no tensor" in str(error)
        else:
            raise AssertionError
        if i == 9:
            before = size()
    assert made == [2] * 60
    assert size() - before < 64 << 20, size() - before
    # So many numbers that their size in bytes overflows.
    for shape in ((1 << 62, 2), (1 << 40, 1 << 40), (1 << 60, 1)):
        try:
            _xentrs.new_tensor(Tensor(), shape)
        except MemoryError:
            pass
        else:
            raise AssertionError
        """,
        arguments=[how],
    )


# ----------------------------------------------------------------------- class indices as floats

FLOATS = [np.float16, np.float32, np.float64, ">f4", ">f8", np.longdouble]


@every_index_loss
@pytest.mark.parametrize("kind", FLOATS, ids=lambda k: np.dtype(k).str)
def test_whole_floats_are_class_indices(loss, kind, rng):
    for shape, axis in [((7, 5), -1), ((5,), 0), ((3, 5, 4), 1), ((5, 6), 0), ((0, 3), -1)]:
        case = loss.case(rng, (*np.delete(shape, axis), shape[axis]), np.float32)
        case = case.but(scores=np.moveaxis(case.scores, -1, axis), axis=axis)
        target = np.where(rng.random(case.target.shape) < 0.2, -100, case.target)
        right = case.but(target=target).call(1, reduction="none")
        given = target.astype(kind)
        assert_same_bits(case.but(target=given).call(1, reduction="none"), right)
        strided = np.repeat(given[..., None], 3, -1)[..., 1] if given.ndim else given
        assert_same_bits(case.but(target=strided).call(1, reduction="none"), right)
    nested = given.astype(float).tolist()
    assert_same_bits(case.but(target=nested).call(1, reduction="none"), right)


@every_index_loss
def test_large_whole_floats(loss, rng):
    """They are compared exactly, and out of range as integers would be."""
    case = loss.case(rng, (4, 5), np.float64)
    for value in (5.0, -1.0, 2.0**53, -(2.0**62), 2.0**63, 1e300):
        target = case.target.astype(float)
        target[2] = value
        with pytest.raises(IndexError, match=r"target\[2\] is .*\[0, 5\)"):
            case.but(target=target).call(1)
    ignored = 2**62 + 2**10
    target[2] = ignored
    ones = case.target.copy()
    ones[2] = ignored
    right = case.but(target=ones).call(1, ignore_index=ignored)
    assert_same_bits(case.but(target=target).call(1, ignore_index=ignored), right)


@every_index_loss
@pytest.mark.parametrize("value", [0.5, -100.5, np.nan, np.inf, -np.inf, 1e-3])
@pytest.mark.parametrize("kind", FLOATS[:4], ids=lambda k: np.dtype(k).str)
def test_fractions_are_no_class_indices(loss, value, kind, rng):
    case = loss.case(rng, (3, 4, 5), np.float32)
    target = case.target.astype(kind)
    target[2, 1] = value
    for order in loss.orders:
        outs = {"out": np.full((3, 4, 5), 7, "f4")} if order else {}
        with pytest.raises(ValueError, match=r"target\[2, 1\] is") as raised:
            case.but(target=target).call(order, **outs)
        assert str(target[2, 1]) in str(raised.value)
        assert ("missing values" in str(raised.value)) == np.isnan(value)
        assert all((out == 7).all() for out in outs.values())
    one = case.but(scores=case.scores[0, 0], target=np.array(value, kind))
    with pytest.raises(ValueError, match="target is"):
        one.call(0)
    long = loss.case(rng, (600_000, 2), np.float32)
    target = long.target.astype(kind)
    target[[599_000, 599_500]] = value
    with pytest.raises(ValueError, match=r"target\[599000\]"):
        long.but(target=target).call(0)


# ------------------------------------------------------------------------------- one-hot, or not

BAD_ROWS = {
    "two ones": [1, 0, 1, 0],
    "none": [0, 0, 0, 0],
    "a two": [0, 2, 0, 0],
    "adds up": [2, -1, 0, 0],
    "minus": [-1, 0, 0, 0],
    "wraps": [0, 0, 0, 127],
}


def _one_hot(rng, shape):
    return np.eye(shape[-1], dtype=int)[rng.integers(0, shape[-1], shape[:-1])]


@every_soft_loss
@pytest.mark.parametrize("kind", ["?", "i1", "u1", "i2", "u4", "i8", "u8", ">i4"])
def test_one_hot_rows(loss, kind, rng):
    for shape, axis in [((6, 4), -1), ((4,), 0), ((4, 6), 0), ((3, 4, 5), 1), ((5, 1), 1)]:
        case = loss.case(rng, (*np.delete(shape, axis), shape[axis]), np.float64)
        hot = np.moveaxis(_one_hot(rng, case.scores.shape), -1, axis)
        case = case.but(scores=np.moveaxis(case.scores, -1, axis), axis=axis)
        right = case.but(target=hot.astype(float)).call(1)
        assert_same_bits(case.but(target=hot.astype(kind)).call(1), right)
        if kind != ">i4":
            assert_same_bits(case.but(target=hot.astype(kind).tolist()).call(1), right)
        none = case.but(scores=case.scores[:0], target=hot[:0].astype(kind))
        if axis != 0:
            assert np.isnan(none.call(0))


@every_soft_loss
@pytest.mark.parametrize("bad", BAD_ROWS, ids=str)
@pytest.mark.parametrize("kind", ["?", "i1", "u1", "i8", "u8"])
def test_integers_that_are_not_one_hot(loss, bad, kind, rng):
    row = np.array(BAD_ROWS[bad])
    if (row.min() < 0 and kind in ("?", "u1", "u8")) or (row.max() > 1 and kind == "?"):
        pytest.skip("not of this type")
    for shape, at, axis in [
        ((4,), (), 0),
        ((6, 4), (3,), -1),
        ((6, 4), (3,), 0),
        ((3, 5, 4), (1, 4), -1),
        ((3, 5, 4), (1, 4), 1),
        ((200_000, 4), (199_999,), 1),
    ]:
        case = loss.case(rng, shape, np.float32)
        hot = _one_hot(rng, shape).astype(kind)
        hot[at] = row
        position = [str(i) for i in at]
        position.insert(axis % len(shape), ":")
        hot, scores = np.moveaxis(hot, -1, axis), np.moveaxis(case.scores, -1, axis)
        for order in loss.orders:
            outs = {"out": np.full(scores.shape, 7, "f4")} if order else {}
            with pytest.raises(ValueError, match="one-hot") as raised:
                case.but(scores=scores, target=hot, axis=axis).call(order, **outs)
            message = str(raised.value)
            assert (f"target[{', '.join(position)}]" if at else "target is [") in message
            assert "binary_cross_entropy_with_logits" in message
            assert all((out == 7).all() for out in outs.values())


@every_soft_loss
@pytest.mark.parametrize("kind", ["?", "i8"])
def test_as_many_ones_as_rows_but_not_one_in_each(loss, kind, rng):
    case = loss.case(rng, (4, 2), np.float32)
    for first, rows in (
        (1, [[0, 1], [1, 1], [0, 0], [1, 0]]),
        (0, [[0, 0], [1, 0], [0, 1], [1, 1]]),
    ):
        with pytest.raises(ValueError, match=rf"target\[{first}, :\]"):
            case.but(target=np.array(rows, kind)).call(0)


@every_soft_loss
def test_one_hot_on_another_axis(loss, rng):
    """PyTorch's layout, with `axis` left out."""
    case = loss.case(rng, (3, 6, 4), np.float32)
    hot = np.moveaxis(_one_hot(rng, (3, 6, 4)), -1, 1)
    case = case.but(scores=np.moveaxis(case.scores, -1, 1), target=hot)
    with pytest.raises(ValueError, match="pass axis=1"):
        case.call(0)
    case.call(0, axis=1)


def test_labels_of_margins():
    """N margins and N labels are not one sample of N classes."""
    for function, scores in (
        (xentrs.cross_entropy, [2.0, -1.0, 3.0]),
        (xentrs.log_loss, [0.1, 0.9, 0.8]),
    ):
        for labels in ([1, 0, 1], np.array([1, 0, 1]), np.array([True, False, True])):
            for column in (False, True):
                x = np.array(scores)[:, None] if column else scores
                t = np.reshape(labels, (3, 1)) if column else labels
                with pytest.raises(ValueError, match="binary_cross_entropy_with_logits"):
                    function(x, t)
    # The binary loss takes them, and floats remain probabilities.
    assert xentrs.binary_cross_entropy_with_logits([2.0, -1.0, 3.0], [1, 0, 1]) < 1
    assert xentrs.cross_entropy([2.0, -1.0, 3.0], [1.0, 0.0, 1.0]) > 0
    many = np.array([[3, 0], [7, -1]])
    assert np.isfinite(xentrs.binary_cross_entropy_with_logits(many.astype("f4"), many))


@linux
def test_a_check_takes_little_memory(python):
    """There is memory for a part of 100 million numbers at a time."""
    python(
        SCRIPT
        + """
    x = np.broadcast_to(np.float32([0.5, 0.5]), (1 << 23, 2))
    t = np.zeros((1 << 23, 2), np.int8)
    t[:, 1] = 1
    t[-1] = 1
    def call():
        try:
            xentrs.cross_entropy(x, t)
        except ValueError as error:
            assert "target[8388607, :]" in str(error)
            return True
    assert limited(call, 24 << 20)
        """
    )


# ------------------------------------------------------------------------------------- sequences


@every_loss
def test_integers_in_sequences_are_float64(loss, rng):
    """As in SciPy; integer arrays stay refused."""
    whole = rng.integers(0, 2, (4, 3))
    case = loss.case(rng, (4, 3), np.float64)
    right = case.but(scores=whole.astype(float)).call(1)
    for nested in (
        whole.tolist(),
        tuple(map(tuple, whole.tolist())),
        [tuple(row) for row in whole.tolist()],
        list(whole),  # arrays in a list
        [list(row) for row in whole],  # NumPy's numbers
        collections.deque(whole.tolist()),
        collections.UserList(whole.tolist()),
    ):
        results = case.but(scores=nested).call(1)
        assert_same_bits(results, right)
        assert results[1].dtype == np.float64
    for typed in (whole, whole.astype("u1"), memoryview(whole), whole.view(np.matrix)):
        with pytest.raises(TypeError, match="float32 or float64"):
            case.but(scores=typed).call(0)
    with pytest.raises(TypeError, match="bool"):
        case.but(scores=(whole > 0).tolist()).call(0)


def test_sequences_that_have_a_type():
    target = 1
    assert xentrs.cross_entropy(range(3), target) == xentrs.cross_entropy([0.0, 1.0, 2.0], target)
    with pytest.raises(TypeError, match="int"):
        xentrs.cross_entropy(array.array("i", [0, 1, 2]), target)
    assert xentrs.binary_cross_entropy_with_logits(0, 1) == pytest.approx(np.log(2))
    with pytest.raises(TypeError, match="bool"):
        xentrs.binary_cross_entropy_with_logits(False, 1)
    with pytest.raises(TypeError, match="int64"):
        xentrs.binary_cross_entropy_with_logits(np.int64(0), 1)


# ------------------------------------------------------------------- refused before it is converted


class Untouchable:
    """An object that fails the test if NumPy converts it."""

    shape, ndim = (4, 5), 2

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("converted")

    __len__ = __iter__ = __getitem__ = compute = to_numpy = __array__


def _of(module, name="Frame", **members):
    return type(name, (Untouchable,), {"__module__": module, **members})


class Float64Dtype:
    """A stand-in for the dtype of that name in pandas."""

    numpy_dtype = np.dtype("f8")

    def __str__(self):
        return "Float64"


STAND_INS = {
    "pandas table": lambda: _of("pandas.core.frame")(dtypes=[np.dtype("f8"), Float64Dtype()]),
    "pandas series": lambda: _of("pandas")(dtype=Float64Dtype(), dtypes=Float64Dtype()),
    "pandas index": lambda: _of("pandas.core.indexes.base")(dtype=Float64Dtype()),
    "pandas subclass": lambda: type("Geo", (_of("pandas"),), {})(dtypes=[Float64Dtype()] * 3),
    "pandas mixed": lambda: _of("pandas")(dtypes=[np.dtype("f8"), np.dtype("?")]),
    "pandas objects": lambda: _of("pandas")(dtypes=[np.dtype("f8"), np.dtype("O")]),
    "dask array": lambda: _of("dask.array.core", "Array")(dtype=np.dtype("f4")),
    "dask table": lambda: _of("dask.dataframe.dask_expr._collection")(),
    "lazy": lambda: _of("xarray", __dask_graph__=lambda self: {})(dtype=np.dtype("f4")),
    "integers": lambda: _of("h5py", "Dataset")(dtype=np.dtype("M8[s]")),
}


@every_loss
@pytest.mark.parametrize("kind", STAND_INS)
def test_refused_without_converting(loss, kind, rng):
    case = loss.case(rng, (4, 5), np.float32)
    hint = {"pandas": "to_numpy(", "dask": ".compute()", "lazy": ".compute()", "integers": "M8"}
    hint = hint[kind.split()[0]].replace("M8", "datetime64")
    name = loss.input
    for argument in ({name, loss.second, "weight"} & {name, loss.second, *loss.options}) - {None}:
        value = STAND_INS[kind]()
        given = {"weight": value} if argument == "weight" else {}
        given |= {"scores": value} if argument == name else {}
        given |= {"target": value} if argument == loss.second else {}
        for order in loss.orders:
            with pytest.raises(TypeError) as raised:
                case.but(**given).call(order)
            assert hint in str(raised.value)
            assert argument in str(raised.value)


def test_pandas(rng):
    pd = pytest.importorskip("pandas")
    x = rng.normal(size=(6, 3))
    t = rng.integers(0, 3, 6)
    right = xentrs.cross_entropy(x, t)
    table = pd.DataFrame(x)
    assert xentrs.cross_entropy(table, t) == right
    assert xentrs.cross_entropy(table, pd.Series(t)) == right
    assert xentrs.cross_entropy(table, pd.Index(t)) == right
    assert xentrs.cross_entropy(table, pd.Series(t, dtype="category")) == right
    assert xentrs.cross_entropy(table, pd.Series(t).astype("float32")) == right
    assert xentrs.cross_entropy(table.astype(pd.SparseDtype("float64")), t) == right
    for bad in ("Float64", "Float32"):
        with pytest.raises(TypeError, match=rf"logits is .*to_numpy\('{bad.lower()}'\)"):
            xentrs.cross_entropy(table.astype(bad), t)
    for bad in (pd.Series(t, dtype="Int64"), pd.Series([0, 1, None, 2, 0, 1], dtype="Int8")):
        with pytest.raises(TypeError, match=r"missing values.*to_numpy"):
            xentrs.cross_entropy(x, bad)
    assert xentrs.cross_entropy(x, pd.Series(t, dtype="Int64").to_numpy("int64")) == right
    with pytest.raises(ValueError, match=r"target\[2\] is nan \(missing values"):
        xentrs.cross_entropy(x, pd.Series([0, 1, None, 2, 0, 1]))
    with pytest.raises(TypeError, match=r"cat\.codes"):
        xentrs.cross_entropy(x, pd.Series(list("abcabc"), dtype="category"))
    mixed = pd.DataFrame({"a": x[:, 0], "b": x[:, 1] > 0, "c": x[:, 2]})
    with pytest.raises(TypeError, match="to_numpy"):
        xentrs.cross_entropy(mixed, t)
    with pytest.raises(TypeError, match="object"):
        xentrs.cross_entropy(x, pd.Series(list("abcabc"), dtype=object))


def test_missing_values_among_objects(rng):
    x = rng.normal(size=(3, 2))
    for t in ([0, 1, None], np.array([0, 1, np.nan], dtype=object)):
        with pytest.raises(TypeError, match=rf"missing values: target\[2\] is {t[2]}"):
            xentrs.cross_entropy(x, t)
    with pytest.raises(TypeError, match=r"missing values: logits\[1, 0\] is None"):
        xentrs.cross_entropy([[0.5, 1.0], [None, 1.0]], [0, 1])
    ragged = np.empty(3, dtype=object)
    ragged[:] = [np.arange(2), np.arange(3), 1]
    with pytest.raises(TypeError, match=r"integer or bool$"):
        xentrs.cross_entropy(x, np.array([0, 1, "a"], dtype=object))
    with pytest.raises(
        TypeError, match=r"integer or bool; it is an array of arrays, but target\[0"
    ):
        xentrs.cross_entropy(x, ragged)


def test_arrow(rng):
    pa = pytest.importorskip("pyarrow")
    x, t = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    right = xentrs.cross_entropy(x, t)
    assert xentrs.cross_entropy(x, pa.array(t)) == right
    assert xentrs.cross_entropy(x, pa.chunked_array([t[:2], t[2:]])) == right
    for missing in (pa.array([0, 1, None, 2, 0, 1]), pa.chunked_array([[0, None, 1], [2, 0, 1]])):
        with pytest.raises(ValueError, match="target has missing values"):
            xentrs.cross_entropy(x, missing)
    table = pa.table({"a": x[:, 0], "b": [*x[:5, 1], None], "c": x[:, 2]})
    with pytest.raises(ValueError, match="logits has missing values: 1"):
        xentrs.cross_entropy(table, t)
    pd = pytest.importorskip("pandas")
    arrow = pd.DataFrame(x).astype("double[pyarrow]")
    with pytest.raises(TypeError, match=r"to_numpy\('float64'\)"):
        xentrs.cross_entropy(arrow, t)


def test_polars(rng):
    pl = pytest.importorskip("polars")
    x, t = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    right = xentrs.cross_entropy(x, t)
    assert xentrs.cross_entropy(pl.DataFrame(x), pl.Series(t)) == right
    with pytest.raises(ValueError, match="target has missing values"):
        xentrs.cross_entropy(x, pl.Series([0, 1, None, 2, 0, 1]))
    with pytest.raises(ValueError, match="logits has missing values"):
        xentrs.cross_entropy(pl.DataFrame({"a": [0.5, None], "b": [1.0, 2.0]}), [0, 1])


def test_dask(rng):
    da = pytest.importorskip("dask.array")
    x, t = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)

    def computed(block):
        raise AssertionError("computed")

    lazy = da.from_array(x, chunks=2).map_blocks(computed, dtype=float, meta=np.empty((0, 0)))
    with pytest.raises(TypeError, match=r"logits.*logits\.compute\(\)"):
        xentrs.cross_entropy(lazy, t)
    with pytest.raises(TypeError, match=r"target\.compute\(\)"):
        xentrs.cross_entropy(x, da.from_array(t))
    right = xentrs.cross_entropy(x, t)
    assert xentrs.cross_entropy(da.from_array(x, chunks=2).compute(), t) == right
    xr = pytest.importorskip("xarray")
    assert xentrs.cross_entropy(xr.DataArray(x), t) == right
    with pytest.raises(TypeError, match="compute"):
        xentrs.cross_entropy(xr.DataArray(lazy), t)
