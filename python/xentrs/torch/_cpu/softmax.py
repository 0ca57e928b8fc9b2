"""Losses with a class axis on the CPU: one call of the compiled module, on the tensors' memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xentrs import _arrays
from xentrs._xentrs import compute_tensors
from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments, Summaries, fill_logsumexp
from xentrs.torch._backend import HALVES
from xentrs.torch._cpu.tensors import (
    IN_ORDER,
    aligned,
    array,
    contiguous,
    named_options,
    positive_divisors,
    readable,
)


def evaluate(
    name: str,
    call: SoftmaxArguments,
    options: Options,
    with_grad: bool,
    inplace: bool,
    summaries: Summaries | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the logits if wanted."""
    x, soft = call.input, call.is_soft
    pair = call.probabilities is not None
    call, denominator, z_loss = positive_divisors(call, options)
    target: Any = call.target
    if pair:
        target = target.resolve_neg(), readable(call.probabilities)
    elif target is not None:
        if soft:
            target = target.detach()
            if target.dtype in HALVES and x.dtype not in HALVES:
                target = target.to(x.dtype)
        target = target.resolve_neg()
    grad = None
    if with_grad:
        grad = x.detach() if inplace else _backend.empty_like(x)
    settings = {
        **named_options(name, options),
        "axis": call.axis,
        "weight": readable(call.weight),
        "sample_weight": readable(call.sample_weight),
        "z_loss": z_loss,
        "denominator": denominator,
    }
    if summaries is not None:
        logsumexp = summaries.logsumexp
        if x.dtype in HALVES:  # the compiled module has it in half precision alone
            logsumexp = None
        settings |= {"logsumexp_out": logsumexp, "argmax_out": summaries.argmax}
    arguments: tuple[Any, ...] = (
        1 if with_grad else 0,
        x.resolve_neg(),
        target,
        *IN_ORDER[name](settings),
        grad,
        None,
    )
    # It reads the tensors themselves: making arrays of them takes longer than a small loss.
    result = compute_tensors(name, *arguments)
    if result is NotImplemented and x.dtype in HALVES:  # NumPy has no bfloat16
        start = arguments[0], aligned(arguments[1])
        rest = [contiguous(a) for a in arguments[2:-2]]
        result = compute_tensors(name, *start, *rest, *arguments[-2:])
        if result is NotImplemented and grad is not None:  # overlaps a tensor, or is not aligned
            other = _backend.empty(x.shape, x.dtype, x.device)
            result = _arrays.done(compute_tensors(name, *start, *rest, other, None))
            grad.copy_(other)
        _arrays.done(result)
    elif result is NotImplemented:
        arrays: list[Any] = [array(a) for a in arguments]
        result = _arrays.class_loss(name, *arrays, name="input")
    if summaries is not None and summaries.logsumexp is not None and x.dtype in HALVES:
        fill_logsumexp(summaries.logsumexp, call, options)
    loss = result[0] if with_grad else result
    if options.reduction == "none":
        return torch.from_numpy(loss), grad
    return _backend.scalar(loss, _backend.accumulator(x.dtype)), grad
