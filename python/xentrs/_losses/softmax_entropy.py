"""Entropy of the softmax of logits."""

from __future__ import annotations

from typing import Literal, SupportsFloat, SupportsIndex, TypedDict, Unpack, overload

from numpy.typing import ArrayLike, NDArray

from xentrs._arrays import evaluate
from xentrs._losses import public
from xentrs._losses._types import Float, FloatArray, Reduction


class Options(TypedDict, total=False):
    """The keywords on which no returned type depends."""

    axis: SupportsIndex
    sample_weight: ArrayLike | None
    denominator: SupportsFloat | None
    base: float | None


@overload
def softmax_entropy(
    logits: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[Options],
) -> float: ...
@overload
def softmax_entropy(
    logits: NDArray[Float], *, reduction: Literal["none"], **options: Unpack[Options]
) -> NDArray[Float]: ...
@overload
def softmax_entropy(
    logits: ArrayLike, *, reduction: Literal["none"], **options: Unpack[Options]
) -> FloatArray: ...
@public
def softmax_entropy(
    logits: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    sample_weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
) -> float | FloatArray:
    r"""Entropy of the softmax of logits: how undecided a model is.

    It needs no target. Its gradient is for entropy bonuses and penalties.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    axis : int, default -1
        The class axis of `logits`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight 0
        counts for nothing, whatever its `logits`. A negative weight negates the loss and the
        gradient of its sample, and is negative in the sum that ``"mean"`` divides by.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the samples, their sum, or the loss of each sample.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the total weight of the samples. Pass that of the
        whole batch where a call sees a part of it, as in gradient accumulation. Not negative.
    base : float, optional
        Base of the logarithm in everything that is returned: 2 gives bits. Positive, finite and not
        1. The default is e, for nats.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float, accumulated in float64. For ``"none"`` an array
        of the dtype of `logits` (float32 for half precision), of its shape without the class axis.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array that masks an
        element, a pandas object with nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. None of these is converted first.
    ValueError
        If shapes do not fit, or an option has a value other than above.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    softmax_entropy_with_grad : also the gradient, from the same pass over the logits.
    entropy : the entropy of counts or probabilities.
    softmax : the probabilities.

    Notes
    -----
    With p the softmax of the logits x of a sample, M the largest of these and s the sample's
    weight, the loss of a sample is

    .. math::

        -s \sum_c p_c \log p_c
        = s \left[ \log \sum_c e^{x_c - M} + \sum_c p_c (M - x_c) \right] .

    ``"mean"`` divides by the sum of s. If no sample counts, the mean is NaN; with `denominator` it
    is 0.

    Neither term in the brackets is negative, and both are computed from the other classes than the
    largest: the entropy keeps its digits where one class has nearly all of the probability.

    A logit of -inf adds nothing. A sample with a NaN, with +inf, or with nothing but -inf has the
    loss NaN.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: at most 2e-6 of the loss of a sample in float32 and 1e-13 in float64, if it is at
    least the smallest normal number (measured: 3e-7 and 6e-16; see docs/numerics.md).

    References
    ----------
    .. [1] C. E. Shannon, "A Mathematical Theory of Communication", Bell System Technical Journal
       27, 1948.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[0.0, 0.0], [2.0, 0.0], [40.0, 0.0]])
    >>> xentrs.softmax_entropy(logits, base=2, reduction="none").round(4)
    array([1.    , 0.5271, 0.    ])
    """
    return evaluate("softmax_entropy", 0, locals())


@overload
def softmax_entropy_with_grad(
    logits: NDArray[Float],
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[float, NDArray[Float]]: ...
@overload
def softmax_entropy_with_grad(
    logits: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[float, FloatArray]: ...
@overload
def softmax_entropy_with_grad(
    logits: NDArray[Float],
    *,
    reduction: Literal["none"],
    out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[NDArray[Float], NDArray[Float]]: ...
@overload
def softmax_entropy_with_grad(
    logits: ArrayLike,
    *,
    reduction: Literal["none"],
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[FloatArray, FloatArray]: ...
@public
def softmax_entropy_with_grad(
    logits: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    sample_weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    r"""Entropy of the softmax of logits, and its gradient in the logits.

    It needs no target. Subtract the gradient from that of a loss for an entropy bonus.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    axis : int, default -1
        The class axis of `logits`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight 0
        counts for nothing, whatever its `logits`. A negative weight negates the loss and the
        gradient of its sample, and is negative in the sum that ``"mean"`` divides by.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the samples, their sum, or the loss of each sample.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the total weight of the samples. Pass that of the
        whole batch where a call sees a part of it, as in gradient accumulation. Not negative.
    base : float, optional
        Base of the logarithm in everything that is returned: 2 gives bits. Positive, finite and not
        1. The default is e, for nats.
    out : ndarray, optional
        Array for the gradient, of the shape and dtype of `logits` and of any strides. It may be
        `logits` itself, to work in place; otherwise it must not overlap an input. Nothing is
        written to it if the call is refused.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float, accumulated in float64. For ``"none"`` an array
        of the dtype of `logits` (float32 for half precision), of its shape without the class axis.
    grad : ndarray
        The gradient of the returned loss in `logits`; for ``"none"``, of each sample's own loss. It
        is `out`, or a new C-contiguous array of the shape and dtype of `logits`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array that masks an
        element, a pandas object with nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. None of these is converted first. Also if `out` is no ndarray of the dtype of
        `logits`.
    ValueError
        If shapes do not fit, or an option has a value other than above. Also if `out` has another
        shape, is read-only or overlaps an input.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    softmax_entropy : the loss alone.
    entropy : the entropy of counts or probabilities.
    softmax : the probabilities.

    Notes
    -----
    With p the softmax of the logits x of a sample, M the largest of these and s the sample's
    weight, the loss of a sample is

    .. math::

        -s \sum_c p_c \log p_c
        = s \left[ \log \sum_c e^{x_c - M} + \sum_c p_c (M - x_c) \right] .

    ``"mean"`` divides by the sum of s. If no sample counts, the mean is NaN; with `denominator` it
    is 0.

    Neither term in the brackets is negative, and both are computed from the other classes than the
    largest: the entropy keeps its digits where one class has nearly all of the probability.

    A logit of -inf adds nothing. A sample with a NaN, with +inf, or with nothing but -inf has the
    loss NaN.

    Results do not depend on the number of threads, not in a single bit.

    The gradient of a sample's loss is

    .. math::

        \frac{\partial\, \mathrm{loss}}{\partial x_c}
        = s\, p_c \Big[ (M - x_c) - \sum_k p_k (M - x_k) \Big] .

    For the mean it is divided by what the mean is divided by. It is exactly 0 for samples that
    count for nothing, and at a logit of -inf.

    Accuracy: at most 2e-6 of the loss of a sample in float32 and 1e-13 in float64, if it is at
    least the smallest normal number; for each such entry of the gradient at most 4 ULP, in float64
    6, of the larger of the two terms whose difference it is (measured: 3.7 in float32, 5.5 in
    float64; see docs/numerics.md).

    References
    ----------
    .. [1] C. E. Shannon, "A Mathematical Theory of Communication", Bell System Technical Journal
       27, 1948.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[0.0, 0.0], [2.0, 0.0]])
    >>> loss, grad = xentrs.softmax_entropy_with_grad(logits)
    >>> round(loss, 6)
    0.529241
    >>> grad.round(6)
    array([[ 0.      ,  0.      ],
           [-0.104994,  0.104994]])
    """
    return evaluate("softmax_entropy", 1, locals())
