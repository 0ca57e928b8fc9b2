"""Cross-entropy of logits whose classes are spread over the processes of a group.

As in Megatron-LM no process sees another's logits. Each reduces its own classes to a state of some
80 bytes a sample, the one of `xentrs.PartialCrossEntropy` (`src/softmax/state.rs`). The processes
exchange these once. Each merges all of them in the order of the processes, so that all have the
same loss to the last bit. The backward pass exchanges nothing: the gradient of a process's classes
follows from its logits and the merged states.

Between forward and backward the logits are kept, and the backward writes the gradient in one pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from xentrs._xentrs import STATE_FIELDS
from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import not_ignored
from xentrs.torch._cpu import slices as _cpu
from xentrs.torch._gpu import slices as _gpu
from xentrs.torch._private import assert_on_device

_NAME = "xentrs.torch.vocab_parallel_cross_entropy"

# Fields of a state, as `src/softmax/state.rs` has them.
_HELD = 5


class _Samples(NamedTuple):
    """Numbers of each sample, in one row."""

    target: Tensor  # its class, counted from this process's first
    counts: Tensor  # whether it counts
    scales: Tensor  # of its loss in what is returned
    merged: Tensor  # the state of all classes
    classes: Tensor  # how many there are in all; of no dimension


def evaluate(
    input: Tensor,
    target: Tensor,
    sample_weight: Tensor | None,
    denominator: Tensor | None,
    first_class: int,
    options: Options,
    group: Any,
) -> tuple[Tensor, _Samples, tuple[Tensor, ...]]:
    """Return the loss, and what the gradient needs: of all processes, and of this one's classes."""
    x = input.detach()
    on = _gpu if _backend.uses_triton(x) else _cpu
    indices = target.detach().long()
    kept = not_ignored(indices, options.ignored).reshape(-1)
    own = (indices - first_class).reshape(-1)
    own = torch.where((own >= 0) & (own < x.shape[1]), own, -1)
    reduced = on.reduce(x, own, kept, options.label_smoothing > 0.0)
    # A sample that does not count has no state. Its classes count all the same.
    gathered = torch.empty(
        (dist.get_world_size(group), len(own) + 1, STATE_FIELDS),
        dtype=torch.float64,
        device=x.device,
    )
    sizes = torch.full_like(gathered[0, :1], float(x.shape[1]))
    dist.all_gather_into_tensor(gathered, torch.cat([reduced[0], sizes])[None], group)
    classes = gathered[:, -1, 0].sum()
    merged = on.merge(gathered[:, :-1].contiguous())
    _check(target, (kept & (merged[:, _HELD] == 0.0)).view(target.shape))

    scales = torch.ones(len(own), dtype=torch.float64, device=x.device)
    if sample_weight is not None:
        scales = sample_weight.detach().double().reshape(-1)
        kept &= scales != 0.0
    mixture = _mixture(options, classes, on)
    loss = on.losses(merged, scales.contiguous(), kept, mixture)
    if options.reduction == "mean":
        divisor = torch.where(kept, scales, 0.0).sum() if denominator is None else denominator
        divisor = divisor.double()
        scales, loss = scales / divisor, loss.sum() / divisor
    elif options.reduction == "sum":
        loss = loss.sum()
    else:
        loss = loss.view(target.shape)
    samples = _Samples(own, kept, scales, merged, classes)
    return loss.to(_backend.accumulator(x.dtype)), samples, reduced


def _mixture(options: Options, classes: Tensor, on: Any) -> tuple[Any, Any, float]:
    """Return what smoothing leaves to the true class, what it gives to each, and z-loss's factor.

    With smoothing the first two are tensors for the GPU's functions, so that nobody waits for the
    device.
    """
    e = options.label_smoothing
    if not e:
        return 1.0, 0.0, options.z_loss
    # Of one class the cross-entropy is 0, whatever the smoothing.
    smoothing = torch.where(classes == 1.0, 0.0, torch.full_like(classes, e))
    keep, even = 1.0 - smoothing, smoothing / classes
    if on is _cpu:
        return keep.item(), even.item(), options.z_loss
    return keep, even, options.z_loss


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
        loss, samples, reduced = evaluate(
            input, target, sample_weight, denominator, first_class, options, group
        )
        ctx.save_for_backward(input, *samples, *reduced)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(f"{_NAME} cannot be differentiated twice")
        input, target, counts, scales, merged, classes, *reduced = ctx.saved_tensors
        upstream = grad_output.detach().resolve_neg().double().reshape(-1)
        scales = torch.where(counts, scales * upstream, 0.0)
        x = input.detach()
        on = _gpu if _backend.uses_triton(x) else _cpu
        mixture = _mixture(ctx.options, classes, on)
        grad = on.gradient(x, target, counts, merged, tuple(reduced), scales, mixture)
        return grad, *[None] * 6
