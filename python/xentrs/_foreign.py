"""Tables and arrays of other libraries that NumPy would convert at great cost.

NumPy makes a Python object of each number in a pandas column of a nullable or Arrow-backed dtype,
and of each row of a nested Arrow array. It computes a Dask array. So these are refused before NumPy
sees them. Or, if their numbers lie in one block of memory, they are read from there. None of the
libraries is imported here: the modules of an object's classes tell which library it is from.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

# What makes plain numbers of an encoded Arrow array. pyarrow 26 casts views of lists to lists that
# lack an offset.
_DECODING = {
    "dictionary": "{}.cast({}.type.value_type)",
    "run_end_encoded": "pyarrow.compute.run_end_decode({})",
}
_LIST_VIEWS = ("np.stack({}.to_numpy(zero_copy_only=False))", "np.array({}.to_pylist())")


def libraries_of(value: Any) -> set[str]:
    """Return the packages that an object's classes are from."""
    return {str(c.__module__).partition(".")[0] for c in type(value).__mro__}


def refuse_foreign(name: str, value: Any, ignored: tuple[int, ...] | None = None) -> None:
    """Refuse an object that NumPy would convert at great cost, or with NaN for missing values.

    `ignored` are the class indices that count for nothing, if the object may be class indices.
    """
    libraries = libraries_of(value)
    # An array of xarray has the method too, which returns None if the array is not lazy.
    graph = getattr(value, "__dask_graph__", None)
    if libraries & {"dask", "dask_expr"} or (callable(graph) and graph() is not None):
        raise TypeError(
            f"{name} is a lazy {type(value).__name__} of Dask, and is not computed implicitly: "
            f"use xentrs.dask, which works on chunks, or pass {name}.compute()"
        )
    if type(value).__name__ == "LazyFrame" and "polars" in libraries:
        raise TypeError(f"{name} is a lazy frame of polars: pass {name}.collect()")
    if "pandas" in libraries:
        _refuse_pandas(name, value, ignored)
    elif "scipy" in libraries and hasattr(value, "toarray"):
        raise TypeError(
            f"{name} is a sparse {type(value).__name__} of SciPy: pass {name}.toarray()"
        )
    elif libraries & {"polars", "pyarrow"}:
        columns = _columns(value)
        if "polars" in libraries:
            _refuse_categories(name, value, columns)
        _refuse_nulls(name, sum(_nulls(part) for part in columns))


def of_polars(name: str, value: Any) -> Any:
    """Return a polars series of lists that have the same length as one of arrays, on its memory.

    Any other object is returned as it is.
    """
    dtype: Any = getattr(value, "dtype", None)
    if type(dtype).__name__ != "List" or "polars" not in libraries_of(value):
        return value
    lengths = value.list.len()
    _refuse_nulls(name, lengths.null_count())
    width = _one_length(name, np.asarray(lengths))
    if type(dtype.inner).__name__ == "List":
        raise TypeError(f"{name} is a polars Series of lists of lists: pass {name}.to_arrow()")
    arrays = value.list.to_array(width)
    _refuse_nulls(name, _nulls(arrays))
    return arrays


def of_arrow(name: str, value: Any) -> Any:
    """Return a nested Arrow array as a NumPy array on its memory; any other object as it is.

    Read are lists of a fixed size, tensors of a fixed shape and lists that have the same length.
    An array of several chunks is refused, nested or not.
    """
    if "pyarrow" not in libraries_of(value):
        return value
    chunks = getattr(value, "num_chunks", None)
    if chunks is not None and chunks > 1:
        raise TypeError(
            f"{name} is an Arrow array of {chunks} chunks, which are no block of memory: pass "
            f"{name}.combine_chunks()"
        )
    if not _is_nested_type(getattr(value, "type", None)):
        return value
    if chunks is not None:
        return of_arrow(name, value.chunk(0) if chunks else value.combine_chunks())
    _refuse_nulls(name, value.null_count)
    rows, kind = len(value), value.type
    if hasattr(value, "storage"):  # a tensor: lists of a fixed size, and their shape
        shape = tuple(getattr(kind, "shape", (-1,)))
        order = getattr(kind, "permutation", None)
        found = of_arrow(name, value.storage).reshape(rows, *shape)
        return found if order is None else found.transpose(0, *(axis + 1 for axis in order))
    size = getattr(kind, "list_size", None)
    if size is None:
        encoding = str(kind).partition("<")[0]
        if encoding not in ("list", "large_list"):
            nested = _is_nested_type(kind.value_type)
            call = _DECODING.get(encoding, _LIST_VIEWS[nested]).format(name, name)
            raise TypeError(f"{name} is an Arrow array of type {encoding}: pass {call}")
        size = _one_length(name, np.diff(np.asarray(value.offsets)))
    numbers = value.flatten()  # of this slice alone, where `values` is the whole array's
    if _is_nested_type(numbers.type):
        inner = of_arrow(name, numbers)
        return inner.reshape(rows, size, *inner.shape[1:])
    _refuse_nulls(name, numbers.null_count)
    return np.asarray(numbers).reshape(rows, size)


