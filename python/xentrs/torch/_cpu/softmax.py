"""Softmax losses on the CPU: one call of the compiled module, on the tensors' own memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xentrs import _arrays, _xentrs
from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments
from xentrs.torch._arguments.tensors import as_denominator
from xentrs.torch._backend import HALVES
from xentrs.torch._cpu.chunks import evaluate_by_chunks
from xentrs.torch._cpu.tensors import readable


def evaluate(
    call: SoftmaxArguments, options: Options, with_grad: bool, inplace: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the logits if wanted."""
    if options.gamma:
        raise NotImplementedError("xentrs.torch.focal_loss has no kernels for the CPU yet")
    x, target, weight, sample_weight = call[:4]
    soft = call.is_soft
    if not options.is_plain or (soft and x.dtype in HALVES):
        return evaluate_by_chunks(call, options, with_grad, inplace)
    denominator = None if call.denominator is None else call.denominator.item()
    if denominator is not None and denominator < 0.0:  # the sum of negative weights
        call = call._replace(denominator=as_denominator(-denominator, x))
        return _negated(*evaluate(call, options, with_grad, inplace))
    if soft:
        target = target.detach()
        target = target.to(x.dtype) if target.dtype in HALVES else target
    grad = None
    if with_grad:
        grad = x.detach() if inplace else _backend.empty_like(x)
    arguments: tuple[Any, ...] = (
        1 if with_grad else 0,
        x.resolve_neg(),
        target.resolve_neg(),
        call.axis,
        readable(weight),
        readable(sample_weight),
        options.ignored,
        options.label_smoothing,
        options.reduction,
        denominator,
        None,
        grad,
        None,
    )
    # It reads the tensors themselves: making arrays of them takes longer than a small loss.
    result = _xentrs.cross_entropy_of_tensors(*arguments)
    if result is NotImplemented:
        if x.dtype in HALVES:
            return evaluate_by_chunks(call, options, with_grad, inplace)
        arrays: list[Any] = [a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments]
        result = _arrays.class_loss(_xentrs.cross_entropy, "input", *arrays)
    loss = result[0] if with_grad else result
    if options.reduction == "none":
        return torch.from_numpy(loss), grad
    return _backend.scalar(loss, _backend.accumulator(x.dtype)), grad


def _negated(loss: Tensor, grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return -loss, None if grad is None else grad.neg_()
