"""The binary loss as operator and autograd functions, as in `softmax.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xentrs.torch import _backend
from xentrs.torch._arguments.binary import BinaryArguments, element_mask
from xentrs.torch._arguments.options import Options
from xentrs.torch._cpu import binary as _cpu
from xentrs.torch._gpu import binary as _gpu
from xentrs.torch._mode import is_eager, is_plain, wants_gradient
from xentrs.torch._operators import gradients
from xentrs.torch._operators.define import define
from xentrs.torch._operators.gradients import is_deferred

_NAME = "binary_cross_entropy_with_logits"


def evaluate(
    call: BinaryArguments, options: Options, with_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the logits if wanted."""
    on = _gpu if _backend.uses_triton(call.input) else _cpu
    return on.evaluate(call, options, with_grad)


def compute_loss(call: BinaryArguments, options: Options) -> Tensor:
    """Return the loss, in the accumulator's dtype, such that autograd knows its gradient."""
    input = call.input
    with_grad = wants_gradient(input)
    if not (is_eager(input) and is_plain(*call[1:])):
        return _call_operator(call, options, with_grad and not is_deferred(input))[0]
    if with_grad:
        function = Deferred if is_deferred(input) else Eager
        return function.apply(input, call, options)
    return evaluate(call, options, False)[0]


# Autograd function, for plain tensors


class Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, call: BinaryArguments, options: Options) -> Tensor:
        loss, grad = evaluate(call, options, True)
        ctx.save_for_backward(grad)
        ctx.call = gradients.remember(call, 2), options
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        remembered, options = ctx.call
        if not torch.is_grad_enabled():

            def mask() -> Tensor | None:
                others = (remembered[2], remembered[4])
                return element_mask(*gradients.recall(_NAME, others, "the gradient"))

            return gradients.scaled(grad, grad_output, mask), None, None
        # create_graph=True
        call = BinaryArguments(*gradients.recall(_NAME, remembered))
        return gradients.differentiable(_gradient, call, options, grad_output), None, None


# Second derivative


def _second_product(call: BinaryArguments, options: Options, direction: Tensor) -> Tensor:
    """Return the second derivative of each element's loss times a direction.

    By functions of PyTorch, so that it can be differentiated.
    """
    x = call.input.to(_backend.accumulator(call.input.dtype))
    mask = call.mask()
    if mask is not None:  # before anything is computed, for what differentiates this
        x = torch.where(mask, x, 0.0)
    e = options.label_smoothing
    t = (1.0 - e) * call.target.to(x.dtype) + 0.5 * e
    scale = (1.0 - t) + (t if call.pos_weight is None else t * call.pos_weight)
    if call.weight is not None:
        scale = scale * call.weight
    second = scale * x.sigmoid() * (-x).sigmoid()
    if options.reduction == "mean":
        second = second / call.divisor().to(x.dtype)
    if mask is not None:
        second = torch.where(mask, second, 0.0)
    return second.to(call.input.dtype) * call.upstream(direction, options)


# Operator, for what traces or transforms


def _unpack(arguments: Any) -> tuple[BinaryArguments, Options]:
    reduction, label_smoothing = arguments[6:8]
    return BinaryArguments(*arguments[:6]), Options(reduction, label_smoothing=label_smoothing)


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    call, options = _unpack(args)
    loss, grad = evaluate(call, options, args[-1])
    return loss, call.input.new_empty(0) if grad is None else grad


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    call, options = _unpack(args)
    x = call.input
    shape = x.shape if options.reduction == "none" else ()
    loss = x.new_empty(shape, dtype=_backend.accumulator(x.dtype))
    return loss, x.new_empty(x.shape) if args[-1] else x.new_empty(0)


def _gradient(call: BinaryArguments, options: Options) -> Tensor:
    """Return the operator's gradient."""
    return _call_operator(call, options, True)[1]


_operator = define(
    f"{_NAME}(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, Tensor? where, "
    "Tensor? denominator, str reduction, float label_smoothing, bool with_grad) "
    "-> (Tensor, Tensor)",
    _forward,
    _fake,
    gradients.operator_backward(_unpack, _gradient, _second_product),
)


def _call_operator(
    call: BinaryArguments, options: Options, with_grad: bool
) -> tuple[Tensor, Tensor]:
    return _operator(*call, options.reduction, options.label_smoothing, with_grad)


Deferred = gradients.deferred_function(evaluate, _gradient)
