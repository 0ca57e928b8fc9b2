"""Binary and multi-label cross-entropy of given probabilities, element by element."""

from __future__ import annotations

from typing import Literal, SupportsFloat, Unpack, overload

from numpy.typing import ArrayLike, NDArray

from xentrs._arrays import evaluate
from xentrs._losses import public
from xentrs._losses._types import AnyFloat, Float, FloatArray, Half, Reduction, Single
from xentrs._losses.binary_cross_entropy_with_logits import Options


@overload
def binary_cross_entropy(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[Options],
) -> float: ...
@overload
def binary_cross_entropy(  # type: ignore[overload-overlap]
    probabilities: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> Single: ...
@overload
def binary_cross_entropy(
    probabilities: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> NDArray[Float]: ...
@overload
def binary_cross_entropy(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> FloatArray: ...
@public
def binary_cross_entropy(
    probabilities: ArrayLike,
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
    r"""Binary cross-entropy between given probabilities and a target, element by element.

    If logits are at hand, prefer `binary_cross_entropy_with_logits`: it is more accurate than a
    sigmoid followed by this function. For labels in one dimension the mean is scikit-learn's
    ``log_loss``.

    Parameters
    ----------
    probabilities : array_like, float16, bfloat16, float32 or float64
        Probabilities of the positive class, each in [0, 1], of any shape. They are not clipped. A
        C-contiguous array is read where it lies. Integers in a list or another sequence become
        float64; integer arrays are refused.
    target : array_like of the shape of `probabilities`
        Floats, integers or bools: the probability of the positive class, taken as it is. It need
        not lie in [0, 1].
    weight : array_like, optional
        Weight of each element; broadcast to the shape of `probabilities`. An element of weight 0
        has the loss 0, whatever its probability and its target; the mean still counts it. Negative
        weights are accepted: the formulas in Notes hold for them.
    pos_weight : array_like, optional
        Weight of the positive class; broadcast to the shape of `probabilities`. Weights of 0 and
        negative ones are accepted: the formulas in Notes hold for them.
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
        The elements that count; broadcast to the shape of `probabilities`. The others add nothing,
        whatever their values, and the mean divides by the number of those that count.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float, accumulated in float64. For ``"none"`` an array
        of the dtype (float32 for half precision) and shape of `probabilities`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array that masks an
        element, a pandas object with nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. None of these is converted first.
    ValueError
        If shapes do not fit, or an option has a value other than above. Also if a probability that
        counts is outside [0, 1] or NaN.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    binary_cross_entropy_with_grad : also the gradient, from the same pass.
    binary_cross_entropy_with_logits : the same of logits.
    log_loss : for classes that exclude each other.

    Notes
    -----
    With the smoothed target t, weight w and positive weight v, the loss of the probability p is

    .. math:: -w \left[ v t \log p + (1-t) \log(1 - p) \right] .

    A term whose coefficient is 0 adds nothing: p = 0 with t = 0, and p = 1 with t = 1, give 0.
    Other labels there have an infinite loss. PyTorch's function of this name clamps each logarithm
    at -100; this one does not.

    As in PyTorch, ``"mean"`` divides by the number of elements, not by their weight. The mean of no
    elements is NaN; with `denominator` it is 0.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: at most 4 ULP for the loss of an element, in float64 5.5 with `weight`, `pos_weight`
    and `base` at once (measured: 3.7 in float32, 5.4 in float64; see docs/numerics.md).

    References
    ----------
    .. [1] I. J. Good, "Rational Decisions", Journal of the Royal Statistical Society B 14, 1952.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> probabilities = np.array([[0.5, 0.25], [1.0, 0.0]])
    >>> round(xentrs.binary_cross_entropy(probabilities, [[1, 0], [1, 0]], base=2), 6)
    0.353759
    >>> xentrs.binary_cross_entropy(
    ...     probabilities, [[1, 1], [1, 1]], base=2, reduction="none"
    ... )
    array([[ 1.,  2.],
           [ 0., inf]])
    """
    return evaluate("binary_cross_entropy", 0, locals())


@overload
def binary_cross_entropy_with_grad(
    probabilities: NDArray[AnyFloat],
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[AnyFloat] | None = None,
    **options: Unpack[Options],
) -> tuple[float, NDArray[AnyFloat]]: ...
@overload
def binary_cross_entropy_with_grad(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[float, FloatArray]: ...
@overload
def binary_cross_entropy_with_grad(  # type: ignore[overload-overlap]
    probabilities: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: Half | None = None,
    **options: Unpack[Options],
) -> tuple[Single, Half]: ...
@overload
def binary_cross_entropy_with_grad(
    probabilities: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[NDArray[Float], NDArray[Float]]: ...
@overload
def binary_cross_entropy_with_grad(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[FloatArray, FloatArray]: ...
@public
def binary_cross_entropy_with_grad(
    probabilities: ArrayLike,
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
    r"""Binary cross-entropy of given probabilities and its gradient in them, from one pass.

    If logits are at hand, prefer `binary_cross_entropy_with_logits_with_grad`: it is more accurate
    than a sigmoid followed by this function.

    Parameters
    ----------
    probabilities : array_like, float16, bfloat16, float32 or float64
        Probabilities of the positive class, each in [0, 1], of any shape. They are not clipped. A
        C-contiguous array is read where it lies. Integers in a list or another sequence become
        float64; integer arrays are refused.
    target : array_like of the shape of `probabilities`
        Floats, integers or bools: the probability of the positive class, taken as it is. It need
        not lie in [0, 1].
    weight : array_like, optional
        Weight of each element; broadcast to the shape of `probabilities`. An element of weight 0
        has the loss 0, whatever its probability and its target; the mean still counts it. Negative
        weights are accepted: the formulas in Notes hold for them.
    pos_weight : array_like, optional
        Weight of the positive class; broadcast to the shape of `probabilities`. Weights of 0 and
        negative ones are accepted: the formulas in Notes hold for them.
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
        The elements that count; broadcast to the shape of `probabilities`. The others add nothing,
        whatever their values, and the mean divides by the number of those that count.
    out : ndarray, optional
        Array for the gradient, of the shape and dtype of `probabilities` and of any strides. It may
        be `probabilities` itself, to work in place; otherwise it must not overlap an input. Nothing
        is written to it if the call is refused.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float, accumulated in float64. For ``"none"`` an array
        of the dtype (float32 for half precision) and shape of `probabilities`.
    grad : ndarray
        The gradient of the returned loss in `probabilities`; for ``"none"``, of each element's own
        loss. It is `out`, or a new C-contiguous array of the shape and dtype of `probabilities`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above, is a masked array that masks an
        element, a pandas object with nullable or Arrow-backed columns, a lazy array of Dask, or
        lies on a GPU. None of these is converted first. Also if `out` is no ndarray of the dtype of
        `probabilities`.
    ValueError
        If shapes do not fit, or an option has a value other than above. Also if a probability that
        counts is outside [0, 1] or NaN. Also if `out` has another
        shape, is read-only or overlaps an input.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    binary_cross_entropy : the loss alone.
    binary_cross_entropy_with_logits : the same of logits.
    log_loss : for classes that exclude each other.

    Notes
    -----
    With the smoothed target t, weight w and positive weight v, the loss of the probability p is

    .. math:: -w \left[ v t \log p + (1-t) \log(1 - p) \right] .

    A term whose coefficient is 0 adds nothing: p = 0 with t = 0, and p = 1 with t = 1, give 0.
    Other labels there have an infinite loss. PyTorch's function of this name clamps each logarithm
    at -100; this one does not.

    As in PyTorch, ``"mean"`` divides by the number of elements, not by their weight. The mean of no
    elements is NaN; with `denominator` it is 0.

    Results do not depend on the number of threads, not in a single bit.

    The gradient of an element's loss is

    .. math:: w \left[ \frac{1-t}{1-p} - \frac{v t}{p} \right] ,

    again without a term whose coefficient is 0. For the mean it is divided by what the mean is
    divided by. It is exactly 0 where `where` is False.

    Accuracy: at most 4 ULP for the loss of an element, and for each entry of the gradient above the
    smallest normal number; in float64 5.5 with `weight`, `pos_weight` and `base` at once
    (measured: 3.7 in float32, 5.4 in float64; see docs/numerics.md).
    For t between 0 and 1 the gradient is good to 4 ULP of the larger of its two terms.

    References
    ----------
    .. [1] I. J. Good, "Rational Decisions", Journal of the Royal Statistical Society B 14, 1952.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> loss, grad = xentrs.binary_cross_entropy_with_grad(
    ...     np.array([0.25, 0.5, 1.0]), [1, 0, 1], reduction="sum"
    ... )
    >>> grad
    array([-4.,  2., -1.])
    """
    return evaluate("binary_cross_entropy", 1, locals())
