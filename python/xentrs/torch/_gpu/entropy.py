"""The entropy of a softmax on a GPU: one Triton kernel, from the logits to loss and gradient.

A program takes R samples, and of each its classes in tiles of B. For one sample with logits x:

    for each tile:                                         # first sweep
        top = the largest logit so far
        rest = sum of exp(x[c] - top) over c other than one of the largest
        away = sum of exp(x[c] - top) (top - x[c])
    mean = away / (1 + rest)
    loss = log1p(rest) + mean
    for each tile again:                                   # second sweep
        gradient[c] = exp(x[c] - top) / (1 + rest) (top - x[c] - mean)

What keeps the digits: no term of the loss is negative, and 1 is never added before the logarithm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
from torch import Tensor

from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments
from xentrs.torch._arguments.tensors import as_rows, write_back
from xentrs.torch._gpu import results
from xentrs.torch._gpu.math import difference, divided, exp_over, log1p, narrowed
from xentrs.torch._gpu.tiles import tiles, warps
from xentrs.torch._triton import Kernel, load_triton

if TYPE_CHECKING:
    import triton.language as tl


def evaluate(
    call: SoftmaxArguments, options: Options, with_grad: bool, inplace: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the logits if wanted."""
    x = call.input.detach()
    rows = as_rows(x)
    n, classes, positions = rows.shape
    samples = n * positions
    s = call.sample_weight
    s = None if s is None else s.detach().reshape(n, positions)
    divisor = call.divisor(options) if options.reduction == "mean" else None
    losses, grad = results.allocate(x, samples, options, with_grad, inplace)
    g = rows if grad is None else as_rows(grad)
    wide = x.dtype == torch.float64
    if samples:
        _, tl = load_triton()
        r, b = tiles(classes, positions, more=True, wide=wide)
        _entropy[(-(-samples // r),)](
            rows, *rows.stride(), s, *((0, 0) if s is None else s.stride()), divisor,
            losses, None if grad is None else g, *g.stride(), samples, classes, positions,
            ACC=tl.float64 if wide else tl.float32,
            R=r, B=b, MANY=b < classes, num_warps=warps(r * b, 8 if wide else 16),
        )  # fmt: skip
        write_back(grad, g)
    return results.reduced(losses, call, options, divisor), grad


# x, sample_weight and grad come with their strides, of samples (_n), classes (_c) and positions
# (_d). MANY says whether there is more than one tile.
@Kernel
@no_type_check
def _entropy(
    x, x_n, x_c, x_d, sample_weight, s_n, s_d, divisor, loss, grad, g_n, g_c, g_d,
    samples, classes, positions,
    ACC: tl.constexpr, R: tl.constexpr, B: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    live = i < samples
    n = i // positions
    d = i % positions
    x_row = (x + n * x_n + d * x_d)[:, None]
    keep = live
    factor = tl.full([R], 1.0, tl.float64)
    if sample_weight is not None:
        factor *= tl.load(sample_weight + n * s_n + d * s_d, mask=live, other=0).to(tl.float64)
        keep &= factor != 0.0  # NaN counts

    # First sweep
    cols = tl.arange(0, B)[None, :].to(tl.int64)
    mask = live[:, None] & (cols < classes)
    first = tl.load(x_row + cols * x_c, mask=mask, other=float("-inf")).to(ACC)
    top = tl.full([R], float("-inf"), ACC)
    zero = tl.zeros([R], ACC)
    top, rest, away = _accumulate(first, cols, top, zero, zero)
    if MANY:
        for start in range(B, classes, B):
            c = cols + start
            m = live[:, None] & (c < classes)
            z = tl.load(x_row + c * x_c, mask=m, other=float("-inf")).to(ACC)
            top, rest, away = _accumulate(z, c, top, rest, away)

    # The loss; a sample without a finite logit has none.
    some = top != float("-inf")
    top = tl.where(some, top, 0.0)
    sum_ = tl.where(some, 1.0 + rest, float("nan"))
    mean = divided(away, sum_)
    result = (log1p(rest) + mean).to(tl.float64)
    tl.store(loss + i, tl.where(keep, factor * result, 0.0), mask=live)

    # Second sweep
    if grad is not None:
        if divisor is not None:
            factor = factor / tl.load(divisor)
        factor = (factor / sum_.to(tl.float64)).to(ACC)[:, None]
        g_row = (grad + n * g_n + d * g_d)[:, None]
        top, mean, kept = top[:, None], mean[:, None], keep[:, None]
        g = _gradient(first, top, mean, factor, kept)
        tl.store(g_row + cols * g_c, narrowed(g, grad), mask=mask)
        if MANY:
            for start in range(B, classes, B):
                c = cols + start
                m = live[:, None] & (c < classes)
                z = tl.load(x_row + c * x_c, mask=m, other=float("-inf")).to(ACC)
                g = _gradient(z, top, mean, factor, kept)
                tl.store(g_row + c * g_c, narrowed(g, grad), mask=m)


# Add a tile to the sums.
@Kernel
@no_type_check
def _accumulate(x, cols, top, rest, away):
    largest = tl.max(x, 1)
    grew = largest > top
    new = tl.maximum(top, largest)
    safe = tl.where(new == float("-inf"), 0.0, new)
    # What was the largest logit so far is one of the others now.
    rest += tl.where(grew & (top != float("-inf")), 1.0, 0.0)
    d, low = difference(top, safe)
    shrink = exp_over(d, low, 1.0)
    away = tl.where(shrink == 0.0, 0.0, shrink * (away + rest * (safe - top)))
    d, low = difference(x, safe[:, None])
    out = grew[:, None] & (cols == tl.argmax(x, 1)[:, None] + tl.min(cols, 1)[:, None])
    e = tl.where(out, d, exp_over(d, low, 1.0))  # 0, or NaN for an infinite logit
    rest = rest * shrink + tl.sum(e, 1)
    away += tl.sum(tl.where(e == 0.0, 0.0, e * -d), 1)
    return new, rest, away


@Kernel
@no_type_check
def _gradient(x, top, mean, factor, keep):
    d, low = difference(x, top)
    e = exp_over(d, low, 1.0)
    g = tl.where(e == 0.0, 0.0 * factor, e * (-d - mean) * factor)
    return tl.where(keep, g, 0.0)
