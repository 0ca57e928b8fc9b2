"""What the losses' backward passes have in common.

The forward stores the gradient, and the backward multiplies it by the upstream gradient, in its own
memory where it can. The gradient of float16 is deferred: the backward computes it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from xentrs._xentrs import is_one
from xentrs.torch import _backend
from xentrs.torch._arguments.tensors import masked
from xentrs.torch._gpu.scale import scale
from xentrs.torch._mode import is_compiling
from xentrs.torch._private import is_batched, is_graph_retained, version

# A stored gradient, times the upstream gradient


def is_unscaled(grad_output: Tensor) -> bool:
    """Whether the stored gradient is the result: times 1, and no other backward needs it."""
    return (
        type(grad_output) is Tensor
        and is_last()
        and not grad_output.is_neg()
        and is_one(grad_output)
    )


def is_last() -> bool:
    """Whether no other backward pass will come, so that what it would need can be freed."""
    return not is_compiling() and not is_graph_retained()


def scaled(
    grad: Tensor,
    grad_output: Tensor,
    gradient_mask: Callable[[], Tensor | None],
    axis: int | None = None,
) -> Tensor:
    """Return the stored gradient times the upstream gradient, if possible in its own memory.

    `gradient_mask()` says which entries count, and broadcasts to `grad`: the others stay 0, also
    where NaN or inf comes from upstream. `axis` is the axis of `grad` that `grad_output` does not
    have, unless that is a number.
    """
    traced = is_compiling() or type(grad_output) is not Tensor
    if not traced:
        if is_graph_retained():
            grad = grad.clone()  # another backward pass may need it as it is
        if grad_output.is_neg():
            grad_output = grad_output.resolve_neg()
        if not is_batched(grad_output):
            grad_output = _number(grad_output)
        if is_one(grad_output):
            return grad
    if axis is not None and grad_output.dim():
        grad_output = grad_output.unsqueeze(axis)
    if traced or is_batched(grad_output):
        return (grad * masked(grad_output, gradient_mask())).to(grad.dtype)
    if not _backend.uses_triton(grad):
        if not math.isfinite(grad_output.sum().item()):
            grad_output = masked(grad_output, gradient_mask())
        return grad.mul_(_narrowed(grad_output, grad))
    mask = gradient_mask()
    if mask is not None and not mask.dim():
        mask, grad_output = None, masked(grad_output, mask)
    place = (1, 1) if mask is None else _places(grad, mask)
    # A view may have gaps.
    whole = grad.untyped_storage().nbytes() == grad.numel() * grad.itemsize
    if grad_output.dim() or place is None or not whole:
        return grad.mul_(masked(grad_output, mask))
    scale(grad, grad_output, mask, *place)
    return grad


def _number(grad_output: Tensor) -> Tensor:
    """Return the number that an expanded tensor repeats, as the backward of a sum makes it."""
    steps = zip(grad_output.shape, grad_output.stride(), strict=True)
    if not grad_output.numel() or any(n > 1 and step for n, step in steps):
        return grad_output
    return grad_output[(0,) * grad_output.dim()]


def _narrowed(grad_output: Tensor, grad: Tensor) -> Tensor:
    """Return factors of rows, of a wider dtype than the gradient, in its dtype if it holds them.

    The product has the same bits, and PyTorch is several times as fast where the dtypes agree.
    """
    if grad_output.dtype == grad.dtype or not 0 < 8 * grad_output.numel() <= grad.numel():
        return grad_output
    narrowed = grad_output.to(grad.dtype)
    return narrowed if torch.equal(narrowed.to(grad_output.dtype), grad_output) else grad_output


def _places(grad: Tensor, mask: Tensor) -> tuple[int, int] | None:
    """Return which entry of a mask belongs to which of a gradient in memory, as `scale` has it."""
    if mask.shape == grad.shape:
        return (1, 1) if grad.is_contiguous() else None
    axes = [i for i, (n, m) in enumerate(zip(grad.shape, mask.shape, strict=False)) if n != m]
    if len(axes) != 1 or mask.dim() != grad.dim():
        return None
    (axis,) = axes
    if grad.is_contiguous():
        return grad.shape[axis], prod(grad.shape[axis + 1 :])
    return (grad.shape[axis], 1) if grad.movedim(axis, -1).is_contiguous() else None


# What a second derivative needs: the tensors of the call, of which large ones are not kept alive.
Remembered: TypeAlias = Sequence[tuple[Tensor | weakref.ref[Tensor], int] | None]

# The most bytes of a tensor that is kept.
KEPT = 1 << 24


def remember(tensors: Sequence[Tensor | None], weak: int) -> Remembered:
    """Return the tensors and their versions; of the first `weak`, references if they are large."""
    return [
        None if t is None else (weakref.ref(t) if i < weak and t.nbytes > KEPT else t, version(t))
        for i, t in enumerate(tensors)
    ]


def recall(name: str, remembered: Remembered, what: str = "a second derivative") -> list[Any]:
    """Return the tensors, or say why they cannot be had."""
    tensors: list[Any] = []
    for found in remembered:
        if found is None:
            tensors.append(None)
            continue
        tensor = found[0] if isinstance(found[0], Tensor) else found[0]()
        if is_compiling():  # does not know versions
            tensors.append(tensor)
            continue
        if tensor is None or version(tensor) != found[1]:
            how = "changed" if tensor is not None else f"freed (of more than {KEPT >> 20} MiB)"
            raise RuntimeError(
                f"xentrs.torch.{name}: {what} needs the inputs, but one was {how} after the "
                "loss had been computed"
            )
        tensors.append(tensor)
    return tensors


# A deferred gradient (decision 26)


def is_deferred(input: Tensor) -> bool:
    """Whether the backward computes the gradient: that of float16.

    A gradient of a mean has numbers too small for float16. Loss scaling saves them only if they are
    multiplied before they are rounded.
    """
    return input.dtype == torch.float16


def differentiable(
    gradient: Callable[..., Tensor], call: Any, options: Any, grad_output: Tensor
) -> Tensor:
    """Return the gradient times the upstream gradient such that it can be differentiated.

    `gradient(call, options)` is the operator's.
    """
    dtype = call.input.dtype
    if is_deferred(call.input):
        call = call._replace(input=call.input.float())
    return (gradient(call, options) * call.upstream(grad_output, options)).to(dtype)


def deferred_gradient(
    gradient: Callable[..., Tensor], call: Any, options: Any, grad_output: Tensor
) -> Tensor:
    """Return the same, rounded only once if it will not be differentiated."""
    if torch.is_grad_enabled() and (grad_output.requires_grad or call.input.requires_grad):
        return differentiable(gradient, call, options, grad_output)
    return gradient(*call.times(grad_output, options))


def operator_backward(
    unpack: Callable[..., tuple[Any, Any]],
    gradient: Callable[..., Tensor],
    product: Callable[..., Tensor],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """Return the backward of an operator with one gradient, that in its first argument.

    `unpack(arguments)` returns the call and its options, `product(call, options, direction)` the
    derivative of the gradient in a direction.
    """

    def backward(
        arguments: list[Any], grads: tuple[Tensor, ...], grad_output: Tensor | None, directions: Any
    ) -> tuple[Tensor | None, ...]:
        call, options = unpack(arguments)
        result = None
        if grad_output is not None and not arguments[-1]:
            result = deferred_gradient(gradient, call, options, grad_output)
        elif grad_output is not None:
            result = (grads[0] * call.upstream(grad_output, options)).to(call.input.dtype)
        if directions[0] is not None:
            second = product(call, options, directions[0])
            result = second if result is None else result + second
        return result, *[None] * (len(arguments) - 1)

    return backward


def operator_jvp(
    unpack: Callable[..., tuple[Any, Any]],
    gradient: Callable[..., Tensor],
    product: Callable[..., Tensor],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the forward-mode derivative of the same operator, of both of its outputs."""

    def jvp(
        arguments: list[Any], grads: tuple[Tensor, ...], directions: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        (direction,) = directions
        call, options = unpack(arguments)
        with_grad = arguments[-1]
        if with_grad and not is_deferred(call.input):
            grad = grads[0]
        else:  # not rounded to half precision: its numbers may be too small for that
            x = call.input
            call_in_full = call._replace(input=x.float()) if is_deferred(x) else call
            grad = gradient(call_in_full, options)
        loss = call.along(grad, direction, options).to(_backend.accumulator(call.input.dtype))
        if not with_grad:
            return loss, torch.zeros_like(grads[0])
        return loss, product(call, options, direction)

    return jvp
