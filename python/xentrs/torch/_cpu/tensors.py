"""What the losses on the CPU have in common."""

from __future__ import annotations

from torch import Tensor

from xentrs.torch._backend import HALVES

# Where the CPU converts numbers or works around the kernel it does so by chunks of so many elements
# for each thread: they stay in the second-level cache.
CHUNK = 1 << 16


def readable(t: Tensor | None) -> Tensor | None:
    """Return weights in a type that the compiled functions read."""
    if t is None:
        return None
    t = t.detach().resolve_neg()
    return t.float() if t.dtype in HALVES else t
