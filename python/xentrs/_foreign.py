"""Tables and lazy arrays of other libraries, refused before NumPy converts them.

NumPy would make a Python object of each number in a pandas column of a nullable or Arrow-backed
dtype, and would compute a Dask array, only for the result to be refused. None of these libraries is
imported here: the modules of an object's classes tell which library it is from.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def refuse_foreign(name: str, value: Any) -> None:
    """Refuse an object that NumPy would convert at great cost, or with NaN for missing values."""
    libraries = {str(c.__module__).partition(".")[0] for c in type(value).__mro__}
    # An array of xarray has the method too, which returns None if the array is not lazy.
    graph = getattr(value, "__dask_graph__", None)
    if libraries & {"dask", "dask_expr"} or (callable(graph) and graph() is not None):
        raise TypeError(
            f"{name} is a lazy {type(value).__name__} of Dask, and is not computed implicitly: "
            f"pass {name}.compute()"
        )
    if "pandas" in libraries:
        _refuse_pandas(name, value)
    elif libraries & {"polars", "pyarrow"}:
        missing = sum(_nulls(part) for part in _columns(value))
        if missing:
            raise ValueError(f"{name} has missing values: {missing} of them are null")


def _columns(value: Any) -> list[Any]:
    """Return the columns of a polars or Arrow table; any other object counts as one column."""
    if hasattr(value, "get_columns"):
        return list(value.get_columns())
    columns = getattr(value, "columns", None)
    return list(columns) if isinstance(columns, list) else [value]


def _nulls(column: Any) -> int:
    count = getattr(column, "null_count", 0)
    found = count() if callable(count) else count
    return found if isinstance(found, int) else 0


def _refuse_pandas(name: str, value: Any) -> None:
    """Refuse columns that NumPy would convert to Python objects."""
    dtypes: Any = getattr(value, "dtypes", None)  # several for a table, one for a series
    if dtypes is None:
        dtypes = getattr(value, "dtype", None)  # of an index or an array
    columns: list[Any] = list(dtypes) if hasattr(dtypes, "__iter__") else [dtypes]
    plain = [_plain_dtype(name, type(value).__name__, dtype) for dtype in columns]
    kinds = {dtype.kind for dtype in plain}
    if len(plain) > 1 and not (kinds <= set("fiu") or len(kinds) == 1):
        names = ", ".join(sorted({str(dtype) for dtype in plain}))
        raise TypeError(
            f"{name} is a pandas {type(value).__name__} with columns of dtypes {names}, which have "
            f"no common numeric dtype: pass {name}.to_numpy('float64')"
        )


def _plain_dtype(name: str, kind: str, dtype: Any) -> np.dtype[Any]:
    """Return the NumPy dtype of a column, or refuse one that has none."""
    if type(dtype).__name__ == "SparseDtype":
        dtype = dtype.subtype
    elif type(dtype).__name__ == "CategoricalDtype":
        dtype = getattr(dtype.categories, "dtype", None)
        if not isinstance(dtype, np.dtype) or dtype.kind not in "fiub":
            raise TypeError(
                f"{name} is categorical, and its categories are not numbers: "
                f"pass {name}.cat.codes.to_numpy()"
            )
    if isinstance(dtype, np.dtype):
        return dtype
    plain = getattr(dtype, "numpy_dtype", None)
    call = "'float64'"
    if isinstance(plain, np.dtype):
        if name == "target" and plain.kind in "iu":
            call = f"'{plain}', na_value=-100" if plain.kind == "i" else f"'{plain}'"
        elif plain.kind == "f" or name == "where":
            call = f"'{plain}'"
    raise TypeError(
        f"{name} is a pandas {kind} of dtype {dtype}, which NumPy converts to Python objects, for "
        f"it may hold missing values: pass {name}.to_numpy({call})"
    )
