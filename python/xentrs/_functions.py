"""Functions of rows that are no losses: the softmax, its logarithm, the logsumexp, and entropy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, SupportsIndex, TypeAlias, cast, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xentrs._arrays import evaluate_rows, merge_axes
from xentrs._losses._types import Float, FloatArray
from xentrs._xentrs import compute_rows

# What an array without the class axis is: a NumPy scalar if there is no other axis.
_Reduced: TypeAlias = FloatArray | np.floating[Any]


@overload
def softmax(
    logits: NDArray[Float],
    axis: SupportsIndex | Iterable[SupportsIndex] | None = -1,
    *,
    temperature: float = 1.0,
    out: NDArray[Float] | None = None,
) -> NDArray[Float]: ...
@overload
def softmax(
    logits: ArrayLike,
    axis: SupportsIndex | Iterable[SupportsIndex] | None = -1,
    *,
    temperature: float = 1.0,
    out: FloatArray | None = None,
) -> FloatArray: ...
def softmax(
    logits: ArrayLike,
    axis: SupportsIndex | Iterable[SupportsIndex] | None = -1,
    *,
    temperature: float = 1.0,
    out: FloatArray | None = None,
) -> FloatArray:
    r"""Probabilities of logits: their exponentials over the sum of these.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    axis : int, iterable of ints or None, default -1
        The class axis of `logits`, or several axes, or None for all. For PyTorch's layout ``(N, C,
        d)`` pass ``axis=1``. Several that are not the last axes of a C-contiguous array are copied
        first.
    temperature : float, default 1.0
        What the logits are divided by, finite and above 0. The digits of their differences are
        kept, whatever offset the logits share.
    out : ndarray, optional
        Array for the result, of the shape and dtype of `logits` and of any strides. It may be
        `logits` itself, to work in place; otherwise it must not overlap `logits`. Nothing is
        written to it if the call is refused.

    Returns
    -------
    ndarray
        The probabilities: `out`, or a new C-contiguous array of the shape and dtype of `logits`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array that masks an
        element, a pandas object with nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. None of these is converted first.
    ValueError
        If there is no class axis or no class, the same axis is named twice, or `temperature` has a
        value other than above. Also if `out` has another shape, is read-only or overlaps `logits`.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    log_softmax : the logarithm, exact where a probability is near 1 or underflows.
    cross_entropy_with_grad : a loss of the logits and its gradient, without the probabilities.

    Notes
    -----
    With x the logits of a sample and T the temperature,

    .. math:: p_c = \frac{e^{x_c / T}}{\sum_k e^{x_k / T}} .

    A logit of -inf has the probability 0. A sample with a NaN, with +inf, or with nothing but -inf
    is NaN throughout, as in ``scipy.special.softmax``.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: at most 4 ULP for each probability that is at least the smallest normal number,
    whatever the spread and the offset of the logits (measured: 2.9 in float32, 2.8 in float64; see
    docs/numerics.md).

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> xentrs.softmax(logits).round(4)
    array([[0.8438, 0.1142, 0.042 ],
           [0.2119, 0.5761, 0.2119]])
    >>> xentrs.softmax(logits, temperature=10.0).round(4)
    array([[0.3907, 0.3199, 0.2894],
           [0.322 , 0.3559, 0.322 ]])
    """
    result = compute_rows("softmax", logits, axis, temperature, None, out)
    if result is NotImplemented:
        result = evaluate_rows("softmax", "logits", logits, axis, temperature=temperature, out=out)
    return cast(FloatArray, result)


@overload
def log_softmax(
    logits: NDArray[Float],
    axis: SupportsIndex | Iterable[SupportsIndex] | None = -1,
    *,
    temperature: float = 1.0,
    out: NDArray[Float] | None = None,
) -> NDArray[Float]: ...
@overload
def log_softmax(
    logits: ArrayLike,
    axis: SupportsIndex | Iterable[SupportsIndex] | None = -1,
    *,
    temperature: float = 1.0,
    out: FloatArray | None = None,
) -> FloatArray: ...
def log_softmax(
    logits: ArrayLike,
    axis: SupportsIndex | Iterable[SupportsIndex] | None = -1,
    *,
    temperature: float = 1.0,
    out: FloatArray | None = None,
) -> FloatArray:
    r"""Logarithms of the probabilities of logits.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    axis : int, iterable of ints or None, default -1
        The class axis of `logits`, or several axes, or None for all. For PyTorch's layout ``(N, C,
        d)`` pass ``axis=1``. Several that are not the last axes of a C-contiguous array are copied
        first.
    temperature : float, default 1.0
        What the logits are divided by, finite and above 0. The digits of their differences are
        kept, whatever offset the logits share.
    out : ndarray, optional
        Array for the result, of the shape and dtype of `logits` and of any strides. It may be
        `logits` itself, to work in place; otherwise it must not overlap `logits`. Nothing is
        written to it if the call is refused.

    Returns
    -------
    ndarray
        The log-probabilities: `out`, or a new C-contiguous array of the shape and dtype of
        `logits`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array that masks an
        element, a pandas object with nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. None of these is converted first.
    ValueError
        If there is no class axis or no class, the same axis is named twice, or `temperature` has a
        value other than above. Also if `out` has another shape, is read-only or overlaps `logits`.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    softmax : the probabilities.
    logsumexp : the logarithm of the sum of exponentials alone.
    cross_entropy : the mean of minus these numbers at the true classes.

    Notes
    -----
    With x the logits of a sample, M the largest of them and T the temperature,

    .. math::

        \log p_c = \frac{x_c - M}{T} - \log \sum_k e^{(x_k - M) / T} .

    No term is above 0, so nothing cancels. The logarithm of the sum is computed from the other
    classes' exponentials: a log-probability near 0 keeps its digits.

    A logit of -inf has the log-probability -inf. A sample with a NaN, with +inf, or with nothing
    but -inf is NaN throughout.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: at most 4 ULP for each number that is at least the smallest normal number, whatever
    the spread and the offset of the logits (measured: 2.9 in float32, 3.2 in float64; see
    docs/numerics.md).

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> xentrs.log_softmax([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]]).round(4)
    array([[-0.1698, -2.1698, -3.1698],
           [-1.5514, -0.5514, -1.5514]])

    The other classes' probability is not lost, small as it is:

    >>> f"{xentrs.log_softmax(np.array([17, 0], np.float32))[0]:.5g}"
    '-4.1399e-08'
    """
    result = compute_rows("log_softmax", logits, axis, temperature, None, out)
    if result is NotImplemented:
        result = evaluate_rows(
            "log_softmax", "logits", logits, axis, temperature=temperature, out=out
        )
    return cast(FloatArray, result)


@overload
def logsumexp(
    logits: NDArray[Float],
    axis: SupportsIndex | Iterable[SupportsIndex] | None = -1,
    *,
    keepdims: bool = False,
) -> NDArray[Float] | Float: ...
@overload
def logsumexp(
    logits: ArrayLike,
    axis: SupportsIndex | Iterable[SupportsIndex] | None = -1,
    *,
    keepdims: bool = False,
) -> _Reduced: ...
def logsumexp(
    logits: ArrayLike,
    axis: SupportsIndex | Iterable[SupportsIndex] | None = -1,
    *,
    keepdims: bool = False,
) -> _Reduced:
    r"""Logarithm of the sum of exponentials of logits.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Numbers of any rank from 1, at least one on `axis`. An array of any strides is read where it
        lies, without a copy of the whole. Integers in a list or another sequence become float64;
        integer arrays are refused.
    axis : int, iterable of ints or None, default -1
        The axis that is summed over, or several, or None for all. Several that are not the last
        axes of a C-contiguous array are copied first.
    keepdims : bool, default False
        Whether the result keeps each axis that is summed over, with the length 1.

    Returns
    -------
    ndarray or NumPy scalar
        The logarithms, of the shape of `logits` without `axis` and of its dtype, but float32 for
        half precision; a scalar where no axis is left.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array that masks an
        element, a pandas object with nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. None of these is converted first.
    ValueError
        If there is no axis, the axis is empty, or the same axis is named twice.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    log_softmax : the logits less this number, without cancellation.

    Notes
    -----
    With M the largest logit,

    .. math:: \log \sum_c e^{x_c} = M + \log \sum_c e^{x_c - M} .

    Logits of -inf add nothing, and a sum of nothing else is -inf. With +inf the result is +inf,
    with NaN it is NaN.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: at most 4 ULP of the larger of the two terms of the formula, which nearly cancel where
    the result is near 0 (measured: 2.6 in float32, 3.0 in float64; see docs/numerics.md).

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.0, -1.0], [1000.0, 1000.0, 0.0]])
    >>> xentrs.logsumexp(logits).round(4)
    array([   2.1698, 1000.6931])
    >>> float(xentrs.logsumexp(logits, axis=None).round(4))
    1000.6931
    """
    result = compute_rows("logsumexp", logits, axis, None, None, None)
    if result is NotImplemented:
        logits, merged, shape = merge_axes("logits", logits, axis)
        result = evaluate_rows("logsumexp", "logits", logits, merged)
        if keepdims:
            result = result.reshape(shape)
    elif keepdims:
        result = np.expand_dims(result, cast(int, axis))
    return cast(_Reduced, result[()])


@overload
def entropy(
    p: NDArray[Float],
    axis: SupportsIndex | Iterable[SupportsIndex] | None = -1,
    *,
    base: float | None = None,
) -> NDArray[Float] | Float: ...
@overload
def entropy(
    p: ArrayLike,
    axis: SupportsIndex | Iterable[SupportsIndex] | None = -1,
    *,
    base: float | None = None,
) -> _Reduced: ...
def entropy(
    p: ArrayLike,
    axis: SupportsIndex | Iterable[SupportsIndex] | None = -1,
    *,
    base: float | None = None,
) -> _Reduced:
    r"""Shannon entropy of counts or probabilities.

    Parameters
    ----------
    p : array_like, float16, bfloat16, float32, float64, integer or bool
        Counts, or probabilities that need not be normalised: of any rank from 1, at least one on
        `axis`, none negative. A floating-point array of any strides is read where it lies, without
        a copy of the whole. Integers become float64.
    axis : int, iterable of ints or None, default -1
        The axis of the classes, or several, or None for all. Several that are not the last axes of
        a C-contiguous array are copied first.
    base : float, optional
        Base of the logarithm: 2 gives bits. Positive, finite and not 1. The default is e, for nats.

    Returns
    -------
    ndarray or NumPy scalar
        The entropies, of the shape of `p` without `axis`, float32 where `p` is or is half
        precision, and else float64; a scalar where no axis is left.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array that masks an
        element, a pandas object with nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. None of these is converted first.
    ValueError
        If a number of `p` is negative, there is no axis or nothing on it, the same axis is named
        twice, or `base` has a value other than above.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    softmax_entropy : the entropy of the softmax of logits, with its gradient.

    Notes
    -----
    With s the sum of a row of p,

    .. math:: H = -\sum_c \frac{p_c}{s} \log \frac{p_c}{s} .

    A class of probability 0 adds nothing. A row whose sum is 0, and one with a NaN or with +inf, is
    NaN, as in ``scipy.stats.entropy``.

    Each row is computed relative to its largest number M, as log(s / M) plus the mean of
    log(M / p). Neither is negative, so nothing cancels: the entropy of a row that is nearly all in
    one class keeps its digits.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: the relative error is at most 2e-6 in float32 and 1e-13 in float64, for results that
    are at least the smallest normal number (measured: 4e-7 and 8e-16; see docs/numerics.md).

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> counts = np.array([[50, 50, 0], [98, 1, 1], [7, 0, 0]])
    >>> xentrs.entropy(counts, base=2).round(4)
    array([1.    , 0.1614, 0.    ])
    """
    result = compute_rows("entropy", p, axis, None, base, None)
    if result is NotImplemented:
        merged, at, _ = merge_axes("p", p, axis, counts=True)
        if at == -1 and (merged < 0).any():
            # What is refused has its place in `p`, not where several axes are one.
            evaluate_rows("entropy", "p", p, -1, counts=True)
        result = evaluate_rows("entropy", "p", merged, at, base=base, counts=True)
    return cast(_Reduced, result[()])
