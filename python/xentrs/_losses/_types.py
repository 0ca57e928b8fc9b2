"""The types in the signatures of the public functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeAlias, TypedDict, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The dtype of an array of logits, and so of single losses. Those of float16 are float32.
Float = TypeVar("Float", np.float32, np.float64)
# The dtype of an array of logits, and so of the gradient and the Hessian.
AnyFloat = TypeVar("AnyFloat", np.float16, np.float32, np.float64)
# For mypy the overloads of half precision overlap with the others, as arrays of any dtype are both.
Half: TypeAlias = NDArray[np.float16]
Single: TypeAlias = NDArray[np.float32]
FloatArray: TypeAlias = NDArray[np.floating[Any]]
Ignored: TypeAlias = SupportsIndex | Iterable[SupportsIndex] | None
Reduction: TypeAlias = Literal["mean", "sum", "none"]


class IndexOptions(TypedDict, total=False):
    """The keywords of every loss over classes on which no returned type depends."""

    axis: SupportsIndex
    weight: ArrayLike | None
    sample_weight: ArrayLike | None
    ignore_index: Ignored
    label_smoothing: float
    denominator: SupportsFloat | None


class ClassOptions(IndexOptions, total=False):
    """The same, with the base of the logarithms."""

    base: float | None
