"""Binary and multi-label cross-entropy of logits, element by element."""

from __future__ import annotations

from typing import Literal, SupportsFloat, TypedDict, Unpack, overload

from numpy.typing import ArrayLike, NDArray

from xentrs._arrays import evaluate
from xentrs._losses import public
from xentrs._losses._types import AnyFloat, Float, FloatArray, Half, Reduction, Single


class Options(TypedDict, total=False):
    """The keywords that do not decide the type of what is returned."""

    weight: ArrayLike | None
    pos_weight: ArrayLike | None
    label_smoothing: float
    denominator: SupportsFloat | None
    base: float | None
    where: ArrayLike | None


@overload
def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[Options],
) -> float: ...
@overload
def binary_cross_entropy_with_logits(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> Single: ...
@overload
def binary_cross_entropy_with_logits(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> NDArray[Float]: ...
@overload
def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> FloatArray: ...
@public
def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
    where: ArrayLike | None = None,
) -> float | FloatArray:
    r"""Binary cross-entropy between the sigmoid of logits and a target, element by element.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Log-odds, of any shape. A C-contiguous array is read where it lies. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like of the shape of `logits`
        Floats, integers or bools: the probability of the positive class, taken as it is. It need
        not lie in [0, 1].
    weight : array_like, optional
        Weight of each element; broadcast to the shape of `logits`. An element of weight 0 has the
        loss 0, whatever its logit and its target; the mean still counts it. Negative weights are
        accepted: the formulas in Notes hold for them.
    pos_weight : array_like, optional
        Weight of the positive class; broadcast to the shape of `logits`. Weights of 0 and negative
        ones are accepted: the formulas in Notes hold for them.
    label_smoothing : float, default 0.0
        A number e in [0, 1]. The target t becomes (1 - e) t + e / 2.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the elements, their sum, or the loss of each element.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the number of elements. Pass that of the whole batch
        where a call sees a part of it, as in gradient accumulation. Not negative.
    base : float, optional
        Base of the logarithm in everything that is returned: 2 gives bits. Positive, finite and not
        1. The default is e, for nats.
    where : array_like of bool, optional
        The elements that count; broadcast to the shape of `logits`. The others add nothing,
        whatever their values, and the mean divides by the number of those that count.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float, accumulated in float64. For ``"none"`` an array
        of the dtype (float32 for half precision) and shape of `logits`.

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
    binary_cross_entropy_with_logits_with_grad : also the gradient, from the same pass.
    binary_cross_entropy_with_logits_with_grad_hess : also the second derivative.
    cross_entropy : for classes that exclude each other.

    Notes
    -----
    With the smoothed target t, weight w and positive weight v, the loss of the logit x is

    .. math::

        w \left[ (1-t)\, x + (1 + (v-1)\, t) \log(1 + e^{-x}) \right]
        = w \left[ (1-t) \log(1 + e^x) + v t \log(1 + e^{-x}) \right] .

    It is computed without cancellation: tiny losses keep their digits, and x = +inf with t = 1, or
    x = -inf with t = 0, gives 0.

    As in PyTorch, ``"mean"`` divides by the number of elements, not by their weight. The mean of no
    elements is NaN; with `denominator` it is 0.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: at most 4 ULP for the loss of an element, in float64 5 with both weights
    at once (measured: 3.4 in float32, 4.3 in float64; see docs/numerics.md).

    References
    ----------
    .. [1] M. Maechler, "Accurately Computing log(1 - exp(-|a|))", vignette of the R package Rmpfr,
       2012 (which covers log(1 + exp(x)) too).

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[3.0, -1.0], [0.0, 40.0]])
    >>> target = [[1, 0], [1, 1]]
    >>> round(xentrs.binary_cross_entropy_with_logits(logits, target), 6)
    0.263749
    >>> xentrs.binary_cross_entropy_with_logits(
    ...     logits, target, pos_weight=[2.0, 1.0], reduction="none"
    ... ).round(6)
    array([[0.097175, 0.313262],
           [1.386294, 0.      ]])
    """
    return evaluate("binary_cross_entropy_with_logits", 0, locals())


@overload
def binary_cross_entropy_with_logits_with_grad(
    logits: NDArray[AnyFloat],
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[AnyFloat] | None = None,
    **options: Unpack[Options],
) -> tuple[float, NDArray[AnyFloat]]: ...
@overload
def binary_cross_entropy_with_logits_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[float, FloatArray]: ...
@overload
def binary_cross_entropy_with_logits_with_grad(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: Half | None = None,
    **options: Unpack[Options],
) -> tuple[Single, Half]: ...
@overload
def binary_cross_entropy_with_logits_with_grad(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[NDArray[Float], NDArray[Float]]: ...
@overload
def binary_cross_entropy_with_logits_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[FloatArray, FloatArray]: ...
@public
def binary_cross_entropy_with_logits_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
    where: ArrayLike | None = None,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    r"""Binary cross-entropy of logits and its gradient, from one pass over the logits.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Log-odds, of any shape. A C-contiguous array is read where it lies. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like of the shape of `logits`
        Floats, integers or bools: the probability of the positive class, taken as it is. It need
        not lie in [0, 1].
    weight : array_like, optional
        Weight of each element; broadcast to the shape of `logits`. An element of weight 0 has the
        loss 0, whatever its logit and its target; the mean still counts it. Negative weights are
        accepted: the formulas in Notes hold for them.
    pos_weight : array_like, optional
        Weight of the positive class; broadcast to the shape of `logits`. Weights of 0 and negative
        ones are accepted: the formulas in Notes hold for them.
    label_smoothing : float, default 0.0
        A number e in [0, 1]. The target t becomes (1 - e) t + e / 2.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the elements, their sum, or the loss of each element.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the number of elements. Pass that of the whole batch
        where a call sees a part of it, as in gradient accumulation. Not negative.
    base : float, optional
        Base of the logarithm in everything that is returned: 2 gives bits. Positive, finite and not
        1. The default is e, for nats.
    where : array_like of bool, optional
        The elements that count; broadcast to the shape of `logits`. The others add nothing,
        whatever their values, and the mean divides by the number of those that count.
    out : ndarray, optional
        Array for the gradient, of the shape and dtype of `logits` and of any strides. It may be
        `logits` itself, to work in place; otherwise it must not overlap an input. Nothing is
        written to it if the call is refused.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float, accumulated in float64. For ``"none"`` an array
        of the dtype (float32 for half precision) and shape of `logits`.
    grad : ndarray
        The gradient of the returned loss in `logits`; for ``"none"``, of each element's own loss.
        It is `out`, or a new C-contiguous array of the shape and dtype of `logits`.

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
    binary_cross_entropy_with_logits : the loss alone.
    binary_cross_entropy_with_logits_with_grad_hess : also the second derivative.
    cross_entropy : for classes that exclude each other.

    Notes
    -----
    With the smoothed target t, weight w and positive weight v, the loss of the logit x is

    .. math::

        w \left[ (1-t)\, x + (1 + (v-1)\, t) \log(1 + e^{-x}) \right]
        = w \left[ (1-t) \log(1 + e^x) + v t \log(1 + e^{-x}) \right] .

    It is computed without cancellation: tiny losses keep their digits, and x = +inf with t = 1, or
    x = -inf with t = 0, gives 0.

    As in PyTorch, ``"mean"`` divides by the number of elements, not by their weight. The mean of no
    elements is NaN; with `denominator` it is 0.

    Results do not depend on the number of threads, not in a single bit.

    With :math:`\sigma(x) = 1 / (1 + e^{-x})` the gradient of an element's loss is

    .. math:: w \left[ (1-t)\, \sigma(x) - v t\, \sigma(-x) \right] .

    For the mean it is divided by what the mean is divided by. It is exactly 0 where `where` is
    False.

    Accuracy: at most 4 ULP for the loss of an element, and for each entry of the gradient above the
    smallest normal number, in float64 5 with both weights at once (measured:
    3.4 in float32, 4.9 in float64; see docs/numerics.md). For t between 0 and 1 the gradient is
    good to as many ULP of the larger of its two terms.

    References
    ----------
    .. [1] M. Maechler, "Accurately Computing log(1 - exp(-|a|))", vignette of the R package Rmpfr,
       2012 (which covers log(1 + exp(x)) too).

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([0.0, np.log(3.0)])
    >>> loss, grad = xentrs.binary_cross_entropy_with_logits_with_grad(
    ...     logits, [0, 1], reduction="sum"
    ... )
    >>> grad.round(6)
    array([ 0.5 , -0.25])
    """
    return evaluate("binary_cross_entropy_with_logits", 1, locals())


@overload
def binary_cross_entropy_with_logits_with_grad_hess(
    logits: NDArray[AnyFloat],
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[AnyFloat] | None = None,
    hess_out: NDArray[AnyFloat] | None = None,
    **options: Unpack[Options],
) -> tuple[float, NDArray[AnyFloat], NDArray[AnyFloat]]: ...
@overload
def binary_cross_entropy_with_logits_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: FloatArray | None = None,
    hess_out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[float, FloatArray, FloatArray]: ...
@overload
def binary_cross_entropy_with_logits_with_grad_hess(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: Half | None = None,
    hess_out: Half | None = None,
    **options: Unpack[Options],
) -> tuple[Single, Half, Half]: ...
@overload
def binary_cross_entropy_with_logits_with_grad_hess(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: NDArray[Float] | None = None,
    hess_out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[NDArray[Float], NDArray[Float], NDArray[Float]]: ...
@overload
def binary_cross_entropy_with_logits_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: FloatArray | None = None,
    hess_out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[FloatArray, FloatArray, FloatArray]: ...
@public
def binary_cross_entropy_with_logits_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
    where: ArrayLike | None = None,
    out: FloatArray | None = None,
    hess_out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray, FloatArray]:
    r"""Binary cross-entropy of logits, its gradient and its second derivative.

    With ``reduction="none"`` this is what boosting libraries expect of a custom objective.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Log-odds, of any shape. A C-contiguous array is read where it lies. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like of the shape of `logits`
        Floats, integers or bools: the probability of the positive class, taken as it is. It need
        not lie in [0, 1].
    weight : array_like, optional
        Weight of each element; broadcast to the shape of `logits`. An element of weight 0 has the
        loss 0, whatever its logit and its target; the mean still counts it. Negative weights are
        accepted: the formulas in Notes hold for them.
    pos_weight : array_like, optional
        Weight of the positive class; broadcast to the shape of `logits`. Weights of 0 and negative
        ones are accepted: the formulas in Notes hold for them.
    label_smoothing : float, default 0.0
        A number e in [0, 1]. The target t becomes (1 - e) t + e / 2.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the elements, their sum, or the loss of each element.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the number of elements. Pass that of the whole batch
        where a call sees a part of it, as in gradient accumulation. Not negative.
    base : float, optional
        Base of the logarithm in everything that is returned: 2 gives bits. Positive, finite and not
        1. The default is e, for nats.
    where : array_like of bool, optional
        The elements that count; broadcast to the shape of `logits`. The others add nothing,
        whatever their values, and the mean divides by the number of those that count.
    out : ndarray, optional
        Array for the gradient, of the shape and dtype of `logits` and of any strides. It may be
        `logits` itself, to work in place; otherwise it must not overlap an input. Nothing is
        written to it if the call is refused.
    hess_out : ndarray, optional
        Array for the diagonal of the Hessian, of the shape and dtype of `logits` and of any
        strides. It may be `logits` itself; otherwise it must not overlap an input, nor `out`.
        Nothing is written to it if the call is refused.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float, accumulated in float64. For ``"none"`` an array
        of the dtype (float32 for half precision) and shape of `logits`.
    grad : ndarray
        The gradient of the returned loss in `logits`; for ``"none"``, of each element's own loss.
        It is `out`, or a new C-contiguous array of the shape and dtype of `logits`.
    hess : ndarray
        The diagonal of the Hessian: the second derivative of the returned loss in each number of
        `logits` alone. It is `hess_out`, or a new C-contiguous array of the shape and dtype of
        `logits`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array that masks an
        element, a pandas object with nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. None of these is converted first. Also if `out` or `hess_out` is no ndarray
        of the dtype of `logits`.
    ValueError
        If shapes do not fit, or an option has a value other than above. Also if `out` or `hess_out`
        has another shape, is read-only or overlaps an input or the other.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    binary_cross_entropy_with_logits : the loss alone.
    binary_cross_entropy_with_logits_with_grad : also the gradient, from the same pass.
    cross_entropy : for classes that exclude each other.

    Notes
    -----
    With the smoothed target t, weight w and positive weight v, the loss of the logit x is

    .. math::

        w \left[ (1-t)\, x + (1 + (v-1)\, t) \log(1 + e^{-x}) \right]
        = w \left[ (1-t) \log(1 + e^x) + v t \log(1 + e^{-x}) \right] .

    It is computed without cancellation: tiny losses keep their digits, and x = +inf with t = 1, or
    x = -inf with t = 0, gives 0.

    As in PyTorch, ``"mean"`` divides by the number of elements, not by their weight. The mean of no
    elements is NaN; with `denominator` it is 0.

    Results do not depend on the number of threads, not in a single bit.

    With :math:`\sigma(x) = 1 / (1 + e^{-x})` the gradient of an element's loss is

    .. math:: w \left[ (1-t)\, \sigma(x) - v t\, \sigma(-x) \right] .

    For the mean it is divided by what the mean is divided by. It is exactly 0 where `where` is
    False.

    The Hessian is diagonal:

    .. math:: w \left[ (1-t) + v t \right] \sigma(x)\, \sigma(-x) .

    Accuracy: at most 4 ULP for the loss of an element and for each entry of the gradient above the
    smallest normal number, in float64 5 with both weights at once; at most 7
    ULP for such an entry of the Hessian (measured: 4.8 in float32, 6.0 in float64; see
    docs/numerics.md). For t between 0 and 1 the gradient is good to as many ULP of the larger of
    its two terms.

    References
    ----------
    .. [1] M. Maechler, "Accurately Computing log(1 - exp(-|a|))", vignette of the R package Rmpfr,
       2012 (which covers log(1 + exp(x)) too).

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> loss, grad, hess = xentrs.binary_cross_entropy_with_logits_with_grad_hess(
    ...     np.array([0.0, np.log(3.0)]), [0, 1], reduction="none"
    ... )
    >>> hess.round(6)
    array([0.25  , 0.1875])
    """
    return evaluate("binary_cross_entropy_with_logits", 2, locals())
