"""Cross-entropy of Dask arrays: lazy, over chunks of samples and of classes.

    loss = xentrs.dask.cross_entropy(logits, target)    # a lazy scalar
    meter = xentrs.dask.evaluate(logits, target)        # a Delayed of a CrossEntropyMeter
    print(meter.compute().compute().perplexity)

A chunk of logits is read and reduced in one task, so that a worker holds no more than the chunks
that it reads now. What is left of a chunk, exact sums or a state of a few numbers a sample, is
merged in a tree. Dask is imported when a function is called.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xentrs import _arrays
from xentrs._exact import ExactSums, rounded
from xentrs._losses._types import Ignored, Reduction
from xentrs._meter import CrossEntropyMeter
from xentrs._meter.arguments import group_names
from xentrs._meter.sums import ROW
from xentrs._partial import PartialCrossEntropy, _checked

__all__ = ["cross_entropy", "evaluate"]

_Array: TypeAlias = NDArray[Any]

# Meters that a task merges. States of slices, which grow with the samples, are merged in pairs.
_FAN = 8

# Where a chunk lies on an axis. Its first element is NaN if sizes of chunks are not known.
_PLACE = [("chunk", np.int64), ("first", np.float64)]

_UNKNOWN = "logits has chunks of classes and of unknown sizes: call compute_chunk_sizes()"


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: Any = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
) -> Any:
    """Return the cross-entropy of a Dask array of logits, lazily.

    Parameters
    ----------
    logits : dask.array.Array
        The logits, with the classes on `axis`, in chunks of samples, of classes or of both.
    target : array_like or dask.array.Array
        Class indices, of the shape of `logits` without the class axis, in any chunks.
        Probabilities, of the shape of `logits`, are accepted for ``"mean"`` and ``"sum"``.
    axis : int, default -1
        The class axis.
    weight : array_like of shape (C,), optional
        Weight of each class.
    sample_weight : array_like or dask.array.Array, optional
        Weight of each sample.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing; None for no such index.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: the target becomes (1 - e) times itself plus e / C in every class.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the samples, their sum, or the loss of each sample.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the total weight of the samples. Not negative.
    base : float, optional
        Base of the logarithm: 2 gives bits. The default is e, for nats.

    Returns
    -------
    dask.array.Array
        The loss: lazy, without axes and of float64, or for ``"none"`` of the shape of the samples
        and in the chunks of `logits`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above.
    ValueError
        If shapes do not fit, or an option has a value other than above.
    IndexError
        When it is computed, if a class index is neither a class nor ignored.

    See Also
    --------
    xentrs.cross_entropy : the loss of arrays in memory.
    xentrs.PartialCrossEntropy : what chunks of classes are reduced to.

    Notes
    -----
    Single losses have an error of at most 4 ULP, however the classes are cut. Their sum is exact:
    the chunks of samples change no bit of the result.
    """
    _require_dask()
    import dask
    import dask.array as da

    options = _checked(
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        denominator=denominator,
        base=base,
    )
    call = _Call(logits, target, axis, options["ignore_index"], sample_weight=sample_weight)
    own = {name: options[name] for name in ("ignore_index", "label_smoothing")}
    own["weight"] = call.class_weight(weight)
    if call.is_soft:
        if reduction == "none":
            raise TypeError(
                "target has the shape of logits, but of probabilities there is no reduction='none' "
                "over chunks"
            )
        meter = _evaluated(call, CrossEntropyMeter(**own, axis=call.axis, top_k=()))
        sums = dask.delayed(_sums_of_meter, pure=True)(meter)
    else:
        parts = call.partials(own)
        if reduction == "none":
            losses = dask.delayed(functools.partial(_losses, base=options["base"]), pure=True)
            return call.assembled([losses(part) for part in parts])
        add_up = dask.delayed(_sums, pure=True)
        sums = _tree([add_up(part) for part in parts], _added, _FAN)
    names = ("reduction", "denominator", "base")
    reduced = functools.partial(_reduced, **{name: options[name] for name in names})
    return da.from_delayed(dask.delayed(reduced, pure=True)(sums), (), np.float64)


def evaluate(
    logits: Any,
    target: Any,
    *,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: Any = None,
    group: Any = None,
    reference_logits: Any = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    top_k: SupportsIndex | Iterable[SupportsIndex] = (1, 5),
    bins: SupportsIndex = 15,
    per_class: bool = False,
) -> Any:
    """Evaluate a Dask array of logits by a `xentrs.CrossEntropyMeter`, lazily.

    Parameters
    ----------
    logits : dask.array.Array
        The logits, with the classes on `axis`, in chunks of samples, of classes or of both.
    target : array_like or dask.array.Array
        Class indices, of the shape of `logits` without the class axis, or probabilities, of the
        shape of `logits`; in any chunks.
    axis : int, default -1
        The class axis.
    weight : array_like of shape (C,), optional
        Weight of each class.
    sample_weight, group : array_like or dask.array.Array, optional
        Weight and group of each sample.
    reference_logits : dask.array.Array, optional
        Logits of another model for the same samples.
    ignore_index, label_smoothing, top_k, bins, per_class
        Options of `xentrs.CrossEntropyMeter`.

    Returns
    -------
    dask.delayed.Delayed
        Its `compute` returns the `xentrs.CrossEntropyMeter` of all samples.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above.
    ValueError
        If shapes do not fit, or an option has a value other than above.
    IndexError
        When it is computed, if a class index is neither a class nor ignored.

    Notes
    -----
    The chunks change no bit of the result, nor does a worker that is lost and replaced.

    A meter needs all classes of a sample. Where these lie in several chunks, a task takes as many
    samples as fill one chunk, and reads the chunks of classes one after the other. So it holds two
    chunks at most. An array that is read from a store is read once, slice by slice. Chunks that
    tasks compute are computed once for each such slice: if that is expensive, persist the array,
    or rechunk it to chunks of samples.
    """
    _require_dask()
    call = _Call(
        logits,
        target,
        axis,
        _arrays._ignore_index(ignore_index),
        sample_weight=sample_weight,
        group=group,
        reference_logits=reference_logits,
    )
    meter = CrossEntropyMeter(
        axis=axis,
        weight=call.class_weight(weight),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        top_k=top_k,
        bins=bins,
        per_class=per_class,
    )
    return _evaluated(call, meter)


class _Call:
    """The arrays of a call, all of them in the chunks of the logits."""

    def __init__(
        self,
        logits: Any,
        target: Any,
        axis: SupportsIndex,
        ignored: tuple[int, ...],
        **others: Any,
    ) -> None:
        x = self.logits = _lazy("logits", logits)
        if not _arrays._is_float_type(x.dtype):
            raise TypeError(f"logits has dtype {x.dtype}, but must be {_arrays.FLOATS}")
        self.axis = _arrays._class_axis(_arrays._integer("axis", axis, "an int"), "logits", x)
        _arrays.refuse_pair("xentrs.dask", "logits", x, target)
        self.arrays: dict[str, Any] = {"logits": x}
        for name, value in {"target": target, **others}.items():
            if value is not None:
                lazy = _lazy(name, value, ignored if name == "target" else None)
                self.arrays[name] = self._beside(name, lazy)
        self.is_soft: bool = self.arrays["target"].ndim == x.ndim

    def class_weight(self, weight: Any) -> _Array | None:
        """Return the weights of the classes, or refuse their shape."""
        import dask

        if weight is None:
            return None
        if dask.is_dask_collection(weight):
            raise TypeError(
                f"weight is a lazy {type(weight).__name__} of Dask, but each chunk needs those of "
                "all classes: pass weight.compute()"
            )
        w = _arrays._real_array("weight", weight)
        classes = self.logits.shape[self.axis]
        if w.shape != (classes,) and not math.isnan(classes):
            raise ValueError(
                f"weight has shape {w.shape}, but must have shape ({classes},): logits have shape "
                f"{self.logits.shape} with the classes on axis {self.axis}"
            )
        return w

    def partials(self, options: dict[str, Any]) -> list[Any]:
        """Return a Delayed of the PartialCrossEntropy of each chunk of samples."""
        classes = self.logits.shape[self.axis]
        if math.isnan(classes) and self.logits.numblocks[self.axis] > 1:
            raise ValueError(_UNKNOWN)
        function = functools.partial(_partial, classes=classes, axis=self.axis, options=options)
        parts = self.blocks(function)
        rows = np.moveaxis(parts, self.axis, -1).reshape(-1, parts.shape[self.axis])
        return [_tree(list(row), _merged, 2) for row in rows]

    def blocks(self, function: Callable[..., Any]) -> Any:
        """Return a Delayed of what `function` makes of each chunk, as an array of objects.

        The function gets the chunks by the names of their arrays, and the first class of the chunk.
        Dask fuses such a task with those that read the chunk.
        """
        import dask.array as da
        import dask.utils

        labels = tuple(range(self.logits.ndim))
        pairs: list[Any] = []
        for array in self.arrays.values():
            pairs += [array, labels if array.ndim == len(labels) else self._without_axis(labels)]
        for label, sizes in enumerate(self.logits.chunks):
            places = np.zeros(len(sizes), _PLACE)
            places["chunk"] = range(len(sizes))
            places["first"] = np.cumsum((0, *sizes[:-1]))
            pairs += [da.from_array(places, chunks=1), (label,)]
        found = da.blockwise(
            _OnChunk(function, tuple(self.arrays), self.axis),
            labels,
            *pairs,
            dtype=object,
            meta=np.empty((0,) * len(labels), object),
            align_arrays=False,
            token=dask.utils.funcname(function).strip("_"),  # that of an object has its address
        )
        return found.to_delayed()

    def assembled(self, losses: list[Any]) -> Any:
        """Return an array of the samples' shape of its chunks, each of them a Delayed."""
        import dask.array as da

        chunks = self._without_axis(self.logits.chunks)
        dtype = np.float64 if self.logits.dtype.type is np.float64 else np.float32
        parts = [
            da.from_delayed(one, shape, dtype)
            for one, shape in zip(losses, itertools.product(*chunks), strict=True)
        ]
        if not chunks:
            return parts[0]
        table = np.empty(len(parts), object)
        for i, part in enumerate(parts):  # `table[:] = parts` would compute them
            table[i] = part
        return da.block(table.reshape(tuple(map(len, chunks))).tolist())

    def _without_axis(self, of_axes: tuple[Any, ...]) -> tuple[Any, ...]:
        return _arrays.without_axis(of_axes, self.axis)

    def _beside(self, name: str, array: Any) -> Any:
        """Return an array in the chunks of the logits, or refuse its shape."""
        x = self.logits
        full = {"target": array.ndim == x.ndim, "reference_logits": True}.get(name, False)
        shape, chunks = (
            (x.shape, x.chunks) if full else map(self._without_axis, (x.shape, x.chunks))
        )
        # Sizes that are not known are NaN.
        fits = array.ndim == len(shape) and all(
            n == m or math.isnan(n) or math.isnan(m)
            for n, m in zip(array.shape, shape, strict=True)
        )
        if not fits:
            needed = f"{shape}" + (f" or {x.shape}" if name == "target" else "")
            raise ValueError(
                f"{name} has shape {array.shape}, but must have shape {needed}: logits have shape "
                f"{x.shape} with the classes on axis {self.axis}"
            )
        if not any(math.isnan(n) for n in itertools.chain(*chunks, *array.chunks)):
            return array.rechunk(chunks)
        if array.numblocks != tuple(map(len, chunks)):
            raise ValueError(
                f"{name} has chunks of unknown sizes, or stands beside such: call "
                "compute_chunk_sizes() of both"
            )
        return array


