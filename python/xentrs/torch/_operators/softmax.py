"""Softmax losses as operators and autograd functions.

The forward computes the loss and, where it may be needed, the gradient, from the same pass over the
logits. The backward multiplies the gradient by the upstream gradient, in place, and does nothing
where that is 1. Between the two only the gradient is kept. For float16 it is the other way round:
the logits are kept, and the backward computes the gradient.

A call on plain tensors goes to `Eager`. Whatever traces or transforms (`torch.compile`,
`torch.func`, dispatch modes) meets the operator ``xentrs::cross_entropy`` or ``xentrs::focal_loss``
instead.
"""

from __future__ import annotations

from typing import Any, TypeAlias
from weakref import ref

import torch
from torch import Tensor

from xentrs._xentrs import quick_cross_entropy
from xentrs.torch import _backend
from xentrs.torch._arguments.options import SCHEMA, Options
from xentrs.torch._arguments.softmax import SoftmaxArguments, not_ignored, sample_mask
from xentrs.torch._cpu import softmax as _cpu
from xentrs.torch._gpu import softmax as _gpu
from xentrs.torch._mode import is_eager, is_plain, is_traced, wants_gradient
from xentrs.torch._operators import gradients
from xentrs.torch._operators.define import define
from xentrs.torch._operators.gradients import is_deferred, is_unscaled
from xentrs.torch._private import SingleLevelFunction, is_graph_retained, is_view, version

# The tensors of a call, to be recalled, and its options.
_Call: TypeAlias = tuple[gradients.Remembered, Any]


