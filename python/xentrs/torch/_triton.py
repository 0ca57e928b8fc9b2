"""Triton: imported, and kernels compiled, when the first kernel is launched."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any


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


class Kernel:
    """A Triton kernel, compiled at its first launch; before that Triton is not imported.

    All kernels of a module are compiled together, for they call each other by name, and find
    Triton's language there as ``tl``.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        assert isinstance(function, FunctionType)
        self.function = function

    def compiled(self) -> Any:
        """Return the Triton function, which a kernel can take as a ``tl.constexpr`` to call it."""
        triton, tl = load_triton()
        namespace = self.function.__globals__
        for name, value in list(namespace.items()):
            if isinstance(value, Kernel):
                value.function.__globals__["tl"] = tl
                # debug: class indices are asserted on the device to be in range.
                namespace[name] = triton.jit(value.function, debug=True)
        return namespace[self.function.__name__]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        triton, _ = load_triton()
        launch: Callable[..., None] = self.compiled()[grid]
        if triton.knobs.runtime.interpret:
            return launch
        # debug also adds checks of every integer operation, which nobody wants here.
        return partial(launch, sanitize_overflow=False, enable_fp_fusion=True)


def next_power_of_two(n: int) -> int:
    """Return the least power of two from `n` up."""
    return 1 << max(n - 1, 0).bit_length()
