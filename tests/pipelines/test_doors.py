"""Arrays and tables of pandas, polars and Arrow: read where they lie, or refused at no cost."""

import re
import tracemalloc

import numpy as np
import pytest

import xentrs

NEEDED = "runs where the libraries of tables are: make test-pipelines"
pd = pytest.importorskip("pandas", reason=NEEDED)
pl = pytest.importorskip("polars", reason=NEEDED)
pa = pytest.importorskip("pyarrow", reason=NEEDED)
compute = pytest.importorskip("pyarrow.compute", reason=NEEDED)
scipy_sparse = pytest.importorskip("scipy.sparse", reason=NEEDED)

N, C = 20_000, 50
X = np.random.default_rng(0).normal(size=(N, C)).astype(np.float32)
Y = np.arange(N) % C


def flat(x=X):
    return pa.array(x.ravel())


def rows(x=X, size=C):
    return pa.FixedSizeListArray.from_arrays(flat(x), size)


def lists(x=X):
    return pa.ListArray.from_arrays(np.arange(0, x.size + 1, C, dtype=np.int32), flat(x))


def large_lists(x=X):
    return pa.LargeListArray.from_arrays(np.arange(0, x.size + 1, C), flat(x))


def permuted():
    """Return a tensor with axes in another order: row i is X[i] as a (5, 10) table."""
    stored = X.reshape(N, 5, 10).transpose(0, 2, 1)
    kind = pa.fixed_shape_tensor(pa.float32(), (10, 5), permutation=(1, 0))
    return pa.ExtensionArray.from_storage(kind, rows(np.ascontiguousarray(stored)))


# What is read without a copy: the array, and the logits that it holds
DOORS = {
    "numpy": lambda: (X, X),
    "pandas table": lambda: (pd.DataFrame(X, copy=False), X),
    "pandas table of columns": lambda: (pd.DataFrame(np.asfortranarray(X), copy=False), X),
    "polars series of arrays": lambda: (pl.Series(X), X),
    "polars table": lambda: (pl.DataFrame(np.asfortranarray(X)), X),
    "arrow rows": lambda: (rows(), X),
    "arrow rows, sliced": lambda: (rows()[100:-7], X[100:-7]),
    "arrow rows, one chunk": lambda: (pa.chunked_array([rows()]), X),
    "arrow rows, one sliced chunk": lambda: (pa.chunked_array([rows()])[50:], X[50:]),
    "arrow tensors": lambda: (pa.FixedShapeTensorArray.from_numpy_ndarray(X), X),
    "arrow tensors, sliced": lambda: (pa.FixedShapeTensorArray.from_numpy_ndarray(X)[9:], X[9:]),
    "arrow tensors of two axes": lambda: (
        pa.FixedShapeTensorArray.from_numpy_ndarray(X.reshape(N, 5, 10)),
        X.reshape(N, 5, 10),
    ),
    "arrow tensors, permuted": lambda: (permuted(), X.reshape(N, 5, 10)),
    "polars lists": lambda: (pl.Series(X).cast(pl.List(pl.Float32)), X),
    "polars lists, sliced": lambda: (pl.Series(X).cast(pl.List(pl.Float32))[3:-3], X[3:-3]),
    "arrow lists": lambda: (lists(), X),
    "arrow lists, sliced": lambda: (lists()[3:-3], X[3:-3]),
    "arrow large lists": lambda: (large_lists()[3:], X[3:]),
    "arrow rows of rows": lambda: (
        pa.FixedSizeListArray.from_arrays(rows(X, 10), 5)[7:],
        X.reshape(N, 5, 10)[7:],
    ),
}


class Peak:
    """The largest memory that Python and Arrow take within a block, as a share of X."""

    def __enter__(self):
        tracemalloc.start()
        self.before = pa.total_allocated_bytes()
        return self

    def __exit__(self, *error):
        self.share = tracemalloc.get_traced_memory()[1] / X.nbytes
        self.share += (pa.total_allocated_bytes() - self.before) / X.nbytes
        tracemalloc.stop()


