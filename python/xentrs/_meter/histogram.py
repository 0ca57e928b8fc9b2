"""Weights by bins of a logarithmic scale, and the quantiles that are read of them."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xentrs import _arrays
from xentrs._exact import ExactSums

_Array: TypeAlias = NDArray[Any]

# One bin for what counts as 0, 2^_BITS bins of equal width in each octave from 2^_LOWEST up to
# where float32 ends, and one for infinity. Behind it are the bins of the octaves from there to
# where float64 ends; they take memory only where there are such numbers. A bin is the leading bits
# of its numbers.
_BITS = 6
_LOWEST = -127
_LEAST = 1e-38
_INFINITY = (128 - _LOWEST) * 2**_BITS + 1
BINS = (1024 - _LOWEST) * 2**_BITS + 2
_FIRST_BIN = ((1023 + _LOWEST) << _BITS) - 1


class Histogram:
    """The weights of numbers by the bins that these are in.

    Attributes
    ----------
    sums : ExactSums
        The weight of each bin, up to that of infinity or to the last one that has a weight.
    nans : int
        How many numbers were NaN. These are in no bin.
    """

    __slots__ = ("nans", "sums")

    def __init__(self) -> None:
        self.sums = ExactSums(_INFINITY + 1)
        self.nans = 0

    def add(self, values: NDArray[np.float64], weights: _Array | None) -> None:
        """Add numbers with their weights, or with a weight of 1."""
        if weights is not None:
            values, weights = values[weights != 0.0], weights[weights != 0.0]
        nan = np.isnan(values)
        if np.count_nonzero(nan):
            self.nans += int(np.count_nonzero(nan))
            values, weights = values[~nan], None if weights is None else weights[~nan]
        bins = (values.view(np.int64) >> (52 - _BITS)) - _FIRST_BIN
        bins[values < _LEAST] = 0
        above = bins >= _INFINITY
        if np.count_nonzero(above):
            bins = np.where(values == math.inf, _INFINITY, bins + above)
            self.sums.grow(int(bins.max()) + 1)
        self.sums.add_weights(bins, weights)

    def merge(self, other: Histogram) -> None:
        """Add the numbers of another histogram."""
        self.sums.grow(len(other.sums))
        self.sums.merge(other.sums)
        self.nans += other.nans

    def distribution(self) -> Distribution:
        """Return the distribution of the numbers so far."""
        bins = self.filled()
        if not bins.size:
            return Distribution(np.zeros(0), np.zeros(0), bool(self.nans))
        values = _bin_values(bins)
        ascending = np.argsort(values)
        bins, values = bins[ascending], values[ascending]
        weights = self.sums.numerators(bins)
        total, cumulative, so_far = sum(weights), [], 0
        for weight in weights:
            so_far += weight
            cumulative.append(so_far / total)
        return Distribution(values, np.array(cumulative), bool(self.nans))

    def filled(self) -> NDArray[np.intp]:
        """Return which bins have a weight."""
        return np.flatnonzero(self.sums.digits.any(axis=1))


class Distribution:
    """The values that stand for a histogram's bins, and the share of the weight up to each."""

    __slots__ = ("cumulative", "has_nan", "values")

    def __init__(
        self, values: NDArray[np.float64], cumulative: NDArray[np.float64], has_nan: bool
    ) -> None:
        self.values, self.cumulative, self.has_nan = values, cumulative, has_nan

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Distribution) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    def quantile(self, q: Any) -> float | NDArray[np.float64]:
        """Return the least value up to which at least a share `q` of the weight is."""
        wanted = np.asarray(_arrays._real_array("q", q), np.float64)
        outside = ~((wanted >= 0.0) & (wanted <= 1.0))
        if outside.any():
            raise ValueError(f"q is {wanted[outside].flat[0]}, but must be in [0, 1]")
        if self.has_nan or not self.values.size:
            found = np.full(wanted.shape, np.nan)
        else:
            found = self.values[np.searchsorted(self.cumulative, wanted)]
        return found if wanted.ndim else float(found)


def _bin_values(bins: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the value that stands for each bin: its largest relative error is the least."""
    leading = bins - (bins > _INFINITY) + _FIRST_BIN
    # A quarter of the edges, since the last one is beyond float64.
    low, high = ((leading + i - (2 << _BITS) << (52 - _BITS)).view(np.float64) for i in (0, 1))
    middle = 4.0 * (2.0 * low * (high / (low + high)))
    return np.where(bins == 0, 0.0, np.where(bins == _INFINITY, math.inf, middle))
