"""The binary loss on a GPU: one Triton kernel over the elements.

For a logit z and a target t, with v = pos_weight t and e = exp(-|z|):

    loss     = factor ((1 - t) softplus(z) + v softplus(-z))     softplus(z) = max(z, 0) + log1p(e)
    gradient = factor ((1 - t) sigmoid(z) - v sigmoid(-z))       sigmoid(|z|) = 1 / (1 + e)

A part whose coefficient is 0 is 0, at an infinite logit too. One reading of the logits and one
writing of the gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
from torch import Tensor

from xentrs.torch import _backend
from xentrs.torch._arguments.binary import BinaryArguments
from xentrs.torch._arguments.options import Options
from xentrs.torch._gpu.math import log1p, narrowed
from xentrs.torch._triton import Kernel, load_triton

if TYPE_CHECKING:
    import triton.language as tl

_BLOCK = 2048  # elements of a program


def evaluate(
    call: BinaryArguments, options: Options, with_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the logits if wanted."""
    x = call.input.detach().contiguous()
    n, dtype = x.numel(), _backend.accumulator(x.dtype)
    weight, pos_weight = _repeated(call.weight, x), _repeated(call.pos_weight, x)
    where = None if call.where is None else call.where.expand_as(x).contiguous()
    divisor = call.divisor() if options.reduction == "mean" else None
    programs = -(-n // _BLOCK)
    if options.reduction == "none":
        loss = torch.empty(x.shape, dtype=dtype, device=x.device)
    else:
        loss = torch.empty(programs, dtype=torch.float64, device=x.device)
    grad = torch.empty_like(x) if with_grad else None
    dtypes = [t.dtype for t in call[:4] if t is not None]
    if n:
        _, tl = load_triton()
        _binary[(programs,)](
            x, call.target.detach().contiguous(), weight, 0 if weight is None else weight.numel(),
            pos_weight, 0 if pos_weight is None else pos_weight.numel(), where, divisor, loss, grad,
            n, SMOOTHING=options.label_smoothing, SUM=options.reduction != "none",
            ACC=tl.float64 if torch.float64 in dtypes else tl.float32, B=_BLOCK, num_warps=8,
        )  # fmt: skip
    if options.reduction == "none":
        return loss, grad
    loss = loss.sum()
    return (loss if divisor is None else loss / divisor).to(dtype), grad


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
def _binary(
    x, target, weight, weights, pos_weight, pos_weights, where, divisor, loss, grad, n,
    SMOOTHING: tl.constexpr, SUM: tl.constexpr, ACC: tl.constexpr, B: tl.constexpr,
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

    e = tl.exp(-tl.abs(z))
    tail = log1p(e)
    up = tl.where(t == 1.0, 0.0, (1.0 - t) * (tl.maximum(z, 0.0) + tail))
    down = tl.where(v == 0.0, 0.0, v * (tl.maximum(-z, 0.0) + tail))
    result = tl.where(z != z, z, up + down)
    result = tl.where(keep, factor * result, 0.0)
    if SUM:
        # In float64: the sum may exceed float32 where the mean does not.
        tl.store(loss + tl.program_id(0), tl.sum(result.to(tl.float64), 0))
    else:
        tl.store(loss + i, result, mask=live)

    if grad is not None:
        if divisor is not None:
            factor = (factor / tl.load(divisor)).to(ACC)
        large, small = 1.0 / (1.0 + e), e / (1.0 + e)
        p = tl.where(z >= 0, large, small)
        q = tl.where(z >= 0, small, large)
        g = factor * ((1.0 - t) * p - v * q)
        tl.store(grad + i, narrowed(tl.where(keep, g, 0.0), grad), mask=live)
