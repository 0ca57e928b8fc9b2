"""Columns of Parquet and Arrow IPC files, read in batches.

Logits are a column of lists that have one length, or a column for each class.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from xentrs._arrays import FLOATS
from xentrs._cli.errors import InputError, MissingLibrary, decoding, reason
from xentrs._cli.sources import Array, Source, one_of
from xentrs._foreign import of_arrow

# Rows that are read first, to learn the length of their lists.
_FIRST = 16


def open_column(
    file: str,
    kind: str,
    key: str | None,
    block: int,
    *,
    others: tuple[str, ...] = (),
    logits: bool = False,
) -> Source:
    """Open the column of a file that `key` names, or several by a pattern such as `class_*`.

    A pattern leaves out the columns of `others`, the keys of other options, and pandas' index.
    Columns of `logits` must be floats.
    """
    table = _Table(file, kind)
    names, single = _chosen(table, key, others, logits)
    for name in names:
        count = table.schema.names.count(name)
        if count > 1:
            raise InputError(file, f"has {count} columns of the name {name!r}, which must differ")
    if logits and not single:
        _check_floats(table, names)
    return _Columns(table, names, single, block)


def list_columns(file: str, kind: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Return name, shape and type of the columns of a file."""
    table = _Table(file, kind)
    return [(field.name, (table.rows,), str(field.type)) for field in table.schema]


class _Table:
    """A file of columns."""

    def __init__(self, file: str, kind: str) -> None:
        try:
            import pyarrow
        except ModuleNotFoundError:
            raise MissingLibrary(file, "pyarrow") from None
        # Arrow's other pools reserve address space ahead, of which a limit may leave little.
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())
        self.file, self.kind = file, kind
        with decoding(file):
            if kind == "parquet":
                with _parquet(file) as opened:
                    self.schema: Any = opened.schema_arrow
                    self.rows: int = opened.metadata.num_rows
            else:
                with _ipc(file, kind) as opened:
                    self.schema = opened.schema
                # Where the file is mapped, only the pages with the counts are read.
                self.rows = sum(batch.num_rows for batch in self._batches([], _FIRST))

    def batches(self, columns: list[str], rows: int) -> Iterator[Any]:
        """Yield some columns in batches: of at most `rows` rows, where the format has no own."""
        with decoding(self.file):
            yield from self._batches(columns, rows)

    def _batches(self, columns: list[str], rows: int) -> Iterator[Any]:
        if self.kind == "parquet":
            with _parquet(self.file) as opened:
                yield from opened.iter_batches(rows, columns=columns, use_threads=False)
            return
        names = list(self.schema.names)
        wanted = [names.index(name) for name in columns] or [0]
        with _ipc(self.file, self.kind, wanted if names else []) as opened:
            if self.kind == "arrow stream":
                found = iter(opened)
            else:
                found = (opened.get_batch(i) for i in range(opened.num_record_batches))
            for batch in found:
                batch.validate(full=True)  # offsets of lists that are damaged lead anywhere
                yield batch


def _parquet(file: str) -> Any:
    import pyarrow.parquet

    # Pages are read when they are needed, not a group of rows ahead.
    return pyarrow.parquet.ParquetFile(
        file, memory_map=False, buffer_size=1 << 20, pre_buffer=False
    )


@contextmanager
def _ipc(file: str, kind: str, fields: list[int] | None = None) -> Iterator[Any]:
    """Open an Arrow IPC file, mapped if the limit of the address space allows it."""
    import pyarrow

    options = pyarrow.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    try:
        source = pyarrow.memory_map(file)
    except OSError:
        source = pyarrow.OSFile(file)
    open_it = pyarrow.ipc.open_stream if kind == "arrow stream" else pyarrow.ipc.open_file
    with source, open_it(source, options=options) as opened:
        yield opened


def _chosen(
    table: _Table, key: str | None, others: tuple[str, ...], logits: bool
) -> tuple[list[str], bool]:
    """Return the names of the columns that are meant, and whether it is a single one."""
    every = list(table.schema.names)
    if key is not None and key in every:
        return [key], True
    matching = every if key is None else fnmatch.filter(every, key)
    elsewhere = _index_columns(table)
    for other in others:
        theirs = {other} if other in every else set(fnmatch.filter(every, other))
        # Of two patterns that share columns, the narrower one means them.
        if theirs < set(matching):
            elsewhere |= theirs
    names = [name for name in matching if name not in elsewhere]
    if key is not None and names:
        return names, False
    if matching and not names:
        what = "pandas' index or what other options name"
        raise InputError(table.file, f"has no column {key or '*'!r} that is not {what}")
    if key is None and len(names) > 1:
        kinds = _types(table)
        floats = [_is_float(kinds[name]) for name in names]
        # Logits with a column that is no float are refused with its name.
        if all(floats) or (logits and sum(floats) > 1):
            return names, False
    return [one_of(table.file, "column", names if key is None else every, key)], True


def _index_columns(table: _Table) -> set[str]:
    """Return the columns that pandas stored as the index of its table."""
    try:
        columns = json.loads((table.schema.metadata or {})[b"pandas"])["index_columns"]
        return {name for name in columns if isinstance(name, str)}  # a range is no column
    except (KeyError, TypeError, ValueError, RecursionError):
        return set()