class _OnChunk:
    """A function of a chunk, called with its arrays by name and with its first class."""

    def __init__(self, function: Callable[..., Any], names: tuple[str, ...], axis: int) -> None:
        self._function, self._names, self._axis = function, names, axis

    def __call__(self, *arguments: Any) -> Any:
        count = len(self._names)
        chunks = dict(zip(self._names, arguments[:count], strict=True))
        places = np.concatenate(arguments[count:])
        known = not np.isnan(places["first"]).any()
        begins = tuple(int(n) for n in places["first"]) if known else (0,) * len(places)
        samples = _arrays.without_axis(tuple(places["chunk"].tolist()), self._axis)
        with _named_in_whole(chunks, begins, self._axis, "" if known else f"chunk {samples}"):
            return self._function(chunks, int(places["first"][self._axis]))

    def __dask_tokenize__(self) -> Any:
        from dask.tokenize import normalize_token

        return "xentrs", normalize_token(self._function), self._names, self._axis


def _named_in_whole(
    chunks: dict[str, Any], begins: tuple[int, ...], axis: int, called: str = ""
) -> AbstractContextManager[None]:
    """Let messages name positions in whole arrays, where the chunks of logits begin at `begins`.

    Where that is not known, `called` is what the chunk is called.
    """
    samples = _arrays.without_axis(begins, axis)
    return _arrays.as_part(
        {name: begins if a.ndim == len(begins) else samples for name, a in chunks.items()}, called
    )


