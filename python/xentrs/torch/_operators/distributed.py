"""A loss of DTensor logits: each process computes that of its own samples.

The logits may be sharded on any axis but that of the classes. The sum of the processes' losses is
the loss; for a mean they divide by what all samples together have as divisor, so that is exact
where processes have different numbers of samples that count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.tensors import class_shards


def compute(
    name: str,
    local_loss: Callable[[Any, Options], Tensor],
    call: Any,
    axis: int | None,
    options: Options,
) -> Tensor:
    """Return the loss as a DTensor; `axis` is that of the classes, None if there is none.

    `local_loss` computes the loss of plain tensors.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    if class_shards(call.input, axis):
        raise NotImplementedError(
            f"xentrs.torch.{name}: input is sharded over its classes (axis {axis}); "
            "xentrs.torch.vocab_parallel_cross_entropy takes such logits, as local tensors"
        )
    input = call.input
    mesh = input.device_mesh
    places: list[Any] = [Replicate() if p.is_partial() else p for p in input.placements]
    sharded = [p.dim % input.dim() if p.is_shard() else None for p in places]

    def without_classes(axis_of_input: int | None) -> Any:
        """Return how what has no class axis is placed."""
        if axis_of_input is None:
            return Replicate()
        return Shard(axis_of_input - (axis is not None and axis < axis_of_input))

    # A reduced loss is a sum over the processes that have different samples.
    reduced = [Replicate() if i is None else Partial("sum") for i in sharded]
    samples = [without_classes(i) for i in sharded]
    everywhere = [Replicate()] * len(places)

    call_has_entries = getattr(call, "probabilities", None) is not None

    def part(t: Tensor | None) -> Tensor | None:
        """Return this process's part of a tensor other than the input."""
        if t is None:
            return None
        if axis is None and t.dim() and t.shape != input.shape:
            t = t.expand(input.shape)
        if not isinstance(t, DTensor):
            t = DTensor.from_local(t, mesh, everywhere, run_check=False)
        if t.shape == input.shape and not call_has_entries:
            to = places
        else:
            shape = _samples(input, axis)
            entries = call_has_entries and t.shape[:-1] == shape and t.dim() == input.dim()
            to = samples if t.shape == shape or entries else everywhere
        return t.redistribute(placements=to).to_local()

    local = input.redistribute(placements=places).to_local()
    call = call._replace(input=local, **{f: part(getattr(call, f)) for f in call._fields[1:]})
    total = None
    if options.reduction == "mean" and call.denominator is None:
        total = _sum(call.divisor(options), mesh, reduced)
        if options.z_loss:
            call = call._replace(z_denominator=_sum(call.z_divisor(options), mesh, reduced))
        call = call._replace(denominator=total)
    loss = local_loss(call, options)
    if total is not None:
        loss = torch.where(total == 0.0, torch.nan, loss)
    if options.reduction == "none":
        shape = _samples(input, axis)
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(loss, mesh, samples, run_check=False, shape=shape, stride=stride)
    result = DTensor.from_local(loss, mesh, reduced, run_check=False)
    return result.redistribute(placements=everywhere)


def _samples(input: Tensor, axis: int | None) -> torch.Size:
    """Return the shape of each sample's loss."""
    shape = input.shape
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]


def _sum(local: Tensor, mesh: Any, placements: Any) -> Tensor:
    """Return the sum of the processes' numbers."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(local, mesh, placements, run_check=False).full_tensor()