def evaluate(
    call: SoftmaxArguments, options: Options, with_grad: bool, inplace: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the logits if wanted."""
    on = _gpu if _backend.uses_triton(call.input) else _cpu
    return on.evaluate(call, options, with_grad, inplace)


def quick_loss(
    input: Tensor, target: Tensor, ignored: int, label_smoothing: float, reduction: str
) -> Tensor | None:
    """Return the loss of the plainest and commonest call, if it is that, else None.

    A small call is mostly what is around the kernel, so here is as little as there can be. The
    compiled function itself sees whether the tensors fit, and makes the new ones.
    """
    with_grad = input.requires_grad and _is_grad_enabled()
    found = quick_cross_entropy(input, target, ignored, label_smoothing, reduction, with_grad)
    if found is NotImplemented:
        return None
    if not with_grad:
        return found
    # What `remember` returns, in a third of its time.
    kept = input if input.nbytes <= gradients.KEPT else ref(input)
    tensors = (kept, version(input)), (target, version(target)), None, None, None
    options = reduction, (ignored,), label_smoothing
    return Eager.apply(input, (tensors, options), found)


def compute_loss(call: SoftmaxArguments, options: Options, inplace: bool) -> Tensor:
    """Return the loss such that autograd knows its gradient."""
    input = call.input
    with_grad = wants_gradient(input)
    if not (is_eager(input) and is_plain(*call[1:])):
        loss = call_operator(call, options, with_grad and not is_deferred(input))[0]
    elif not with_grad:
        loss = evaluate(call, options, False)[0]
    elif inplace:
        if is_view(input):  # autograd cannot know of what is written to its base
            raise RuntimeError(
                f"xentrs.torch.{_name(options)}: inplace=True needs logits that are no view of "
                "another tensor (for instance, flatten what goes into the last layer, not what "
                "comes out)"
            )
        loss = InPlace.apply(input, call, options)[0]
    elif is_deferred(input):
        loss = Deferred.apply(input, call, options)
    else:
        with torch.no_grad():
            found = evaluate(call, options, True)
        remembered = gradients.remember(call, 2 if call.is_soft else 1)
        loss = Eager.apply(input, (remembered, options), found)
    dtype = call.dtype
    return loss if loss.dtype == dtype else loss.to(dtype)


# Autograd functions, for plain tensors

_is_grad_enabled = torch.is_grad_enabled


class Eager(SingleLevelFunction):
    """The gradient is there already."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, call: _Call, found: tuple[Tensor, Tensor]) -> Tensor:
        loss, grad = found
        ctx.save_for_backward(grad)
        ctx.call = call
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        if not _is_grad_enabled():
            if is_unscaled(grad_output):
                return grad, None, None
            mask = lambda: _gradient_mask(ctx, grad)  # noqa: E731
            return gradients.scaled(grad, grad_output, mask, 1), None, None
        remembered, options = ctx.call  # create_graph=True
        options = Options(*options)
        call = SoftmaxArguments(*gradients.recall(_name(options), remembered))
        return gradients.differentiable(gradient, call, options, grad_output), None, None


def _gradient_mask(ctx: Any, grad: Tensor) -> Tensor | None:
    """Return which entries of the stored gradient count."""
    (_, target, *weights), options = ctx.call
    options = Options(*options)
    if isinstance(target[0], ref) or target[0].shape == grad.shape:
        target = None
    y, w, s = gradients.recall(_name(options), [target, *weights[:2]], "the gradient")
    y = None if y is None else y.detach().long()
    mask = sample_mask(y, w, s, options)
    return mask if mask is None or grad.dim() < 2 else mask.unsqueeze(1)


class InPlace(torch.autograd.Function):
    """The gradient takes the place of the logits, and autograd knows."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, call: SoftmaxArguments, options: Options
    ) -> tuple[Tensor, ...]:
        ctx.deferred = is_deferred(input)
        loss, _ = evaluate(call, options, not ctx.deferred, inplace=not ctx.deferred)
        torch.autograd.graph.increment_version(input)
        ctx.mark_dirty(input)
        ctx.save_for_backward(input, *call[1:])
        ctx.options = options
        ctx.set_materialize_grads(False)
        return loss, input

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, used: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        options = ctx.options
        if used is not None or torch.is_grad_enabled():
            raise RuntimeError(
                f"xentrs.torch.{_name(options)}: the logits are needed again, but inplace=True has "
                "put the gradient in their place"
            )
        if grad_output is None:
            return None, None, None
        grad, *others = ctx.saved_tensors
        call = SoftmaxArguments(grad.detach(), *others)
        if ctx.deferred:
            call, options = call.times(grad_output, options)
            if is_traced(grad_output):
                return gradient(call, options), None, None
            retained = is_graph_retained()  # another backward pass needs the logits
            return evaluate(call, options, True, inplace=not retained)[1], None, None
        mask = lambda: call.gradient_mask(options)  # noqa: E731
        return gradients.scaled(call.input, grad_output, mask, call.axis), None, None


# Second derivatives


def hessian_product(call: SoftmaxArguments, options: Options, direction: Tensor) -> Tensor:
    """Return the product of the loss's Hessian with a direction, by functions of PyTorch.

    With p the softmax, a the coefficients of -log p in the loss and u a direction in the logits as
    capped, the Hessian of sum(a * -log p) times u is sum(a) p (u - p.u).
    """
    axis, cap, z = call.axis, options.softcap, options.z_loss
    dtype = _backend.accumulator(call.input.dtype)
    x, v = call.input.to(dtype), direction.to(dtype)
    if call.is_soft:
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
        capped = (x / cap).tanh()
        slope = 1.0 - capped**2
        x, u = torch.where(x.isinf(), x, cap * capped), slope * v
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
    p, logsumexp = x.softmax(axis), x.logsumexp(axis, keepdim=True)
    p_u = (p * u).sum(axis, keepdim=True)
    bend = None
    if options.gamma:  # its slope goes into the coefficients
        focal_slope, curvature = _focal_derivatives(x, y, axis, options.gamma)
        along = p_u - (one_hot * u).sum(axis, keepdim=True)
        bend = a.sum(axis, keepdim=True) * curvature * along * (p - one_hot)
        a = a * focal_slope
    scale = a.sum(axis, keepdim=True) + z_factor * logsumexp
    product = scale * p * (u - p_u) + z_factor * p * p_u
    product = product if bend is None else product + bend
    if cap:
        product = slope * (product - (scale * p - a) * (2.0 / cap) * capped * v)
    product = product if mask is None else torch.where(mask, product, 0.0)
    return product.to(call.input.dtype)


def _focal_derivatives(x: Tensor, y: Tensor, axis: int, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the first and second derivative of u^gamma l in l = -log p, where u = 1 - p."""
    nll = -x.log_softmax(axis).gather(axis, y)
    p = (-nll).exp()
    u = (-(-nll).expm1()).clamp(min=torch.finfo(x.dtype).tiny)
    p_l = torch.where(p == 0.0, 0.0, p * nll)
    ratio = p_l / u
    slope = u**gamma * (1.0 + gamma * ratio)
    curvature = gamma * u ** (gamma - 1.0) * ((gamma - 1.0) * p * ratio + 2.0 * p - p_l)
    return slope, curvature


# Operators, for what traces or transforms


def _unpack(arguments: Any) -> tuple[SoftmaxArguments, Options]:
    options = Options(*arguments[6:-1])
    return SoftmaxArguments(*arguments[:6]), options._replace(ignored=tuple(options.ignored))


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    call, options = _unpack(args)
    loss, grad = evaluate(call, options, args[-1])
    return loss, call.input.new_empty(0) if grad is None else grad


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    call, options = _unpack(args)
    shape = call.samples if options.reduction == "none" else ()
    x = call.input
    loss = x.new_empty(shape, dtype=_backend.accumulator(x.dtype))
    return loss, torch.empty_like(x) if args[-1] else x.new_empty(0)


def gradient(call: SoftmaxArguments, options: Options) -> Tensor:
    """Return the operator's gradient."""
    return call_operator(call, options, True)[1]


_TENSORS = (
    "Tensor input, Tensor target, Tensor? weight, Tensor? sample_weight, Tensor? denominator, "
    "Tensor? z_denominator"
)
_cross_entropy, _focal_loss = (
    define(
        f"{name}({_TENSORS}, {options}, bool with_grad) -> (Tensor, Tensor)",
        _forward,
        _fake,
        gradients.operator_backward(_unpack, gradient, hessian_product),
    )
    for name, options in (("cross_entropy", SCHEMA), ("focal_loss", f"{SCHEMA}, float gamma"))
)


def call_operator(
    call: SoftmaxArguments, options: Options, with_grad: bool
) -> tuple[Tensor, Tensor]:
    """Return what the operator does: the loss and the gradient."""
    if options.gamma:
        return _focal_loss(*call, *options, with_grad)
    return _cross_entropy(*call, *options[:-1], with_grad)


def _name(options: Options) -> str:
    return "focal_loss" if options.gamma else "cross_entropy"


Deferred = gradients.deferred_function(evaluate, gradient)