# What runs in tasks. Results are never changed: Dask may keep them.


def _partial(
    chunks: dict[str, _Array], first: int, *, classes: float, axis: int, options: dict[str, Any]
) -> PartialCrossEntropy:
    """Reduce a chunk of samples and classes, of so many classes in all."""
    x, _, samples = _arrays._class_values("logits", chunks["logits"], axis)
    number = x.shape[axis] if math.isnan(classes) else int(classes)
    # Logits of all classes that nobody reads: one number, seen at every place.
    whole = np.broadcast_to(np.zeros((), x.dtype), (*samples[:axis], number, *samples[axis:]))
    ignored = options["ignore_index"]
    t = _arrays._class_target("logits", whole, axis, chunks["target"], ignored)
    if first == 0:  # the other chunks of classes have the same target
        _arrays.check_indices("target", t, number, ignored)
    s = _arrays._sample_weight("logits", whole, axis, chunks.get("sample_weight"))
    return PartialCrossEntropy.of(x, t, first_class=first, axis=axis, sample_weight=s, **options)


def _updated(
    chunks: dict[str, _Array], first: int = 0, *, meter: CrossEntropyMeter
) -> CrossEntropyMeter:
    """Return the meter of a chunk of samples, with all of its classes."""
    arrays = dict(chunks)
    return copy.deepcopy(meter).update(arrays.pop("logits"), arrays.pop("target"), **arrays)


