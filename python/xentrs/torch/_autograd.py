"""What the losses share of autograd: scaling a stored gradient, and operators that are traced."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias, no_type_check

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from xentrs._xentrs import is_one
from xentrs.torch import _backend
from xentrs.torch._backend import Kernel, _is_compiling

if TYPE_CHECKING:
    import triton.language as tl

_LIBRARY = torch.library.Library("xentrs", "FRAGMENT")


# The gradient that the forward left, times what arrives at the loss


@Kernel
@no_type_check
def _scale(grad, factor, counts, classes, inner, n, BLOCK: tl.constexpr):
    # To read the factor here spares waiting for it on the host; nothing moves where it is 1.
    f = tl.load(factor)
    if f != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(grad + i, mask=i < n)
        g = (g.to(f.dtype) * f).to(g.dtype)
        if counts is not None:  # noqa: SIM102 (known when the kernel is compiled)
            if (f != f) | (tl.abs(f) == float("inf")):  # times 0 that is NaN
                sample = i // classes // inner * inner + i % inner
                g = tl.where(tl.load(counts + sample, mask=i < n, other=0) != 0, g, 0.0)
        tl.store(grad + i, g, mask=i < n)


keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph


def is_traced(*arriving: Tensor) -> bool:
    """Whether a backward is compiled, or what arrives has operations of its own.

    Then nothing is done in place, and nothing but operators is called.
    """
    return _is_compiling() or not _backend.is_plain(*arriving)


def is_batched(factor: Tensor) -> bool:
    """Whether many numbers arrive at once (`is_grads_batched`), so that one gradient is many."""
    return _backend.has_transforms() or torch._C._functorch.is_legacy_batchedtensor(factor)


def counted(factor: Tensor, counts: Tensor | None) -> Tensor:
    """Return what arrives at the loss, 0 where the gradient is 0 whatever arrives."""
    return factor if counts is None else torch.where(counts, factor, 0.0)


def is_done(factor: Tensor) -> bool:
    """Whether the stored gradient is what is returned: 1 arrives, and nobody needs it again."""
    return (
        type(factor) is Tensor
        and not _is_compiling()
        and not keeps_graph()
        and not factor.is_neg()
        and is_one(factor)
    )


def scaled(
    grad: Tensor, factor: Tensor, counts: Callable[[], Tensor | None], axis: int | None = None
) -> Tensor:
    """Return the stored gradient times what arrives at the loss, if possible in its own memory.

    `counts()` says which of its entries count, and broadcasts to `grad`: the others stay 0, also
    where NaN or inf arrives. `axis` is the axis of `grad` that `factor` does not have, unless it is
    a number.
    """
    traced = _is_compiling() or type(factor) is not Tensor
    if not traced:
        if keeps_graph():
            grad = grad.clone()  # another backward pass may need it as it is
        if factor.is_neg():
            factor = factor.resolve_neg()
        if is_one(factor):
            return grad
    if axis is not None and factor.dim():
        factor = factor.unsqueeze(axis)
    if traced or is_batched(factor):
        return (grad * counted(factor, counts())).to(grad.dtype)
    if not _backend.uses_triton(grad):
        if not math.isfinite(factor.sum().item()):
            factor = counted(factor, counts())
        return grad.mul_(factor)
    found = counts()
    if found is not None and not found.dim():
        found, factor = None, counted(factor, found)
    n = grad.numel()
    place = (1, 1) if found is None else _place(grad, found)
    # A view may have gaps.
    whole = grad.untyped_storage().nbytes() == n * grad.itemsize
    if factor.dim() or place is None or not whole:
        return grad.mul_(counted(factor, found))
    block = 4096
    if n:
        factor = factor.to(_backend.accumulator(grad.dtype))
        found = None if found is None else found.contiguous()
        _scale[(-(-n // block),)](
            grad, factor, found, *place, n, BLOCK=block, num_warps=8
        )  # fmt: skip
    return grad


def _place(grad: Tensor, counts: Tensor) -> tuple[int, int] | None:
    """Return how many entries of a gradient, in memory, share what counts, and in what steps."""
    if counts.shape == grad.shape:
        return (1, 1) if grad.is_contiguous() else None
    axes = [i for i, (n, m) in enumerate(zip(grad.shape, counts.shape, strict=False)) if n != m]
    if len(axes) != 1 or counts.dim() != grad.dim():
        return None
    (axis,) = axes
    if grad.is_contiguous():
        return grad.shape[axis], prod(grad.shape[axis + 1 :])
    return (grad.shape[axis], 1) if grad.movedim(axis, -1).is_contiguous() else None


# What a second derivative needs: tensors, of which large ones are not kept alive for it.
Remembered: TypeAlias = Sequence[tuple[Tensor | weakref.ref[Tensor], int] | None]

# The most bytes of a tensor that is kept.
KEPT = 1 << 24


def remember(tensors: Sequence[Tensor | None], weak: int) -> Remembered:
    """Return the tensors as they are now; of the first ones only references if they are large."""
    return [
        None if t is None else (weakref.ref(t) if i < weak and t.nbytes > KEPT else t, t._version)
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
        if _is_compiling():  # does not know versions
            tensors.append(tensor)
            continue
        if tensor is None or tensor._version != found[1]:
            how = "changed" if tensor is not None else f"freed (of more than {KEPT >> 20} MiB)"
            raise RuntimeError(
                f"xentrs.torch.{name}: {what} needs the inputs, but one was {how} after the "
                "loss had been computed"
            )
        tensors.append(tensor)
    return tensors


# Where the gradient waits for what it is multiplied by


def is_late(input: Tensor) -> bool:
    """Whether the gradient is computed in the backward: that of float16.

    A gradient of a mean has numbers too small for float16. Loss scaling saves them only if they
    are multiplied before they are rounded.
    """
    return input.dtype == torch.float16


def again(gradient: Callable[..., Tensor], call: Any, options: Any, factor: Tensor) -> Tensor:
    """Return a gradient, multiplied by what arrives at the loss, that can be differentiated.

    `gradient(call, options)` is the operator's.
    """
    dtype = call.input.dtype
    if is_late(call.input):
        call = call._replace(input=call.input.float())
    return (gradient(call, options) * call.arriving(factor, options)).to(dtype)


def late_gradient(
    gradient: Callable[..., Tensor],
    times: Callable[..., tuple[Any, Any]],
    call: Any,
    options: Any,
    factor: Tensor,
) -> Tensor:
    """Return the same where it is rounded once, if it is not to be differentiated.

    `times(call, options, factor)` returns the call and the options whose gradient is multiplied by
    what arrives.
    """
    if torch.is_grad_enabled() and (factor.requires_grad or call.input.requires_grad):
        return again(gradient, call, options, factor)
    return gradient(*times(call, options, factor))


def late(
    evaluate: Callable[..., tuple[Tensor, Tensor | None]],
    gradient: Callable[..., Tensor],
    times: Callable[..., tuple[Any, Any]],
) -> Any:
    """Return an autograd function that computes the gradient in the backward."""

    class Late(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, input: Tensor, call: Any, options: Any) -> Tensor:
            loss, _ = evaluate(call, options, False)
            ctx.save_for_backward(*call)
            ctx.kind, ctx.options = type(call), options
            return loss

        @staticmethod
        def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
            call, options = ctx.kind(*ctx.saved_tensors), ctx.options
            if torch.is_grad_enabled():
                return again(gradient, call, options, factor), None, None
            if is_traced(factor):
                return gradient(*times(call, options, factor)), None, None
            if is_batched(factor):
                return again(gradient, call, options, factor), None, None
            return evaluate(*times(call, options, factor), True)[1], None, None

    return Late


class SingleLevel(torch.autograd.function._SingleLevelFunction):
    """An autograd function without `torch.func`'s part, called where no transform is active."""

    _compiled_autograd_key = torch.autograd.Function._compiled_autograd_key


