"""The slow path: convert arguments of any kind to the form that the kernels read.

A public function is compiled, and answers by itself if every array is *canonical*: an ndarray in
native byte order, aligned, of a dtype that agrees with the others, and C-contiguous (values and
targets of a loss with a class axis may have any strides). Otherwise it computes nothing and calls
`evaluate`, which goes through these steps:

    read    options become plain numbers, so that no code of the caller's runs afterwards
    view    every array becomes a view of our own on the caller's memory: if another thread assigns
            a shape to the caller's array, the view keeps its own
    check   dtypes, shapes and the overlap of outputs, on the views
    copy    whatever is not canonical
    call    the compiled function, which checks the values of options and the range of class indices
    return  the results, in the caller's `out` if there is one

Nothing is written to `out` before the compiled function has accepted all arguments.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, SupportsIndex, TypeAlias, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from xentrs._foreign import libraries_of, of_arrow, of_polars, of_torch, refuse_foreign
from xentrs._xentrs import LOSSES, compute, compute_rows, plain_options

_Array: TypeAlias = NDArray[Any]

# DLPack device types whose memory the CPU reads: CPU, pinned for CUDA or ROCm, CUDA managed.
_HOST_MEMORY = (1, 3, 11, 13)

# The effort that NumPy may spend on finding an element that two strided arrays share. Arrays for
# which this does not suffice are treated as overlapping.
_OVERLAP_WORK = 10_000

# The dtypes of logits and their like, for messages.
FLOATS = "float16, bfloat16, float32 or float64"

# What messages call the arrays of a target that is a pair.
_PAIR = ("target[0]", "target[1]")

# The most numbers that a check of values takes at a time, so that it needs little memory.
_BLOCK = 1 << 18


def evaluate(loss: str, order: int, arguments: dict[str, Any]) -> Any:
    """Evaluate a loss and its first `order` derivatives.

    `arguments` are those of the public function, by name and in the order of its signature.
    """
    options = dict(arguments)
    outputs = options.pop("out", None), options.pop("hess_out", None)
    name = next(iter(options))  # what the values are called
    second = LOSSES[loss]["second"]
    values, target = options.pop(name), None if second is None else options.pop(second)
    options = dict(zip(options, plain_options(loss, *options.values()), strict=True))
    if second is None:
        call = _prepare_untargeted(name, values, options, outputs)
    elif second == "teacher_logits":
        call = _prepare_teacher(name, values, target, options, outputs)
    elif LOSSES[loss]["axis"]:
        call = _prepare_classes(name, values, target, options, outputs)
    else:
        call = _prepare_elements(name, values, target, options, outputs)
    return _call(loss, order, call)


def evaluate_rows(
    function: str,
    name: str,
    values: object,
    axis: object,
    *,
    temperature: float | None = None,
    base: float | None = None,
    out: object = None,
    counts: bool = False,
) -> _Array:
    """Compute a function of rows that is no loss, of arguments of any kind.

    `name` is what messages call the values. Integers are accepted as `counts`. For a function that
    returns as many numbers as it is given, `axis` may be several axes, or None for all.
    """
    x = _count_array(name, values) if counts else _float_array(name, values)
    given = None if out is None else _output("out", out, name, x, {})
    if temperature is not None and (axis is None or isinstance(axis, Iterable)):
        axes = _axes(name, x, axis)
        moved, rows = _merged(name, x, axes)
        found = evaluate_rows(function, name, rows, -1, temperature=temperature)
        found = np.moveaxis(found.reshape(moved.shape), range(-len(axes), 0), axes)
        if given is None:
            return np.ascontiguousarray(found)
        np.copyto(np.asarray(given), found)
        return given
    at = _classes_on(axis, name, x)
    target = None if given is None else np.asarray(given).view()
    plain = _plain(x, _native(x))
    result = compute_rows(function, plain, at, temperature, base, target)
    if result is NotImplemented:  # `out` is not native, or lies between the elements of `x`
        result = done(compute_rows(function, plain, at, temperature, base, None))
    if given is None:
        return cast(_Array, result)
    if result is not target:
        np.copyto(np.asarray(given), result)
    return given


def class_loss(
    loss: str, order: int, values: object, target: object, *rest: object, name: str
) -> Any:
    """Evaluate a loss with its arguments by position, as `_xentrs.compute` takes them.

    Messages call the values by `name`.
    """
    second = LOSSES[loss]["second"]
    arrays = {name: values} if second is None else {name: values, second: target}
    options = zip((*LOSSES[loss]["options"], "out", "hess_out"), rest, strict=True)
    return evaluate(loss, order, arrays | dict(options))


def merge_axes(
    name: str, values: object, axes: object, *, counts: bool = False
) -> tuple[_Array, SupportsIndex, tuple[int, ...]]:
    """Return an array with one axis in the place of several, that axis, and the kept shape.

    `axes` is an int, several ints, or None for all axes. The kept shape is that of the array, each
    of its axes of length 1. Integers are accepted as `counts`.
    """
    x = _count_array(name, values) if counts else _float_array(name, values)
    chosen = _axes(name, x, axes)
    shape = tuple(1 if i in chosen else n for i, n in enumerate(x.shape))
    if len(chosen) == 1:
        return x, chosen[0], shape
    return _merged(name, x, chosen)[1], -1, shape


def _merged(name: str, x: _Array, axes: list[int]) -> tuple[_Array, _Array]:
    """Return an array with several axes moved to the end, and with these as one axis."""
    moved = np.moveaxis(x, axes, range(-len(axes), 0))
    kept = moved.shape[: -len(axes)]
    classes = math.prod(moved.shape[len(kept) :])
    if not classes:
        raise ValueError(f"{name} of shape {x.shape} has no classes on axes {tuple(axes)}")
    return moved, moved.reshape(*kept, classes)


def _axes(name: str, x: _Array, axes: object) -> list[int]:
    """Return one axis, several, or for None all, counted from the first, in ascending order."""
    accepted = "None, an int or several ints"
    if not x.ndim:
        raise ValueError(f"{name} must have a class axis, but its shape is ()")
    if axes is None:
        named = list(range(x.ndim))
    elif isinstance(axes, Iterable) and getattr(axes, "ndim", 1) > 0:
        named = [_integer("axis", i, accepted) for i in axes]
    else:
        named = [_integer("axis", axes, accepted)]
    chosen = {_class_axis(i, name, x) for i in named}
    if len(chosen) < max(len(named), 1):
        what = "names no axis" if not named else "names an axis twice"
        raise ValueError(f"axis is {axes!r}, which {what}")
    return sorted(chosen)


class _Call(NamedTuple):
    """The arguments of `_xentrs.compute`, and the caller's arrays that they were made of."""

    given: _Array  # the values, on the caller's memory
    outputs: tuple[_Array | None, _Array | None]  # the caller's own objects
    values: _Array  # `given`, or a copy
    rest: tuple[Any, ...]
    copied: tuple[tuple[_Array, _Array], ...] = ()  # further outputs, each with an array of ours


