"""PyTorch's private interfaces: all that `xentrs.torch` uses. No other file uses any.

Tested with PyTorch 2.15.0. A later PyTorch may lose one of them; the last line of each entry says
what takes its place then. Results stay the same.

What is going on around a call. Without one of these: every call goes through its operator, which is
right in every case and takes 60 us more.
    torch._C._are_functorch_transforms_active: whether a transform of `torch.func` is active
    torch._C._len_torch_dispatch_stack: whether a dispatch mode is (fake tensors, tracers)
    torch.autograd.forward_ad._current_level: whether forward-mode differentiation is
torch._C._is_tracing
    Whether `torch.jit.trace` records the call.
    Without it: `torch.jit.is_tracing`, a Python function around it.

In a backward pass. Without one of these: the gradient is multiplied out of place.
    torch._C._autograd._get_current_graph_task_keep_graph: whether the graph is retained
    torch._C._functorch.is_legacy_batchedtensor: whether many upstream gradients come at once
    (`is_grads_batched`)
torch.autograd.function._SingleLevelFunction, with Function._compiled_autograd_key
    An autograd function without the part for `torch.func`: 3 us less a call.
    Without it: `torch.autograd.Function`.

Operators that are differentiated under any nesting of transforms.
torch._C._after_autograd_keyset, OpOverload.redispatch, forward_ad._set_fwd_grad_enabled,
torch._functorch.utils.enable_single_level_autograd_function
    An operator's autograd runs the operator below itself, where the transforms around see it. The
    public way excludes them: a gradient of a gradient would be 0.
    Without one of these: the public way, `torch.library.register_autograd`, for first derivatives
    (`torch.compile` takes no others). Where tensors go through an operator, all of `torch.func` and
    derivatives of gradients are refused.

torch._assert_async
    An assertion on a GPU for which nobody waits.
    Without it: a check that waits for the GPU.
Tensor._version
    The number of changes in place, by which a changed tensor is noticed. No public way.
Tensor._is_view
    Whether a tensor is a view of another. No public way.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def _find(path: str) -> Any:
    """Return what stands at a path below `torch`, or None."""
    try:
        return pkgutil.resolve_name(f"torch.{path}")
    except (ImportError, AttributeError):
        return None


# Around a call. Functions of PyTorch itself where possible: each costs a part of a tiny call.

has_transforms: Callable[[], bool] = _find("_C._are_functorch_transforms_active") or (lambda: True)
_dispatch_modes: Callable[[], int] = _find("_C._len_torch_dispatch_stack") or (lambda: 1)
_is_compiling: Callable[[], bool] = torch.compiler.is_dynamo_compiling  # public
is_jit_tracing: Callable[[], bool] = _find("_C._is_tracing") or _find("jit.is_tracing")
if not hasattr(forward_ad, "_current_level"):
    _dispatch_modes = lambda: 1  # noqa: E731


def is_observed() -> bool:
    """Whether anything traces, transforms or watches what is done to tensors."""
    return (
        _is_compiling()
        or is_jit_tracing()
        or has_transforms()
        or _dispatch_modes() != 0
        or forward_ad._current_level >= 0
    )


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor is a view of another."""
    return tensor._is_view()


version: Callable[[Tensor], int] = attrgetter("_version")


# In a backward pass

is_graph_retained: Callable[[], bool] = _find(
    "_C._autograd._get_current_graph_task_keep_graph"
) or (lambda: True)
_is_legacy_batched: Callable[[Tensor], bool] = _find("_C._functorch.is_legacy_batchedtensor") or (
    lambda _: True
)


def is_batched(grad_output: Tensor) -> bool:
    """Whether many upstream gradients come at once, so that one stored gradient becomes many."""
    return has_transforms() or _is_legacy_batched(grad_output)


_single_level = _find("autograd.function._SingleLevelFunction")


class SingleLevelFunction(_single_level or torch.autograd.Function):  # type: ignore[misc]
    """An autograd function without the part for `torch.func`: for calls that nothing transforms."""

    _compiled_autograd_key = _find("autograd.Function._compiled_autograd_key")


# Operators

_below_autograd = _find("_C._after_autograd_keyset")
_set_forward_grad = _find("autograd.forward_ad._set_fwd_grad_enabled")
_allow_single_level = _find("_functorch.utils.enable_single_level_autograd_function")
_redispatch = _find("_ops.OpOverload.redispatch")

# Whether an operator's autograd can run the operator below itself.
_needed = (_below_autograd, _redispatch, _set_forward_grad, _single_level, _allow_single_level)
CAN_REDISPATCH = all(found is not None for found in _needed)


def redispatch(op: Any, keys: Any, *args: Any) -> Any:
    """Run an operator below its autograd, which the dispatcher has called with these keys."""
    return op.redispatch(keys & _below_autograd, *args)


def redispatch_transformed(op: Any, keys: Any, *args: Any) -> Any:
    """Run an operator below its autograd such that the transforms around see it too."""
    with torch.enable_grad(), _set_forward_grad(True):
        return redispatch(op, keys, *args)


def apply_single_level(function: Any, *args: Any) -> Any:
    """Apply an autograd function to what one transform of `torch.func` has wrapped."""
    with _allow_single_level():
        return function.apply(*args)


# On a GPU

_assert_async = _find("_assert_async")


def assert_on_device(condition: Tensor, message: str) -> None:
    """Assert on a GPU that a tensor of one bool is true."""
    if _assert_async is not None:
        _assert_async(condition, message)
    elif not condition:
        raise RuntimeError(message)
