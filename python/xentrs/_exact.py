"""Exact sums of float64 numbers: a number more or less changes no other digit.

A row of a table is a sum. It is a fixed-point number in digits of 32 bits, each in an int64, so
that 2^30 numbers may be added before a digit overflows (the small superaccumulator of Radford Neal,
"Fast exact summation using small and large superaccumulators", 2015). Digits outside of what a
table has needed so far are not stored.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]

# Bits of a digit, and of the fraction of a sum: digit k counts 2^(32 k - 1152).
_BITS = 32
_POINT = 1152
_MASK = (1 << _BITS) - 1


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
    """

    __slots__ = ("digits", "first", "special")

    def __init__(self, sums: int) -> None:
        self.digits = np.zeros((sums, 0), np.int64)
        self.first = 0
        self.special = np.zeros((sums, 3), np.int64)

    def __len__(self) -> int:
        return len(self.digits)

    def grow(self, sums: int) -> None:
        """Have at least so many sums. New ones are 0."""
        if sums > len(self.digits):
            self.digits = _taller(self.digits, sums)
            self.special = _taller(self.special, sums)

    def add(self, rows: _Array | int, values: _Array, factors: _Array | None = None) -> None:
        """Add each of `values`, or the exact product with its factor, to the sum of that row."""
        if not values.size:
            return
        rows = np.broadcast_to(np.asarray(rows, np.int64), values.shape)
        parts = [values] if factors is None else _products(values, factors)
        for part in parts:
            self._add(rows, part)

    def _add(self, rows: _Array, values: _Array) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            odd = values[~finite]
            kind = np.where(np.isnan(odd), 0, np.where(odd > 0, 1, 2))
            np.add.at(self.special, (rows[~finite], kind), 1)
            rows, values = rows[finite], values[finite]
        mantissas, exponents = np.frexp(values)
        mantissas = (mantissas * 2.0**53).astype(np.int64)
        kept = mantissas != 0
        if not kept.any():
            return
        rows, mantissas, at = rows[kept], mantissas[kept], exponents[kept].astype(np.int64)
        at += _POINT - 53
        places, shifts = at // _BITS, (at % _BITS).astype(np.uint64)
        self._widen(int(places.min()), int(places.max()) + 4)
        sign, size = np.sign(mantissas), np.abs(mantissas).astype(np.uint64)
        low = (size & np.uint64(_MASK)) << shifts
        high = ((size >> np.uint64(_BITS)) << shifts) + (low >> np.uint64(_BITS))
        digits = (low & np.uint64(_MASK), high & np.uint64(_MASK), high >> np.uint64(_BITS))
        for k, digit in enumerate(digits):
            place = (rows, places - self.first + k)
            np.add.at(self.digits, place, sign * digit.astype(np.int64))
        self._carry()

    def merge(self, other: ExactSums, rows: _Array | None = None) -> None:
        """Add each sum of another table to the same one here, or to that of these rows."""
        index = slice(len(other.digits)) if rows is None else rows
        self.special[index] += other.special
        width = other.digits.shape[1]
        if width:
            self._widen(other.first, other.first + width + 1)
            at = other.first - self.first
            self.digits[index, at : at + width] += other.digits
            self._carry()

    def numerators(self, rows: slice = slice(None)) -> list[int]:
        """Return finite sums as whole multiples of `UNIT`."""
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
        return Fraction(self.numerators(slice(row, row + 1))[0], 1 << _POINT)

    def compact(self) -> tuple[_Array, int]:
        """Return the digits and the first one's number, in the one shortest form that they have."""
        digits = self.digits
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
        return np.ascontiguousarray(digits), first if digits.shape[1] else 0

    def _widen(self, first: int, end: int) -> None:
        """Have the digits from `first` up to `end`."""
        width = self.digits.shape[1]
        if not width:
            self.first, self.digits = first, np.zeros((len(self.digits), end - first), np.int64)
            return
        below, above = max(self.first - first, 0), max(end - self.first - width, 0)
        if below or above:
            # The last digit has the sign: its excess goes up.
            self.digits = np.pad(self.digits, ((0, 0), (below, above)))
            self.first -= below

    def _carry(self) -> None:
        digits = self.digits
        for k in range(digits.shape[1] - 1):
            carry = digits[:, k] >> _BITS
            digits[:, k] &= _MASK
            digits[:, k + 1] += carry


def _taller(array: _Array, rows: int) -> _Array:
    return np.concatenate([array, np.zeros((rows - len(array), array.shape[1]), array.dtype)])


def _products(a: _Array, b: _Array) -> list[_Array]:
    """Return products and their rounding errors (Dekker)."""
    with np.errstate(all="ignore"):
        high = a * b
        (a0, a1), (b0, b1) = _halves(a), _halves(b)
        low = a1 * b1 - (((high - a0 * b0) - a1 * b0) - a0 * b1)
        return [high, np.where(np.isfinite(low), low, 0.0)]


def _halves(a: _Array) -> tuple[_Array, _Array]:
    c = a * 134217729.0
    high = c - (c - a)
    return high, a - high
