"""The z-loss on the CPU, from two calls of the plain loss.

To be deleted, with what `chunks.py` says of it, as soon as the kernels have it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import xentrs
from xentrs.torch._arguments.options import Options


def evaluate_z_loss(
    z: Tensor,
    s: Tensor | None,
    mask: Tensor | None,
    options: Options,
    divisor: float,
    with_grad: bool,
) -> tuple[Any, Tensor | None]:
    """Return z_loss times logsumexp squared of rows of logits, reduced, and the gradient of that.

    Both come from the loss of the largest logit, -log p: logsumexp is the sum of the two, and its
    gradient, the softmax, is that of this loss plus one at that place.
    """
    pivot = z.argmax(1)
    if with_grad:
        minus_log_p, g = xentrs.cross_entropy_with_grad(z.numpy(), pivot.numpy(), reduction="none")
    else:
        minus_log_p = xentrs.cross_entropy(z.numpy(), pivot.numpy(), reduction="none")
    pivot.unsqueeze_(1)
    # In float64: the square of a large one exceeds float32.
    logsumexp = z.gather(1, pivot)[:, 0].double() + torch.from_numpy(minus_log_p)
    weights = torch.ones_like(logsumexp) if s is None else s.double()
    factor = options.z_loss * weights
    if mask is not None:
        factor = torch.where(mask, factor, 0.0)
    z_loss = factor * logsumexp**2
    p = None
    if with_grad:
        p = torch.from_numpy(g)
        p.scatter_add_(1, pivot, torch.ones_like(pivot, dtype=p.dtype))
        scale = 2.0 * factor * logsumexp / divisor
        if mask is not None:  # the divisor may be 0
            scale = torch.where(mask, scale, 0.0)
        p.mul_(scale[:, None])
    if options.reduction == "none":
        return z_loss.numpy(), p
    total = z_loss.sum().item()
    return (total / divisor if divisor else 0.0), p
