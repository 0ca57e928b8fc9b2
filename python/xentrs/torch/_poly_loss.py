"""`poly_loss` and `PolyLoss`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, no_type_check

import torch
from torch import Tensor

from xentrs.torch._arguments.options import (
    Ignored,
    Options,
    check_number,
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


def poly_loss(
    input: Tensor,
    target: Tensor,
    *,
    epsilon: float = 1.0,
    weight: Tensor | None = None,
    ignore_index: Ignored = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
    loss_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Poly-1 loss: cross-entropy whose leading term has a factor of its own.

    The loss of a sample whose class has the probability p is ``-log(p) + epsilon * (1 - p)`` [1]_.

    Parameters
    ----------
    input : Tensor of shape (C), (N, C) or (N, C, d_1, ..., d_K)
        Logits: float16, bfloat16, float32 or float64, of any strides.
    target : Tensor
        Class indices, of any integer type, of the shape of `input` without its class axis.
    epsilon : float, default 1.0
        The factor of 1 - p, finite. With 0 it is `cross_entropy`, to the bit.
    weight : Tensor of shape (C), optional
        Weight of each class.
    ignore_index : int, iterable of ints or None, default -100
        Class indices whose samples do not count, whatever their logits are.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the samples' losses, their sum, or each. The mean divides by
        the sum of the weights of the samples' classes.
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
        its message. ValueError if `epsilon` is not finite.
    IndexError
        If a class index is out of range. On a GPU that is an assertion on the device.

    Notes
    -----
    -log(p) is the sum of ``(1 - p)**k / k`` over k from 1 on: `epsilon` is added to the first of
    these factors. 1 - p is computed as the sum of the other classes' probabilities, so that a loss
    keeps its digits where p rounds to 1.

    References
    ----------
    .. [1] Z. Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss
       Functions", ICLR 2022, arXiv:2204.12511.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> logits = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    >>> xentrs.torch.poly_loss(logits, torch.tensor([0, 0]), reduction="none")
    tensor([0.0361, 2.0443])
    """
    refuse_jit_trace("poly_loss")
    _check_epsilon(epsilon)
    # With epsilon 0 it is cross-entropy to the bit, on a GPU too.
    loss, own = (POLY_LOSS, (float(epsilon),)) if epsilon else (CROSS_ENTROPY, ())
    options = Options(reduction, ignored_indices(ignore_index), own=own)
    denominator = as_denominator(denominator, input)
    call = SoftmaxArguments(input, target, weight, sample_weight, denominator)
    if not fits(call, options) or call.is_soft:
        return refuse("poly_loss", call, options)
    check_further_arguments(call)
    return loss.compute(call, options, inplace, loss_dtype)


def _check_epsilon(value: float) -> None:
    check_number("epsilon", value)
    if not -math.inf < value < math.inf:
        raise ValueError(f"epsilon must be finite, not {value}")


# The loss itself, for what runs no Rust


def _derivatives(nll: Tensor, own: tuple[float]) -> tuple[Tensor, Tensor]:
    """Return the first and second derivative of l + epsilon (1 - p) in l = -log p."""
    (epsilon,) = own
    change = epsilon * (-nll).exp()
    return 1.0 + change, -change


# l + epsilon (1 - p) and its slope 1 + epsilon p, where `nll` is l.
@Kernel
@no_type_check
def _objective(nll, e_y, rest, OWN: tl.constexpr):
    EPSILON: tl.constexpr = OWN[0]
    whole = rest + e_y
    return nll + EPSILON * (rest / whole), 1.0 + EPSILON * (e_y / whole)


POLY_LOSS = of_true_class("poly_loss", ("float epsilon",), _derivatives, _objective)


class PolyLoss(LossModule):
    """`poly_loss` as a module.

    Parameters
    ----------
    epsilon, weight, ignore_index, reduction, inplace, loss_dtype
        As in `poly_loss`. `sample_weight` and `denominator` are arguments of the call.
    """

    function = staticmethod(poly_loss)

    def __init__(
        self,
        epsilon: float = 1.0,
        *,
        weight: Tensor | None = None,
        ignore_index: Ignored = -100,
        reduction: str = "mean",
        inplace: bool = False,
        loss_dtype: torch.dtype | None = None,
    ) -> None:
        _check_epsilon(epsilon)
        super().__init__(
            epsilon=epsilon,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            inplace=inplace,
            loss_dtype=loss_dtype,
        )
