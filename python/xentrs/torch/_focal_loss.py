"""`focal_loss` and `FocalLoss`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy as _pytorchs

from xentrs.torch._arguments.options import (
    Ignored,
    Options,
    check_not_negative,
    ignored_indices,
)
from xentrs.torch._arguments.softmax import SoftmaxArguments, check_further_arguments, fits
from xentrs.torch._arguments.tensors import as_denominator, leave_to_pytorch
from xentrs.torch._mode import refuse_jit_trace
from xentrs.torch._operators.softmax import compute_loss


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
    options = Options(reduction, ignored_indices(ignore_index), gamma=gamma)
    denominator = as_denominator(denominator, input)
    call = SoftmaxArguments(input, target, weight, sample_weight, denominator)
    if not fits(call, options) or call.is_soft:
        return _refuse(call, options)
    check_further_arguments(call, options)
    return compute_loss(call, options, inplace)


def _refuse(call: SoftmaxArguments, options: Options) -> Tensor:
    """Say what is wrong, in PyTorch's words where it has any."""
    x, target = call.input, call.target
    if isinstance(target, Tensor) and target.is_floating_point():
        raise TypeError(
            f"target has dtype {target.dtype}, but focal_loss takes class indices: the loss is "
            "defined by the probability of one class"
        )
    return leave_to_pytorch(
        lambda: _pytorchs(
            x,
            target,
            call.weight,
            ignore_index=options.ignored[0] if options.ignored else -100,
            reduction=options.reduction,
        ),
        "xentrs.torch.focal_loss has no gradient in the class weights: weight.detach()",
    )


class FocalLoss(nn.Module):
    """`focal_loss` as a module.

    Parameters
    ----------
    gamma, weight, ignore_index, reduction, inplace
        As in `focal_loss`. `sample_weight` and `denominator` are arguments of the call.
    """

    weight: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        weight: Tensor | None = None,
        ignore_index: Ignored = -100,
        reduction: str = "mean",
        inplace: bool = False,
    ) -> None:
        super().__init__()
        check_not_negative("gamma", gamma)
        self.register_buffer("weight", weight)
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.inplace = inplace

    def extra_repr(self) -> str:
        """Return what `repr` says of the module."""
        return f"gamma={self.gamma}, reduction={self.reduction!r}"

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss."""
        return focal_loss(
            input,
            target,
            gamma=self.gamma,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            sample_weight=sample_weight,
            denominator=denominator,
            inplace=self.inplace,
        )
