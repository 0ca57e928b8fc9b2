"""`softmax_entropy` and `SoftmaxEntropyLoss`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from xentrs.torch._arguments.logits import check_input
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments
from xentrs.torch._arguments.tensors import as_denominator
from xentrs.torch._cpu import softmax as _cpu
from xentrs.torch._gpu import entropy as _gpu
from xentrs.torch._mode import refuse_jit_trace
from xentrs.torch._module import LossModule
from xentrs.torch._operators.loss import Loss, products_of


def softmax_entropy(
    input: Tensor,
    *,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
    loss_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Entropy of the softmax of logits: how undecided a model is.

    It needs no target. Subtracted from a loss it is an entropy bonus, as in reinforcement learning;
    added to it, it makes predictions more confident.

    Parameters
    ----------
    input : Tensor of shape (C), (N, C) or (N, C, d_1, ..., d_K)
        Logits: float16, bfloat16, float32 or float64, of any strides.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the samples' entropies, weighted by `sample_weight`, their
        sum, or each.
    sample_weight : Tensor, optional
        Weight of each sample, of the shape of `input` without its class axis. A sample of weight 0
        counts for nothing, whatever its logits are.
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
    TypeError, ValueError, RuntimeError
        If `input` is no tensor of floats or has no classes, or if another argument has a type,
        shape, device or value other than above.
    NotImplementedError
        If a weight requires a gradient.

    Notes
    -----
    A class whose logit is -inf adds nothing. The entropy of a sample is the sum of two terms that
    are not negative, so that it keeps its digits where it is small.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    >>> xentrs.torch.softmax_entropy(logits, reduction="none")
    tensor([0.6931, 0.1909])
    """
    refuse_jit_trace("softmax_entropy")
    options = Options(reduction)
    denominator = as_denominator(denominator, input)
    call = SoftmaxArguments(input, None, None, sample_weight, denominator)
    check_input(call, options)
    return SOFTMAX_ENTROPY.compute(call, options, inplace, loss_dtype)


def _gradient(call: SoftmaxArguments, options: Options) -> Tensor:
    """Return the gradient of each sample's entropy H, -p (log p + H), by functions of PyTorch."""
    x, axis = call.input, call.axis
    log_p = x.log_softmax(axis)
    p = log_p.exp()
    log_p = torch.where(x == -torch.inf, 0.0, log_p)  # such a class adds nothing
    return -p * (log_p - (p * log_p).sum(axis, keepdim=True))


SOFTMAX_ENTROPY = Loss(
    "softmax_entropy",
    SoftmaxArguments,
    cpu=partial(_cpu.evaluate, "softmax_entropy"),
    gpu=_gpu.evaluate,
    product=products_of(_gradient),
    shared=("reduction",),
)


class SoftmaxEntropyLoss(LossModule):
    """`softmax_entropy` as a module.

    Parameters
    ----------
    reduction, inplace, loss_dtype
        As in `softmax_entropy`. `sample_weight` and `denominator` are arguments of the call.
    """

    function = staticmethod(softmax_entropy)

    def __init__(
        self,
        *,
        reduction: str = "mean",
        inplace: bool = False,
        loss_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(reduction=reduction, inplace=inplace, loss_dtype=loss_dtype)
