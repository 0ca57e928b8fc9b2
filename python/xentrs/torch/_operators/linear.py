"""Cross-entropy of a linear layer's outputs, which never exist all at once.

The forward goes through the samples in chunks: their logits by a matrix product, loss and gradient
in their place by the softmax kernels, and from that, while the chunk is in memory, the gradients of
input, weight and bias by two more products. The backward multiplies these by the upstream gradient.
For ``reduction="none"``, where that is a number for each sample, the forward takes the losses alone
and the backward does all of this.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from xentrs.torch import _backend
from xentrs.torch._arguments.linear import LinearArguments, gradient_masks
from xentrs.torch._arguments.options import SHARED, Options, flat, unflat
from xentrs.torch._arguments.softmax import check_indices, sample_mask
from xentrs.torch._arguments.tensors import masked
from xentrs.torch._mode import differentiates, is_eager, is_plain, is_traced, wants_gradient
from xentrs.torch._operators import gradients
from xentrs.torch._operators.define import define
from xentrs.torch._operators.gradients import is_deferred, is_last
from xentrs.torch._operators.softmax import CROSS_ENTROPY
from xentrs.torch._private import is_batched

_NAME = "linear_cross_entropy"

# Logits of a chunk, and samples at least, as products of fewer are slower. More take more memory
# (decision 25).
_ELEMENTS = 1 << 22
_ELEMENTS_ON_GPU = 1 << 27
_LEAST_ROWS = 256


def chunk_rows(call: LinearArguments) -> int:
    """Return a good number of samples for a chunk."""
    elements = _ELEMENTS if call.input.device.type == "cpu" else _ELEMENTS_ON_GPU
    return max(elements // max(prod(call.linear_weight.shape[:-1]), 1), _LEAST_ROWS)


def evaluate(
    call: LinearArguments, options: Options, rows: int, wanted: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the loss, in the accumulator's dtype, and those of the gradients that are wanted."""
    x, n, width = call.input.detach(), *call.input.shape
    classes = call.linear_weight.shape[:-1]
    outputs = prod(classes)
    dtype = _backend.accumulator(x.dtype)
    # A CPU is no faster at products of half precisions, and rounds every result.
    kind = dtype if x.device.type == "cpu" else x.dtype
    weight = call.linear_weight.detach().reshape(outputs, width).to(kind)
    bias = call.linear_bias
    bias = None if bias is None else bias.detach().reshape(outputs).to(kind)
    whole = call.loss()
    if x.is_cpu and not whole.is_soft:
        check_indices(whole, options.ignored)  # all, before anything is computed
    mean = options.reduction == "mean"
    divisor = whole.divisor(options) if mean else None
    z_divisor = whole.z_divisor(options) if mean and options.z_loss else None
    # A row that does not count is not read: 0 times NaN is not 0 in the products.
    used = call.row_mask(options)
    if used is not None and x.is_cpu and used.all():
        used = None

    empty = _backend.empty
    grad_x = empty((n, width), x.dtype, x.device) if wanted[0] else None
    grad_weight = empty((outputs, width), dtype, x.device).zero_() if wanted[1] else None
    grad_bias = empty((outputs,), dtype, x.device).zero_() if wanted[2] else None
    losses = [x.new_empty((0, *classes[1:]) if options.reduction == "none" else 0, dtype=dtype)]
    buffer = empty((min(rows, n), outputs), kind, x.device)
    with torch.autocast(x.device.type, enabled=False):
        for i in range(0, n, rows):
            here = slice(i, i + rows)
            x_here = x[here].to(kind)
            if used is not None:
                x_here = torch.where(used[here], x_here, 0.0)
            logits = buffer[: len(x_here)]
            if bias is None:
                torch.mm(x_here, weight.t(), out=logits)
            else:
                torch.addmm(bias, x_here, weight.t(), out=logits)
            s = call.sample_weight
            part = whole._replace(
                input=logits.view(-1, *classes),
                target=call.target[here],
                sample_weight=None if s is None else s[here],
                denominator=divisor,
                z_denominator=z_divisor,
            )
            loss, _ = CROSS_ENTROPY.evaluate(part, options, any(wanted), any(wanted))
            losses.append(loss if options.reduction == "none" else loss[None])
            grad_logits = logits  # in their place
            if grad_x is not None and kind == x.dtype:
                torch.mm(grad_logits, weight, out=grad_x[here])
            elif grad_x is not None:
                grad_x[here] = grad_logits @ weight
            if grad_weight is not None and kind == dtype:
                grad_weight.addmm_(grad_logits.t(), x_here)
            elif grad_weight is not None:
                grad_weight += grad_logits.t() @ x_here
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0, dtype=dtype)
    loss = torch.cat(losses)
    if options.reduction != "none":
        loss = loss.sum()
        if divisor is not None and call.denominator is None:
            loss = torch.where(divisor == 0.0, math.nan, loss)
    grads = [
        None if g is None or like is None else g.to(x.dtype).view(like.shape)
        for g, like in zip((grad_x, grad_weight, grad_bias), call[:3], strict=True)
    ]
    return loss, grads


