"""Triton: imported, and kernels compiled, when the first kernel is launched."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch


def load_triton() -> tuple[Any, Any]:
    """Import Triton and its language, or say what is missing."""
    try:
        import triton
        import triton.language
    except ImportError as error:
        raise ImportError(
            "xentrs.torch needs Triton for tensors on a GPU and for XENTRS_TORCH_BACKEND=triton: "
            "pip install triton"
        ) from error
    return triton, triton.language


def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


_lock = threading.Lock()


class Kernel:
    """A Triton kernel, compiled at its first launch; before that Triton is not imported.

    All kernels of a module are compiled together, for they call each other by name, and find
    Triton's language there as ``tl``.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        assert isinstance(function, FunctionType)
        self.function = function

    def compiled(self) -> Any:
        """Return the Triton function, which a kernel can take as a ``tl.constexpr`` to call it.

        From the first call on it stands in the place of the kernel, in the namespace of its module.
        """
        triton, tl = load_triton()
        namespace = self.function.__globals__
        with _lock:
            kernels = {name: k for name, k in namespace.items() if isinstance(k, Kernel)}
            functions = {}
            for name, kernel in kernels.items():
                kernel.function.__globals__["tl"] = tl
                # debug: class indices are asserted on the device to be in range.
                functions[name] = triton.jit(kernel.function, debug=True)
                if not triton.knobs.runtime.interpret:
                    functions[name].run = _launched(functions[name].run)
            # At once: a kernel that another thread compiles must not find some of them.
            namespace.update(functions)
        return namespace[self.function.__name__]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        launch: Callable[..., None] = self.compiled()[grid]
        return launch


def _launched(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return how a kernel is launched, whose first argument is a tensor: on the tensor's device.

    Triton would launch it on the current device, which may be another one.
    """

    def launch(*arguments: Any, **options: Any) -> Any:
        # debug also adds checks of every integer operation, which nobody wants here.
        options |= {"sanitize_overflow": False, "enable_fp_fusion": True}
        device = arguments[0].device
        with torch.get_device_module(device).device(device):
            return run(*arguments, **options)

    return launch


def next_power_of_two(n: int) -> int:
    """Return the least power of two from `n` up."""
    return 1 << max(n - 1, 0).bit_length()
