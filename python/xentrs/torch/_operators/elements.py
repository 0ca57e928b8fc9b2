"""Losses without a class axis."""

from __future__ import annotations

from functools import partial

from xentrs.torch._arguments.binary import BinaryArguments
from xentrs.torch._cpu import elements as _cpu
from xentrs.torch._gpu import elements as _gpu
from xentrs.torch._operators.loss import Loss, Product, Products
from xentrs.torch._triton import Kernel


def of_elements(
    name: str, product: Product | Products, element: Kernel, own: tuple[str, ...] = ()
) -> Loss:
    """Return a loss that is computed element by element.

    `element` is for the Triton kernel what `_gpu/elements.py` says, the others as in `Loss`.
    """
    return Loss(
        name,
        BinaryArguments,
        cpu=partial(_cpu.evaluate, name),
        gpu=partial(_gpu.evaluate, element=element),
        product=product,
        own=own,
        shared=("reduction", "label_smoothing"),
    )