def of_torch(tensor: Any) -> Any:
    """Return a tensor of PyTorch, or another object of its, as a NumPy array on its memory."""
    if str(getattr(tensor, "dtype", "")) != "torch.bfloat16" or tensor.requires_grad:
        return np.asarray(tensor)  # which raises where a gradient is required
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError("NumPy has bfloat16 only with the package ml_dtypes") from None
    bits = tensor.view(sys.modules["torch"].int16)
    return np.asarray(bits).view(ml_dtypes.bfloat16)


def _is_nested_type(kind: Any) -> bool:
    """Whether a type of Arrow is one of lists or tensors."""
    return hasattr(kind, "value_type") or hasattr(kind, "storage_type")


def _one_length(name: str, lengths: Any) -> int:
    """Return the length that all lists have."""
    if lengths.size and (lengths != lengths[0]).any():
        row = int(np.argmax(lengths != lengths[0]))
        raise ValueError(
            f"{name} has rows of different lengths: row 0 has {lengths[0]} numbers, row {row} has "
            f"{lengths[row]}"
        )
    return int(lengths[0]) if lengths.size else 0


def _columns(value: Any) -> list[Any]:
    """Return the columns of a polars or Arrow table; any other object counts as one column."""
    if hasattr(value, "get_columns"):
        return list(value.get_columns())
    columns = getattr(value, "columns", None)
    return list(columns) if isinstance(columns, list) else [value]


def _refuse_categories(name: str, value: Any, columns: list[Any]) -> None:
    """Refuse columns of polars that hold names of classes, which NumPy converts to objects."""
    kinds = [type(getattr(column, "dtype", None)).__name__ for column in columns]
    kind = next((kind for kind in kinds if kind in ("Categorical", "Enum")), None)
    if kind is None:
        return
    hint = ""
    if name == "target" and len(columns) == 1:
        series = name if columns[0] is value else f"{name}.to_series()"
        # The codes of a Categorical are in the order in which polars met any names.
        ordered = "" if kind == "Enum" else ".cast(polars.Enum(classes))"
        hint = f": pass {series}{ordered}.to_physical()"
        hint += ", where classes has their names in order" if ordered else ""
    what = f"{name} is a polars {type(value).__name__} of dtype {kind}"
    raise TypeError(f"{what}, but must be numbers{hint}")


def _refuse_nulls(name: str, missing: int) -> None:
    if missing:
        raise ValueError(f"{name} has missing values: {missing} of them are null")


def _nulls(column: Any) -> int:
    count = getattr(column, "null_count", 0)
    found = count() if callable(count) else count
    if found == 0 and type(getattr(column, "dtype", None)).__name__ == "Array":
        return _nulls(column.explode())  # the numbers of a polars series of arrays
    return found if isinstance(found, int) else 0