def compute_loss(call: LinearArguments, options: Options, rows: int) -> Tensor:
    """Return the loss such that autograd knows its gradients."""
    wanted = [t is not None and wants_gradient(t) for t in call[:3]]
    if is_eager(call.input) and is_plain(*call[1:]):
        if any(wanted):
            return LinearCrossEntropy.apply(*call[:3], call, options, rows)
        return evaluate(call, options, rows, wanted)[0]
    forward = any([t is not None and differentiates(t) for t in call[:3]])
    if options.reduction == "none" and (forward or any(wanted)):
        used = call.row_mask(options)
        if used is not None:  # 0 times NaN is not 0 in the products
            call = call._replace(input=torch.where(used, call.input, 0.0))
        loss = call.loss()._replace(input=_logits(call))
        return CROSS_ENTROPY.call_operator(loss, options, True)[0]
    return _call_operator(call, options, rows, wanted)[0]


def _logits(call: LinearArguments) -> Tensor:
    bias = None if call.linear_bias is None else call.linear_bias.reshape(-1)
    logits = linear(call.input, call.linear_weight.flatten(0, -2), bias)
    return logits.view(-1, *call.linear_weight.shape[:-1])


# Autograd function, for plain tensors


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        call: LinearArguments,
        options: Options,
        rows: int,
    ) -> Tensor:
        ctx.options, ctx.rows, ctx.wanted = options, rows, list(ctx.needs_input_grad[:3])
        # Whether the backward computes the gradients.
        ctx.deferred = options.reduction == "none" or is_deferred(input)
        if ctx.deferred:
            loss, _ = evaluate(call, options, rows, [False] * 3)
            ctx.save_for_backward(*call)
        else:
            loss, grads = evaluate(call, options, rows, ctx.wanted)
            ctx.save_for_backward(*grads)
            ctx.remembered = gradients.remember(call, 4 if call.loss().is_soft else 3)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        options, saved = ctx.options, ctx.saved_tensors
        twice = torch.is_grad_enabled()  # create_graph=True
        if twice and options.reduction == "none":
            raise RuntimeError(
                f"xentrs.torch.{_NAME} with reduction='none' cannot be differentiated twice"
            )
        if twice:
            tensors = saved if ctx.deferred else gradients.recall(_NAME, ctx.remembered)
            grads = _differentiable(
                LinearArguments(*tensors), options, ctx.rows, ctx.wanted, grad_output
            )
        elif ctx.deferred and (is_traced(grad_output) or is_batched(grad_output)):
            grads = _deferred_gradients(
                LinearArguments(*saved), options, ctx.rows, ctx.wanted, grad_output
            )
        elif ctx.deferred:
            call, options = LinearArguments(*saved).times(grad_output, options)
            grads = evaluate(call, options, ctx.rows, ctx.wanted)[1]
        else:
            remembered = ctx.remembered
            if is_last():
                ctx.remembered = None  # a loss that is kept does not keep the tensors of its call
            masks = [lambda i=i: _gradient_masks(remembered, options)[i] for i in range(3)]
            grads = [
                None if g is None else gradients.scaled(g, grad_output, mask)
                for g, mask in zip(saved, masks, strict=True)
            ]
        return *grads, None, None, None