@pytest.mark.parametrize("kind", DOORS)
def test_read_where_they_lie(kind):
    given, x = DOORS[kind]()
    target = np.arange(x[..., 0].size).reshape(x.shape[:-1]) % x.shape[-1]
    right = xentrs.cross_entropy(x, target)
    with Peak() as peak:
        loss = xentrs.cross_entropy(given, target)
    assert loss == right
    assert peak.share < 0.1
    out = np.empty_like(x)
    with Peak() as peak:
        loss, grad = xentrs.cross_entropy_with_grad(given, target, out=out)
    assert grad is out
    assert peak.share < 0.1
    np.testing.assert_array_equal(grad, xentrs.cross_entropy_with_grad(x, target)[1])


@pytest.mark.parametrize("column", [pl.Series, pa.array])
def test_pairs_of_lists(column):
    indices = np.stack([Y, (Y + 1) % C], 1)
    probabilities = np.stack([0.7 - X[:, 0] / 100, 0.3 + X[:, 0] / 100], 1)
    right = xentrs.cross_entropy(X, (indices, probabilities))
    pair = column(indices.tolist()), column(probabilities.astype(np.float64).tolist())
    assert xentrs.cross_entropy(X, pair) == right


def test_a_table_of_arrow_columns_is_copied_once():
    table = pa.table({str(i): X[:, i] for i in range(C)})
    with Peak() as peak:
        assert xentrs.cross_entropy(table, Y) == xentrs.cross_entropy(X, Y)
    assert peak.share < 1.1


def missing_number():
    numbers = X.ravel().tolist()
    numbers[77] = None
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers, pa.float32()), C)


def missing_row():
    mask = np.zeros(N, bool)
    mask[5] = True
    return pa.FixedSizeListArray.from_arrays(flat(), C, mask=pa.array(mask))