def _prepare_classes(
    name: str,
    values: object,
    target: object,
    options: dict[str, Any],
    outputs: tuple[object, object],
) -> _Call:
    """Read, check and copy the arguments of a loss that has a class axis."""
    ignored = _ignore_index(options["ignore_index"])
    x, axis, samples = _class_values(name, values, options["axis"])
    classes = x.shape[axis]
    pair = _is_pair(target, x)
    if pair:
        targets = dict(zip(_PAIR, _sparse_target(name, x, axis, target, ignored), strict=True))
    else:
        targets = {"target": _class_target(name, x, axis, target, ignored)}
    w = _optional("weight", options, _real_array)
    if w is not None and w.shape != (classes,):
        raise ValueError(
            f"weight has shape {w.shape}, but must have shape ({classes},): {name} of shape "
            f"{x.shape} has {classes} classes on axis {axis}"
        )
    s = _sample_weight(name, x, axis, options["sample_weight"])
    inputs = {name: x, **targets, "weight": w, "sample_weight": s}
    outs = _outputs(name, x, {k: a for k, a in inputs.items() if k != name}, *outputs)
    inputs |= dict(zip(("out", "hess_out"), outs, strict=True))
    copied = []
    for key, of in (("logsumexp_out", x.dtype), ("argmax_out", np.dtype(np.int64))):
        if options.get(key) is not None:
            array = _summary(key, options[key], name, x, axis, of, inputs)
            inputs[key] = array
            options[key] = _canonical(array, _native(array))
            if options[key] is not array:
                copied.append((array, options[key]))

    dtype = _native(x)
    t: Any
    if pair:
        t = tuple(_canonical(a, _native(a)) for a in targets.values())
    else:
        t = targets["target"]
        t = _canonical(t, _native(t)) if t.shape == samples else _plain(t, _beside(x, t))
    if w is not None:
        w = _canonical(w, _native(w) if _native(w) == dtype or _is_half(w) else np.float64)
    options |= {"axis": axis, "ignore_index": ignored, "weight": w, "sample_weight": _weights(s)}
    return _Call(x, outs, _plain(x, dtype), (t, *options.values()), tuple(copied))


def _prepare_untargeted(
    name: str, values: object, options: dict[str, Any], outputs: tuple[object, object]
) -> _Call:
    """Read, check and copy the arguments of a loss that has a class axis and no target."""
    x, axis, _ = _class_values(name, values, options["axis"])
    s = _sample_weight(name, x, axis, options["sample_weight"])
    outs = _outputs(name, x, {"sample_weight": s}, *outputs)
    options |= {"axis": axis, "sample_weight": _weights(s)}
    return _Call(x, outs, _plain(x, _native(x)), (None, *options.values()))


def _prepare_teacher(
    name: str,
    values: object,
    teacher: object,
    options: dict[str, Any],
    outputs: tuple[object, object],
) -> _Call:
    """Read, check and copy the arguments of a loss that compares a model with a teacher."""
    x, axis, _ = _class_values(name, values, options["axis"])
    t = _float_array("teacher_logits", teacher)
    if t.shape != x.shape:
        raise ValueError(f"teacher_logits has shape {t.shape}, but {name} has shape {x.shape}")
    s = _sample_weight(name, x, axis, options["sample_weight"])
    outs = _outputs(name, x, {"teacher_logits": t, "sample_weight": s}, *outputs)
    dtype, own = _native(x), _native(t)
    # A teacher of a wider type is used as it is. float32 holds both half precisions.
    both_halves = dtype != own and _is_half(x) and _is_half(t)
    t = _plain(t, np.float32 if both_halves else np.promote_types(dtype, own))
    options |= {"axis": axis, "sample_weight": _weights(s)}
    return _Call(x, outs, _plain(x, dtype), (t, *options.values()))


