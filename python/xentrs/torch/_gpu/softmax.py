"""Softmax losses on a GPU: one Triton kernel, from the logits to the loss and the gradient.

A program takes R samples, and of each its classes in tiles of B. In the notation of the kernel, for
one sample with logits x (after softcap and temperature), where class y is the target and `own` its
weight, and where a[c] are the coefficients of -log p[c] that smoothing or a target of probabilities
bring:

    for each tile:                                         # first sweep
        top = the largest logit so far
        rest = sum of exp(x[c] - top) over c other than y
        total, away = sum of a[c], sum of a[c] (top - x[c])
    sum = rest + exp(x[y] - top);  log_sum = log(sum);  logsumexp = top + log_sum
    l = log1p(rest / exp(x[y] - top))                      # -log p[y]
    loss = own l + total log_sum + away + Z logsumexp^2
    for each tile again:                                   # second sweep
        p[c] = exp(x[c] - top) / sum
        gradient[c] = (own + total + 2 Z logsumexp) p[c] - a[c]
        gradient[y] = (total + 2 Z logsumexp) p[y] - a[y] - own rest / sum

A loss that is a function of l puts its value in the place of l in `own l`. Its gradient is that of
`own l` times its slope in l.

What keeps the digits: `rest` is a sum of its own, so neither the loss nor the gradient at y is a
difference of rounded numbers, and 1 - p[y] is none. Without one class y (probabilities) the largest
logit takes its place in `rest`. Numbers of a sample are float64 from where they may exceed float32.

Exponentials of float32 are good to one unit in the last place at every exponent (`exp_over`), and
their sum is float64.

Cost: one reading of the logits and one writing of the gradient if a tile holds all classes (up to
32768; 16384 with softcap or a target of probabilities, 4096 in float64), for the second sweep finds
it in registers. Else the second sweep reads all tiles but the first again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
from torch import Tensor

from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import (
    SoftmaxArguments,
    Summaries,
    capped,
    check_indices,
    not_ignored,
    slope_of_cap,
)
from xentrs.torch._arguments.tensors import as_rows, write_back
from xentrs.torch._gpu import results
from xentrs.torch._gpu.math import difference, divided, exp_over, log1p, narrowed, tanh
from xentrs.torch._gpu.tiles import tiles, warps
from xentrs.torch._private import assert_on_device
from xentrs.torch._triton import Kernel, load_triton

if TYPE_CHECKING:
    import triton.language as tl


def evaluate(
    call: SoftmaxArguments,
    options: Options,
    with_grad: bool,
    inplace: bool = False,
    summaries: Summaries | None = None,
    objective: Kernel | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the logits if wanted.

    `objective` is a loss that is a function of l = -log p[y]: a Triton function
    ``(l, e_y, rest, OWN: tl.constexpr)`` that returns its value and its slope in l, in float64. In
    it p[y] is ``e_y / (rest + e_y)``, and OWN are the loss's own options.
    """
    original, entries = call, None
    if call.probabilities is not None:
        entries = _Entries(call, options)
        call = call._replace(target=entries.pivot, probabilities=None)
        if options.reduction == "mean":
            call = call._replace(denominator=entries.divisor, z_denominator=entries.z_divisor)
        options = options._replace(ignored=())
    x, ignored = call.input.detach(), options.ignored
    rows = as_rows(x)
    n, classes, positions = rows.shape
    samples = n * positions
    target = target_as_rows(call, ignored)
    s = call.sample_weight
    s = None if s is None else s.detach().reshape(n, positions)
    w = None if call.weight is None else call.weight.detach().contiguous()
    divisor = z_divisor = None
    if options.reduction == "mean":
        divisor = call.divisor(options)
        z_divisor = call.z_divisor(options) if options.z_loss else None
    # Labels and weights of each entry are not rounded to the logits' type.
    given = [x, call.target] if call.is_soft else [x]
    if entries is not None:
        given.append(entries.probabilities)
    if w is not None and (call.is_soft or options.label_smoothing):
        given.append(w)
    wide = any(t.dtype == torch.float64 for t in given)
    losses, grad = results.allocate(x, samples, options, with_grad, inplace)
    g = rows if grad is None else as_rows(grad)
    if samples:
        _, tl = load_triton()
        more = call.is_soft or options.softcap != 0.0
        r, b = tiles(classes, positions, more=more, wide=wide)
        _softmax_loss[(-(-samples // r),)](
            rows, *rows.stride(), target, *target.stride(), w,
            None if entries is None else entries.total,
            None if entries is None else entries.distance,
            s, *((0, 0) if s is None else s.stride()), divisor,
            z_divisor,
            None if summaries is None else summaries.logsumexp,
            None if summaries is None else summaries.argmax,
            losses, None if grad is None else g, *g.stride(), samples, classes, positions,
            IGNORED=ignored[0] if ignored and not call.is_soft else None,
            SMOOTHING=options.label_smoothing, EVEN=options.label_smoothing / classes,
            Z=options.z_loss, CAP=options.softcap, T=options.temperature,
            OBJECTIVE=None if objective is None else objective.compiled(),
            OWN=options.own, SOFT=call.is_soft,
            ACC=tl.float64 if wide else tl.float32, NEAR=600.0 if wide else 40.0,
            R=r, B=b, MANY=b < classes, num_warps=warps(r * b, 8 if wide else 16),
        )  # fmt: skip
        write_back(grad, g)
        if entries is not None and grad is not None:
            entries.correct(grad)
    return results.reduced(losses, original, options, divisor), grad


def target_as_rows(call: SoftmaxArguments, ignored: tuple[int, ...]) -> Tensor:
    """Return probabilities, or class indices with one class, as samples x classes x positions.

    Of several ignored indices the first stands for all.
    """
    target = call.target.detach()
    if call.is_soft:
        return as_rows(target)
    if target.dtype in (torch.uint16, torch.uint32, torch.uint64) or len(ignored) > 1:
        target = target.long()
    if call.input.device.type == "cpu":  # Triton's interpreter leaves out assertions
        check_indices(call, ignored)
    for index in ignored[1:]:
        target = torch.where(target == index, ignored[0], target)
    n, _, positions = as_rows(call.input).shape
    return target.reshape(n, 1, positions)


class _Entries:
    """The target is a pair: what the kernel takes as class indices of a weight, and the rest.

    The pivot y is the entries' class of the largest logit. With t the entries' coefficients the
    loss is ``sum(t) (-log p[y]) + sum(t (x[y] - x))``, no term of which cancels another. The
    kernel has the gradient ``sum(t) (p - [c = y])``, which `correct` corrects at the entries.
    """

    def __init__(self, call: SoftmaxArguments, options: Options) -> None:
        x, axis, cap = call.input.detach(), call.axis, options.softcap
        if x.device.type == "cpu":  # Triton's interpreter leaves out assertions
            check_indices(call, options.ignored)
        else:
            y = call.indices
            inside = (y >= 0) & (y < call.classes) | ~not_ignored(y, options.ignored)
            assert_on_device(inside.all(), "target is out of bounds")
        self.axis, self.probabilities = axis, call.probabilities
        self.classes, q = call.entries(options)
        t = q.double() * (1.0 - options.label_smoothing)
        if call.weight is not None:
            t = t * call.weight.detach().double()[self.classes]
        logits = x.gather(axis, self.classes).double()
        slope = torch.ones_like(logits)
        if cap:
            slope, logits = slope_of_cap(logits, cap), capped(logits, cap)
        has = t != 0.0
        if t.shape[axis]:
            first = torch.where(has, logits, -torch.inf).argmax(axis, keepdim=True)
            pivot, top = self.classes.gather(axis, first), logits.gather(axis, first)
            slope_at_pivot = slope.gather(axis, first)
        else:
            pivot = torch.zeros((), dtype=torch.int64, device=x.device).expand(call.samples)
            pivot, top = (
                pivot.unsqueeze(axis),
                logits.new_zeros(()).expand(pivot.unsqueeze(axis).shape),
            )
            slope_at_pivot = torch.ones_like(top)
        below = torch.where(has & (logits != top), t * (top - logits), 0.0) / options.temperature
        at_pivot = self.classes == pivot
        others = torch.where(at_pivot, 0.0, t).sum(axis, keepdim=True)
        self.pivot = pivot.squeeze(axis)
        self.total, self.distance = (v.sum(axis).contiguous() for v in (t, below))
        self._at = torch.cat([self.classes, pivot], axis)
        self._more = torch.cat([torch.where(at_pivot, 0.0, -t), others], axis)
        self._more *= torch.cat([slope, slope_at_pivot], axis)
        self._factor = call.factor(options).double().unsqueeze(axis) / options.temperature
        self.divisor = self.z_divisor = None
        if options.reduction == "mean":
            self.divisor = call.divisor(options)
            self.z_divisor = call.z_divisor(options) if options.z_loss else None

    def correct(self, grad: Tensor) -> None:
        """Add to the kernel's gradient what it lacks."""
        more = torch.where(self._more == 0.0, 0.0, self._more * self._factor)
        grad.scatter_add_(self.axis, self._at, more.to(grad.dtype))


# x, target, sample_weight and grad come with their strides, of samples (_n), classes (_c) and
# positions (_d). `total_weight` and `distance` are of a pair: the weight of class y, instead of
# `weight`, and a further part of the loss. EVEN is SMOOTHING over the number of classes. Where x[y]
# is less than NEAR below top, l comes from the ratio of rest and exp(x[y] - top); further down that
# may vanish. MANY says whether there is more than one tile: loops that are never entered would
# still take registers.
@Kernel
@no_type_check
def _softmax_loss(
    x, x_n, x_c, x_d, target, t_n, t_c, t_d, weight, total_weight, distance,
    sample_weight, s_n, s_d, divisor, z_divisor, logsumexps, argmaxes, loss, grad, g_n, g_c, g_d,
    samples, classes, positions,
    IGNORED: tl.constexpr, SMOOTHING: tl.constexpr, EVEN: tl.constexpr, Z: tl.constexpr,
    CAP: tl.constexpr, T: tl.constexpr, OBJECTIVE: tl.constexpr, OWN: tl.constexpr,
    SOFT: tl.constexpr, ACC: tl.constexpr, NEAR: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    MANY: tl.constexpr,
):  # fmt: skip
    VECTOR: tl.constexpr = SOFT or EVEN != 0.0  # whether there are coefficients a
    KEEP: tl.constexpr = 1.0 - SMOOTHING
    EXACT: tl.constexpr = x.dtype.element_ty.primitive_bitwidth > 16
    i = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    live = i < samples
    n = i // positions
    d = i % positions
    x_row = (x + n * x_n + d * x_d)[:, None]
    t_row = (target + n * t_n + d * t_d)[:, None]

    # The target: its class y, own weight and logit; `keep` is what counts.
    keep = live
    factor = tl.full([R], 1.0, tl.float64)
    if sample_weight is not None:
        factor *= tl.load(sample_weight + n * s_n + d * s_d, mask=live, other=0).to(tl.float64)
        keep &= factor != 0.0  # NaN counts
    if SOFT:
        y = tl.full([R], -1, tl.int64)
        own = tl.zeros([R], tl.float64)
        x_y = tl.full([R], float("-inf"), ACC)
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
        if total_weight is not None:
            own = tl.load(total_weight + i, mask=live, other=0)
        elif weight is not None:
            own *= tl.load(weight + y, mask=keep, other=0).to(tl.float64)
            if SMOOTHING == 0.0:
                keep &= own != 0.0
        if logsumexps is not None:
            y = tl.where(keep, y, -1)  # no class is left out of the sum
        x_y = _capped(_load(x + n * x_n + d * x_d, y, x_c, keep, ACC), CAP)

    # First sweep
    cols = tl.arange(0, B)[None, :].to(tl.int64)
    mask = live[:, None] & (cols < classes)
    given = _load(x_row, cols, x_c, mask, ACC)
    first = _capped(given, CAP)
    a = coefficients(t_row, t_c, weight, cols, mask, EVEN, KEEP, SOFT, ACC)
    zero = tl.zeros([R], ACC)
    rest = tl.zeros([R], tl.float64 if EXACT else ACC)
    top, rest, total, away = _accumulate(
        first, a, cols, y, x_y, rest, zero, zero, VECTOR, SOFT, T, EXACT
    )
    if argmaxes is not None:
        # Of the logits as given: capped ones may be equal where these are not.
        largest = tl.max(given, 1)
        argmax = tl.argmax(given, 1).to(tl.int64)
    if MANY:
        for start in range(B, classes, B):
            c = cols + start
            m = live[:, None] & (c < classes)
            x_part = _load(x_row, c, x_c, m, ACC)
            z = _capped(x_part, CAP)
            b = coefficients(t_row, t_c, weight, c, m, EVEN, KEEP, SOFT, ACC)
            top, rest, total, away = _accumulate(
                z, b, c, y, top, rest, total, away, VECTOR, SOFT, T, EXACT
            )
            if argmaxes is not None:
                here = tl.max(x_part, 1)
                found = tl.argmax(x_part, 1).to(tl.int64) + start
                argmax = tl.where(here > largest, found, argmax)
                largest = tl.maximum(here, largest)
    if argmaxes is not None:
        tl.store(argmaxes + i, argmax, mask=live)

    # The loss
    some = top != float("-inf")
    top = tl.where(some, top, 0.0)
    whole = total.to(tl.float64)
    if SOFT:
        sum_ = (rest + tl.where(some, 1.0, 0.0)).to(ACC)
        rest = rest.to(ACC)
        log_sum = tl.where(some, log1p(rest), float("-inf"))
        result = tl.zeros([R], tl.float64)
    else:
        gap = x_y - top
        e_y = _exp(x_y, top, T, EXACT)
        sum_ = (rest + e_y.to(rest.dtype)).to(ACC)
        rest = rest.to(ACC)
        log_sum = tl.where(x_y == top, log1p(rest), tl.log(sum_))
        near = _over(gap, T) > -NEAR
        far = _over(top.to(tl.float64) - x_y.to(tl.float64), T) + log_sum.to(tl.float64)
        by_ratio = log1p(divided(rest, tl.where(near, e_y, 1.0))).to(tl.float64)
        result = tl.where(near, by_ratio, far)
        if OBJECTIVE is not None:
            e_64, rest_64 = e_y.to(tl.float64), rest.to(tl.float64)
            result, slope = OBJECTIVE(result, e_64, rest_64, OWN)
        nothing = 0.0
        if total_weight is not None:  # also a row without entries is NaN where its sum is
            nothing = 0.0 * tl.log(sum_).to(tl.float64)
        result = tl.where(own == 0.0, nothing, own * result)
        if distance is not None:
            result += tl.load(distance + i, mask=live, other=0)
        if OBJECTIVE is not None:
            own *= slope
    if logsumexps is not None:
        found = log_sum.to(tl.float64) + _over(top.to(tl.float64), T)
        found = tl.where(some, found, float("-inf"))
        tl.store(logsumexps + i, found.to(logsumexps.dtype.element_ty), mask=live)
    if VECTOR:
        result += _over(away.to(tl.float64) * 1048576.0, T)  # 2^20
        result += tl.where(whole == 0.0, 0.0, whole * log_sum.to(tl.float64))
    if Z != 0.0:
        logsumexp = log_sum.to(tl.float64) + _over(top.to(tl.float64), T)
        z_part = Z * logsumexp * logsumexp
        if divisor is not None:
            z_part *= tl.load(divisor) / tl.load(z_divisor)
        result += z_part
    tl.store(loss + i, tl.where(keep, factor * result, 0.0), mask=live)

    # Second sweep
    if grad is not None:
        factor = _over(factor, T)  # as the logits were
        z_factor = factor
        if divisor is not None:
            factor = factor / tl.load(divisor)
            if Z != 0.0:
                z_factor = z_factor / tl.load(z_divisor)
        if classes == 1:  # the loss is 0, and so is its gradient, but for z-loss
            own, whole, factor = 0.0 * own, 0.0 * whole, 0.0 * factor
        extra = divided((own * factor).to(ACC), sum_)[:, None]
        whole *= factor
        if Z != 0.0:
            whole += 2.0 * Z * logsumexp * z_factor
        base = divided(whole.to(ACC), sum_)[:, None]
        factor = factor.to(ACC)
        g_row = (grad + n * g_n + d * g_d)[:, None]
        top, rest, factor, kept = top[:, None], rest[:, None], factor[:, None], keep[:, None]
        g = _gradient(
            given, a, cols == y[:, None], top, base, extra, rest, factor, kept, CAP, T, EXACT
        )
        tl.store(g_row + cols * g_c, narrowed(g, grad), mask=mask)
        if MANY:
            for start in range(B, classes, B):
                c = cols + start
                m = live[:, None] & (c < classes)
                z = _load(x_row, c, x_c, m, ACC)
                b = coefficients(t_row, t_c, weight, c, m, EVEN, KEEP, SOFT, ACC)
                g = _gradient(
                    z, b, c == y[:, None], top, base, extra, rest, factor, kept, CAP, T, EXACT
                )
                tl.store(g_row + c * g_c, narrowed(g, grad), mask=m)


@Kernel
@no_type_check
def _load(x_row, cols, x_c, mask, ACC: tl.constexpr):
    return tl.load(x_row + cols * x_c, mask=mask, other=float("-inf")).to(ACC)


@Kernel
@no_type_check
def _capped(x, CAP: tl.constexpr):
    if CAP != 0.0:
        x = tl.where(tl.abs(x) != float("inf"), CAP * tanh(x / CAP), x)
    return x


# Logits over the temperature, where it is not 1.
@Kernel
@no_type_check
def _over(x, T: tl.constexpr):
    if T != 1.0:
        x = x / T
    return x


# The coefficients a; of a target that is one class, its own is not among them.
@Kernel
@no_type_check
def coefficients(
    t_row, t_c, weight, cols, mask,
    EVEN: tl.constexpr, KEEP: tl.constexpr, SOFT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    if SOFT:
        a = KEEP * tl.load(t_row + cols * t_c, mask=mask, other=0).to(ACC) + EVEN
    else:
        a = tl.zeros(mask.shape, ACC) + EVEN
    if weight is not None:
        a *= tl.load(weight + cols, mask=mask, other=0).to(ACC)
    return tl.where(mask, a, 0.0)


# exp((x - top) / T). For half precision, which has no use for the digits, the exponent is rounded.
@Kernel
@no_type_check
def _exp(x, top, T: tl.constexpr, EXACT: tl.constexpr):
    d, low = difference(x, top)
    if EXACT or d.dtype == tl.float64:
        return exp_over(d, low, T)
    else:
        return tl.exp2(d * (1.4426950408889634 / T))


# Add a tile to the sums. `rest` is float64, and with EXACT its terms of a tile are added so: one
# term may be most of it, and rounding each addition would cost some digits. The terms of `away` do
# not cancel. A difference of two float32 may exceed float32, so `away` is kept as its 2^-20th part.
@Kernel
@no_type_check
def _accumulate(
    x, a, cols, y, top, rest, total, away, VECTOR: tl.constexpr, SOFT: tl.constexpr,
    T: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    largest = tl.max(x, 1)
    new = tl.maximum(top, largest)
    safe = tl.where(new == float("-inf"), 0.0, new)
    e = _exp(x, safe[:, None], T, EXACT)
    if SOFT:  # without the largest logit itself
        grew = largest > top
        rest += tl.where(grew & (top != float("-inf")), 1.0, 0.0)  # the largest of earlier tiles
        out = grew[:, None] & (cols == tl.argmax(x, 1)[:, None] + tl.min(cols, 1)[:, None])
        e = tl.where(out, x - safe[:, None], e)  # 0, or NaN for an infinite logit
    else:
        e = tl.where(cols == y[:, None], 0.0, e)
    shrink = _exp(top, safe, T, EXACT).to(rest.dtype)
    if EXACT:
        e = e.to(tl.float64)
    rest = rest * shrink + tl.sum(e, 1).to(rest.dtype)
    if VECTOR:
        before = tl.where(top == float("-inf"), 0.0, top)
        part = 9.5367431640625e-07  # 2^-20
        away += tl.where(total == 0.0, 0.0, total * (safe * part - before * part))
        away += tl.sum(tl.where(a == 0.0, 0.0, a * ((safe * part)[:, None] - x * part)), 1)
        total += tl.sum(a, 1)
    return new, rest, total, away


@Kernel
@no_type_check
def _gradient(
    x, a, is_target, top, base, extra, rest, factor, keep, CAP: tl.constexpr, T: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    e = _exp(_capped(x, CAP), top, T, EXACT)
    g = e * base - factor * a + tl.where(is_target, -extra * rest, extra * e)
    if CAP != 0.0:
        HALF: tl.constexpr = CAP / 2.0
        w = exp_over(-tl.abs(x), 0.0, HALF)
        g *= 4.0 * w / ((1.0 + w) * (1.0 + w))  # 1 - tanh^2 would cancel
    return tl.where(keep, g, 0.0)
