"""Kullback-Leibler divergence of two softmaxes."""

from __future__ import annotations

from typing import Literal, SupportsFloat, SupportsIndex, TypedDict, Unpack, overload

from numpy.typing import ArrayLike, NDArray

from xentrs._arrays import evaluate
from xentrs._losses import public
from xentrs._losses._types import Float, FloatArray, Reduction


class Options(TypedDict, total=False):
    """The keywords on which no returned type depends."""

    direction: Literal["forward", "reverse"]
    temperature: float
    axis: SupportsIndex
    sample_weight: ArrayLike | None
    denominator: SupportsFloat | None
    base: float | None


@overload
def kl_divergence(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[Options],
) -> float: ...
@overload
def kl_divergence(
    logits: NDArray[Float],
    teacher_logits: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> NDArray[Float]: ...
@overload
def kl_divergence(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> FloatArray: ...
@public
def kl_divergence(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: float = 1.0,
    direction: Literal["forward", "reverse"] = "forward",
    axis: SupportsIndex = -1,
    sample_weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
) -> float | FloatArray:
    r"""Kullback-Leibler divergence between the softmaxes of a teacher's and a model's logits.

    With ``"forward"`` it is the distillation loss of Hinton et al. [1]_; ``"reverse"`` suits
    sampled text, where the model should avoid what the teacher does not say.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    teacher_logits : array_like, float16, bfloat16, float32 or float64
        The teacher's logits, of the shape of `logits`. Where their type is wider than that of
        `logits` they are used as they are.
    temperature : float, default 1.0
        What the logits of both are divided by before the softmax; finite and above 0. The gradient
        is that in `logits` as given, 1 / temperature included. The customary factor temperature**2
        is the caller's.
    direction : {"forward", "reverse"}, default "forward"
        ``"forward"`` is KL(teacher, model), the teacher's mean of log(teacher / model);
        ``"reverse"`` is KL(model, teacher).
    axis : int, default -1
        The class axis of `logits`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight 0
        counts for nothing, whatever its `logits` and `teacher_logits`. A negative weight negates
        the loss and the gradient of its sample, and is negative in the sum that ``"mean"`` divides
        by.
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
        If shapes do not fit or an option has a value other than above.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    kl_divergence_with_grad : also the gradient, from the same pass over the logits.
    js_divergence : a bounded relative, symmetric with `beta` 0.5.

    Notes
    -----
    With p and q the softmaxes of `logits` / T and `teacher_logits` / T and sample weights s, the
    loss of a sample is

    .. math:: s \sum_c q_c \log \frac{q_c}{p_c}

    or, in reverse,

    .. math:: s \sum_c p_c \log \frac{p_c}{q_c} .

    ``"mean"`` divides by the sum of s, the number of samples without weights. If no sample counts,
    the mean is NaN; with `denominator` it is 0.

    The sum is computed as that of q (exp(d) - 1 - d) with d = log(p / q): its terms are not
    negative, so neither is the loss, and it keeps its digits where the models are nearly equal. A
    class where both logits are -inf adds nothing. If p is 0 where q is not, the forward loss is
    inf; if q is 0 where p is not, the reverse loss is inf and the gradient of the sample NaN. A
    probability far below the smallest normal number is 0 here. A sample with a NaN, with +inf, or
    with nothing but -inf in one of the arrays has the loss NaN.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: at most 2e-6 relative error in float32 and 1e-13 in float64 for the loss of a sample
    (measured: 9e-7 and 6e-15; see docs/numerics.md).

    References
    ----------
    .. [1] G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", 2015,
       arXiv:1503.02531.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> teacher = np.array([[2.0, 0.5, -1.0], [0.0, 2.0, 0.0]])
    >>> round(xentrs.kl_divergence(logits, teacher), 6)
    0.057533
    >>> xentrs.kl_divergence(logits, teacher, direction="reverse", reduction="none").round(6)
    array([0.014368, 0.111983])
    >>> nearly = logits + 1e-9 * teacher
    >>> 0 < xentrs.kl_divergence(logits, nearly) < 1e-17
    True
    """
    return evaluate("kl_divergence", 0, locals())


@overload
def kl_divergence_with_grad(
    logits: NDArray[Float],
    teacher_logits: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[float, NDArray[Float]]: ...
@overload
def kl_divergence_with_grad(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[float, FloatArray]: ...
@overload
def kl_divergence_with_grad(
    logits: NDArray[Float],
    teacher_logits: ArrayLike,
    *,
    reduction: Literal["none"],
    out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[NDArray[Float], NDArray[Float]]: ...
@overload
def kl_divergence_with_grad(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    reduction: Literal["none"],
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[FloatArray, FloatArray]: ...
@public
def kl_divergence_with_grad(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: float = 1.0,
    direction: Literal["forward", "reverse"] = "forward",
    axis: SupportsIndex = -1,
    sample_weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    r"""Kullback-Leibler divergence of a model's logits from a teacher's, and its gradient.

    With ``"forward"`` it is the distillation loss of Hinton et al. [1]_; ``"reverse"`` suits
    sampled text, where the model should avoid what the teacher does not say.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Unnormalised log-probabilities, of any rank from 1, with C >= 1 classes on `axis`. An array
        of any strides is read where it lies, without a copy of the whole. Integers in a list or
        another sequence become float64; integer arrays are refused.
    teacher_logits : array_like, float16, bfloat16, float32 or float64
        The teacher's logits, of the shape of `logits`. Where their type is wider than that of
        `logits` they are used as they are.
    temperature : float, default 1.0
        What the logits of both are divided by before the softmax; finite and above 0. The gradient
        is that in `logits` as given, 1 / temperature included. The customary factor temperature**2
        is the caller's.
    direction : {"forward", "reverse"}, default "forward"
        ``"forward"`` is KL(teacher, model), the teacher's mean of log(teacher / model);
        ``"reverse"`` is KL(model, teacher).
    axis : int, default -1
        The class axis of `logits`. For PyTorch's layout ``(N, C, d)`` pass ``axis=1``.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `logits` without the class axis. A sample of weight 0
        counts for nothing, whatever its `logits` and `teacher_logits`. A negative weight negates
        the loss and the gradient of its sample, and is negative in the sum that ``"mean"`` divides
        by.
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
        If shapes do not fit or an option has a value other than above. Also if `out` has another
        shape, is read-only or overlaps an input.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    kl_divergence : the loss alone.
    js_divergence : a bounded relative, symmetric with `beta` 0.5.

    Notes
    -----
    With p and q the softmaxes of `logits` / T and `teacher_logits` / T and sample weights s, the
    loss of a sample is

    .. math:: s \sum_c q_c \log \frac{q_c}{p_c}

    or, in reverse,

    .. math:: s \sum_c p_c \log \frac{p_c}{q_c} .

    ``"mean"`` divides by the sum of s, the number of samples without weights. If no sample counts,
    the mean is NaN; with `denominator` it is 0.

    The sum is computed as that of q (exp(d) - 1 - d) with d = log(p / q): its terms are not
    negative, so neither is the loss, and it keeps its digits where the models are nearly equal. A
    class where both logits are -inf adds nothing. If p is 0 where q is not, the forward loss is
    inf; if q is 0 where p is not, the reverse loss is inf and the gradient of the sample NaN. A
    probability far below the smallest normal number is 0 here. A sample with a NaN, with +inf, or
    with nothing but -inf in one of the arrays has the loss NaN.

    Results do not depend on the number of threads, not in a single bit.

    The gradient of a sample's loss is

    .. math:: \frac{\partial\, \mathrm{loss}}{\partial x_c} = \frac{s}{T} (p_c - q_c)

    or, in reverse,

    .. math::

        \frac{\partial\, \mathrm{loss}}{\partial x_c}
        = \frac{s}{T}\, p_c \left( \log \frac{p_c}{q_c} - \mathrm{KL}(p, q) \right) .

    For the mean it is divided by what the mean is divided by. It is exactly 0 for samples of weight
    0. The teacher has no gradient here.

    Accuracy: at most 2e-6 relative error in float32 and 1e-13 in float64 for the loss of a sample,
    and for an entry of the gradient of the larger of its two terms, where a logarithm counts as 1
    at least (measured: 9e-7 and 6e-15, gradient 1.4e-6 and 2.5e-15; see docs/numerics.md).

    References
    ----------
    .. [1] G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", 2015,
       arXiv:1503.02531.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> teacher = np.array([[2.0, 0.5, -1.0], [0.0, 2.0, 0.0]])
    >>> loss, grad = xentrs.kl_divergence_with_grad(logits, teacher, temperature=2.0)
    >>> grad.round(6)
    array([[ 0.009684, -0.011844,  0.002161],
           [ 0.015532, -0.031064,  0.015532]])
    """
    return evaluate("kl_divergence", 1, locals())
