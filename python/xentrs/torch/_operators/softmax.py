"""Cross-entropy, and the losses that are a function of the true class's -log p."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import (
    SoftmaxArguments,
    capped_logits,
    not_ignored,
    slope_of_cap,
    tempered,
)
from xentrs.torch._cpu import softmax as _cpu
from xentrs.torch._gpu import softmax as _gpu
from xentrs.torch._operators.loss import Loss

# (-log p, own options) -> first and second derivative of a loss in it, in functions of PyTorch
Derivatives: TypeAlias = Callable[[Tensor, tuple[Any, ...]], tuple[Tensor, Tensor]]


def hessian_product(
    call: SoftmaxArguments,
    options: Options,
    direction: Tensor,
    derivatives: Derivatives | None = None,
) -> Tensor:
    """Return the product of the loss's Hessian with a direction, by functions of PyTorch.

    With p the softmax, a the coefficients of -log p in the loss and u a direction in what the
    softmax takes, the Hessian of sum(a * -log p) times u is sum(a) p (u - p.u). `derivatives` are
    those of a loss that is a function of -log p of one class.
    """
    axis, cap, z = call.axis, options.softcap, options.z_loss
    dtype = _backend.accumulator(call.input.dtype)
    x, v = call.input.to(dtype), direction.to(dtype)
    if call.probabilities is not None:
        y, q = call.entries(options)
        a = torch.zeros_like(x).scatter_add(axis, y, q.to(dtype))
    elif call.is_soft:
        a = call.target.to(dtype)
    else:
        y = call.indices
        y = torch.where(not_ignored(y, tuple(options.ignored)), y, 0).unsqueeze(axis)
        a = torch.zeros_like(x).scatter(axis, y, 1.0)
    mask = call.gradient_mask(options)
    if mask is not None:  # before anything is computed, for what differentiates this
        x, v, a = (torch.where(mask, t, 0.0) for t in (x, v, a))
    u = v
    if cap:
        tanh, slope = (x / cap).tanh(), slope_of_cap(x, cap)
        x, u = torch.where(x.isinf(), x, cap * tanh), slope * v
    x, top = tempered(x, axis, options.temperature)
    u = u / options.temperature
    factor = torch.ones(call.samples, dtype=dtype, device=x.device)
    if call.sample_weight is not None:
        factor = factor * call.sample_weight.to(dtype)
    z_factor = 2.0 * z * factor
    if options.reduction == "mean":
        z_factor = z_factor / call.z_divisor(options).to(dtype) if z else z_factor
        factor = factor / call.divisor(options).to(dtype)
    factor, z_factor = factor.unsqueeze(axis), z_factor.unsqueeze(axis)
    one_hot = a
    a = (1.0 - options.label_smoothing) * a + options.label_smoothing / call.classes
    if call.weight is not None:
        a = a * call.weight.to(dtype).view(-1, *[1] * (x.dim() - axis - 1))
    a = factor * a
    p, logsumexp = x.softmax(axis), x.logsumexp(axis, keepdim=True) + top
    p_u = (p * u).sum(axis, keepdim=True)
    bend = None
    if derivatives is not None:  # its slope goes into the coefficients
        nll = -x.log_softmax(axis).gather(axis, y)
        own_slope, curvature = derivatives(nll, options.own)
        along = p_u - (one_hot * u).sum(axis, keepdim=True)
        bend = a.sum(axis, keepdim=True) * curvature * along * (p - one_hot)
        a = a * own_slope
    scale = a.sum(axis, keepdim=True) + z_factor * logsumexp
    product = scale * p * (u - p_u) + z_factor * p * p_u
    product = product if bend is None else product + bend
    if cap:
        product = slope * (product - (scale * p - a) * (2.0 / cap) * tanh * v)
    product = product / options.temperature
    product = product if mask is None else torch.where(mask, product, 0.0)
    return product.to(call.input.dtype)


class LogSumExp(torch.autograd.Function):
    """A logsumexp that is known already, as a function of the logits."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, values: Tensor, call: SoftmaxArguments, options: Options
    ) -> Tensor:
        ctx.save_for_backward(input)
        ctx.axis, ctx.options = call.axis, options
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (input,) = ctx.saved_tensors
        options = ctx.options
        x = capped_logits(SoftmaxArguments(input, None, None, None, None), options)
        grad = tempered(x, ctx.axis, options.temperature)[0].softmax(ctx.axis)
        grad = grad * (grad_output.unsqueeze(ctx.axis) / options.temperature)
        if options.softcap:
            grad = grad * slope_of_cap(input.to(grad.dtype), options.softcap)
        return grad.to(input.dtype), None, None, None


CROSS_ENTROPY = Loss(
    "cross_entropy",
    SoftmaxArguments,
    cpu=partial(_cpu.evaluate, "cross_entropy"),
    gpu=_gpu.evaluate,
    product=hessian_product,
)


def of_true_class(
    name: str, own: tuple[str, ...], derivatives: Derivatives, objective: Any
) -> Loss:
    """Return a loss that is a function of the true class's -log p, times its weight.

    `own` are its own options, as in an operator's schema, `derivatives` the first and second
    derivative in -log p, and `objective` is for the Triton kernel what `_gpu/softmax.py` says.
    """
    return Loss(
        name,
        SoftmaxArguments,
        cpu=partial(_cpu.evaluate, name),
        gpu=partial(_gpu.evaluate, objective=objective),
        product=partial(hessian_product, derivatives=derivatives),
        own=own,
    )
