"""Softmax losses on the CPU where the Rust kernels lack something, chunk by chunk.

What they lack is targets of probabilities in half precision. Each chunk of logits is
copied in the accumulator's dtype, replaced there by its gradient, and copied out again. Beside the
gradient, nothing of the size of the logits is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import xentrs
from xentrs._xentrs import LOSSES
from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments, check_indices
from xentrs.torch._arguments.tensors import as_rows, write_back
from xentrs.torch._cpu import tensors
from xentrs.torch._cpu.tensors import named_options, positive_divisors, readable


def evaluate_by_chunks(
    name: str, call: SoftmaxArguments, options: Options, with_grad: bool, inplace: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the logits if wanted."""
    x = call.input.detach()
    dtype = _backend.accumulator(x.dtype)
    pair = call.probabilities is not None
    if pair or not call.is_soft:
        check_indices(call, options.ignored)
    nothing_counts = False
    if options.reduction == "mean":  # by what the whole divides by
        divisor, z_divisor = call.divisor(options), call.z_divisor(options)
        nothing_counts = call.denominator is None and divisor.item() == 0.0
        call = call._replace(denominator=divisor, z_denominator=z_divisor)
    call, denominator, z_loss = positive_divisors(call, options)
    mask = call.mask(options)
    if mask is not None:
        mask = None if mask.all() else mask
    grad = None
    if with_grad:
        grad = x if inplace else _backend.empty_like(x)
    rows, target, q = as_rows(x), call.target, readable(call.probabilities)
    grad_rows = None if grad is None else as_rows(grad)
    n, classes, positions = rows.shape
    if pair:
        assert q is not None
        target, q = (t.reshape(n, positions, q.shape[-1]) for t in (target.long(), q))
    elif target is not None:
        target = target.detach()
        target = as_rows(target) if call.is_soft else target.reshape(n, 1, positions)
    weight = readable(call.weight)
    s, mask = (
        None if t is None else t.detach().reshape(n, 1, positions)
        for t in (readable(call.sample_weight), mask)
    )

    size = max(tensors.CHUNK * xentrs.get_num_threads() // classes, 1)
    z = torch.empty((size, classes), dtype=dtype, device=x.device)
    wide = None  # probabilities of a chunk
    if target is not None and call.is_soft and not pair:
        wide = torch.empty_like(z, dtype=torch.promote_types(dtype, target.dtype))
    losses = torch.empty((n, positions), dtype=dtype, device=x.device)
    total = 0.0
    for i, j in chunks(n, positions, size):

        def part(a: Tensor, to: Tensor | None = None) -> Tensor:
            a = a[i, :, j].transpose(1, 2)  # noqa: B023
            count = a.shape[0] * a.shape[1]
            if to is None:
                return a.reshape(count)
            to[:count].view(a.shape).copy_(a)
            return to[:count]

        chunk = part(rows, z)
        of_chunk: Any = None
        if q is not None:
            of_chunk = tuple(a[i, j].reshape(-1, a.shape[-1]) for a in (target, q))
        elif target is not None:
            of_chunk = part(target, wide)
        loss = _evaluate_chunk(
            name,
            chunk,
            of_chunk,
            None if weight is None else weight.numpy(),
            None if s is None else part(s),
            None if mask is None else part(mask),
            options._replace(z_loss=z_loss),
            denominator,
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
    if nothing_counts:
        total = math.nan
    return _backend.scalar(total, dtype), grad


def chunks(n: int, positions: int, size: int) -> Iterator[tuple[slice, slice]]:
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
    name: str,
    z: Tensor,
    t: Tensor | tuple[Tensor, Tensor] | None,
    weight: Any,
    s: Tensor | None,
    mask: Tensor | None,
    options: Options,
    denominator: float | None,
    with_grad: bool,
) -> Any:
    """Replace a chunk of logits by their gradient; return the loss, or that of each row."""
    if mask is not None:  # what does not count may be NaN
        z.masked_fill_(~mask[:, None], 0.0)
        if isinstance(t, Tensor) and t.dim() > 1:
            t.masked_fill_(~mask[:, None], 0.0)
    logits = z.numpy()
    arrays: tuple[Any, ...] = (logits,)
    if isinstance(t, tuple):
        arrays = (logits, tuple(part.numpy() for part in t))
    elif t is not None:
        arrays = (logits, t.numpy())
    settings = {
        "axis": -1,
        "weight": weight,
        "sample_weight": None if s is None else s.numpy(),
        "denominator": denominator,
        **named_options(name, options),
    }
    arguments = {key: settings[key] for key in LOSSES[name]["options"]}
    if not with_grad:
        loss = getattr(xentrs, name)(*arrays, **arguments)
    else:
        loss, _ = getattr(xentrs, f"{name}_with_grad")(*arrays, out=logits, **arguments)
    return loss