REFUSED = {
    "pandas nullable": (
        lambda: pd.DataFrame(X).astype("Float32"),
        TypeError,
        r"logits\.to_numpy\('float32'\)",
    ),
    "pandas on arrow": (
        lambda: pd.DataFrame(X).astype("float[pyarrow]"),
        TypeError,
        r"logits\.to_numpy\('float32'\)",
    ),
    "pandas lists of arrow": (
        lambda: pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([rows()]))),
        TypeError,
        r"pyarrow\.array\(logits\)",
    ),
    "polars nulls": (
        lambda: pl.DataFrame(X).with_columns(pl.lit(None, pl.Float32).alias("column_3")),
        ValueError,
        "missing values",
    ),
    "polars null in an array": (
        lambda: pl.Series([[1.0, 2.0], [None, 1.0]], dtype=pl.Array(pl.Float32, 2)),
        ValueError,
        "missing values: 1 of them",
    ),
    "polars null in a nested array": (
        lambda: pl.Series([[[1.0, 2.0], [None, 1.0]]], dtype=pl.Array(pl.Float32, (2, 2))),
        ValueError,
        "missing values: 1 of them",
    ),
    "polars lazy": (lambda: pl.DataFrame(X).lazy(), TypeError, r"logits\.collect\(\)"),
    "pandas strings": (
        lambda: pd.Series(["a", "b"], dtype="string"),
        TypeError,
        "logits is a pandas Series of dtype string, but must be numbers",
    ),
    "pandas times": (
        lambda: pd.Series(pd.date_range("2020", periods=N), dtype="timestamp[ns][pyarrow]"),
        TypeError,
        r"logits is a pandas Series of dtype timestamp\[ns\]\[pyarrow\], but must be numbers$",
    ),
    "pandas times of a zone": (
        lambda: pd.Series(pd.date_range("2020", periods=N, tz="UTC")),
        TypeError,
        r"dtype datetime64\[.*UTC\], but must be numbers$",
    ),
    "pandas table with times": (
        lambda: pd.DataFrame({"a": np.ones(N), "b": pd.date_range("2020", periods=N)}),
        TypeError,
        r"columns of dtypes datetime64\[.*\], float64, but must be real numbers$",
    ),
    "pandas categories of strings": (
        lambda: pd.Series(["a", "b"] * 9, dtype="category"),
        TypeError,
        "logits is categorical, with categories of dtype (str|object), but must be numbers$",
    ),
    "polars lists of different lengths": (
        lambda: pl.Series([[1.0, 2.0], [3.0]]),
        ValueError,
        "row 0 has 2 numbers, row 1 has 1",
    ),
    "polars null in a list": (
        lambda: pl.Series([[1.0, 2.0], [3.0, None]]),
        ValueError,
        "missing values: 1 of them",
    ),
    "polars null list": (
        lambda: pl.Series([[1.0, 2.0], None], dtype=pl.List(pl.Float64)),
        ValueError,
        "missing values: 1 of them",
    ),
    "arrays of different shapes": (
        lambda: pd.Series([np.ones(3), np.ones(2)]),
        TypeError,
        r"array of arrays, but logits\[0\] has shape \(3,\) and logits\[1\] has shape \(2,\)$",
    ),
    "arrow dictionary": (
        lambda: flat().dictionary_encode(),
        TypeError,
        r"type dictionary: pass logits\.cast\(logits\.type\.value_type\)",
    ),
    "arrow runs": (
        lambda: compute.run_end_encode(flat()),
        TypeError,
        r"pass pyarrow\.compute\.run_end_decode\(logits\)",
    ),
    "arrow list view": (
        lambda: pa.array([[1.0, 2.0], [0.5, 1.0]], pa.list_view(pa.float32())),
        TypeError,
        r"type list_view: pass np\.stack\(logits\.to_numpy\(",
    ),
    "arrow chunks": (
        lambda: pa.chunked_array([rows(), rows()]),
        TypeError,
        r"2 chunks.*logits\.combine_chunks\(\)",
    ),
    "arrow null number": (missing_number, ValueError, "missing values: 1 of them"),
    "arrow null row": (missing_row, ValueError, "missing values: 1 of them"),
    "arrow lists of different lengths": (
        lambda: pa.ListArray.from_arrays(
            np.append(np.arange(0, X.size, C), X.size - 1).astype(np.int32), flat()
        ),
        ValueError,
        f"row {N - 1} has {C - 1}",
    ),
    "arrow table with nulls": (
        lambda: pa.table({"a": pa.array([0.5, None]), "b": [1.0, 2.0]}),
        ValueError,
        "missing values",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_at_no_cost(kind):
    make, error, message = REFUSED[kind]
    given = make()
    with Peak() as peak, pytest.raises(error, match=message):
        xentrs.cross_entropy(given, Y)
    assert peak.share < 0.05


def test_targets():
    right = xentrs.cross_entropy(X, Y)
    for target in (
        pa.array(Y),
        pa.array(Y)[:],
        pa.chunked_array([Y]),
        pl.Series(Y),
        pd.Series(Y),
        pd.Index(Y),
        pd.Series(Y, dtype="category"),
        pd.Series(Y).astype("float32"),
    ):
        assert xentrs.cross_entropy(X, target) == right
    soft = np.full((N, C), 1 / C, np.float32)
    assert xentrs.cross_entropy(X, rows(soft)) == xentrs.cross_entropy(X, soft)
    for target in (pa.array([0, None]), pl.Series([0, None]), pd.Series([0, None])):
        with pytest.raises(ValueError, match="missing values"):
            xentrs.cross_entropy(X[:2], target)
    for missing in (None, pd.NA, np.nan):
        with pytest.raises(TypeError, match=r"missing values: target\[1\] is "):
            xentrs.cross_entropy(X[:2], pd.Series([0, missing], dtype=object))
    for target in (pd.Series([0, None], dtype="Int64"), pd.Series([0, 1], dtype="int64[pyarrow]")):
        with pytest.raises(TypeError, match=r"missing values.*target\.to_numpy\('int64'"):
            xentrs.cross_entropy(X[:2], target)


@pytest.mark.parametrize("chunks", [2, 3])
def test_numbers_in_chunks(chunks):
    """In any argument: no chunks are put together without a word."""

    def chunked(a):
        return pa.chunked_array(np.array_split(a, chunks))

    x, y, s, w = X[:, 0], Y.astype(float), np.ones(N), np.ones(C)
    for call, name in (
        (lambda: xentrs.cross_entropy(X, chunked(Y)), "target"),
        (lambda: xentrs.cross_entropy(X, Y, sample_weight=chunked(s)), "sample_weight"),
        (lambda: xentrs.cross_entropy(X, Y, weight=chunked(w)), "weight"),
        (lambda: xentrs.binary_cross_entropy_with_logits(chunked(x), y > 1), "logits"),
        (lambda: xentrs.binary_cross_entropy_with_logits(x, chunked(y > 1)), "target"),
        (lambda: xentrs.entropy(chunked(s)), "p"),
        (lambda: xentrs.CrossEntropyMeter().update(X, chunked(Y)), "target"),
        (lambda: xentrs.CrossEntropyMeter().update_losses(chunked(s)), "losses"),
    ):
        message = (
            rf"^{name} is an Arrow array of {chunks} chunks.*: pass {name}\.combine_chunks\(\)$"
        )
        with pytest.raises(TypeError, match=message):
            call()


def test_no_chunk():
    for kind in (pa.list_(pa.float64(), C), pa.fixed_shape_tensor(pa.float64(), (C,))):
        logits, target = pa.chunked_array([], kind), pa.chunked_array([], pa.int64())
        assert xentrs.cross_entropy(logits, target, reduction="sum") == 0.0


# Calls that messages name

SMALL = np.array([[0.5, 1.0, -2.0], [2.0, 0.25, 0.0]])
CLASSES = [2, 0]


def objects(*items):
    array = np.empty(len(items), object)
    array[:] = items
    return array


def lists_of_arrow(chunks=1):
    parts = [pa.array(part.tolist()) for part in np.split(SMALL, chunks)]
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array(parts)))