def _refuse_pandas(name: str, value: Any, ignored: tuple[int, ...] | None) -> None:
    """Refuse columns that NumPy would convert to Python objects."""
    dtypes: Any = getattr(value, "dtypes", None)  # several for a table, one for a series
    if dtypes is None:
        dtypes = getattr(value, "dtype", None)  # of an index or an array
    is_table = hasattr(dtypes, "__iter__")
    number = len(dtypes) if is_table else 1
    # A table may have thousands of columns, mostly of the same dtype.
    different: list[Any] = list(dict.fromkeys(dtypes)) if is_table else [dtypes]
    # What a column is called, if it is the only one.
    column = (f"{name}.iloc[:, 0]" if number == 1 else "") if is_table else name
    plain = [_plain_dtype(name, column, value, dtype, ignored) for dtype in different]
    kinds = {dtype.kind for dtype in plain}
    if number > 1 and not (kinds <= set("fiu") or len(kinds) == 1):
        names = ", ".join(sorted({str(dtype) for dtype in plain}))
        what = f"{name} is a pandas {type(value).__name__} with columns of dtypes {names}"
        if not kinds <= set("fiubO"):
            raise TypeError(f"{what}, but must be real numbers")
        raise TypeError(
            f"{what}, which have no common numeric dtype: pass {name}.to_numpy('float64')"
            + (", if the objects are numbers" if "O" in kinds else "")
        )


def _plain_dtype(
    name: str, column: str, value: Any, dtype: Any, ignored: tuple[int, ...] | None
) -> np.dtype[Any]:
    """Return the NumPy dtype of a column, or refuse one that has none."""
    what = f"{name} is a pandas {type(value).__name__} of dtype {dtype}"
    if type(dtype).__name__ == "SparseDtype":
        dtype = dtype.subtype
    elif type(dtype).__name__ == "CategoricalDtype":
        categories = getattr(dtype.categories, "dtype", None)
        if not isinstance(categories, np.dtype) or categories.kind not in "fiub":
            what = f"{name} is categorical, with categories of dtype {categories}"
            if _is_number(categories):
                raise TypeError(f"{what}: pass {name}.astype('float64')")
            if name != "target" or not column:
                raise TypeError(f"{what}, but must be numbers")
            codes = f"{name}.codes" if hasattr(value, "codes") else f"{column}.cat.codes.to_numpy()"
            raise TypeError(
                f"{what}, but must be numbers: pass {codes}, in which a missing value is -1"
            )
        dtype = categories
    if isinstance(dtype, np.dtype):
        return dtype
    arrow: Any = getattr(dtype, "pyarrow_dtype", None)
    encoded = hasattr(arrow, "index_type")  # a dictionary
    if hasattr(arrow, "value_type") and not encoded and column:
        raise TypeError(
            f"{what}, which NumPy converts to Python objects: pass pyarrow.array({column})"
        )
    if encoded:
        number = np.dtype(arrow.value_type.to_pandas_dtype()).kind in "fiub"
    else:
        number = _is_number(dtype)
    if not number:
        raise TypeError(f"{what}, but must be numbers")
    call = _to_numpy(name, dtype, ignored)
    raise TypeError(
        f"{what}, which NumPy converts to Python objects, for it may hold missing values: pass "
        f"{call}"
    )


def _is_number(dtype: Any) -> bool:
    """Whether a dtype of pandas is one of numbers, bools included."""
    plain = getattr(dtype, "numpy_dtype", None)
    if isinstance(plain, np.dtype) and plain.kind in "fiub":
        return True
    return bool(getattr(dtype, "_is_numeric", False))  # decimals, and dtypes of other packages


def _to_numpy(name: str, dtype: Any, ignored: tuple[int, ...] | None) -> str:
    """Return the call that makes plain numbers of a nullable or Arrow-backed dtype."""
    plain: Any = getattr(dtype, "numpy_dtype", None)
    kind = plain.kind if isinstance(plain, np.dtype) else "O"
    if kind in "iu" and ignored is not None:
        if not ignored:
            return (
                f"{name}.to_numpy('{plain}'), which raises if there are missing values, for "
                "ignore_index is None"
            )
        # Missing values become an index that is ignored, in a dtype that holds it.
        filled = np.promote_types(plain, np.min_scalar_type(ignored[0]))
        filled = filled if filled.kind in "iu" else np.dtype(np.int64)
        cast = ""
        if hasattr(dtype, "pyarrow_dtype") and filled != plain:  # Arrow fills before it casts
            cast = f".astype('{filled}[pyarrow]')"
        return f"{name}{cast}.to_numpy('{filled}', na_value={ignored[0]})"
    if name == "where":
        cast = "" if kind == "b" else ".astype('boolean')"
        return f"{name}{cast}.to_numpy('bool', na_value=False)"
    return f"{name}.to_numpy('{plain if kind == 'f' else 'float64'}')"
