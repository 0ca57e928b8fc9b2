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
    loss = losses.sum()
    loss = loss if divisor is None else loss / divisor
    return loss.to(_backend.accumulator(call.input.dtype))
