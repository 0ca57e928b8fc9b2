"""Cross-entropy of logits whose classes are spread over the processes of a group.

As in Megatron-LM no process sees another's logits: they exchange a few numbers a sample, twice.
Each takes the softmax of its own classes first, loss and gradient in one pass by the softmax
kernels, and from it the logsumexp; the largest of these is the reference for all (first exchange).
Sums relative to it (second exchange) give the loss, and each process's gradient is its own softmax
times its share of the sum, for which the backward pass goes over it once.

The numbers of a sample are float64. So that small losses keep their digits, the sum over the
classes other than the target is kept apart from the target's term.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments, not_ignored
from xentrs.torch._mode import is_traced
from xentrs.torch._operators.gradients import is_deferred
from xentrs.torch._operators.softmax import CROSS_ENTROPY
from xentrs.torch._private import assert_on_device, is_graph_retained

_NAME = "xentrs.torch.vocab_parallel_cross_entropy"
_PLAIN = Options("none")


class _Samples(NamedTuple):
    """Numbers of each sample, in float64 but for the indices."""

    place: Tensor  # the index among this process's classes of the target, or else the largest logit
    has_target: Tensor  # whether that is the target
    excluded: Tensor  # whether the target is this process's, but its logit is -inf
    target: Tensor  # its index among this process's classes then
    p_place: Tensor  # its probability among this process's classes
    share: Tensor  # of this process's classes in the sum of all
    rest: Tensor  # of the classes other than the target
    logsumexp: Tensor
    counts: Tensor  # whether it counts
    factor: Tensor  # of the sample's loss in what is returned
    classes: Tensor  # of all processes; of no dimension


def evaluate(
    input: Tensor,
    target: Tensor,
    sample_weight: Tensor | None,
    denominator: Tensor | None,
    first_class: int,
    options: Options,
    group: Any,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, _Samples]:
    x = input.detach()
    indices = target.long()
    kept = not_ignored(indices, options.ignored)
    own_class = indices - first_class
    has_target = kept & (own_class >= 0) & (own_class < x.shape[1])
    own_class = torch.where(has_target, own_class, 0)
    excluded = has_target & (x.gather(1, own_class.unsqueeze(1)).squeeze(1) == -math.inf)
    found, has_target = has_target, has_target & ~excluded
    place = torch.where(has_target, own_class, x.argmax(1))
    call = SoftmaxArguments(x, place, None, None, None)
    deferred = is_deferred(x)
    local, grad = CROSS_ENTROPY.evaluate(call, _PLAIN, with_grad and not deferred)
    if deferred:
        grad = x  # the backward computes it from the logits
    local = local.double()
    x_place = x.gather(1, place.unsqueeze(1)).squeeze(1).double()
    # A process all of whose logits are -inf adds nothing.
    is_empty = (x_place == -math.inf) & ~has_target
    logsumexp = torch.where(is_empty, -math.inf, x_place + local)

    top = logsumexp.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, group)
    share = (logsumexp - top).exp()
    p_place = torch.where(is_empty, 0.0, (-local).exp())
    parts = [
        torch.where(has_target, share * -(-local).expm1(), share),  # of the other classes
        torch.where(has_target, share * p_place, 0.0),  # of the target
        torch.where(has_target, top - x_place, torch.where(excluded, math.inf, 0.0)),
        found.double(),
        torch.full_like(share, float(x.shape[1])),
    ]
    if options.label_smoothing:
        parts.append(x.shape[1] * top - x.sum(1, dtype=torch.float64))
    sums = torch.stack(parts)
    dist.all_reduce(sums, dist.ReduceOp.SUM, group)
    rest, own, distance, holders, classes = sums[:5]
    _check(target, kept & (holders == 0.0))
    if sample_weight is not None:
        kept &= sample_weight != 0

    total = rest + own
    near = own > 1e-280
    loss = torch.where(
        near, torch.log1p(rest / torch.where(near, own, 1.0)), distance + total.log()
    )
    logsumexp = top + total.log()
    if options.label_smoothing:
        e = options.label_smoothing
        loss = (1.0 - e) * loss + e * (total.log() + sums[5] / classes)
    loss = loss + options.z_loss * logsumexp**2
    factor = kept.double()
    if sample_weight is not None:
        factor = torch.where(kept, sample_weight.double(), 0.0)
    loss = torch.where(kept, factor * loss, 0.0)
    if options.reduction == "mean":
        divisor = factor.sum() if denominator is None else denominator.double()
        factor = torch.where(kept, factor / divisor, 0.0)
        loss = loss.sum() / divisor
    elif options.reduction == "sum":
        loss = loss.sum()
    samples = _Samples(
        place,
        has_target,
        excluded,
        own_class,
        p_place,
        share / total,
        rest / total,
        logsumexp,
        kept,
        factor,
        classes,
    )
    return loss.to(_backend.accumulator(x.dtype)), grad, samples


def _check(target: Tensor, missing: Tensor) -> None:
    """Refuse targets that no process has."""
    if target.device.type != "cpu":
        assert_on_device(~missing.any(), "target is out of bounds")
    elif missing.any():
        raise IndexError(f"Target {target[missing][0].item()} is out of bounds.")


class Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, options: Options, *arguments: Any) -> Tensor:
        target, sample_weight, denominator, first_class, group = arguments
        loss, grad, samples = evaluate(
            input, target, sample_weight, denominator, first_class, options, group, True
        )
        ctx.save_for_backward(grad, *samples)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(f"{_NAME} cannot be differentiated twice")
        grad, *saved = ctx.saved_tensors
        s = _Samples(*saved)
        e, z = ctx.options.label_smoothing, ctx.options.z_loss
        factor = torch.where(s.counts, s.factor * grad_output.double(), 0.0)
        even = factor * e / s.classes
        scale = factor * (1.0 + 2.0 * z * s.logsumexp) * s.share
        # The kernel's gradient at `place` is that class's probability minus 1.
        p = s.share * s.p_place
        target = factor * ((e + 2.0 * z * s.logsumexp) * p - (1.0 - e) * s.rest)
        at_place = torch.where(s.has_target, target, scale * s.p_place) - even
        dtype = _backend.accumulator(grad.dtype)
        if is_deferred(grad):
            weights = scale.to(dtype)
            call = SoftmaxArguments(grad, s.place, None, weights, None)
            grad = CROSS_ENTROPY.gradient(call, Options("sum"))
        else:
            if is_traced(grad_output) or is_graph_retained():
                grad = grad.clone()
            grad.mul_(scale.unsqueeze(1).to(dtype))
        # 0 for a process that adds nothing, whose gradient is NaN, and samples that do not count.
        grad.masked_fill_(((s.share == 0.0) | ~s.counts).unsqueeze(1), 0.0)
        if e:
            grad.sub_(even.unsqueeze(1).to(dtype))
        at_place = torch.where(s.counts, at_place, 0.0)
        grad.scatter_(1, s.place.unsqueeze(1), at_place.unsqueeze(1).to(grad.dtype))
        at_excluded = torch.where(s.excluded, -(1.0 - e) * factor, 0.0)
        grad.scatter_add_(1, s.target.unsqueeze(1), at_excluded.unsqueeze(1).to(grad.dtype))
        return grad, *[None] * 6
