"""`sigmoid_focal_loss` and `SigmoidFocalLoss`."""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as _pytorchs

from xentrs.torch._arguments.binary import BinaryArguments, check_further_arguments, fits
from xentrs.torch._arguments.options import Options, check_not_negative, check_number, is_smoothing
from xentrs.torch._arguments.tensors import as_denominator, leave_to_pytorch
from xentrs.torch._gpu.math import exp_over, log1p
from xentrs.torch._mode import refuse_jit_trace
from xentrs.torch._module import LossModule
from xentrs.torch._operators.elements import of_elements
from xentrs.torch._operators.loss import products_of
from xentrs.torch._triton import Kernel

if TYPE_CHECKING:
    import triton.language as tl

_NAME = "sigmoid_focal_loss"


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    weight: Tensor | None = None,
    where: Tensor | None = None,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
) -> Tensor:
    r"""Focal loss of the sigmoid of logits: binary cross-entropy with less weight on easy elements.

    The loss of an element whose label has the probability p_t is
    ``alpha_t * (1 - p_t)**gamma`` times its binary cross-entropy [1]_. This is torchvision's
    function, soft labels included, but for two defaults: `reduction` is ``"mean"``, not
    ``"none"``, and `alpha` is None, not 0.25.

    Parameters
    ----------
    input : Tensor
        Logits of any shape: float16, bfloat16, float32 or float64.
    target : Tensor
        The probability of the positive class, in [0, 1]: floats, integers or bools of the shape of
        `input`.
    gamma : float, default 2.0
        The exponent, not negative.
    alpha : float, optional
        Weight of the positive class, in [0, 1]; that of the negative class is 1 - alpha. By default
        both have weight 1.
    weight : Tensor, optional
        Weight of each element; broadcast to the shape of `input`.
    where : Tensor of bool, optional
        The elements that count; broadcast to the shape of `input`. The mean divides by their
        number.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the elements' losses, their sum, or each.
    denominator : float or Tensor of no dimension, optional
        What ``"mean"`` divides by instead.

    Returns
    -------
    Tensor
        Of no dimension, or for ``"none"`` of the shape of `input`. Of the dtype that PyTorch's
        `binary_cross_entropy_with_logits` returns.

    Raises
    ------
    RuntimeError, ValueError, TypeError, NotImplementedError
        For `input`, `target`, `weight` and `reduction` what PyTorch's
        `binary_cross_entropy_with_logits` raises, with its message. ValueError or TypeError if
        another argument is wrong.

    Notes
    -----
    1 - p_t is ``(1 - t) * p + t * (1 - p)``, which keeps its digits where p_t rounds to 1.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> logits = torch.tensor([4.0, 0.0])
    >>> xentrs.torch.sigmoid_focal_loss(logits, torch.tensor([1, 1]), reduction="none")
    tensor([5.8716e-06, 1.7329e-01])
    """
    refuse_jit_trace(_NAME)
    check_not_negative("gamma", gamma)
    _check_alpha(alpha)
    own = (float(gamma), None if alpha is None else float(alpha))
    options = Options(reduction, own=own)
    denominator = as_denominator(denominator, input)
    call = BinaryArguments(input, target, weight, None, where, denominator)
    if not fits(call, options):
        return leave_to_pytorch(
            lambda: _pytorchs(input, target, weight, reduction=reduction),
            f"xentrs.torch.{_NAME} cannot be combined with gradients in the target or the weights",
        )
    check_further_arguments(call, options)
    return SIGMOID_FOCAL_LOSS.compute(call, options)


def _check_alpha(value: float | None) -> None:
    if value is None:
        return
    check_number("alpha", value)
    if not is_smoothing(value):
        raise ValueError(f"alpha is {value}, but must be in [0, 1] or None")


# The loss itself, for what runs no Rust


def _gradient(call: BinaryArguments, options: Options) -> Tensor:
    """Return the gradient of each element's loss."""
    gamma, alpha = options.own
    x = call.input
    t = call.target.to(x.dtype)
    p, q = x.sigmoid(), (-x).sigmoid()
    loss = -t * torch.nn.functional.logsigmoid(x) - (1.0 - t) * torch.nn.functional.logsigmoid(-x)
    m = ((1.0 - t) * p + t * q).clamp(min=torch.finfo(x.dtype).tiny)
    slope = m**gamma * ((1.0 - t) * p - t * q)
    slope = slope + gamma * m ** (gamma - 1.0) * (1.0 - 2.0 * t) * p * q * loss
    return slope if alpha is None else (alpha * t + (1.0 - alpha) * (1.0 - t)) * slope


# With e = exp(-|z|), and a, b the coefficients of the end that z is on and of the other:
#     l = a |z| + log1p(e)     m = 1 - p_t = (a + b e) / (1 + e)
#     derivative +-m^gamma / (1 + e)^2 (a a / m + e / m (gamma (a - b) l - b b e))
# Some factors of the power are products, as exp(gamma log m) loses digits where log m grows.
@Kernel
@no_type_check
def _element(z, t, v, keep, OWN: tl.constexpr):
    GAMMA: tl.constexpr = OWN[0]
    ALPHA: tl.constexpr = OWN[1]
    FACTORS: tl.constexpr = GAMMA // 1 if GAMMA < 16 else 16
    e = exp_over(-tl.abs(z), 0.0, 1.0)
    a = tl.where(z > 0, 1.0 - t, t)
    b = tl.where(z > 0, t, 1.0 - t)
    loss = tl.where(a == 0.0, 0.0, a * tl.abs(z)) + log1p(e)
    m = (a + b * e) / (1.0 + e)
    power = tl.where(m == m, 1.0, m)
    if GAMMA != FACTORS:
        power = tl.exp((GAMMA - FACTORS) * tl.log(m))
    for k in tl.static_range(16):
        if k < FACTORS:
            power *= m
    far = tl.where(m == 0.0, 0.0, a / m)
    near = tl.where(m == 0.0, 0.0, e / m)
    inner = GAMMA * (a - b) * tl.where(e == 0.0, 0.0, loss) - b * b * e
    slope = power * (a * far + near * inner) / ((1.0 + e) * (1.0 + e))
    slope = tl.where(z > 0, slope, -slope)
    loss = tl.where(power == 0.0, 0.0, power * loss)
    if ALPHA is not None:
        alpha = ALPHA * t + (1.0 - ALPHA) * (1.0 - t)
        loss = tl.where(alpha == 0.0, 0.0, alpha * loss)
        slope = tl.where(alpha == 0.0, 0.0, alpha * slope)
    return tl.where(z != z, z, loss), tl.where(z != z, z, slope)


SIGMOID_FOCAL_LOSS = of_elements(
    _NAME, products_of(_gradient), _element, ("float gamma", "float? alpha")
)


class SigmoidFocalLoss(LossModule):
    """`sigmoid_focal_loss` as a module.

    Parameters
    ----------
    gamma, alpha, weight, reduction
        As in `sigmoid_focal_loss`. `where` and `denominator` are arguments of the call.
    """

    function = staticmethod(sigmoid_focal_loss)

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | None = None,
        *,
        weight: Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        check_not_negative("gamma", gamma)
        _check_alpha(alpha)
        super().__init__(gamma=gamma, alpha=alpha, weight=weight, reduction=reduction)