def _prepare_elements(
    name: str,
    values: object,
    target: object,
    options: dict[str, Any],
    outputs: tuple[object, object],
) -> _Call:
    """Read, check and copy the arguments of a loss that works element by element."""
    x = _float_array(name, values)
    t = _real_array("target", target)
    if t.shape != x.shape:
        raise ValueError(f"target has shape {t.shape}, but {name} has shape {x.shape}")
    names = [key for key in ("weight", "pos_weight") if key in options]
    weights: dict[str, _Array | None] = {key: _optional(key, options, _real_array) for key in names}
    where = _optional("where", options, _bool_array)
    full = None if where is None else _broadcast("where", where, name, x)
    for key, w in weights.items():
        options[key] = None if w is None else _suffix(key, w, name, x)
    outs = _outputs(name, x, {"target": t, **weights, "where": where}, *outputs)
    options["where"] = None if full is None else _canonical(full, np.bool_)
    t = _canonical(t, t.dtype if t.dtype == np.bool_ else _beside(x, t))
    return _Call(x, outs, _canonical(x, _native(x)), (t, *options.values()))


# The call


def _call(loss: str, order: int, call: _Call) -> Any:
    """Call the compiled function, and return its results in the caller's outputs."""
    values, rest = call.values, call.rest
    targets = [None if out is None else np.asarray(out).view() for out in call.outputs]
    spare = None  # our own copy: the gradient may take its place
    # Whether an array without elements is a copy cannot be told.
    if order and values.size and values.flags.c_contiguous:
        spare = None if np.may_share_memory(values, call.given) else values
    out, hess_out = targets
    result = compute(loss, order, values, *rest, spare if out is None else out, hess_out)
    if result is NotImplemented:
        # An output is not native, or lies between the elements of an input.
        result = done(compute(loss, order, values, *rest, spare, None))
    for array, ours in call.copied:
        np.copyto(array, ours)
    if order == 0:
        return result
    results = [result[0]]
    for value, out, target in zip(result[1:], call.outputs, targets, strict=False):
        if out is not None and value is not target:
            _copy_by_rows(np.asarray(out), value)
        results.append(value if out is None else out)
    return tuple(results)


def _copy_by_rows(to: _Array, array: _Array) -> None:
    """Copy an array, some rows at a time, so that both stay in the caches whatever their orders."""
    if array.ndim < 2 or array.size == 0:
        np.copyto(to, array)
        return
    rows = max(256, 2**14 * len(array) // array.size)
    for at in range(0, len(array), rows):
        np.copyto(to[at : at + rows], array[at : at + rows])


def done(result: Any) -> Any:
    """Return what a compiled function answered, unless it refused the arrays."""
    if result is NotImplemented:
        raise _changed()
    return result


def _changed() -> RuntimeError:
    return RuntimeError(
        "xentrs refused arrays that it made itself: were they changed during the call? "
        "If not, please report this bug"
    )


def _plain(a: _Array, dtype: DTypeLike) -> _Array:
    """Return `a` itself if it is native, aligned and of that dtype, else a copy."""
    if type(a) is np.ndarray and a.dtype == dtype and a.flags.aligned:
        return a
    # A number that the dtype does not hold becomes infinite, as NumPy has it, without a warning.
    with np.errstate(all="ignore"):
        return np.require(a, dtype, ["A"])


def _canonical(a: _Array, dtype: DTypeLike) -> _Array:
    """Return `a` itself if it is native, aligned, of that dtype and C-contiguous, else a copy."""
    return np.require(_plain(a, dtype), requirements=["C"])


def _beside(x: _Array, a: _Array) -> np.dtype[Any]:
    """Return the dtype that labels or weights `a` take beside the logits `x`.

    It is that of the computation if it holds every number of `a`, else float64. Whether float64
    numbers lose nothing as float32 is up to the compiled function.
    """
    if _is_half(x) and _is_half(a):
        return _native(a)
    dtype = np.dtype(np.float32) if _is_half(x) else _native(x)
    small = a.dtype.kind in "iu" and a.size and a.min() >= -(2**24) and a.max() <= 2**24
    return dtype if small or np.can_cast(a.dtype, dtype) else np.dtype(np.float64)


def _native(a: _Array) -> np.dtype[Any]:
    return a.dtype.newbyteorder("=")


# Arguments that are arrays


def _view(name: str, value: object) -> _Array:
    """Return a new array object on the memory of `value`; on a copy only if NumPy must make one."""
    if type(value) is np.ndarray:
        return value.view()
    refuse_masked(name, value)
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    value = of_arrow(name, of_polars(name, value))
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError) as error:  # a dtype that NumPy does not have
            raise TypeError(f"{name} cannot be read as a NumPy array: {error}") from error
    is_torch = "torch" in libraries_of(value)
    try:
        return of_torch(value) if is_torch else np.asarray(value)
    # Ragged lists; PyTorch's tensors that require a gradient.
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        hint = "; xentrs.torch takes PyTorch's tensors" if is_torch else ""
        raise kind(f"{name} cannot be read as a NumPy array: {error}{hint}") from error


