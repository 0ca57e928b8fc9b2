"""How an operator is registered: its autograd, its fake implementation, its batching rule.

An operator is for what traces or transforms: `torch.compile`, `torch.func`, dispatch modes, tensor
subclasses. Plain tensors go to autograd functions, which cost less (decision 20).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xentrs.torch import _private
from xentrs.torch._operators.gradients import is_deferred

_LIBRARY = torch.library.Library("xentrs", "FRAGMENT")


def define(
    schema: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    jvp: Callable[..., Any] | None = None,
    differentiated: int = 1,
) -> Any:
    """Register an operator and return it.

    Its last argument says whether gradients are wanted; its outputs are the loss and the gradients.
    `backward(arguments, gradients, grad_output, directions)` returns a gradient, or None, for each
    argument. `directions` are the upstream gradients of the gradients, where these are
    differentiated. `jvp(arguments, gradients, directions)` returns the derivatives of loss and
    gradients where the arguments move in these directions. It has one, or None, for each argument
    that is differentiated; these are the first so many.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    op = getattr(torch.ops.xentrs, name).default

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.arguments = [None if isinstance(a, Tensor) else a for a in inputs]
        ctx.places = [i for i, a in enumerate(inputs) if isinstance(a, Tensor)]
        kept = [inputs[i] for i in ctx.places]
        ctx.save_for_backward(*kept, *output[1:])
        ctx.save_for_forward(*kept, *output[1:])
        ctx.set_materialize_grads(False)

    def recall(ctx: Any) -> tuple[list[Any], tuple[Tensor, ...]]:
        """Return the arguments, and the gradients."""
        saved, arguments = ctx.saved_tensors, list(ctx.arguments)
        for i, tensor in zip(ctx.places, saved, strict=False):
            arguments[i] = tensor
        return arguments, saved[len(ctx.places) :]

    def differentiate(ctx: Any, grad_output: Tensor | None, *directions: Tensor | None) -> Any:
        arguments, grads = recall(ctx)
        if not _any(arguments[-1]) and not is_deferred(arguments[0]):
            raise RuntimeError(f"xentrs::{name} was called without with_grad")
        return backward(arguments, grads, grad_output, directions)

    def push_forward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        assert jvp is not None
        arguments, grads = recall(ctx)
        for i in range(differentiated):
            if arguments[i] is not None:
                arguments[i], _ = _private.unpack_dual(arguments[i])
        return jvp(arguments, grads, tangents[:differentiated])

    _LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"xentrs::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"xentrs::{name}", _batching_rule(op), lib=_LIBRARY)
    if _private.CAN_REDISPATCH:
        _LIBRARY.impl(
            name,
            _nested_autograd(name, op, save, differentiate, jvp and push_forward, differentiated),
            "Autograd",
            with_keyset=True,
        )
    else:
        _register_first_derivatives(name, save, differentiate)
    return op


def _any(with_grad: bool | list[bool]) -> bool:
    return any(with_grad) if isinstance(with_grad, list | tuple) else with_grad


def _check_forward_mode(name: str, args: tuple[Any, ...], differentiated: int) -> bool:
    """Return whether forward-mode derivatives are wanted; refuse those that there are not.

    There are those in the first `differentiated` arguments.
    """
    tangents = [isinstance(a, Tensor) and _private.has_tangent(a) for a in args]
    if any(tangents) and not differentiated:
        raise NotImplementedError(
            f"xentrs.torch.{name} has no forward-mode derivative (jvp, jacfwd, hessian): "
            "use reverse mode (grad, vjp, jacrev)"
        )
    if any(tangents[differentiated:]):
        which = "first argument" if differentiated == 1 else f"first {differentiated} arguments"
        raise NotImplementedError(
            f"xentrs.torch.{name} has a forward-mode derivative (jvp, jacfwd, hessian) in its "
            f"{which} only"
        )
    return any(tangents)


def _nested_autograd(
    name: str,
    op: Any,
    save: Callable[..., None],
    differentiate: Callable[..., Any],
    push_forward: Callable[..., Any] | None,
    differentiated: int,
) -> Callable[..., Any]:
    """Return an operator's autograd, under any nesting of the transforms of `torch.func`.

    The transforms are the dispatcher's, which comes here once for each: a single level each time.
    """

    class Traced(_private.SingleLevelFunction):
        @staticmethod
        def forward(keys: Any, *args: Any) -> Any:
            return _private.redispatch_transformed(op, keys, *args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            save(ctx, inputs[1:], output)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor | None, *directions: Tensor | None) -> Any:
            return None, *differentiate(ctx, grad_output, *directions)

        @staticmethod
        def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Any:
            assert push_forward is not None
            return _private.push_forward_transformed(push_forward, ctx, *tangents)

    def autograd(keys: Any, *args: Any) -> Any:
        tensors = [a for a in args if isinstance(a, Tensor)]
        forward = _check_forward_mode(name, args, differentiated if push_forward else 0)
        backward = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if forward or backward:
            return _private.apply_single_level(Traced, keys, *args)
        return _private.redispatch(op, keys, *args)

    return autograd


def _register_first_derivatives(
    name: str, save: Callable[..., None], differentiate: Callable[..., Any]
) -> None:
    """Register an operator's autograd in the public way, which knows no nested transforms."""

    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        if torch.is_grad_enabled():  # a gradient of this gradient would be 0
            raise NotImplementedError(
                f"xentrs.torch.{name} cannot be differentiated twice, nor by torch.func, with "
                f"PyTorch {torch.__version__}: it lacks what xentrs.torch._private names"
            )
        return differentiate(ctx, *grad_outputs)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        save(ctx, inputs, output)

    torch.library.register_autograd(
        f"xentrs::{name}", backward, setup_context=setup_context, lib=_LIBRARY
    )


def _batching_rule(op: Any) -> Callable[..., Any]:
    """Return an operator's rule for `vmap`: a call for each example."""

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:  # a made-up example tells the shapes
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

    return vmap
