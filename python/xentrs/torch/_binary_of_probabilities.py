"""`binary_cross_entropy` and `BCELoss`, in place of PyTorch's."""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy as _pytorchs

from xentrs.torch._arguments.binary import BinaryArguments, check_further_arguments, fits
from xentrs.torch._arguments.options import Options, as_number, legacy_reduction
from xentrs.torch._arguments.tensors import as_denominator, leave_to_pytorch
from xentrs.torch._gpu.math import log1p
from xentrs.torch._mode import is_jit_traced
from xentrs.torch._module import further_repr
from xentrs.torch._operators.elements import of_elements
from xentrs.torch._operators.loss import products_of
from xentrs.torch._triton import Kernel

if TYPE_CHECKING:
    import triton.language as tl

_NAME = "binary_cross_entropy"


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    where: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> Tensor:
    r"""Binary cross-entropy between probabilities and a target, element by element.

    It has the arguments of `torch.nn.functional.binary_cross_entropy`, and keyword-only additions.
    The results are PyTorch's but for one thing: PyTorch clamps each logarithm at -100, this
    function does not. A probability of 0 for a label that is true has an infinite loss.

    Parameters
    ----------
    input : Tensor
        Probabilities in [0, 1], of any shape: float16, bfloat16, float32 or float64.
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

    Returns
    -------
    Tensor
        Of no dimension, or for ``"none"`` of the shape of `input`. Of the dtype that PyTorch's
        function returns.

    Raises
    ------
    RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError
        What PyTorch's function raises, with its message. ValueError or TypeError if a keyword-only
        argument is wrong. On the CPU, ValueError if a number that counts is outside [0, 1] or NaN;
        on a GPU its loss is NaN.

    Notes
    -----
    Half precisions are computed in float32. On the CPU the kernels of `xentrs.binary_cross_entropy`
    run: the error of an element's loss, and of its gradient, is at most 4 ULP, in float64 5.5 with
    `weight` and `pos_weight` at once.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> probabilities = torch.tensor([0.25, 0.5], requires_grad=True)
    >>> labels = torch.tensor([1, 0])
    >>> xentrs.torch.binary_cross_entropy(probabilities, labels, reduction="sum").backward()
    >>> probabilities.grad
    tensor([-4.,  2.])
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce, reduction)
    options = Options(reduction, label_smoothing=as_number(label_smoothing))
    denominator = as_denominator(denominator, input)
    call = BinaryArguments(input, target, weight, pos_weight, where, denominator)
    if is_jit_traced(_NAME) or not fits(call, options):
        return _leave_to_pytorch(call, options)
    check_further_arguments(call, options)
    return BINARY_OF_PROBABILITIES.compute(call, options)


def _leave_to_pytorch(call: BinaryArguments, options: Options) -> Tensor:
    beyond = None
    further = (call.where, call.denominator, call.pos_weight)
    if any(t is not None for t in further) or options.label_smoothing != 0.0:
        beyond = (
            f"xentrs.torch.{_NAME}: where, denominator, pos_weight and label_smoothing cannot be "
            "combined with gradients in the target or the weights"
        )
    return leave_to_pytorch(
        lambda: _pytorchs(call.input, call.target, call.weight, reduction=options.reduction),
        beyond,
    )


# The loss itself, for what runs no Rust


def _gradient(call: BinaryArguments, options: Options) -> Tensor:
    """Return the gradient of each element's loss: (1 - t) / (1 - p) - v / p."""
    p, e = call.input, options.label_smoothing
    t = (1.0 - e) * call.target.to(p.dtype) + 0.5 * e
    v = t if call.pos_weight is None else t * call.pos_weight
    # A part whose coefficient is 0 is 0, and is not divided by 0.
    of_p = v / torch.where(v == 0.0, 0.5, p)
    return (1.0 - t) / torch.where(t == 1.0, 0.5, 1.0 - p) - of_p


@Kernel
@no_type_check
def _element(z, t, v, keep, OWN: tl.constexpr):
    q = 1.0 - z
    log_q = tl.where(z < 0.5, log1p(-z), tl.log(q))
    up = tl.where(t == 1.0, 0.0, (1.0 - t) * -log_q)
    down = tl.where(v == 0.0, 0.0, v * -tl.log(z))
    slope = tl.where(t == 1.0, 0.0, (1.0 - t) / q) - tl.where(v == 0.0, 0.0, v / z)
    bad = (z != z) | (z < 0.0) | (z > 1.0)
    return tl.where(bad, float("nan"), up + down), tl.where(bad, float("nan"), slope)


BINARY_OF_PROBABILITIES = of_elements(_NAME, products_of(_gradient), _element)


class BCELoss(nn.BCELoss):
    """`binary_cross_entropy` as a module.

    Parameters
    ----------
    weight, size_average, reduce, reduction
        As in `torch.nn.BCELoss`.
    pos_weight, label_smoothing
        As in `binary_cross_entropy`. `where` and `denominator` are arguments of the
        call.
    """

    label_smoothing = 0.0  # the default

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self.register_buffer("pos_weight", pos_weight)
        self.pos_weight: Tensor | None
        self.label_smoothing = label_smoothing

    def extra_repr(self) -> str:
        """Return what `repr` says of the module."""
        return further_repr(self, ("label_smoothing",))

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        where: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss."""
        return binary_cross_entropy(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            label_smoothing=self.label_smoothing,
            where=where,
            denominator=denominator,
        )
