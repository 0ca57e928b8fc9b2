"""`nll_loss` and `NLLLoss`, in place of PyTorch's."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as _of_probabilities
from torch.nn.functional import nll_loss as _pytorchs

from xentrs.torch._arguments.options import (
    Ignored,
    Options,
    as_number,
    check_number,
    ignored_indices,
    is_smoothing,
    legacy_reduction,
)
from xentrs.torch._arguments.softmax import SoftmaxArguments, check_further_arguments, fits
from xentrs.torch._arguments.tensors import as_denominator, leave_to_pytorch
from xentrs.torch._cpu import softmax as _cpu
from xentrs.torch._gpu import likelihood as _gpu
from xentrs.torch._mode import is_jit_traced
from xentrs.torch._module import further_repr
from xentrs.torch._operators.loss import Loss

_NAME = "nll_loss"


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: Ignored = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
    loss_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Negative log-likelihood of a target under given log-probabilities.

    A drop-in for `torch.nn.functional.nll_loss`, with the same arguments, results and errors. The
    target may be probabilities too, and the keyword-only arguments are additions. Where there are
    logits, `cross_entropy` of these is faster than `log_softmax` followed by this function.

    Parameters
    ----------
    input : Tensor of shape (C), (N, C) or (N, C, d_1, ..., d_K)
        Log-probabilities: float16, bfloat16, float32 or float64, of any strides. They are taken as
        they are, numbers above 0 too.
    target : Tensor
        Class indices, of any integer type, of the shape of `input` without its class axis; or
        probabilities, floats of the shape of `input`.
    weight : Tensor of shape (C), optional
        Weight of each class.
    size_average, reduce : bool, optional
        Deprecated in PyTorch: see `reduction`.
    ignore_index : int, iterable of ints or None, default -100
        Class indices whose samples do not count, whatever their log-probabilities are.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the samples' losses, weighted by the weights of their
        classes, their sum, or each.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: the target becomes (1 - e) times itself plus e / C in every class.
    sample_weight : Tensor, optional
        Weight of each sample, of the shape of `input` without its class axis.
    denominator : float or Tensor of no dimension, optional
        What ``"mean"`` divides by instead of the total weight. A tensor may be on the CPU or on the
        device of `input`.
    inplace : bool, default False
        Write the gradient over `input`, which saves memory of its size. It must be neither a view
        nor a leaf, and using it later raises an error in the backward pass (`log_softmax` does use
        it). Without effect where no gradient is wanted, and under `torch.compile` and `torch.func`.
    loss_dtype : torch.dtype, optional
        A floating dtype of the loss, instead of the one under Returns. With float32 the loss of a
        half-precision `input` is not rounded to half precision.

    Returns
    -------
    Tensor
        Of no dimension, or for ``"none"`` of the shape of `input` without its class axis. Of the
        dtype of `input`, or one that holds probabilities and their `weight` too; float32 for a half
        precision if autocast is on.

    Raises
    ------
    RuntimeError, ValueError, TypeError, NotImplementedError
        What PyTorch's function raises, with its message. ValueError or TypeError if a keyword-only
        argument is wrong, NotImplementedError if one, or a target of probabilities, requires a
        gradient.
    IndexError
        If a class index is out of range. On a GPU that is an assertion on the device.

    Notes
    -----
    A class without weight in the target adds nothing, whatever its number is, -inf and NaN
    included. The gradient does not depend on `input`, so second derivatives are 0.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> log_probabilities = torch.tensor([[-1.0, -2.0, -0.5], [-torch.inf, 0.0, -torch.inf]])
    >>> xentrs.torch.nll_loss(log_probabilities, torch.tensor([2, 1]))
    tensor(0.2500)
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce, reduction)
    check_number("label_smoothing", label_smoothing)
    if not is_smoothing(label_smoothing):
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
    options = Options(reduction, ignored_indices(ignore_index), as_number(label_smoothing))
    denominator = as_denominator(denominator, input)
    call = SoftmaxArguments(input, target, weight, sample_weight, denominator)
    if is_jit_traced(_NAME) or not fits(call, options):
        return _leave_to_pytorch(call, options, loss_dtype)
    check_further_arguments(call)
    return NLL_LOSS.compute(call, options, inplace, loss_dtype)


def _leave_to_pytorch(
    call: SoftmaxArguments, options: Options, loss_dtype: torch.dtype | None
) -> Tensor:
    target, ignored = call.target, options.ignored[0] if options.ignored else -100
    if isinstance(target, Tensor) and target.is_floating_point():
        # PyTorch's function takes no probabilities. What it has to say of them, this one says.
        return leave_to_pytorch(
            lambda: _of_probabilities(
                call.input,
                target,
                call.weight,
                ignore_index=ignored,
                reduction=options.reduction,
                label_smoothing=options.label_smoothing,
            ),
            f"xentrs.torch.{_NAME} has no gradient in probabilities nor in the class weights: "
            "target.detach(), weight.detach()",
        )
    beyond = None
    more = (call.sample_weight, call.denominator, loss_dtype)
    if any(a is not None for a in more) or options.label_smoothing or len(options.ignored) != 1:
        beyond = (
            f"xentrs.torch.{_NAME}: label_smoothing, sample_weight, denominator, loss_dtype and "
            "several ignored indices cannot be combined with gradients in the class weights"
        )
    return leave_to_pytorch(
        lambda: _pytorchs(
            call.input, target, call.weight, ignore_index=ignored, reduction=options.reduction
        ),
        beyond,
    )


def _product(call: SoftmaxArguments, options: Options, direction: Tensor) -> Tensor:
    """Return the derivative of the gradient: it is the same everywhere."""
    return torch.zeros_like(direction)


NLL_LOSS = Loss(
    _NAME,
    SoftmaxArguments,
    cpu=partial(_cpu.evaluate, _NAME),
    gpu=_gpu.evaluate,
    product=_product,
    shared=("reduction", "ignored", "label_smoothing"),
)


class NLLLoss(nn.NLLLoss):
    """`nll_loss` as a module: `torch.nn.NLLLoss` with the further options.

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction
        As in `torch.nn.NLLLoss`; `ignore_index` may be several, or None.
    label_smoothing, inplace, loss_dtype
        As in `nll_loss`. `sample_weight` and `denominator` are arguments of the call.
    """

    # For modules that were pickled before these existed.
    label_smoothing = 0.0
    inplace = False
    loss_dtype: torch.dtype | None = None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: Ignored = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        label_smoothing: float = 0.0,
        inplace: bool = False,
        loss_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(weight, size_average, -100, reduce, reduction)
        self.ignore_index = ignore_index  # type: ignore[assignment]
        self.label_smoothing = label_smoothing
        self.inplace = inplace
        self.loss_dtype = loss_dtype

    def extra_repr(self) -> str:
        """Return what `repr` says of the module."""
        return further_repr(self, ("label_smoothing", "inplace", "loss_dtype"))

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss."""
        return nll_loss(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            sample_weight=sample_weight,
            denominator=denominator,
            inplace=self.inplace,
            loss_dtype=self.loss_dtype,
        )
