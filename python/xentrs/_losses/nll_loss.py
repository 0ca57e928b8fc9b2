"""Negative log-likelihood of given log-probabilities."""

from __future__ import annotations

from typing import Literal, SupportsFloat, SupportsIndex, Unpack, overload

from numpy.typing import ArrayLike, NDArray

from xentrs._arrays import evaluate
from xentrs._losses import public
from xentrs._losses._types import (
    AnyFloat,
    ClassOptions,
    Float,
    FloatArray,
    Half,
    Ignored,
    Reduction,
    Single,
)


@overload
def nll_loss(
    log_probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[ClassOptions],
) -> float: ...
@overload
def nll_loss(  # type: ignore[overload-overlap]
    log_probabilities: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[ClassOptions],
) -> Single: ...
@overload
def nll_loss(
    log_probabilities: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[ClassOptions],
) -> NDArray[Float]: ...
@overload
def nll_loss(
    log_probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[ClassOptions],
) -> FloatArray: ...
@public
def nll_loss(
    log_probabilities: ArrayLike,
    target: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
) -> float | FloatArray:
    r"""Negative log-likelihood of a target under given log-probabilities.

    If logits are at hand, prefer `cross_entropy`: it is faster than `log_softmax` followed by this
    function.

    Parameters
    ----------
    log_probabilities : array_like, float16, bfloat16, float32 or float64
        Log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. They are taken as they
        are, numbers above 0 too. An array of any strides is read where it lies, without a copy of
        the whole. Integers in a list or another sequence become float64; integer arrays are
        refused.
    target : array_like
        Class indices or probabilities; the shape says which. Of the shape of `log_probabilities`
        without the class axis: class indices, as integers or as floats that are whole numbers. Of
        the shape of `log_probabilities`: as floats, probabilities, which need not sum to 1; as
        integers or bools, one-hot rows, each with a single 1 and else 0.
    axis : int, default -1
        The class axis of `log_probabilities`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    weight : array_like of shape (C,), optional
        Weight of each class. For class indices without label smoothing, a weight of 0 leaves out
        every sample of that class, as a sample weight of 0 does. Negative weights are accepted: the
        formulas in Notes hold for them.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `log_probabilities` without the class axis. A sample
        of weight 0 counts for nothing, whatever its `log_probabilities` and its target
        probabilities. A negative weight negates the loss and the gradient of its sample, and is
        negative in the sum that ``"mean"`` divides by.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing, whatever their
        `log_probabilities`; None for no such index. Indices in ``[0, C)`` may be ignored too.
        Beside probabilities as target all must be below 0.
    label_smoothing : float, default 0.0
        A number e in [0, 1]. The target becomes 1 - e times itself, plus e / C in every class.
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
        of the dtype of `log_probabilities` (float32 for half precision), of its shape without the
        class axis.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array that masks an
        element, a pandas object with nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. None of these is converted first.
    ValueError
        If shapes do not fit, an option has a value other than above, class indices are fractions or
        missing values, or integer rows are not one-hot.
    IndexError
        If a class index that is not ignored lies outside ``[0, C)``.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    nll_loss_with_grad : also the gradient, from the same pass over the log-probabilities.
    cross_entropy : the cross-entropy of logits.
    log_loss : the same of probabilities.

    Notes
    -----
    With the smoothed target t, class weights w and sample weights s, the loss of a sample is

    .. math:: -s \sum_c w_c t_c x_c

    of its log-probabilities x. A class with w_c t_c = 0 adds nothing, whatever its x_c is, -inf and
    NaN included. For a class index without smoothing only the number of that class is read.

    ``"mean"`` divides by the sum of s w_y over the samples that are not ignored, where y is the
    class index, or for probabilities as target by the sum of s. If no sample counts, the mean is
    NaN; with `denominator` it is 0.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: at most 4 ULP for the loss of a sample, of the sum of its terms' sizes where these
    have both signs (measured: 2.5 in float32, 3.4 in float64; see docs/numerics.md).

    References
    ----------
    .. [1] I. J. Good, "Rational Decisions", Journal of the Royal Statistical Society B 14, 1952.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> log_probabilities = np.array([[-1.0, -2.0, -0.5], [-np.inf, 0.0, -np.inf]])
    >>> xentrs.nll_loss(log_probabilities, [2, 1])
    0.25
    >>> xentrs.nll_loss(log_probabilities, [0, 2], reduction="none")
    array([ 1., inf])
    """
    return evaluate("nll_loss", 0, locals())


