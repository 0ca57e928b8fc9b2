"""A meter's options and sums as arrays, and back."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xentrs._arrays import _is_untyped
from xentrs._exact import ExactSums
from xentrs._meter.arguments import Options, options
from xentrs._meter.histogram import BINS
from xentrs._meter.sums import COUNTS, Sums

_Array: TypeAlias = NDArray[Any]

# Version of what `write` returns.
_FORMAT = 1


def write(sums: Sums) -> dict[str, _Array]:
    """Return options and sums as arrays."""
    options = sums.options
    state: dict[str, _Array] = {
        "format": np.array(_FORMAT),
        "axis": np.array(options.axis),
        "ignore_index": np.array([str(i) for i in options.ignore_index], "U"),
        "label_smoothing": np.array(options.label_smoothing),
        "top_k": np.array(options.top_k, np.int64),
        "bins": np.array(options.bins),
        "per_class": np.array(options.per_class),
        "counts": np.array([sums.counts[name] for name in COUNTS], np.int64),
        "nans": np.array([sums.losses.nans, sums.divergences.nans], np.int64),
        "bin_counts": sums.bin_counts.copy(),
        "classes": np.array(sums.classes),
        "class_counts": sums.class_counts.copy(),
    }
    if options.weight is not None:
        state["weight"] = options.weight.copy()
    _store(state, "sums", sums.table)
    _store(state, "bin_sums", sums.bin_sums)
    for name, histogram in (("losses", sums.losses), ("divergences", sums.divergences)):
        bins = histogram.filled()
        state[f"{name}.bins"] = bins
        _store(state, name, histogram.sums, bins)
    for i, table in enumerate(sums.class_sums):
        _store(state, f"class_sums.{i}", table)
    ids = np.array(list(sums.group_ids))
    order = np.argsort(ids, kind="stable")
    state["groups"] = ids[order] if ids.size else np.zeros(0, np.int64)
    state["group_reference_counts"] = sums.group_reference_counts[order]
    for i, table in enumerate((*sums.group_sums, *sums.group_references)):
        _store(state, f"group_sums.{i}", table, order)
    return state


def _store(
    state: dict[str, _Array], name: str, sums: ExactSums, rows: _Array | None = None
) -> None:
    digits, first, special = sums.compact(slice(None) if rows is None else rows)
    state[f"{name}.digits"], state[f"{name}.first"] = digits, np.array(first)
    state[f"{name}.special"] = special


def read(state: Any) -> Sums:
    """Return the sums, and with them the options, that `write` was given."""
    reader = _Reader(state)
    if (version := reader.integer("format")) != _FORMAT:
        raise ValueError(f"state has format {version}, but this version reads {_FORMAT}")
    options = _read_options(reader)
    # Before there are sums, which take memory for each bin.
    bin_counts = reader.counts("bin_counts", options.bins + 1)
    sums = Sums(options)
    counts = reader.counts("counts", len(COUNTS))
    sums.counts = dict(zip(COUNTS, counts.tolist(), strict=True))
    sums.losses.nans, sums.divergences.nans = reader.counts("nans", 2).tolist()
    sums.bin_counts = bin_counts
    sums.classes = reader.integer("classes")
    if sums.classes < 0:
        raise ValueError(f"state['classes'] is {sums.classes}, which is below 0")
    if sums.options.weight is not None and sums.classes != sums.options.weight.size:
        raise ValueError("state['classes'] is not the length of state['weight']")
    classes = sums.classes if sums.options.per_class else 0
    sums.class_counts = reader.counts("class_counts", classes)
    sums.table = reader.sums("sums", len(sums.table))
    sums.bin_sums = reader.sums("bin_sums", len(sums.bin_sums))
    for name, histogram in (("losses", sums.losses), ("divergences", sums.divergences)):
        bins = reader.array(f"{name}.bins", "i", None)
        if bins.size and not (bins[0] >= 0 and bins[-1] < BINS and (np.diff(bins) > 0).all()):
            raise ValueError(f"state['{name}.bins'] is not ascending in [0, {BINS})")
        histogram.sums.grow(int(bins.max(initial=0)) + 1)
        histogram.sums.merge(reader.sums(name, bins.size), bins)
    sums.class_sums = [reader.sums(f"class_sums.{i}", classes) for i in range(3)]
    ids = reader.array("groups", "iU", None)
    sums.group_ids = {key: i for i, key in enumerate(ids.tolist())}
    if len(sums.group_ids) != ids.size:
        raise ValueError("state['groups'] has a group twice")
    sums.group_reference_counts = reader.counts("group_reference_counts", ids.size)
    tables = [reader.sums(f"group_sums.{i}", ids.size) for i in range(4)]
    sums.group_sums, sums.group_references = tables[:2], tables[2:]
    return sums


def _read_options(reader: _Reader) -> Options:
    names = reader.array("ignore_index", "U", None).tolist()
    try:
        ignored = tuple(int(i) for i in names)
    except ValueError:
        raise ValueError("state['ignore_index'] has no integers") from None
    try:
        return options(
            axis=reader.integer("axis"),
            weight=reader.array("weight", "fi", None) if "weight" in reader else None,
            ignore_index=ignored,
            label_smoothing=float(reader.array("label_smoothing", "fi")),
            top_k=reader.array("top_k", "i", None).tolist(),
            bins=reader.integer("bins"),
            per_class=bool(reader.array("per_class", "b")),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"state is not that of a meter: {error}") from error


class _Reader:
    """Reads a state that may be anything."""

    def __init__(self, state: Any) -> None:
        if not hasattr(state, "__getitem__") or not hasattr(state, "keys"):
            raise TypeError(f"state must be a mapping of arrays, not {type(state).__name__}")
        self._state = state
        self._names = set(state.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def array(self, name: str, kinds: str, *shape: int | None) -> _Array:
        """Return a copy of an array of such a kind of dtype and such a shape, None any length."""
        if name not in self._names:
            raise ValueError(f"state has no {name!r}: it is not what to_state returns")
        given = self._state[name]
        a = np.array(given, order="C")
        expected = tuple(length or 0 for length in shape)
        if not a.size and a.shape == expected[: a.ndim] and _is_untyped(given):
            # JSON's list without numbers: it tells neither a type nor all lengths.
            a = np.zeros(expected, kinds[0])
        fits = all(length in (None, n) for length, n in zip(shape, a.shape, strict=False))
        if a.dtype.kind not in kinds or a.ndim != len(shape) or not fits:
            raise ValueError(
                f"state[{name!r}] has dtype {a.dtype} and shape {a.shape}: it is not what "
                "to_state returns"
            )
        if a.dtype.kind == "U":
            try:
                a.tolist()
            except (SystemError, ValueError):  # NumPy's for a code point that is none
                raise ValueError(f"state[{name!r}] has strings that are none") from None
        return a if kinds == "iU" or a.dtype.kind not in "if" else a.astype(a.dtype.kind + "8")

    def counts(self, name: str, length: int) -> NDArray[np.int64]:
        a = self.array(name, "i", length)
        if (a < 0).any():
            raise ValueError(f"state[{name!r}] has counts below 0")
        return a

    def integer(self, name: str) -> int:
        return int(self.array(name, "i"))

    def sums(self, name: str, rows: int) -> ExactSums:
        table = ExactSums(rows)
        table.digits = self.array(f"{name}.digits", "i", rows, None)
        table.first = self.integer(f"{name}.first")
        table.special = self.array(f"{name}.special", "i", rows, 3)
        table.check(name)
        return table
