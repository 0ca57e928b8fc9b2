"""What the losses share of autograd: scaling a stored gradient, and operators that are traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, no_type_check

import torch
from torch import Tensor

from xentrs.torch import _backend
from xentrs.torch._backend import Kernel

if TYPE_CHECKING:
    import triton.language as tl

_LIBRARY = torch.library.Library("xentrs", "FRAGMENT")

_TWICE = (
    "{} cannot be differentiated twice: its gradient is computed in the forward pass and is a "
    "constant to autograd. Use PyTorch's own loss where second derivatives are needed."
)


# The gradient that the forward left, times what arrives at the loss


@Kernel
@no_type_check
def _scale(grad, factor, n, BLOCK: tl.constexpr):
    # To read the factor here spares waiting for it on the host; nothing moves where it is 1.
    f = tl.load(factor)
    if f != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(grad + i, mask=i < n)
        tl.store(grad + i, (g.to(f.dtype) * f).to(g.dtype), mask=i < n)


def scaled(name: str, grad: Tensor, factor: Tensor, axis: int | None = None) -> Tensor:
    """Return the stored gradient times what arrives at the loss, if possible in its own memory.

    `axis` is the axis of `grad` that `factor` does not have.
    """
    wide = factor if axis is None else factor.unsqueeze(axis)
    if torch.is_grad_enabled():  # create_graph=True: whoever differentiates this is told
        delayed = torch._C._functions.DelayedError(_TWICE.format(name).encode(), 1)
        result: Tensor = delayed((grad * wide).requires_grad_())
        return result
    if torch._C._autograd._get_current_graph_task_keep_graph():
        grad = grad.clone()  # another backward pass may need it as it is
    if wide.dim():
        return grad.mul_(wide)
    if not _backend.uses_triton(grad):
        return grad if wide.item() == 1.0 else grad.mul_(wide)
    n = grad.numel()
    if grad.untyped_storage().nbytes() != n * grad.itemsize:  # a view that may have gaps
        return grad.mul_(wide)
    block = 4096
    if n:
        wide = wide.to(_backend.accumulator(grad.dtype))
        _scale[(-(-n // block),)](grad, wide, n, BLOCK=block, num_warps=8)
    return grad


# Operators


def define(
    schema: str, forward: Callable[..., Any], fake: Callable[..., Any], backward: Callable[..., Any]
) -> Any:
    """Register an operator and return it.

    Its last argument says whether gradients are wanted, and its outputs are the loss and they.
    `backward` takes the arguments, the gradients and what arrives at the loss, and returns a
    gradient, or None, for each argument.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    op = getattr(torch.ops.xentrs, name).default

    def loop(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        results = [
            op(*[a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)])
            for i in range(info.batch_size)
        ]
        stacked = tuple([torch.stack(parts) for parts in zip(*results, strict=True)])
        return stacked, tuple([0] * len(stacked))

    class Traced(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return op(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            tensors = [a if isinstance(a, Tensor) else None for a in inputs]
            ctx.others = [None if isinstance(a, Tensor) else a for a in inputs]
            ctx.save_for_backward(*output[1:])
            ctx.shapes = [None if a is None else a.shape for a in tensors]
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, factor: Tensor, *twice: Tensor | None) -> Any:
            # The gradients are outputs: where something arrives at them, they were differentiated.
            if any(t is not None for t in twice):
                raise RuntimeError(_TWICE.format(f"xentrs.torch.{name}"))
            return backward(ctx.shapes, ctx.others, ctx.saved_tensors, factor)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
            return loop(info, in_dims, *args)

    def autograd(*args: Any) -> Any:
        wanted = any(isinstance(a, Tensor) and a.requires_grad for a in args)
        if torch.is_grad_enabled() and wanted:
            return Traced.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    _LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"xentrs::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"xentrs::{name}", loop, lib=_LIBRARY)
    return op
