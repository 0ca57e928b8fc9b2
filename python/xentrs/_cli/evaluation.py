"""Files go through a meter, block by block."""

from __future__ import annotations

import contextlib
import math
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xentrs._arrays import FLOATS, _is_float_type, _is_real
from xentrs._cli.errors import InputError, reason
from xentrs._cli.sources import Array, Source

if TYPE_CHECKING:
    from xentrs import CrossEntropyMeter

# What a meter's messages begin with, and which array of ours each is.
_ARGUMENT = re.compile(r"\b(reference_logits|logits|target|sample_weight|group)\b(?:\[(\d+)\b)?")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which `kill`, `timeout` and the schedulers of clusters send."""


_SIGNALS: dict[int, type[KeyboardInterrupt]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
}


class Interrupt:
    """Ctrl-C and SIGTERM, which end the work where that is allowed.

    So an update is never cut in two, and what is saved then is the state of whole blocks. Only the
    first signal raises: `timeout` sends two, and what tidies up behind the first one is not cut.
    """

    def __init__(self) -> None:
        self._requested: type[KeyboardInterrupt] | None = None
        self._waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        with contextlib.suppress(ValueError):  # another thread than the main one has no signals
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:
                signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        self._requested = _SIGNALS[number]
        if self._waits:
            self._waits = False
            raise self._requested

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Let a signal raise at once within the block, and raise if one came before."""
        self._waits = True
        try:
            if self._requested is not None:
                raise self._requested
            yield
        finally:
            self._waits = False


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The arrays of an evaluation. All but the logits have one entry a sample."""

    logits: Source
    target: Source
    reference_logits: Source | None = None
    sample_weight: Source | None = None
    group: Source | None = None
    token_bytes: Source | None = None
    shift: bool = False

    def __post_init__(self) -> None:
        x = self.logits
        _check_logits(x)
        if self.shift and len(x.shape) < 2:
            raise InputError(
                x.file, f"has shape {x.shape}: --shift needs an axis before the classes"
            )
        samples = x.shape[:-1]
        t = self.target
        if t.shape not in (samples, x.shape):
            raise InputError(
                t.file,
                f"has shape {t.shape}, but logits of shape {x.shape} need class indices of shape "
                f"{samples} or probabilities of shape {x.shape}",
            )
        if not _is_real(t.dtype):
            raise InputError(
                t.file, f"has dtype {t.dtype}, but a target must be class indices or probabilities"
            )
        r = self.reference_logits
        if r is not None:
            _check_logits(r)
            if r.shape != x.shape:
                raise InputError(r.file, f"has shape {r.shape}, but the logits have {x.shape}")
        for name in ("sample_weight", "group"):
            source: Source | None = getattr(self, name)
            if source is not None and source.shape != samples[: len(source.shape)]:
                raise InputError(
                    source.file,
                    f"has shape {source.shape}, but must have one entry for each sample, of shape "
                    f"{samples}, or for each of its first axes",
                )
        b = self.token_bytes
        if b is not None and b.shape not in (samples, (self.classes,)):
            raise InputError(
                b.file,
                f"has shape {b.shape}, but must have the bytes of each token, of shape {samples}, "
                f"or of each class, of shape {(self.classes,)}",
            )

    @property
    def classes(self) -> int:
        """The count of classes."""
        return self.logits.shape[-1]

    @property
    def samples(self) -> int:
        """The count of rows of logits, also of those that `shift` leaves out."""
        return math.prod(self.logits.shape[:-1])

    @property
    def sources(self) -> dict[str, Source]:
        """The arrays by their names."""
        names = ("logits", "target", "reference_logits", "sample_weight", "group", "token_bytes")
        found = {name: getattr(self, name) for name in names}
        return {name: source for name, source in found.items() if source is not None}


def evaluate(
    meter: CrossEntropyMeter,
    inputs: Inputs,
    *,
    ignored: tuple[int, ...],
    block: int,
    interrupt: Interrupt,
    advance: Callable[[int], None],
) -> float | None:
    """Update a meter with all samples, and return the bytes of the tokens that count.

    Parameters
    ----------
    meter : CrossEntropyMeter
        Is changed. On an error and on a signal it has the blocks before.
    inputs : Inputs
        The arrays.
    ignored : tuple of int
        The class indices that the meter ignores.
    block : int
        About how many bytes of logits to read at a time.
    interrupt : Interrupt
        Tells of signals that end the work.
    advance : callable
        Is told the count of samples of each block.
    """
    sources = inputs.sources
    token_bytes = sources.pop("token_bytes", None)
    readers = {name: _Reader(name, inputs, source) for name, source in sources.items()}
    length = inputs.logits.shape[-2] if inputs.shift else 0
    with interrupt.allowed():
        counter = None if token_bytes is None else _Bytes(inputs, token_bytes)
        for reader in readers.values():
            reader.begin()
    row = inputs.classes * max(source.dtype.itemsize for source in _of_classes(inputs))
    step = max(1, block // row)
    for start in range(0, inputs.samples, step):
        stop = min(inputs.samples, start + step)
        rows = np.arange(start, stop)
        if inputs.shift:  # the last of a sequence has no next token
            rows = rows[rows % length != length - 1]
        with interrupt.allowed():
            given = {name: reader.read(start, stop, rows) for name, reader in readers.items()}
        logits, target = given.pop("logits"), given.pop("target")
        if target.ndim == 1:
            _check_indices(inputs, target, rows, ignored)
        if counter is not None:
            counts = np.ones(len(rows), np.bool_)
            if target.ndim == 1:
                counts &= ~np.isin(target, ignored)
            if "sample_weight" in given:
                counts &= given["sample_weight"] != 0
            with interrupt.allowed():
                counter.add(start, stop, rows, target, counts)
        if len(inputs.logits.shape) == 1:  # the one sample as it is in the file, for messages
            logits, target = logits[0], target[0]
            given = {name: entries[0] for name, entries in given.items()}
        try:
            meter.update(logits, target, **given)
        except (IndexError, TypeError, ValueError) as error:
            raise _in_files(error, inputs, rows) from error
        except MemoryError as error:
            message = f"a block of {block} bytes does not fit into memory: pass --block-size"
            raise InputError(inputs.logits.file, message) from error
        advance(stop - start)
    with interrupt.allowed():
        pass
    return None if counter is None else counter.total


class _Bytes:
    """Adds up the bytes of the tokens that count."""

    def __init__(self, inputs: Inputs, source: Source) -> None:
        self.total: int | float = 0
        self._source = source
        self._of_class: Array | None = None
        self._reader = _Reader("token_bytes", inputs, source)
        if source.shape == inputs.logits.shape[:-1]:
            self._reader.begin()
        elif inputs.target.shape == inputs.logits.shape:
            message = "has the bytes of each class, but the target is probabilities"
            raise InputError(source.file, message)
        else:
            self._of_class = self._checked(source.read(inputs.classes))

    def add(self, start: int, stop: int, rows: Array, target: Array, counts: Array) -> None:
        """Add the bytes of the samples `rows`, which are in [start, stop), where `counts`."""
        if self._of_class is not None:
            found = self._of_class[target[counts].astype(np.int64)]
        else:
            found = self._checked(self._reader.read(start, stop, rows))[counts]
        self.total += found.sum().item()

    def _checked(self, numbers: Array) -> Array:
        if numbers.dtype.kind not in "iuf":
            message = f"has dtype {numbers.dtype}, but must be numbers of bytes"
            raise InputError(self._source.file, message)
        wrong = ~((numbers >= 0) & (numbers < np.inf))
        if wrong.any():
            message = f"has {numbers[wrong][0]}, but a number of bytes is not negative"
            raise InputError(self._source.file, message)
        found: Array = numbers.astype(np.float64 if numbers.dtype.kind == "f" else np.int64)
        return found


class _Reader:
    """Reads what a source has of a block of samples."""

    def __init__(self, name: str, inputs: Inputs, source: Source) -> None:
        self.source = source
        shape, full = source.shape, inputs.logits.shape
        self._width = inputs.classes if shape == full else 0
        # How many samples share an entry, where there is one for each sequence.
        self._share = math.prod(full[len(shape) : -1]) if len(shape) < len(full) else 1
        # Logits at t score what is at t + 1.
        self._ahead = inputs.shift and not name.endswith("logits") and self._share == 1
        self._read = 0
        self._last: Array | None = None

    def begin(self) -> None:
        if self._ahead and self.source.size:
            self.source.skip(max(self._width, 1))

    def read(self, start: int, stop: int, rows: Array) -> Array:
        """Return the entries of the samples `rows`, which are in [start, stop)."""
        if self._share > 1:
            entries: Array = rows // self._share - start // self._share
            shared: Array = self._shared(start, stop)[entries]
            return shared
        # Behind the last sample there is none; nor is it among `rows`.
        count = stop - start
        if self._ahead and stop * max(self._width, 1) == self.source.size:
            count -= 1
        block = self.source.read(count * max(self._width, 1))
        if self._width:
            block = block.reshape(count, self._width)
        return block if len(rows) == count else block[rows - start]

    def _shared(self, start: int, stop: int) -> Array:
        first, end = start // self._share, -(-stop // self._share)
        fresh = self.source.read(end - self._read).copy()
        if first < self._read and self._last is not None:
            fresh = np.concatenate([self._last, fresh])
        self._read, self._last = end, fresh[-1:]
        return fresh


def _of_classes(inputs: Inputs) -> list[Source]:
    sources = (inputs.logits, inputs.target, inputs.reference_logits)
    return [s for s in sources if s is not None and s.shape == inputs.logits.shape]


def _check_logits(source: Source) -> None:
    if not source.shape:
        raise InputError(source.file, "has shape (), but logits need a class axis, the last one")
    if not _is_float_type(source.dtype):
        message = f"has dtype {source.dtype}, but logits must be {FLOATS}"
        if source.dtype == np.uint16:
            message += "; if these are the bits of bfloat16, save x.view(ml_dtypes.bfloat16)"
        raise InputError(source.file, message)
    if source.shape[-1] == 0:
        raise InputError(source.file, f"has shape {source.shape}: there are no classes")


def _check_indices(inputs: Inputs, target: Array, rows: Array, ignored: tuple[int, ...]) -> None:
    """Refuse a target that is no class, with its position in the file."""
    with np.errstate(invalid="ignore"):
        wrong = ~((target >= 0) & (target < inputs.classes))
    if target.dtype.kind == "f":
        wrong |= target != np.floor(target)
    wrong &= ~np.isin(target, ignored)
    if wrong.any():
        i = int(np.argmax(wrong))
        at = _position(inputs.target, int(rows[i]) + inputs.shift)
        what = "a missing value" if target[i] != target[i] else str(target[i])
        raise InputError(
            inputs.target.file,
            f"target{at} is {what}, but must be a class in [0, {inputs.classes})"
            + (f" or ignored ({', '.join(map(str, ignored))})" if ignored else ""),
        )


def _position(source: Source, sample: int) -> str:
    """Return the index of a sample in the array of a file, in brackets."""
    shape = source.shape
    if not shape:
        return ""
    index = np.unravel_index(sample, shape)
    return f"[{', '.join(map(str, index))}]"


def _in_files(error: Exception, inputs: Inputs, rows: Array) -> InputError:
    """Return a meter's error with the file that it is about, and the position there."""
    sources = inputs.sources
    lead = inputs.logits.shape[:-1]

    def place(found: re.Match[str]) -> str:
        name, local = found.groups()
        if local is None or not lead:
            return found[0]
        sample = int(rows[int(local)])
        if inputs.shift and not name.endswith("logits"):
            sample += 1
        return f"{name}[{', '.join(map(str, np.unravel_index(sample, lead)))}"

    message = reason(error)
    first = _ARGUMENT.search(message)
    source = sources.get(first[1]) if first else None
    return InputError((source or inputs.logits).file, _ARGUMENT.sub(place, message))
