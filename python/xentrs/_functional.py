"""The public loss functions.

Each is a compiled function with the name, the signature and the docstring of the one below, and
answers without any Python where all arrays are canonical. What is not it hands on to the body
below, that is to `_arrays.py`. The arguments are gathered into a tuple so that they stand in each
function once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, SupportsIndex, TypeAlias, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xentrs import _arrays
from xentrs._xentrs import public as _public

FloatArray: TypeAlias = NDArray[np.floating[Any]]
Ignored: TypeAlias = SupportsIndex | Iterable[SupportsIndex] | None
Reduction: TypeAlias = Literal["mean", "sum", "none"]

# What the overloads leave out: all but `reduction`, on which the type of the loss depends.


class _Options(TypedDict, total=False):
    weight: ArrayLike | None
    label_smoothing: float
    denominator: float | None
    base: float | None


class _ClassOptions(_Options, total=False):
    axis: SupportsIndex
    sample_weight: ArrayLike | None
    ignore_index: Ignored


class _ClassGradOptions(_ClassOptions, total=False):
    out: FloatArray | None


class _ClassHessOptions(_ClassGradOptions, total=False):
    hess_out: FloatArray | None


class _ElementOptions(_Options, total=False):
    pos_weight: ArrayLike | None
    where: ArrayLike | None


class _ElementGradOptions(_ElementOptions, total=False):
    out: FloatArray | None


class _ElementHessOptions(_ElementGradOptions, total=False):
    hess_out: FloatArray | None


# Cross-entropy of the softmax of logits


@overload
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[_ClassOptions],
) -> FloatArray: ...
@overload
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[_ClassOptions],
) -> float: ...
@_public
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    denominator: float | None = None,
    base: float | None = None,
) -> float | FloatArray:
    r"""Cross-entropy between the softmax of logits and a target.

    Parameters
    ----------
    logits : array_like, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, of C >= 1 classes on `axis`. An array of
        any strides is not copied, but for a tile at a time where samples are no rows. Integers in
        a list or another sequence become float64; arrays of integers are refused.
    target : array_like
        Either class indices, of the shape of `logits` without the class axis: integers, or floats
        that are whole numbers. Or of the shape of `logits`: floats are probabilities, which need
        not sum to 1; integers and bools are one-hot, each row a single 1 and else 0.
    axis : int, default -1
        The class axis of `logits`. (PyTorch's layout ``(N, C, d)`` is ``axis=1``.)
    weight : array_like of shape (C,), optional
        Weight of each class. Of a class index without smoothing a weight of 0 leaves the sample
        out, as `sample_weight` does. Negative ones are not refused: the formulas below hold.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight
        0 counts for nothing, whatever its logits and its target probabilities. A negative weight
        turns the sign of the sample's loss and gradient, and counts negatively in the sum that
        the mean divides by.
    ignore_index : int, iterable of ints or None, default -100
        Class indices whose samples count for nothing, whatever their logits. They may lie inside
        or outside ``[0, C)``; one from 0 up cannot be combined with probabilities as target.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: the target becomes (1 - e) times itself plus e / C in every class.
    z_loss : float, default 0.0
        A finite number of at least 0: that times the square of logsumexp(logits) is added to the
        loss of each sample.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean over the samples, their sum, or each sample's loss.
    denominator : float, optional
        What ``"mean"`` divides by instead of the total weight, for instance that of a whole batch
        of which this call sees a part. Not negative.
    base : float, optional
        The base of the logarithm, positive, finite and not 1: 2 gives bits. Default: e, for nats.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float, accumulated in float64. For ``"none"`` an
        array of the dtype of `logits`, of its shape without the class axis.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above (logits of integers, for instance), is
        a masked array, a pandas table of nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. Nothing of it was converted then.
    ValueError
        If shapes do not fit, an option is not one of the values above, rows are not one-hot, or
        class indices are fractions or missing.
    MemoryError
        If there is not enough memory.
    IndexError
        If a class index that is not ignored is outside ``[0, C)``.

    See Also
    --------
    cross_entropy_with_grad : also the gradient, from the same pass over the logits.
    log_loss : the same from probabilities.

    Notes
    -----
    With p = softmax(logits), class weights w, sample weights s and label smoothing e, the loss of
    a sample of class y is

    .. math:: s \left[ -(1-e)\, w_y \log p_y - \frac{e}{C} \sum_c w_c \log p_c \right]

    and that of a sample whose target is the probabilities q

    .. math:: -s \sum_c w_c \left[ (1-e)\, q_c + \frac{e}{C} \right] \log p_c .

    ``"mean"`` divides by the sum of s w_y over the samples that are not ignored, or for
    probabilities by the sum of s. Where that leaves nothing the mean is NaN; with `denominator` it
    is 0.

    A logit of -inf is a class of probability 0, and costs nothing unless the target has weight
    there. A sample with a NaN, with +inf, or with nothing but -inf has the loss NaN.

    Accuracy: at most 4 ULP for the loss of a sample (measured: 2.8 in float32, 3.4 in float64; see
    docs/numerics.md), whatever the spread of the logits and their offset. Results do not depend on
    the number of threads.

    References
    ----------
    .. [1] C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception
       Architecture for Computer Vision", CVPR 2016, section 7 (label smoothing).
    .. [2] M. Dukhan, A. Ablavatski, "Two-Pass Softmax Algorithm", 2020, arXiv:2001.04438.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> round(xentrs.cross_entropy(logits, [0, 2]), 6)
    0.860645
    >>> xentrs.cross_entropy(logits, [0, 2], reduction="none").round(6)
    array([0.169846, 1.551445])

    Probabilities as target, and the result in bits:

    >>> round(xentrs.cross_entropy(logits, [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], base=2), 6)
    1.962996
    """
    args = (0, logits, target, axis, weight, sample_weight, ignore_index, label_smoothing,
            z_loss, reduction, denominator, base, None, None)  # fmt: skip
    result: float | FloatArray = _arrays.class_loss("cross_entropy", *args)
    return result


@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[_ClassGradOptions],
) -> tuple[FloatArray, FloatArray]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[_ClassGradOptions],
) -> tuple[float, FloatArray]: ...
@_public
def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    denominator: float | None = None,
    base: float | None = None,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    r"""Cross-entropy and its gradient in the logits, from one pass over them.

    Parameters as in `cross_entropy`, and one more.

    Parameters
    ----------
    logits, target
        As in `cross_entropy`.
    axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, denominator, base
        As in `cross_entropy`.
    out : ndarray, optional
        Where the gradient goes: an array of the shape and dtype of `logits`, of any strides. It
        may be `logits` itself, but may overlap no input otherwise. Where the call raises, nothing
        is written to it.

    Returns
    -------
    loss : float or ndarray
        As `cross_entropy` returns it.
    grad : ndarray
        `out`, or else a new C-contiguous array, of the shape and dtype of `logits`: the gradient
        of what is returned, so for ``"none"`` of each sample's own loss, and in units of `base`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `cross_entropy`; also if `out` has another type, dtype or shape, is read-only, or
        overlaps an input.

    Notes
    -----
    With a_c = s w_c t_c, t the smoothed target, the gradient is

    .. math:: \frac{\partial\, \mathrm{loss}}{\partial x_c} = p_c \sum_k a_k - a_c ,

    for a class index without smoothing s w_y (p_c - [c = y]). For the mean it is divided by what
    the mean is divided by. It is exactly 0 for ignored samples. At the target it is computed from
    the other classes' probabilities, not as p - 1, and so keeps its digits where p is near 1.

    Accuracy: at most 4 ULP for each entry above the smallest normal number (measured: 2.8 in
    float32, 3.7 in float64; see docs/numerics.md); with smoothing or probabilities as target, 4.1
    ULP of the larger of the two terms above (measured: 3.9 and 4.04).

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> loss, grad = xentrs.cross_entropy_with_grad(logits, [0, 2])
    >>> grad.round(6)
    array([[-0.078103,  0.057098,  0.021005],
           [ 0.105971,  0.288058, -0.394029]])

    In place:

    >>> loss, grad = xentrs.cross_entropy_with_grad(logits, [0, 2], out=logits)
    >>> grad is logits
    True
    """
    args = (1, logits, target, axis, weight, sample_weight, ignore_index, label_smoothing,
            z_loss, reduction, denominator, base, out, None)  # fmt: skip
    result: tuple[float | FloatArray, FloatArray] = _arrays.class_loss("cross_entropy", *args)
    return result


@overload
def cross_entropy_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[_ClassHessOptions],
) -> tuple[FloatArray, FloatArray, FloatArray]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[_ClassHessOptions],
) -> tuple[float, FloatArray, FloatArray]: ...
@_public
def cross_entropy_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    denominator: float | None = None,
    base: float | None = None,
    out: FloatArray | None = None,
    hess_out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray, FloatArray]:
    r"""Cross-entropy, its gradient and the diagonal of its Hessian in the logits.

    What boosting libraries ask of a custom objective (with ``reduction="none"``).

    Parameters
    ----------
    logits, target
        As in `cross_entropy`.
    axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, denominator, base
        As in `cross_entropy`.
    out, hess_out : ndarray, optional
        Where the gradient and the diagonal of the Hessian go, as `out` of
        `cross_entropy_with_grad`; they may not overlap each other.

    Returns
    -------
    loss : float or ndarray
        As `cross_entropy` returns it.
    grad : ndarray
        As `cross_entropy_with_grad` returns it.
    hess : ndarray
        `hess_out`, or else a new C-contiguous array, of the shape and dtype of `logits`: the
        second derivative of what is returned in each logit alone.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `cross_entropy_with_grad`.

    Notes
    -----
    With a_c as in `cross_entropy_with_grad`,

    .. math:: \frac{\partial^2 \mathrm{loss}}{\partial x_c^2} = p_c (1 - p_c) \sum_k a_k .

    Accuracy: at most 6 ULP for each entry above the smallest normal number (measured: 3.6 in
    float32, 4.6 in float64; see docs/numerics.md).

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> loss, grad, hess = xentrs.cross_entropy_with_grad_hess(logits, [0, 2], reduction="none")
    >>> hess.round(6)
    array([[0.131805, 0.101155, 0.040245],
           [0.167022, 0.244206, 0.167022]])
    """
    args = (2, logits, target, axis, weight, sample_weight, ignore_index, label_smoothing,
            z_loss, reduction, denominator, base, out, hess_out)  # fmt: skip
    result: tuple[float | FloatArray, FloatArray, FloatArray] = _arrays.class_loss(
        "cross_entropy", *args
    )
    return result


# Cross-entropy of given probabilities


@overload
def log_loss(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[_ClassOptions],
) -> FloatArray: ...
@overload
def log_loss(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[_ClassOptions],
) -> float: ...
@_public
def log_loss(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: float | None = None,
    base: float | None = None,
) -> float | FloatArray:
    r"""Cross-entropy between given probabilities and a target.

    Where logits are at hand, `cross_entropy` is more accurate and faster than a softmax and this.

    Parameters
    ----------
    probabilities : array_like, float32 or float64
        Probabilities, each in [0, 1], of any rank from 1, of C >= 1 classes on `axis`. They need
        not sum to 1, and are not clipped.
    target : array_like
        Either class indices, of the shape of `probabilities` without the class axis: integers, or
        floats that are whole numbers. Or of the shape of `probabilities`: floats are probabilities;
        integers and bools are one-hot, each row a single 1 and else 0.
    axis : int, default -1
        The class axis of `probabilities`.
    weight : array_like of shape (C,), optional
        Weight of each class. Of a class index without smoothing a weight of 0 leaves the sample
        out, as `sample_weight` does. Negative ones are not refused: the formulas below hold.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `probabilities` without the class axis. A sample of
        weight 0 counts for nothing, whatever its probabilities and its target. A negative weight
        turns the sign of the sample's loss and gradient, and counts negatively in the sum that
        the mean divides by.
    ignore_index : int, iterable of ints or None, default -100
        Class indices whose samples count for nothing.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: the target becomes (1 - e) times itself plus e / C in every class.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean over the samples, their sum, or each sample's loss.
    denominator : float, optional
        What ``"mean"`` divides by instead of the total weight. Not negative.
    base : float, optional
        The base of the logarithm, positive, finite and not 1: 2 gives bits. Default: e, for nats.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float, accumulated in float64. For ``"none"`` an
        array of the dtype of `probabilities`, of its shape without the class axis.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array, or lies on a GPU.
    ValueError
        If shapes do not fit, an option is not one of the values above, or a probability is outside
        [0, 1] or NaN.
    IndexError
        If a class index that is not ignored is outside ``[0, C)``.

    See Also
    --------
    log_loss_with_grad : also the gradient.
    cross_entropy : the same from logits.

    Notes
    -----
    With the smoothed target t, class weights w and sample weights s, the loss of a sample is

    .. math:: -s \sum_c w_c t_c \log p_c

    with 0 log 0 = 0; where p_c = 0 and w_c t_c is not, it is infinite. ``"mean"`` divides as in
    `cross_entropy`.

    Accuracy: at most 4 ULP for the loss of a sample (measured: 2.3 in float32, 3.5 in float64; see
    docs/numerics.md).

    References
    ----------
    .. [1] I. J. Good, "Rational Decisions", Journal of the Royal Statistical Society B 14, 1952.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> probabilities = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    >>> xentrs.log_loss(probabilities, [0, 1], base=2)
    0.5
    >>> xentrs.log_loss(probabilities, [1, 2], base=2, reduction="none")
    array([ 2., inf])
    """
    args = (0, probabilities, target, axis, weight, sample_weight, ignore_index, label_smoothing,
            reduction, denominator, base, None, None)  # fmt: skip
    result: float | FloatArray = _arrays.class_loss("log_loss", *args)
    return result


@overload
def log_loss_with_grad(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[_ClassGradOptions],
) -> tuple[FloatArray, FloatArray]: ...
@overload
def log_loss_with_grad(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[_ClassGradOptions],
) -> tuple[float, FloatArray]: ...
@_public
def log_loss_with_grad(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: float | None = None,
    base: float | None = None,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    r"""Cross-entropy of given probabilities, and its gradient in them.

    Parameters
    ----------
    probabilities, target
        As in `log_loss`.
    axis, weight, sample_weight, ignore_index, label_smoothing, reduction, denominator, base
        As in `log_loss`.
    out : ndarray, optional
        Where the gradient goes: an array of the shape and dtype of `probabilities`, of any
        strides. It may be `probabilities` itself, but may overlap no input otherwise. Where the
        call raises, nothing is written to it.

    Returns
    -------
    loss : float or ndarray
        As `log_loss` returns it.
    grad : ndarray
        `out`, or else a new C-contiguous array, of the shape and dtype of `probabilities`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `log_loss`; also if `out` has another type, dtype or shape, is read-only, or overlaps
        an input.

    Notes
    -----
    Each probability is a variable of its own, not bound to sum to 1 with the others:

    .. math:: \frac{\partial\, \mathrm{loss}}{\partial p_c} = -\frac{s w_c t_c}{p_c} ,

    and 0 where w_c t_c = 0. For the mean it is divided by what the mean is divided by.

    Accuracy: at most 4 ULP for each entry above the smallest normal number (measured: 2.2 in
    float32, 2.5 in float64; see docs/numerics.md).

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> probabilities = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    >>> loss, grad = xentrs.log_loss_with_grad(probabilities, [1, 1], reduction="sum")
    >>> grad + 0.0
    array([[ 0., -4.,  0.],
           [ 0., -1.,  0.]])
    """
    args = (1, probabilities, target, axis, weight, sample_weight, ignore_index, label_smoothing,
            reduction, denominator, base, out, None)  # fmt: skip
    result: tuple[float | FloatArray, FloatArray] = _arrays.class_loss("log_loss", *args)
    return result


@overload
def log_loss_with_grad_hess(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[_ClassHessOptions],
) -> tuple[FloatArray, FloatArray, FloatArray]: ...
@overload
def log_loss_with_grad_hess(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[_ClassHessOptions],
) -> tuple[float, FloatArray, FloatArray]: ...
@_public
def log_loss_with_grad_hess(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: float | None = None,
    base: float | None = None,
    out: FloatArray | None = None,
    hess_out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray, FloatArray]:
    r"""Cross-entropy of given probabilities, its gradient and the diagonal of its Hessian.

    Parameters
    ----------
    probabilities, target
        As in `log_loss`.
    axis, weight, sample_weight, ignore_index, label_smoothing, reduction, denominator, base
        As in `log_loss`.
    out, hess_out : ndarray, optional
        Where the gradient and the diagonal of the Hessian go, as `out` of `log_loss_with_grad`;
        they may not overlap each other.

    Returns
    -------
    loss : float or ndarray
        As `log_loss` returns it.
    grad : ndarray
        As `log_loss_with_grad` returns it.
    hess : ndarray
        `hess_out`, or else a new C-contiguous array, of the shape and dtype of `probabilities`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `log_loss_with_grad`.

    Notes
    -----
    The Hessian is diagonal:

    .. math:: \frac{\partial^2 \mathrm{loss}}{\partial p_c^2} = \frac{s w_c t_c}{p_c^2} ,

    and 0 where w_c t_c = 0.

    Accuracy: at most 4 ULP for each entry above the smallest normal number (measured: 3.0 in both
    dtypes; see docs/numerics.md).

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> probabilities = np.array([0.5, 0.25, 0.25])
    >>> loss, grad, hess = xentrs.log_loss_with_grad_hess(probabilities, 1)
    >>> hess
    array([ 0., 16.,  0.])
    """
    args = (2, probabilities, target, axis, weight, sample_weight, ignore_index, label_smoothing,
            reduction, denominator, base, out, hess_out)  # fmt: skip
    result: tuple[float | FloatArray, FloatArray, FloatArray] = _arrays.class_loss(
        "log_loss", *args
    )
    return result


# Binary and multi-label cross-entropy of logits, element by element


@overload
def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[_ElementOptions],
) -> FloatArray: ...
@overload
def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[_ElementOptions],
) -> float: ...
@_public
def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: float | None = None,
    base: float | None = None,
    where: ArrayLike | None = None,
) -> float | FloatArray:
    r"""Binary cross-entropy between the sigmoid of logits and a target, element by element.

    Parameters
    ----------
    logits : array_like, float32 or float64
        Log-odds, of any shape. A C-contiguous array is not copied.
    target : array_like of the shape of `logits`
        Floats, integers or bools: the probability of the positive class, taken as it is.
    weight : array_like, optional
        Weight of each element; broadcast to the shape of `logits`. An element of weight 0 has the
        loss 0, whatever its logit and its label; the mean counts it. Negative weights are not
        refused: they turn the sign of the loss.
    pos_weight : array_like, optional
        Weight of the positive class; broadcast to the shape of `logits`. Neither 0 nor a negative
        one is refused: the formula below holds.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: the target t becomes (1 - e) t + e / 2.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean over the elements, their sum, or each element's loss.
    denominator : float, optional
        What ``"mean"`` divides by instead of the number of elements. Not negative.
    base : float, optional
        The base of the logarithm, positive, finite and not 1: 2 gives bits. Default: e, for nats.
    where : array_like of bool, optional
        The elements that count; broadcast to the shape of `logits`. The others add nothing,
        whatever their values, and the mean divides by the number of those that count.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float, accumulated in float64. For ``"none"`` an
        array of the dtype and shape of `logits`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array, or lies on a GPU.
    ValueError
        If shapes do not fit, or an option is not one of the values above.

    See Also
    --------
    binary_cross_entropy_with_logits_with_grad : also the gradient, from the same pass.

    Notes
    -----
    With the smoothed target t, weight w and positive weight v, the loss of the logit x is

    .. math::

        w \left[ (1-t)\, x + (1 + (v-1)\, t) \log(1 + e^{-x}) \right]
        = w \left[ (1-t) \log(1 + e^x) + v t \log(1 + e^{-x}) \right] ,

    computed without cancellation: tiny losses keep their digits, and x = +inf with t = 1 or
    x = -inf with t = 0 give 0. As in PyTorch, ``"mean"`` divides by the number of elements, not by
    their weight. The mean of nothing is NaN; with `denominator` it is 0.

    Accuracy: at most 4 ULP for the loss of an element (measured: 3.4 in float32, 3.9 in float64;
    see docs/numerics.md).

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
    args = (0, logits, target, weight, pos_weight, label_smoothing, reduction, denominator, base,
            where, None, None)  # fmt: skip
    result: float | FloatArray = _arrays.element_loss("binary_cross_entropy_with_logits", *args)
    return result


@overload
def binary_cross_entropy_with_logits_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[_ElementGradOptions],
) -> tuple[FloatArray, FloatArray]: ...
@overload
def binary_cross_entropy_with_logits_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[_ElementGradOptions],
) -> tuple[float, FloatArray]: ...
@_public
def binary_cross_entropy_with_logits_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: float | None = None,
    base: float | None = None,
    where: ArrayLike | None = None,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    r"""Binary cross-entropy of logits and its gradient in them, from one pass.

    Parameters
    ----------
    logits, target
        As in `binary_cross_entropy_with_logits`.
    weight, pos_weight, label_smoothing, reduction, denominator, base, where
        As in `binary_cross_entropy_with_logits`.
    out : ndarray, optional
        Where the gradient goes: an array of the shape and dtype of `logits`, of any strides. It
        may be `logits` itself, but may overlap no input otherwise. Where the call raises, nothing
        is written to it.

    Returns
    -------
    loss : float or ndarray
        As `binary_cross_entropy_with_logits` returns it.
    grad : ndarray
        `out`, or else a new C-contiguous array, of the shape and dtype of `logits`: the gradient
        of what is returned, in units of `base`.

    Raises
    ------
    TypeError, ValueError
        As in `binary_cross_entropy_with_logits`; also if `out` has another type, dtype or shape,
        is read-only, or overlaps an input.

    Notes
    -----
    With :math:`\sigma(x) = 1 / (1 + e^{-x})` the gradient is

    .. math:: w \left[ (1-t)\, \sigma(x) - v t\, \sigma(-x) \right] ,

    for the mean divided by what the mean is divided by, and exactly 0 where `where` is False.

    Accuracy: at most 4 ULP for each entry above the smallest normal number (measured: 3.4 in
    float32, 3.9 in float64; see docs/numerics.md); for t between 0 and 1, 4 ULP of the larger of
    the two terms above.

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
    args = (1, logits, target, weight, pos_weight, label_smoothing, reduction, denominator, base,
            where, out, None)  # fmt: skip
    result: tuple[float | FloatArray, FloatArray] = _arrays.element_loss(
        "binary_cross_entropy_with_logits", *args
    )
    return result


@overload
def binary_cross_entropy_with_logits_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[_ElementHessOptions],
) -> tuple[FloatArray, FloatArray, FloatArray]: ...
@overload
def binary_cross_entropy_with_logits_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[_ElementHessOptions],
) -> tuple[float, FloatArray, FloatArray]: ...
@_public
def binary_cross_entropy_with_logits_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    denominator: float | None = None,
    base: float | None = None,
    where: ArrayLike | None = None,
    out: FloatArray | None = None,
    hess_out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray, FloatArray]:
    r"""Binary cross-entropy of logits, its gradient and its second derivative in them.

    What boosting libraries ask of a custom objective (with ``reduction="none"``).

    Parameters
    ----------
    logits, target
        As in `binary_cross_entropy_with_logits`.
    weight, pos_weight, label_smoothing, reduction, denominator, base, where
        As in `binary_cross_entropy_with_logits`.
    out, hess_out : ndarray, optional
        Where the gradient and the second derivative go, as `out` of
        `binary_cross_entropy_with_logits_with_grad`; they may not overlap each other.

    Returns
    -------
    loss : float or ndarray
        As `binary_cross_entropy_with_logits` returns it.
    grad : ndarray
        As `binary_cross_entropy_with_logits_with_grad` returns it.
    hess : ndarray
        `hess_out`, or else a new C-contiguous array, of the shape and dtype of `logits`.

    Raises
    ------
    TypeError, ValueError
        As in `binary_cross_entropy_with_logits_with_grad`.

    Notes
    -----
    The Hessian is diagonal:

    .. math:: w \left[ (1-t) + v t \right] \sigma(x)\, \sigma(-x) .

    Accuracy: at most 7 ULP for each entry above the smallest normal number (measured: 4.8 in
    float32, 6.0 in float64; see docs/numerics.md).

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
    args = (2, logits, target, weight, pos_weight, label_smoothing, reduction, denominator, base,
            where, out, hess_out)  # fmt: skip
    result: tuple[float | FloatArray, FloatArray, FloatArray] = _arrays.element_loss(
        "binary_cross_entropy_with_logits", *args
    )
    return result