def _merged(parts: Sequence[Any]) -> Any:
    first = copy.deepcopy(parts[0])
    for part in parts[1:]:
        first.merge(part)
    return first


def _sums(part: PartialCrossEntropy) -> ExactSums:
    """Return the sum of the losses, and that of what the mean divides by."""
    sums = ExactSums(2)
    losses, weights = part._weighted_losses()
    sums.add(0, losses)
    sums.add(1, weights)
    sums._carry()  # now, for other processes get arrays that are read-only
    return sums


def _added(parts: Sequence[ExactSums]) -> ExactSums:
    sums = ExactSums(2)
    for part in parts:
        sums.merge(part)
    sums._carry()
    return sums


def _sums_of_meter(meter: CrossEntropyMeter) -> ExactSums:
    """Return the same two sums."""
    rows = [ROW["loss"], ROW["weight"]]
    table, sums = copy.deepcopy(meter)._sums.table, ExactSums(2)
    table._carry()
    sums.digits, sums.special, sums.first = table.digits[rows], table.special[rows], table.first
    return sums


def _reduced(
    sums: ExactSums, *, reduction: str, denominator: SupportsFloat | None, base: float | None
) -> np.float64:
    """Return the loss: a mean or a sum."""
    total, weight = sums.exact(0), sums.exact(1)
    with np.errstate(all="ignore"):
        divisor = np.float64(1.0 if base is None else math.log(base))
        if reduction == "sum":
            return np.float64(rounded(total)) / divisor
        if denominator is not None:
            divisor *= float(denominator)
            return np.float64(rounded(total)) / divisor if total else np.float64(0.0)
        return np.float64(rounded(total / weight) if weight else rounded(total) * np.inf) / divisor


def _losses(part: PartialCrossEntropy, *, base: float | None) -> _Array:
    return np.asarray(part.loss("none", base=base))


class _Rows:
    """Chunks of all classes of some samples, which a task reads one after the other."""

    def __init__(self, array: Any, blocks: tuple[range, ...]) -> None:
        # Only what these chunks need. Their own tasks stay as they are, since Dask moves a slice
        # into the task that reads from a store.
        keys = {(array.name, *place) for place in itertools.product(*blocks)}
        self._graph = dict(array.__dask_graph__().cull(keys))
        self._name, self._chunks, self._meta = array.name, array.chunks, array._meta
        self._blocks = blocks

    def __dask_tokenize__(self) -> Any:
        return "xentrs", self._name, self._chunks, self._blocks

    def read(self, name: str, part: tuple[slice, ...], axis: int) -> _Array:
        """Return some samples with all of their classes, holding one chunk beside them."""
        import dask.array as da

        array = da.Array(self._graph, self._name, self._chunks, meta=self._meta)
        shape = [len(range(*where.indices(n))) for where, n in zip(part, array.shape, strict=True)]
        result = np.empty(shape, array.dtype)
        for first, size in _places(self._chunks[axis]):
            columns = slice(first, first + size)
            found = array[(*part[:axis], columns, *part[axis + 1 :])]
            chunk = found.compute(scheduler="synchronous")
            _arrays.refuse_masked(name, chunk)
            result[(*(slice(None),) * axis, columns)] = chunk
        return result


def _updated_rows(
    lazy: dict[str, _Rows],
    chunks: dict[str, _Array],
    part: tuple[slice, ...],
    axis: int,
    meter: CrossEntropyMeter,
) -> CrossEntropyMeter:
    """Return the meter of samples whose classes lie in several chunks."""
    arrays = {name: rows.read(name, part, axis) for name, rows in lazy.items()} | chunks
    with _named_in_whole(arrays, tuple(where.start for where in part), axis):
        return _updated(arrays, meter=meter)


