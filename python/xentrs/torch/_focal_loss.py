"""`focal_loss` and `FocalLoss`."""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
from torch import Tensor

from xentrs.torch._arguments.options import (
    Ignored,
    Options,
    check_not_negative,
    ignored_indices,
)
from xentrs.torch._arguments.softmax import SoftmaxArguments, check_further_arguments, fits, refuse
from xentrs.torch._arguments.tensors import as_denominator
from xentrs.torch._mode import refuse_jit_trace
from xentrs.torch._module import LossModule
from xentrs.torch._operators.softmax import CROSS_ENTROPY, of_true_class
from xentrs.torch._triton import Kernel

if TYPE_CHECKING:
    import triton.language as tl


def focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: Ignored = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
    loss_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Focal loss between logits and class indices: cross-entropy with less weight on easy samples.

    The loss of a sample whose class has the probability p is ``(1 - p)**gamma * -log(p)`` [1]_.

    Parameters
    ----------
    input : Tensor of shape (C), (N, C) or (N, C, d_1, ..., d_K)
        Logits: float16, bfloat16, float32 or float64, of any strides.
    target : Tensor
        Class indices, of any integer type, of the shape of `input` without its class axis.
    gamma : float, default 2.0
        The exponent, not negative. With 0 it is `cross_entropy`, to the bit.
    weight : Tensor of shape (C), optional
        Weight of each class. The paper calls it alpha.
    ignore_index : int, iterable of ints or None, default -100
        Class indices whose samples do not count, whatever their logits are.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the samples' losses, their sum, or each. The mean divides by
        the sum of the weights of the samples' classes, without the factors ``(1 - p)**gamma``.
    sample_weight : Tensor, optional
        Weight of each sample, of the shape of `input` without its class axis.
    denominator : float or Tensor of no dimension, optional
        What ``"mean"`` divides by instead of the total weight. A tensor may be on the CPU or on the
        device of `input`.
    inplace : bool, default False
        Write the gradient over the logits, which saves memory of their size. They must be neither a
        view nor a leaf, and using them later raises an error in the backward pass. Without effect
        where no gradient is wanted, and under `torch.compile` and `torch.func`.
    loss_dtype : torch.dtype, optional
        A floating dtype of the loss, instead of the one under Returns. With float32 the loss of a
        half-precision `input` is not rounded to half precision.

    Returns
    -------
    Tensor
        Of no dimension, or for ``"none"`` of the shape of `input` without its class axis. Of the
        dtype of `input`, or float32 for a half precision if autocast is on.

    Raises
    ------
    TypeError
        If the target is probabilities, for which the loss is not defined. If an argument is no
        number or no tensor.
    RuntimeError, ValueError, NotImplementedError
        For `input`, `target`, `weight` and `reduction` what PyTorch's `cross_entropy` raises, with
        its message. ValueError if `gamma` is negative or not finite.
    IndexError
        If a class index is out of range. On a GPU that is an assertion on the device.

    Notes
    -----
    1 - p is computed as the sum of the other classes' probabilities, so that a loss keeps its
    digits where p rounds to 1.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> logits = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    >>> xentrs.torch.focal_loss(logits, torch.tensor([0, 0]), reduction="none")
    tensor([5.8716e-06, 7.0187e-01])
    """
    refuse_jit_trace("focal_loss")
    check_not_negative("gamma", gamma)
    # With gamma 0 it is cross-entropy to the bit, on a GPU too.
    loss, own = (FOCAL_LOSS, (float(gamma),)) if gamma else (CROSS_ENTROPY, ())
    options = Options(reduction, ignored_indices(ignore_index), own=own)
    denominator = as_denominator(denominator, input)
    call = SoftmaxArguments(input, target, weight, sample_weight, denominator)
    if not fits(call, options) or call.is_soft:
        return refuse("focal_loss", call, options)
    check_further_arguments(call)
    return loss.compute(call, options, inplace, loss_dtype)


# The loss itself, for what runs no Rust


def _derivatives(nll: Tensor, own: tuple[float]) -> tuple[Tensor, Tensor]:
    """Return the first and second derivative of u^gamma l in l = -log p, where u = 1 - p."""
    (gamma,) = own
    p = (-nll).exp()
    u = (-(-nll).expm1()).clamp(min=torch.finfo(nll.dtype).tiny)
    p_l = torch.where(p == 0.0, 0.0, p * nll)
    ratio = p_l / u
    slope = u**gamma * (1.0 + gamma * ratio)
    curvature = gamma * u ** (gamma - 1.0) * ((gamma - 1.0) * p * ratio + 2.0 * p - p_l)
    return slope, curvature


# u^gamma l and its slope u^gamma (1 + gamma p l / u), where `nll` is l. Where p is 0, so is p l.
# Where u is 0, so is u^gamma. Some factors of the power are products, as exp(gamma log u) loses
# digits where log u grows.
@Kernel
@no_type_check
def _objective(nll, e_y, rest, OWN: tl.constexpr):
    GAMMA: tl.constexpr = OWN[0]
    FACTORS: tl.constexpr = GAMMA // 1 if GAMMA < 16 else 16
    u = rest / (rest + e_y)
    p_l = tl.where(e_y == 0.0, 0.0, e_y / (rest + e_y) * nll)
    power = tl.full(u.shape, 1.0, tl.float64)
    if GAMMA != FACTORS:
        power = tl.exp((GAMMA - FACTORS) * tl.log(u))
    for k in tl.static_range(16):
        if k < FACTORS:
            power *= u
    return power * nll, power * (1.0 + GAMMA * tl.where(u == 0.0, 1.0, p_l / u))


FOCAL_LOSS = of_true_class("focal_loss", ("float gamma",), _derivatives, _objective)


class FocalLoss(LossModule):
    """`focal_loss` as a module.

    Parameters
    ----------
    gamma, weight, ignore_index, reduction, inplace, loss_dtype
        As in `focal_loss`. `sample_weight` and `denominator` are arguments of the call.
    """

    function = staticmethod(focal_loss)

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        weight: Tensor | None = None,
        ignore_index: Ignored = -100,
        reduction: str = "mean",
        inplace: bool = False,
        loss_dtype: torch.dtype | None = None,
    ) -> None:
        check_not_negative("gamma", gamma)
        super().__init__(
            gamma=gamma,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            inplace=inplace,
            loss_dtype=loss_dtype,
        )
