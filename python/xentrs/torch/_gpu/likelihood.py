"""The negative log-likelihood of given log-probabilities on a GPU: one Triton kernel.

A program takes R samples, and of each its classes in tiles of B. For one sample with
log-probabilities x, where class y is the target and `own` its weight, and where a[c] are the
coefficients that smoothing or a target of probabilities bring:

    loss = -own x[y] - sum of a[c] x[c]
    gradient[c] = -a[c], and at y less `own` too

What has no weight is not looked at. Of a class index without smoothing x[y] alone is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
from torch import Tensor

from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments
from xentrs.torch._arguments.tensors import as_rows, write_back
from xentrs.torch._gpu import results
from xentrs.torch._gpu.math import narrowed
from xentrs.torch._gpu.softmax import coefficients, target_as_rows
from xentrs.torch._gpu.tiles import tiles, warps
from xentrs.torch._triton import Kernel, load_triton

if TYPE_CHECKING:
    import triton.language as tl


def evaluate(
    call: SoftmaxArguments, options: Options, with_grad: bool, inplace: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient if wanted."""
    x, ignored = call.input.detach(), options.ignored
    target = target_as_rows(call, ignored)
    rows = as_rows(x)
    n, classes, positions = rows.shape
    samples = n * positions
    s = call.sample_weight
    s = None if s is None else s.detach().reshape(n, positions)
    w = None if call.weight is None else call.weight.detach().contiguous()
    divisor = call.divisor(options) if options.reduction == "mean" else None
    given = [t for t in (x, target if call.is_soft else None, w) if t is not None]
    wide = any(t.dtype == torch.float64 for t in given)
    losses, grad = results.allocate(x, samples, options, with_grad, inplace)
    g = rows if grad is None else as_rows(grad)
    if samples:
        _, tl = load_triton()
        r, b = tiles(classes, positions)
        _likelihood[(-(-samples // r),)](
            rows, *rows.stride(), target, *target.stride(), w,
            s, *((0, 0) if s is None else s.stride()), divisor,
            losses, None if grad is None else g, *g.stride(), samples, classes, positions,
            IGNORED=ignored[0] if ignored and not call.is_soft else None,
            SMOOTHING=options.label_smoothing, EVEN=options.label_smoothing / classes,
            SOFT=call.is_soft, ACC=tl.float64 if wide else tl.float32,
            R=r, B=b, num_warps=warps(r * b),
        )  # fmt: skip
        write_back(grad, g)
    return results.reduced(losses, call, options, divisor), grad


# x, target, sample_weight and grad come with their strides, of samples (_n), classes (_c) and
# positions (_d). EVEN is SMOOTHING over the number of classes.
@Kernel
@no_type_check
def _likelihood(
    x, x_n, x_c, x_d, target, t_n, t_c, t_d, weight, sample_weight, s_n, s_d, divisor,
    loss, grad, g_n, g_c, g_d, samples, classes, positions,
    IGNORED: tl.constexpr, SMOOTHING: tl.constexpr, EVEN: tl.constexpr, SOFT: tl.constexpr,
    ACC: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    KEEP: tl.constexpr = 1.0 - SMOOTHING
    i = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    live = i < samples
    n = i // positions
    d = i % positions
    x_row = (x + n * x_n + d * x_d)[:, None]
    t_row = (target + n * t_n + d * t_d)[:, None]
    keep = live
    factor = tl.full([R], 1.0, tl.float64)
    if sample_weight is not None:
        factor *= tl.load(sample_weight + n * s_n + d * s_d, mask=live, other=0).to(tl.float64)
        keep &= factor != 0.0  # NaN counts
    result = tl.zeros([R], tl.float64)
    if SOFT:
        y = tl.full([R], -1, tl.int64)
        own = tl.zeros([R], tl.float64)
    else:
        y = tl.load(target + n * t_n + d * t_d, mask=live, other=0).to(tl.int64)
        valid = (y >= 0) & (y < classes)
        looked_at = live
        if IGNORED is not None:
            looked_at = live & (y != IGNORED)
        tl.device_assert(valid | (looked_at == 0), "target is out of bounds")
        keep &= looked_at & valid
        y = tl.where(keep, y, 0)
        own = tl.full([R], KEEP, tl.float64)
        if weight is not None:
            own *= tl.load(weight + y, mask=keep, other=0).to(tl.float64)
            if SMOOTHING == 0.0:
                keep &= own != 0.0
        x_y = tl.load(x + n * x_n + d * x_d + y * x_c, mask=keep & (own != 0.0), other=0)
        result -= own * x_y.to(tl.float64)
    cols = tl.arange(0, B)[None, :].to(tl.int64)
    if SOFT or EVEN != 0.0:
        for start in range(0, classes, B):
            c = cols + start
            mask = keep[:, None] & (c < classes)
            a = coefficients(t_row, t_c, weight, c, mask, EVEN, KEEP, SOFT, ACC)
            z = tl.load(x_row + c * x_c, mask=mask & (a != 0.0), other=0).to(ACC)
            result -= tl.sum(a * z, 1).to(tl.float64)
    tl.store(loss + i, tl.where(keep, factor * result, 0.0), mask=live)

    if grad is not None:
        if divisor is not None:
            factor = factor / tl.load(divisor)
        own = (own * factor).to(ACC)[:, None]
        factor = factor.to(ACC)[:, None]
        g_row = (grad + n * g_n + d * g_d)[:, None]
        for start in range(0, classes, B):
            c = cols + start
            mask = live[:, None] & (c < classes)
            a = coefficients(t_row, t_c, weight, c, mask, EVEN, KEEP, SOFT, ACC)
            g = tl.where(a == 0.0, 0.0, -factor * a) - tl.where(c == y[:, None], own, 0.0)
            g = tl.where(keep[:, None], g, 0.0)
            tl.store(g_row + c * g_c, narrowed(g, grad), mask=mask)