# Graphs


def _evaluated(call: _Call, meter: CrossEntropyMeter) -> Any:
    """Return a Delayed of the meter of all samples."""
    import dask

    if call.logits.numblocks[call.axis] == 1:
        parts = call.blocks(functools.partial(_updated, meter=meter))
        return _tree(parts.ravel().tolist(), _merged, _FAN)
    axis, ndim = call.axis, call.logits.ndim
    update = dask.delayed(_updated_rows, pure=True)
    # Chunks that a cluster holds already cannot be read anew: tasks get their parts of them.
    held = any(_is_held(a) for a in call.arrays.values() if a.ndim == ndim)
    parts = []
    for blocks in itertools.product(*_blocks(call.logits.numblocks, axis)):
        lazy = {
            name: _Rows(array, blocks)
            for name, array in call.arrays.items()
            if array.ndim == ndim and not held
        }
        for part in _cuts(call.logits.chunks, blocks, axis):
            chunks = {
                name: _one_chunk(array[part if array.ndim == ndim else call._without_axis(part)])
                for name, array in call.arrays.items()
                if name not in lazy
            }
            parts.append(update(lazy, chunks, part, axis, meter))
    return _tree(parts, _merged, _FAN)


def _blocks(numblocks: tuple[int, ...], axis: int) -> list[list[range]]:
    """Return the ranges of blocks by axis: single ones, and all of the class axis."""
    return [
        [range(n)] if i == axis else [range(k, k + 1) for k in range(n)]
        for i, n in enumerate(numblocks)
    ]


def _places(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield where each chunk of an axis begins, and its size."""
    return zip(itertools.accumulate(sizes, initial=0), sizes, strict=False)


def _cuts(
    chunks: tuple[tuple[int, ...], ...], blocks: tuple[range, ...], axis: int
) -> Iterator[tuple[slice, ...]]:
    """Cut the samples of some blocks so that a part with all of its classes fills one chunk."""
    if any(math.isnan(n) for n in itertools.chain(*chunks)):
        raise ValueError(_UNKNOWN)
    place = [
        (0, sum(sizes)) if i == axis else list(_places(sizes))[block.start]
        for i, (sizes, block) in enumerate(zip(chunks, blocks, strict=True))
    ]
    whole = tuple(slice(first, first + size) for first, size in place)
    samples = [i for i in range(len(place)) if i != axis]
    if not samples:
        yield whole
        return
    longest = max(samples, key=lambda i: place[i][1])
    first, size = place[longest]
    step = max(1, size * max(chunks[axis]) // sum(chunks[axis]))
    for start in range(first, first + max(size, 1), step):  # one part, if there are no samples
        part = slice(start, min(start + step, first + size))
        yield (*whole[:longest], part, *whole[longest + 1 :])


def _one_chunk(array: Any) -> Any:
    """Return a Delayed of a whole array. If it took the array itself, Dask would draw a key."""
    return array.rechunk(-1).to_delayed(optimize_graph=False).item()


def _is_held(array: Any) -> bool:
    """Whether a cluster holds chunks of an array: it was persisted."""
    graph = array.__dask_graph__()
    return any(type(getattr(v, "value", v)).__name__ == "Future" for v in graph.values())


def _tree(parts: list[Any], merge: Callable[..., Any], fan: int) -> Any:
    """Return a Delayed of all parts merged, so many at a time."""
    import dask

    merge = dask.delayed(merge, pure=True)
    while len(parts) > 1:
        parts = [
            merge(parts[i : i + fan]) if i + 1 < len(parts) else parts[i]
            for i in range(0, len(parts), fan)
        ]
    return parts[0]


def _require_dask() -> None:
    try:
        import dask.array  # noqa: F401
    except ModuleNotFoundError as error:
        message = "xentrs.dask needs Dask: pip install xentrs[dask]"
        raise ModuleNotFoundError(message, name=error.name) from error


def _lazy(name: str, value: Any, ignored: tuple[int, ...] | None = None) -> Any:
    """Return an argument as a Dask array."""
    import dask.array as da

    data = getattr(value, "data", None)  # of xarray
    for array in (value, data):
        if isinstance(array, da.Array):
            return array
    if hasattr(value, "to_dask_array"):
        return value.to_dask_array()
    if name == "group":
        return da.from_array(group_names(value))
    return da.from_array(_arrays._real_array(name, value, ignored))