def refuse_masked(name: str, value: object, depth: int = 64) -> None:
    """Refuse a masked array that masks an element, also within nested lists, down to a depth.

    No array of NumPy has more than 64 axes, and a list may contain itself.
    """
    if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
        if _is_masked(value):
            raise TypeError(
                f"{name} is a masked array, whose mask would be lost: "
                "pass a plain array (and leave elements out with ignore_index, weights or where)"
            )
    elif isinstance(value, list | tuple) and depth:
        kinds = tuple(set(map(type, value)))  # few, also of a long list of numbers
        if any(k is not np.ndarray and issubclass(k, np.ndarray | list | tuple) for k in kinds):
            for i, one in enumerate(value):
                refuse_masked(f"{name}[{i}]", one, depth - 1)


def _is_masked(array: _Array) -> bool:
    """Whether an array of a class of its own, NumPy's or another as astropy's, masks an element."""
    if isinstance(array, np.ma.MaskedArray):
        return bool(np.ma.is_masked(array))
    mask = getattr(array, "mask", None)
    return isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and bool(mask.any())


def _refuse_gpu(name: str, value: object) -> None:
    # DLPack first: `__cuda_array_interface__` raises on a PyTorch tensor that requires a gradient.
    if hasattr(value, "__dlpack_device__"):
        try:
            on_gpu = value.__dlpack_device__()[0] not in _HOST_MEMORY
        except (BufferError, NotImplementedError, RuntimeError, TypeError, ValueError):
            on_gpu = False  # on several devices, or on none: the conversion raises the error
    else:
        on_gpu = hasattr(value, "__cuda_array_interface__")
    if on_gpu:
        raise TypeError(
            f"{name} is not in the CPU's memory; use xentrs.torch for tensors on a GPU, "
            "or copy the array to the CPU"
        )


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    # The dtype of `ml_dtypes`, which need not be installed.
    return dtype.type.__name__ == "bfloat16" and dtype.itemsize == 2


def _is_half_type(dtype: np.dtype[Any]) -> bool:
    return dtype.type is np.float16 or _is_bfloat16(dtype)


def _is_half(a: _Array) -> bool:
    return _is_half_type(a.dtype)


def _is_float_type(dtype: np.dtype[Any]) -> bool:
    # Not `==`: a byte-swapped float32 is a float32 too.
    return dtype.type in (np.float32, np.float64) or _is_half_type(dtype)


def _is_float(a: _Array) -> bool:
    return _is_float_type(a.dtype)


