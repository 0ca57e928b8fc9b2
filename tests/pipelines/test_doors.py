"""Arrays and tables of pandas, polars and Arrow: read where they lie, or refused at no cost."""

import tracemalloc

import numpy as np
import pytest

import xentrs

NEEDED = "runs where the libraries of tables are: make test-pipelines"
pd = pytest.importorskip("pandas", reason=NEEDED)
pl = pytest.importorskip("polars", reason=NEEDED)
pa = pytest.importorskip("pyarrow", reason=NEEDED)
compute = pytest.importorskip("pyarrow.compute", reason=NEEDED)

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
    "polars lists": (
        lambda: pl.Series(X).cast(pl.List(pl.Float32)),
        TypeError,
        r"logits\.list\.to_array",
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
    "arrow dictionary": (
        lambda: flat().dictionary_encode(),
        TypeError,
        r"type dictionary: pass logits\.dictionary_decode\(\)",
    ),
    "arrow runs": (
        lambda: compute.run_end_encode(flat()),
        TypeError,
        r"pass pyarrow\.compute\.run_end_decode\(logits\)",
    ),
    "arrow list view": (
        lambda: pa.array([[1.0, 2.0], [0.5, 1.0]], pa.list_view(pa.float32())),
        TypeError,
        r"type list_view: pass logits\.cast\(",
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
        pa.chunked_array([Y[:9], Y[9:]]),
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
