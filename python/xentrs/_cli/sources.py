"""Arrays in files, read in C order a block at a time.

A file may be larger than the memory, and than the limit of the address space (`ulimit -v`). So
nothing is mapped as a whole: a block is read into a buffer that the next block overwrites.

The kind of a file is told by its first bytes, not by its name. Pickled objects are never loaded.
"""

from __future__ import annotations

import abc
import ast
import json
import math
import os
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xentrs._cli.errors import InputError, MissingLibrary, decoding, errors_of

Array: TypeAlias = NDArray[Any]

_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"
_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_PICKLED = "holds pickled Python objects, which are never loaded"

# The longest header that is read: a safetensors file may have thousands of tensors.
_HEADER = 100 << 20

_SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class Source(abc.ABC):
    """An array in a file, read once from its beginning to its end."""

    def __init__(self, file: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.file = file
        self.shape = shape
        self.dtype = dtype

    @property
    def size(self) -> int:
        """The count of its numbers."""
        return math.prod(self.shape)

    @abc.abstractmethod
    def read(self, count: int) -> Array:
        """Return the next `count` numbers in C order: an array that the next call may overwrite.

        Nobody reads beyond the end. For logits it is always a number of whole rows.
        """

    def skip(self, count: int) -> None:
        """Pass over numbers."""
        while count > 0:
            count -= self.read(min(count, 1 << 20)).size

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the file."""


class Listed(NamedTuple):
    """An array of a file, before it is opened."""

    key: str
    shape: tuple[int, ...]
    dtype: str


def split(spec: str) -> tuple[str, str | None]:
    """Return the file and the key of `FILE[:key]`. A file whose name has colons is found too."""
    if os.path.exists(spec):
        return spec, None
    parts = spec.split(":")
    for end in range(len(parts) - 1, 0, -1):
        file = ":".join(parts[:end])
        if os.path.exists(file):
            return file, ":".join(parts[end:])
    return parts[0] if len(parts) == 2 else spec, None


def open_source(
    spec: str, block: int, *, others: tuple[str, ...] = (), logits: bool = False
) -> Source:
    """Open the array that `FILE[:key]` names, to be read in blocks of about `block` bytes.

    Parameters
    ----------
    spec : str
        The array.
    block : int
        About how many bytes to read at a time.
    others : tuple of str, optional
        The arrays that other options name. Their columns are no classes of this one.
    logits : bool, default False
        Whether it has logits: then each column must be floats.
    """
    file, key = split(spec)
    kind = _kind(file)
    if kind == "npy":
        if key is not None:
            raise InputError(file, f"is an .npy file, which has no member {key!r}")
        with errors_of(file):
            return _open_npy(file, os.open(file, _READ), 0, None, block)
    if kind == "npz":
        return _open_npz(file, key, block)
    if kind == "safetensors":
        return _open_safetensors(file, key)
    from xentrs._cli import tables

    keys = tuple(other for path, other in map(split, others) if other and _is_same(path, file))
    return tables.open_column(file, kind, key, block, others=keys, logits=logits)


def _is_same(one: str, other: str) -> bool:
    """Whether two paths lead to the same file."""
    return os.path.exists(one) and os.path.samefile(one, other)


def list_file(file: str) -> Iterator[Listed | InputError | MissingLibrary]:
    """Yield the arrays of a file, and what is wrong with those that cannot be read."""
    try:
        kind = _kind(file)
        if kind == "npy":
            source = open_source(file, 1)
            source.close()
            yield Listed("", source.shape, str(source.dtype))
        elif kind == "npz":
            with _zip(file) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
            for name in names:
                try:
                    source = _open_npz(file, name, 1)
                except (InputError, MissingLibrary) as error:
                    yield error
                    continue
                source.close()
                yield Listed(name, source.shape, str(source.dtype))
        elif kind == "safetensors":
            with open(file, "rb") as opened:
                tensors, _ = _safetensors_header(file, opened)
            for name, tensor in tensors.items():
                yield Listed(name, tuple(tensor["shape"]), tensor["dtype"].lower())
        else:
            from xentrs._cli import tables

            for one in tables.list_columns(file, kind):
                yield Listed(*one)
    except (InputError, MissingLibrary) as error:
        yield error


def one_of(file: str, what: str, names: list[str], key: str | None) -> str:
    """Return the name that `key` means: the only one there is, if it is None."""
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    if key is None:
        if len(names) == 1:
            return names[0]
        if not names:
            raise InputError(file, f"has no {what}")
        raise InputError(file, f"has {len(names)} {what}s: say which, as {file}:NAME, of {shown}")
    if key not in names:
        raise InputError(file, f"has no {what} {key!r}" + (f"; it has {shown}" if names else ""))
    return key


def bfloat16() -> np.dtype[Any]:
    """Return the dtype of bfloat16."""
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise MissingLibrary("bfloat16", "ml_dtypes") from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def _kind(file: str) -> str:
    """Tell the format of a file by its first bytes."""
    with errors_of(file):
        mode = os.stat(file).st_mode
        if stat.S_ISDIR(mode):
            raise InputError(file, "is a directory")
        if not stat.S_ISREG(mode):
            raise InputError(file, "is no regular file: only those can be read by blocks")
        with open(file, "rb") as opened:
            start = opened.read(9)
    if not start:
        raise InputError(file, "is empty")
    kinds = {
        _NPY: "npy",
        _ZIP: "npz",
        _EMPTY_ZIP: "npz",
        _PARQUET: "parquet",
        _ARROW_FILE: "arrow file",
        _ARROW_STREAM: "arrow stream",
    }
    for magic, kind in kinds.items():
        if start.startswith(magic):
            return kind
    if start[8:] == b"{" or file.endswith(".safetensors"):
        return "safetensors"
    if start[:1] == b"\x80" and 2 <= start[1] <= 5:
        raise InputError(file, f"is a pickle: it {_PICKLED}")
    raise InputError(file, "is none of .npy, .npz, .safetensors, Parquet and Arrow IPC")


# Numbers as they lie in a file

_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # Windows would translate line ends


def _read_at(handle: int, view: memoryview, at: int) -> int:
    """Read what lies at an offset of a file into memory; return how many bytes there were."""
    if hasattr(os, "preadv"):
        return os.preadv(handle, [view], at)
    os.lseek(handle, at, os.SEEK_SET)  # on Windows; a handle has one reader
    found = os.read(handle, min(len(view), 1 << 24))
    view[: len(found)] = found
    return len(found)


def _bytes_at(handle: int, count: int, at: int) -> bytes:
    """Return what lies at an offset of a file, at most `count` bytes."""
    found = bytearray(count)
    return bytes(found[: _read_at(handle, memoryview(found), at)])


class _Raw(Source):
    """Numbers that lie one after the other in a file."""

    def __init__(
        self, file: str, handle: int, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        super().__init__(file, shape, dtype)
        self._handle = handle
        self._next = offset
        self._buffer: Array = np.empty(0, dtype)

    def read(self, count: int) -> Array:
        block = self._space(count)
        self._fill(block.view(np.uint8).data, self._next)
        self._next += block.nbytes
        return block

    def skip(self, count: int) -> None:
        self._next += count * self.dtype.itemsize

    def close(self) -> None:
        os.close(self._handle)

    def _space(self, count: int) -> Array:
        if self._buffer.size < count:
            self._buffer = np.empty(0, self.dtype)  # gone before the next one is made
            self._buffer = np.empty(count, self.dtype)
        return self._buffer[:count]

    def _fill(self, view: memoryview, at: int) -> None:
        done = 0
        with errors_of(self.file):
            while done < len(view):
                got = _read_at(self._handle, view[done:], at + done)
                if got == 0:
                    raise InputError(self.file, f"is truncated: it ends at byte {at + done}")
                done += got


class _FortranTable(_Raw):
    """A table in Fortran order: each column lies one after the other.

    A call reads a few rows of one column, however many columns there are. Where these few are less
    than a KiB, more rows than are asked for are read and kept, up to the bytes of eight blocks.
    """

    def __init__(
        self,
        file: str,
        handle: int,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        block: int,
    ) -> None:
        super().__init__(file, handle, offset, shape, dtype)
        self._first = offset
        self._at = 0  # the count of numbers that were read
        self._ahead = min(1 << 10, 8 * block // shape[1]) // dtype.itemsize  # rows
        self._kept = range(0)  # rows that are in memory
        self._columns: Array = np.empty((shape[1], 0), dtype)

    def read(self, count: int) -> Array:
        rows, columns = self.shape
        first, last = self._at // columns, -(-(self._at + count) // columns)
        if last > self._kept.stop:
            self._keep(range(first, min(rows, max(last, first + self._ahead))))
        begin = self._at - first * columns
        self._at += count
        start = self._kept.start
        found = self._columns[:, first - start : last - start]
        return found.T.reshape(-1)[begin : begin + count]

    def skip(self, count: int) -> None:
        self._at += count

    def _keep(self, kept: range) -> None:
        """Read these rows."""
        rows, columns = self.shape
        size = self.dtype.itemsize
        block = self._space(len(kept) * columns)
        view = block.view(np.uint8).data
        step = len(kept) * size
        for column in range(columns):
            part = view[column * step : (column + 1) * step]
            self._fill(part, self._first + (column * rows + kept.start) * size)
        self._kept, self._columns = kept, block.reshape(columns, len(kept))


class _Scattered(_Raw):
    """An array of more than two axes in Fortran order, which is mapped as a whole."""

    def __init__(
        self, file: str, handle: int, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        super().__init__(file, handle, offset, shape, dtype)
        self._at = 0
        with errors_of(file), os.fdopen(os.dup(handle), "rb") as opened:
            self._mapped = np.memmap(opened, dtype, "r", offset, shape, "F")

    def read(self, count: int) -> Array:
        last, inner = self.shape[-1], self.shape[:-1]
        places = np.arange(self._at, self._at + count)
        if self._at % last == 0 and count % last == 0:
            rows = np.unravel_index(places[::last] // last, inner)
            block: Array = np.asarray(self._mapped[rows])
        else:
            block = np.asarray(self._mapped[np.unravel_index(places, self.shape)])
        self._at += count
        return block.reshape(-1)

    def skip(self, count: int) -> None:
        self._at += count


def _open_raw(
    file: str,
    handle: int,
    offset: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    end: int,
    *,
    fortran: bool = False,
    block: int = 0,
) -> Source:
    """Return the numbers at an offset of a file, of which they take no more than up to `end`."""
    needed = math.prod(shape) * dtype.itemsize
    there = min(end, os.fstat(handle).st_size) - offset
    if there < needed:
        os.close(handle)
        raise InputError(
            file,
            f"is truncated: {shape} numbers of {dtype} take {needed} bytes, but {max(there, 0)} "
            "are there",
        )
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, offset, needed, os.POSIX_FADV_SEQUENTIAL)
    if not (fortran and needed and sum(n > 1 for n in shape) > 1):
        return _Raw(file, handle, offset, shape, dtype)
    if len(shape) == 2:
        return _FortranTable(file, handle, offset, shape, dtype, block)
    return _Scattered(file, handle, offset, shape, dtype)


# NumPy's files


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    length: int  # bytes of the header


def _npy_header(file: str, read: Callable[[int], bytes]) -> _Header:
    """Read the header of NumPy's format, versions 1 to 3."""
    start = read(8)
    if start[:6] != _NPY:
        raise InputError(file, "is no array of NumPy's format")
    wide = start[6:7] != b"\x01"
    prefix = read(4 if wide else 2)
    if len(start) < 8 or len(prefix) < (4 if wide else 2):
        raise InputError(file, "is truncated: it ends within its header")
    (length,) = struct.unpack("<I" if wide else "<H", prefix)
    if not 1 <= start[6] <= 3 or length > 1 << 20:
        raise InputError(file, f"has a header of version {start[6]} and {length} bytes: damaged?")
    text = read(length)
    if len(text) < length:
        raise InputError(file, "is truncated: it ends within its header")
    try:
        header = ast.literal_eval(text.decode("utf-8" if start[6] == 3 else "latin-1"))
        shape = tuple(header["shape"])
        dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(header["descr"])
        fortran = bool(header["fortran_order"])
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("shape")
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise InputError(file, "has a header that is damaged") from error
    if dtype.hasobject:
        raise InputError(file, _PICKLED)
    if dtype.kind == "V" and dtype.names is None and dtype.itemsize == 2:
        dtype = bfloat16()  # which NumPy stores as two bytes without a meaning
    return _Header(shape, dtype, fortran, len(start) + len(prefix) + length)


def _open_npy(file: str, handle: int, offset: int, size: int | None, block: int) -> Source:
    """Open what begins at an offset of a file, and takes `size` bytes if it has a known end."""
    at = offset

    def read(count: int) -> bytes:
        nonlocal at
        if size is not None:
            count = min(count, offset + size - at)
        found = _bytes_at(handle, count, at)
        at += len(found)
        return found

    try:
        header = _npy_header(file, read)
    except BaseException:
        os.close(handle)
        raise
    end = os.fstat(handle).st_size if size is None else offset + size
    begin = offset + header.length
    fortran = header.fortran
    return _open_raw(
        file, handle, begin, header.shape, header.dtype, end, fortran=fortran, block=block
    )


class _Stream(Source):
    """A compressed member of a zip file, decompressed block by block."""

    def __init__(self, file: str, stream: IO[bytes], header: _Header) -> None:
        super().__init__(file, header.shape, header.dtype)
        self._stream = stream
        self._left = self.size
        self._buffer: Array = np.empty(0, header.dtype)

    def read(self, count: int) -> Array:
        if self._buffer.size < count:
            self._buffer = np.empty(0, self.dtype)
            self._buffer = np.empty(count, self.dtype)
        block = self._buffer[:count]
        view = block.view(np.uint8).data
        done = 0
        with decoding(self.file):
            while done < len(view):
                part = self._stream.read(min(len(view) - done, 1 << 20))
                if not part:
                    raise InputError(self.file, "is truncated: a member ends before its numbers do")
                view[done : done + len(part)] = part
                done += len(part)
            self._left -= count
            if self._left == 0:
                self._stream.read(1)  # at the end zipfile compares the checksum
        return block

    def close(self) -> None:
        self._stream.close()


def _zip(file: str) -> zipfile.ZipFile:
    with decoding(file):
        try:
            return zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            message = "is truncated or damaged: the list of its members, at the end, is not there"
            raise InputError(file, message) from error


def _open_npz(file: str, key: str | None, block: int) -> Source:
    with _zip(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if key is not None and key not in members:
            key = key.removesuffix(".npy")
        info = members[one_of(file, "member", list(members), key)]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            with decoding(file):
                stream = archive.open(info)
                header = _npy_header(file, stream.read)
            if header.fortran and sum(n > 1 for n in header.shape) > 1:
                return _unpacked(file, stream, header, block)
            return _Stream(file, stream, header)
    with errors_of(file):
        handle = os.open(file, _READ)
        # Name and extra field may be longer here than in the list at the end of the file.
        local = _bytes_at(handle, 30, info.header_offset)
        if len(local) < 30 or local[:4] != _ZIP:
            os.close(handle)
            raise InputError(file, f"is damaged: member {info.filename!r} is not where it should")
        name, extra = struct.unpack("<HH", local[26:30])
        begin = info.header_offset + 30 + name + extra
        return _open_npy(file, handle, begin, info.file_size, block)


def _unpacked(file: str, stream: IO[bytes], header: _Header, block: int) -> Source:
    """Decompress columns into a temporary file, since rows are wanted."""
    with stream, tempfile.TemporaryFile() as copy:
        with decoding(file):
            while part := stream.read(1 << 20):
                copy.write(part)
            copy.flush()
        handle = os.dup(copy.fileno())
        end = os.fstat(handle).st_size
        return _open_raw(
            file, handle, 0, header.shape, header.dtype, end, fortran=True, block=block
        )


# safetensors


def _safetensors_header(file: str, opened: IO[bytes]) -> tuple[dict[str, Any], int]:
    """Return the tensors of a file by name, and the offset that theirs are counted from."""
    start = opened.read(8)
    if len(start) < 8:
        raise InputError(file, "is truncated: it ends within its header")
    (length,) = struct.unpack("<Q", start)
    if length > _HEADER:
        raise InputError(file, f"has a header of {length} bytes: damaged, or no safetensors?")
    text = opened.read(length)
    if len(text) < length:
        raise InputError(file, "is truncated: it ends within its header")
    try:
        tensors = json.loads(text)
        tensors.pop("__metadata__", None)
        for tensor in tensors.values():
            begin, end = tensor["data_offsets"]
            numbers = [*tensor["shape"], begin, end]
            if not all(type(n) is int and n >= 0 for n in numbers) or end < begin:
                raise ValueError("data_offsets")
            str.lower(tensor["dtype"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(file, "has a header that is damaged") from error
    return tensors, 8 + length


def _open_safetensors(file: str, key: str | None) -> Source:
    with errors_of(file):
        with open(file, "rb") as opened:
            tensors, first = _safetensors_header(file, opened)
        key = one_of(file, "tensor", list(tensors), key)
        tensor = tensors[key]
        if tensor["dtype"] == "BF16":
            dtype = bfloat16()
        elif tensor["dtype"] in _SAFETENSORS:
            dtype = np.dtype(_SAFETENSORS[tensor["dtype"]]).newbyteorder("<")
        else:
            raise InputError(file, f"has {key!r} as {tensor['dtype']}, which is not supported")
        shape = tuple(tensor["shape"])
        begin, end = tensor["data_offsets"]
        needed = math.prod(shape) * dtype.itemsize
        if end - begin != needed:
            raise InputError(
                file,
                f"is damaged: {key!r} of shape {shape} and dtype {dtype} takes {needed} bytes, but "
                f"its data_offsets {begin} to {end} are {end - begin} apart",
            )
        handle = os.open(file, _READ)
        return _open_raw(file, handle, first + begin, shape, dtype, first + end)
