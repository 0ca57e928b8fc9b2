"""Cross-entropy of logits whose classes are spread over the processes of a group.

As in Megatron-LM no process sees another's logits: they exchange a few numbers a sample, twice.
Each takes the softmax of its own classes first, loss and gradient in one pass by the kernels of
`_cross_entropy.py`, and from it the logsumexp; the largest of these is the reference for all (first
exchange). Sums relative to it (second exchange) give the loss, and each process's gradient is its
own softmax times its share of the sum, for which the backward pass goes over it once.

The numbers of a sample are float64. So that small losses keep their digits, what the classes other
than the target add to the sum is kept apart from what the target does.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from xentrs.torch import _autograd, _backend, _cross_entropy
from xentrs.torch._backend import FLOATS, HALVES
from xentrs.torch._options import Ignored, Options, check_tensor, ignored_indices

_NAME = "xentrs.torch.vocab_parallel_cross_entropy"
_PLAIN = Options("none")


class _Samples(NamedTuple):
    """Numbers of each sample, in float64 but for the indices."""

    place: Tensor  # the index among this process's classes of the target, or else the largest logit
    mine: Tensor  # whether that is the target
    lost: Tensor  # whether the target is this process's, but ruled out by -inf
    target: Tensor  # its index among this process's classes then
    p_place: Tensor  # its probability among this process's classes
    share: Tensor  # of this process's classes in the sum of all
    rest: Tensor  # of the classes other than the target
    logsumexp: Tensor
    counts: Tensor  # whether it counts at all
    factor: Tensor  # of the sample's loss in what is returned
    classes: Tensor  # of all processes; of no dimension


def _evaluate(
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
    kept = _cross_entropy._kept(indices, options.ignored)
    own_class = indices - first_class
    mine = kept & (own_class >= 0) & (own_class < x.shape[1])
    own_class = torch.where(mine, own_class, 0)
    lost = mine & (x.gather(1, own_class.unsqueeze(1)).squeeze(1) == -math.inf)
    found, mine = mine, mine & ~lost
    place = torch.where(mine, own_class, x.argmax(1))
    call = _cross_entropy._Arguments(x, place, None, None, None)
    late = _autograd.is_late(x)
    local, grad = _cross_entropy._evaluate(call, _PLAIN, with_grad and not late)
    if late:
        grad = x  # what it is computed from
    local = local.double()
    x_place = x.gather(1, place.unsqueeze(1)).squeeze(1).double()
    # Classes that are all ruled out by -inf have no part in anything.
    ruled_out = (x_place == -math.inf) & ~mine
    logsumexp = torch.where(ruled_out, -math.inf, x_place + local)

    top = logsumexp.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, group)
    share = (logsumexp - top).exp()
    p_place = torch.where(ruled_out, 0.0, (-local).exp())
    parts = [
        torch.where(mine, share * -(-local).expm1(), share),  # of the other classes
        torch.where(mine, share * p_place, 0.0),  # of the target
        torch.where(mine, top - x_place, torch.where(lost, math.inf, 0.0)),
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
        mine,
        lost,
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
        torch._assert_async(~missing.any(), "target is out of bounds")
    elif missing.any():
        raise IndexError(f"Target {target[missing][0].item()} is out of bounds.")


class _Parallel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, options: Options, *arguments: Any) -> Tensor:
        target, sample_weight, denominator, first_class, group = arguments
        loss, grad, samples = _evaluate(
            input, target, sample_weight, denominator, first_class, options, group, True
        )
        ctx.save_for_backward(grad, *samples)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(f"{_NAME} cannot be differentiated twice")
        grad, *saved = ctx.saved_tensors
        s = _Samples(*saved)
        e, z = ctx.options.label_smoothing, ctx.options.z_loss
        factor = torch.where(s.counts, s.factor * arriving.double(), 0.0)
        even = factor * e / s.classes
        scale = factor * (1.0 + 2.0 * z * s.logsumexp) * s.share
        # At `place`, of which the kernel's gradient has one too little.
        p = s.share * s.p_place
        target = factor * ((e + 2.0 * z * s.logsumexp) * p - (1.0 - e) * s.rest)
        at_place = torch.where(s.mine, target, scale * s.p_place) - even
        dtype = _backend.accumulator(grad.dtype)
        if _autograd.is_late(grad):
            weights = scale.to(dtype)
            call = _cross_entropy._Arguments(grad, s.place, None, weights, None)
            grad = _cross_entropy._gradient_of(call, Options("sum"))
        else:
            again = _autograd.is_traced(arriving) or _autograd.keeps_graph()
            grad = grad.clone() if again else grad
            grad.mul_(scale.unsqueeze(1).to(dtype))
        # Classes that have no part, whatever the kernel said of them; samples that do not count.
        grad.masked_fill_(((s.share == 0.0) | ~s.counts).unsqueeze(1), 0.0)
        if e:
            grad.sub_(even.unsqueeze(1).to(dtype))
        at_place = torch.where(s.counts, at_place, 0.0)
        grad.scatter_(1, s.place.unsqueeze(1), at_place.unsqueeze(1).to(grad.dtype))
        at_lost = torch.where(s.lost, -(1.0 - e) * factor, 0.0)
        grad.scatter_add_(1, s.target.unsqueeze(1), at_lost.unsqueeze(1).to(grad.dtype))
        return grad, *[None] * 6


def vocab_parallel_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    first_class: int | None = None,
    ignore_index: Ignored = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Cross-entropy of logits whose classes are spread over a process group.

    Every process of the group calls it, with its own classes and the same other arguments.

    Parameters
    ----------
    input : Tensor of shape (N, C_local) or (N, C_local, d_1, ..., d_K)
        The logits of this process's classes.
    target : Tensor of shape (N) or (N, d_1, ..., d_K)
        Class indices, of any integer type, counted over all processes.
    group : ProcessGroup, optional
        Default: the default group.
    first_class : int, optional
        The index of this process's first class. Default: its rank in the group times C_local, as
        is right where all processes have the same number of classes.
    ignore_index, reduction, z_loss, sample_weight, denominator
        As in `cross_entropy`.
    label_smoothing : float, default 0.0
        As in `cross_entropy`, over the classes of all processes.

    Returns
    -------
    Tensor
        As from `cross_entropy` of all logits, in every process.

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit.
    IndexError
        If a class index is none of any process's; on a GPU an assertion on the device.

    Notes
    -----
    Two all-reduces of N and of 5 N float64 numbers (6 N with label smoothing). The backward pass
    needs none. The gradient cannot be differentiated again.
    """
    options = Options(reduction, ignored_indices(ignore_index), label_smoothing, z_loss)
    for name, value in (("input", input), ("target", target)):
        check_tensor(name, value)
    given = [t for t in (target, sample_weight, denominator) if t is not None]
    if not (_backend.is_eager(input) and _backend.is_plain(*given)):
        raise NotImplementedError(f"{_NAME} works in eager mode only")
    if input.dtype not in FLOATS or input.dim() < 2 or input.shape[1] == 0:
        raise TypeError(
            f"input has dtype {input.dtype} and shape {tuple(input.shape)}, but must be floating "
            "point, of at least two axes, with classes on axis 1"
        )
    denominator = _cross_entropy.as_denominator(denominator, input)
    call = _cross_entropy._Arguments(input, target, None, sample_weight, denominator)
    if call.is_soft or not _cross_entropy._fits(call, options):
        raise ValueError(
            f"target of shape {tuple(target.shape)} and dtype {target.dtype} must be class indices "
            f"of shape {tuple(call.samples)} on {input.device}, reduction ({reduction!r}) 'mean', "
            f"'sum' or 'none', and label_smoothing ({label_smoothing}) in [0, 1]"
        )
    _cross_entropy._check_extras(call, options)
    if first_class is None:
        first_class = dist.get_rank(group) * input.shape[1]
    arguments = target, sample_weight, denominator, first_class, group
    if _backend.wants_gradient(input):
        loss = _Parallel.apply(input, options, *arguments)
    else:
        loss = _evaluate(input, *arguments[:-1], options, group, False)[0]
    if input.dtype in HALVES and not _backend.autocasts(input):
        loss = loss.to(input.dtype)
    return loss
