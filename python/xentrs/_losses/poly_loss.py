"""Poly-1 loss of the softmax of logits."""

from __future__ import annotations

from typing import Literal, SupportsFloat, SupportsIndex, Unpack, overload

from numpy.typing import ArrayLike, NDArray

from xentrs._arrays import evaluate
from xentrs._losses import public
from xentrs._losses._types import (
    AnyFloat,
    Float,
    FloatArray,
    Half,
    Ignored,
    IndexOptions,
    Reduction,
    Single,
)


class Options(IndexOptions, total=False):
    """The keywords on which no returned type depends."""

    epsilon: float


@overload
def poly_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[Options],
) -> float: ...
@overload
def poly_loss(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> Single: ...
@overload
def poly_loss(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> NDArray[Float]: ...
@overload
def poly_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> FloatArray: ...
@public
def poly_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    epsilon: float = 1.0,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
) -> float | FloatArray:
    r"""Poly-1 loss: cross-entropy whose leading term has a factor of its own.

    The loss of each sample is -log p + epsilon (1 - p), where p is the probability of its class
    [1]_.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like
        Class indices, of the shape of `logits` without the class axis: integers, or floats that are
        whole numbers.
    epsilon : float, default 1.0
        The factor of 1 - p, finite. Above 0 it turns the loss to the samples that the model
        classifies well already; below 0 away from them. With 0 the function is `cross_entropy`, to
        the last bit.
    axis : int, default -1
        The class axis of `logits`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    weight : array_like of shape (C,), optional
        Weight of each class. A weight of 0 leaves out every sample of that class, as a sample
        weight of 0 does. Negative weights are accepted: the formulas in Notes hold for them.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight 0
        counts for nothing, whatever its `logits`. A negative weight negates the loss and the
        gradient of its sample, and is negative in the sum that ``"mean"`` divides by.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing, whatever their `logits`; None
        for no such index. Indices in ``[0, C)`` may be ignored too.
    label_smoothing : float, default 0.0
        Only 0: a poly loss of smoothed targets is not defined.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the samples, their sum, or the loss of each sample.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the total weight of the samples. Pass that of the
        whole batch where a call sees a part of it, as in gradient accumulation. Not negative.

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
    poly_loss_with_grad : also the gradient, from the same pass over the logits.
    cross_entropy : the loss of `epsilon` 0, for smoothing and for probabilities.
    generalized_cross_entropy : another function of p, for noisy labels.

    Notes
    -----
    With p the softmax's probability of the sample's class y, class weights w and sample weights s,
    the loss of a sample is

    .. math:: s\, w_y\, \left( -\log p + \epsilon (1 - p) \right) .

    ``"mean"`` divides by the sum of s w_y over the samples that are not ignored, as `cross_entropy`
    does. If no sample counts, the mean is NaN; with `denominator` it is 0.

    -log p is the sum of (1 - p)**k / k over k from 1 on: `epsilon` is added to the first of these
    factors. Symmetric cross-entropy [2]_ is kin to it: with one-hot targets whose log 0 is replaced
    by A, alpha (-log p) + beta (-A) (1 - p) is alpha times this loss with
    ``epsilon = -A * beta / alpha``.

    1 - p is computed from the probabilities of the other classes, and so keeps its digits where p
    is near 1. A logit of -inf at the target gives an infinite loss; a sample with a NaN, with +inf,
    or with nothing but -inf has the loss NaN.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: at most 4 ULP for the loss of a sample, of the larger of its two terms where `epsilon`
    is negative (measured: 1.4 in float32, 2.7 in float64; see docs/numerics.md).

    References
    ----------
    .. [1] Z. Leng, M. Tan, C. Liu, E. D. Cubuk, X. Shi, S. Cheng, D. Anguelov, "PolyLoss: A
       Polynomial Expansion Perspective of Classification Loss Functions", ICLR 2022,
       arXiv:2204.12511.
    .. [2] Y. Wang, X. Ma, Z. Chen, Y. Luo, J. Yi, J. Bailey, "Symmetric Cross Entropy for Robust
       Learning with Noisy Labels", ICCV 2019, arXiv:1908.06112.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> round(xentrs.poly_loss(logits, [0, 2]), 6)
    1.332777
    >>> xentrs.poly_loss(logits, [0, 2], epsilon=-1, reduction="none").round(6)
    array([0.013641, 0.763386])
    """
    return evaluate("poly_loss", 0, locals())


@overload
def poly_loss_with_grad(
    logits: NDArray[AnyFloat],
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[AnyFloat] | None = None,
    **options: Unpack[Options],
) -> tuple[float, NDArray[AnyFloat]]: ...
@overload
def poly_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[float, FloatArray]: ...
@overload
def poly_loss_with_grad(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: Half | None = None,
    **options: Unpack[Options],
) -> tuple[Single, Half]: ...
@overload
def poly_loss_with_grad(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[NDArray[Float], NDArray[Float]]: ...
@overload
def poly_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[FloatArray, FloatArray]: ...
@public
def poly_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    epsilon: float = 1.0,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    r"""Poly-1 loss and its gradient in the logits, from one pass over the logits.

    The loss of each sample is -log p + epsilon (1 - p), where p is the probability of its class
    [1]_.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like
        Class indices, of the shape of `logits` without the class axis: integers, or floats that are
        whole numbers.
    epsilon : float, default 1.0
        The factor of 1 - p, finite. Above 0 it turns the loss to the samples that the model
        classifies well already; below 0 away from them. With 0 the function is `cross_entropy`, to
        the last bit.
    axis : int, default -1
        The class axis of `logits`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    weight : array_like of shape (C,), optional
        Weight of each class. A weight of 0 leaves out every sample of that class, as a sample
        weight of 0 does. Negative weights are accepted: the formulas in Notes hold for them.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight 0
        counts for nothing, whatever its `logits`. A negative weight negates the loss and the
        gradient of its sample, and is negative in the sum that ``"mean"`` divides by.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing, whatever their `logits`; None
        for no such index. Indices in ``[0, C)`` may be ignored too.
    label_smoothing : float, default 0.0
        Only 0: a poly loss of smoothed targets is not defined.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the samples, their sum, or the loss of each sample.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the total weight of the samples. Pass that of the
        whole batch where a call sees a part of it, as in gradient accumulation. Not negative.
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
    poly_loss : the loss alone.
    cross_entropy : the loss of `epsilon` 0, for smoothing and for probabilities.
    generalized_cross_entropy : another function of p, for noisy labels.

    Notes
    -----
    With p the softmax's probability of the sample's class y, class weights w and sample weights s,
    the loss of a sample is

    .. math:: s\, w_y\, \left( -\log p + \epsilon (1 - p) \right) .

    ``"mean"`` divides by the sum of s w_y over the samples that are not ignored, as `cross_entropy`
    does. If no sample counts, the mean is NaN; with `denominator` it is 0.

    -log p is the sum of (1 - p)**k / k over k from 1 on: `epsilon` is added to the first of these
    factors. Symmetric cross-entropy [2]_ is kin to it: with one-hot targets whose log 0 is replaced
    by A, alpha (-log p) + beta (-A) (1 - p) is alpha times this loss with
    ``epsilon = -A * beta / alpha``.

    1 - p is computed from the probabilities of the other classes, and so keeps its digits where p
    is near 1. A logit of -inf at the target gives an infinite loss; a sample with a NaN, with +inf,
    or with nothing but -inf has the loss NaN.

    Results do not depend on the number of threads, not in a single bit.

    The derivative in -log p is 1 + epsilon p, so that the gradient of a sample's loss is

    .. math::

        \frac{\partial\, \mathrm{loss}}{\partial x_c}
        = s\, w_y\, (1 + \epsilon\, p)\, (p_c - [c = y]) .

    For the mean it is divided by what the mean is divided by. It is exactly 0 for samples that
    count for nothing.

    Accuracy: at most 4 ULP for the loss of a sample and for each entry of the gradient that is not
    next to the smallest normal number, of the larger of its two terms where `epsilon` is negative
    (measured: 2.5 in float32, 3.5 in float64; see docs/numerics.md).

    References
    ----------
    .. [1] Z. Leng, M. Tan, C. Liu, E. D. Cubuk, X. Shi, S. Cheng, D. Anguelov, "PolyLoss: A
       Polynomial Expansion Perspective of Classification Loss Functions", ICLR 2022,
       arXiv:2204.12511.
    .. [2] Y. Wang, X. Ma, Z. Chen, Y. Luo, J. Yi, J. Bailey, "Symmetric Cross Entropy for Robust
       Learning with Noisy Labels", ICCV 2019, arXiv:1908.06112.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> loss, grad = xentrs.poly_loss_with_grad(logits, [0, 2])
    >>> grad.round(6)
    array([[-0.144005,  0.105276,  0.038729],
           [ 0.12843 ,  0.34911 , -0.47754 ]])
    """
    return evaluate("poly_loss", 1, locals())