def _is_real(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iub" or _is_floating(dtype)


def _is_floating(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or _is_bfloat16(dtype)


def _is_bool(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "b"


def _typed(
    name: str,
    value: object,
    accepts: Callable[[np.dtype[Any]], bool],
    accepted: str,
    *,
    untyped_integers: bool = False,
    ignored: tuple[int, ...] | None = None,
) -> _Array:
    """Return `value` as an array of an accepted dtype.

    A value that declares another dtype is refused before it is converted. `ignored` are the class
    indices that count for nothing, if the value may be class indices: messages name them.
    """
    if not isinstance(value, np.ndarray | np.generic | list | tuple | float | int):
        _refuse_gpu(name, value)
        refuse_foreign(name, value, ignored)
        declared = getattr(value, "dtype", None)
        if isinstance(declared, np.dtype) and not accepts(declared):
            raise _wrong_dtype(name, value, declared, accepted)
    a = _view(name, value)
    if untyped_integers and a.dtype.kind in "iu" and _is_untyped(value):
        return a.astype(np.float64)
    if not accepts(a.dtype):
        raise _wrong_dtype(name, value, a.dtype, accepted)
    return a


def _float_array(name: str, value: object) -> _Array:
    return _typed(name, value, _is_float_type, FLOATS, untyped_integers=True)


def _count_array(name: str, value: object) -> _Array:
    """Return counts or probabilities; integers as float64."""

    def accepts(dtype: np.dtype[Any]) -> bool:
        return _is_float_type(dtype) or dtype.kind in "iub"

    a = _typed(name, value, accepts, "float16, bfloat16, float32, float64, integer or bool")
    return a if _is_float(a) else a.astype(np.float64)


def _real_array(name: str, value: object, ignored: tuple[int, ...] | None = None) -> _Array:
    return _typed(name, value, _is_real, "float, integer or bool", ignored=ignored)


def _bool_array(name: str, value: object) -> _Array:
    return _typed(name, value, _is_bool, "bool")


def _optional(
    name: str, options: dict[str, Any], read: Callable[[str, object], _Array]
) -> _Array | None:
    return None if options[name] is None else read(name, options[name])


def _weights(s: _Array | None) -> _Array | None:
    """Return sample weights as the kernels take them."""
    return None if s is None else _canonical(s, _native(s) if _is_float(s) else np.float64)


def _check_weights(name: str, w: _Array) -> None:
    """Refuse weights that are negative or not finite."""
    at = 0
    for block in _blocks(w):
        bad = ~((block >= 0) & (block < math.inf))
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"{element(name, at + i, w.shape)} is {block[i]}, but must be at least 0 and finite"
            )
        at += block.size


def _is_untyped(value: object) -> bool:
    """Whether NumPy chooses the dtype: for the numbers of a list or of another sequence it does."""
    if type(value) is int:
        return True
    protocols = ("__array__", "__array_interface__", "__array_struct__", "__dlpack__")
    if any(hasattr(value, protocol) for protocol in protocols):
        return False
    try:
        memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return False  # `array.array` and its like


def _wrong_dtype(name: str, value: object, dtype: np.dtype[Any], accepted: str) -> TypeError:
    # NumPy makes an object array of a value that it does not understand: then the type says more.
    understood = isinstance(value, np.ndarray) or dtype.kind != "O"
    given = "" if understood else f" (from {type(value).__name__})"
    hint = ""
    if dtype.kind == "O":
        hint = _stacking(name, value, "integer" in accepted)
    missing = None if "float" in accepted and dtype.kind == "f" else first_missing(value, dtype)
    if missing:
        hint = f"; it has missing values: {element(name, *missing[1:])} is {missing[0]}"
    if "bfloat16" in accepted and dtype.itemsize == 2 and dtype.kind in "uV":
        hint = f"; if these are the bits of bfloat16, pass {name}.view(ml_dtypes.bfloat16)"
    return TypeError(f"{name} has dtype {dtype}{given}, but must be {accepted}{hint}")


def _stacking(name: str, value: object, integers: bool) -> str:
    """Return a hint for an object array whose elements are arrays, and none for any other.

    `integers` says whether these are accepted.
    """
    array = np.asarray(value, dtype=object)
    if not array.ndim or not array.size:
        return ""
    try:
        first = np.asarray(array.flat[0])
        if not first.ndim or not _is_real(first.dtype):
            return ""
        for i, one in enumerate(array.flat):
            if np.shape(one) != first.shape:
                return (
                    f"; it is an array of arrays, but {element(name, 0, array.shape)} has shape "
                    f"{first.shape} and {element(name, i, array.shape)} has shape {np.shape(one)}"
                )
    except (RuntimeError, TypeError, ValueError):  # ragged lists and the like
        return ""
    call = f"np.stack({name})"
    if array.shape[1:] == (1,) and hasattr(value, "iloc"):
        call = f"np.stack({name}.iloc[:, 0])"
    elif array.shape[1:] == (1,) and hasattr(value, "to_series"):  # a table of polars
        return f"; it is a table of one column of arrays: pass {name}.to_series()"
    elif array.ndim > 1:
        items = name if isinstance(value, np.ndarray) else f"{name}.to_numpy()"
        call = f"np.array({items}.tolist())"
    if not integers and first.dtype.kind in "iub":
        call += ".astype('float64')"
    return f"; it is an array of arrays: pass {call}"


def first_missing(
    value: object, dtype: np.dtype[Any]
) -> tuple[object, int, tuple[int, ...]] | None:
    """Return the first missing value of floats, objects or strings, its place, and the shape."""
    if dtype.kind not in "fOT":
        return None
    array = np.asarray(value, None if dtype.kind == "f" else object)
    if dtype.kind == "f" and array.dtype != dtype:  # what NumPy makes of it is no array of numbers
        return None
    if dtype.kind == "f":
        places = iter(np.flatnonzero(np.isnan(array)).tolist())
    else:
        places = (i for i, one in enumerate(array.flat) if is_missing(one))
    first = next(places, None)
    return None if first is None else (array.flat[first], first, array.shape)


def is_missing(value: object) -> bool:
    """Whether an element of an object array stands for a missing value."""
    nan = isinstance(value, float | np.floating) and np.isnan(value)
    return bool(nan) or value is None or type(value).__name__ == "NAType"  # that of pandas


def _class_target(
    name: str, x: _Array, axis: int, value: object, ignored: tuple[int, ...]
) -> _Array:
    """Return `value` as class indices or as probabilities, whichever its shape says."""
    t = _real_array("target", value, ignored)
    if t.shape == x.shape:
        if not _is_floating(t.dtype):
            _check_one_hot(name, t, axis)
        return t
    samples = without_axis(x.shape, axis)
    if t.shape == samples:
        if t.dtype.kind in "iu":
            return t
        if _is_floating(t.dtype):
            return _whole_numbers(
                "target",
                t,
                x.shape[axis],
                f"target has dtype {t.dtype} and the shape of class indices for {name} of shape "
                f"{x.shape}",
            )
        raise TypeError(
            f"target has dtype {t.dtype}, but must be integer: its shape {t.shape} is that of "
            f"class indices for {name} of shape {x.shape}"
        )
    message = (
        f"target has shape {t.shape}, but {name} of shape {x.shape} with the class axis {axis} "
        f"takes class indices of shape {samples} or probabilities of shape {x.shape}"
    )
    fitting = [a for a in range(x.ndim) if without_axis(x.shape, a) == t.shape]
    if fitting:  # several, if axes have the same length: then PyTorch's class axis first
        elsewhere = 1 if 1 in fitting else fitting[0]
        message += f"; if its classes are on axis {elsewhere}, pass axis={elsewhere}"
    elif isinstance(value, tuple) and len(value) == 2:
        message += (
            f"; the two arrays of a pair (indices, probabilities) have shape {_and_k(samples)}"
        )
    raise ValueError(message)


def _and_k(samples: tuple[int, ...]) -> str:
    return f"({', '.join([*map(str, samples), 'k'])}{'' if samples else ','})"


def _is_pair(target: object, x: _Array) -> bool:
    """Whether a target is a pair (indices, probabilities), not one array as a nested tuple.

    Each array of a pair has as many axes as `x`. An item of a nested tuple has fewer.
    """
    if not isinstance(target, tuple):
        return False
    for item in target[:2]:
        try:
            if np.ndim(of_arrow("target", of_polars("target", item))) >= x.ndim:
                return True
        except (RuntimeError, TypeError, ValueError):  # ragged lists and the like
            return True
    return False


def refuse_pair(caller: str, name: str, x: _Array, target: object) -> None:
    """Refuse a target that is a pair, in the words of the losses that take none."""
    if _is_pair(target, x):
        raise TypeError(
            f"{caller} takes no pair (indices, probabilities) as target: target must be class "
            f"indices, of the shape of {name} without the class axis, or probabilities of its shape"
        )


def _sparse_target(
    name: str, x: _Array, axis: int, target: Any, ignored: tuple[int, ...]
) -> tuple[_Array, _Array]:
    """Return the class indices and the probabilities of a target that is a pair."""
    if len(target) != 2:
        raise ValueError(
            f"target is a tuple of length {len(target)}, but must be a pair "
            "(indices, probabilities)"
        )
    indices = _real_array(_PAIR[0], target[0], ignored)
    q = _typed(_PAIR[1], target[1], _is_floating, "float", untyped_integers=True)
    samples = without_axis(x.shape, axis)
    for title, a in zip(_PAIR, (indices, q), strict=True):
        if a.ndim != x.ndim or a.shape[:-1] != samples:
            raise ValueError(
                f"{title} has shape {a.shape}, but {name} of shape {x.shape} with the class axis "
                f"{axis} takes a pair (indices, probabilities) of shape {_and_k(samples)}"
            )
    if q.shape != indices.shape:
        raise ValueError(
            f"{_PAIR[1]} has shape {q.shape}, but must have that of {_PAIR[0]}, {indices.shape}: "
            "the target is a pair (indices, probabilities)"
        )
    if _is_floating(indices.dtype):
        kind = f"{_PAIR[0]} has dtype {indices.dtype} and the target is (indices, probabilities)"
        indices = _whole_numbers(_PAIR[0], indices, x.shape[axis], kind)
    elif indices.dtype.kind == "b":
        raise _wrong_dtype(_PAIR[0], target[0], indices.dtype, "integer class indices")
    if not _is_float(q):
        wide = np.float32 if np.can_cast(q.dtype, np.float32) else np.float64
        with np.errstate(all="ignore"):
            q = q.astype(wide)
    return indices, q


def _whole_numbers(name: str, t: _Array, classes: int, what: str) -> _Array:
    """Return class indices that are stored as floats; `what` they are, for messages."""
    indices = np.empty(t.shape, np.int64)
    flat = indices.reshape(-1)
    at = 0
    for block in _blocks(t.astype(np.float32) if _is_half(t) else t):
        whole = np.isfinite(block) & (np.rint(block) == block)
        if not whole.all():
            i = int(np.argmin(whole))
            missing = " (missing values?)" if np.isnan(block[i]) else ""
            raise ValueError(
                f"{element(name, at + i, t.shape)} is {block[i]}{missing}, but must be a whole "
                f"number: {what}"
            )
        outside = (block < -(2.0**63)) | (block >= 2.0**63)
        if outside.any():
            i = int(np.argmax(outside))
            raise no_class(element(name, at + i, t.shape), block[i], classes)
        flat[at : at + block.size] = block
        at += block.size
    return indices


def check_indices(name: str, t: _Array, classes: int, ignored: tuple[int, ...]) -> None:
    """Refuse class indices that are neither a class nor ignored."""
    at = 0
    for block in _blocks(t):
        wrong = (block < 0) | (block >= classes)
        if np.count_nonzero(wrong) and (wrong := wrong & ~is_any_of(block, ignored)).any():
            i = int(np.argmax(wrong))
            raise no_class(element(name, at + i, t.shape), block[i], classes, ignored)
        at += block.size


def no_class(where: str, value: object, classes: int, ignored: tuple[int, ...] = ()) -> IndexError:
    """Return the error for what is neither a class nor ignored, in the compiled module's words."""
    several = "one of " if len(ignored) > 1 else ""
    others = f", or be {several}ignore_index ({', '.join(map(str, ignored))})" if ignored else ""
    return IndexError(f"{where} is {value}, but a class index must be in [0, {classes}){others}")


def check_none_ignored(ignored: tuple[int, ...]) -> None:
    """Refuse to ignore a class index beside a target of probabilities."""
    for i in ignored:
        if i >= 0:
            raise ValueError(
                f"ignore_index is {i}, but a target of probabilities has no class indices to "
                "ignore: leave it out, and give such samples a sample_weight of 0"
            )


def is_any_of(indices: _Array, chosen: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which of the indices are among some ints, which may be beyond their dtype."""
    found = np.zeros(indices.shape, np.bool_)
    for index in chosen:
        found |= indices == index
    return found


def _blocks(a: _Array) -> Iterator[_Array]:
    """Yield the numbers of `a` in C order, in blocks."""
    if a.size:
        with np.nditer(
            a,
            ["external_loop", "buffered"],
            ["readonly"],
            _native(a),
            order="C",
            casting="equiv",
            buffersize=_BLOCK,
        ) as blocks:
            yield from blocks


class _Part(NamedTuple):
    """Of which larger arrays the arguments of a call are parts."""

    begins: dict[str, tuple[int, ...]]  # where each begins there, by its name
    called: str


_part: ContextVar[_Part | None] = ContextVar("_part", default=None)


@contextmanager
def as_part(begins: dict[str, tuple[int, ...]], called: str = "") -> Iterator[None]:
    """Let messages name positions in larger arrays, in which arguments begin at these positions.

    `called` is what the part is called, where a position is named.
    """
    before = _part.set(_Part(begins, called))
    try:
        yield
    finally:
        _part.reset(before)


def element(name: str, i: int, shape: tuple[int, ...]) -> str:
    """Return what messages call element `i` of an argument, in C order."""
    return _place(name, [int(k) for k in np.unravel_index(i, shape)])


def _place(name: str, index: Sequence[int | None]) -> str:
    """Return what messages call an element of an argument, or a row: None stands for its axis."""
    begins, called = _part.get() or _Part({}, "")
    first = begins.get(name, (0,) * len(index))
    place = [":" if k is None else str(k + n) for k, n in zip(index, first, strict=True)]
    where = f"{name}[{', '.join(place)}]" if place else name
    return f"{where} of {called}" if called and name in begins else where


def _check_one_hot(name: str, t: _Array, axis: int) -> None:
    """Check that each row of integers or bools has a single 1 and is 0 elsewhere."""
    found = _not_one_hot(t, axis)
    if found is None:
        return
    row = np.array2string(np.moveaxis(t, axis, -1)[found], threshold=8, separator=", ")
    place: list[int | None] = list(found)
    place.insert(axis, None)
    where = _place("target", place) if found else "target"
    message = (
        f"{where} is {row}, but must be one-hot, a single 1 and else 0: target has dtype {t.dtype} "
        f"and the shape of {name}, {t.shape}, with classes on axis {axis}"
    )
    fitting = [a for a in range(t.ndim) if a != axis and _not_one_hot(t, a) is None]
    if fitting:
        elsewhere = 1 if 1 in fitting else fitting[0]
        message += f"; it is one-hot on axis {elsewhere}: pass axis={elsewhere}"
    elif name == "probabilities":
        message += (
            "; for binary labels with one probability each, use binary_cross_entropy, "
            "or with logits binary_cross_entropy_with_logits"
        )
    else:
        message += "; for binary labels, one for each logit, use binary_cross_entropy_with_logits"
    raise ValueError(message)


def _not_one_hot(t: _Array, axis: int) -> tuple[int, ...] | None:
    """Return the index of the first row that is not one-hot, without the row's axis."""
    rows = np.moveaxis(t, axis, -1)
    for index in row_blocks(rows):
        block = rows[index]
        # One-hot: as many numbers are 1 as there are rows, one in each, and all others are 0.
        ones, samples = block == 1, math.prod(block.shape[:-1])
        if np.count_nonzero(ones) == np.count_nonzero(block) == samples:
            places = np.flatnonzero(ones) - np.arange(samples) * block.shape[-1]
            if ((places >= 0) & (places < block.shape[-1])).all():
                continue
        wrong = (np.count_nonzero(block, axis=-1) != 1) | (block.sum(axis=-1) != 1)
        first = np.argwhere(wrong)[0]
        return tuple(int(i) + at.start for i, at in zip(first, index, strict=True))
    return None


def row_blocks(rows: _Array) -> Iterator[tuple[slice, ...]]:
    """Yield the indices of blocks of whole rows, which take little memory."""
    return sample_blocks(rows.shape[:-1], _BLOCK // max(rows.shape[-1], 1))


def sample_blocks(shape: tuple[int, ...], most: int) -> Iterator[tuple[slice, ...]]:
    """Yield the indices of blocks of at most so many samples, or of one, in C order."""
    longer = [i for i, n in enumerate(shape) if n > 1]
    if math.prod(shape) <= most or not longer:
        if math.prod(shape):
            yield tuple(slice(0, n) for n in shape)
        return
    cut = longer[0]
    step = max(1, most // math.prod(shape[cut + 1 :]))
    for first in range(0, shape[cut], step):
        n = min(step, shape[cut] - first)
        for index in sample_blocks((*shape[:cut], n, *shape[cut + 1 :]), most):
            moved = slice(index[cut].start + first, index[cut].stop + first)
            yield (*index[:cut], moved, *index[cut + 1 :])


def _broadcast(name: str, a: _Array, logits: str, x: _Array) -> _Array:
    try:
        return np.broadcast_to(a, x.shape)
    except ValueError:
        raise ValueError(
            f"{name} has shape {a.shape}, which does not broadcast to that of {logits}, {x.shape}"
        ) from None


def _suffix(name: str, a: _Array, logits: str, x: _Array) -> _Array:
    """Return `a` in a shape that the shape of `x` ends in, without broadcasting it if possible."""
    full = _broadcast(name, a, logits, x)
    shape = a.shape
    while shape and shape[0] == 1:
        shape = shape[1:]
    fits = x.shape[x.ndim - len(shape) :] == shape
    return _canonical(a.reshape(shape) if fits else full, _beside(x, a))


def _class_values(name: str, values: object, axis: object) -> tuple[_Array, int, tuple[int, ...]]:
    """Return values that have classes, the class axis, and the shape of their samples."""
    x = _float_array(name, values)
    which = _classes_on(axis, name, x)
    return x, which, without_axis(x.shape, which)


def without_axis(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return the shape of the samples of an array with its classes on `axis`."""
    return shape[:axis] + shape[axis + 1 :]


def _sample_weight(name: str, x: _Array, axis: int, value: object) -> _Array | None:
    if value is None:
        return None
    s = _real_array("sample_weight", value)
    samples = without_axis(x.shape, axis)
    if s.shape != samples:
        raise ValueError(
            f"sample_weight has shape {s.shape}, but must have shape {samples}: that of {name}, "
            f"{x.shape}, without the class axis {axis}"
        )
    return s


# Other arguments


def _integer(name: str, value: object, accepted: str) -> int:
    # A bool has __index__ too, but is a mistake where an index is meant.
    try:
        if not isinstance(value, bool | np.bool_):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise TypeError(f"{name} must be {accepted}, not {type(value).__name__}")


def _classes_on(value: object, name: str, x: _Array) -> int:
    """Return the class axis, counted from the first, which must have a class."""
    axis = _class_axis(_integer("axis", value, "an int"), name, x)
    if x.shape[axis] == 0:
        raise ValueError(f"{name} of shape {x.shape} has no classes on axis {axis}")
    return axis


def _class_axis(axis: int, name: str, x: _Array) -> int:
    if x.ndim == 0:
        raise ValueError(f"{name} must have a class axis, but its shape is ()")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"axis is {axis}, but {name} of shape {x.shape} has {x.ndim} "
            f"{'axis' if x.ndim == 1 else 'axes'}"
        )
    return axis % x.ndim


def _ignore_index(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    accepted = "None, an int or several ints"
    # A 0-d array has __iter__ too.
    if (
        isinstance(value, Iterable)
        and not isinstance(value, str | bytes)
        and getattr(value, "ndim", 1) > 0
    ):
        return tuple([_integer("ignore_index", i, accepted) for i in value])
    return (_integer("ignore_index", value, accepted),)


# Outputs


def _outputs(
    name: str, x: _Array, inputs: dict[str, _Array | None], out: object, hess_out: object
) -> tuple[_Array | None, _Array | None]:
    """Check the outputs, and return the caller's own objects, which the public function returns."""
    gradient = None if out is None else _output("out", out, name, x, inputs)
    inputs = inputs | {"out": gradient}
    hessian = None if hess_out is None else _output("hess_out", hess_out, name, x, inputs)
    return gradient, hessian


def _output(
    name: str, value: object, logits: str, x: _Array, inputs: dict[str, _Array | None]
) -> _Array:
    value = _plain_output(name, value)
    if value.dtype.type is not x.dtype.type:
        raise TypeError(
            f"{name} has dtype {value.dtype}, but must have that of {logits}, {x.dtype}"
        )
    out = np.asarray(value)
    if out.shape != x.shape:
        raise ValueError(f"{name} has shape {out.shape}, but {logits} has shape {x.shape}")
    _check_writeable(name, out)
    if not _is_same(out, x) and _overlap(out, x):
        raise ValueError(f"{name} overlaps {logits} without being the same elements")
    _check_apart(name, out, inputs)
    return value


def _summary(
    name: str,
    value: object,
    logits: str,
    x: _Array,
    axis: int,
    dtype: np.dtype[Any],
    inputs: dict[str, _Array | None],
) -> _Array:
    """Return a view of an array for one number of each sample."""
    value = _plain_output(name, value)
    if value.dtype.newbyteorder("=") != dtype.newbyteorder("="):
        of = "" if name == "argmax_out" else f", that of {logits}"
        raise TypeError(f"{name} has dtype {value.dtype}, but must have {dtype}{of}")
    out = np.asarray(value).view()
    samples = without_axis(x.shape, axis)
    if out.shape != samples:
        raise ValueError(
            f"{name} has shape {out.shape}, but must have shape {samples}: that of {logits}, "
            f"{x.shape}, without the class axis {axis}"
        )
    _check_writeable(name, out)
    _check_apart(name, out, inputs)
    return out


def _plain_output(name: str, value: object) -> _Array:
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a numpy.ndarray, not {type(value).__name__}")
    return value


def _check_apart(name: str, out: _Array, inputs: dict[str, _Array | None]) -> None:
    for other, array in inputs.items():
        if array is not None and _overlap(out, np.asarray(array)):
            raise ValueError(f"{name} overlaps {other}")


def _check_writeable(name: str, out: _Array) -> None:
    if not out.flags.writeable:
        raise ValueError(f"{name} is read-only")
    if out.size and _overlaps_itself(out):
        raise ValueError(
            f"{name} overlaps itself: two of its elements share memory, with shape {out.shape} and "
            f"strides {out.strides}"
        )


def _overlaps_itself(a: _Array) -> bool:
    """Whether two elements of an array share memory."""
    longer = [(abs(step), n) for n, step in zip(a.shape, a.strides, strict=True) if n > 1]
    end = a.itemsize  # of the elements on the axes of smaller strides
    nested = True
    for step, n in sorted(longer):
        nested &= step >= end
        end += step * (n - 1)
    if nested:
        return False
    # Where two elements share memory, so do those that lie as far apart elsewhere. So on the axes
    # before the first on which they differ both may be at 0, and one of the two on that axis too.
    for axis, n in enumerate(a.shape):
        rest = a[(0,) * axis]
        if n > 1 and _overlap(rest[:1], rest[1:]):
            return True
    return False


def _is_same(a: _Array, b: _Array) -> bool:
    """Whether two arrays of one shape have the same elements at the same addresses."""

    def place(array: _Array) -> tuple[Any, ...]:
        strides = [s for n, s in zip(array.shape, array.strides, strict=True) if n > 1]
        return array.dtype, array.__array_interface__["data"][0], strides

    return place(a) == place(b)


def _overlap(a: _Array, b: _Array) -> bool:
    try:
        # NumPy's annotation allows only two of the values that the function takes.
        return np.shares_memory(a, b, max_work=_OVERLAP_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True