def _types(table: _Table) -> dict[str, Any]:
    return {field.name: field.type for field in table.schema}


def _is_float(kind: Any) -> bool:
    numbers = kind.value_type if hasattr(kind, "index_type") else kind  # of a dictionary
    return str(numbers) in ("halffloat", "float", "double")


def _is_list(kind: Any) -> bool:
    return hasattr(kind, "value_type") and not hasattr(kind, "index_type")


def _check_floats(table: _Table, names: list[str]) -> None:
    """Refuse columns of logits that are neither floats nor lists."""
    kinds = _types(table)
    for name in names:
        kind = kinds[name]
        if not (_is_float(kind) or _is_list(kind) or hasattr(kind, "storage_type")):
            raise InputError(
                table.file,
                f"column {name!r} is {kind}, but logits must be {FLOATS}: choose the columns of "
                f"the classes by a pattern, as {table.file}:'class_*'",
            )


class _Columns(Source):
    """The numbers of one column, or of several side by side."""

    def __init__(self, table: _Table, names: list[str], single: bool, block: int) -> None:
        self._names, self._single = names, single
        self._table = table
        self.file = table.file
        first = self._numbers(table.schema.empty_table().select(names), 0)
        for batch in table.batches(names, _FIRST):
            if batch.num_rows:
                first = self._numbers(batch.slice(0, _FIRST), 0)
                break
        super().__init__(table.file, (table.rows, *first.shape[1:]), first.dtype)
        row = max(first[:1].nbytes, 1)
        self._batches = table.batches(names, max(block // row, 1))
        self._limit = max(block // row, 1)
        self._row = 0
        self._blocks = self._flat_blocks()
        self._rest: Array = np.empty(0, first.dtype)

    def read(self, count: int) -> Array:
        parts: list[Array] = []
        while count:
            if not self._rest.size:
                self._rest = next(self._blocks, self._rest)
                if not self._rest.size:
                    raise InputError(self.file, f"ends after row {self._row}")
            part, self._rest = self._rest[:count], self._rest[count:]
            parts.append(part)
            count -= part.size
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else self._rest[:0]

    def close(self) -> None:
        self._batches.close()  # type: ignore[attr-defined]

    def _flat_blocks(self) -> Iterator[Array]:
        for batch in self._batches:
            for start in range(0, batch.num_rows, self._limit):
                part = batch.slice(start, self._limit)
                numbers = self._numbers(part, self._row)
                if numbers.shape[1:] != self.shape[1:]:
                    raise InputError(
                        self.file,
                        f"has {self._shown()} of shape {numbers.shape[1:]} from row {self._row} "
                        f"on, but of shape {self.shape[1:]} before",
                    )
                self._row += part.num_rows
                yield numbers.reshape(-1)

    def _numbers(self, batch: Any, row: int) -> Array:
        """Return a batch as an array with a row for each of its rows."""
        try:
            columns = [self._column(column) for column in batch.columns]
        except Exception as error:
            with suppress(NotImplementedError, TypeError, ValueError):  # of a type without nulls
                self._refuse_nulls(batch, row)
            rows = f"rows {row} to {row + max(batch.num_rows, 1) - 1}"
            raise InputError(self.file, f"{rows}: {reason(error)}") from error
        if self._single:
            return columns[0]
        if any(column.ndim > 1 for column in columns):
            raise InputError(self.file, f"has lists in {self._shown()}: name a single column")
        return np.stack(columns, axis=1)

    def _column(self, column: Any) -> Array:
        if hasattr(column, "combine_chunks"):
            column = column.combine_chunks()
        if hasattr(column, "dictionary_decode"):
            column = column.dictionary_decode()
        found = of_arrow(self._shown(), column)
        if found is not column:
            return np.asarray(found)
        if column.null_count:
            raise ValueError(f"{self._shown()} has missing values")
        numbers = column.to_numpy(zero_copy_only=False)
        return numbers.astype(str) if numbers.dtype == object else np.asarray(numbers)

    def _refuse_nulls(self, batch: Any, row: int) -> None:
        """Name the first row that has missing values, and the columns that have them there."""
        firsts = [_first_null(column) for column in batch.columns]
        first = min((one for one in firsts if one is not None), default=None)
        if first is not None:
            names = [n for n, one in zip(batch.schema.names, firsts, strict=True) if one == first]
            values = "a missing value" if len(names) == 1 else "missing values"
            verb = "has" if len(names) == 1 else "have"
            message = f"row {row + first}: {_columns_named(names)} {verb} {values}"
            raise InputError(self.file, message)

    def _shown(self) -> str:
        return _columns_named(self._names)


def _columns_named(names: list[str]) -> str:
    """Return some columns as a message has them."""
    shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    return f"column{'' if len(names) == 1 else 's'} {shown}"


def _first_null(column: Any) -> int | None:
    """Return the first row of a column that is missing, or that is a list with a missing value."""
    import pyarrow.compute

    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
    rows = []
    if column.null_count:
        rows.append(int(np.argmin(column.is_valid().to_numpy(zero_copy_only=False))))
    if _is_list(column.type):
        inner = _first_null(pyarrow.compute.list_flatten(column))
        if inner is not None:
            rows.append(pyarrow.compute.list_parent_indices(column)[inner].as_py())
    return min(rows, default=None)
