"""Which kernels a tensor takes, and new tensors.

Tensors on the CPU take the Rust kernels, those on a GPU the Triton kernels.
``XENTRS_TORCH_BACKEND=rust`` or ``triton`` forces one; with ``TRITON_INTERPRET=1`` and ``triton``
tensors on the CPU go through the GPU's kernels, in Triton's interpreter.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from xentrs._xentrs import join_threads, new_tensor, use_tensors
from xentrs.torch._triton import has_triton, load_triton


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
# In a forked child OpenMP would wait for ever for the threads that PyTorch had in its parent.
if not _is_forked():
    join_threads()

FLOATS = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
HALVES = frozenset({torch.float16, torch.bfloat16})

FORCED = os.environ.get("XENTRS_TORCH_BACKEND", "")
if FORCED not in ("", "rust", "triton"):
    raise ValueError(f"XENTRS_TORCH_BACKEND is {FORCED!r}, but must be 'rust' or 'triton'")

# A new tensor on the CPU of so many bytes or more has its memory from the compiled module.
LARGE = 1 << 20


def uses_triton(tensor: Tensor) -> bool:
    """Whether a loss of this tensor takes the Triton kernels."""
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


def has_kernels(tensor: Tensor) -> bool:
    """Whether there are kernels for the tensor's device."""
    kind = tensor.device.type
    return kind in ("cpu", "meta") or (kind in ("cuda", "xpu") and has_triton())


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which logits of this dtype are computed and their loss is summed."""
    return torch.float32 if dtype in HALVES else dtype


def scalar(value: float, dtype: torch.dtype) -> Tensor:
    """Return a number as a tensor on the CPU; beyond the dtype's range it is infinite."""
    if abs(value) > torch.finfo(dtype).max:  # which PyTorch refuses
        value = math.copysign(math.inf, value)
    return torch.scalar_tensor(value, dtype=dtype, device="cpu")


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a new contiguous tensor; a large one on the CPU may use the memory of a freed one.

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