@overload
def nll_loss_with_grad(
    log_probabilities: NDArray[AnyFloat],
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[AnyFloat] | None = None,
    **options: Unpack[ClassOptions],
) -> tuple[float, NDArray[AnyFloat]]: ...
@overload
def nll_loss_with_grad(
    log_probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: FloatArray | None = None,
    **options: Unpack[ClassOptions],
) -> tuple[float, FloatArray]: ...
@overload
def nll_loss_with_grad(  # type: ignore[overload-overlap]
    log_probabilities: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: Half | None = None,
    **options: Unpack[ClassOptions],
) -> tuple[Single, Half]: ...
@overload
def nll_loss_with_grad(
    log_probabilities: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: NDArray[Float] | None = None,
    **options: Unpack[ClassOptions],
) -> tuple[NDArray[Float], NDArray[Float]]: ...
@overload
def nll_loss_with_grad(
    log_probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: FloatArray | None = None,
    **options: Unpack[ClassOptions],
) -> tuple[FloatArray, FloatArray]: ...
@public
def nll_loss_with_grad(
    log_probabilities: ArrayLike,
    target: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    r"""Negative log-likelihood under given log-probabilities and its gradient in them.

    If logits are at hand, prefer `cross_entropy_with_grad`: it is faster than a log-softmax
    followed by this function.

    Parameters
    ----------
    log_probabilities : array_like, float16, bfloat16, float32 or float64
        Log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. They are taken as they
        are, numbers above 0 too. An array of any strides is read where it lies, without a copy of
        the whole. Integers in a list or another sequence become float64; integer arrays are
        refused.
    target : array_like
        Class indices or probabilities; the shape says which. Of the shape of `log_probabilities`
        without the class axis: class indices, as integers or as floats that are whole numbers. Of
        the shape of `log_probabilities`: as floats, probabilities, which need not sum to 1; as
        integers or bools, one-hot rows, each with a single 1 and else 0.
    axis : int, default -1
        The class axis of `log_probabilities`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    weight : array_like of shape (C,), optional
        Weight of each class. For class indices without label smoothing, a weight of 0 leaves out
        every sample of that class, as a sample weight of 0 does. Negative weights are accepted: the
        formulas in Notes hold for them.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `log_probabilities` without the class axis. A sample
        of weight 0 counts for nothing, whatever its `log_probabilities` and its target
        probabilities. A negative weight negates the loss and the gradient of its sample, and is
        negative in the sum that ``"mean"`` divides by.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing, whatever their
        `log_probabilities`; None for no such index. Indices in ``[0, C)`` may be ignored too.
        Beside probabilities as target all must be below 0.
    label_smoothing : float, default 0.0
        A number e in [0, 1]. The target becomes 1 - e times itself, plus e / C in every class.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the samples, their sum, or the loss of each sample.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the total weight of the samples. Pass that of the
        whole batch where a call sees a part of it, as in gradient accumulation. Not negative.
    base : float, optional
        Base of the logarithm in everything that is returned: 2 gives bits. Positive, finite and not
        1. The default is e, for nats.
    out : ndarray, optional
        Array for the gradient, of the shape and dtype of `log_probabilities` and of any strides. It
        may be `log_probabilities` itself, to work in place; otherwise it must not overlap an input.
        Nothing is written to it if the call is refused.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float, accumulated in float64. For ``"none"`` an array
        of the dtype of `log_probabilities` (float32 for half precision), of its shape without the
        class axis.
    grad : ndarray
        The gradient of the returned loss in `log_probabilities`; for ``"none"``, of each sample's
        own loss. It is `out`, or a new C-contiguous array of the shape and dtype of
        `log_probabilities`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array that masks an
        element, a pandas object with nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. None of these is converted first. Also if `out` is no ndarray of the dtype of
        `log_probabilities`.
    ValueError
        If shapes do not fit, an option has a value other than above, class indices are fractions or
        missing values, or integer rows are not one-hot. Also if `out` has another shape, is
        read-only or overlaps an input.
    IndexError
        If a class index that is not ignored lies outside ``[0, C)``.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    nll_loss : the loss alone.
    cross_entropy : the cross-entropy of logits.
    log_loss : the same of probabilities.

    Notes
    -----
    With the smoothed target t, class weights w and sample weights s, the loss of a sample is

    .. math:: -s \sum_c w_c t_c x_c

    of its log-probabilities x. A class with w_c t_c = 0 adds nothing, whatever its x_c is, -inf and
    NaN included. For a class index without smoothing only the number of that class is read.

    ``"mean"`` divides by the sum of s w_y over the samples that are not ignored, where y is the
    class index, or for probabilities as target by the sum of s. If no sample counts, the mean is
    NaN; with `denominator` it is 0.

    Results do not depend on the number of threads, not in a single bit.

    Each log-probability is a variable of its own, not bound by the others:

    .. math:: \frac{\partial\, \mathrm{loss}}{\partial x_c} = -s w_c t_c .

    For the mean the gradient is divided by what the mean is divided by.

    Accuracy: at most 4 ULP for the loss of a sample, of the sum of its terms' sizes where these
    have both signs, and for each entry of the gradient above the smallest normal number (measured:
    2.7 in float32, 3.4 in float64; see docs/numerics.md).

    References
    ----------
    .. [1] I. J. Good, "Rational Decisions", Journal of the Royal Statistical Society B 14, 1952.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> log_probabilities = np.array([[-1.0, -2.0, -0.5], [-np.inf, 0.0, -np.inf]])
    >>> loss, grad = xentrs.nll_loss_with_grad(log_probabilities, [2, 1])
    >>> grad + 0.0
    array([[ 0. ,  0. , -0.5],
           [ 0. , -0.5,  0. ]])
    """
    return evaluate("nll_loss", 1, locals())
