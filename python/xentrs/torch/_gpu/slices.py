"""Slices of classes on a GPU: the softmax kernel, and the states of `src/softmax/state.rs` from it.

The kernel takes the softmax of the slice's own classes, with its largest logit as the true class.
What it returns, -log p of that logit, has all digits of the sum of the others; from it follow the
numbers of a state. They merge, and give loss and gradient, by the same formulas as on the CPU.
Everything that is a number of a sample is float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments
from xentrs.torch._gpu import softmax

# Label smoothing (a tensor, or 0.0 for none), the number of all classes, and z-loss's factor.
Mixture = tuple[Tensor | float, Tensor, float]

# ln2 in two parts: products of the first with whole numbers below 2^20 are exact.
_LN2 = (6.93147180369123816490e-01, 1.90821492927058770002e-10)

# Logits beyond this need a unit that is no power of two.
_OFFSET_LIMIT = 131072.0

# A quotient of exponentials above e^40 is its own logarithm's argument: log1p(q) = log(q).
_LARGE = 40.0


def reduce(x: Tensor, target: Tensor, counts: Tensor, smooths: bool) -> tuple[Tensor, ...]:
    """Return the state of each sample of a slice, and what its gradient needs.

    `target` is the true class counted from the slice's first. All arguments but the logits have one
    row of samples. The other results are the place of the largest logit, its probability, and the
    sum of all exponentials in the unit of the state.
    """
    x = x.resolve_neg()
    place = x.argmax(1)
    call = SoftmaxArguments(x, place, None, None, None)
    loss, _ = softmax.evaluate(call, Options("none"), False, False)
    loss, largest = loss.double().reshape(-1), _at(x, place).double()
    held = (target >= 0) & (target < x.shape[1])
    own = torch.where(held, target, 0).view(place.shape)
    logit = torch.where(held, _at(x, own).double(), 0.0)

    is_empty, is_nan = largest == -math.inf, largest.isnan() | (largest == math.inf)
    reference = torch.where(is_empty | is_nan, 0.0, largest)
    huge = reference.abs() > _OFFSET_LIMIT
    shift = torch.where(huge, reference, 0.0)
    n = torch.where(huge, 0.0, (reference / math.log(2.0)).round())
    e_largest = _above_unit(reference, n, shift).exp()
    total = e_largest * loss.exp()
    e_own = _above_unit(logit, n, shift).exp()
    is_largest = held & (own == place).reshape(-1)
    rest = torch.where(
        is_largest, e_largest * loss.expm1(), (total - torch.where(held, e_own, 0.0)).clamp(min=0.0)
    )
    rest = torch.where(is_empty, 0.0, torch.where(is_nan, math.nan, rest))
    total = torch.where(is_empty, 0.0, total)
    zero = torch.zeros_like(rest)
    classes = torch.full_like(rest, float(x.shape[1]))
    distance = zero
    if smooths:
        log_unit = n * math.log(2.0) + shift
        distance = classes * log_unit - x.sum(1, dtype=torch.float64).reshape(-1)
    n = torch.where(is_empty, -math.inf, n)
    weight = held.double()
    state = [n, shift, rest, zero, logit, weight, weight, classes, distance, zero]
    return torch.stack(state, -1), place, (-loss).exp(), total


def merge(gathered: Tensor) -> Tensor:
    """Merge the states of several processes."""
    n, shift, rest, error, logit, held, weight, classes, distance, lost = gathered.unbind(-1)
    highest = (n * math.log(2.0) + shift).argmax(0, keepdim=True)
    top_n, top_shift = n.gather(0, highest), shift.gather(0, highest)
    steps, finite = n - top_n, n.isfinite()
    steps = torch.where(finite, steps, 0.0)
    exact = torch.ldexp(torch.ones_like(n), steps.clamp(min=-1100.0))
    rounded = (shift - top_shift + steps * math.log(2.0)).exp()
    factor = torch.where(shift == top_shift, exact, rounded)
    gap = torch.where(finite, top_shift - shift - steps * math.log(2.0), 0.0)
    sums = [rest * factor, error * factor, logit, held, weight, classes, distance + classes * gap]
    top = [top_n.squeeze(0), top_shift.squeeze(0)]
    return torch.stack([*top, *(part.sum(0) for part in (*sums, lost))], -1)


def losses(states: Tensor, scales: Tensor, counts: Tensor, mixture: Mixture) -> Tensor:
    """Return the loss of each sample times its scale."""
    smoothing, number, z_loss = mixture
    keep, even = 1.0 - smoothing, smoothing / number
    rest, e_own, d, log_unit = _finished(states)
    logit, classes, distance = states[:, 4], states[:, 7], states[:, 8] + states[:, 9]
    log_q = rest.log() + d
    q = rest * d.clamp(max=_LARGE + 700.0).exp()
    surprisal = torch.where(log_q > _LARGE, log_q, q.log1p())
    surprisal = torch.where((rest == 0.0) & (logit != -math.inf), 0.0, surprisal)
    log_sum = (rest + e_own).log()
    loss = surprisal
    if isinstance(smoothing, Tensor):
        loss = torch.where(smoothing == 1.0, 0.0, keep * surprisal)
        loss = loss + torch.where(even == 0.0, 0.0, even * (classes * log_sum + distance))
    if z_loss:
        loss = loss + z_loss * (log_unit + log_sum) ** 2
    return torch.where(counts, scales * loss, 0.0)


def gradient(
    x: Tensor,
    target: Tensor,
    counts: Tensor,
    merged: Tensor,
    reduced: tuple[Tensor, ...],
    scales: Tensor,
    mixture: Mixture,
) -> Tensor:
    """Return the gradient of a slice, from the merged states."""
    x = x.resolve_neg()
    smoothing, number, z_loss = mixture
    keep, even = 1.0 - smoothing, smoothing / number
    state, place, p_largest, total = reduced
    rest, e_own, _, log_unit = _finished(merged)
    whole = rest + e_own
    z_slope = 2.0 * z_loss * (log_unit + whole.log()) if z_loss else 0.0 * whole
    same = state[:, 1] == merged[:, 1]
    steps = torch.where(state[:, 0].isfinite(), state[:, 0] - merged[:, 0], 0.0)
    exact = torch.ldexp(total, steps.clamp(min=-1100.0))
    rounded = total * (state[:, 1] - merged[:, 1] + steps * math.log(2.0)).exp()
    share = torch.where(same, exact, rounded) / whole
    classes = merged[:, 7]
    adds_nothing = (share == 0.0) | ~counts
    weights = scales * (keep + even * classes + z_slope) * share
    weights = torch.where(adds_nothing, 0.0, weights)  # for which the kernel writes 0
    shape, dtype = place.shape, _backend.accumulator(x.dtype)

    call = SoftmaxArguments(x, place, None, weights.to(dtype).view(shape), None)
    _, grad = softmax.evaluate(call, Options("sum"), True, False)
    assert grad is not None

    def put(index: Tensor, values: Tensor, where: Tensor | None = None) -> None:
        values = values.view(shape).to(grad.dtype)
        if where is not None:
            values = torch.where(where.view(shape), values, grad.gather(1, index[:, None])[:, 0])
        grad.scatter_(1, index.unsqueeze(1), values.unsqueeze(1))

    # The kernel's gradient at the largest logit is that class's probability minus 1.
    put(place, torch.where(adds_nothing, 0.0, weights * p_largest))
    if isinstance(smoothing, Tensor):
        grad.sub_(torch.where(counts, scales * even, 0.0).view(shape).unsqueeze(1).to(dtype))
    held = (target >= 0) & (target < x.shape[1])
    p, part = e_own / whole, rest / whole
    own = scales * (even * (classes * p - 1.0) - keep * part + z_slope * p)
    put(torch.where(held, target, 0).view(shape), torch.where(counts, own, 0.0), held)
    return grad


def _at(x: Tensor, index: Tensor) -> Tensor:
    """Return a logit of each sample, in one row."""
    return x.gather(1, index.unsqueeze(1)).reshape(-1)


def _above_unit(logit: Tensor, n: Tensor, shift: Tensor) -> Tensor:
    """Return how far logits are above the logarithm of the unit."""
    return (logit - shift - n * _LN2[0]) - n * _LN2[1]


def _finished(states: Tensor) -> tuple[Tensor, ...]:
    """Return `rest`, the true class's exponential, how far the unit is above it, and log(unit)."""
    n, shift, rest, logit = states[:, 0], states[:, 1], states[:, 2] + states[:, 3], states[:, 4]
    n = torch.where(n.isfinite(), n, 0.0)
    d = -_above_unit(logit, n, shift)
    return rest, torch.where(logit == -math.inf, 0.0, (-d).exp()), d, n * math.log(2.0) + shift
