"""Softmax losses on the CPU where the Rust kernels lack something, chunk by chunk.

What they lack is `softcap`, `z_loss`, and targets of probabilities in half precision. Each chunk of
logits is copied in the accumulator's dtype, replaced there by its gradient, and copied out again.
Beside the gradient, nothing of the size of the logits is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import xentrs
from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments, check_indices
from xentrs.torch._arguments.tensors import as_rows, write_back
from xentrs.torch._cpu import tensors
from xentrs.torch._cpu.tensors import readable
from xentrs.torch._cpu.z_loss import evaluate_z_loss


def evaluate_by_chunks(
    call: SoftmaxArguments, options: Options, with_grad: bool, inplace: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the logits if wanted."""
    x = call.input.detach()
    dtype = _backend.accumulator(x.dtype)
    if not call.is_soft:
        check_indices(call, options.ignored)
    mean = options.reduction == "mean"
    divisors = 1.0, 1.0
    if mean:
        divisor = call.divisor(options).item()
        divisors = divisor, call.z_divisor(options).item() if options.z_loss else divisor
    mask = call.mask(options)
    if mask is not None:
        mask = None if mask.all() else mask
    grad = None
    if with_grad:
        grad = x if inplace else _backend.empty_like(x)
    rows, target = as_rows(x), call.target.detach()
    grad_rows = None if grad is None else as_rows(grad)
    n, classes, positions = rows.shape
    target = as_rows(target) if call.is_soft else target.reshape(n, 1, positions)
    weight = readable(call.weight)
    s, mask = (
        None if t is None else t.detach().reshape(n, 1, positions)
        for t in (readable(call.sample_weight), mask)
    )

    size = max(tensors.CHUNK * xentrs.get_num_threads() // classes, 1)
    wide = torch.promote_types(dtype, target.dtype) if call.is_soft else dtype
    z, t = (torch.empty((size, classes), dtype=d, device=x.device) for d in (dtype, wide))
    losses = torch.empty((n, positions), dtype=dtype, device=x.device)
    total = 0.0
    for i, j in _chunks(n, positions, size):

        def part(a: Tensor, to: Tensor | None = None) -> Tensor:
            a = a[i, :, j].transpose(1, 2)  # noqa: B023
            count = a.shape[0] * a.shape[1]
            if to is None:
                return a.reshape(count)
            to[:count].view(a.shape).copy_(a)
            return to[:count]

        chunk = part(rows, z)
        loss = _evaluate_chunk(
            chunk,
            part(target, t) if call.is_soft else part(target),
            None if weight is None else weight.numpy(),
            None if s is None else part(s),
            None if mask is None else part(mask),
            options,
            divisors,
            with_grad,
        )
        if grad_rows is not None:
            here = grad_rows[i, :, j].transpose(1, 2)
            here.copy_(chunk.view(here.shape))
        if options.reduction == "none":
            losses[i, j] = torch.from_numpy(loss).view_as(losses[i, j])
        else:
            total += loss
    write_back(grad, grad_rows)
    if options.reduction == "none":
        return losses.view(call.samples), grad
    if mean and call.denominator is None and divisor == 0.0:
        total = math.nan
    return _backend.scalar(total, dtype), grad


def _chunks(n: int, positions: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of samples and of their positions that hold about `size` of both."""
    if positions <= size:
        step = max(size // max(positions, 1), 1)
        for i in range(0, n, step):
            yield slice(i, i + step), slice(None)
    else:
        for i in range(n):
            for j in range(0, positions, size):
                yield slice(i, i + 1), slice(j, j + size)


def _evaluate_chunk(
    z: Tensor,
    t: Tensor,
    weight: Any,
    s: Tensor | None,
    mask: Tensor | None,
    options: Options,
    divisors: tuple[float, float],
    with_grad: bool,
) -> Any:
    """Replace a chunk of logits by their gradient; return the loss, or that of each row."""
    cap = options.softcap
    if mask is not None:  # what does not count may be NaN
        z.masked_fill_(~mask[:, None], 0.0)
        if t.dim() > 1:
            t.masked_fill_(~mask[:, None], 0.0)
    if cap:
        infinite = z.isinf()
        capped = z.div_(cap).tanh_().clone()
        # Infinite logits stay.
        z.mul_(torch.where(infinite, math.inf, cap))
    z_loss, z_grad = 0.0, None
    if options.z_loss:
        z_loss, z_grad = evaluate_z_loss(z, s, mask, options, divisors[1], with_grad)
    logits = z.numpy()
    arguments: dict[str, Any] = {
        "weight": weight,
        "sample_weight": None if s is None else s.numpy(),
        "ignore_index": options.ignored,
        "label_smoothing": options.label_smoothing,
        "reduction": options.reduction,
        "denominator": abs(divisors[0]) if options.reduction == "mean" else None,
    }
    if not with_grad:
        loss = xentrs.cross_entropy(logits, t.numpy(), **arguments)
    else:
        loss, _ = xentrs.cross_entropy_with_grad(logits, t.numpy(), out=logits, **arguments)
    if divisors[0] < 0.0:  # the sum of negative weights
        loss = -loss
        z.neg_()
    if z_grad is not None:
        z.add_(z_grad)
    if cap and with_grad:
        z.mul_(1.0 - capped * capped)
    return loss + z_loss
