"""`binary_cross_entropy_with_logits` and `BCEWithLogitsLoss`, in place of PyTorch's."""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as _pytorchs

from xentrs.torch import _backend
from xentrs.torch._arguments.binary import BinaryArguments, check_further_arguments, fits
from xentrs.torch._arguments.options import (
    REDUCTIONS,
    Options,
    as_number,
    is_smoothing,
    legacy_reduction,
)
from xentrs.torch._arguments.tensors import as_denominator, leave_to_pytorch
from xentrs.torch._gpu.math import divided, exp_over, log1p
from xentrs.torch._mode import is_jit_traced
from xentrs.torch._module import StandsFor, further_repr
from xentrs.torch._operators import quick
from xentrs.torch._operators.elements import of_elements
from xentrs.torch._triton import Kernel

if TYPE_CHECKING:
    import triton.language as tl

_NAME = "binary_cross_entropy_with_logits"


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    where: Tensor | None = None,
    denominator: float | Tensor | None = None,
    loss_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Binary cross-entropy between the sigmoid of logits and a target, element by element.

    A drop-in for `torch.nn.functional.binary_cross_entropy_with_logits`, with the same arguments,
    results and errors. The keyword-only arguments are additions.

    Parameters
    ----------
    input : Tensor
        Logits of any shape: float16, bfloat16, float32 or float64.
    target : Tensor
        The probability of the positive class: floats, integers or bools of the shape of `input`.
    weight : Tensor, optional
        Weight of each element; broadcast to the shape of `input`.
    size_average, reduce : bool, optional
        Deprecated in PyTorch: see `reduction`.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the elements' losses, their sum, or each.
    pos_weight : Tensor, optional
        Weight of the positive class; broadcast to the shape of `input`.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: the target t becomes (1 - e) t + e / 2.
    where : Tensor of bool, optional
        The elements that count; broadcast to the shape of `input`. The mean divides by their
        number.
    denominator : float or Tensor of no dimension, optional
        What ``"mean"`` divides by instead.
    loss_dtype : torch.dtype, optional
        A floating dtype of the loss, instead of the one under Returns. With float32 the loss of a
        half-precision `input` is not rounded to half precision.

    Returns
    -------
    Tensor
        Of no dimension, or for ``"none"`` of the shape of `input`. Of the dtype that PyTorch's
        function returns.

    Raises
    ------
    RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError
        What PyTorch's function raises, with its message. ValueError or TypeError if a keyword-only
        argument is wrong.

    Notes
    -----
    Half precisions are computed in float32. On the CPU the kernels of
    `xentrs.binary_cross_entropy_with_logits` run: the error of an element's loss, and of its
    gradient, is at most 4 ULP, in float64 5 with several weights at once. On a GPU, too, small
    losses keep their digits.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> logits = torch.tensor([0.0, 1.0986123], requires_grad=True)
    >>> labels = torch.tensor([0, 1])
    >>> xentrs.torch.binary_cross_entropy_with_logits(logits, labels, reduction="sum").backward()
    >>> logits.grad
    tensor([ 0.5000, -0.2500])
    """
    if (
        weight is where is denominator is None
        and size_average is reduce is None
        and loss_dtype is None
        and is_smoothing(label_smoothing)
        and not label_smoothing
        and reduction in REDUCTIONS
    ):
        loss = quick.of_elements(BINARY, input, target, pos_weight, reduction)
        if loss is not None:
            return loss
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce, reduction)
    options = Options(reduction, label_smoothing=as_number(label_smoothing))
    denominator = as_denominator(denominator, input)
    call = BinaryArguments(input, target, weight, pos_weight, where, denominator)
    if is_jit_traced(_NAME) or not fits(call, options):
        return _leave_to_pytorch(call, options, loss_dtype)
    check_further_arguments(call, options)
    return BINARY.compute(call, options, loss_dtype=loss_dtype)


def _leave_to_pytorch(
    call: BinaryArguments, options: Options, loss_dtype: torch.dtype | None
) -> Tensor:
    beyond = None
    if any(t is not None for t in (call.where, call.denominator, loss_dtype)) or (
        options.label_smoothing != 0.0
    ):
        beyond = (
            f"xentrs.torch.{_NAME}: where, denominator, loss_dtype and label_smoothing cannot be "
            "combined with gradients in the target or the weights"
        )
    return leave_to_pytorch(
        lambda: _pytorchs(
            call.input,
            call.target,
            call.weight,
            reduction=options.reduction,
            pos_weight=call.pos_weight,
        ),
        beyond,
    )


# The loss itself, for what runs no Rust


def _product(call: BinaryArguments, options: Options, direction: Tensor) -> Tensor:
    """Return the second derivative of each element's loss times a direction.

    By functions of PyTorch, so that it can be differentiated.
    """
    x = call.input.to(_backend.accumulator(call.input.dtype))
    mask = call.mask(options)
    if mask is not None:  # before anything is computed, for what differentiates this
        x = torch.where(mask, x, 0.0)
    e = options.label_smoothing
    t = (1.0 - e) * call.target.to(x.dtype) + 0.5 * e
    scale = (1.0 - t) + (t if call.pos_weight is None else t * call.pos_weight)
    if call.weight is not None:
        scale = scale * call.weight
    second = scale * x.sigmoid() * (-x).sigmoid()
    if options.reduction == "mean":
        second = second / call.divisor(options).to(x.dtype)
    if mask is not None:
        second = torch.where(mask, second, 0.0)
    return second.to(call.input.dtype) * call.upstream(direction, options)


# With e = exp(-|z|):
#     loss       (1 - t) softplus(z) + v softplus(-z)     softplus(z) = max(z, 0) + log1p(e)
#     derivative (1 - t) sigmoid(z) - v sigmoid(-z)       sigmoid(|z|) = 1 / (1 + e)
# A part whose coefficient is 0 is 0, at an infinite logit too.
@Kernel
@no_type_check
def _element(z, t, v, keep, OWN: tl.constexpr):
    e = exp_over(-tl.abs(z), 0.0, 1.0)
    tail = log1p(e)
    up = tl.where(t == 1.0, 0.0, (1.0 - t) * (tl.maximum(z, 0.0) + tail))
    down = tl.where(v == 0.0, 0.0, v * (tl.maximum(-z, 0.0) + tail))
    large, small = divided(1.0, 1.0 + e), divided(e, 1.0 + e)
    p = tl.where(z >= 0, large, small)
    q = tl.where(z >= 0, small, large)
    return tl.where(z != z, z, up + down), (1.0 - t) * p - v * q


BINARY = of_elements(_NAME, _product, _element)


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss, metaclass=StandsFor):
    """`binary_cross_entropy_with_logits` as a module.

    Parameters
    ----------
    weight, size_average, reduce, reduction, pos_weight
        As in `torch.nn.BCEWithLogitsLoss`.
    label_smoothing, loss_dtype
        As in `binary_cross_entropy_with_logits`. `where` and `denominator` are arguments of the
        call.
    """

    # For modules that were pickled before these existed.
    label_smoothing = 0.0
    loss_dtype: torch.dtype | None = None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        loss_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self.label_smoothing = label_smoothing
        self.loss_dtype = loss_dtype

    def extra_repr(self) -> str:
        """Return what `repr` says of the module."""
        return further_repr(self, ("label_smoothing", "loss_dtype"))

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        where: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss."""
        return binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            label_smoothing=self.label_smoothing,
            where=where,
            denominator=denominator,
            loss_dtype=self.loss_dtype,
        )
