"""Which kernels a tensor takes, and what they are launched with.

Tensors on the CPU take the Rust kernels, those on a GPU the Triton kernels.
``XENTRS_TORCH_BACKEND=rust`` or ``triton`` forces one; with ``TRITON_INTERPRET=1`` and ``triton``
tensors on the CPU go through the GPU's kernels, in Triton's interpreter.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from xentrs._xentrs import join_threads, new_tensor, use_tensors


def _is_forked() -> bool:
    """Whether this process is a copy of another, whose threads it has not got."""
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        if int(fields[6]) & 0x40:  # PF_FORKNOEXEC, Linux
            return True
    except (OSError, IndexError, ValueError):
        pass
    return type(multiprocessing.current_process()).__name__ == "ForkProcess"


use_tensors(Tensor)
# OpenMP would wait for ever for threads that PyTorch had before the fork.
if not _is_forked():
    join_threads()

FLOATS = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
HALVES = frozenset({torch.float16, torch.bfloat16})

FORCED = os.environ.get("XENTRS_TORCH_BACKEND", "")
if FORCED not in ("", "rust", "triton"):
    raise ValueError(f"XENTRS_TORCH_BACKEND is {FORCED!r}, but must be 'rust' or 'triton'")

# From here on, in bytes, memory on the CPU is the compiled module's.
LARGE = 1 << 20


def uses_triton(tensor: Tensor) -> bool:
    """Whether the Triton kernels compute what concerns this tensor."""
    if tensor.is_cpu:
        if FORCED != "triton":
            return False
        if not load_triton()[0].knobs.runtime.interpret:
            raise RuntimeError(
                "XENTRS_TORCH_BACKEND is 'triton', whose kernels read a tensor on the CPU only in "
                "Triton's interpreter: set TRITON_INTERPRET=1"
            )
        return True
    kind = tensor.device.type
    if kind not in ("cuda", "xpu"):
        raise NotImplementedError(
            f"xentrs.torch has no kernels for tensors on {kind!r}: only for the CPU and for GPUs "
            "that Triton supports (device types 'cuda' and 'xpu')"
        )
    if FORCED == "rust":
        raise RuntimeError(
            f"XENTRS_TORCH_BACKEND is 'rust', whose kernels cannot read a tensor on {kind!r}"
        )
    return True


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which logits of this dtype are computed and their loss is summed."""
    return torch.float32 if dtype in HALVES else dtype


def scalar(value: float, dtype: torch.dtype) -> Tensor:
    """Return a number as a tensor on the CPU, infinite where the dtype ends."""
    if abs(value) > torch.finfo(dtype).max:  # which PyTorch refuses
        value = math.copysign(math.inf, value)
    return torch.scalar_tensor(value, dtype=dtype, device="cpu")


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a new contiguous tensor; a large one on the CPU may take the place of a freed one.

    The page faults of fresh memory cost more than the kernel that fills it.
    """
    if device.type != "cpu" or prod(shape) * dtype.itemsize < LARGE:
        return torch.empty(shape, dtype=dtype, device=device)
    return new_tensor(torch.empty(1, dtype=dtype, device=device), tuple(shape))


def empty_like(tensor: Tensor) -> Tensor:
    """Return a new tensor of the same shape, dtype and order of axes, as `empty`."""
    if not tensor.is_cpu or tensor.nbytes < LARGE or 0 in tensor.stride():
        return torch.empty_like(tensor)
    return new_tensor(tensor, None)


# By names of their own: a look into a module, and another, takes a good part of a tiny call.
_is_compiling = torch.compiler.is_dynamo_compiling  # other tracers are dispatch modes
has_transforms = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_tracing = torch._C._is_tracing


def is_plain(*values: object) -> bool:
    """Whether no value is a tensor of a subclass, whose operations are its own."""
    return all(
        [type(t) is Tensor or type(t) is Parameter or not isinstance(t, Tensor) for t in values]
    )


def is_eager(tensor: Tensor) -> bool:
    """Whether the tensor is a plain one and nothing watches or transforms what is done to it."""
    return (
        (type(tensor) is Tensor or type(tensor) is Parameter)
        and not _is_compiling()
        and not _is_tracing()
        and not has_transforms()
        and _dispatch_modes() == 0
        and forward_ad._current_level < 0
        and not tensor.is_meta
    )


def refuse_tracing(name: str) -> None:
    """Raise under `torch.jit.trace`, which would keep the loss of its example as a constant."""
    if not _is_compiling() and _is_tracing():
        raise NotImplementedError(
            f"xentrs.torch.{name} cannot be traced by torch.jit.trace: use torch.compile or "
            "torch.export, or torch.nn.functional's loss in what is traced"
        )


def wants_gradient(tensor: Tensor) -> bool:
    """Whether a gradient may be asked for; torch.func does not say."""
    if torch.compiler.is_compiling() or not has_transforms():
        return tensor.requires_grad and torch.is_grad_enabled()
    return True


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast makes the loss of half-precision logits float32, as it does PyTorch's."""
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def load_triton() -> tuple[Any, Any]:
    """Import Triton, or say what is missing."""
    try:
        import triton
        import triton.language
    except ImportError as error:
        raise ImportError(
            "xentrs.torch needs Triton for tensors on a GPU and for XENTRS_TORCH_BACKEND=triton: "
            "pip install triton"
        ) from error
    return triton, triton.language


class Kernel:
    """A Triton kernel, compiled at its first launch; before that Triton is not imported.

    All kernels of a module are compiled together, for they call each other by name, and find
    Triton's language there as ``tl``.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        assert isinstance(function, FunctionType)
        self.function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        triton, tl = load_triton()
        namespace = self.function.__globals__
        for name, value in list(namespace.items()):
            if isinstance(value, Kernel):
                value.function.__globals__["tl"] = tl
                # debug: the bounds of class indices are asserted on the device.
                namespace[name] = triton.jit(value.function, debug=True)
        launch: Callable[..., None] = namespace[self.function.__name__][grid]
        if triton.knobs.runtime.interpret:
            return launch
        # With debug come checks of every integer operation, which are not wanted.
        return partial(launch, sanitize_overflow=False, enable_fp_fusion=True)


def next_power_of_two(n: int) -> int:
    """Return the least power of two from `n` up."""
    return 1 << max(n - 1, 0).bit_length()