def _gradient_masks(remembered: Any, options: Options) -> list[Tensor | None]:
    """Return which entries of the stored gradients count."""
    _, _, _, target, *others = remembered
    soft = isinstance(target[0], weakref.ref) or target[0].is_floating_point()
    y, w, s = gradients.recall(_NAME, [None if soft else target, *others[:2]], "the gradient")
    y = None if y is None else y.detach().long()
    return gradient_masks(sample_mask(y, w, s, options))


# Operator, for what traces or transforms


def _unpack(args: Any) -> tuple[LinearArguments, Options, int, list[bool]]:
    return LinearArguments(*args[:8]), unflat(args[8:-2], tuple(SHARED)), args[-2], args[-1]


def _forward(*args: Any) -> tuple[Tensor, ...]:
    call, options, rows, wanted = _unpack(args)
    loss, grads = evaluate(call, options, rows, wanted)
    return loss, *[call.input.new_empty(0) if g is None else g for g in grads]


def _fake(*args: Any) -> tuple[Tensor, ...]:
    call, options, _, wanted = _unpack(args)
    x = call.input
    shape = call.loss().samples if options.reduction == "none" else ()
    grads = [
        x.new_empty(0 if like is None or not want else like.shape)
        for like, want in zip(call[:3], wanted, strict=True)
    ]
    return x.new_empty(shape, dtype=_backend.accumulator(x.dtype)), *grads


def _backward(
    arguments: list[Any], grads: tuple[Tensor, ...], grad_output: Tensor | None, directions: Any
) -> tuple[Tensor | None, ...]:
    call, options, rows, wanted = _unpack(arguments)
    results: list[Tensor | None] = [None, None, None]
    if grad_output is not None and is_deferred(call.input):
        tensors = [grad_output, *[t for t in call[:3] if t is not None]]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            results = _differentiable(call, options, rows, wanted, grad_output)
        else:
            results = _deferred_gradients(call, options, rows, wanted, grad_output)
    elif grad_output is not None:
        upstreams = call.upstreams(grad_output, options)
        results = [
            (g * upstream).to(g.dtype) if want else None
            for g, upstream, want in zip(grads, upstreams, wanted, strict=True)
        ]
    directions = [d if want else None for d, want in zip(directions, wanted, strict=True)]
    if any(d is not None for d in directions):
        second = _second(call, options, directions)
        results = [b if a is None else a + b for a, b in zip(results, second, strict=True)]
    third = results[2] if call.linear_bias is not None else None
    return *results[:2], third, *[None] * (len(arguments) - 3)


def _jvp(
    arguments: list[Any], grads: tuple[Tensor, ...], directions: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...]:
    call, options, rows, wanted = _unpack(arguments)
    # Gradients in the directions; float16 would round their small numbers.
    moved = [d is not None for d in directions]
    exact = grads
    if is_deferred(call.input) or any(m and not w for m, w in zip(moved, wanted, strict=True)):
        in_full = _in_full(call) if is_deferred(call.input) else call
        exact = _call_operator(in_full, options, rows, moved)[1:]
    directions = tuple(
        None if d is None else masked(d, mask)
        for d, mask in zip(directions, call.masks(options), strict=True)
    )
    dtype = _backend.accumulator(call.input.dtype)
    loss = call.input.new_zeros((), dtype=dtype)
    for g, d in zip(exact, directions, strict=True):
        loss = loss if d is None else loss + (g.to(dtype) * d.to(dtype)).sum()
    if not any(wanted):
        return loss, *[torch.zeros_like(g) for g in grads]
    second = _second(call, options, directions)
    # As contiguous as the gradients are, whatever the strides of what they are gradients in.
    changes = [
        s.contiguous() if want else torch.zeros_like(g)
        for s, g, want in zip(second, grads, wanted, strict=True)
    ]
    return loss, *changes