def in_views(kind, x=SMALL):
    return pa.array(x.tolist(), kind(pa.float64()))


def dictionary(column):
    chunks = pa.chunked_array([pa.array(column).dictionary_encode()])
    return pd.Series(pd.arrays.ArrowExtensionArray(chunks))


# Logits that are refused, and what they are after the call that the message names
TWICE = np.array([SMALL, SMALL])
NAMED = {
    "pandas nullable": (lambda: pd.DataFrame(SMALL).astype("Float64"), SMALL),
    "pandas nullable, float32": (lambda: pd.DataFrame(SMALL).astype("Float32"), SMALL.astype("f4")),
    "pandas nullable integers": (lambda: pd.DataFrame(SMALL * 4).astype("Int16"), SMALL * 4),
    "pandas nullable bools": (lambda: pd.DataFrame(SMALL > 0).astype("boolean"), SMALL > 0),
    "pandas on arrow": (lambda: pd.DataFrame(SMALL).astype("double[pyarrow]"), SMALL),
    "pandas bools on arrow": (lambda: pd.DataFrame(SMALL > 0).astype("bool[pyarrow]"), SMALL > 0),
    "pandas decimals": (
        lambda: pd.DataFrame(SMALL).astype(pd.ArrowDtype(pa.decimal128(9, 2))),
        SMALL,
    ),
    "pandas dictionaries": (lambda: pd.DataFrame(dict(enumerate(map(dictionary, SMALL.T)))), SMALL),
    "pandas nullable categories": (
        lambda: pd.DataFrame(SMALL).astype("Float64").astype("category"),
        SMALL,
    ),
    "pandas mixed": (
        lambda: pd.DataFrame({0: [0.5, 2.0], 1: [True, False], 2: [1, 0]}),
        np.array([[0.5, 1.0, 1.0], [2.0, 0.0, 0.0]]),
    ),
    "pandas mixed with objects": (lambda: pd.DataFrame(SMALL).astype({1: object}), SMALL),
    "pandas lists of arrow": (lists_of_arrow, SMALL),
    "pandas lists of arrow, array": (lambda: lists_of_arrow().array, SMALL),
    "pandas lists of arrow, index": (lambda: pd.Index(lists_of_arrow()), SMALL),
    "pandas lists of arrow, chunks": (lambda: lists_of_arrow(2), SMALL),
    "pandas lists of arrow, table": (lambda: lists_of_arrow().to_frame(), SMALL),
    "pandas arrays": (lambda: pd.Series(list(SMALL), index=[7, 9]), SMALL),
    "pandas lists": (lambda: pd.Series(SMALL.tolist()), SMALL),
    "pandas tuples": (lambda: pd.Series([tuple(row) for row in SMALL]), SMALL),
    "pandas integer lists": (lambda: pd.Series((SMALL * 4).astype(int).tolist()), SMALL * 4),
    "pandas arrays, table": (lambda: pd.DataFrame({"a": list(SMALL)}), SMALL),
    "pandas arrays, columns": (
        lambda: pd.DataFrame({"a": list(SMALL), "b": list(SMALL)}),
        np.stack([SMALL, SMALL], 1),
    ),
    "objects": (lambda: objects(*SMALL), SMALL),
    "objects, float32": (lambda: objects(*SMALL.astype("f4")), SMALL.astype("f4")),
    "objects, two axes": (lambda: objects(*SMALL, *SMALL).reshape(2, 2), TWICE),
    "polars lists of lists": (lambda: pl.Series(TWICE.tolist()), TWICE),
    "polars lists, table": (lambda: pl.DataFrame({"a": SMALL.tolist()}), SMALL),
    "polars arrays, table": (lambda: pl.DataFrame({"a": pl.Series(SMALL)}), SMALL),
    "polars objects": (lambda: pl.Series(list(SMALL), dtype=pl.Object), SMALL),
    "polars lazy": (lambda: pl.DataFrame(SMALL).lazy(), SMALL),
    "arrow dictionary": (lambda: pa.array(SMALL[0]).dictionary_encode(), SMALL[0]),
    "arrow dictionary, one chunk": (
        lambda: pa.chunked_array([SMALL[0]]).dictionary_encode(),
        SMALL[0],
    ),
    "arrow runs": (lambda: compute.run_end_encode(pa.array(SMALL[0])), SMALL[0]),
    "arrow runs, one chunk": (
        lambda: pa.chunked_array([compute.run_end_encode(pa.array(SMALL[0]))]),
        SMALL[0],
    ),
    "arrow list views": (lambda: in_views(pa.list_view), SMALL),
    "arrow list views, sliced": (
        lambda: in_views(pa.list_view, np.tile(SMALL, (3, 1)))[2:4],
        SMALL,
    ),
    "arrow large list views": (lambda: in_views(pa.large_list_view), SMALL),
    "arrow list views, one chunk": (lambda: pa.chunked_array([in_views(pa.list_view)]), SMALL),
    "arrow list views of list views": (
        lambda: pa.array(TWICE.tolist(), pa.list_view(pa.list_view(pa.float64()))),
        TWICE,
    ),
    "arrow chunks": (
        lambda: pa.chunked_array([SMALL[:1].tolist(), SMALL[1:].tolist()]),
        SMALL,
    ),
}
for sparse_kind in ("csr_matrix", "csr_array", "csc_array", "coo_array", "lil_array", "dok_array"):
    NAMED[f"scipy {sparse_kind}"] = (
        lambda kind=sparse_kind: getattr(scipy_sparse, kind)(SMALL),
        SMALL,
    )


