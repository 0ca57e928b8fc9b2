"""Losses without a class axis on a GPU: one Triton kernel over the elements.

A loss is a Triton function of one element, which the kernel calls. One reading of the input and one
writing of the gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
from torch import Tensor

from xentrs.torch import _backend
from xentrs.torch._arguments.binary import BinaryArguments
from xentrs.torch._arguments.options import Options
from xentrs.torch._gpu import results
from xentrs.torch._gpu.math import narrowed
from xentrs.torch._triton import Kernel, load_triton

if TYPE_CHECKING:
    import triton.language as tl

_BLOCK = 2048  # elements of a program


def evaluate(
    call: BinaryArguments,
    options: Options,
    with_grad: bool,
    inplace: bool = False,
    *,
    element: Kernel,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the input if wanted.

    `element` is a Triton function ``(z, t, v, keep, OWN: tl.constexpr)`` of the input z, the target
    t as smoothed and v = pos_weight t, that returns the loss of an element and its derivative in z.
    `keep` says what counts (nothing else matters), and OWN are the loss's own options.
    """
    x = call.input.detach().contiguous()
    n, dtype = x.numel(), _backend.accumulator(x.dtype)
    weight, pos_weight = _repeated(call.weight, x), _repeated(call.pos_weight, x)
    where = None if call.where is None else call.where.expand_as(x).contiguous()
    divisor = call.divisor(options) if options.reduction == "mean" else None
    programs = -(-n // _BLOCK)
    if options.reduction == "none":
        loss = torch.empty(x.shape, dtype=dtype, device=x.device)
    else:
        loss = torch.empty(programs, dtype=torch.float64, device=x.device)
    grad = torch.empty_like(x) if with_grad else None
    dtypes = [t.dtype for t in call[:4] if t is not None]
    if n:
        _, tl = load_triton()
        _elements[(programs,)](
            x, call.target.detach().contiguous(), weight, 0 if weight is None else weight.numel(),
            pos_weight, 0 if pos_weight is None else pos_weight.numel(), where, divisor, loss, grad,
            n, ELEMENT=element.compiled(), OWN=options.own,
            SMOOTHING=options.label_smoothing, SUM=options.reduction != "none",
            ACC=tl.float64 if torch.float64 in dtypes else tl.float32, B=_BLOCK, num_warps=8,
        )  # fmt: skip
    if options.reduction == "none":
        return loss, grad
    loss = results.quotient(loss.sum(), divisor, call.denominator is not None)
    return loss.to(dtype), grad


def _repeated(t: Tensor | None, x: Tensor) -> Tensor | None:
    """Return a tensor that repeated in memory is `t` broadcast to `x`: `t` itself if possible."""
    if t is None:
        return None
    t = t.detach()
    shape = t.shape
    while shape and shape[0] == 1:
        shape = shape[1:]
    if x.shape[x.dim() - len(shape) :] == shape:
        return t.reshape(shape).contiguous()
    return t.expand_as(x).contiguous()


@Kernel
@no_type_check
def _elements(
    x, target, weight, weights, pos_weight, pos_weights, where, divisor, loss, grad, n,
    ELEMENT: tl.constexpr, OWN: tl.constexpr, SMOOTHING: tl.constexpr, SUM: tl.constexpr,
    ACC: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    live = i < n
    z = tl.load(x + i, mask=live, other=0).to(ACC)
    t = tl.load(target + i, mask=live, other=0).to(ACC)  # as wide as the labels
    t = (1.0 - SMOOTHING) * t + 0.5 * SMOOTHING
    v = t
    if pos_weight is not None:
        v *= tl.load(pos_weight + i % pos_weights, mask=live, other=0).to(ACC)
    factor = tl.full([B], 1.0, ACC)
    if weight is not None:
        factor *= tl.load(weight + i % weights, mask=live, other=0).to(ACC)
    keep = live & (factor != 0.0)  # NaN counts
    if where is not None:
        keep &= tl.load(where + i, mask=live, other=0) != 0

    result, slope = ELEMENT(z, t, v, keep, OWN)
    result = tl.where(keep, factor * result, 0.0)
    if SUM:
        # In float64: the sum may exceed float32 where the mean does not.
        tl.store(loss + tl.program_id(0), tl.sum(result.to(tl.float64), 0))
    else:
        tl.store(loss + i, result, mask=live)

    if grad is not None:
        if divisor is not None:
            factor = (factor / tl.load(divisor)).to(ACC)
        g = tl.where(keep, factor * slope, 0.0)
        tl.store(grad + i, narrowed(g, grad), mask=live)
