"""How a loss is called: eager or traced, with a gradient or without, under autocast or not.

And whether it stands under PyTorch's name.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from xentrs.torch._private import has_transforms, is_jit_tracing, is_observed

# A name of this module: looking it up in `torch.compiler` takes a good part of a tiny call.
is_compiling = torch.compiler.is_dynamo_compiling  # other tracers are dispatch modes


def is_plain(*values: object) -> bool:
    """Whether no value is a tensor of a subclass, which brings operations of its own."""
    return all(
        [type(t) is Tensor or type(t) is Parameter or not isinstance(t, Tensor) for t in values]
    )


def is_eager(tensor: Tensor) -> bool:
    """Whether the tensor is a plain one and nothing traces or transforms what is done to it."""
    return (
        (type(tensor) is Tensor or type(tensor) is Parameter)
        and not is_observed()
        and not tensor.is_meta
    )


def is_traced(*grad_outputs: Tensor) -> bool:
    """Whether a backward is compiled, or its upstream gradients are of a subclass.

    Then nothing is done in place, and nothing but operators is called.
    """
    return is_compiling() or not is_plain(*grad_outputs)


# While `patch` has put the losses in the place of PyTorch's, the calls that they would refuse are
# PyTorch's own.
_is_patched = False


def is_patched() -> bool:
    """Whether the losses stand under PyTorch's names."""
    return _is_patched


def set_patched(value: bool) -> None:
    """Say whether the losses stand under PyTorch's names."""
    global _is_patched
    _is_patched = value


def is_jit_traced(name: str) -> bool:
    """Whether `torch.jit.trace` records a call under PyTorch's name; raise under another."""
    if not _is_patched:
        refuse_jit_trace(name)
    return not is_compiling() and is_jit_tracing()


def refuse_jit_trace(name: str) -> None:
    """Raise under `torch.jit.trace`, which would keep the loss of its example as a constant."""
    if not is_compiling() and is_jit_tracing():
        raise NotImplementedError(
            f"xentrs.torch.{name} cannot be traced by torch.jit.trace: use torch.compile or "
            "torch.export, or torch.nn.functional's loss in what is traced"
        )


def wants_gradient(tensor: Tensor) -> bool:
    """Whether the gradient in a tensor may be needed; transforms of `torch.func` do not say."""
    if torch.compiler.is_compiling() or not has_transforms():
        return tensor.requires_grad and torch.is_grad_enabled()
    return True


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast makes the loss of half-precision logits float32, as it does PyTorch's."""
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