def named(name, value, call):
    """Return the value after the calls that messages name: two, where the first leaves chunks."""
    for _ in range(2):
        with pytest.raises(TypeError, match=rf"^{name}.*[:;] pass ") as raised:
            call(value)
        message = str(raised.value).partition(" pass ")[2]
        value = eval(
            re.sub(", (if|in|which) .*", "", message), {name: value, "np": np, "pyarrow": pa}
        )
        if getattr(value, "num_chunks", 1) == 1:
            return value
    raise AssertionError(str(value))


@pytest.mark.parametrize("kind", NAMED)
def test_the_named_call_works(kind):
    make, right = NAMED[kind]
    found = xentrs.softmax(named("logits", make(), xentrs.softmax))
    right = xentrs.softmax(right if right.dtype == np.float32 else right.astype(float))
    assert found.dtype == right.dtype
    np.testing.assert_array_equal(found, right)


# Targets of class indices, and how missing ones are made ones that are ignored

NULLABLE = [
    *(f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)),
    *(f"{sign}int{bits}[pyarrow]" for sign in ("", "u") for bits in (8, 16, 32, 64)),
]
HOLDERS = {
    "series": lambda series: series,
    "array": lambda series: series.array,
    "index": lambda series: pd.Index(series),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("dtype", NULLABLE)
@pytest.mark.parametrize("ignored", [-100, -1, 2, 200, 70_000, -(2**40), (7, -100), None])
def test_the_named_call_for_targets(dtype, holder, ignored):
    x = np.array([*SMALL, [1.0, 2.0, 3.0]])
    calls = (
        lambda t: xentrs.cross_entropy(x, t, ignore_index=ignored),
        lambda t: xentrs.CrossEntropyMeter(ignore_index=ignored).update(x, t).compute().loss,
        lambda t: xentrs.PartialCrossEntropy.of(x, t, first_class=0, ignore_index=ignored).loss(),
    )
    for missing in (False, True) if ignored is not None else (False,):
        series = pd.Series([1, 0, None if missing else 1], dtype=dtype)
        right = xentrs.cross_entropy(x[: 2 if missing else 3], [1, 0, 1][: 2 if missing else 3])
        for call in calls:
            found = named("target", HOLDERS[holder](series), call)
            assert isinstance(found, np.ndarray)
            assert call(found) == pytest.approx(right, rel=1e-15)


def test_the_named_call_for_targets_where_none_is_ignored():
    target = pd.Series([1, None], dtype="Int64")
    message = r"pass target\.to_numpy\('int64'\), which raises if there are missing values"
    with pytest.raises(TypeError, match=message):
        xentrs.cross_entropy(SMALL, target, ignore_index=None)
    with pytest.raises(ValueError, match="missing values"):
        target.to_numpy("int64")


@pytest.mark.parametrize("dtype", [*NULLABLE, "boolean", "bool[pyarrow]", "Float32"])
def test_the_named_call_for_labels(dtype):
    """Of binary losses: these have no index that is ignored."""
    x, where = np.array([0.5, 1.0, -2.0]), np.array([True, False, True])
    labels = pd.Series([1, None, 0]).astype("boolean").astype(dtype)
    call = lambda t: xentrs.binary_cross_entropy_with_logits(x, t, where=where)  # noqa: E731
    found = named("target", labels, call)
    assert np.isnan(found[1])
    assert call(found) == xentrs.binary_cross_entropy_with_logits(x, [1.0, 0.0, 0.0], where=where)
    counted = pd.Series([1, None, 1]).astype("boolean").astype(dtype)
    call = lambda w: xentrs.binary_cross_entropy_with_logits(x, [1.0, 0.0, 0.0], where=w)  # noqa: E731
    assert named("where", counted, call).tolist() == where.tolist()


@pytest.mark.parametrize(
    "holder",
    [
        *HOLDERS.values(),
        lambda series: pd.Categorical(series),
        lambda series: pd.CategoricalIndex(series),
        lambda series: series.to_frame(),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_the_named_call_for_categories(holder, missing):
    x = np.array([*SMALL, [1.0, 2.0, 3.0]])
    names = pd.Series(["c", "a", None if missing else "b"], dtype="category")
    target = holder(names.cat.set_categories(["a", "b", "c"]))
    call = lambda t: xentrs.cross_entropy(x, t, ignore_index=-1)  # noqa: E731
    with pytest.raises(TypeError, match=r"in which a missing value is -1$"):
        call(target)
    assert named("target", target, call).tolist() == [2, 0, -1 if missing else 1]


@pytest.mark.parametrize("holder", [lambda series: series, pl.Series.to_frame])
@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["a", "b", "c"])])
@pytest.mark.parametrize(
    "call",
    [
        xentrs.cross_entropy,
        lambda x, t: xentrs.CrossEntropyMeter().update(x, t).compute().loss,
        lambda x, t: xentrs.PartialCrossEntropy.of(x, t, first_class=0).loss(),
    ],
)
def test_the_named_call_for_categories_of_polars(holder, dtype, call):
    x = np.array([*SMALL, [1.0, 2.0, 3.0]])
    pl.Series(["z", "c"], dtype=pl.Categorical)  # whose codes are those of other columns too
    target = holder(pl.Series(["c", "a", "b"], dtype=dtype))
    with pytest.raises(
        TypeError, match=r"^target is a polars \w+ of dtype (Enum|Cat\w+)"
    ) as raised:
        call(x, target)
    expression = str(raised.value).partition(": pass ")[2].partition(",")[0]
    names = {"target": target, "polars": pl, "classes": ["a", "b", "c"]}
    assert call(x, eval(expression, names)) == call(x, [2, 0, 1])
    with pytest.raises(TypeError, match=r"^sample_weight is a polars .* must be numbers$"):
        xentrs.cross_entropy(x, [2, 0, 1], sample_weight=target)