_OPTIONS = ", ".join(f"{kind} {option}" for option, kind in SHARED.items())
_operator = define(
    f"{_NAME}(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, "
    "Tensor? weight, Tensor? sample_weight, Tensor? denominator, Tensor? z_denominator, "
    f"{_OPTIONS}, int rows, bool[] with_grad) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    _backward,
    _jvp,
    differentiated=3,
)


def _call_operator(
    call: LinearArguments, options: Options, rows: int, wanted: list[bool]
) -> tuple[Tensor, ...]:
    return _operator(*call, *flat(options, tuple(SHARED)), rows, wanted)


def _differentiable(
    call: LinearArguments, options: Options, rows: int, wanted: list[bool], grad_output: Tensor
) -> list[Tensor | None]:
    """Return the gradients times the upstream gradient such that they can be differentiated."""
    dtype = call.input.dtype
    if is_deferred(call.input):
        call = _in_full(call)
    grads = _call_operator(call, options, rows, wanted)[1:]
    upstreams = call.upstreams(grad_output, options)
    return [
        (g * upstream).to(dtype) if want else None
        for g, upstream, want in zip(grads, upstreams, wanted, strict=True)
    ]


def _in_full(call: LinearArguments) -> LinearArguments:
    """Return a call of half precision as one of float32."""
    x, w, b = call[:3]
    b = None if b is None else b.float()
    return call._replace(input=x.float(), linear_weight=w.float(), linear_bias=b)


def _deferred_gradients(
    call: LinearArguments, options: Options, rows: int, wanted: list[bool], grad_output: Tensor
) -> list[Tensor | None]:
    """Return the same, rounded only once, not to be differentiated."""
    call, options = call.times(grad_output, options)
    grads = _call_operator(call, options, rows, wanted)[1:]
    return [g if want else None for g, want in zip(grads, wanted, strict=True)]


def _second(call: LinearArguments, options: Options, directions: Any) -> list[Tensor]:
    """Return the derivatives of the gradients in these directions; here all logits exist.

    With logits z = x W' + b and their gradient G, the gradients are G W, G' x and the sum of G.
    """
    classes = call.linear_weight.shape[:-1]
    x, w = call.input, call.linear_weight.reshape(prod(classes), -1)
    used = call.row_mask(options)
    if used is not None:  # before anything is computed
        x = torch.where(used, x, 0.0)
    logits = linear(x, w, None if call.linear_bias is None else call.linear_bias.reshape(-1))
    loss = call.loss()._replace(input=logits.view(-1, *classes))
    g = CROSS_ENTROPY.gradient(loss, options).reshape(logits.shape)
    along_x, along_w, along_b = directions
    if used is not None and along_x is not None:
        along_x = torch.where(used, along_x, 0.0)
    along = torch.zeros_like(logits)
    by_x, by_w = torch.zeros_like(x), torch.zeros_like(w)
    if along_x is not None:
        along = along + along_x @ w.t()
        by_w = by_w + g.t() @ along_x
    if along_w is not None:
        along_w = along_w.reshape(w.shape)
        along = along + x @ along_w.t()
        by_x = by_x + g @ along_w
    if along_b is not None:
        along = along + along_b.reshape(-1)
    product = CROSS_ENTROPY.product(loss, options, along.view(-1, *classes))
    product = product.reshape(logits.shape)
    by_x = by_x + product @ w
    by_w = by_w + product.t() @ x
    by_x = by_x if used is None else torch.where(used, by_x, 0.0)
    return [by_x, by_w.view(call.linear_weight.shape), product.sum(0).view(classes)]
