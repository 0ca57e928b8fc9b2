"""Cross-entropy of logits: Triton kernel, operator, autograd, public function and module.

The forward computes the loss and, where a gradient will be asked for, the gradient too, from the
same pass over the logits; the backward multiplies it by what arrives there, in place, and not at
all where that is 1. Between the two, nothing of the size of the logits is kept but the gradient.
For float16 it is the other way round: the logits are kept, and the backward computes the gradient.

A call on plain tensors goes to `_Eager`. Whatever traces or transforms (`torch.compile`,
`torch.func`, dispatch modes) meets the operator ``xentrs::cross_entropy`` instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, no_type_check
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as _pytorchs

import xentrs
from xentrs import _arrays, _xentrs
from xentrs._xentrs import quick_cross_entropy
from xentrs.torch import _autograd, _backend
from xentrs.torch._autograd import is_done
from xentrs.torch._backend import FLOATS, HALVES, Kernel
from xentrs.torch._math import log1p, narrowed, tanh
from xentrs.torch._options import (
    Ignored,
    Options,
    are_tensors,
    check_number,
    check_tensor,
    ignored_indices,
    is_number,
    legacy_reduction,
)

if TYPE_CHECKING:
    import triton.language as tl

_NAME = "xentrs.torch.cross_entropy"
_INTEGERS = frozenset(
    {torch.int64, torch.int32, torch.int16, torch.int8}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)

# Where the CPU computes in another type than that of the logits, or around the kernel, it does so
# by chunks of so many elements for each thread, which stay in the second-level cache.
_CHUNK = 1 << 16

# On the GPU a row of at most so many classes stays in registers; longer ones are read in tiles.
_LONGEST = 1 << 15
_TILE = 1 << 13


# Of a call, its tensors, to be recalled, and its options.
_Again: TypeAlias = tuple[_autograd.Remembered, Any]


class _Arguments(NamedTuple):
    """The tensors of a call. The target is class indices, or has the shape of the input."""

    input: Tensor
    target: Tensor
    weight: Tensor | None
    sample_weight: Tensor | None
    denominator: Tensor | None  # of no dimension
    z_denominator: Tensor | None = None  # what a mean of z_loss's part divides by, where not that

    @property
    def axis(self) -> int:
        return 1 if self.input.dim() > 1 else 0

    @property
    def classes(self) -> int:
        return self.input.shape[self.axis]

    @property
    def samples(self) -> torch.Size:
        shape = self.input.shape
        return shape[: self.axis] + shape[self.axis + 1 :]

    @property
    def is_soft(self) -> bool:
        return self.target.shape == self.input.shape

    @property
    def dtype(self) -> torch.dtype:
        """That of PyTorch's loss."""
        dtype = self.input.dtype
        if self.is_soft:
            for t in (self.target, self.weight):
                dtype = dtype if t is None else torch.promote_types(dtype, t.dtype)
        return torch.float32 if dtype in HALVES and _backend.autocasts(self.input) else dtype

    @property
    def indices(self) -> Tensor:
        """The target's class indices, in a type that holds any `ignore_index`."""
        return self.target.detach().long()

    def counts(self, options: Options) -> Tensor | None:
        """Return which samples count at all, None where all do."""
        indices = None if self.is_soft else self.indices
        return _counts(indices, self.weight, self.sample_weight, options)

    def arriving(self, factor: Tensor, options: Options) -> Tensor:
        """Return what arrives at the loss, or at each sample's, such that it multiplies logits.

        It is 0 for a sample that does not count, whatever arrives.
        """
        factor = _autograd.counted(factor, self.counts(options))
        return factor.unsqueeze(self.axis) if factor.dim() else factor

    def divisor(self, options: Options) -> Tensor:
        """Return what a mean divides by, in float64, without waiting for it."""
        if self.denominator is not None:
            return self.denominator.double()
        weights = None
        if self.weight is not None and not self.is_soft:
            y = self.indices
            y = torch.where(_kept(y, options.ignored), y, 0)
            weights = self.weight.detach()[y].double()
        return self._total(weights, options)

    def z_divisor(self, options: Options) -> Tensor:
        """Return what a mean of the part of `z_loss` divides by."""
        given = self.denominator if self.z_denominator is None else self.z_denominator
        return self._total(None, options) if given is None else given.double()

    def _total(self, weights: Tensor | None, options: Options) -> Tensor:
        """Return the sum of the weights, times those of samples, of what counts."""
        counts = self.counts(options)
        if self.sample_weight is not None:
            s = self.sample_weight.detach().double()
            weights = s if weights is None else weights * s
        if counts is not None:
            weights = counts if weights is None else torch.where(counts, weights, 0.0)
        if weights is not None:
            return weights.sum(dtype=torch.float64)
        count = float(prod(self.samples))
        return torch.full((), count, dtype=torch.float64, device=self.input.device)


def _counts(
    indices: Tensor | None, weight: Tensor | None, sample_weight: Tensor | None, options: Options
) -> Tensor | None:
    """Return which samples count at all; `indices` are None for targets of probabilities."""
    counts = None if sample_weight is None else sample_weight.detach() != 0
    if indices is None:
        return counts
    if not options.ignored and weight is None:
        return counts
    kept = _kept(indices, tuple(options.ignored))
    if weight is not None and options.label_smoothing == 0.0:
        kept = kept & (weight.detach()[torch.where(kept, indices, 0)] != 0)
    return kept if counts is None else counts & kept


def _kept(indices: Tensor, ignored: tuple[int, ...]) -> Tensor:
    """Return which class indices, int64, are not ignored."""
    if not ignored:
        return torch.ones_like(indices, dtype=torch.bool)
    kept = indices != ignored[0]
    for index in ignored[1:]:
        kept &= indices != index
    return kept


