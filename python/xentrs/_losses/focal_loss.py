"""Focal loss of the softmax of logits."""

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


class Options(ClassOptions, total=False):
    """The keywords on which no returned type depends."""

    gamma: float


@overload
def focal_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[Options],
) -> float: ...
@overload
def focal_loss(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> Single: ...
@overload
def focal_loss(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> NDArray[Float]: ...
@overload
def focal_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> FloatArray: ...
@public
def focal_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
) -> float | FloatArray:
    r"""Focal loss: a cross-entropy that turns to the samples that are classified badly.

    The cross-entropy of each sample is multiplied by (1 - p)**gamma, where p is the probability of
    its class [1]_.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like
        Class indices, of the shape of `logits` without the class axis: integers, or floats that are
        whole numbers.
    gamma : float, default 2.0
        The exponent, finite and not negative: the larger it is, the less the samples count that the
        model classifies well. With 0 the function is `cross_entropy`, to the last bit.
    axis : int, default -1
        The class axis of `logits`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    weight : array_like of shape (C,), optional
        Weight of each class, the alpha of the paper. A weight of 0 leaves out every sample of that
        class, as a sample weight of 0 does. Negative weights are accepted: the formulas in Notes
        hold for them.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight 0
        counts for nothing, whatever its `logits`. A negative weight negates the loss and the
        gradient of its sample, and is negative in the sum that ``"mean"`` divides by.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing, whatever their `logits`; None
        for no such index. Indices in ``[0, C)`` may be ignored too.
    label_smoothing : float, default 0.0
        Only 0: a focal loss of smoothed targets is not defined.
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
        lies on a GPU. None of these is converted first. Also if the target is probabilities or
        `label_smoothing` is not 0.
    ValueError
        If shapes do not fit, an option has a value other than above, or class indices are fractions
        or missing values.
    IndexError
        If a class index that is not ignored lies outside ``[0, C)``.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    focal_loss_with_grad : also the gradient, from the same pass over the logits.
    focal_loss_with_grad_hess : also the diagonal of the Hessian.
    cross_entropy : the loss without the factor, for smoothing and for probabilities.

    Notes
    -----
    With p the softmax's probability of the sample's class y, class weights w and sample weights s,
    the loss of a sample is

    .. math:: -s\, w_y\, (1 - p)^\gamma \log p .

    ``"mean"`` divides by the sum of s w_y over the samples that are not ignored, as `cross_entropy`
    does. If no sample counts, the mean is NaN; with `denominator` it is 0.

    1 - p is computed from the probabilities of the other classes, and so keeps its digits where p
    is near 1. A logit of -inf at the target gives an infinite loss; a sample with a NaN, with +inf,
    or with nothing but -inf has the loss NaN.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: at most 4 ULP for the loss of a sample up to gamma 2, and 1.1 more for each further
    unit of gamma, since the error of 1 - p is multiplied by gamma (measured for gamma 2: 3.1 in
    float32, 3.4 in float64; see docs/numerics.md).

    References
    ----------
    .. [1] T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, "Focal Loss for Dense Object
       Detection", ICCV 2017, arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> round(xentrs.focal_loss(logits, [0, 2]), 6)
    0.483824
    >>> xentrs.focal_loss(logits, [0, 2], gamma=1, reduction="none").round(6)
    array([0.026531, 1.222629])
    """
    return evaluate("focal_loss", 0, locals())


@overload
def focal_loss_with_grad(
    logits: NDArray[AnyFloat],
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[AnyFloat] | None = None,
    **options: Unpack[Options],
) -> tuple[float, NDArray[AnyFloat]]: ...
@overload
def focal_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[float, FloatArray]: ...
@overload
def focal_loss_with_grad(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: Half | None = None,
    **options: Unpack[Options],
) -> tuple[Single, Half]: ...
@overload
def focal_loss_with_grad(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[NDArray[Float], NDArray[Float]]: ...
@overload
def focal_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[FloatArray, FloatArray]: ...
@public
def focal_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
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
    r"""Focal loss and its gradient in the logits, from one pass over the logits.

    The cross-entropy of each sample is multiplied by (1 - p)**gamma, where p is the probability of
    its class [1]_.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like
        Class indices, of the shape of `logits` without the class axis: integers, or floats that are
        whole numbers.
    gamma : float, default 2.0
        The exponent, finite and not negative: the larger it is, the less the samples count that the
        model classifies well. With 0 the function is `cross_entropy`, to the last bit.
    axis : int, default -1
        The class axis of `logits`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    weight : array_like of shape (C,), optional
        Weight of each class, the alpha of the paper. A weight of 0 leaves out every sample of that
        class, as a sample weight of 0 does. Negative weights are accepted: the formulas in Notes
        hold for them.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight 0
        counts for nothing, whatever its `logits`. A negative weight negates the loss and the
        gradient of its sample, and is negative in the sum that ``"mean"`` divides by.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing, whatever their `logits`; None
        for no such index. Indices in ``[0, C)`` may be ignored too.
    label_smoothing : float, default 0.0
        Only 0: a focal loss of smoothed targets is not defined.
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
        lies on a GPU. None of these is converted first. Also if the target is probabilities or
        `label_smoothing` is not 0. Also if `out` is no ndarray of the dtype of `logits`.
    ValueError
        If shapes do not fit, an option has a value other than above, or class indices are fractions
        or missing values. Also if `out` has another shape, is read-only or overlaps an input.
    IndexError
        If a class index that is not ignored lies outside ``[0, C)``.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    focal_loss : the loss alone.
    focal_loss_with_grad_hess : also the diagonal of the Hessian.
    cross_entropy : the loss without the factor, for smoothing and for probabilities.

    Notes
    -----
    With p the softmax's probability of the sample's class y, class weights w and sample weights s,
    the loss of a sample is

    .. math:: -s\, w_y\, (1 - p)^\gamma \log p .

    ``"mean"`` divides by the sum of s w_y over the samples that are not ignored, as `cross_entropy`
    does. If no sample counts, the mean is NaN; with `denominator` it is 0.

    1 - p is computed from the probabilities of the other classes, and so keeps its digits where p
    is near 1. A logit of -inf at the target gives an infinite loss; a sample with a NaN, with +inf,
    or with nothing but -inf has the loss NaN.

    Results do not depend on the number of threads, not in a single bit.

    With l = -log p and u = 1 - p the derivative of u**gamma l in l is

    .. math:: \phi' = u^{\gamma - 1} (u + \gamma\, p\, l) ,

    and the gradient of a sample's loss is

    .. math:: \frac{\partial\, \mathrm{loss}}{\partial x_c} = s\, w_y\, \phi'\, (p_c - [c = y]) .

    For the mean it is divided by what the mean is divided by. It is exactly 0 for samples that
    count for nothing. Where p = 1 it has its limit, which is 0 if gamma is above 0.

    Accuracy: at most 4 ULP up to gamma 1, and 1.1 more for each further unit of gamma, for the loss
    of a sample and for each entry of the gradient that is not next to the smallest normal number,
    since the error of 1 - p is multiplied by gamma (measured for gamma 2: 3.6 in float32, 4.9 in
    float64; see docs/numerics.md).

    References
    ----------
    .. [1] T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, "Focal Loss for Dense Object
       Detection", ICCV 2017, arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> loss, grad = xentrs.focal_loss_with_grad(logits, [0, 2])
    >>> grad.round(6)
    array([[-0.005403,  0.00395 ,  0.001453],
           [ 0.120731,  0.328182, -0.448913]])
    """
    return evaluate("focal_loss", 1, locals())


@overload
def focal_loss_with_grad_hess(
    logits: NDArray[AnyFloat],
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[AnyFloat] | None = None,
    hess_out: NDArray[AnyFloat] | None = None,
    **options: Unpack[Options],
) -> tuple[float, NDArray[AnyFloat], NDArray[AnyFloat]]: ...
@overload
def focal_loss_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: FloatArray | None = None,
    hess_out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[float, FloatArray, FloatArray]: ...
@overload
def focal_loss_with_grad_hess(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: Half | None = None,
    hess_out: Half | None = None,
    **options: Unpack[Options],
) -> tuple[Single, Half, Half]: ...
@overload
def focal_loss_with_grad_hess(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: NDArray[Float] | None = None,
    hess_out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[NDArray[Float], NDArray[Float], NDArray[Float]]: ...
@overload
def focal_loss_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: FloatArray | None = None,
    hess_out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[FloatArray, FloatArray, FloatArray]: ...
@public
def focal_loss_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
    out: FloatArray | None = None,
    hess_out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray, FloatArray]:
    r"""Focal loss, its gradient and the diagonal of its Hessian.

    The cross-entropy of each sample is multiplied by (1 - p)**gamma, where p is the probability of
    its class [1]_.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like
        Class indices, of the shape of `logits` without the class axis: integers, or floats that are
        whole numbers.
    gamma : float, default 2.0
        The exponent, finite and not negative: the larger it is, the less the samples count that the
        model classifies well. With 0 the function is `cross_entropy`, to the last bit.
    axis : int, default -1
        The class axis of `logits`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    weight : array_like of shape (C,), optional
        Weight of each class, the alpha of the paper. A weight of 0 leaves out every sample of that
        class, as a sample weight of 0 does. Negative weights are accepted: the formulas in Notes
        hold for them.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight 0
        counts for nothing, whatever its `logits`. A negative weight negates the loss and the
        gradient of its sample, and is negative in the sum that ``"mean"`` divides by.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing, whatever their `logits`; None
        for no such index. Indices in ``[0, C)`` may be ignored too.
    label_smoothing : float, default 0.0
        Only 0: a focal loss of smoothed targets is not defined.
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
    hess_out : ndarray, optional
        Array for the diagonal of the Hessian, of the shape and dtype of `logits` and of any
        strides. It may be `logits` itself; otherwise it must not overlap an input, nor `out`.
        Nothing is written to it if the call is refused.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float, accumulated in float64. For ``"none"`` an array
        of the dtype of `logits` (float32 for half precision), of its shape without the class axis.
    grad : ndarray
        The gradient of the returned loss in `logits`; for ``"none"``, of each sample's own loss. It
        is `out`, or a new C-contiguous array of the shape and dtype of `logits`.
    hess : ndarray
        The diagonal of the Hessian: the second derivative of the returned loss in each number of
        `logits` alone. It is `hess_out`, or a new C-contiguous array of the shape and dtype of
        `logits`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array that masks an
        element, a pandas object with nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. None of these is converted first. Also if the target is probabilities or
        `label_smoothing` is not 0. Also if `out` or `hess_out` is no ndarray of the dtype of
        `logits`.
    ValueError
        If shapes do not fit, an option has a value other than above, or class indices are fractions
        or missing values. Also if `out` or `hess_out` has another shape, is read-only or overlaps
        an input or the other.
    IndexError
        If a class index that is not ignored lies outside ``[0, C)``.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    focal_loss : the loss alone.
    focal_loss_with_grad : also the gradient, from the same pass over the logits.
    cross_entropy : the loss without the factor, for smoothing and for probabilities.

    Notes
    -----
    With p the softmax's probability of the sample's class y, class weights w and sample weights s,
    the loss of a sample is

    .. math:: -s\, w_y\, (1 - p)^\gamma \log p .

    ``"mean"`` divides by the sum of s w_y over the samples that are not ignored, as `cross_entropy`
    does. If no sample counts, the mean is NaN; with `denominator` it is 0.

    1 - p is computed from the probabilities of the other classes, and so keeps its digits where p
    is near 1. A logit of -inf at the target gives an infinite loss; a sample with a NaN, with +inf,
    or with nothing but -inf has the loss NaN.

    Results do not depend on the number of threads, not in a single bit.

    With l = -log p and u = 1 - p the derivative of u**gamma l in l is

    .. math:: \phi' = u^{\gamma - 1} (u + \gamma\, p\, l) ,

    and the gradient of a sample's loss is

    .. math:: \frac{\partial\, \mathrm{loss}}{\partial x_c} = s\, w_y\, \phi'\, (p_c - [c = y]) .

    For the mean it is divided by what the mean is divided by. It is exactly 0 for samples that
    count for nothing. Where p = 1 it has its limit, which is 0 if gamma is above 0.

    With the second derivative in l,

    .. math:: \phi'' = \gamma\, u^{\gamma - 1} p \left( 2 - l + (\gamma - 1)\, p\, l / u \right) ,

    the diagonal of the Hessian, some of whose entries may be negative, is

    .. math::

        \frac{\partial^2 \mathrm{loss}}{\partial x_c^2}
        = s\, w_y \left[ \phi''\, (p_c - [c = y])^2 + \phi'\, p_c (1 - p_c) \right] .

    Accuracy: at most 4 ULP up to gamma 1, and 1.1 more for each further unit of gamma, for the loss
    of a sample and for each entry of the gradient that is not next to the smallest normal number,
    since the error of 1 - p is multiplied by gamma; at most 7 + 2.5 gamma ULP of the larger of its
    two terms for such an entry of the Hessian (measured for gamma 2: 4.7 in float32, 9.3 in
    float64; see docs/numerics.md).

    References
    ----------
    .. [1] T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, "Focal Loss for Dense Object
       Detection", ICCV 2017, arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> loss, grad, hess = xentrs.focal_loss_with_grad_hess(logits, [0, 2], reduction="none")
    >>> hess.round(6)
    array([[0.02679 , 0.016443, 0.004062],
           [0.203278, 0.374215, 0.369901]])
    """
    return evaluate("focal_loss", 2, locals())
