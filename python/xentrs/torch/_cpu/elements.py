"""Losses without a class axis on the CPU, by the functions for arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import xentrs
from xentrs._xentrs import LOSSES
from xentrs.torch import _backend
from xentrs.torch._arguments.binary import BinaryArguments
from xentrs.torch._arguments.options import Options
from xentrs.torch._backend import HALVES
from xentrs.torch._cpu import tensors
from xentrs.torch._cpu.tensors import named_options, readable


def evaluate(
    name: str, call: BinaryArguments, options: Options, with_grad: bool, inplace: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the input if wanted."""
    x = call.input.detach().resolve_neg()
    if x.dtype in HALVES:
        return _evaluate_by_chunks(name, call, options, with_grad)
    denominator = None if call.denominator is None else call.denominator.item()
    others = [readable(t) for t in call[1:5]]
    out = None
    if with_grad and x.nbytes >= _backend.LARGE:
        out = _backend.empty(x.shape, x.dtype, x.device)
    loss, grad = _call(name, x, others, denominator, options, with_grad, out)
    if isinstance(loss, float):
        return _backend.scalar(loss, x.dtype), grad
    return torch.from_numpy(loss), grad


def _call(
    name: str,
    x: Tensor,
    others: Sequence[Tensor | None],
    denominator: float | None,
    options: Options,
    with_grad: bool,
    out: Tensor | None = None,
) -> tuple[Any, Tensor | None]:
    target, weight, pos_weight, where = (None if t is None else t.numpy() for t in others)
    assert target is not None
    settings = {
        "weight": weight,
        "pos_weight": pos_weight,
        "where": where,
        "denominator": denominator,
        **named_options(name, options),
    }
    arguments = {key: settings[key] for key in LOSSES[name]["options"]}
    if not with_grad:
        return getattr(xentrs, name)(x.numpy(), target, **arguments), None
    loss, grad = getattr(xentrs, f"{name}_with_grad")(
        x.numpy(), target, out=None if out is None else out.numpy(), **arguments
    )
    return loss, torch.from_numpy(grad) if out is None else out


def _evaluate_by_chunks(
    name: str, call: BinaryArguments, options: Options, with_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute in float32, chunk by chunk."""
    x, dtype = call.input.detach(), torch.float32
    size = tensors.CHUNK * xentrs.get_num_threads()
    columns = x.shape[-1] if x.dim() > 1 and 0 < x.shape[-1] <= size else 1
    rows = x.reshape(-1, columns)
    grad = _backend.empty(x.shape, x.dtype, x.device) if with_grad else None
    grad_rows = None if grad is None else grad.view(rows.shape)

    def as_rows(t: Tensor | None) -> Tensor | None:
        """Return the tensor in rows, or as one row that holds for all of them."""
        if t is None:
            return None
        t = t.detach().resolve_neg()
        if columns > 1 and t.shape[:-1].numel() == 1:
            return t.reshape(1, -1).expand(1, columns)
        return t.expand_as(x).reshape(rows.shape)

    others = [as_rows(t) for t in call[1:5]]
    divisor = call.divisor(options).item() if options.reduction == "mean" else None
    losses = None
    if options.reduction == "none":
        losses = torch.empty(rows.shape, dtype=dtype, device=x.device)
    total = 0.0
    for i in range(0, len(rows), max(size // columns, 1)):
        here = slice(i, i + max(size // columns, 1))
        z = rows[here].float()
        parts = []
        for t in others:
            part = t if t is None or len(t) != len(rows) else t[here]
            parts.append(part.float() if part is not None and part.dtype in HALVES else part)
        loss, _ = _call(name, z, parts, divisor, options, with_grad, z if with_grad else None)
        if grad_rows is not None:
            grad_rows[here] = z
        if losses is not None:
            losses[here] = torch.from_numpy(loss)
        else:
            total += loss
    if losses is not None:
        return losses.view(x.shape), grad
    if divisor == 0.0 and call.denominator is None:
        total = float("nan")
    return _backend.scalar(total, dtype), grad
