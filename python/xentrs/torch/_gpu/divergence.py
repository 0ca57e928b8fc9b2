"""Divergences of two softmaxes on a GPU: one Triton kernel, from both logits to loss and gradient.

A program takes R samples, and of each its classes in tiles of B. With the model's logits x and the
teacher's y, both over the temperature T, p and q their softmaxes and d = log p - log q:

    for each tile:                                         # first sweep
        the largest x and y so far; sums X of exp(x - top), Y of exp(y - top)
    K = T (log sum exp x - log sum exp y)                  # of the unscaled logits
    for each tile again:                                   # second sweep
        excess = sum of q (e^d - 1)                        # 0 for the exact K
    K += T log1p(excess)
    for each tile again:                                   # third sweep
        loss = sum of the terms; mean = what the gradient subtracts
    for each tile again:                                   # fourth sweep
        gradient = p - q, or p (log(p / m) - mean)

`src/divergence/mod.rs` derives the terms, which are not negative. That of the mixture
m = beta q + (1 - beta) p is here m (beta h(u_q) + (1 - beta) h(u_p)), with u_p = p / m - 1,
u_q = q / m - 1 and h(u) = (1 + u) log(1 + u) - u.

What keeps the digits: x - y with its rounding error, K in two parts, and the second sweep, after
which K is as exact as the d that are near 0.

Cost: one reading of both logits and one writing of the gradient if a tile holds all classes (up to
8192; half of that for a mixture, and for float64), for the later sweeps find it in registers. Else
each sweep reads the tiles again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
from torch import Tensor

from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments
from xentrs.torch._arguments.tensors import as_rows, write_back
from xentrs.torch._gpu import results
from xentrs.torch._gpu.math import difference, exp_over, log1p, narrowed
from xentrs.torch._gpu.tiles import Sizes, tiles, warps
from xentrs.torch._triton import Kernel, load_triton

if TYPE_CHECKING:
    import triton.language as tl

# Registers hold two arrays of logits. These sizes are for float32 and one direction. They are half
# for float64, and for a mixture, whose terms need more registers.
_SIZES = Sizes(longest=1 << 13, tile=1 << 12, least=1 << 10, classes=16)


def evaluate(
    call: SoftmaxArguments,
    options: Options,
    with_grad: bool,
    inplace: bool = False,
    *,
    temperature: float,
    beta: float,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the logits if wanted.

    A beta of 0 stands for KL(teacher, model), one of 1 for KL(model, teacher).
    """
    x, y = call.input.detach(), call.target.detach()
    rows, teacher = as_rows(x), as_rows(y)
    n, classes, positions = rows.shape
    samples = n * positions
    s = call.sample_weight
    s = None if s is None else s.detach().reshape(n, positions)
    divisor = call.divisor(options) if options.reduction == "mean" else None
    wide = torch.float64 in (x.dtype, y.dtype)
    losses, grad = results.allocate(x, samples, options, with_grad, inplace)
    g = rows if grad is None else as_rows(grad)
    if samples:
        _, tl = load_triton()
        each = 16 >> ((0.0 < beta < 1.0) + wide)  # of the logits, for a thread
        most = {"longest": min(_SIZES.longest, 512 * each), "tile": min(_SIZES.tile, 256 * each)}
        r, b = tiles(classes, positions, _SIZES._replace(**most))
        _divergence[(-(-samples // r),)](
            rows, *rows.stride(), teacher, *teacher.stride(),
            s, *((0, 0) if s is None else s.stride()), divisor,
            losses, None if grad is None else g, *g.stride(), samples, classes, positions,
            T=temperature, BETA=beta, ACC=tl.float64 if wide else tl.float32,
            TERMS=16 if wide else 9, NEAR=0.5 if wide else 1.0,
            R=r, B=b, MANY=b < classes, num_warps=min(warps(r * b, each), 16),
        )  # fmt: skip
        write_back(grad, g)
    return results.reduced(losses, call, options, divisor), grad


# x, teacher, sample_weight and grad come with their strides, of samples (_n), classes (_c) and
# positions (_d). Series of TERMS coefficients stand for e^d - 1 - d where |d| is below NEAR, and
# for h(u) where u is near 0. MANY says whether there is more than one tile.
@Kernel
@no_type_check
def _divergence(
    x, x_n, x_c, x_d, teacher, t_n, t_c, t_d, sample_weight, s_n, s_d, divisor,
    loss, grad, g_n, g_c, g_d, samples, classes, positions,
    T: tl.constexpr, BETA: tl.constexpr, ACC: tl.constexpr, TERMS: tl.constexpr,
    NEAR: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    MANY: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    live = i < samples
    n = i // positions
    d = i % positions
    x_row = (x + n * x_n + d * x_d)[:, None]
    y_row = (teacher + n * t_n + d * t_d)[:, None]
    keep = live
    factor = tl.full([R], 1.0, tl.float64)
    if sample_weight is not None:
        factor *= tl.load(sample_weight + n * s_n + d * s_d, mask=live, other=0).to(tl.float64)
        keep &= factor != 0.0  # NaN counts
    cols = tl.arange(0, B)[None, :].to(tl.int64)
    mask = live[:, None] & (cols < classes)

    # First sweep
    x_first = _load(x_row, cols, x_c, mask, ACC)
    y_first = _load(y_row, cols, t_c, mask, ACC)
    lowest = tl.full([R], float("-inf"), ACC)
    zero = tl.zeros([R], ACC)
    x_top, x_sum = _accumulate(x_first, lowest, zero, T)
    y_top, y_sum = _accumulate(y_first, lowest, zero, T)
    if MANY:
        for start in range(B, classes, B):
            c = cols + start
            m = live[:, None] & (c < classes)
            x_top, x_sum = _accumulate(_load(x_row, c, x_c, m, ACC), x_top, x_sum, T)
            y_top, y_sum = _accumulate(_load(y_row, c, t_c, m, ACC), y_top, y_sum, T)
    # A sum without a finite logit, or with an infinite one, is none.
    x_top = tl.where(tl.abs(x_top) < float("inf"), x_top, float("nan"))
    y_top = tl.where(tl.abs(y_top) < float("inf"), y_top, float("nan"))
    tops = x_top.to(tl.float64) - y_top.to(tl.float64)
    apart = tops + T * tl.log(x_sum.to(tl.float64) / y_sum.to(tl.float64))

    # Second sweep
    p, q, e = _models(x_first, y_first, x_top, y_top, x_sum, y_sum, apart, T, ACC)
    excess = tl.sum(_change(p, q, e, TERMS, NEAR), 1).to(tl.float64)
    if MANY:
        for start in range(B, classes, B):
            c = cols + start
            m = live[:, None] & (c < classes)
            x_c_, y_c_ = _load(x_row, c, x_c, m, ACC), _load(y_row, c, t_c, m, ACC)
            p, q, e = _models(x_c_, y_c_, x_top, y_top, x_sum, y_sum, apart, T, ACC)
            excess += tl.sum(_change(p, q, e, TERMS, NEAR), 1).to(tl.float64)
    # As log1p; it is some rounding errors.
    apart += T * (excess - 0.5 * excess * excess)

    # Third sweep
    p, q, e = _models(x_first, y_first, x_top, y_top, x_sum, y_sum, apart, T, ACC)
    term, slope = _term(p, q, e, BETA, TERMS, NEAR)
    result = tl.sum(term, 1).to(tl.float64)
    mean = tl.sum(tl.where(p == 0.0, 0.0, p * slope), 1).to(tl.float64)
    if MANY:
        for start in range(B, classes, B):
            c = cols + start
            m = live[:, None] & (c < classes)
            x_c_, y_c_ = _load(x_row, c, x_c, m, ACC), _load(y_row, c, t_c, m, ACC)
            p, q, e = _models(x_c_, y_c_, x_top, y_top, x_sum, y_sum, apart, T, ACC)
            term, slope = _term(p, q, e, BETA, TERMS, NEAR)
            result += tl.sum(term, 1).to(tl.float64)
            mean += tl.sum(tl.where(p == 0.0, 0.0, p * slope), 1).to(tl.float64)
    if BETA == 1.0:
        mean = result
    if classes == 1:
        result = 0.0 * (x_top + y_top).to(tl.float64)
    tl.store(loss + i, tl.where(keep, factor * result, 0.0), mask=live)

    # Fourth sweep
    if grad is not None:
        if divisor is not None:
            factor = factor / tl.load(divisor)
        factor = (factor * ((1.0 - BETA) if BETA != 1.0 else 1.0) / T).to(ACC)[:, None]
        # An infinite loss has no gradient.
        mean = tl.where(tl.abs(mean) < float("inf"), mean, float("nan")).to(ACC)[:, None]
        g_row = (grad + n * g_n + d * g_d)[:, None]
        kept = keep[:, None]
        p, q, e = _models(x_first, y_first, x_top, y_top, x_sum, y_sum, apart, T, ACC)
        g = _gradient(p, q, e, mean, factor, kept, classes, BETA, TERMS, NEAR)
        tl.store(g_row + cols * g_c, narrowed(g, grad), mask=mask)
        if MANY:
            for start in range(B, classes, B):
                c = cols + start
                m = live[:, None] & (c < classes)
                x_c_, y_c_ = _load(x_row, c, x_c, m, ACC), _load(y_row, c, t_c, m, ACC)
                p, q, e = _models(x_c_, y_c_, x_top, y_top, x_sum, y_sum, apart, T, ACC)
                g = _gradient(p, q, e, mean, factor, kept, classes, BETA, TERMS, NEAR)
                tl.store(g_row + c * g_c, narrowed(g, grad), mask=m)


@Kernel
@no_type_check
def _load(row, cols, step, mask, ACC: tl.constexpr):
    return tl.load(row + cols * step, mask=mask, other=float("-inf")).to(ACC)


# Add a tile to the sum of exponentials.
@Kernel
@no_type_check
def _accumulate(x, top, total, T: tl.constexpr):
    new = tl.maximum(top, tl.max(x, 1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    d, low = difference(top, safe)
    total *= exp_over(d, low, T)
    d, low = difference(x, safe[:, None])
    total += tl.sum(exp_over(d, low, T), 1)
    return new, total


# p, q and the difference of their logarithms. `apart` is T times that of the logsumexps.
@Kernel
@no_type_check
def _models(x, y, x_top, y_top, x_sum, y_sum, apart, T: tl.constexpr, ACC: tl.constexpr):
    d, low = difference(x, x_top[:, None])
    p = exp_over(d, low, T) / x_sum[:, None]
    d, low = difference(y, y_top[:, None])
    q = exp_over(d, low, T) / y_sum[:, None]
    high, low = difference(x, y)
    low = tl.where(tl.abs(high) < float("inf"), low, 0.0)
    apart_high = apart.to(ACC)
    apart_low = (apart - apart_high.to(tl.float64)).to(ACC)
    d = ((high - apart_high[:, None]) + (low - apart_low[:, None])) * (1.0 / T)
    return p, q, d


# e^d - 1 - d by its series
@Kernel
@no_type_check
def _beyond(d, TERMS: tl.constexpr):
    total = tl.full(d.shape, 0.0, d.dtype)
    for k in tl.static_range(TERMS):
        # The series from its end: 1 + d / (j + 1) (1 + d / (j + 2) (...))
        total = 1.0 + d * total / (TERMS + 2 - k)
    return 0.5 * d * d * total


# p - q
@Kernel
@no_type_check
def _change(p, q, d, TERMS: tl.constexpr, NEAR: tl.constexpr):
    near = tl.abs(d) < NEAR
    close = tl.where(near, d, 0.0)
    return tl.where(near, q * (close + _beyond(close, TERMS)), p - q)


# (1 + u) log(1 + u) - u, where `above` is 1 + u. With s = u / (2 + u), log(1 + u) is 2 atanh(s),
# and by its series the whole is u s (1 + (1 + s) s (1/3 + s^2/5 + s^4/7 + ...)).
@Kernel
@no_type_check
def _entropy(u, above, TERMS: tl.constexpr):
    near = (u > -0.5) & (u < 1.0)
    close = tl.where(near, u, 0.0)
    s = close / (2.0 + close)
    total = tl.full(u.shape, 0.0, u.dtype)
    for k in tl.static_range(TERMS):
        total = total * (s * s) + 1.0 / (2 * (TERMS - k) + 1)
    far = tl.where(above == 0.0, 0.0, above * tl.log(tl.where(above == 0.0, 1.0, above))) - u
    return tl.where(near, close * s * (1.0 + (1.0 + s) * s * total), far)


# The term of the loss, and what the gradient multiplies p by.
@Kernel
@no_type_check
def _term(
    p, q, d, BETA: tl.constexpr, TERMS: tl.constexpr, NEAR: tl.constexpr
):  # fmt: skip
    near = tl.abs(d) < NEAR
    close = tl.where(near, d, 0.0)
    if BETA == 0.0:
        far = (p - q) - q * d
        term = tl.where(near, q * _beyond(close, TERMS), far)
        return tl.where(q == 0.0, p, term), d
    if BETA == 1.0:
        far = (q - p) + p * d
        term = tl.where(near, p * _beyond(-close, TERMS), far)
        return tl.where(p == 0.0, q, term), d
    mixture = BETA * q + (1.0 - BETA) * p
    some = mixture != 0.0
    safe = tl.where(some, mixture, 1.0)
    apart = _change(p, q, d, TERMS, NEAR) / safe
    of_p = BETA * apart
    of_q = (BETA - 1.0) * apart
    term = BETA * _entropy(of_q, q / safe, TERMS)
    term += (1.0 - BETA) * _entropy(of_p, p / safe, TERMS)
    ratio = tl.where(p == 0.0, 1.0, p / safe)
    slope = tl.where(of_p > -0.5, log1p(tl.where(of_p > -0.5, of_p, 0.0)), tl.log(ratio))
    return tl.where(some, safe * term, 0.0), tl.where(some, slope, 0.0)


@Kernel
@no_type_check
def _gradient(
    p, q, d, mean, factor, keep, classes, BETA: tl.constexpr, TERMS: tl.constexpr,
    NEAR: tl.constexpr,
):  # fmt: skip
    if BETA == 0.0:
        g = _change(p, q, d, TERMS, NEAR)
    else:
        _, slope = _term(p, q, d, BETA, TERMS, NEAR)
        g = tl.where(p == 0.0, 0.0 * mean, p * (slope - mean))
    if classes == 1:
        g = 0.0 * (p + q)
    return tl.where(keep & (g != 0.0), g * factor, 0.0)