def _as_rows(t: Tensor) -> Tensor:
    """Return an input as samples x classes x positions: a view, if its strides allow one."""
    if t.dim() == 1:
        return t.reshape(1, -1, 1)
    return t.reshape(t.shape[0], t.shape[1], prod(t.shape[2:]))


def _write_back(grad: Tensor | None, rows: Tensor | None) -> None:
    """Copy what was written to the gradient's rows, where strides allowed no view of them."""
    if grad is not None and rows is not None and rows.data_ptr() != grad.data_ptr():
        grad.copy_(rows.view(grad.shape))


# On the CPU


def _rust(
    call: _Arguments, options: Options, with_grad: bool, inplace: bool
) -> tuple[Tensor, Tensor | None]:
    x, target, weight, sample_weight = call[:4]
    soft = call.is_soft
    if not options.is_plain or (soft and x.dtype in HALVES):
        return _rust_by_chunks(call, options, with_grad, inplace)
    denominator = None if call.denominator is None else call.denominator.item()
    if denominator is not None and denominator < 0.0:  # the sum of negative weights
        call = call._replace(denominator=as_denominator(-denominator, x))
        return _negated(*_rust(call, options, with_grad, inplace))
    if soft:
        target = target.detach()
        target = target.to(x.dtype) if target.dtype in HALVES else target
    grad = None
    if with_grad:
        grad = x.detach() if inplace else _backend.empty_like(x)
    arguments: tuple[Any, ...] = (
        1 if with_grad else 0,
        x.resolve_neg(),
        target.resolve_neg(),
        call.axis,
        _floats(weight),
        _floats(sample_weight),
        options.ignored,
        options.label_smoothing,
        0.0,
        options.reduction,
        denominator,
        None,
        grad,
        None,
    )
    # Where a call is small, what is around the kernel is most of its time: no arrays are made.
    result = _xentrs.compute_tensors("cross_entropy", *arguments)
    if result is NotImplemented:
        if x.dtype in HALVES:
            return _rust_by_chunks(call, options, with_grad, inplace)
        arrays: list[Any] = [a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments]
        result = _arrays.class_loss("cross_entropy", *arrays, name="input")
    loss = result[0] if with_grad else result
    if options.reduction == "none":
        return torch.from_numpy(loss), grad
    return _backend.scalar(loss, _backend.accumulator(x.dtype)), grad


