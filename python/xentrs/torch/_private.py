"""PyTorch's private interfaces: all that `xentrs.torch` uses. No other file uses any.

Tested with PyTorch 2.15.0. A PyTorch that lacks one of them takes the public way that is named
beside it, where there is one; results stay the same. The tests take away all of those.

Around a call

- `torch._C._are_functorch_transforms_active`: whether a transform of `torch.func` is active.
- `torch._C._len_torch_dispatch_stack`: whether a dispatch mode is (fake tensors, tracers).
- `torch.autograd.forward_ad._current_level`: whether forward-mode differentiation is on.
  Without one of these three every call goes through its operator, which is right in every case
  and slower by some 60 us (decision 20).
- `torch._C._is_tracing`: whether `torch.jit.trace` records the call.
  Without it: `torch.jit.is_tracing`, a Python function around it.
- `Tensor._is_view`: whether a tensor is a view of another, over which nothing may be written.
  No public way.
- `Tensor._version`: how often a tensor was changed in place, to notice that an input was changed
  before the backward pass. No public way.

In a backward pass

- `torch._C._autograd._get_current_graph_task_keep_graph`: whether the graph is retained.
- `torch._C._functorch.is_legacy_batchedtensor`: whether many upstream gradients come at once
  (`is_grads_batched`).
  Without one of these two the stored gradient is multiplied out of place.

Autograd functions and operators

- `torch.autograd.function._SingleLevelFunction`, `torch.autograd.Function._compiled_autograd_key`:
  an autograd function without the part for `torch.func`, which costs less.
  Without one of them: `torch.autograd.Function`.
- `torch._C._after_autograd_keyset`, `torch._ops.OpOverload.redispatch`,
  `torch.autograd.forward_ad._set_fwd_grad_enabled`,
  `torch._functorch.utils.enable_single_level_autograd_function`: an operator's autograd runs the
  operator below itself, where the transforms around it still see it.
  Without one of these four, or of the two before: `torch.library.register_autograd`, which hides
  the operator from them. First derivatives (all that `torch.compile` takes) are the same; second
  ones, and `torch.func`, raise an error where tensors go through an operator.

On a GPU

- `torch._assert_async`: an assertion for which nobody waits.
  Without it: a check that waits for the GPU.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
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


# Around a call: PyTorch's own functions, as a Python function around each would cost a part of a
# tiny call.

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


def unpack_dual(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a tensor and its tangent, None if there is none.

    There is one level at most, number 0. While `torch.compile` traces, PyTorch enters it without
    saying so in `_current_level`, which the public functions look at.
    """
    primal, tangent = forward_ad.unpack_dual(tensor, level=0)
    return primal, tangent


def make_dual(tensor: Tensor, tangent: Tensor) -> Tensor:
    """Return a tensor with a tangent, inside of a level."""
    dual: Tensor = forward_ad.make_dual(tensor, tangent, level=0)
    return dual


def has_tangent(tensor: Tensor) -> bool:
    """Whether a forward-mode derivative with respect to a tensor is wanted."""
    return unpack_dual(tensor)[1] is not None


def is_forward_mode() -> bool:
    """Whether forward-mode differentiation is on; where that is not known, it may be."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor is a view of another."""
    return tensor._is_view()


def version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; 0 of one that was made in inference mode."""
    try:
        return tensor._version
    except RuntimeError:  # nobody counts its changes
        return 0


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


_compiled_key = _find("autograd.Function._compiled_autograd_key")
_single_level = _compiled_key and _find("autograd.function._SingleLevelFunction")


class SingleLevelFunction(_single_level or torch.autograd.Function):  # type: ignore[misc]
    """An autograd function without the part for `torch.func`: for calls that nothing transforms."""

    if _compiled_key is not None:
        _compiled_autograd_key = _compiled_key


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


def push_forward_transformed(function: Any, *args: Any) -> Any:
    """Call a function in the forward-mode derivative of an autograd function.

    The transforms around see what it does.
    """
    with _set_forward_grad(True):
        return function(*args)


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
