"""Focal loss of logits, element by element."""

from __future__ import annotations

from typing import Literal, SupportsFloat, TypedDict, Unpack, overload

from numpy.typing import ArrayLike, NDArray

from xentrs._arrays import evaluate
from xentrs._losses import public
from xentrs._losses._types import AnyFloat, Float, FloatArray, Half, Reduction, Single


class Options(TypedDict, total=False):
    """The keywords that do not decide the type of what is returned."""

    gamma: float
    alpha: float | None
    weight: ArrayLike | None
    denominator: SupportsFloat | None
    base: float | None
    where: ArrayLike | None


@overload
def sigmoid_focal_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[Options],
) -> float: ...
@overload
def sigmoid_focal_loss(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> Single: ...
@overload
def sigmoid_focal_loss(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> NDArray[Float]: ...
@overload
def sigmoid_focal_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> FloatArray: ...
@public
def sigmoid_focal_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
    where: ArrayLike | None = None,
) -> float | FloatArray:
    r"""Focal loss of the sigmoid of logits, element by element.

    The binary cross-entropy of each element is multiplied by (1 - p_t)**gamma, where p_t is the
    probability of its label [1]_. This is torchvision's ``sigmoid_focal_loss``, but for two
    defaults: `reduction` is ``"mean"`` as for every loss here, not ``"none"``, and `alpha` is None,
    not 0.25.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Log-odds, of any shape. A C-contiguous array is read where it lies. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like of the shape of `logits`
        Floats, integers or bools: the probability of the positive class, in [0, 1]. It is not
        checked.
    gamma : float, default 2.0
        The exponent, finite and not negative: the larger it is, the less the elements count that
        the model classifies well. With 0 and without `alpha` the function is
        `binary_cross_entropy_with_logits`, to the last bit.
    alpha : float, optional
        Weight of the positive class, in [0, 1]; that of the negative class is 1 - alpha. By default
        both have weight 1.
    weight : array_like, optional
        Weight of each element; broadcast to the shape of `logits`. An element of weight 0 has the
        loss 0, whatever its logit and its target; the mean still counts it. Negative weights are
        accepted: the formulas in Notes hold for them.
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
    sigmoid_focal_loss_with_grad : also the gradient, from the same pass.
    binary_cross_entropy_with_logits : the loss without the factor, for `pos_weight` and smoothing.
    focal_loss : for classes that exclude each other.

    Notes
    -----
    With :math:`p = 1 / (1 + e^{-x})`, target t and weight w, the loss of the logit x is

    .. math::

        w\, \alpha_t\, (1 - p_t)^\gamma\, \ell, \qquad
        \ell = -t \log p - (1-t) \log(1-p), \qquad p_t = t p + (1-t) (1-p) ,

    where :math:`\alpha_t = \alpha t + (1-\alpha) (1-t)`, or 1 without `alpha`. Labels between 0 and
    1 are treated as torchvision treats them, by these formulas.

    1 - p_t is (1 - t) p + t (1 - p), which keeps its digits where p_t is near 1. x = +inf with
    t = 1, or x = -inf with t = 0, gives 0.

    As in PyTorch, ``"mean"`` divides by the number of elements, not by their weight. The mean of no
    elements is NaN; with `denominator` it is 0.

    Results do not depend on the number of threads, not in a single bit.

    Accuracy: at most 4 ULP for the loss of an element, and 0.2 ULP more for each unit of `gamma`
    above 5 (measured up to 5: 3.6 in float32, 3.4 in
    float64; see docs/numerics.md).

    References
    ----------
    .. [1] T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, "Focal Loss for Dense Object
       Detection", ICCV 2017, arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> logits = np.array([[3.0, -1.0], [0.0, 40.0]])
    >>> target = [[1, 0], [1, 1]]
    >>> round(xentrs.sigmoid_focal_loss(logits, target), 6)
    0.049014
    >>> xentrs.sigmoid_focal_loss(logits, target, alpha=0.25, reduction="none").round(4)
    array([[0.    , 0.017 ],
           [0.0433, 0.    ]])
    """
    return evaluate("sigmoid_focal_loss", 0, locals())


@overload
def sigmoid_focal_loss_with_grad(
    logits: NDArray[AnyFloat],
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[AnyFloat] | None = None,
    **options: Unpack[Options],
) -> tuple[float, NDArray[AnyFloat]]: ...
@overload
def sigmoid_focal_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[float, FloatArray]: ...
@overload
def sigmoid_focal_loss_with_grad(  # type: ignore[overload-overlap]
    logits: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: Half | None = None,
    **options: Unpack[Options],
) -> tuple[Single, Half]: ...
@overload
def sigmoid_focal_loss_with_grad(
    logits: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: NDArray[Float] | None = None,
    **options: Unpack[Options],
) -> tuple[NDArray[Float], NDArray[Float]]: ...
@overload
def sigmoid_focal_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    out: FloatArray | None = None,
    **options: Unpack[Options],
) -> tuple[FloatArray, FloatArray]: ...
@public
def sigmoid_focal_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
    where: ArrayLike | None = None,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    r"""Focal loss of the sigmoid of logits and its gradient, from one pass over the logits.

    The binary cross-entropy of each element is multiplied by (1 - p_t)**gamma, where p_t is the
    probability of its label [1]_. This is torchvision's ``sigmoid_focal_loss``, but for two
    defaults: `reduction` is ``"mean"`` as for every loss here, not ``"none"``, and `alpha` is None,
    not 0.25.

    Parameters
    ----------
    logits : array_like, float16, bfloat16, float32 or float64
        Log-odds, of any shape. A C-contiguous array is read where it lies. Integers in a list or
        another sequence become float64; integer arrays are refused.
    target : array_like of the shape of `logits`
        Floats, integers or bools: the probability of the positive class, in [0, 1]. It is not
        checked.
    gamma : float, default 2.0
        The exponent, finite and not negative: the larger it is, the less the elements count that
        the model classifies well. With 0 and without `alpha` the function is
        `binary_cross_entropy_with_logits`, to the last bit.
    alpha : float, optional
        Weight of the positive class, in [0, 1]; that of the negative class is 1 - alpha. By default
        both have weight 1.
    weight : array_like, optional
        Weight of each element; broadcast to the shape of `logits`. An element of weight 0 has the
        loss 0, whatever its logit and its target; the mean still counts it. Negative weights are
        accepted: the formulas in Notes hold for them.
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
    sigmoid_focal_loss : the loss alone.
    binary_cross_entropy_with_logits : the loss without the factor, for `pos_weight` and smoothing.
    focal_loss : for classes that exclude each other.

    Notes
    -----
    With :math:`p = 1 / (1 + e^{-x})`, target t and weight w, the loss of the logit x is

    .. math::

        w\, \alpha_t\, (1 - p_t)^\gamma\, \ell, \qquad
        \ell = -t \log p - (1-t) \log(1-p), \qquad p_t = t p + (1-t) (1-p) ,

    where :math:`\alpha_t = \alpha t + (1-\alpha) (1-t)`, or 1 without `alpha`. Labels between 0 and
    1 are treated as torchvision treats them, by these formulas.

    1 - p_t is (1 - t) p + t (1 - p), which keeps its digits where p_t is near 1. x = +inf with
    t = 1, or x = -inf with t = 0, gives 0.

    As in PyTorch, ``"mean"`` divides by the number of elements, not by their weight. The mean of no
    elements is NaN; with `denominator` it is 0.

    Results do not depend on the number of threads, not in a single bit.

    The gradient of an element's loss is

    .. math::

        w\, \alpha_t \left[ (1 - p_t)^\gamma (p - t)
        + \gamma (1 - p_t)^{\gamma-1} (1 - 2t)\, p (1-p)\, \ell \right] .

    For the mean it is divided by what the mean is divided by. It is exactly 0 where `where` is
    False.

    Accuracy: at most 4 ULP for the loss of an element, and for each entry of the gradient above the
    smallest normal number, and 0.2 ULP more for each unit of `gamma` above 5 (measured up to 5: 3.6
    in float32, 4.0 in float64; see docs/numerics.md). For t between 0 and 1 the gradient is good to
    4 ULP of the larger of its terms.

    References
    ----------
    .. [1] T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, "Focal Loss for Dense Object
       Detection", ICCV 2017, arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> loss, grad = xentrs.sigmoid_focal_loss_with_grad(
    ...     np.array([0.0, np.log(3.0)]), [0, 1], reduction="sum"
    ... )
    >>> grad.round(6)
    array([ 0.298287, -0.042595])
    """
    return evaluate("sigmoid_focal_loss", 1, locals())
