"""On a GPU: multiply a stored gradient by the upstream gradient, in place.

One reading and one writing of the gradient. The kernel itself reads the upstream gradient, one
number, so that nobody waits for it on the host; where it is 1 nothing is read or written. Where it
is NaN or inf, entries outside the mask become 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

from torch import Tensor

from xentrs.torch import _backend
from xentrs.torch._triton import Kernel

if TYPE_CHECKING:
    import triton.language as tl

_BLOCK = 4096  # entries of a program


def scale(grad: Tensor, grad_output: Tensor, mask: Tensor | None, classes: int, inner: int) -> None:
    """Multiply a gradient without gaps by one number.

    In memory, entry i belongs to the entry ``i // classes // inner * inner + i % inner`` of `mask`.
    """
    n = grad.numel()
    if not n:
        return
    grad_output = grad_output.to(_backend.accumulator(grad.dtype))
    mask = None if mask is None else mask.contiguous()
    _scale[(-(-n // _BLOCK),)](
        grad, grad_output, mask, classes, inner, n, BLOCK=_BLOCK, num_warps=8
    )


@Kernel
@no_type_check
def _scale(grad, grad_output, sample_mask, classes, inner, n, BLOCK: tl.constexpr):
    f = tl.load(grad_output)
    if f != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(grad + i, mask=i < n)
        g = (g.to(f.dtype) * f).to(g.dtype)
        if sample_mask is not None:  # noqa: SIM102 (known when the kernel is compiled)
            if (f != f) | (tl.abs(f) == float("inf")):  # times 0 that is NaN
                sample = i // classes // inner * inner + i % inner
                g = tl.where(tl.load(sample_mask + sample, mask=i < n, other=0) != 0, g, 0.0)
        tl.store(grad + i, g, mask=i < n)
