"""Exact sums of float64 numbers: a number more or less changes no other digit.

A row of a table is a sum. It is a fixed-point number in digits of 32 bits, each in an int64, so
that 2^30 numbers may be added before a digit overflows (the small superaccumulator of Radford Neal,
"Fast exact summation using small and large superaccumulators", 2015). Digits outside of what a
table has needed so far are not stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xentrs._arrays import done
from xentrs._xentrs import exact_add, exact_carry

_Array: TypeAlias = NDArray[Any]

# Bits of a digit, and of the fraction of a sum: digit k counts 2^(32 k - 1152).
_BITS = 32
POINT = 1152
_MASK = (1 << _BITS) - 1

# More digits than the longest sums have, which are those of products of the largest numbers.
_DIGITS = 112

# Products beyond the range of float64 are computed of factors times 2^-592, each: 37 digits lower.
_LOWER, _SCALE = 37, 2.0**-592

# Numbers that may be added between carries: fewer than 2^31, with two digits each for products.
_MOST = 1 << 28

# Up to so many sums a copy of all takes less time than one of some that are picked.
_SMALL = 64

# Up to so many numbers a call costs more than copying them.
_FEW = 1 << 12


class ExactSums:
    """A table of exact sums.

    Attributes
    ----------
    digits : ndarray of int64, shape (sums, width)
        The digits of each sum, the lowest first. All but the last are in [0, 2^32).
    first : int
        Which digit the first of them is.
    special : ndarray of int64, shape (sums, 3)
        How many numbers were NaN, +inf and -inf. These are in no digit.
    journal : list of functions, optional
        Where each change puts a function that takes it back, before it is made.
    """

    __slots__ = ("_pending", "digits", "first", "journal", "special")

    def __init__(self, sums: int) -> None:
        self.digits = np.zeros((sums, 0), np.int64)
        self.first = 0
        self.special = np.zeros((sums, 3), np.int64)
        self.journal: list[Callable[[], None]] | None = None
        self._pending = 0  # how many numbers were added since the carries

    def __len__(self) -> int:
        return len(self.digits)

    def grow(self, sums: int) -> None:
        """Have at least so many sums. New ones are 0."""
        if sums > len(self.digits):
            self._record(slice(0))
            self.digits = taller(self.digits, sums)
            self.special = taller(self.special, sums)

    def add(
        self, row: int | _Array, values: NDArray[np.float64], factors: _Array | None = None
    ) -> None:
        """Add each of `values` to a sum, or to that of its row; with factors, products to a sum."""
        if values.size > _MOST:
            # In blocks, so that no digit overflows before it is carried.
            for start in range(0, values.size, _MOST):
                part = slice(start, start + _MOST)
                rows = row if isinstance(row, int) else row[part]
                self.add(rows, values[part], None if factors is None else factors[part])
            return
        values = _plain(values, np.float64)
        if factors is not None:
            factors = _plain(factors, np.float64)
        sums, places = slice(None), None
        if isinstance(row, int):
            sums = slice(row, row + 1)
        else:
            places = _plain(row, np.int64)
        self._record(sums if places is None else places)
        if self._pending + values.size > _MOST:
            self._carry()
        special = self.special[sums]
        before = special.tolist() if factors is not None else []
        while lacks := exact_add(self.digits[sums], self.first, special, places, values, factors):
            self._widen(*lacks)
        self._pending += values.size
        if factors is not None and special.tolist() != before:
            assert isinstance(row, int)
            self._add_beyond(row, values, factors)

    def _add_beyond(self, row: int, values: _Array, factors: _Array) -> None:
        """Add those products that are beyond the range of float64, and were counted as infinite."""
        with np.errstate(over="ignore", invalid="ignore"):
            products = values * factors
        beyond = np.isinf(products) & np.isfinite(values) & np.isfinite(factors)
        above = products[beyond] > 0.0
        self.special[row, 1] -= np.count_nonzero(above)
        self.special[row, 2] -= np.count_nonzero(~above)
        lower = ExactSums(1)
        lower.add(0, values[beyond] * _SCALE, factors[beyond] * _SCALE)
        lower.first += _LOWER
        self.merge(lower, np.array([row]))

    def add_to(self, *terms: tuple[Sequence[int], NDArray[np.float64]]) -> None:
        """Add each array of numbers to each of some sums."""
        lengths = [values.size for rows, values in terms for _ in rows]
        if sum(lengths) <= _FEW:
            places = np.array([row for rows, _ in terms for row in rows]).repeat(lengths)
            self.add(places, np.concatenate([values for rows, values in terms for _ in rows]))
            return
        for rows, values in terms:
            if len(rows) == 1:
                self.add(rows[0], values)
                continue
            once = ExactSums(1)
            once.digits, once.first = np.zeros((1, self.digits.shape[1]), np.int64), self.first
            once.add(0, values)
            self._record(list(rows))
            if self._pending + once._pending > _MOST:
                self._carry()
            self._widen(once.first, once.first + once.digits.shape[1])
            self.digits[list(rows)] += once.digits
            self.special[list(rows)] += once.special
            self._pending += once._pending

    def add_weights(self, rows: _Array, weights: _Array | None) -> None:
        """Add the weight of each sample, or 1 without weights, to the sum of its row."""
        if weights is None and 4 * rows.size > len(self):
            counts = np.bincount(rows)
            rows = np.flatnonzero(counts)
            weights = counts[rows].astype(np.float64)
        self.add(rows, np.ones(rows.size) if weights is None else weights)

    def merge(self, other: ExactSums, rows: _Array | None = None) -> None:
        """Add each sum of another table to the same one here, or to that of these rows.

        No row is named twice.
        """
        other._carry()
        index = slice(len(other.digits)) if rows is None else rows
        self._record(index)
        if self._pending >= _MOST:
            self._carry()
        self.special[index] += other.special
        width = other.digits.shape[1]
        if width:
            # The last digits have room for many more merges than there will be.
            self._widen(other.first, other.first + width)
            at = other.first - self.first
            self.digits[index, at : at + width] += other.digits
            self._pending += 1  # digits that are carried are those of one number

    def check(self, name: str) -> None:
        """Refuse digits that were read from elsewhere, and are not those of a table."""
        if not 0 <= self.first <= self.first + self.digits.shape[1] <= _DIGITS:
            raise ValueError(f"state['{name}.first'] is {self.first}, which is out of range")
        last = self.digits[:, -1:]  # of which the least int64 has no absolute value
        if (self.digits[:, :-1] >> _BITS).any() or ((last > _MASK) | (last < -_MASK)).any():
            raise ValueError(f"state['{name}.digits'] has numbers that are no digits")
        if (self.special < 0).any():
            raise ValueError(f"state['{name}.special'] has counts below 0")

    def numerators(self, rows: slice | _Array = slice(None)) -> list[int]:
        """Return sums as whole multiples of 2^-1152; what is not finite is in none."""
        digits, first = self.digits[rows], self.first
        return [
            sum(d << (_BITS * (first + k)) for k, d in enumerate(row) if d)
            for row in digits.tolist()
        ]

    def exact(self, row: int) -> Fraction | float:
        """Return a sum: a fraction, or NaN or an infinity."""
        nan, above, below = self.special[row].tolist()
        if nan or (above and below):
            return float("nan")
        if above or below:
            return float("inf") if above else float("-inf")
        return Fraction(self.numerators(slice(row, row + 1))[0], 1 << POINT)

    def compact(self, rows: slice | _Array = slice(None)) -> tuple[_Array, int, _Array]:
        """Return digits of some sums, the first one's number, and the counts of special numbers.

        Equal sums have equal digits then: the last digit is a sign, -1 or 0, and all rows have the
        fewest digits that do.
        """
        self._carry()
        digits = self.digits[rows]
        # The sign apart: -1 or 0, with all digits below in [0, 2^32).
        top = digits[:, -1:] if digits.shape[1] else digits[:, :0]
        digits = np.concatenate([digits[:, :-1], top & _MASK, top >> _BITS], axis=1)
        first = self.first
        while digits.shape[1] > 1:
            sign = digits[:, -1]
            if not ((sign == 0) | (sign == -1)).all():
                low, high = digits[:, -1:] & _MASK, digits[:, -1:] >> _BITS
                digits = np.concatenate([digits[:, :-1], low, high], axis=1)
                continue
            if not np.array_equal(digits[:, -2], sign & _MASK):
                break
            digits = np.concatenate([digits[:, :-2], digits[:, -1:]], axis=1)
        while digits.shape[1] and not digits[:, 0].any():
            digits, first = digits[:, 1:], first + 1
        digits = np.ascontiguousarray(digits)
        return digits, first if digits.shape[1] else 0, self.special[rows].copy()

    def _record(self, rows: slice | _Array | list[int]) -> None:
        """Put a function into the journal that takes back a change of some sums."""
        if self.journal is None:
            return
        digits, special = self.digits, self.special
        first, pending = self.first, self._pending
        if not isinstance(rows, slice) and len(digits) <= max(len(rows), _SMALL):
            rows = slice(None)
        old_digits, old_special = digits[rows].copy(), special[rows].copy()

        def undo() -> None:
            digits[rows], special[rows] = old_digits, old_special
            self.digits, self.special = digits, special
            self.first, self._pending = first, pending

        self.journal.append(undo)

    def _widen(self, first: int, end: int) -> None:
        """Have the digits from `first` up to `end`."""
        width = self.digits.shape[1]
        if not width:
            self.first, self.digits = first, np.zeros((len(self.digits), end - first), np.int64)
            return
        below, above = max(self.first - first, 0), max(end - self.first - width, 0)
        if below or above:
            # The last digit may have more than 32 bits, which go up at the next carries.
            self._pending = max(self._pending, 1)
            self.digits = np.pad(self.digits, ((0, 0), (below, above)))
            self.first -= below

    def _carry(self) -> None:
        if self._pending:
            done(exact_carry(self.digits))
            self._pending = 0


def rounded(number: Fraction | float) -> float:
    """Return the nearest float64: an infinity beyond the largest."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _plain(a: _Array, dtype: type) -> _Array:
    """Return an aligned, contiguous array: `ascontiguousarray` keeps one that is not aligned."""
    a = np.ascontiguousarray(a, dtype)
    return a if a.flags.aligned else a.copy()


def taller(array: _Array, rows: int) -> _Array:
    """Return an array with more rows, of zeros, in the same memory where that has room.

    New memory has room for twice as many, so that rows that come one by one are not copied for
    each other.
    """
    room, before = array.base, len(array)
    if rows <= before:
        return array
    if room is None or room.shape[1:] != array.shape[1:] or len(room) < rows:
        room = np.empty((2 * rows, *array.shape[1:]), array.dtype)
        room[:before] = array
    room[before:rows] = 0
    return room[:rows]
