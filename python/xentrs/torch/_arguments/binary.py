"""The arguments of a loss that is computed element by element: a target of the input's shape."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xentrs.torch import _backend
from xentrs.torch._arguments.options import REDUCTIONS, Options, check_number, check_tensor
from xentrs.torch._arguments.tensors import (
    are_tensors,
    check_denominator,
    check_further,
    masked,
)
from xentrs.torch._backend import FLOATS, HALVES, has_kernels
from xentrs.torch._mode import autocasts, differentiates, is_patched


class BinaryArguments(NamedTuple):
    """The tensors of a call. All but the last broadcast to the input, the target has its shape."""

    input: Tensor
    target: Tensor
    weight: Tensor | None
    pos_weight: Tensor | None
    where: Tensor | None
    denominator: Tensor | None  # of no dimension

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of PyTorch's loss: the target's if floating, as it computes in place there."""
        target, x = self.target, self.input
        dtype = target.dtype if target.is_floating_point() else x.dtype
        return torch.float32 if dtype in HALVES and autocasts(x) else dtype

    def mask(self, options: Options) -> Tensor | None:
        """Return which elements count, None where all do."""
        if self.weight is None:
            return self.where
        weight = self.weight.detach() != 0
        return weight if self.where is None else weight & self.where

    def gradient_mask(self, options: Options) -> Tensor | None:
        """Return the mask such that it broadcasts to the input."""
        return self.mask(options)

    def loss_shape(self, options: Options) -> torch.Size:
        """Return the shape of the loss."""
        return self.input.shape if options.reduction == "none" else torch.Size()

    def along(self, grad: Tensor, direction: Tensor, options: Options) -> Tensor:
        """Return the derivative of the loss in a direction, of its gradient in the logits."""
        product = grad * masked(direction, self.mask(options))
        return product if options.reduction == "none" else product.sum()

    def factor(self, options: Options) -> Tensor:
        """Return what multiplies each element's loss, its weight included."""
        x = self.input
        factor = torch.ones(x.shape, dtype=_backend.accumulator(x.dtype), device=x.device)
        if self.weight is not None:
            factor = factor * self.weight
        if options.reduction == "mean":
            factor = factor / self.divisor(options).to(factor.dtype)
        return masked(factor, self.mask(options))

    def upstream(self, grad_output: Tensor, options: Options) -> Tensor:
        """Return the upstream gradient, 0 for an element that does not count."""
        return masked(grad_output, self.mask(options))

    def divisor(self, options: Options) -> Tensor:
        """Return what a mean divides by, in float64, without waiting for it."""
        if self.denominator is not None:
            return self.denominator.double()
        x = self.input
        if self.where is not None:
            return self.where.expand_as(x).sum(dtype=torch.float64)
        return torch.full((), float(x.numel()), dtype=torch.float64, device=x.device)

    def times(self, grad_output: Tensor, options: Options) -> tuple[BinaryArguments, Options]:
        """Return a call and options whose gradient is multiplied by an upstream gradient."""
        grad_output = grad_output.to(_backend.accumulator(self.input.dtype))
        weight = self.upstream(grad_output, options)
        weight = weight if self.weight is None else weight * self.weight
        denominator = self.denominator
        if options.reduction == "mean":
            denominator = self.divisor(options)
        else:
            options = options._replace(reduction="sum")
        return self._replace(weight=weight, denominator=denominator), options


def fits(call: BinaryArguments, options: Options) -> bool:
    """Whether the arguments are what the kernels take; all else is left to PyTorch."""
    x, target = call.input, call.target
    if not are_tensors(x, target, *[t for t in call[2:4] if t is not None]):
        return False
    if x.dtype not in FLOATS or target.shape != x.shape or target.is_complex():
        return False
    if x.layout is not torch.strided or target.layout is not torch.strided:
        return False
    if is_patched() and not has_kernels(x):
        return False
    for t in (target, call.weight, call.pos_weight):
        if t is None:
            continue
        if t.device != x.device or differentiates(t):
            return False
        if t is not target and not (t.is_floating_point() and _broadcasts(t, x)):
            return False
    return options.reduction in REDUCTIONS


def _broadcasts(t: Tensor, x: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(t.shape, x.shape) == x.shape
    except RuntimeError:
        return False


def check_further_arguments(call: BinaryArguments, options: Options) -> None:
    """Refuse what is wrong with the arguments that PyTorch's function does not have."""
    check_number("label_smoothing", options.label_smoothing)
    if not 0.0 <= options.label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {options.label_smoothing}, but must be in [0, 1]")
    where = call.where
    if where is not None:
        check_tensor("where", where)
        if where.dtype != torch.bool:
            raise TypeError(f"where has dtype {where.dtype}, but must be torch.bool")
        if not _broadcasts(where, call.input):
            raise ValueError(
                f"where has shape {tuple(where.shape)}, which does not broadcast to that of input, "
                f"{tuple(call.input.shape)}"
            )
        check_further("where", where, call.input)
    check_denominator(call.denominator, call.input)
