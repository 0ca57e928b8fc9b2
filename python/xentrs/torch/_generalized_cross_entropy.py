"""`generalized_cross_entropy` and `GeneralizedCrossEntropyLoss`."""

from __future__ import annotations

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
from xentrs.torch._gpu.math import expm1
from xentrs.torch._mode import refuse_jit_trace
from xentrs.torch._module import LossModule
from xentrs.torch._operators.softmax import of_true_class
from xentrs.torch._triton import Kernel

if TYPE_CHECKING:
    import triton.language as tl


def generalized_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    q: float = 0.7,
    weight: Tensor | None = None,
    ignore_index: Ignored = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
    loss_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Generalized cross-entropy: between cross-entropy and absolute error, for noisy labels.

    The loss of a sample whose class has the probability p is ``(1 - p**q) / q`` [1]_. A sample
    whose label is wrong has a small p: its loss is at most 1 / q, and its gradient is small.

    Parameters
    ----------
    input : Tensor of shape (C), (N, C) or (N, C, d_1, ..., d_K)
        Logits: float16, bfloat16, float32 or float64, of any strides.
    target : Tensor
        Class indices, of any integer type, of the shape of `input` without its class axis.
    q : float, default 0.7
        The exponent, above 0 and at most 1. With 1 the loss is 1 - p, half of the absolute error;
        towards 0 it becomes `cross_entropy`.
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
        its message. ValueError if `q` is not above 0 and
        at most 1.
    IndexError
        If a class index is out of range. On a GPU that is an assertion on the device.

    Notes
    -----
    With l = -log(p) it is computed as ``-expm1(-q * l) / q``, and so keeps its digits where p is
    near 1. A logit of -inf at the target gives the largest loss, 1 / q, and the gradient 0.

    References
    ----------
    .. [1] Z. Zhang, M. R. Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural
       Networks with Noisy Labels", NeurIPS 2018, arXiv:1805.07836.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> logits = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    >>> xentrs.torch.generalized_cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
    tensor([0.0180, 0.8589])
    """
    refuse_jit_trace("generalized_cross_entropy")
    _check_q(q)
    options = Options(reduction, ignored_indices(ignore_index), own=(float(q),))
    denominator = as_denominator(denominator, input)
    call = SoftmaxArguments(input, target, weight, sample_weight, denominator)
    if not fits(call, options) or call.is_soft:
        return refuse("generalized_cross_entropy", call, options)
    check_further_arguments(call)
    return GENERALIZED.compute(call, options, inplace, loss_dtype)


def _check_q(value: float) -> None:
    check_number("q", value)
    if not 0.0 < value <= 1.0:
        raise ValueError(f"q must be above 0 and at most 1, not {value}")


# The loss itself, for what runs no Rust


def _derivatives(nll: Tensor, own: tuple[float]) -> tuple[Tensor, Tensor]:
    """Return the first and second derivative of (1 - p^q) / q in l = -log p."""
    (q,) = own
    slope = (-q * nll).exp()
    return slope, -q * slope


# (1 - p^q) / q and its slope p^q, where `nll` is l.
@Kernel
@no_type_check
def _objective(nll, e_y, rest, OWN: tl.constexpr):
    Q: tl.constexpr = OWN[0]
    return -expm1(-Q * nll) / Q, tl.exp(-Q * nll)


GENERALIZED = of_true_class("generalized_cross_entropy", ("float q",), _derivatives, _objective)


class GeneralizedCrossEntropyLoss(LossModule):
    """`generalized_cross_entropy` as a module.

    Parameters
    ----------
    q, weight, ignore_index, reduction, inplace, loss_dtype
        As in `generalized_cross_entropy`. `sample_weight` and `denominator` are arguments of the
        call.
    """

    function = staticmethod(generalized_cross_entropy)

    def __init__(
        self,
        q: float = 0.7,
        *,
        weight: Tensor | None = None,
        ignore_index: Ignored = -100,
        reduction: str = "mean",
        inplace: bool = False,
        loss_dtype: torch.dtype | None = None,
    ) -> None:
        _check_q(q)
        super().__init__(
            q=q,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            inplace=inplace,
            loss_dtype=loss_dtype,
        )