def _negated(loss: Tensor, grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return -loss, None if grad is None else grad.neg_()


def _floats(t: Tensor | None) -> Tensor | None:
    """Return weights in a type that the compiled functions read."""
    if t is None:
        return None
    t = t.detach().resolve_neg()
    return t.float() if t.dtype in HALVES else t


def _numpy(t: Tensor | None) -> Any:
    t = _floats(t)
    return None if t is None else t.numpy()


def _rust_by_chunks(
    call: _Arguments, options: Options, with_grad: bool, inplace: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute in the accumulator's type, chunk by chunk, with what Rust has not got around it."""
    x = call.input.detach()
    dtype = _backend.accumulator(x.dtype)
    if not call.is_soft:
        check_indices(call, options.ignored)
    mean = options.reduction == "mean"
    divisors = 1.0, 1.0
    if mean:
        divisor = call.divisor(options).item()
        divisors = divisor, call.z_divisor(options).item() if options.z_loss else divisor
    counts = call.counts(options)
    if counts is not None:
        counts = None if counts.all() else counts
    grad = None
    if with_grad:
        grad = x if inplace else _backend.empty_like(x)
    rows, target = _as_rows(x), call.target.detach()
    grad_rows = None if grad is None else _as_rows(grad)
    n, classes, positions = rows.shape
    target = _as_rows(target) if call.is_soft else target.reshape(n, 1, positions)
    weight = _numpy(call.weight)
    s, counts = (
        None if t is None else t.detach().reshape(n, 1, positions)
        for t in (_floats(call.sample_weight), counts)
    )

    size = max(_CHUNK * xentrs.get_num_threads() // classes, 1)
    wide = torch.promote_types(dtype, target.dtype) if call.is_soft else dtype
    z, t = (torch.empty((size, classes), dtype=d, device=x.device) for d in (dtype, wide))
    losses = torch.empty((n, positions), dtype=dtype, device=x.device)
    total = 0.0
    for i, j in _chunks(n, positions, size):

        def part(a: Tensor, to: Tensor | None = None) -> Tensor:
            a = a[i, :, j].transpose(1, 2)  # noqa: B023
            count = a.shape[0] * a.shape[1]
            if to is None:
                return a.reshape(count)
            to[:count].view(a.shape).copy_(a)
            return to[:count]

        chunk = part(rows, z)
        loss = _chunk(
            chunk,
            part(target, t) if call.is_soft else part(target),
            weight,
            None if s is None else part(s),
            None if counts is None else part(counts),
            options,
            divisors,
            with_grad,
        )
        if grad_rows is not None:
            here = grad_rows[i, :, j].transpose(1, 2)
            here.copy_(chunk.view(here.shape))
        if options.reduction == "none":
            losses[i, j] = torch.from_numpy(loss).view_as(losses[i, j])
        else:
            total += loss
    _write_back(grad, grad_rows)
    if options.reduction == "none":
        return losses.view(call.samples), grad
    if mean and call.denominator is None and divisor == 0.0:
        total = math.nan
    return _backend.scalar(total, dtype), grad


def _chunks(n: int, positions: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of samples and of their positions that hold about `size` of both."""
    if positions <= size:
        step = max(size // max(positions, 1), 1)
        for i in range(0, n, step):
            yield slice(i, i + step), slice(None)
    else:
        for i in range(n):
            for j in range(0, positions, size):
                yield slice(i, i + 1), slice(j, j + size)


def _chunk(
    z: Tensor,
    t: Tensor,
    weight: Any,
    s: Tensor | None,
    counts: Tensor | None,
    options: Options,
    divisors: tuple[float, float],
    with_grad: bool,
) -> Any:
    """Replace a chunk of logits by their gradient; return the loss, or that of each row."""
    cap = options.softcap
    if counts is not None:  # whatever stands there
        z.masked_fill_(~counts[:, None], 0.0)
        if t.dim() > 1:
            t.masked_fill_(~counts[:, None], 0.0)
    if cap:
        infinite = z.isinf()
        capped = z.div_(cap).tanh_().clone()
        # Infinite logits stay.
        z.mul_(torch.where(infinite, math.inf, cap))
    penalty, penalty_grad = 0.0, None
    if options.z_loss:
        penalty, penalty_grad = _penalty(z, s, counts, options, divisors[1], with_grad)
    logits = z.numpy()
    arguments: dict[str, Any] = {
        "weight": weight,
        "sample_weight": None if s is None else s.numpy(),
        "ignore_index": options.ignored,
        "label_smoothing": options.label_smoothing,
        "reduction": options.reduction,
        "denominator": abs(divisors[0]) if options.reduction == "mean" else None,
    }
    if not with_grad:
        loss = xentrs.cross_entropy(logits, t.numpy(), **arguments)
    else:
        loss, _ = xentrs.cross_entropy_with_grad(logits, t.numpy(), out=logits, **arguments)
    if divisors[0] < 0.0:  # the sum of negative weights
        loss = -loss
        z.neg_()
    if penalty_grad is not None:
        z.add_(penalty_grad)
    if cap and with_grad:
        z.mul_(1.0 - capped * capped)
    return loss + penalty


def _penalty(
    z: Tensor,
    s: Tensor | None,
    counts: Tensor | None,
    options: Options,
    divisor: float,
    with_grad: bool,
) -> tuple[Any, Tensor | None]:
    """Return z_loss times logsumexp squared, reduced, and the gradient of that.

    Both come from the loss of the largest logit, -log p: logsumexp is the sum of the two, and its
    gradient, the softmax, is that of this loss plus one at that place.
    """
    pivot = z.argmax(1)
    if with_grad:
        minus_log_p, g = xentrs.cross_entropy_with_grad(z.numpy(), pivot.numpy(), reduction="none")
    else:
        minus_log_p = xentrs.cross_entropy(z.numpy(), pivot.numpy(), reduction="none")
    pivot.unsqueeze_(1)
    # In float64: the square of a large one exceeds float32.
    logsumexp = z.gather(1, pivot)[:, 0].double() + torch.from_numpy(minus_log_p)
    weights = torch.ones_like(logsumexp) if s is None else s.double()
    factor = options.z_loss * weights
    if counts is not None:
        factor = torch.where(counts, factor, 0.0)
    penalty = factor * logsumexp**2
    p = None
    if with_grad:
        p = torch.from_numpy(g)
        p.scatter_add_(1, pivot, torch.ones_like(pivot, dtype=p.dtype))
        along = 2.0 * factor * logsumexp / divisor
        if counts is not None:  # the divisor may be 0
            along = torch.where(counts, along, 0.0)
        p.mul_(along[:, None])
    if options.reduction == "none":
        return penalty.numpy(), p
    total = penalty.sum().item()
    return (total / divisor if divisor else 0.0), p


def check_indices(call: _Arguments, ignored: tuple[int, ...]) -> None:
    """Refuse class indices out of range, before anything is computed."""
    y = call.indices
    bad = _kept(y, ignored) & ((y < 0) | (y >= call.classes))
    if bad.any():
        place = bad.nonzero()[0].tolist()
        names = ", ".join(map(str, ignored))
        # In the words of the compiled module.
        ending = ("", f", or be ignore_index ({names})", f", or be one of ignore_index ({names})")
        raise IndexError(
            f"target{place or ''} is {call.target[tuple(place)].item()}, but a class index must be "
            f"in [0, {call.classes}){ending[min(len(ignored), 2)]}"
        )


# On a GPU


@Kernel
@no_type_check
def _logits(x_row, cols, x_c, mask, CAP: tl.constexpr, ACC: tl.constexpr):
    x = tl.load(x_row + cols * x_c, mask=mask, other=float("-inf")).to(ACC)
    if CAP != 0.0:
        x = tl.where(mask & (tl.abs(x) != float("inf")), CAP * tanh(x / CAP), x)
    return x


@Kernel
@no_type_check
def _others(
    t_row, t_c, weight, cols, mask,
    EVEN: tl.constexpr, KEEP: tl.constexpr, SOFT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # The factor of each -log p in the loss; where the target is hard, without the target's own.
    if SOFT:
        a = KEEP * tl.load(t_row + cols * t_c, mask=mask, other=0).to(ACC) + EVEN
    else:
        a = tl.zeros(mask.shape, ACC) + EVEN
    if weight is not None:
        a *= tl.load(weight + cols, mask=mask, other=0).to(ACC)
    return tl.where(mask, a, 0.0)


@Kernel
@no_type_check
def _accumulate(
    x, a, cols, y, top, rest, total, away, VECTOR: tl.constexpr, SOFT: tl.constexpr
):  # fmt: skip
    # top: the largest logit so far; rest: the sum of exp(x - top) without the target or, where that
    # is no class, without the largest logit itself, so that log1p has the digits of a small loss;
    # total and away: the sums of a and of a (top - x), whose terms do not cancel. The difference of
    # two float32 may exceed float32, so away is a part of that, by a power of two.
    largest = tl.max(x, 1)
    new = tl.maximum(top, largest)
    safe = tl.where(new == float("-inf"), 0.0, new)
    d = x - safe[:, None]
    if SOFT:
        grew = largest > top
        rest += tl.where(grew & (top != float("-inf")), 1.0, 0.0)  # what was left out before
        out = grew[:, None] & (cols == tl.argmax(x, 1)[:, None] + tl.min(cols, 1)[:, None])
        e = tl.where(out, d, tl.exp(d))  # 0, or NaN for an infinite logit
    else:
        e = tl.where(cols == y[:, None], 0.0, tl.exp(d))
    rest = rest * tl.exp(top - safe) + tl.sum(e, 1)
    if VECTOR:
        before = tl.where(top == float("-inf"), 0.0, top)
        part = 9.5367431640625e-07  # 2^-20
        away += tl.where(total == 0.0, 0.0, total * (safe * part - before * part))
        away += tl.sum(tl.where(a == 0.0, 0.0, a * ((safe * part)[:, None] - x * part)), 1)
        total += tl.sum(a, 1)
    return new, rest, total, away


@Kernel
@no_type_check
def _gradient(x, a, is_target, top, base, extra, rest, factor, keep, CAP: tl.constexpr):
    e = tl.exp(x - top)
    g = e * base - factor * a + tl.where(is_target, -extra * rest, extra * e)
    if CAP != 0.0:
        g *= 1.0 - tl.where(x == float("-inf"), 1.0, (x / CAP) * (x / CAP))
    return tl.where(keep, g, 0.0)


@Kernel
@no_type_check
def _softmax(
    x, x_n, x_c, x_d, target, t_n, t_c, t_d, weight, sample_weight, s_n, s_d, divisor,
    z_divisor, loss, grad, g_n, g_c, g_d, samples, classes, positions,
    IGNORED: tl.constexpr, SMOOTHING: tl.constexpr, EVEN: tl.constexpr, Z: tl.constexpr,
    CAP: tl.constexpr, SOFT: tl.constexpr, ACC: tl.constexpr, NEAR: tl.constexpr,
    R: tl.constexpr, B: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    # One program: R samples, their classes in tiles of B. One sweep over the logits for the loss,
    # a second for the gradient, which has the first tile in registers still. A sample's numbers are
    # float64 from where they may exceed float32.
    VECTOR: tl.constexpr = SOFT or EVEN != 0.0
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
        if weight is not None:
            own *= tl.load(weight + y, mask=keep, other=0).to(tl.float64)
            if SMOOTHING == 0.0:
                keep &= own != 0.0
        x_y = _logits(x + n * x_n + d * x_d, y, x_c, keep, CAP, ACC)

    cols = tl.arange(0, B)[None, :].to(tl.int64)
    mask = live[:, None] & (cols < classes)
    first = _logits(x_row, cols, x_c, mask, CAP, ACC)
    a = _others(t_row, t_c, weight, cols, mask, EVEN, KEEP, SOFT, ACC)
    zero = tl.zeros([R], ACC)
    top, rest, total, away = _accumulate(first, a, cols, y, x_y, zero, zero, zero, VECTOR, SOFT)
    if MANY:
        for start in range(B, classes, B):
            c = cols + start
            m = live[:, None] & (c < classes)
            z = _logits(x_row, c, x_c, m, CAP, ACC)
            b = _others(t_row, t_c, weight, c, m, EVEN, KEEP, SOFT, ACC)
            top, rest, total, away = _accumulate(z, b, c, y, top, rest, total, away, VECTOR, SOFT)

    some = top != float("-inf")
    top = tl.where(some, top, 0.0)
    whole = total.to(tl.float64)
    if SOFT:
        log_sum = tl.where(some, log1p(rest), float("-inf"))  # relative to top
        sum_ = rest + tl.where(some, 1.0, 0.0)
        result = tl.zeros([R], tl.float64)
    else:
        # log1p(rest / e) keeps the digits of a small loss; far from the top e may vanish.
        e_y = tl.exp(x_y - top)
        sum_ = rest + e_y
        log_sum = tl.where(x_y == top, log1p(rest), tl.log(sum_))
        near = x_y - top > -NEAR
        far = (top.to(tl.float64) - x_y.to(tl.float64)) + log_sum.to(tl.float64)
        by_ratio = log1p(rest / tl.where(near, e_y, 1.0)).to(tl.float64)
        result = tl.where(own == 0.0, 0.0, own * tl.where(near, by_ratio, far))
    if VECTOR:
        result += away.to(tl.float64) * 1048576.0  # 2^20
        result += tl.where(whole == 0.0, 0.0, whole * log_sum.to(tl.float64))
    if Z != 0.0:
        logsumexp = log_sum.to(tl.float64) + top.to(tl.float64)
        z_part = Z * logsumexp * logsumexp
        if divisor is not None:
            z_part *= tl.load(divisor) / tl.load(z_divisor)
        result += z_part
    tl.store(loss + i, tl.where(keep, factor * result, 0.0), mask=live)

    if grad is not None:
        z_factor = factor
        if divisor is not None:
            factor = factor / tl.load(divisor)
            if Z != 0.0:
                z_factor = z_factor / tl.load(z_divisor)
        extra = ((own * factor).to(ACC) / sum_)[:, None]
        whole *= factor
        if Z != 0.0:
            whole += 2.0 * Z * logsumexp * z_factor
        base = (whole.to(ACC) / sum_)[:, None]
        factor = factor.to(ACC)
        g_row = (grad + n * g_n + d * g_d)[:, None]
        top, rest, factor, kept = top[:, None], rest[:, None], factor[:, None], keep[:, None]
        g = _gradient(first, a, cols == y[:, None], top, base, extra, rest, factor, kept, CAP)
        tl.store(g_row + cols * g_c, narrowed(g, grad), mask=mask)
        if MANY:
            for start in range(B, classes, B):
                c = cols + start
                m = live[:, None] & (c < classes)
                z = _logits(x_row, c, x_c, m, CAP, ACC)
                b = _others(t_row, t_c, weight, c, m, EVEN, KEEP, SOFT, ACC)
                g = _gradient(z, b, c == y[:, None], top, base, extra, rest, factor, kept, CAP)
                tl.store(g_row + c * g_c, narrowed(g, grad), mask=m)


def _tiles(classes: int, positions: int) -> tuple[int, int]:
    """Return how many samples and how many of their classes a program takes at a time."""
    if positions > 1:  # neighbours in memory are positions, not classes
        return 64, min(_backend.next_power_of_two(classes), 32)
    columns = _backend.next_power_of_two(classes) if classes <= _LONGEST else _TILE
    return max(1, 2048 // columns), columns


def _triton(
    call: _Arguments, options: Options, with_grad: bool, inplace: bool
) -> tuple[Tensor, Tensor | None]:
    x, target, ignored = call.input.detach(), call.target.detach(), options.ignored
    rows = _as_rows(x)
    n, classes, positions = rows.shape
    samples = n * positions
    dtype = _backend.accumulator(x.dtype)
    if call.is_soft:
        target = _as_rows(target)
    else:
        if target.dtype in (torch.uint16, torch.uint32, torch.uint64) or len(ignored) > 1:
            target = target.long()
        call = call._replace(target=target)
        if x.device.type == "cpu":  # Triton's interpreter leaves out assertions
            check_indices(call, ignored)
        for index in ignored[1:]:
            target = torch.where(target == index, ignored[0], target)
        target = target.reshape(n, 1, positions)
    s = call.sample_weight
    s = None if s is None else s.detach().reshape(n, positions)
    w = None if call.weight is None else call.weight.detach().contiguous()
    divisor = z_divisor = None
    if options.reduction == "mean":
        divisor = call.divisor(options)
        z_divisor = call.z_divisor(options) if options.z_loss else None
    # Labels and weights of each entry are taken as they are.
    given = [x, call.target] if call.is_soft else [x]
    if w is not None and (call.is_soft or options.label_smoothing):
        given.append(w)
    wide = any(t.dtype == torch.float64 for t in given)
    none = options.reduction == "none"
    losses = torch.empty(samples, dtype=dtype if none else torch.float64, device=x.device)
    grad = None
    if with_grad:
        grad = x if inplace else torch.empty_like(x)
    g = rows if grad is None else _as_rows(grad)
    if samples:
        _, tl = _backend.load_triton()
        r, b = _tiles(classes, positions)
        _softmax[(-(-samples // r),)](
            rows, *rows.stride(), target, *target.stride(), w,
            s, *((0, 0) if s is None else s.stride()), divisor,
            z_divisor,
            losses, None if grad is None else g, *g.stride(), samples, classes, positions,
            IGNORED=ignored[0] if ignored and not call.is_soft else None,
            SMOOTHING=options.label_smoothing, EVEN=options.label_smoothing / classes,
            Z=options.z_loss, CAP=options.softcap, SOFT=call.is_soft,
            ACC=tl.float64 if wide else tl.float32, NEAR=600.0 if wide else 40.0,
            R=r, B=b, MANY=b < classes, num_warps=min(max(r * b // 512, 4), 32),
        )  # fmt: skip
        _write_back(grad, g)
    if none:
        return losses.view(call.samples), grad
    loss = losses.sum()
    return (loss if divisor is None else loss / divisor).to(dtype), grad


# The operator


def _evaluate(
    call: _Arguments, options: Options, with_grad: bool, inplace: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the logits if wanted."""
    on = _triton if _backend.uses_triton(call.input) else _rust
    return on(call, options, with_grad, inplace)


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    call, options, with_grad = _Arguments(*args[:6]), Options(*args[6:-1]), args[-1]
    loss, grad = _evaluate(call, options._replace(ignored=tuple(options.ignored)), with_grad)
    return loss, call.input.new_empty(0) if grad is None else grad


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    call, options, with_grad = _Arguments(*args[:6]), Options(*args[6:-1]), args[-1]
    shape = call.samples if options.reduction == "none" else ()
    x = call.input
    loss = x.new_empty(shape, dtype=_backend.accumulator(x.dtype))
    return loss, torch.empty_like(x) if with_grad else x.new_empty(0)


def _backward(
    arguments: list[Any], grads: tuple[Tensor, ...], factor: Tensor | None, directions: Any
) -> tuple[Tensor | None, ...]:
    call, options = _Arguments(*arguments[:6]), Options(*arguments[6:-1])
    result = None
    if factor is not None and not arguments[-1]:
        result = _autograd.late_gradient(_gradient_of, times, call, options, factor)
    elif factor is not None:
        result = (grads[0] * call.arriving(factor, options)).to(call.input.dtype)
    if directions[0] is not None:
        product = _hessian_product(call, options, directions[0])
        result = product if result is None else result + product
    return result, *[None] * (len(arguments) - 1)


def times(call: _Arguments, options: Options, factor: Tensor) -> tuple[_Arguments, Options]:
    """Return a call and options whose gradient is multiplied by what arrives at the loss."""
    s = call.sample_weight
    factor = factor.to(_backend.accumulator(call.input.dtype)).expand(call.samples)
    factor = _autograd.counted(factor, call.counts(options))
    weights = factor.contiguous() if s is None else factor * s
    if options.reduction != "mean":
        options = options._replace(reduction="sum")
        return call._replace(sample_weight=weights), options
    z = call.z_divisor(options) if options.z_loss else None
    divisor = call.divisor(options)
    return call._replace(sample_weight=weights, denominator=divisor, z_denominator=z), options


def _gradient_of(call: _Arguments, options: Options) -> Tensor:
    """Return the operator's gradient."""
    grad: Tensor = _operator(*call, *options, True)[1]
    return grad


def _hessian_product(call: _Arguments, options: Options, direction: Tensor) -> Tensor:
    """Return the derivative of the gradient, by the logits, in a direction: in PyTorch's terms."""
    axis, cap, z = call.axis, options.softcap, options.z_loss
    dtype = _backend.accumulator(call.input.dtype)
    x, v = call.input.to(dtype), direction.to(dtype)
    if call.is_soft:
        a = call.target.to(dtype)
    else:
        y = call.indices
        y = torch.where(_kept(y, tuple(options.ignored)), y, 0).unsqueeze(axis)
        a = torch.zeros_like(x).scatter(axis, y, 1.0)
    counts = call.counts(options)
    if counts is not None:  # before anything is computed, for what differentiates this
        counts = counts.unsqueeze(axis) if counts.dim() else counts
        x, v, a = (torch.where(counts, t, 0.0) for t in (x, v, a))
    u = v
    if cap:
        capped = (x / cap).tanh()
        slope = 1.0 - capped**2
        x, u = torch.where(x.isinf(), x, cap * capped), slope * v
    factor = torch.ones(call.samples, dtype=dtype, device=x.device)
    if call.sample_weight is not None:
        factor = factor * call.sample_weight.to(dtype)
    z_factor = 2.0 * z * factor
    if options.reduction == "mean":
        z_factor = z_factor / call.z_divisor(options).to(dtype) if z else z_factor
        factor = factor / call.divisor(options).to(dtype)
    factor, z_factor = factor.unsqueeze(axis), z_factor.unsqueeze(axis)
    a = (1.0 - options.label_smoothing) * a + options.label_smoothing / call.classes
    if call.weight is not None:
        a = a * call.weight.to(dtype).view(-1, *[1] * (x.dim() - axis - 1))
    a = factor * a
    total = a.sum(axis, keepdim=True)
    p, logsumexp = x.softmax(axis), x.logsumexp(axis, keepdim=True)
    along = (p * u).sum(axis, keepdim=True)
    scale = total + z_factor * logsumexp
    product = scale * p * (u - along) + z_factor * p * along
    if cap:
        product = slope * (product - (scale * p - a) * (2.0 / cap) * capped * v)
    product = product if counts is None else torch.where(counts, product, 0.0)
    return product.to(call.input.dtype)


_operator = _autograd.define(
    "cross_entropy(Tensor input, Tensor target, Tensor? weight, Tensor? sample_weight, "
    "Tensor? denominator, Tensor? z_denominator, str reduction, int[] ignored, "
    "float label_smoothing, float z_loss, float softcap, bool with_grad) -> (Tensor, Tensor)",
    _forward,
    _fake,
    _backward,
)


# Autograd

_is_grad_enabled = torch.is_grad_enabled


# Of a single level: as it is only called where no transform of torch.func is active.
class _Eager(_autograd.SingleLevel):
    @staticmethod
    def forward(ctx: Any, input: Tensor, again: _Again, found: tuple[Tensor, Tensor]) -> Tensor:
        loss, grad = found
        ctx.save_for_backward(grad)
        ctx.again = again
        return loss

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        if not _is_grad_enabled():
            if is_done(factor):
                return grad, None, None
            return _autograd.scaled(grad, factor, lambda: _counts_of(ctx, grad), 1), None, None
        remembered, options = ctx.again  # create_graph=True
        call = _Arguments(*_autograd.recall("cross_entropy", remembered))
        return _autograd.again(_gradient_of, call, Options(*options), factor), None, None


def _counts_of(ctx: Any, grad: Tensor) -> Tensor | None:
    """Return which entries of the stored gradient count."""
    (_, target, *weights), options = ctx.again
    if isinstance(target[0], ref) or target[0].shape == grad.shape:
        target = None
    y, w, s = _autograd.recall("cross_entropy", [target, *weights[:2]], "the gradient")
    y = None if y is None else y.detach().long()
    counts = _counts(y, w, s, Options(*options))
    return counts if counts is None or grad.dim() < 2 else counts.unsqueeze(1)


class _InPlace(torch.autograd.Function):
    """The gradient takes the place of the logits, and autograd knows."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, call: _Arguments, options: Options) -> tuple[Tensor, ...]:
        ctx.late = _autograd.is_late(input)
        loss, _ = _evaluate(call, options, not ctx.late, inplace=not ctx.late)
        torch.autograd.graph.increment_version(input)
        ctx.mark_dirty(input)
        ctx.save_for_backward(input, *call[1:])
        ctx.options = options
        ctx.set_materialize_grads(False)
        return loss, input

    @staticmethod
    def backward(ctx: Any, factor: Tensor | None, used: Tensor | None) -> tuple[Tensor | None, ...]:
        if used is not None or torch.is_grad_enabled():
            raise RuntimeError(
                "xentrs.torch.cross_entropy: the logits are needed again, but inplace=True has put "
                "the gradient in their place"
            )
        if factor is None:
            return None, None, None
        grad, *others = ctx.saved_tensors
        call, options = _Arguments(grad.detach(), *others), ctx.options
        if ctx.late:
            call, options = times(call, options, factor)
            if _autograd.is_traced(factor):
                return _gradient_of(call, options), None, None
            again = _autograd.keeps_graph()  # another backward pass needs the logits
            return _evaluate(call, options, True, inplace=not again)[1], None, None

        def counts() -> Tensor | None:
            found = call.counts(options)
            return found if found is None or not found.dim() else found.unsqueeze(call.axis)

        return _autograd.scaled(call.input, factor, counts, call.axis), None, None


_Late = _autograd.late(_evaluate, _gradient_of, times)


# What people call


def _quick(
    input: Tensor, target: Tensor, ignored: int, label_smoothing: float, reduction: str
) -> Tensor | None:
    """Return the loss of the plainest and commonest call, if it is that, else None.

    A small call is mostly what is around the kernel. Here that is the least there can be: whether
    the tensors fit, the compiled function sees by itself, and it makes the new ones.
    """
    with_grad = input.requires_grad and _is_grad_enabled()
    found = quick_cross_entropy(input, target, ignored, label_smoothing, reduction, with_grad)
    if found is NotImplemented:
        return None
    if not with_grad:
        return found
    # What `remember` returns, in a third of its time.
    kept = input if input.nbytes <= _autograd.KEPT else ref(input)
    tensors = (kept, input._version), (target, target._version), None, None, None
    options = reduction, (ignored,), label_smoothing, 0.0, 0.0
    return _Eager.apply(input, (tensors, options), found)  # type: ignore[attr-defined]


def _is_smoothing(value: float) -> bool:
    return (type(value) is float or is_number(value)) and 0.0 <= value <= 1.0


def _fits(call: _Arguments, options: Options) -> bool:
    """Whether the arguments are what the kernels take; all else is left to PyTorch."""
    x, target, weight = call[:3]
    if not are_tensors(x, target, *() if weight is None else (weight,)):
        return False
    shape, axis = x.shape, 1 if x.dim() > 1 else 0
    if x.dtype not in FLOATS or not shape or not shape[axis] or target.device != x.device:
        return False
    if x.layout is not torch.strided:
        return False
    if target.dtype in _INTEGERS:
        if target.shape != shape[:axis] + shape[axis + 1 :]:
            return False
    elif (
        target.shape != shape
        or not target.is_floating_point()
        or target.layout is not torch.strided
        or any(i >= 0 for i in options.ignored)
        or (target.requires_grad and torch.is_grad_enabled())
    ):
        return False
    if weight is not None:
        fits = weight.shape == (call.classes,) and weight.is_floating_point()
        if not fits or weight.device != x.device or weight.requires_grad:
            return False
    return options.reduction in ("mean", "sum", "none") and _is_smoothing(options.label_smoothing)


def _leave_to_torch(call: _Arguments, options: Options) -> Tensor:
    """Let PyTorch say what is wrong, or compute what only it can: gradients in the target."""
    extra = len(options.ignored) != 1 or not options.is_plain
    extra = extra or call.sample_weight is not None or call.denominator is not None
    with torch.set_grad_enabled(torch.is_grad_enabled() and not extra):
        loss = _pytorchs(
            call.input,
            call.target,
            call.weight,
            ignore_index=options.ignored[0] if options.ignored else -100,
            reduction=options.reduction,
            label_smoothing=options.label_smoothing,
        )
    if extra:
        raise NotImplementedError(
            f"{_NAME}: z_loss, softcap, sample_weight, denominator and several ignored indices "
            "cannot be combined with gradients in the target or the class weights"
        )
    return loss


def as_denominator(value: float | Tensor | None, input: Tensor) -> Tensor | None:
    """Return a denominator that is a number as a tensor."""
    if value is None:
        return None
    # PyTorch has yet to refuse an input that is no tensor.
    device = input.device if isinstance(input, Tensor) else None
    if isinstance(value, Tensor):
        if value.dim() == 0 and value.is_cpu and _backend.is_eager(value) and value < 0.0:
            raise ValueError(f"denominator is {value.item()}, but must not be negative")
        return value.to(device) if value.is_cpu else value
    check_number("denominator", value)
    if not value >= 0.0:
        raise ValueError(f"denominator is {value}, but must not be negative")
    return torch.full((), value, dtype=torch.float64, device=device)


def as_softcap(value: float | None) -> float:
    """Return a softcap as a number, 0 for none."""
    if value is None:
        return 0.0
    check_number("softcap", value)
    if not 0.0 < value < math.inf:
        raise ValueError(f"softcap is {value}, but must be positive")
    return value


def check_other(name: str, t: Tensor, input: Tensor) -> None:
    """Refuse a tensor that PyTorch has not got if it cannot be read, or should have a gradient."""
    if t.device != input.device:
        raise RuntimeError(f"{name} is on {t.device}, but must be on {input.device} as input is")
    if t.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"{name} requires a gradient, which xentrs.torch does not compute: {name}.detach()"
        )


def check_denominator(value: Tensor | None, input: Tensor) -> None:
    """Refuse a denominator that is no number of the input's device."""
    if value is not None and value.dim() != 0:
        raise ValueError(f"denominator has shape {tuple(value.shape)}, but must be a number")
    if value is not None:
        check_other("denominator", value, input)


def _check_extras(call: _Arguments, options: Options) -> None:
    """Refuse what is wrong with the arguments that PyTorch has not got."""
    s = call.sample_weight
    if s is not None:
        check_tensor("sample_weight", s)
    if s is not None and s.shape != call.samples:
        raise ValueError(
            f"sample_weight has shape {tuple(s.shape)}, but must have shape "
            f"{tuple(call.samples)}: that of input, {tuple(call.input.shape)}, without axis "
            f"{call.axis}"
        )
    if s is not None and not s.is_floating_point():
        raise TypeError(f"sample_weight has dtype {s.dtype}, but must be floating point")
    if s is not None:
        check_other("sample_weight", s, call.input)
    check_number("z_loss", options.z_loss)
    if not -math.inf < options.z_loss < math.inf:
        raise ValueError(f"z_loss is {options.z_loss}, but must be finite")
    check_denominator(call.denominator, call.input)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: Ignored = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    r"""Cross-entropy between logits and class indices or probabilities.

    A drop-in for `torch.nn.functional.cross_entropy`, with the same arguments, results and errors;
    those after the star are not PyTorch's.

    Parameters
    ----------
    input : Tensor of shape (C), (N, C) or (N, C, d_1, ..., d_K)
        Logits: float16, bfloat16, float32 or float64, of any strides.
    target : Tensor
        Class indices, of any integer type, of the shape of `input` without its class axis; or
        probabilities, floats of the shape of `input`.
    weight : Tensor of shape (C), optional
        Weight of each class.
    size_average, reduce : bool, optional
        Deprecated in PyTorch: see `reduction`.
    ignore_index : int, iterable of ints or None, default -100
        Class indices whose samples count for nothing, whatever their logits.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the samples' losses, weighted by the weights of their
        classes, their sum, or each.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: the target becomes (1 - e) times itself plus e / C in every class.
    z_loss : float, default 0.0
        This times the square of the logsumexp of its logits is added to each sample's loss, as in
        PaLM. Neither `weight` nor `label_smoothing` concerns it, `sample_weight` does.
    softcap : float, optional
        The logits x become ``softcap * tanh(x / softcap)`` first, as in Gemma 2.
    sample_weight : Tensor, optional
        Weight of each sample, of the shape of `input` without its class axis.
    denominator : float or Tensor of no dimension, optional
        What ``"mean"`` divides by instead of the total weight; a tensor need not be on the host.
    inplace : bool, default False
        Write the gradient over the logits, which saves memory of their size. They may not be a view
        nor a leaf, and autograd refuses every later use of them. Ignored where no gradient is
        wanted, and under `torch.compile` and `torch.func`.

    Returns
    -------
    Tensor
        Of no dimension, or for ``"none"`` of the shape of `input` without its class axis. Of the
        dtype that PyTorch's function returns: that of `input`, or one that holds probabilities and
        their `weight` too; float32 for a half precision if autocast is on.

    Raises
    ------
    RuntimeError, ValueError, TypeError, NotImplementedError
        As PyTorch's function does, in its words. ValueError or TypeError where an argument of ours
        is wrong, NotImplementedError where it requires a gradient.
    IndexError
        If a class index is out of range. On a GPU that is an assertion on the device.

    Notes
    -----
    Accumulated in float32 for half precisions, else in the type of `input`, on the CPU by the
    kernels of `xentrs.cross_entropy`: at most 4 ULP of error for a sample's loss and each entry of
    the gradient of a hard target. On the GPU losses keep their digits too when they are small or
    the logits have a large offset.

    The gradient is computed in the forward pass; that of float16 in the backward pass, where it is
    multiplied by a loss's scale before it is rounded. Second derivatives are computed from the
    logits, which must be unchanged when they are taken, and alive if they are more than 16 MiB;
    with `inplace` there are none.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> logits = torch.tensor([[17.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> loss = xentrs.torch.cross_entropy(logits, torch.tensor([0, 1]), reduction="sum")
    >>> loss.backward()
    >>> logits.grad[0]
    tensor([-4.1399e-08,  4.1399e-08])
    """
    if (
        weight is sample_weight is denominator is softcap is size_average is reduce is None
        and not z_loss
        and not inplace
        and type(ignore_index) is int
        and reduction in ("mean", "sum")
        and (label_smoothing == 0.0 or _is_smoothing(label_smoothing))
        and _backend.is_eager(input)
        and type(target) is Tensor
        and not _backend.FORCED
        and not input.is_neg()
    ):
        quick = _quick(input, target, ignore_index, label_smoothing, reduction)
        if quick is not None:
            return quick
    _backend.refuse_tracing("cross_entropy")
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce, reduction)
    ignored = ignored_indices(ignore_index)
    options = Options(reduction, ignored, label_smoothing, z_loss, as_softcap(softcap))
    denominator = as_denominator(denominator, input)
    call = _Arguments(input, target, weight, sample_weight, denominator)
    if not _fits(call, options):
        return _leave_to_torch(call, options)
    if not options.is_plain or sample_weight is not None or denominator is not None:
        _check_extras(call, options)
    with_grad = _backend.wants_gradient(input)
    if not (_backend.is_eager(input) and _backend.is_plain(*call[1:])):
        loss = _operator(*call, *options, with_grad and not _autograd.is_late(input))[0]
    elif not with_grad:
        loss = _evaluate(call, options, False)[0]
    elif inplace:
        if input._is_view():  # autograd cannot know of what is written to its base
            raise RuntimeError(
                f"{_NAME}: inplace=True needs logits that are no view of another tensor (for "
                "instance, flatten what goes into the last layer, not what comes out)"
            )
        loss = _InPlace.apply(input, call, options)[0]
    elif _autograd.is_late(input):
        loss = _Late.apply(input, call, options)
    else:
        with torch.no_grad():
            found = _evaluate(call, options, True)
        again = _autograd.remember(call, 2 if call.is_soft else 1), options
        loss = _Eager.apply(input, again, found)  # type: ignore[attr-defined]
    dtype = call.dtype
    return loss if loss.dtype == dtype else loss.to(dtype)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """`cross_entropy` as a module: `torch.nn.CrossEntropyLoss` with the further options.

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        As in `torch.nn.CrossEntropyLoss`; `ignore_index` may be several, or None.
    z_loss, softcap, inplace
        As in `cross_entropy`. Its `sample_weight` and `denominator` go to the call.
    """

    # Of modules that were pickled without.
    z_loss = 0.0
    softcap: float | None = None
    inplace = False

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: Ignored = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        inplace: bool = False,
    ) -> None:
        super().__init__(weight, size_average, -100, reduce, reduction, label_smoothing)
        self.ignore_index = ignore_index  # type: ignore[assignment]
        self.z_loss = z_loss
        self.softcap = softcap
        self.inplace = inplace

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            sample_weight=sample_weight,
            denominator=denominator,
            inplace=self.inplace,
        )