def test_categories_of_several_columns_have_no_class_indices():
    target = pd.DataFrame({0: ["a", "b"], 1: ["b", "a"]}).astype("category")
    with pytest.raises(TypeError, match=r"categories of dtype (str|object), but must be numbers$"):
        xentrs.cross_entropy(np.zeros((2, 2, 3)), target)


def test_the_named_call_for_sparse_targets_and_weights():
    x = np.array([[1.0, 2.0], [0.5, 0.0]])
    one_hot = scipy_sparse.csr_array(np.eye(2))
    call = lambda t: xentrs.cross_entropy(x, t)  # noqa: E731
    assert call(named("target", one_hot, call)) == xentrs.cross_entropy(x, np.eye(2))
    w = scipy_sparse.coo_array(np.array([1.0, 2.0]))
    call = lambda w: xentrs.cross_entropy(x, [0, 1], weight=w)  # noqa: E731
    assert call(named("weight", w, call)) == call([1.0, 2.0])
    call = lambda w: xentrs.cross_entropy(x, [0, 1], sample_weight=w)  # noqa: E731
    assert call(named("sample_weight", w, call)) == call([1.0, 2.0])


# Groups of a meter: names in columns of strings, and in columns where some are missing

NAMES, MISSING = ["a", "b", "a", "c"], ["a", "b", None, "c"]
COLUMNS = {
    "pandas": lambda names: pd.Series(names),
    "pandas objects": lambda names: pd.Series(names, dtype=object),
    "pandas string": lambda names: pd.Series(names, dtype="string"),
    "pandas on arrow": lambda names: pd.Series(names, dtype=pd.ArrowDtype(pa.string())),
    "pandas categories": lambda names: pd.Series(names, dtype="category"),
    "pandas index": lambda names: pd.Index(names),
    "pandas array": lambda names: pd.array(names, dtype="string"),
    "pandas Categorical": lambda names: pd.Categorical(names),
    "polars": lambda names: pl.Series(names),
    "polars categories": lambda names: pl.Series(names, dtype=pl.Categorical),
    "polars enum": lambda names: pl.Series(names, dtype=pl.Enum(["a", "b", "c"])),
    "arrow": lambda names: pa.array(names),
    "arrow large": lambda names: pa.array(names, pa.large_string()),
    "arrow views": lambda names: pa.array(names, pa.string_view()),
    "arrow chunks": lambda names: pa.chunked_array([names[:2], names[2:]], pa.string()),
    "arrow dictionary": lambda names: pa.array(names).dictionary_encode(),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_groups(kind):
    losses = [1.0, 2.0, 4.0, 7.0]
    right = xentrs.CrossEntropyMeter().update_losses(losses, group=NAMES)
    found = xentrs.CrossEntropyMeter().update_losses(losses, group=COLUMNS[kind](NAMES))
    assert found.compute() == right.compute()
    assert found.to_state()["groups"].tolist() == right.to_state()["groups"].tolist()
    with pytest.raises(TypeError, match=r"missing values: group\[2\] is (None|nan|<NA>)"):
        xentrs.CrossEntropyMeter().update_losses(losses, group=COLUMNS[kind](MISSING))


@pytest.mark.parametrize(
    "group",
    [
        pd.Series([1, 2, None, 3]),
        pd.Series([1, 2, None, 3], dtype="Int64"),
        pd.Series([1, 2, None, 3], dtype="int64[pyarrow]"),
        pl.Series([1, 2, None, 3]),
        pa.array([1, 2, None, 3]),
    ],
    ids=lambda group: f"{type(group).__module__} {getattr(group, 'dtype', '')}",
)
def test_groups_of_integers_with_missing_ones(group):
    with pytest.raises(TypeError, match=r"missing values: group\[2\] is (None|nan|<NA>)"):
        xentrs.CrossEntropyMeter().update_losses([1.0, 2.0, 4.0, 7.0], group=group)
