"""Cross-entropy of the softmax of logits."""

from __future__ import annotations

from typing import Literal, SupportsFloat, SupportsIndex, Unpack, overload

import numpy as np
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

    z_loss: float
    softcap: float | None
    temperature: float
    logsumexp_out: FloatArray | None
    argmax_out: NDArray[np.int64] | None


@overload
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[Options],
) -> float: ...
@overload
def cross_entropy(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> Single: ...
@overload
def cross_entropy(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> NDArray[Float]: ...
@overload
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> FloatArray: ...
@public
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
    softcap: float | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
    logsumexp_out: FloatArray | None = None,
    argmax_out: NDArray[np.int64] | None = None,
) -> float | FloatArray:
    r"""Cross-entropy between the softmax of logits and a target.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like, or tuple of two array_likes
        Class indices or probabilities; the shape says which. Of the shape of `logits` without the
        class axis: class indices, as integers or as floats that are whole numbers. Of the shape of
        `logits`: as floats, probabilities, which need not sum to 1; as integers or bools, one-hot
        rows, each with a single 1 and else 0. Or a pair ``(indices, probabilities)``: a few classes
        of each sample and their probabilities, all other classes having 0. Both arrays have the
        shape of `logits` without the class axis, and a last axis for the entries of a sample. An
        index that is ignored marks an empty entry; a class that is named twice has the sum.
    axis : int, default -1
        The class axis of `logits`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    weight : array_like of shape (C,), optional
        Weight of each class. For class indices without label smoothing, a weight of 0 leaves out
        every sample of that class, as a sample weight of 0 does. Negative weights are accepted: the
        formulas in Notes hold for them.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight 0
        counts for nothing, whatever its `logits` and its target probabilities. A negative weight
        negates the loss and the gradient of its sample, and is negative in the sum that ``"mean"``
        divides by.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing, whatever their `logits`; None
        for no such index. Indices in ``[0, C)`` may be ignored too. Beside probabilities as target
        all must be below 0.
    label_smoothing : float, default 0.0
        A number e in [0, 1]. The target becomes 1 - e times itself, plus e / C in every class.
    z_loss : float, default 0.0
        A factor z, finite and not negative: z S**2, where S is the logsumexp of the sample's logits
        in nats, is added to the loss of each sample that counts. It keeps the logits near
        normalised log-probabilities.
    softcap : float, optional
        A smooth cap of the logits: x becomes softcap * tanh(x / softcap), before it is divided by
        `temperature`. Positive and finite. A logit of -inf stays -inf and has the gradient 0.
        Derivatives are those in the logits as given.
    temperature : float, default 1.0
        What the logits are divided by, positive and finite. The differences of the logits keep
        their digits: no quotient is rounded. Derivatives are those in the logits as given.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the samples, their sum, or the loss of each sample.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the total weight of the samples. Pass that of the
        whole batch where a call sees a part of it, as in gradient accumulation. Not negative.
    base : float, optional
        Base of the logarithm in everything that is returned: 2 gives bits. Positive, finite and not
        1. The default is e, for nats.
    logsumexp_out : ndarray, optional
        Array for the logsumexp of each sample's logits, after `softcap` and `temperature`, in nats,
        of ignored samples too. It has the dtype of `logits`, and their shape without the class
        axis. It must not overlap an input or another output. Nothing is written to it if the call
        is refused.
    argmax_out : ndarray of int64, optional
        Array for the class of each sample's largest logit, of ignored samples too: as
        `numpy.argmax`, the first of equal ones, or the first NaN. Otherwise as `logsumexp_out`.

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
        If shapes do not fit, an option has a value other than above, class indices are fractions or
        missing values, or integer rows are not one-hot.
    IndexError
        If a class index that is not ignored lies outside ``[0, C)``.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    cross_entropy_with_grad : also the gradient, from the same pass over the logits.
    cross_entropy_with_grad_hess : also the diagonal of the Hessian.
    log_loss : the cross-entropy of given probabilities.

    Notes
    -----
    With p = softmax(logits), class weights w, sample weights s and label smoothing e, the loss of a
    sample of class y is

    .. math:: s \left[ -(1-e)\, w_y \log p_y - \frac{e}{C} \sum_c w_c \log p_c \right]

    and the loss of a sample whose target is the probabilities q is

    .. math:: -s \sum_c w_c \left[ (1-e)\, q_c + \frac{e}{C} \right] \log p_c .

    A pair ``(indices, probabilities)`` is such a q, most of whose numbers are 0.

    ``"mean"`` divides by the sum of s w_y over the samples that are not ignored, or for
    probabilities by the sum of s. If no sample counts, the mean is NaN; with `denominator` it is 0.
    The z-loss, which class weights and label smoothing leave alone, adds s z S**2 to either; its
    mean is divided by the sum of s over the samples that count.

    With `softcap` or `temperature` the logits in these formulas are the mapped ones,

    .. math:: \frac{c \tanh(x / c)}{T} ,

    and the gradient and the Hessian are those in x.

    A logit of -inf is a class of probability 0. It costs nothing unless the target has weight
    there. A sample with a NaN, with +inf, or with nothing but -inf has the loss NaN.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: at most 4 ULP for the loss of a sample (measured: 2.8 in float32, 3.4 in float64; see
    docs/numerics.md), whatever the spread of the logits and their offset. With class weights,
    sample weights or `base` a float64 loss may err by 5 ULP (measured: 4.8). With z-loss 5 ULP, if
    S is not next to 0.

    References
    ----------
    .. [1] C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception
       Architecture for Computer Vision", CVPR 2016, section 7 (label smoothing).
    .. [2] M. Dukhan, A. Ablavatski, "Two-Pass Softmax Algorithm", 2020, arXiv:2001.04438.
    .. [3] A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022,
       arXiv:2204.02311, section 5 (z-loss).

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

    The same target as a pair, with an empty entry:

    >>> indices, probabilities = [[0, 1], [2, -100]], [[0.5, 0.5], [1.0, 0.0]]
    >>> round(xentrs.cross_entropy(logits, (indices, probabilities), base=2), 6)
    1.962996
    """
    return evaluate("cross_entropy", 0, locals())


@overload
def cross_entropy_with_grad(
    logits: NDArray[AnyFloat],
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[AnyFloat] | None = None,
    **options: Unpack[Options],
) -> tuple[float, NDArray[AnyFloat]]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[float, FloatArray]: ...
@overload
def cross_entropy_with_grad(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: Half | None = None,
    **options: Unpack[Options],
) -> tuple[Single, Half]: ...
@overload
def cross_entropy_with_grad(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[NDArray[Float], NDArray[Float]]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[FloatArray, FloatArray]: ...
@public
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
    softcap: float | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
    logsumexp_out: FloatArray | None = None,
    argmax_out: NDArray[np.int64] | None = None,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    r"""Cross-entropy of logits and its gradient, from one pass over the logits.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like, or tuple of two array_likes
        Class indices or probabilities; the shape says which. Of the shape of `logits` without the
        class axis: class indices, as integers or as floats that are whole numbers. Of the shape of
        `logits`: as floats, probabilities, which need not sum to 1; as integers or bools, one-hot
        rows, each with a single 1 and else 0. Or a pair ``(indices, probabilities)``: a few classes
        of each sample and their probabilities, all other classes having 0. Both arrays have the
        shape of `logits` without the class axis, and a last axis for the entries of a sample. An
        index that is ignored marks an empty entry; a class that is named twice has the sum.
    axis : int, default -1
        The class axis of `logits`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    weight : array_like of shape (C,), optional
        Weight of each class. For class indices without label smoothing, a weight of 0 leaves out
        every sample of that class, as a sample weight of 0 does. Negative weights are accepted: the
        formulas in Notes hold for them.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight 0
        counts for nothing, whatever its `logits` and its target probabilities. A negative weight
        negates the loss and the gradient of its sample, and is negative in the sum that ``"mean"``
        divides by.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing, whatever their `logits`; None
        for no such index. Indices in ``[0, C)`` may be ignored too. Beside probabilities as target
        all must be below 0.
    label_smoothing : float, default 0.0
        A number e in [0, 1]. The target becomes 1 - e times itself, plus e / C in every class.
    z_loss : float, default 0.0
        A factor z, finite and not negative: z S**2, where S is the logsumexp of the sample's logits
        in nats, is added to the loss of each sample that counts. It keeps the logits near
        normalised log-probabilities.
    softcap : float, optional
        A smooth cap of the logits: x becomes softcap * tanh(x / softcap), before it is divided by
        `temperature`. Positive and finite. A logit of -inf stays -inf and has the gradient 0.
        Derivatives are those in the logits as given.
    temperature : float, default 1.0
        What the logits are divided by, positive and finite. The differences of the logits keep
        their digits: no quotient is rounded. Derivatives are those in the logits as given.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the samples, their sum, or the loss of each sample.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the total weight of the samples. Pass that of the
        whole batch where a call sees a part of it, as in gradient accumulation. Not negative.
    base : float, optional
        Base of the logarithm in everything that is returned: 2 gives bits. Positive, finite and not
        1. The default is e, for nats.
    logsumexp_out : ndarray, optional
        Array for the logsumexp of each sample's logits, after `softcap` and `temperature`, in nats,
        of ignored samples too. It has the dtype of `logits`, and their shape without the class
        axis. It must not overlap an input or another output. Nothing is written to it if the call
        is refused.
    argmax_out : ndarray of int64, optional
        Array for the class of each sample's largest logit, of ignored samples too: as
        `numpy.argmax`, the first of equal ones, or the first NaN. Otherwise as `logsumexp_out`.
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
        If shapes do not fit, an option has a value other than above, class indices are fractions or
        missing values, or integer rows are not one-hot. Also if `out` has another shape, is
        read-only or overlaps an input.
    IndexError
        If a class index that is not ignored lies outside ``[0, C)``.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    cross_entropy : the loss alone.
    cross_entropy_with_grad_hess : also the diagonal of the Hessian.
    log_loss : the cross-entropy of given probabilities.

    Notes
    -----
    With p = softmax(logits), class weights w, sample weights s and label smoothing e, the loss of a
    sample of class y is

    .. math:: s \left[ -(1-e)\, w_y \log p_y - \frac{e}{C} \sum_c w_c \log p_c \right]

    and the loss of a sample whose target is the probabilities q is

    .. math:: -s \sum_c w_c \left[ (1-e)\, q_c + \frac{e}{C} \right] \log p_c .

    A pair ``(indices, probabilities)`` is such a q, most of whose numbers are 0.

    ``"mean"`` divides by the sum of s w_y over the samples that are not ignored, or for
    probabilities by the sum of s. If no sample counts, the mean is NaN; with `denominator` it is 0.
    The z-loss, which class weights and label smoothing leave alone, adds s z S**2 to either; its
    mean is divided by the sum of s over the samples that count.

    With `softcap` or `temperature` the logits in these formulas are the mapped ones,

    .. math:: \frac{c \tanh(x / c)}{T} ,

    and the gradient and the Hessian are those in x.

    A logit of -inf is a class of probability 0. It costs nothing unless the target has weight
    there. A sample with a NaN, with +inf, or with nothing but -inf has the loss NaN.

    Results do not depend on the number of threads, not in a single bit.

    With a_c = s w_c t_c, where t is the smoothed target, the gradient of a sample's loss is

    .. math:: \frac{\partial\, \mathrm{loss}}{\partial x_c} = p_c \sum_k a_k - a_c ,

    which for a class index without smoothing is s w_y (p_c - [c = y]). For the mean it is divided
    by what the mean is divided by. It is exactly 0 for samples that count for nothing. At the
    target it is computed from the probabilities of the other classes, not as p - 1, and so keeps
    its digits where p is near 1.

    The z-loss adds 2 s z S p_c.

    Accuracy: at most 4 ULP for the loss of a sample and for each entry of the gradient above the
    smallest normal number (measured: 2.8 in float32, 3.7 in float64; see docs/numerics.md),
    whatever the spread of the logits and their offset. In float64 one entry in a million errs by up
    to 4.4 ULP, in rows of thousands of classes; with class weights, sample weights or `base` a loss
    or an entry may err by 5 (measured: 4.8). With smoothing or probabilities as target,
    an entry of the gradient is good to 4.1 ULP of the larger of the two terms above (measured: 3.9
    and 4.04). With z-loss it is 5 ULP for the loss, if S is not next to 0, and 6 ULP of the largest
    term for the gradient.

    References
    ----------
    .. [1] C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception
       Architecture for Computer Vision", CVPR 2016, section 7 (label smoothing).
    .. [2] M. Dukhan, A. Ablavatski, "Two-Pass Softmax Algorithm", 2020, arXiv:2001.04438.
    .. [3] A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022,
       arXiv:2204.02311, section 5 (z-loss).

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
    return evaluate("cross_entropy", 1, locals())


@overload
def cross_entropy_with_grad_hess(
    logits: NDArray[AnyFloat],
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[AnyFloat] | None = None,
    hess_out: NDArray[AnyFloat] | None = None,
    **options: Unpack[Options],
) -> tuple[float, NDArray[AnyFloat], NDArray[AnyFloat]]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: FloatArray | None = None,
    hess_out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[float, FloatArray, FloatArray]: ...
@overload
def cross_entropy_with_grad_hess(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: Half | None = None,
    hess_out: Half | None = None,
    **options: Unpack[Options],
) -> tuple[Single, Half, Half]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: NDArray[Float] | None = None,
    hess_out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[NDArray[Float], NDArray[Float], NDArray[Float]]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: FloatArray | None = None,
    hess_out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[FloatArray, FloatArray, FloatArray]: ...
@public
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
    softcap: float | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
    logsumexp_out: FloatArray | None = None,
    argmax_out: NDArray[np.int64] | None = None,
    out: FloatArray | None = None,
    hess_out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray, FloatArray]:
    r"""Cross-entropy of logits, its gradient and the diagonal of its Hessian.

    With ``reduction="none"`` this is what boosting libraries expect of a custom objective.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like, or tuple of two array_likes
        Class indices or probabilities; the shape says which. Of the shape of `logits` without the
        class axis: class indices, as integers or as floats that are whole numbers. Of the shape of
        `logits`: as floats, probabilities, which need not sum to 1; as integers or bools, one-hot
        rows, each with a single 1 and else 0. Or a pair ``(indices, probabilities)``: a few classes
        of each sample and their probabilities, all other classes having 0. Both arrays have the
        shape of `logits` without the class axis, and a last axis for the entries of a sample. An
        index that is ignored marks an empty entry; a class that is named twice has the sum.
    axis : int, default -1
        The class axis of `logits`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    weight : array_like of shape (C,), optional
        Weight of each class. For class indices without label smoothing, a weight of 0 leaves out
        every sample of that class, as a sample weight of 0 does. Negative weights are accepted: the
        formulas in Notes hold for them.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight 0
        counts for nothing, whatever its `logits` and its target probabilities. A negative weight
        negates the loss and the gradient of its sample, and is negative in the sum that ``"mean"``
        divides by.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing, whatever their `logits`; None
        for no such index. Indices in ``[0, C)`` may be ignored too. Beside probabilities as target
        all must be below 0.
    label_smoothing : float, default 0.0
        A number e in [0, 1]. The target becomes 1 - e times itself, plus e / C in every class.
    z_loss : float, default 0.0
        A factor z, finite and not negative: z S**2, where S is the logsumexp of the sample's logits
        in nats, is added to the loss of each sample that counts. It keeps the logits near
        normalised log-probabilities.
    softcap : float, optional
        A smooth cap of the logits: x becomes softcap * tanh(x / softcap), before it is divided by
        `temperature`. Positive and finite. A logit of -inf stays -inf and has the gradient 0.
        Derivatives are those in the logits as given.
    temperature : float, default 1.0
        What the logits are divided by, positive and finite. The differences of the logits keep
        their digits: no quotient is rounded. Derivatives are those in the logits as given.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the samples, their sum, or the loss of each sample.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the total weight of the samples. Pass that of the
        whole batch where a call sees a part of it, as in gradient accumulation. Not negative.
    base : float, optional
        Base of the logarithm in everything that is returned: 2 gives bits. Positive, finite and not
        1. The default is e, for nats.
    logsumexp_out : ndarray, optional
        Array for the logsumexp of each sample's logits, after `softcap` and `temperature`, in nats,
        of ignored samples too. It has the dtype of `logits`, and their shape without the class
        axis. It must not overlap an input or another output. Nothing is written to it if the call
        is refused.
    argmax_out : ndarray of int64, optional
        Array for the class of each sample's largest logit, of ignored samples too: as
        `numpy.argmax`, the first of equal ones, or the first NaN. Otherwise as `logsumexp_out`.
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
        lies on a GPU. None of these is converted first. Also if `out` or `hess_out` is no ndarray
        of the dtype of `logits`.
    ValueError
        If shapes do not fit, an option has a value other than above, class indices are fractions or
        missing values, or integer rows are not one-hot. Also if `out` or `hess_out` has another
        shape, is read-only or overlaps an input or the other.
    IndexError
        If a class index that is not ignored lies outside ``[0, C)``.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    cross_entropy : the loss alone.
    cross_entropy_with_grad : also the gradient, from the same pass over the logits.
    log_loss : the cross-entropy of given probabilities.

    Notes
    -----
    With p = softmax(logits), class weights w, sample weights s and label smoothing e, the loss of a
    sample of class y is

    .. math:: s \left[ -(1-e)\, w_y \log p_y - \frac{e}{C} \sum_c w_c \log p_c \right]

    and the loss of a sample whose target is the probabilities q is

    .. math:: -s \sum_c w_c \left[ (1-e)\, q_c + \frac{e}{C} \right] \log p_c .

    A pair ``(indices, probabilities)`` is such a q, most of whose numbers are 0.

    ``"mean"`` divides by the sum of s w_y over the samples that are not ignored, or for
    probabilities by the sum of s. If no sample counts, the mean is NaN; with `denominator` it is 0.
    The z-loss, which class weights and label smoothing leave alone, adds s z S**2 to either; its
    mean is divided by the sum of s over the samples that count.

    With `softcap` or `temperature` the logits in these formulas are the mapped ones,

    .. math:: \frac{c \tanh(x / c)}{T} ,

    and the gradient and the Hessian are those in x.

    A logit of -inf is a class of probability 0. It costs nothing unless the target has weight
    there. A sample with a NaN, with +inf, or with nothing but -inf has the loss NaN.

    Results do not depend on the number of threads, not in a single bit.

    With a_c = s w_c t_c, where t is the smoothed target, the gradient of a sample's loss is

    .. math:: \frac{\partial\, \mathrm{loss}}{\partial x_c} = p_c \sum_k a_k - a_c ,

    which for a class index without smoothing is s w_y (p_c - [c = y]). For the mean it is divided
    by what the mean is divided by. It is exactly 0 for samples that count for nothing. At the
    target it is computed from the probabilities of the other classes, not as p - 1, and so keeps
    its digits where p is near 1.

    The z-loss adds 2 s z S p_c.

    The diagonal of the Hessian is

    .. math:: \frac{\partial^2 \mathrm{loss}}{\partial x_c^2} = p_c (1 - p_c) \sum_k a_k .

    The z-loss adds 2 s z p_c (p_c + S (1 - p_c)).

    Accuracy: at most 4 ULP for the loss of a sample and for each entry of the gradient above the
    smallest normal number, at most 6 ULP for such an entry of the Hessian (measured: 3.6 in
    float32, 4.6 in float64; see docs/numerics.md), whatever the spread of the logits and their
    offset. In float64 one entry in a million of the gradient errs by up to 4.4 ULP, in rows of
    thousands of classes; with class weights, sample weights or `base` a loss or an entry may err by
    5. With smoothing or probabilities as target, an entry of the gradient is good to 4.1 ULP of the
    larger of the two terms above. With z-loss it is 5 ULP for the loss, if S is not next to 0, 6
    ULP of the largest term for the gradient and 7 for the Hessian.

    References
    ----------
    .. [1] C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception
       Architecture for Computer Vision", CVPR 2016, section 7 (label smoothing).
    .. [2] M. Dukhan, A. Ablavatski, "Two-Pass Softmax Algorithm", 2020, arXiv:2001.04438.
    .. [3] A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022,
       arXiv:2204.02311, section 5 (z-loss).

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
    return evaluate("cross_entropy", 2, locals())
