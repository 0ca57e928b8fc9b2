"""`xentrs.dask`: losses and meters of arrays in chunks."""

import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest

import xentrs
import xentrs.dask

NEEDED = "runs where Dask is: make test-pipelines"
dask = pytest.importorskip("dask", reason=NEEDED)
da = pytest.importorskip("dask.array", reason=NEEDED)
distributed = pytest.importorskip("distributed", reason=NEEDED)
Delayed = pytest.importorskip("dask.delayed", reason=NEEDED).Delayed

N, C = 60, 24
RNG = np.random.default_rng(0)
X = RNG.normal(0, 3, (N, C)).astype(np.float32)
X[7, 3] += 40  # a sure sample: its loss is tiny
T = RNG.integers(0, C, N)
T[7] = 3
T[::9] = -100
Q = RNG.dirichlet(np.ones(C), N)
S = RNG.uniform(0.5, 2, N)
W = RNG.uniform(0.5, 2, C)
REFERENCE = (X + RNG.normal(0, 0.1, X.shape)).astype(np.float32)
GROUP = np.arange(N) // 5

ROWS = ((60,), (6,) * 10, (1, 7, 50, 2))
CLASSES = ((24,), (12, 12), (1, 20, 3), (5, 5, 5, 5, 4))
OPTIONS = {
    "": {},
    "weights": {"weight": W, "sample_weight": S},
    "smoothing": {"label_smoothing": 0.1, "weight": W, "ignore_index": (-100, 4)},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(autouse=True)
def scheduler():
    """Run tasks of tests without a cluster one after the other, which takes the least time."""
    with dask.config.set(scheduler="synchronous"):
        yield


def state(meter):
    return {name: array.tobytes() for name, array in meter.to_state().items()}


def same(a, b):
    assert isinstance(a, xentrs.CrossEntropyMeter)
    assert state(a) == state(b)
    assert a.compute() == b.compute()


# cross_entropy


@every_option
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_loss(dtype, reduction, options):
    """The rows' chunks change no bit, the classes' no more than rounding."""
    x = X.astype(dtype)
    right = xentrs.cross_entropy(x.astype(np.float64), T, reduction=reduction, **options)
    for classes in CLASSES:
        found = set()
        for rows in ROWS:
            lazy = da.from_array(x, chunks=(rows, classes))
            loss = xentrs.dask.cross_entropy(lazy, T, reduction=reduction, **options)
            assert isinstance(loss, da.Array)
            assert (loss.shape, loss.dtype) == ((), np.float64)
            found.add(float(loss.compute()))
        assert len(found) == 1
        # Each loss is computed in the dtype of the logits, within 4 ULP.
        eps = np.finfo(np.float64 if dtype == "float64" else np.float32).eps
        assert found.pop() == pytest.approx(right, rel=float(4 * eps))


@every_option
@pytest.mark.parametrize("classes", CLASSES)
def test_single_losses(classes, options):
    right = xentrs.cross_entropy(X.astype(np.float64), T, reduction="none", **options)
    lazy = da.from_array(X, chunks=((7, 50, 3), classes))
    losses = xentrs.dask.cross_entropy(lazy, T, reduction="none", **options)
    assert losses.chunks == ((7, 50, 3),)
    assert losses.dtype == np.float32
    found = losses.compute()
    assert found.dtype == np.float32
    if not options:
        assert 0 < found[7] < 1e-9
        assert (np.abs(found - right) <= 4 * np.spacing(right.astype(np.float32))).all()
    np.testing.assert_allclose(found, right, rtol=2e-6)


def test_is_lazy_and_takes_part_in_arithmetic():
    def computed(block):
        raise AssertionError("computed")

    lazy = da.from_array(X, chunks=10).map_blocks(computed, dtype=X.dtype, meta=X[:0])
    loss = xentrs.dask.cross_entropy(lazy, T)
    losses = xentrs.dask.cross_entropy(lazy, T, reduction="none")
    meter = xentrs.dask.evaluate(lazy, T)
    assert dask.is_dask_collection(loss)
    assert dask.is_dask_collection(losses)
    assert isinstance(meter, Delayed)
    for one in (loss, losses, meter):
        with pytest.raises(AssertionError, match="computed"):
            one.compute()
    loss = xentrs.dask.cross_entropy(da.from_array(X, chunks=10), T)
    assert float((2 * loss + 1).compute()) == 2 * float(loss.compute()) + 1


def test_base_and_denominator():
    lazy = da.from_array(X, chunks=(13, 10))
    total = float(xentrs.dask.cross_entropy(lazy, T, reduction="sum").compute())
    by_seven = xentrs.dask.cross_entropy(lazy, T, denominator=7).compute()
    assert float(by_seven) == pytest.approx(total / 7, rel=1e-15)
    in_bits = xentrs.dask.cross_entropy(lazy, T, reduction="sum", base=2).compute()
    assert float(in_bits) == pytest.approx(total / np.log(2), rel=1e-15)


@pytest.mark.parametrize(
    "options", [{}, {"denominator": 5.0}, {"reduction": "sum"}, {"reduction": "none"}]
)
def test_nothing_counts(options):
    lazy = da.from_array(X, chunks=(13, 10))
    t = np.full(N, -100)
    right = xentrs.cross_entropy(X, t, **options)
    found = xentrs.dask.cross_entropy(lazy, t, **options).compute()
    np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("chunks", [(13, 24), (13, 10)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mean_over_no_weight(chunks, smoothing):
    lazy, t = da.from_array(X, chunks=chunks), np.zeros(N, np.int64)
    options = {"weight": np.arange(C) > 0, "label_smoothing": smoothing}
    right = xentrs.cross_entropy(X, t, **options)
    assert right == np.inf if smoothing else np.isnan(right)
    np.testing.assert_equal(float(xentrs.dask.cross_entropy(lazy, t, **options).compute()), right)
    meter = xentrs.dask.evaluate(lazy, t, **options).compute()
    np.testing.assert_equal(meter.compute().loss, right)


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_class_axis(axis):
    """Any axis, and chunks on all."""
    x = np.moveaxis(X.reshape(6, 10, C), -1, axis)
    t = T.reshape(6, 10)
    right = xentrs.cross_entropy(x.astype(np.float64), t, axis=axis)
    for chunks in ((2, 4, 5), -1, (6, 24, 24)):
        lazy = da.from_array(x, chunks=chunks)
        assert float(xentrs.dask.cross_entropy(lazy, t, axis=axis).compute()) == pytest.approx(
            right, rel=1e-6
        )
        single = xentrs.dask.cross_entropy(lazy, t, axis=axis, reduction="none")
        np.testing.assert_allclose(
            single.compute(), xentrs.cross_entropy(x, t, axis=axis, reduction="none"), rtol=2e-6
        )
        meter = xentrs.dask.evaluate(lazy, t, axis=axis).compute()
        same(meter, xentrs.CrossEntropyMeter(axis=axis).update(x, t))


def test_one_sample():
    lazy = da.from_array(X[3], chunks=5)
    right = xentrs.cross_entropy(X[3], T[3])
    for reduction in ("mean", "none"):
        loss = xentrs.dask.cross_entropy(lazy, T[3], reduction=reduction)
        assert float(loss.compute()) == pytest.approx(right, rel=1e-6)
    same(xentrs.dask.evaluate(lazy, T[3]).compute(), xentrs.CrossEntropyMeter().update(X[3], T[3]))


@pytest.mark.parametrize("chunks", [(5, -1), (5, 7)])
def test_no_sample(chunks):
    lazy, t = da.zeros((0, C), chunks=chunks), T[:0]
    assert np.isnan(xentrs.dask.cross_entropy(lazy, t).compute())
    assert xentrs.dask.cross_entropy(lazy, t, reduction="none").compute().shape == (0,)
    same(xentrs.dask.evaluate(lazy, t).compute(), xentrs.CrossEntropyMeter())


@pytest.mark.parametrize("classes", CLASSES)
def test_soft_targets(classes):
    right = xentrs.cross_entropy(X.astype(np.float64), Q, sample_weight=S, weight=W)
    found = set()
    for rows in ROWS:
        lazy = da.from_array(X, chunks=(rows, classes))
        target = da.from_array(Q, chunks=11)
        loss = xentrs.dask.cross_entropy(lazy, target, sample_weight=S, weight=W)
        found.add(float(loss.compute()))
        same(xentrs.dask.evaluate(lazy, target).compute(), xentrs.CrossEntropyMeter().update(X, Q))
    assert len(found) == 1
    assert found.pop() == pytest.approx(right, rel=1e-6)
    with pytest.raises(TypeError, match="reduction='none'"):
        xentrs.dask.cross_entropy(lazy, Q, reduction="none")


# evaluate


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("rows", ROWS)
def test_meter(rows, classes):
    """The same bits as of the whole array, for every chunk and every array beside it."""
    options = {"weight": W, "label_smoothing": 0.1, "top_k": (1, 3), "bins": 7, "per_class": True}
    arrays = {"sample_weight": S, "group": GROUP, "reference_logits": REFERENCE}
    right = xentrs.CrossEntropyMeter(**options).update(X, T, **arrays)
    lazy = {name: da.from_array(a, chunks=17) for name, a in arrays.items()}
    found = xentrs.dask.evaluate(
        da.from_array(X, chunks=(rows, classes)), da.from_array(T, chunks=8), **lazy, **options
    )
    assert isinstance(found, Delayed)
    same(found.compute(scheduler="threads", num_workers=2), right)


def test_columns_of_a_table():
    """Chunks of unknown sizes, as tables have them."""
    lazy = da.from_array(X, chunks=(13, -1))
    t = da.from_array(T, chunks=13)
    kept = da.from_array(T, chunks=13) >= 0
    x, y = lazy[kept], t[kept]
    right = xentrs.CrossEntropyMeter().update(X[T >= 0], T[T >= 0])
    same(xentrs.dask.evaluate(x, y).compute(), right)
    loss = xentrs.dask.cross_entropy(x, y).compute()
    assert float(loss) == pytest.approx(right.compute().loss, rel=1e-6)
    with pytest.raises(ValueError, match=r"target.*compute_chunk_sizes\(\)"):
        xentrs.dask.evaluate(x, t.rechunk(20)[kept.rechunk(20)])


# Errors


WRONG = {
    "integers": (lambda x, t: ((x > 0).astype(int), t, {}), TypeError, "dtype int64"),
    "length": (lambda x, t: (x, t[1:], {}), ValueError, r"target has shape \(59,\).*\(60,\)"),
    "axis": (lambda x, t: (x, t, {"axis": 2}), ValueError, "axis is 2"),
    "weights": (
        lambda x, t: (x, t, {"sample_weight": S[:5]}),
        ValueError,
        r"sample_weight has shape \(5,\)",
    ),
    "smoothing": (lambda x, t: (x, t, {"label_smoothing": 2}), ValueError, "label_smoothing"),
    "class weights": (
        lambda x, t: (x, t, {"weight": W[:5]}),
        ValueError,
        r"weight has shape \(5,\)",
    ),
    "a pair": (
        lambda x, t: (x, (t[:, None], da.ones((60, 1))), {}),
        TypeError,
        "xentrs.dask takes no pair",
    ),
    "names": (lambda x, t: (x, ["a"] * 60, {}), TypeError, "target has dtype <U1, but must be"),
    "objects": (
        lambda x, t: (x, t, {"sample_weight": np.full(60, None)}),
        TypeError,
        "sample_weight has dtype object, but must be",
    ),
    "a lazy weight": (
        lambda x, t: (x, t, {"weight": da.ones(C)}),
        TypeError,
        r"weight is a lazy Array of Dask, .*: pass weight\.compute\(\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("name", xentrs.dask.__all__)
def test_errors_come_before_the_work(name, case):
    make, kind, message = WRONG[case]
    x, t, options = make(da.from_array(X, chunks=7), da.from_array(T, chunks=9))
    with pytest.raises(kind, match=message):
        getattr(xentrs.dask, name)(x, t, **options)


CUT = [(25, -1), (20, 10), (-1, 5), ((1, 7, 50, 2), (23, 1))]


@pytest.mark.parametrize("chunks", CUT)
@pytest.mark.parametrize("name", xentrs.dask.__all__)
@pytest.mark.parametrize(
    ("place", "value", "ignored"),
    [(33, C, -100), (59, -1, (-100, 4)), (0, 2**40, None), (58, 1e30, -100), (33, 30.0, None)],
)
def test_a_class_that_does_not_exist(name, chunks, place, value, ignored):
    """The message is that of the whole arrays."""
    t = np.where(T == -100, 4, T)
    t = t.astype(float if isinstance(value, float) else t.dtype)
    t[place] = value
    with pytest.raises(IndexError, match=rf"target\[{place}\] is .* in \[0, {C}\)") as right:
        xentrs.cross_entropy(X, t, ignore_index=ignored)
    lazy = da.from_array(X, chunks=chunks)
    for target in (t, da.from_array(t, chunks=11)):
        one = getattr(xentrs.dask, name)(lazy, target, ignore_index=ignored)
        with pytest.raises(IndexError) as found:
            one.compute()
        assert str(found.value) == str(right.value)


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
@pytest.mark.parametrize("chunks", [(2, 4, 5), (3, 3, 3), -1])
def test_a_class_that_does_not_exist_of_several_axes(axis, chunks):
    x = np.moveaxis(X.reshape(6, 10, C), -1, axis)
    for place in ((5, 7), (2, 0), (0, 9)):
        t = np.zeros((6, 10), int)
        t[place] = 99
        lazy = da.from_array(x, chunks=chunks)
        with pytest.raises(IndexError) as right:
            xentrs.cross_entropy(x, t, axis=axis)
        for one in (
            xentrs.dask.cross_entropy(lazy, t, axis=axis),
            xentrs.dask.cross_entropy(lazy, t, axis=axis, reduction="none"),
            xentrs.dask.evaluate(lazy, t, axis=axis),
        ):
            with pytest.raises(IndexError) as found:
                one.compute()
            assert str(found.value) == str(right.value)


def test_a_class_that_does_not_exist_of_one_sample():
    for chunks in (5, -1):
        lazy = da.from_array(X[3], chunks=chunks)
        for name in xentrs.dask.__all__:
            with pytest.raises(IndexError, match=rf"^target is 99, .* in \[0, {C}\)"):
                getattr(xentrs.dask, name)(lazy, 99).compute()


def test_a_class_that_does_not_exist_is_found_at_once():
    """By the task that reads it: others do not wait for the slices of classes to be merged."""
    t = T.copy()
    t[0] = 99
    with pytest.raises(IndexError, match=r"target\[0\] is 99"):
        xentrs.dask._partial(
            {"logits": X[:, :5], "target": t},
            0,
            classes=C,
            axis=1,
            options={"ignore_index": (-100,)},
        )


@pytest.mark.parametrize("chunks", CUT)
@pytest.mark.parametrize("name", xentrs.dask.__all__)
def test_positions_in_other_messages(name, chunks):
    """They are those in the whole array, not in the chunk."""
    lazy, function = da.from_array(X, chunks=chunks), getattr(xentrs.dask, name)
    t = np.where(T == -100, 0, T).astype(float)
    t[[41, 57]] = 0.5, np.nan
    with pytest.raises(ValueError, match=r"^target\[(41|57)\] is (0.5|nan)"):
        function(lazy, t).compute()
    t[41] = 0
    with pytest.raises(ValueError, match=r"^target\[57\] is nan \(missing values\?\)"):
        function(lazy, t).compute()
    one_hot = np.eye(C, dtype=int)[np.where(T == -100, 0, T)]
    one_hot[43] = 1
    with pytest.raises(ValueError, match=r"^target\[43, :\] is \[1, 1"):
        function(lazy, one_hot).compute()
    with pytest.raises(ValueError, match=r"^target\[:, 43\] is \[1, 1"):
        function(lazy.T, one_hot.T, axis=0).compute()
    if name == "evaluate":
        weight = S.copy()
        weight[45] = -1
        with pytest.raises(ValueError, match=r"^sample_weight\[45\] is -1"):
            function(lazy, T, sample_weight=weight).compute()
        group = np.full(N, "a", object)
        group[46] = None
        with pytest.raises(TypeError, match=r"missing values: group\[46\] is None"):
            function(lazy, T, group=da.from_array(group, chunks=9)).compute()
        with pytest.raises(TypeError, match=r"missing values: group\[46\] is None"):
            function(lazy, T, group=group.tolist())


@pytest.mark.parametrize("name", xentrs.dask.__all__)
def test_positions_where_sizes_are_not_known(name):
    """They are those in a chunk, which is named."""
    lazy, t = da.from_array(X.reshape(6, 10, C), chunks=(2, 5, -1)), T.reshape(6, 10).copy()
    t[3, 7] = 99
    target = da.from_array(t, chunks=(2, 5))
    for axis, message in (
        (0, r"target\[1, 2\] of chunk \(1, 1\)"),
        (1, r"target\[1, 2\] of chunk"),
    ):
        kept = da.from_array(np.ones(lazy.shape[axis], bool), chunks=lazy.chunks[axis])
        rows = (slice(None),) * axis + (kept,)
        one = getattr(xentrs.dask, name)(lazy[rows], target[rows])
        with pytest.raises(IndexError, match=rf"^{message}.* is 99, but"):
            one.compute()


def test_chunks_of_classes_of_rows_of_unknown_sizes():
    """The places of the classes are known."""
    lazy, target = da.from_array(X, chunks=(20, 5)), da.from_array(T, chunks=20)
    kept = da.from_array(np.ones(len(X), bool), chunks=20)
    for reduction in ("mean", "sum"):
        found = xentrs.dask.cross_entropy(lazy[kept], target[kept], reduction=reduction).compute()
        assert found == xentrs.dask.cross_entropy(lazy, target, reduction=reduction).compute()


@pytest.mark.parametrize("name", xentrs.dask.__all__)
def test_chunks_of_classes_of_unknown_sizes(name):
    lazy = da.from_array(X, chunks=(20, 5))
    lazy = lazy[:, da.from_array(np.ones(C, bool), chunks=5)]
    with pytest.raises(ValueError, match=r"unknown sizes.*compute_chunk_sizes\(\)"):
        getattr(xentrs.dask, name)(lazy, T)


@pytest.mark.parametrize("chunks", CUT)
@pytest.mark.parametrize("name", xentrs.dask.__all__)
def test_masked_chunks_are_called_logits(name, chunks):
    masked = da.ma.masked_greater(da.from_array(X, chunks=chunks), 5)
    with pytest.raises(TypeError, match=r"^logits is a masked array, whose mask would be lost"):
        getattr(xentrs.dask, name)(masked, T).compute()
    whole = da.ma.masked_greater(da.from_array(X, chunks=chunks), 1e9)
    found = getattr(xentrs.dask, name)(whole, T).compute()
    right = getattr(xentrs.dask, name)(da.from_array(X, chunks=chunks), T).compute()
    if name == "evaluate":
        same(found, right)
    else:
        assert found == right


# Names


def names_of(chunks=(20, 7), **options):
    """Return the names of all that the calls of these options make, and those of their tasks."""
    lazy, target = da.from_array(X, chunks=chunks), da.from_array(T, chunks=9)
    loss = xentrs.dask.cross_entropy(lazy, target, **options)
    losses = xentrs.dask.cross_entropy(lazy, target, reduction="none", **options)
    meter = xentrs.dask.evaluate(lazy, target, **options)
    soft = xentrs.dask.evaluate(lazy, Q)
    results = (loss.name, losses.name, meter.key)
    tasks = [set(map(str, one.__dask_graph__())) for one in (loss, losses, meter, soft)]
    return results, tasks


VARIANTS = [
    {},
    {"chunks": (20, -1)},
    {"chunks": (30, 7)},
    {"weight": W},
    {"weight": W + 1},
    {"sample_weight": S},
    {"sample_weight": da.from_array(S + 1, chunks=20)},
    {"ignore_index": None},
    {"ignore_index": (-100, 3)},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.2},
]


def test_equal_calls_have_equal_names():
    """And different ones have different names."""
    with dask.config.set({"tokenize.ensure-deterministic": True}):
        found = [names_of(**options) for options in VARIANTS]
        assert found == [names_of(**options) for options in VARIANTS]
    for names in zip(*(results for results, _ in found), strict=True):
        assert len(set(names)) == len(VARIANTS)
    for options in ({"reduction": "sum"}, {"base": 2}, {"denominator": 7.0}):
        lazy = da.from_array(X, chunks=(20, 7))
        one, again = (xentrs.dask.cross_entropy(lazy, T, **options).name for _ in range(2))
        assert one == again != xentrs.dask.cross_entropy(lazy, T).name
    for options in ({"top_k": 3}, {"bins": 4}, {"per_class": True}, {"group": GROUP}):
        for chunks in ((20, 7), (20, -1)):
            lazy = da.from_array(X, chunks=chunks)
            one, again = (xentrs.dask.evaluate(lazy, T, **options).key for _ in range(2))
            assert one == again != xentrs.dask.evaluate(lazy, T).key


def test_names_are_the_same_in_each_process(python):
    script = """
    import dask.array as da
    import numpy as np

    import xentrs.dask

    for chunks in ((5, 3), (5, -1)):
        x = da.from_array(np.arange(80.0).reshape(20, 4), chunks=chunks)
        t = da.zeros(20, int, chunks=7)
        print(xentrs.dask.cross_entropy(x, t, weight=[1.0, 2.0, 3.0, 4.0]).name)
        print(xentrs.dask.evaluate(x, t, label_smoothing=0.1).key)
    """
    assert python(script).stdout == python(script).stdout != ""


def test_other_functions_name_it():
    lazy = da.from_array(X, chunks=7)
    with pytest.raises(TypeError, match=r"logits.*xentrs\.dask.*logits\.compute\(\)"):
        xentrs.cross_entropy(lazy, T)
    with pytest.raises(TypeError, match=r"target.*xentrs\.dask"):
        xentrs.cross_entropy(X, da.from_array(T))
    with pytest.raises(TypeError, match=r"logits.*xentrs\.dask"):
        xentrs.CrossEntropyMeter().update(lazy, T)
    with pytest.raises(TypeError) as found:
        xentrs.cross_entropy(lazy, T)
    call = str(found.value).rpartition("pass ")[2]
    assert xentrs.cross_entropy(eval(call, {"logits": lazy}), T) == xentrs.cross_entropy(X, T)


def test_is_imported_without_dask(python):
    script = """
    import sys
    sys.modules["dask"] = None
    import xentrs.dask
    try:
        xentrs.dask.evaluate([[1.0]], [0])
    except ModuleNotFoundError as error:
        print("pip install xentrs[dask]" in str(error))
    """
    assert python(script).stdout == "True\n"


# Memory


class Chunks:
    """Makes chunks of logits and counts how many bytes of them are alive at the most."""

    def __init__(self):
        self.alive = self.most = self.made = 0
        self.lock = threading.Lock()

    def make(self, block_info=None):
        import weakref

        where = block_info[None]["array-location"]
        a = X[tuple(slice(*part) for part in where)].copy()
        with self.lock:
            self.made += 1
            self.alive += a.nbytes
            self.most = max(self.most, self.alive)
        weakref.finalize(a, self.gone, a.nbytes)
        return a

    def gone(self, size):
        with self.lock:
            self.alive -= size

    def array(self, chunks):
        chunks = da.core.normalize_chunks(chunks, X.shape, dtype=X.dtype)
        return da.map_blocks(self.make, chunks=chunks, dtype=X.dtype, meta=X[:0])


@pytest.mark.parametrize("name", xentrs.dask.__all__)
@pytest.mark.parametrize("chunks", [(10, -1), (10, 4), (60, 4)])
def test_a_worker_holds_at_most_two_chunks(name, chunks):
    made = Chunks()
    lazy = made.array(chunks)
    found = getattr(xentrs.dask, name)(lazy, T).compute()
    chunk = chunks[0] * (C if chunks[1] == -1 else chunks[1]) * 4
    # Beside the chunk that is read, `evaluate` holds the rows that it puts together of several.
    assert made.most == chunk
    if name == "evaluate":
        same(found, xentrs.CrossEntropyMeter().update(X, T))


class Store:
    """A store of logits, which counts the numbers that are read."""

    shape, dtype, ndim = X.shape, X.dtype, 2

    def __init__(self):
        self.read = self.largest = 0

    def __getitem__(self, index):
        found = X[index]
        self.read += found.size
        self.largest = max(self.largest, found.size)
        return found.copy()


def test_a_store_is_read_once():
    """Also where classes lie in chunks: each task reads slices of them."""
    for chunks in ((10, -1), (30, 4)):
        store = Store()
        lazy = da.from_array(store, chunks=chunks)
        same(
            xentrs.dask.evaluate(lazy, T).compute(),
            xentrs.CrossEntropyMeter().update(X, T),
        )
        assert store.read == X.size
        assert store.largest <= 10 * C


# A cluster


def slow(block):
    time.sleep(0.15)
    return block


def die_once(block, file):
    """Kill the worker at the first call of all."""
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return block
    os._exit(1)


@pytest.fixture(scope="module")
def client():
    # Without an address it takes port 8787, where another test process may have its cluster.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 9}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("chunks", [(10, -1), (10, 9)])
def test_cluster(client, chunks):
    lazy = da.from_array(X, chunks=chunks)
    right = xentrs.CrossEntropyMeter().update(X, T)
    same(client.compute(xentrs.dask.evaluate(lazy, T)).result(), right)
    held = client.persist(lazy)
    same(client.compute(xentrs.dask.evaluate(held, T)).result(), right)
    loss = client.compute(xentrs.dask.cross_entropy(held, T)).result()
    with dask.config.set(scheduler="synchronous"):  # a client is the default while it lives
        assert float(loss) == float(xentrs.dask.cross_entropy(lazy, T).compute())


@pytest.mark.parametrize("chunks", [(10, -1), (10, 9)])
def test_a_worker_is_killed(client, chunks, tmp_path):
    """Its tasks are run anew, and no sample is counted twice or lost."""
    lazy = da.from_array(X, chunks=chunks).map_blocks(
        die_once, str(tmp_path / "died"), dtype=X.dtype, meta=X[:0]
    )
    same(
        client.compute(xentrs.dask.evaluate(lazy, T)).result(60),
        xentrs.CrossEntropyMeter().update(X, T),
    )
    assert (tmp_path / "died").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no such signal")
def test_a_worker_is_killed_that_has_results(client):
    lazy = da.from_array(X, chunks=(2, -1)).map_blocks(slow, dtype=X.dtype, meta=X[:0])
    future = client.compute(xentrs.dask.evaluate(lazy, T))
    time.sleep(1)
    assert not future.done()
    worker = client.run(os.getpid)
    os.kill(next(iter(worker.values())), signal.SIGKILL)
    same(future.result(60), xentrs.CrossEntropyMeter().update(X, T))


def test_results_are_pickled_as_states(client):
    """What goes between workers is small: it does not grow with the samples."""
    meter = xentrs.CrossEntropyMeter().update(X, T)
    assert len(pickle.dumps(meter)) < 60_000
