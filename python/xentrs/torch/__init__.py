"""The losses of xentrs for PyTorch: functions and modules in place of PyTorch's own.

Tensors on the CPU run the Rust kernels on their own memory, tensors on a GPU Triton kernels.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("xentrs.torch needs PyTorch: pip install xentrs[torch]") from error

from xentrs.torch._cross_entropy import CrossEntropyLoss, cross_entropy

__all__ = ["CrossEntropyLoss", "cross_entropy"]