# Operators


def _any(with_grad: bool | list[bool]) -> bool:
    return any(with_grad) if isinstance(with_grad, list | tuple) else with_grad


def define(
    schema: str, forward: Callable[..., Any], fake: Callable[..., Any], backward: Callable[..., Any]
) -> Any:
    """Register an operator and return it.

    Its last argument says whether gradients are wanted; its outputs are the loss and the gradients.
    `backward(arguments, gradients, factor, directions)` returns a gradient, or None, for each
    argument; `directions` are what arrives at the gradients, where these are differentiated.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    op = getattr(torch.ops.xentrs, name).default

    # Of a single level: the transforms of torch.func are the dispatcher's, which comes here once
    # for each of them.
    class Traced(SingleLevel):
        @staticmethod
        def forward(keys: torch._C.DispatchKeySet, *args: Any) -> Any:
            # For the transforms around this one.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return op.redispatch(keys, *args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            inputs = inputs[1:]
            ctx.arguments = [None if isinstance(a, Tensor) else a for a in inputs]
            ctx.places = [i for i, a in enumerate(inputs) if isinstance(a, Tensor)]
            ctx.save_for_backward(*[inputs[i] for i in ctx.places], *output[1:])
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, factor: Tensor | None, *directions: Tensor | None) -> Any:
            saved, arguments = ctx.saved_tensors, list(ctx.arguments)
            for i, tensor in zip(ctx.places, saved, strict=False):
                arguments[i] = tensor
            if not _any(arguments[-1]) and not is_late(arguments[0]):
                raise RuntimeError(f"xentrs::{name} was called without with_grad")
            return None, *backward(arguments, saved[len(ctx.places) :], factor, directions)

    def autograd(keys: torch._C.DispatchKeySet, *args: Any) -> Any:
        keys = keys & torch._C._after_autograd_keyset
        tensors = [a for a in args if isinstance(a, Tensor)]
        if forward_ad._current_level >= 0 and any(
            forward_ad.unpack_dual(t).tangent is not None for t in tensors
        ):
            raise NotImplementedError(
                f"xentrs.torch.{name} has no forward-mode derivative (jvp, jacfwd, hessian): "
                "use reverse mode (grad, vjp, jacrev)"
            )
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            with enable_single_level_autograd_function():
                return Traced.apply(keys, *args)  # type: ignore[attr-defined]
        return op.redispatch(keys, *args)

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:  # an example tells the shapes
            args = tuple(
                a.new_zeros((*a.shape[:d], *a.shape[d + 1 :])) if type(d) is int else a
                for a, d in zip(args, in_dims, strict=True)
            )
            empty = tuple([r.new_empty((0, *r.shape)) for r in op(*args)])
            return empty, tuple([0] * len(empty))
        results = [
            op(
                *[
                    a.select(d, i) if type(d) is int else a
                    for a, d in zip(args, in_dims, strict=True)
                ]
            )
            for i in range(info.batch_size)
        ]
        stacked = tuple([torch.stack(parts) for parts in zip(*results, strict=True)])
        return stacked, tuple([0] * len(stacked))

    _LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)
    torch.library.register_fake(f"xentrs::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"xentrs::{name}", vmap, lib=_LIBRARY)
    return op
