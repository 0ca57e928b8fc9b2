"""The results of a kernel over rows: where it writes them, and what is made of the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments


def allocate(
    x: Tensor, samples: int, options: Options, with_grad: bool, inplace: bool
) -> tuple[Tensor, Tensor | None]:
    """Return uninitialized losses of that many samples, and a gradient if wanted."""
    # Losses that will be added up are not rounded first.
    none = options.reduction == "none"
    dtype = _backend.accumulator(x.dtype) if none else torch.float64
    losses = torch.empty(samples, dtype=dtype, device=x.device)
    if not with_grad:
        return losses, None
    return losses, x if inplace else torch.empty_like(x)


def reduced(
    losses: Tensor, call: SoftmaxArguments, options: Options, divisor: Tensor | None
) -> Tensor:
    """Return the losses in the shape of the samples, or their sum over the divisor."""
    if options.reduction == "none":
        return losses.view(call.samples)
    loss = quotient(losses.sum(), divisor, call.denominator is not None)
    return loss.to(_backend.accumulator(call.input.dtype))


def quotient(loss: Tensor, divisor: Tensor | None, is_given: bool) -> Tensor:
    """Return a sum over its divisor, if there is one: 0 / 0 is 0 if the caller gave the divisor."""
    if divisor is None:
        return loss
    result = loss / divisor
    return torch.where((loss == 0.0) & (divisor == 0.0), 0.0, result) if is_given else result
